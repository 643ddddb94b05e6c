"""`fetch`: exports the calls of a window to a file or standard output, oldest first.

Rules:
- It sends requests to the upstream itself, with the settings of `serve`. It needs no running gateway, and its output is
  never stale.
- An interrupted export to a file is resumed by the same command; `partial_file` has the rules.
- `recordingUrl` is the upstream's own address.
- Exit codes: 0 success, 1 the upstream or the disk failed, 2 the command or a setting is not valid, 130 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import sys
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

import msgspec

from gateway import errors, logs
from gateway.cli.check import advice_on
from gateway.cli.partial_file import GZIP, Checkpoint, PartialFile
from gateway.cli.progress import Progress, print_error
from gateway.formats import FIELDS, FORMATS, make_format
from gateway.settings import Settings, parse_upstream_settings

if TYPE_CHECKING:
    from gateway.cache.reader import Cache, ReadResult
    from gateway.callbutton.client import UpstreamClient
    from gateway.model import Call

INTERRUPTED = 130  # exit code; 128 and the number of SIGINT, as in shells
READ_DEADLINES = 10  # deadlines of a POST for reading a span, which may be split that often
MAX_CACHE_BYTES = 32 * 1024**2  # bytes; an export reads each call once
STDOUT = Path("-")
SUFFIXES = {"": "ndjson", ".json": "json", ".ndjson": "ndjson", ".jsonl": "ndjson", ".csv": "csv"}
HELP = "Export the calls of a window to a file or standard output. An interrupted export to a file can be resumed."
EXAMPLE = (
    "callbutton-gateway fetch 8005550100 --start 2026-10-01 --end 2026-11-01 --tz America/Chicago -o october.csv\n"
    "  callbutton-gateway fetch '*' --start 2026-11-01 --format ndjson | jq .startTime"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to the parser."""
    parser.add_argument("code", nargs="*", metavar="CODE", help="client code; '*' means all clients")
    parser.add_argument("--client", action="append", default=[], metavar="CODE", help="same as CODE (repeatable)")
    parser.add_argument(
        "--start", help="date or date-time from which calls are exported (default: GATEWAY_HISTORY_START)"
    )
    parser.add_argument("--end", help="date or date-time before which calls are exported (default: now)")
    parser.add_argument(
        "--tz", default="UTC", metavar="ZONE", help="time zone of dates without an offset (default: %(default)s)"
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="export the complete history in one POST without dates for each CODE, which cannot be resumed",
    )
    parser.add_argument("--status", action="store_true", help="include the status of calls")
    parser.add_argument("--format", choices=FORMATS, help="default: by the ending of the file, else ndjson")
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


def run(arguments: argparse.Namespace) -> int:
    """Export the calls, and return the exit code. Raises ValueError, OSError."""
    settings = parse_upstream_settings(os.environ)
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
            asyncio.run(Exporter(settings, first, write_stdout, lambda _: None, meta=True).run(now))
            return 0
        with closing(PartialFile(arguments.output, first, restart=arguments.restart)) as partial:
            asyncio.run(Exporter(settings, partial.checkpoint, partial.write, partial.save, meta=False).run(now))
            partial.finish()
    except errors.UpstreamError as error:
        print_error(f"export failed: {error}\nwhat to do: {advice_on(error)}; {_resume_hint(arguments)}")
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
    if arguments.output is None or arguments.all:
        return "the output is incomplete"
    return "run the same command again to resume"


def parse_arguments(arguments: argparse.Namespace, settings: Settings, now: float) -> Checkpoint:
    """Parse the arguments to a checkpoint before the first call. Raises ValueError."""
    from gateway.api.list_query import parse_list_query

    query_parameters = [(name, text) for name in ("start", "end", "tz") if (text := getattr(arguments, name))]
    query_parameters += [("client", code) for code in (*arguments.code, *arguments.client)]
    if arguments.all and (arguments.start or arguments.end):
        raise ValueError("--all exports the complete history: leave --start and --end out")
    fields = [field.strip() for field in arguments.fields.split(",") if field.strip()]
    if unknown := next((field for field in fields if field not in FIELDS), None):
        raise ValueError(f"{unknown} is not a field; choose from {', '.join(FIELDS)}")
    try:
        query = parse_list_query(urlencode(query_parameters).encode(), None, now, settings.history_start, ())
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
    }
    return Checkpoint(parameters, (query.window.start, query.window.end), query.window.start)


def format_of(output: Path) -> str:
    """The format of a file by its ending, without `.gz`. Raises ValueError for an ending of another format."""
    name = Path(f"_{output.name}")  # `.csv` is an ending too
    suffix = (name.with_suffix("") if name.suffix.lower() == GZIP else name).suffix.lower()
    if suffix not in SUFFIXES:
        known = ", ".join(filter(None, SUFFIXES))
        raise ValueError(f"{output}: {suffix} is no format of an export; use {known} (also with .gz), or --format")
    return SUFFIXES[suffix]


