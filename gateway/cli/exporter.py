"""The export of `fetch`: reads calls span by span, from the upstream or from a gateway, and writes them in a format.

Rules:
- A checkpoint follows each span. A call is written once, also if it moves from one span to the next meanwhile.
- An export is never stale: a gateway that answers with stale calls is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlencode

import msgspec

from gateway.cli import gateway_client
from gateway.cli.partial_file import Checkpoint
from gateway.cli.progress import Progress, print_error
from gateway.formats import Format, columns_of, make_format
from gateway.settings import Settings

if TYPE_CHECKING:
    import httpx

    from gateway.cache.reader import Cache
    from gateway.callbutton.client import UpstreamClient
    from gateway.model import Call

DAY = 86_400  # seconds; the first span that is read from a gateway
MAX_SPAN = 366 * DAY
SPAN_CALLS = 2000  # calls of a span, below which the next one is twice as long
BATCH = 500  # calls that are rendered together
PARQUET = "parquet"
READ_DEADLINES = 10  # times the deadline of a POST; reading a span may take several POSTs, if windows are split


class LastMeta(msgspec.Struct, rename="camel"):
    """The `meta` of an NDJSON export."""

    as_of: datetime
    oldest_fetch: datetime
    stale: bool
    unreadable: int


class LastLine(msgspec.Struct):
    """The last line of an NDJSON export. A call in its place, of a response that broke off, has no `meta`."""

    meta: LastMeta | None = None


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
        from gateway.app import build_extras

        self._settings = settings
        self._checkpoint = checkpoint
        self._write = write
        self._save = save
        fields = [field for field in checkpoint.parameters["fields"].split(",") if field]
        self._extras = build_extras(settings)
        columns, begun = columns_of(self._extras.call_type), checkpoint.calls > 0
        if checkpoint.parameters["format"] == PARQUET:
            from gateway.cli.parquet import Parquet

            self._format: Format = Parquet(fields, self._extras.call_type)
        else:
            form = checkpoint.parameters["format"]
            self._format = make_format(form, fields, begun=begun, meta=meta, columns=columns)
        self._filters = parse_qsl(checkpoint.parameters["filters"])
        self._codes = tuple(checkpoint.parameters["clients"].split(","))
        self._status = checkpoint.parameters["status"] == "true"
        self._progress = Progress(_done(checkpoint), checkpoint.calls)

    async def run(self, now: float, headers: dict[str, str]) -> None:
        """Export the remaining calls. Raises UpstreamError, OSError."""
        if not self._checkpoint.size:
            self._write(self._format.begin())
        try:
            if address := self._checkpoint.parameters["gateway"]:
                async with gateway_client.connect(address, headers, None) as client:
                    await self._export_from_gateway(client)
            else:
                await self._export_from_upstream(now)
        finally:
            self._progress.clear()
        self._write(self._format.end(self._meta()))
        if self._checkpoint.unreadable:
            print_error(f"{self._checkpoint.unreadable} calls have no id or no valid StartTime, and were left out")
        self._progress.finish(self._checkpoint.calls)

    async def _export_from_upstream(self, now: float) -> None:
        from prometheus_client import CollectorRegistry

        from gateway.app import build_cache, build_upstream
        from gateway.metrics import Metrics

        metrics = Metrics(CollectorRegistry())
        upstream = build_upstream(self._settings, metrics)
        cache = build_cache(self._settings, upstream, metrics)
        if self._checkpoint.parameters["all"] == "true":
            await self._export_all(upstream)
        else:
            await self._export_window(cache, now)
        # After a failure or Ctrl-C these are skipped: closing the cache waits for flights.
        await cache.close()
        await upstream.close()

    async def _export_from_gateway(self, client: httpx.AsyncClient) -> None:
        """Write the calls span by span, with a checkpoint after each span. Spans double while they hold few calls."""
        span = DAY
        while (reached := self._checkpoint.reached) < (end := self._checkpoint.window[1]):
            until = min(end, reached + span)
            written = await self._export_span(client, reached, until)
            span = min(MAX_SPAN, 2 * span) if written < SPAN_CALLS else span

    async def _export_span(self, client: httpx.AsyncClient, start: int, end: int) -> int:
        """Write the calls of a span, and return their number. Raises RequestError."""
        recent = {tuple(key) for key in self._checkpoint.recent}
        written: list[tuple[str, str]] = []
        parameters = [("client", code) for code in self._codes] + self._filters
        parameters += [("start", _iso(start)), ("end", _iso(end)), ("sort", "startTime"), ("format", "ndjson")]
        if self._status:
            parameters.append(("include", "status"))
        batch: list[bytes] = []
        async for line in gateway_client.lines(client, "/calls", parameters):
            batch.append(line)
            if len(batch) > BATCH:
                written += self._write_lines(batch[:-1], recent)
                del batch[:-1]
        end_line = msgspec.json.decode(batch.pop() if batch else b"{}", type=LastLine)
        written += self._write_lines(batch, recent)
        meta = end_line.meta
        if meta is None or meta.stale:
            fault = "broke off" if meta is None else "has stale calls, because the upstream cannot be reached"
            raise gateway_client.RequestError(f"the response of the gateway {fault}", "incomplete", transient=True)
        times = meta.as_of.timestamp(), meta.oldest_fetch.timestamp()
        self._save_checkpoint(end, times, written, meta.unreadable)
        return len(written)

    def _write_lines(self, batch: list[bytes], recent: Container[tuple[str, ...]]) -> list[tuple[str, str]]:
        """Write calls as the gateway rendered them, without those of the span before. Returns their keys."""
        from gateway.model import Call

        calls = [msgspec.json.decode(line, type=Call) for line in batch]
        calls = [call for call in calls if (call.client_code, call.id) not in recent]
        self._write(self._format.rows(map(self._extras.promote, calls)))
        return [(call.client_code, call.id) for call in calls]

    async def _export_window(self, cache: Cache, now: float) -> None:
        """Write the calls span by span, with a checkpoint after each span."""
        from gateway.cache.reader import Query
        from gateway.cache.scans import stream
        from gateway.model import Window

        rest = Window(self._checkpoint.reached, self._checkpoint.window[1])
        query = Query(codes=self._codes, window=rest, status=self._status)
        timeout = self._settings.upstream_deadline * READ_DEADLINES
        recent = {tuple(key) for key in self._checkpoint.recent}
        keep = self._keep()
        written: list[tuple[str, str]] = []  # the calls of the present span
        unreadable, first = 0, True
        async for part in stream(cache, query, now, timeout, newest_first=False):
            calls = [call for call in keep(part.calls) if (call.client_code, call.id) not in recent]
            self._write(self._format.rows(map(self._extras.promote, calls)))
            written += [(call.client_code, call.id) for call in calls]
            unreadable += len(part.unreadable)
            if not first:  # the first part is the beginning of a span, all others complete one
                reached = max(extent.window.end for extent in part.reading.extents)
                times = part.reading.as_of, part.reading.oldest_fetch
                self._save_checkpoint(reached, times, written, unreadable)
                recent = set(written)
                written, unreadable = [], 0
            first = False

    def _keep(self) -> Callable[[Sequence[Call]], Sequence[Call]]:
        """A function that keeps the calls that pass the filters."""
        from gateway.api.filters import make_filters
        from gateway.api.query import Parameters

        text = urlencode([("client", "*"), *self._filters]).encode()
        parameters = Parameters(text, "list", None, self._extras)
        return make_filters(parameters.checked(), self._extras).apply

    def _save_checkpoint(
        self, reached: int, times: tuple[float, float], written: list[tuple[str, str]], unreadable: int
    ) -> None:
        """Save a checkpoint after a span, whose calls are `written`. `times` are its newest and its oldest fetch."""
        checkpoint = self._checkpoint
        self._checkpoint = msgspec.structs.replace(
            checkpoint,
            reached=min(checkpoint.window[1], reached),
            calls=checkpoint.calls + len(written),
            unreadable=checkpoint.unreadable + unreadable,
            as_of=times[0],
            oldest_fetch=min(times[1], checkpoint.oldest_fetch or times[1]),
            recent=written,
        )
        self._save(self._checkpoint)
        shown = f"{datetime.fromtimestamp(self._checkpoint.reached, UTC):%Y-%m-%d %H:%M}Z"
        self._progress.show(_done(self._checkpoint), self._checkpoint.calls, shown)

    async def _export_all(self, upstream: UpstreamClient) -> None:
        """Write the complete history, from one POST for each code."""
        from gateway.cache.fetcher import attributed
        from gateway.cache.scans import order

        replies = [attributed(code, await upstream.fetch_all(code, status=self._status)) for code in self._codes]
        found = (call for one in replies for calls in one.calls.values() for call in calls)
        calls = self._keep()(sorted(found, key=order))
        self._write(self._format.rows(map(self._extras.promote, calls)))
        oldest = min(one.sent for one in replies)
        self._checkpoint = msgspec.structs.replace(
            self._checkpoint,
            window=(self._checkpoint.window[0], int(oldest)),
            calls=len(calls),
            unreadable=sum(len(records) for one in replies for records in one.unreadable.values()),
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


def _iso(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _done(checkpoint: Checkpoint) -> float:
    """The share of the window that has been exported."""
    start, end = checkpoint.window
    return (checkpoint.reached - start) / max(1, end - start)
