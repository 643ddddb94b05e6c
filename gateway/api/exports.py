"""Exports: all calls of a window, streamed as NDJSON or CSV.

Rules:
- The first calls are read before the response starts, so that an early error is a normal problem response.
- A later error closes the connection: the response has no last line and no final chunk, so the consumer notices.
- CSV, and NDJSON without its last line, cannot mark stale calls, so such an export with stale calls is an error.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from zoneinfo import ZoneInfo

from litestar.response import Stream

from gateway.api.list_query import ListQuery
from gateway.api.middleware.request_context import RequestContext
from gateway.api.responses import JSON, Services, client_sight, empty_result, meta_of, shared_headers
from gateway.cache.freshness import Provenance
from gateway.cache.scans import Part
from gateway.errors import GatewayError, UpstreamFailed
from gateway.formats import Columns, Format, columns_of, make_format
from gateway.model import Call

Present = Callable[[Sequence[Call]], list[Call]]  # masks calls and adds links, for one consumer
LOGGER = logging.getLogger(__name__)
FORMATS = ("ndjson", "csv")  # these are streamed
MEDIA_TYPES = JSON | {
    "application/x-ndjson": "ndjson",
    "text/csv": "csv",
    "application/ndjson": "ndjson",
    "application/jsonl": "ndjson",
}
CHUNK_SIZE = 500  # calls rendered in one turn of the event loop; takes about 5 ms as NDJSON, 15 ms as CSV
CONTENT_TYPES = {"ndjson": "application/x-ndjson", "csv": "text/csv; charset=utf-8; header=present"}


def export_headers(context: RequestContext, form: str, name: str) -> dict[str, str]:
    """The headers of an export. `name` is that of the file."""
    file = {"Content-Disposition": f'attachment; filename="{name}.csv"'} if form == "csv" else {}
    return {
        "Content-Type": CONTENT_TYPES[form],
        **file,
        **shared_headers(context),
        "Cache-Control": "private, no-store",
    }


def make_writer(form: str, query: ListQuery, columns: Columns) -> Format:
    """Make the format of an export."""
    zone = ZoneInfo(query.zone) if query.dialect else None
    return make_format(form, query.fields, meta=query.meta is None, zone=zone, columns=columns)


async def export_response(
    services: Services,
    context: RequestContext,
    query: ListQuery,
    parts: AsyncIterator[Part],
    present: Present,
    form: str,
    now: float,
) -> Stream:
    """Start streaming the parts of a window. Raises GatewayError for an error before the first calls."""
    first = await anext(parts, None)
    context.read_finished = time.perf_counter()
    if first is not None:
        refuse_stale(form, query, first.reading)
    headers = export_headers(context, form, "calls")
    if context.is_head:
        return Stream(iter([b""]), headers=headers)
    return Stream(_render(services, context, first, parts, present, form, query, now), headers=headers)


async def _render(
    services: Services,
    context: RequestContext,
    first: Part | None,
    parts: AsyncIterator[Part],
    present: Present,
    form: str,
    query: ListQuery,
    now: float,
) -> AsyncIterator[bytes]:
    writer, sees = make_writer(form, query, columns_of(services.extras.call_type)), client_sight(context)
    total: Provenance | None = None
    unreadable = 0
    yield writer.begin()  # also if it is empty: the head is due before `GATEWAY_REQUEST_DEADLINE`
    try:
        part = first
        while part is not None:
            refuse_stale(form, query, part.reading)
            total = total.combine(part.reading, newest_first=query.newest_first) if total else part.reading
            unreadable += sum(sees(record.client_code) for record in part.unreadable)
            for place in range(0, len(part.calls), CHUNK_SIZE):
                async with services.rendering.turn(context.party):
                    chunk = writer.rows(present(part.calls[place : place + CHUNK_SIZE]))
                yield chunk
            part = await anext(parts, None)
    except GatewayError as error:
        context.aborted = True
        LOGGER.warning("export aborted", extra={"fields": {"error": type(error).__name__, "format": form}})
        raise
    if ending := writer.end(meta_of(query.window, total or empty_result(now), unreadable)):
        yield ending


def refuse_stale(form: str, query: ListQuery, source: Provenance) -> None:
    """Check that an export can mark stale data. Raises UpstreamFailed."""
    if source.stale and (form == "csv" or query.meta is not None):
        raise UpstreamFailed("a part of the window is only available as stale data, which this export cannot mark")
