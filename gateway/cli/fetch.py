"""`fetch`: exports the calls of a window to a file or standard output, oldest first.

Rules:
- It sends requests to the upstream itself, with the settings of `serve`, or to a running gateway with `--gateway`. Its
  output is never stale.
- An interrupted export to a file is resumed by the same command; `partial_file` has the rules.
- `recordingUrl` is the upstream's own address; from a gateway, its link.
- Parquet has its index at the end, so that an interrupted export to it begins again.
- Exit codes: 0 success, 1 the upstream or the disk failed, 2 the command or a setting is not valid, 130 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import sys
import time
from contextlib import closing
from pathlib import Path
from urllib.parse import urlencode

import httpx

from gateway import errors, logs
from gateway.cli import INTERRUPTED, gateway_client
from gateway.cli.check import advice_on
from gateway.cli.exporter import PARQUET, Exporter
from gateway.cli.partial_file import GZIP, Checkpoint, PartialFile
from gateway.cli.progress import print_error
from gateway.formats import FORMATS, columns_of, fields_of
from gateway.settings import Settings, parse_settings, parse_upstream_settings

FILTERS = ("result", "phoneType", "campaign", "did", "ani", "target", "recorded", "minDuration")
MAX_CACHE_BYTES = 32 * 1024**2  # bytes; an export reads each call once
STDOUT = Path("-")
SUFFIXES = {
    "": "ndjson",
    ".json": "json",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".csv": "csv",
    ".parquet": PARQUET,
}
HELP = "Export the calls of a window to a file or standard output. An interrupted export to a file can be resumed."
EXAMPLE = (
    "callbutton-gateway fetch 8005550100 --start 2026-10-01 --end 2026-11-01 --tz America/Chicago -o october.csv\n"
    "  callbutton-gateway fetch '*' --start 2026-11-01 --format ndjson | jq .startTime\n"
    "  callbutton-gateway fetch '*' --range last_month --filter result=connected -o calls.parquet "
    "--gateway http://127.0.0.1:8080 --key-file key.txt"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to the parser."""
    parser.add_argument("code", nargs="*", metavar="CODE", help="client code; '*' means all clients")
    parser.add_argument("--client", action="append", default=[], metavar="CODE", help="same as CODE (repeatable)")
    parser.add_argument(
        "--start", help="date or date-time from which calls are exported (default: GATEWAY_HISTORY_START)"
    )
    parser.add_argument("--end", help="date or date-time before which calls are exported (default: now)")
    parser.add_argument("--range", help="today, yesterday, last_7_days, last_month …, instead of --start and --end")
    parser.add_argument(
        "--filter",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="only calls that a filter of the API admits, such as result=busy,no_answer (repeatable)",
    )
    parser.add_argument(
        "--tz", default="UTC", metavar="ZONE", help="time zone of dates without an offset (default: %(default)s)"
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="export the complete history in one POST without dates for each CODE, which cannot be resumed and may "
        "exceed GATEWAY_UPSTREAM_TIMEOUT or GATEWAY_UPSTREAM_MAX_BYTES",
    )
    parser.add_argument("--status", action="store_true", help="include the status of calls")
    parser.add_argument("--format", choices=(*FORMATS, PARQUET), help="default: by the ending of the file, else ndjson")
    parser.add_argument("--fields", default="", help="fields to export, separated by commas (default: all)")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=STDOUT,
        metavar="FILE",
        help="file to write, compressed if its name ends in .gz; - is standard output (default: %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    parser.add_argument("--restart", action="store_true", help="discard an interrupted export to this file")
    gateway_client.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Export the calls, and return the exit code. Raises ValueError, OSError."""
    headers = gateway_client.headers_of(arguments)
    settings = (parse_settings if arguments.gateway else parse_upstream_settings)(os.environ)
    now = time.time()
    if arguments.output == STDOUT:
        arguments.output = None
    elif arguments.output.exists() and not arguments.output.is_file():
        raise ValueError(f"{arguments.output} is not a file; use -o - for standard output")
    elif arguments.output.exists() and not arguments.overwrite:
        raise ValueError(f"{arguments.output} exists already; use --overwrite to replace it")
    first = parse_arguments(arguments, settings, now)
    logs.configure(settings.log_format, "error")
    settings = dataclasses.replace(
        settings, stale_if_error=0, stale_while_revalidate=0, cache_bytes=min(settings.cache_bytes, MAX_CACHE_BYTES)
    )
    try:
        if arguments.output is None:
            asyncio.run(Exporter(settings, first, write_stdout, lambda _: None, meta=True).run(now, headers))
            return 0
        with closing(PartialFile(arguments.output, first, restart=arguments.restart)) as partial:
            save = (lambda _: None) if first.parameters["format"] == PARQUET else partial.save
            asyncio.run(Exporter(settings, partial.checkpoint, partial.write, save, meta=False).run(now, headers))
            partial.finish()
    except errors.UpstreamError as error:
        too_much = isinstance(error, errors.UpstreamRejected | errors.UpstreamTimeout) or (
            isinstance(error, errors.UpstreamMalformed) and error.too_large
        )
        advice = "use --start in place of --all" if arguments.all and too_much else advice_on(error)
        print_error(f"export failed: {error}\nwhat to do: {advice}; {_resume_hint(arguments)}")
        return 1
    except gateway_client.RequestError as error:
        print_error(f"export failed: {error}; {_resume_hint(arguments)}")
        return 1
    except KeyboardInterrupt:
        print_error(f"interrupted; {_resume_hint(arguments)}")
        return INTERRUPTED
    except OSError as error:
        if error.filename is None and arguments.output and not isinstance(error, BrokenPipeError):
            error.filename = str(arguments.output)  # such as a disk that is full
        if not isinstance(error, BrokenPipeError):
            raise
        # The reader of the pipe has closed it. Python would fail again when it flushes standard output at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def write_stdout(data: bytes) -> None:
    """Write to standard output without buffering."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _resume_hint(arguments: argparse.Namespace) -> str:
    if arguments.output is None or arguments.all or arguments.output.suffix.lower() == ".parquet":
        return "the output is incomplete"
    is_begun = arguments.output.with_name(f"{arguments.output.name}.part").exists()
    return f"run the same command again{' to resume' if is_begun else ''}"


