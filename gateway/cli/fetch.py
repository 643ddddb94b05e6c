"""`fetch`: calls of a window to a file or standard output, oldest first.

Rules: it asks the upstream itself, through the cache, with the settings of `serve`; nothing stale goes out. A file has
its name only when it is whole, and an interrupted one goes on where it stopped. `recordingUrl` is the upstream's own.
Exit codes: 0 done, 1 the upstream or the disk failed, 2 the command or a setting cannot be used, 130 interrupted.
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
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import msgspec

from gateway import errors, logs
from gateway.cli.check import advice_on
from gateway.cli.partial_file import Checkpoint, PartialFile
from gateway.cli.progress import Progress
from gateway.formats import FIELDS, FORMATS, make_format
from gateway.settings import Settings, parse_upstream_settings

if TYPE_CHECKING:
    from gateway.cache.reader import Cache, ReadResult
    from gateway.callbutton.client import UpstreamClient
    from gateway.model import Call

Save = Callable[[Checkpoint], object]

INTERRUPTED = 130
READ_DEADLINES = 10  # deadlines of a POST: a span may be halved that often
MAX_CACHE_BYTES = 32 * 1024**2  # bytes that the cache may hold: an export reads everything once
ENDINGS = {".json": "json", ".ndjson": "ndjson", ".jsonl": "ndjson", ".csv": "csv"}
HELP = "Export the calls of a window to a file or standard output; an interrupted export goes on where it stopped."
EXAMPLE = (
    "callbutton-gateway fetch 8005550100 --start 2026-10-01 --end 2026-11-01 --tz America/Chicago -o october.csv\n"
    "  callbutton-gateway fetch '*' --start 2026-11-01 --format ndjson | jq .startTime"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("code", nargs="*", metavar="CODE", help="a client code; '*' is every client")
    parser.add_argument("--client", action="append", default=[], metavar="CODE", help="the same (repeatable)")
    parser.add_argument("--start", help="instant, date, or date-time (default: the beginning of history); included")
    parser.add_argument("--end", help="the same (default: now); excluded")
    parser.add_argument("--tz", default="UTC", metavar="ZONE", help="zone of dates without offset (default: UTC)")
    parser.add_argument(
        "--all", action="store_true", help="ask for everything in one POST, with null dates; cannot be resumed"
    )
    parser.add_argument("--status", action="store_true", help="with what people said of each call")
    parser.add_argument("--format", choices=FORMATS, help="default: by the ending of the file, else ndjson")
    parser.add_argument("--fields", default="", help="some fields only, separated by commas")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: standard output")
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it is there")
    parser.add_argument("--restart", action="store_true", help="drop what an interrupted export left")


def run(arguments: argparse.Namespace) -> int:
    """Export. Raises ValueError, OSError."""
    settings = parse_upstream_settings(os.environ)
    now = time.time()
    first = parse_arguments(arguments, settings, now)
    if arguments.output and arguments.output.exists() and not arguments.overwrite:
        raise ValueError(f"{arguments.output} is there already; --overwrite replaces it")
    logs.configure(settings.log_format, "error")
    settings = dataclasses.replace(
        settings, stale_if_error=0, stale_while_revalidate=0, cache_bytes=min(settings.cache_bytes, MAX_CACHE_BYTES)
    )
    try:
        if arguments.output is None:
            asyncio.run(Exporter(settings, first, write_out, lambda _: None).run(now))
            return 0
        with closing(PartialFile(arguments.output, first, restart=arguments.restart)) as partial:
            asyncio.run(Exporter(settings, partial.checkpoint, partial.write, partial.save).run(now))
            partial.finish()
    except errors.UpstreamError as error:
        print_error(f"broken off: {error}\nwhat to do: {advice_on(error)}{_going_on(arguments)}")
        return 1
    except KeyboardInterrupt:
        print_error(f"interrupted{_going_on(arguments)}")
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # who read has enough
        return 1
    return 0


def write_out(data: bytes) -> None:
    """Write to standard output, at once."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def print_error(text: str) -> None:
    """Say what is wrong."""
    print(f"callbutton-gateway: {text}", file=sys.stderr)


def _going_on(arguments: argparse.Namespace) -> str:
    if arguments.output is None or arguments.all:
        return "; what was written is not whole"
    return "; the same command goes on where this one stopped"


