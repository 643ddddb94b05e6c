"""The handlers of summaries and of `/clients`: figures of a whole window, read from the cache and rendered.

Rule: figures are computed before masking, from the calls that the consumer may see.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Annotated, Any

from litestar import Request, Response, get
from litestar.datastructures import State
from litestar.params import FromPath
from msgspec import Struct

from gateway.access import require_scope
from gateway.api import exports, responses
from gateway.api.calendars import Calendar
from gateway.api.dimensions import clocks_of, dimensions_of, reader
from gateway.api.middleware.request_context import RequestContext, context_of
from gateway.api.query import parse_clients_query
from gateway.api.responses import JSON, AnswerMeta, Services
from gateway.api.summary_query import SummaryQuery, parse_summary_query
from gateway.api.summary_table import (
    MAX_ROWS,
    Period,
    SummaryRow,
    SummaryTotals,
    make_rows,
    render_csv,
    render_ndjson,
    too_many_rows,
)
from gateway.cache.aggregates import AggregateSpec, Aggregator, TooManyGroups
from gateway.cache.extents import Extent
from gateway.cache.freshness import Provenance
from gateway.errors import UpstreamFailed
from gateway.model import EVERY_CLIENT, Window, about
from gateway.slices import Steps, in_slices, parts_of

MAX_PARTS = 100_000  # buckets of groups that are counted to find the top groups; about 100 MB


class CallSummary(Struct, frozen=True, kw_only=True):
    """Figures by time bucket and group, oldest first, and of all calls of the window."""

    data: Annotated[list[SummaryRow], about("The figures, including empty buckets.")]
    total: SummaryTotals
    meta: AnswerMeta


class ClientFigures(Struct, frozen=True, kw_only=True, rename="camel"):
    """A client and its number of calls in the window."""

    client_code: Annotated[str, about("The client code.", "8005550100")]
    calls: Annotated[int, about("Number of calls.", 2)]


class ClientList(Struct, frozen=True, kw_only=True):
    """The clients that had calls in the window, sorted by code."""

    data: Annotated[list[ClientFigures], about("The clients.")]
    meta: AnswerMeta


@get(
    "/clients/{code:str}/calls/summary",
    operation_id="summarizeClientCalls",
    summary="Summarize the calls of one client",
    kind="summary",
)
async def summarize_client_calls(request: Request[Any, Any, State], code: FromPath[str]) -> Response[Any]:
    """Counts and talk time of one client's calls in a window, by time bucket and group."""
    async with responses.counting_turn(request):
        return await summary_response(request, code)


@get("/calls/summary", operation_id="summarizeCalls", summary="Summarize the calls of several clients", kind="summary")
async def summarize_calls(request: Request[Any, Any, State]) -> Response[Any]:
    """Counts and talk time of the calls of several clients, or of all, in a window, by time bucket and group."""
    async with responses.counting_turn(request):
        return await summary_response(request, None)


@get("/clients", operation_id="listClients", summary="List the clients that had calls", kind="clients")
async def list_clients(request: Request[Any, Any, State]) -> Response[Any]:
    """The clients that this consumer may see and that had calls in a window, with their number of calls."""
    services, context = responses.services_of(request), context_of(request.scope)
    responses.negotiate(context, JSON)
    window = parse_clients_query(request.scope["query_string"], services.clock(), services.history_start)
    cache_query = responses.cache_query(services, context, (EVERY_CLIENT,), window)
    keep = responses.row_filter(context, cache_query)
    calls: Counter[str] = Counter()

    def count(extents: Sequence[Extent]) -> Steps[None]:
        for extent in extents:
            for code, listed in extent.by_client.items():
                for step in parts_of(listed):
                    calls[code] += len(keep(step))
                    yield

    async with responses.counting_turn(request):
        source, unreadable = await responses.count_window(services, context, cache_query, count)
    context.read_finished = time.perf_counter()
    meta = responses.meta_of(window, source, unreadable)
    rows = [ClientFigures(client_code=code, calls=calls[code]) for code in sorted(calls) if calls[code]]
    return await responses.json_response(services, context, ClientList(data=rows, meta=meta), meta, source)


