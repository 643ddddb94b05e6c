"""The handlers of summaries and of `/clients`: figures of a whole window, by time bucket and group.

Rule: figures are computed before masking, and contain no personal data.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import msgspec
from litestar import Request, Response, get
from litestar.datastructures import State
from litestar.params import FromPath
from msgspec import Struct

from gateway.api import responses
from gateway.api.middleware.request_context import RequestContext, context_of
from gateway.api.query import GROUPS, SummaryQuery, parse_clients_query, parse_summary_query
from gateway.api.responses import JSON, Meta, Services
from gateway.cache.aggregates import AggregateSpec, Aggregator, Group
from gateway.cache.aggregates import Totals as Counts
from gateway.cache.extents import Extent
from gateway.cache.reader import Provenance, Query
from gateway.cache.scans import counted, unreadable_of
from gateway.errors import InvalidParameters, ParameterFault
from gateway.model import EVERY_CLIENT, Instant

MAX_ROWS = 20_000  # of a summary; about 5 MB of JSON
BATCH_SIZE = 20_000  # calls counted in one turn of the event loop; takes about 5 ms
SINGLE_BUCKET = (-(10**11),)  # seconds since 1970, before any call; the same for every window, so figures are cached


class Totals(Struct, frozen=True, kw_only=True, rename="camel"):
    """The figures of a set of calls."""

    calls: Annotated[int, msgspec.Meta(description="Number of calls.", examples=[2])]
    connected: Annotated[int, msgspec.Meta(description="Number of answered calls.", examples=[1])]
    unique_callers: Annotated[int, msgspec.Meta(description="Number of distinct callers, by `ani`.", examples=[2])]
    new_callers: Annotated[
        int,
        msgspec.Meta(
            description="Number of callers whose first call in the window is among these calls.", examples=[2]
        ),
    ]
    duration_seconds: Annotated[int, msgspec.Meta(description="Sum of the durations, in seconds.", examples=[412])]
    talk_time_seconds: Annotated[int, msgspec.Meta(description="Sum of the talk times, in seconds.", examples=[332])]
    mean_talk_time_seconds: Annotated[
        float | None, msgspec.Meta(description="Mean of the known talk times.", examples=[166.0])
    ]


class Row(Totals, frozen=True, kw_only=True, rename="camel"):
    """The figures of one time bucket and one group."""

    bucket_start: Annotated[
        Instant, msgspec.Meta(description="Start of the bucket.", examples=["2026-11-01T05:00:00Z"])
    ]
    group: Annotated[
        str | None,
        msgspec.Meta(
            description="The value of the field `groupBy`; null without `groupBy`, or if the calls have no value.",
            examples=[None],
        ),
    ]


class CallSummary(Struct, frozen=True, kw_only=True):
    """Figures by time bucket and group, oldest first, and of all calls of the window."""

    data: Annotated[list[Row], msgspec.Meta(description="The figures, including empty buckets.")]
    total: Totals
    meta: Meta


class ClientFigures(Struct, frozen=True, kw_only=True, rename="camel"):
    """A client and its number of calls in the window."""

    client_code: Annotated[str, msgspec.Meta(description="The client code.", examples=["8005550100"])]
    calls: Annotated[int, msgspec.Meta(description="Number of calls.", examples=[2])]


class ClientList(Struct, frozen=True, kw_only=True):
    """The clients that had calls in the window, sorted by code."""

    data: Annotated[list[ClientFigures], msgspec.Meta(description="The clients.")]
    meta: Meta


@get(
    "/clients/{code:str}/calls/summary",
    operation_id="summarizeClientCalls",
    summary="Summarize the calls of one client",
    kind="summary",
)
async def summarize_client_calls(request: Request[Any, Any, State], code: FromPath[str]) -> Response[Any]:
    """Counts and talk time of one client's calls in a window, by time bucket and group."""
    return await summary_response(request, code)