def parse_arguments(arguments: argparse.Namespace, settings: Settings, now: float) -> Checkpoint:
    """Parse the arguments to a checkpoint before the first call. Raises ValueError."""
    from gateway.api.list_query import parse_list_query
    from gateway.app import build_extras

    dates = "start", "end", "range"
    query_parameters = [(name, text) for name in (*dates, "tz") if (text := getattr(arguments, name))]
    query_parameters += [("client", code) for code in (*arguments.code, *arguments.client)]
    if arguments.all and (arguments.gateway or any(getattr(arguments, name) for name in dates)):
        raise ValueError("--all asks the upstream for its complete history: leave dates and --gateway out")
    extras = build_extras(settings)
    names = (*FILTERS, *(one.name for one in extras.fields))
    for text in arguments.filter:
        name, equals, value = text.partition("=")
        if not equals or name not in names:
            raise ValueError(f"--filter {text} is not NAME=VALUE; the names are {', '.join(names)}")
        query_parameters.append((name, value))
    fields = [field.strip() for field in arguments.fields.split(",") if field.strip()]
    known = fields_of(columns_of(extras.call_type))
    if unknown := next((field for field in fields if field not in known), None):
        raise ValueError(f"{unknown} is not a field; choose from {', '.join(known)}")
    try:
        query = parse_list_query(
            urlencode(query_parameters).encode(), None, now, settings.history_start, (), extras=extras
        )
    except errors.InvalidParameters as error:
        raise ValueError(str(error).replace("client: is required; `client=*`", "CODE: is required; '*'")) from error
    parameters = {
        "clients": ",".join(query.codes),
        "start": arguments.start or "",
        "end": arguments.end or "",
        "tz": arguments.tz,
        "all": str(arguments.all).lower(),
        "status": str(arguments.status).lower(),
        "format": arguments.format or format_of(arguments.output or STDOUT),
        "fields": ",".join(fields),
        "range": arguments.range or "",
        "filters": "&".join(arguments.filter),
        "gateway": arguments.gateway or "",
        "upstream": "" if arguments.gateway else str(httpx.URL(settings.upstream_url).copy_with(userinfo=b"")),
    }
    if extras.fields:  # they are columns of all calls, and a resumed export must have the same
        parameters["extra"] = ",".join(f"{one.element}:{one.name}" for one in extras.fields)
    if parameters["format"] == PARQUET and (arguments.output is None or arguments.output.suffix.lower() == GZIP):
        raise ValueError("Parquet goes to a file, without further compression: use -o calls.parquet")
    return Checkpoint(parameters, (query.window.start, query.window.end), query.window.start)


def format_of(output: Path) -> str:
    """The format of a file by its ending, without `.gz`. Raises ValueError for an ending of another format."""
    name = Path(f"_{output.name}")  # `.csv` is an ending too
    suffix = (name.with_suffix("") if name.suffix.lower() == GZIP else name).suffix.lower()
    if suffix not in SUFFIXES:
        known = ", ".join(filter(None, SUFFIXES))
        raise ValueError(f"{output}: {suffix} is no format of an export; use {known} (also with .gz), or --format")
    return SUFFIXES[suffix]