async def summary_response(request: Request[Any, Any, Any], code: str | None) -> Response[bytes]:
    """Summarize the calls of the client `code`, or of the parameter `client` if it is None. Raises GatewayError."""
    services, context = responses.services_of(request), context_of(request.scope)
    query = parse_summary_query(
        request.scope["query_string"], code, services.clock(), services.history_start, services.extras
    )
    form = responses.negotiate(context, exports.MEDIA_TYPES, query.format)
    consumer = responses.consumer_of(context)
    dimensions = dimensions_of(services.extras)
    for scope in filter(None, [dimensions[name].scope for name in query.group_by]):
        require_scope(consumer, scope)
    query.require_format(form)
    period, source, unreadable = await _read_period(services, context, query, query.window)
    previous: Period | None = None
    if query.compared is not None:
        previous, other, _ = await _read_period(services, context, query, query.compared)
        source = source.combine(other, newest_first=True)
    context.read_finished = time.perf_counter()
    meta = responses.meta_of(query.window, source, unreadable)
    rows, total = await in_slices(make_rows(query, period, previous, consumer))
    if form == "json":
        body = CallSummary(data=rows, total=total, meta=meta)
        return await responses.json_response(services, context, body, meta, source)
    if form == "csv" and source.stale:
        raise UpstreamFailed("a part of the window is only available as stale data, which CSV cannot mark")
    if form == "csv":
        zone = query.zone if query.dialect else None
        text = await in_slices(render_csv(rows, query.group_by, compared=previous is not None, zone=zone))
    else:
        text = await in_slices(render_ndjson(rows, total, meta))
    return Response(text, headers=exports.export_headers(context, form, "summary"))


async def _read_period(
    services: Services, context: RequestContext, query: SummaryQuery, window: Window
) -> tuple[Period, Provenance, int]:
    """Count a window. Returns its provenance and the number of unreadable records. Raises GatewayError."""
    consumer, beginning = responses.consumer_of(context), services.history_start
    read = Window(max(window.start, beginning), max(window.end, beginning))
    before = Window(max(beginning, read.start - query.lookback), read.start)
    known: Collection[str] = ()
    earlier: Provenance | None = None
    if before.start < before.end and "personal" in consumer.scopes:
        callers, earlier, _ = await _aggregate(services, context, query, before, Calendar(before, "none", query.zone))
        known = callers.callers
    calendar = Calendar(window, query.interval, query.zone, clocks_of(query.group_by))
    try:
        aggregator, source, unreadable = await _aggregate(
            services, context, query, read, calendar, query.group_by, known
        )
    except TooManyGroups:
        raise too_many_rows(len(calendar.starts), "too many groups") from None
    seconds = await in_slices(calendar.seconds(source.as_of))
    source = source.combine(earlier, newest_first=True) if earlier else source
    return Period(aggregator, calendar, seconds), source, unreadable


async def _aggregate(
    services: Services,
    context: RequestContext,
    query: SummaryQuery,
    window: Window,
    calendar: Calendar,
    group_by: Sequence[str] = (),
    known: Collection[str] = (),
) -> tuple[Aggregator, Provenance, int]:
    """Aggregate the calls of a window. `known` are callers that are not new. Raises GatewayError, TooManyGroups."""
    status = "sales" in group_by
    cache_query = responses.cache_query(services, context, query.codes, window, filters=query.filters, status=status)
    clocks = clocks_of(group_by)
    dimensions = [name for name in group_by if name not in clocks]
    spec = AggregateSpec(
        name=(calendar.name, tuple(dimensions), query.filters, responses.consumer_of(context).clients),
        slots=calendar.slots,
        groups=reader(dimensions, services.extras),
        keep=responses.row_filter(context, cache_query, query.filters),
        max_parts=MAX_PARTS if query.top else MAX_ROWS,
    )
    aggregator = Aggregator(spec, known)
    return aggregator, *await responses.count_window(services, context, cache_query, aggregator.add)


HANDLERS = [summarize_client_calls, summarize_calls, list_clients]