class Exporter:
    """Exports calls from a checkpoint on. `write` receives the data; `save` receives each checkpoint.

    `meta` says whether NDJSON has a last line. A finished file needs none: its name shows that it is complete.
    """

    def __init__(
        self,
        settings: Settings,
        checkpoint: Checkpoint,
        write: Callable[[bytes], object],
        save: Callable[[Checkpoint], object],
        *,
        meta: bool,
    ) -> None:
        self._settings = settings
        self._checkpoint = checkpoint
        self._write = write
        self._save = save
        fields = [field for field in checkpoint.parameters["fields"].split(",") if field]
        self._format = make_format(checkpoint.parameters["format"], fields, begun=checkpoint.calls > 0, meta=meta)
        self._codes = tuple(checkpoint.parameters["clients"].split(","))
        self._status = checkpoint.parameters["status"] == "true"
        self._progress = Progress(_done(checkpoint), checkpoint.calls)

    async def run(self, now: float) -> None:
        """Export the remaining calls. Raises UpstreamError, OSError."""
        from prometheus_client import CollectorRegistry

        from gateway.app import build_cache, build_upstream
        from gateway.metrics import Metrics

        metrics = Metrics(CollectorRegistry())
        upstream = build_upstream(self._settings, metrics)
        cache = build_cache(self._settings, upstream, metrics)
        if not self._checkpoint.size:
            self._write(self._format.begin())
        try:
            if self._checkpoint.parameters["all"] == "true":
                await self._export_all(upstream)
            else:
                await self._export_window(cache, now)
        finally:
            self._progress.clear()
        # After a failure or Ctrl-C these are skipped: closing the cache waits for flights.
        await cache.close()
        await upstream.close()
        self._write(self._format.end(self._meta()))
        if self._checkpoint.unreadable:
            print_error(f"{self._checkpoint.unreadable} calls have no id or no valid StartTime, and were left out")
        self._progress.finish(self._checkpoint.calls)

    async def _export_window(self, cache: Cache, now: float) -> None:
        """Write the calls span by span, with a checkpoint after each span."""
        from gateway.cache.reader import Query
        from gateway.cache.scans import stream
        from gateway.model import Window

        rest = Window(self._checkpoint.reached, self._checkpoint.window[1])
        query = Query(codes=self._codes, window=rest, status=self._status)
        timeout = self._settings.upstream_deadline * READ_DEADLINES
        recent = {tuple(key) for key in self._checkpoint.recent}
        written: list[Call] = []  # the calls of the present span
        unreadable, first = 0, True
        async for part in stream(cache, query, now, timeout, newest_first=False):
            calls = [call for call in part.calls if (call.client_code, call.id) not in recent]
            self._write(self._format.rows(calls))
            written += calls
            unreadable += len(part.unreadable)
            if not first:  # the first part is the beginning of a span, all others complete one
                self._save_checkpoint(part.reading, written, unreadable)
                recent = {(call.client_code, call.id) for call in written}
                written, unreadable = [], 0
            first = False

    def _save_checkpoint(self, reading: ReadResult, written: list[Call], unreadable: int) -> None:
        """Save a checkpoint after a span, whose calls are `written`."""
        checkpoint = self._checkpoint
        self._checkpoint = msgspec.structs.replace(
            checkpoint,
            reached=min(checkpoint.window[1], max(extent.window.end for extent in reading.extents)),
            calls=checkpoint.calls + len(written),
            unreadable=checkpoint.unreadable + unreadable,
            as_of=reading.as_of,
            oldest_fetch=min(reading.oldest_fetch, checkpoint.oldest_fetch or reading.oldest_fetch),
            recent=[(call.client_code, call.id) for call in written],
        )
        self._save(self._checkpoint)
        shown = f"{datetime.fromtimestamp(self._checkpoint.reached, UTC):%Y-%m-%d %H:%M}Z"
        self._progress.show(_done(self._checkpoint), self._checkpoint.calls, shown)

    async def _export_all(self, upstream: UpstreamClient) -> None:
        """Write the complete history, from one POST for each code."""
        from gateway.cache.fetcher import attributed
        from gateway.cache.scans import order

        replies = [attributed(code, await upstream.fetch_all(code, status=self._status)) for code in self._codes]
        calls = sorted((call for one in replies for found in one.calls.values() for call in found), key=order)
        self._write(self._format.rows(calls))
        oldest = min(one.sent for one in replies)
        self._checkpoint = msgspec.structs.replace(
            self._checkpoint,
            window=(self._checkpoint.window[0], int(oldest)),
            calls=len(calls),
            unreadable=sum(len(found) for one in replies for found in one.unreadable.values()),
            as_of=oldest,
            oldest_fetch=oldest,
        )

    def _meta(self) -> dict[str, object]:
        """The `meta` of the API's responses."""
        checkpoint = self._checkpoint
        dated = checkpoint.parameters["all"] == "false"
        return {
            "start": _instant(checkpoint.window[0]) if dated else None,
            "end": _instant(checkpoint.window[1]),
            "asOf": _instant(checkpoint.as_of),
            "oldestFetch": _instant(checkpoint.oldest_fetch),
            "stale": False,
            "unreadable": checkpoint.unreadable,
        }


def _instant(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(int(seconds), UTC)


def _done(checkpoint: Checkpoint) -> float:
    """The share of the window that has been exported."""
    start, end = checkpoint.window
    return (checkpoint.reached - start) / max(1, end - start)
