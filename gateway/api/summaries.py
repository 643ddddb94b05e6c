"""The handlers of summaries and of `/clients`: figures of a whole window, by time bucket and group.

Rule: figures are computed before masking. Without the scope `personal` they do not tell which calls share a caller.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated, Any

from litestar import Request, Response, get
from litestar.datastructures import State
from litestar.params import FromPath
from msgspec import Struct

from gateway.access import Consumer, can_count_callers
from gateway.api import responses
from gateway.api.middleware.request_context import RequestContext, context_of
from gateway.api.query import GROUPS, SummaryQuery, parse_clients_query, parse_summary_query
from gateway.api.responses import JSON, AnswerMeta, Services
from gateway.cache.aggregates import AggregateSpec, Aggregator, Group, TooManyGroups, Totals
from gateway.cache.extents import Extent
from gateway.cache.freshness import Provenance
from gateway.cache.reader import Query
from gateway.cache.scans import counted, unreadable_of
from gateway.errors import InvalidParameters, ParameterFault
from gateway.model import EVERY_CLIENT, Instant, about
from gateway.slices import Steps, in_slices

MAX_ROWS = 20_000  # of a summary; about 5 MB of JSON
MAX_SUM = 2**31 - 1  # seconds, 68 years; the contract promises int32
STEP_ROWS = 100  # rows made in one step
SINGLE_BUCKET = (-(10**11),)  # seconds since 1970, before any call; the same for every window, so figures are cached


class SummaryTotals(Struct, frozen=True, kw_only=True, rename="camel"):
    """The figures of a set of calls."""

    calls: Annotated[int, about("Number of calls.", 2)]
    connected: Annotated[int, about("Number of answered calls.", 1)]
    unique_callers: Annotated[
        int | None,
        about("Number of distinct callers, by `ani`. Without the scope `personal` null below five calls.", 2),
    ]
    new_callers: Annotated[
        int | None,
        about(
            "Number of callers whose first call in the window is among these calls. Null without the scope `personal`.",
            2,
        ),
    ]
    duration_seconds: Annotated[int, about("Sum of the durations, in seconds.", 412)]
    talk_time_seconds: Annotated[int, about("Sum of the talk times, in seconds.", 332)]
    mean_talk_time_seconds: Annotated[float | None, about("Mean of the known talk times.", 166.0)]


class SummaryRow(SummaryTotals, frozen=True, kw_only=True, rename="camel"):
    """The figures of one time bucket and one group."""

    bucket_start: Annotated[Instant, about("Start of the bucket.", "2026-11-01T05:00:00Z")]
    group: Annotated[
        str | None,
        about("The value of the field `groupBy`; null without `groupBy`, or if the calls have no value.", None),
    ]


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

    def count(extent: Extent) -> Steps[None]:
        for code, listed in extent.by_client.items():
            calls[code] += len(keep(listed))
            yield

    async with responses.counting_turn(request):
        meta, source = await _count(services, context, cache_query, count)
    rows = [ClientFigures(client_code=code, calls=calls[code]) for code in sorted(calls) if calls[code]]
    return responses.json_response(services, context, ClientList(data=rows, meta=meta), meta, source)


async def summary_response(request: Request[Any, Any, Any], code: str | None) -> Response[bytes]:
    """Summarize the calls of the client `code`, or of the parameter `client` if it is None. Raises GatewayError."""
    services, context = responses.services_of(request), context_of(request.scope)
    responses.negotiate(context, JSON)
    query = parse_summary_query(
        request.scope["query_string"], code, services.clock(), services.history_start, services.extras
    )
    cache_query = responses.cache_query(services, context, query.codes, query.window, filters=query.filters)
    consumer = responses.consumer_of(context)
    selection = query.group_by, query.filters, consumer.clients
    spec = AggregateSpec(
        name=(query.interval, query.zone, selection),
        counted=selection,
        starts=SINGLE_BUCKET if query.interval == "none" else query.starts,
        group=GROUPS[query.group_by] if query.group_by else None,
        keep=responses.row_filter(context, cache_query, query.filters),
        max_groups=max(1, MAX_ROWS // len(query.starts)),
    )
    aggregator = Aggregator(spec)
    try:
        meta, source = await _count(services, context, cache_query, aggregator.add)
    except TooManyGroups:
        raise _too_many_rows(query, f"over {spec.max_groups}") from None
    buckets, total = await in_slices(aggregator.sums())
    if max(total.duration, total.talk) > MAX_SUM:
        raise InvalidParameters(
            [ParameterFault("start", f"gives a sum of over {MAX_SUM} seconds; choose a shorter window")]
        )
    rows = await in_slices(_rows(query, buckets, consumer))
    body = CallSummary(data=rows, total=SummaryTotals(**_figures(total, consumer)), meta=meta)
    return responses.json_response(services, context, body, meta, source)


async def _count(
    services: Services, context: RequestContext, cache_query: Query, count: Callable[[Extent], Steps[None]]
) -> tuple[AnswerMeta, Provenance]:
    """Call `count` with every extent of a window. Returns `meta`, and what it rests on. Raises UpstreamError."""
    now, unreadable = services.clock(), 0
    total: Provenance | None = None
    sees = responses.client_sight(context)
    async for part in counted(services.cache, cache_query, now):
        await in_slices(step for extent in part.extents for step in count(extent))
        unreadable += len(unreadable_of(part.extents, sees))
        total = total.combine(part.reading) if total else part.reading
    context.read_finished = time.perf_counter()
    total = total or responses.empty_result(now)
    return responses.meta_of(cache_query.window, total, unreadable), total


def _rows(
    query: SummaryQuery, buckets: Sequence[tuple[int, dict[Group, Totals]]], consumer: Consumer
) -> Steps[list[SummaryRow]]:
    """One row for each bucket and group."""
    names = sorted({name for _, groups in buckets for name in groups}, key=lambda name: (name is None, name)) or [None]
    rows: list[SummaryRow] = []
    empty = Totals()
    for start, (_, groups) in zip(query.starts, buckets, strict=True):
        for name in names:
            figures = _figures(groups.get(name, empty), consumer)
            rows.append(SummaryRow(bucket_start=responses.instant(start), group=name, **figures))
            if len(rows) % STEP_ROWS == 0:
                yield
    return rows


def _too_many_rows(query: SummaryQuery, groups: str) -> InvalidParameters:
    detail = f"gives {len(query.starts)} buckets of {groups} groups, more than {MAX_ROWS} rows; use longer buckets"
    return InvalidParameters([ParameterFault("groupBy", detail)])


def _figures(count: Totals, consumer: Consumer) -> dict[str, Any]:
    """The figures that the consumer may see: distinct counts of a few calls tell which of them share a caller."""
    return {
        "calls": count.calls,
        "connected": count.connected,
        "unique_callers": count.callers if can_count_callers(consumer, count.calls) else None,
        "new_callers": count.new if "personal" in consumer.scopes else None,
        "duration_seconds": count.duration,
        "talk_time_seconds": count.talk,
        "mean_talk_time_seconds": count.mean_talk,
    }


HANDLERS = [summarize_client_calls, summarize_calls, list_clients]