def parse_arguments(arguments: argparse.Namespace, settings: Settings, now: float) -> Checkpoint:
    """Read what is asked as the mark before the first call. Raises ValueError."""
    from gateway.api.query import parse_list_query

    suffix = arguments.output.suffix.lower() if arguments.output else ""
    parameters = [(name, text) for name in ("start", "end", "tz") if (text := getattr(arguments, name))]
    parameters += [("client", code) for code in (*arguments.code, *arguments.client)]
    if arguments.all and (arguments.start or arguments.end):
        raise ValueError("--all asks without dates: leave --start and --end out")
    fields = [field.strip() for field in arguments.fields.split(",") if field.strip()]
    if unknown := next((field for field in fields if field not in FIELDS), None):
        raise ValueError(f"{unknown} is not a field; there are {', '.join(FIELDS)}")
    try:
        query = parse_list_query(urlencode(parameters).encode(), None, now, settings.history_start, b"")
    except errors.InvalidParameters as error:
        raise ValueError(str(error).replace("client: is required; client=*", "CODE: is required; '*'")) from error
    asked = {
        "clients": ",".join(query.codes),
        "start": arguments.start or "",
        "end": arguments.end or "",
        "tz": arguments.tz,
        "all": str(arguments.all).lower(),
        "status": str(arguments.status).lower(),
        "format": arguments.format or ENDINGS.get(suffix, "ndjson"),
        "fields": ",".join(fields),
    }
    return Checkpoint(asked, (query.window.start, query.window.end), query.window.start)


class Exporter:
    """An export that begins, or goes on, at a mark. `save` is told each mark that it reaches."""

    def __init__(self, settings: Settings, checkpoint: Checkpoint, write: Callable[[bytes], Any], save: Save) -> None:
        self._settings = settings
        self._checkpoint = checkpoint
        self._write = write
        self._save = save
        fields = [field for field in checkpoint.asked["fields"].split(",") if field]
        self._format = make_format(checkpoint.asked["format"], fields, begun=checkpoint.calls > 0)
        self._codes = tuple(checkpoint.asked["clients"].split(","))
        self._status = checkpoint.asked["status"] == "true"
        self._progress = Progress(*checkpoint.window)

    async def run(self, now: float) -> None:
        """Write what is missing. Raises UpstreamError, OSError."""
        from prometheus_client import CollectorRegistry

        from gateway.app import build_cache, build_upstream
        from gateway.metrics import Metrics

        metrics = Metrics(CollectorRegistry())
        upstream = build_upstream(self._settings, metrics)
        cache = build_cache(self._settings, upstream, metrics)
        if not self._checkpoint.size:
            self._write(self._format.begin())
        try:
            if self._checkpoint.asked["all"] == "true":
                await self._take_all(upstream)
            else:
                await self._read(cache, now)
        finally:
            self._progress.clear()  # and who fails or presses Ctrl-C does not wait for what is under way
        await cache.close()
        await upstream.close()
        self._write(self._format.end(self._meta()))
        if self._checkpoint.unreadable:
            print_error(f"{self._checkpoint.unreadable} calls could not be read, and are left out")
        self._progress.end(self._checkpoint.calls)

    async def _read(self, cache: Cache, now: float) -> None:
        from gateway.cache.reader import Query
        from gateway.cache.scans import stream
        from gateway.model import Window

        rest = Window(self._checkpoint.upto, self._checkpoint.window[1])
        query = Query(codes=self._codes, window=rest, status=self._status)
        timeout = self._settings.upstream_deadline * READ_DEADLINES
        before = {tuple(key) for key in self._checkpoint.recent}
        written: list[Call] = []  # of the span that is going out
        first = True
        async for part in stream(cache, query, now, timeout, newest_first=False):
            calls = [call for call in part.calls if (call.client_code, call.id) not in before]
            self._write(self._format.rows(calls))
            written += calls
            if not first:  # all of its span has gone out
                self._reach(part.reading, written)
                before = {(call.client_code, call.id) for call in written}
                written = []
            first = False

    def _reach(self, reading: ReadResult, written: list[Call]) -> None:
        checkpoint = self._checkpoint
        self._checkpoint = msgspec.structs.replace(
            checkpoint,
            upto=min(checkpoint.window[1], max(extent.window.end for extent in reading.extents)),
            calls=checkpoint.calls + len(written),
            unreadable=checkpoint.unreadable + reading.unreadable,
            as_of=reading.as_of,
            oldest_fetch=min(reading.oldest_fetch, checkpoint.oldest_fetch or reading.oldest_fetch),
            recent=[(call.client_code, call.id) for call in written],
        )
        self._save(self._checkpoint)
        self._progress.show(self._checkpoint.upto, self._checkpoint.calls)

    async def _take_all(self, upstream: UpstreamClient) -> None:
        from gateway.cache.fetcher import attributed
        from gateway.cache.scans import order

        fetched = await upstream.fetch_all(self._codes, status=self._status)
        if len(self._codes) == 1:
            fetched = attributed(self._codes[0], fetched)
        calls = sorted((call for found in fetched.calls.values() for call in found), key=order)
        self._write(self._format.rows(calls))
        self._checkpoint = msgspec.structs.replace(
            self._checkpoint,
            window=(self._checkpoint.window[0], int(fetched.sent)),
            calls=len(calls),
            unreadable=sum(fetched.unreadable.values()),
            as_of=fetched.sent,
            oldest_fetch=fetched.sent,
        )

    def _meta(self) -> dict[str, object]:
        """What the API's answers have as `meta`; nothing here is stale."""
        checkpoint = self._checkpoint
        dated = checkpoint.asked["all"] == "false"
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