@get("/calls/summary", operation_id="summarizeCalls", summary="Summarize the calls of several clients", kind="summary")
async def summarize_calls(request: Request[Any, Any, State]) -> Response[Any]:
    """Counts and talk time of the calls of several clients, or of all, in a window, by time bucket and group."""
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

    def count(extent: Extent) -> None:
        if extent.listed is None:
            calls.update([call.client_code for call in keep(extent.calls)])
        else:
            calls.update({code: len(keep(listed)) for code, listed in extent.listed.items()})

    meta, source = await _count(services, context, cache_query, count)
    rows = [ClientFigures(client_code=code, calls=calls[code]) for code in sorted(calls) if calls[code]]
    return responses.json_response(services, context, ClientList(data=rows, meta=meta), meta, source)


async def summary_response(request: Request[Any, Any, Any], code: str | None) -> Response[bytes]:
    """Summarize the calls of the client `code`, or of the parameter `client` if it is None. Raises GatewayError."""
    services, context = responses.services_of(request), context_of(request.scope)
    responses.negotiate(context, JSON)
    query = parse_summary_query(request.scope["query_string"], code, services.clock(), services.history_start)
    cache_query = responses.cache_query(services, context, query.codes, query.window, filters=query.filters.texts)
    selection = query.group_by, query.filters, responses.consumer_of(context).clients
    spec = AggregateSpec(
        name=(query.interval, query.zone, selection),
        counted=selection,
        starts=SINGLE_BUCKET if query.interval == "none" else query.starts,
        group=GROUPS[query.group_by] if query.group_by else None,
        keep=responses.row_filter(context, cache_query, query.filters),
    )
    aggregator = Aggregator(spec)
    meta, source = await _count(services, context, cache_query, aggregator.add)
    buckets, total = aggregator.sums()
    body = CallSummary(data=_rows(query, buckets), total=Totals(**_figures(total)), meta=meta)
    return responses.json_response(services, context, body, meta, source)


async def _count(
    services: Services, context: RequestContext, cache_query: Query, count: Callable[[Extent], None]
) -> tuple[Meta, Provenance]:
    """Call `count` with every extent of a window. Returns `meta`, and what it rests on. Raises UpstreamError."""
    now, since, unreadable = services.clock(), 0, 0
    total: Provenance | None = None
    sees = responses.client_sight(context)
    async for part in counted(services.cache, cache_query, now, services.deadline):
        for extent in part.extents:
            count(extent)
            since += len(extent.calls)
            if since > BATCH_SIZE:
                since = 0
                await asyncio.sleep(0)
        unreadable += len(unreadable_of(part.extents, sees))
        total = total.combine(part.reading) if total else part.reading
    context.read_finished = time.perf_counter()
    total = total or responses.empty_result(now)
    return responses.meta_of(cache_query.window, total, unreadable), total


def _rows(query: SummaryQuery, buckets: Sequence[tuple[int, dict[Group, Counts]]]) -> list[Row]:
    """One row for each bucket and group. Raises InvalidParameters for more than `MAX_ROWS` rows."""
    names = sorted({name for _, groups in buckets for name in groups}, key=lambda name: (name is None, name)) or [None]
    if len(buckets) * len(names) > MAX_ROWS:
        detail = f"gives {len(buckets)} buckets of {len(names)} groups, more than {MAX_ROWS} rows; use longer buckets"
        raise InvalidParameters([ParameterFault("groupBy", detail)])
    empty = Counts()
    return [
        Row(bucket_start=responses.instant(start), group=name, **_figures(groups.get(name, empty)))
        for start, (_, groups) in zip(query.starts, buckets, strict=True)
        for name in names
    ]


def _figures(count: Counts) -> dict[str, Any]:
    return {
        "calls": count.calls,
        "connected": count.connected,
        "unique_callers": count.callers,
        "new_callers": count.new,
        "duration_seconds": count.duration,
        "talk_time_seconds": count.talk,
        "mean_talk_time_seconds": count.mean_talk,
    }


HANDLERS = [summarize_client_calls, summarize_calls, list_clients]
