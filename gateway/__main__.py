"""The command line: `callbutton-gateway`, the same as `python -m gateway`.

Exit codes: 0 done, 1 the upstream does not work or the port is taken, 2 the command or a setting cannot be used.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterable, Sequence

from gateway import __version__
from gateway.cli import COMMANDS, load


def parser(names: Iterable[str] = COMMANDS) -> argparse.ArgumentParser:
    """Describe commands."""
    root = argparse.ArgumentParser(
        prog="callbutton-gateway",
        description="A REST/JSON gateway in front of a Callbutton XML server. COMMAND --help shows an example of each.",
    )
    root.add_argument("--version", action="version", version=__version__)
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in names:
        command = load(name)
        described = commands.add_parser(
            name,
            help=command.HELP,
            description=command.HELP,
            epilog=f"example:\n  {command.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(described)
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    chosen = parser(words[:1] if words and words[0] in COMMANDS else COMMANDS).parse_args(words)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            return load(chosen.command).run(chosen)
    except OSError as error:
        print(f"callbutton-gateway: {error.strerror or error}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"callbutton-gateway: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
