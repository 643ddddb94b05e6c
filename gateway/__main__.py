"""The command line: `callbutton-gateway`, or `python -m gateway`.

Exit codes: 0 success; 1 a failure outside the gateway, such as the upstream, a file or a port in use; 2 a command, an
option or a setting that is not valid; 130 the command was interrupted. Servers end with 0 then.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence

from gateway import __version__
from gateway.cli import COMMANDS, INTERRUPTED, load

PLACES = (
    "If the shell does not find callbutton-gateway: it is in the folder bin of the virtual environment, as "
    ".venv/bin/callbutton-gateway after `make demo`; python -m gateway in that environment is the same."
)


def parser(names: Iterable[str] = COMMANDS) -> argparse.ArgumentParser:
    """The parser of the command line, with these commands only: loading all of them takes time."""
    root = argparse.ArgumentParser(
        prog="callbutton-gateway",
        description="A REST/JSON gateway for a Callbutton XML server. COMMAND --help shows the options and an example.",
        epilog=PLACES,
    )
    root.add_argument("--version", action="version", version=__version__)
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in names:
        command = load(name)
        subparser = commands.add_parser(
            name,
            help=command.HELP,
            description=command.HELP,
            epilog=f"example:\n  {command.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(subparser)
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code. `arguments` are those of the process by default."""
    words = sys.argv[1:] if arguments is None else arguments
    parsed = parser(words[:1] if words and words[0] in COMMANDS else COMMANDS).parse_args(words)
    try:
        return load(parsed.command).run(parsed)
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or error
        print(f"callbutton-gateway: {text}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"callbutton-gateway: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
