"""Summaries, and the clients that had calls: figures of a whole window, by bucket and group.

Rule: figures are computed before masking; no number, name or text of a caller is in them.
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
from gateway.cache.reader import Query, ReadResult
from gateway.cache.scans import counted
from gateway.errors import InvalidParameters, ParameterFault
from gateway.model import EVERY_CLIENT, Instant

MAX_ROWS = 20_000  # about 5 MB of JSON
BATCH_SIZE = 20_000  # calls counted in one turn of the event loop, about 5 ms
SINGLE_BUCKET = (-(10**11),)  # seconds; one bucket whatever the window, so that its figures are cached


class Totals(Struct, frozen=True, kw_only=True, rename="camel"):
    """Aggregator of calls."""

    calls: Annotated[int, msgspec.Meta(description="Number of calls.", examples=[2])]
    connected: Annotated[int, msgspec.Meta(description="Calls that were answered.", examples=[1])]
    unique_callers: Annotated[int, msgspec.Meta(description="Distinct numbers of callers.", examples=[2])]
    new_callers: Annotated[
        int, msgspec.Meta(description="Callers whose first call of the window is one.", examples=[2])
    ]
    duration_seconds: Annotated[int, msgspec.Meta(description="Sum of the calls' durations.", examples=[412])]
    talk_time_seconds: Annotated[int, msgspec.Meta(description="Sum of the calls' talk times.", examples=[332])]
    mean_talk_time_seconds: Annotated[float | None, msgspec.Meta(description="Mean of those known.", examples=[166.0])]


class Row(Totals, frozen=True, kw_only=True, rename="camel"):
    """The figures of one bucket of time and one group."""

    bucket_start: Annotated[Instant, msgspec.Meta(description="The bucket's start.", examples=["2026-11-01T05:00:00Z"])]
    group: Annotated[str | None, msgspec.Meta(description="The value of `groupBy`, if there is one.", examples=[None])]


class CallSummary(Struct, frozen=True, kw_only=True):
    """Aggregator by bucket of time and group, oldest first, and of all calls of the window."""

    data: Annotated[list[Row], msgspec.Meta(description="The figures, empty buckets included.")]
    total: Totals
    meta: Meta


class ClientFigures(Struct, frozen=True, kw_only=True, rename="camel"):
    """A client, and its number of calls in the window."""

    client_code: Annotated[str, msgspec.Meta(description="The client's code.", examples=["8005550100"])]
    calls: Annotated[int, msgspec.Meta(description="Number of calls.", examples=[2])]


class ClientList(Struct, frozen=True, kw_only=True):
    """The clients that had calls in the window, by code."""

    data: Annotated[list[ClientFigures], msgspec.Meta(description="The clients.")]
    meta: Meta


@get(
    "/clients/{code:str}/calls/summary",
    operation_id="summarizeClientCalls",
    summary="Summarize the calls of one client",
    kind="summary",
)
async def summarize_client_calls(request: Request[Any, Any, State], code: FromPath[str]) -> Response[Any]:
    """Counts and talk time of one client's calls in a window, by bucket of time and by group."""
    return await summary_response(request, code)


@get("/calls/summary", operation_id="summarizeCalls", summary="Summarize the calls of several clients", kind="summary")
async def summarize_calls(request: Request[Any, Any, State]) -> Response[Any]:
    """Counts and talk time of the calls of several clients, or of all, in a window."""
    return await summary_response(request, None)


@get("/clients", operation_id="listClients", summary="List the clients that had calls", kind="clients")
async def list_clients(request: Request[Any, Any, State]) -> Response[Any]:
    """Client codes that this consumer may see and that had calls in a window, with their number of calls."""
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

    reading = await _count(services, context, cache_query, count)
    rows = [ClientFigures(client_code=code, calls=calls[code]) for code in sorted(calls) if calls[code]]
    return responses.json_response(
        services, context, ClientList(data=rows, meta=responses.meta_of(window, reading)), window, reading
    )


async def summary_response(request: Request[Any, Any, Any], code: str | None) -> Response[bytes]:
    """A summary of the calls of the client in the path, or of those of `client`. Raises GatewayError."""
    services, context = responses.services_of(request), context_of(request.scope)
    responses.negotiate(context, JSON)
    query = parse_summary_query(request.scope["query_string"], code, services.clock(), services.history_start)
    cache_query = responses.cache_query(services, context, query.codes, query.window, filters=query.filters.texts)
    counted_calls = query.group_by, query.filters, responses.consumer_of(context).clients
    shape = AggregateSpec(
        name=(query.interval, query.zone, counted_calls),
        counted=counted_calls,
        starts=SINGLE_BUCKET if query.interval == "none" else query.starts,
        group=GROUPS[query.group_by] if query.group_by else None,
        keep=responses.row_filter(context, cache_query, query.filters),
    )
    figures = Aggregator(shape)
    reading = await _count(services, context, cache_query, figures.add)
    found, total = figures.sums()
    body = CallSummary(
        data=_rows(query, found), total=Totals(**_figures(total)), meta=responses.meta_of(query.window, reading)
    )
    return responses.json_response(services, context, body, query.window, reading)


async def _count(
    services: Services, context: RequestContext, cache_query: Query, count: Callable[[Extent], None]
) -> ReadResult:
    """Counts every extent of a window, and return the reading that they are from. Raises UpstreamError."""
    now, since = services.clock(), 0
    total: ReadResult | None = None
    async for part in counted(services.cache, cache_query, now, services.deadline):
        for extent in part.extents:
            count(extent)
            since += len(extent.calls)
            if since > BATCH_SIZE:
                since = 0
                await asyncio.sleep(0)
        total = responses.combined(total, part.reading)
    context.read_finished = time.perf_counter()
    return total or responses.empty_reading(now)


def _rows(query: SummaryQuery, found: Sequence[tuple[int, dict[Group, Counts]]]) -> list[Row]:
    """A row for each bucket and each group of the window. Raises InvalidParameters for too many."""
    names = sorted({name for _, groups in found for name in groups}, key=lambda name: (name is None, name)) or [None]
    if len(found) * len(names) > MAX_ROWS:
        detail = f"makes {len(found)} buckets of {len(names)} groups, more than {MAX_ROWS} rows; ask for longer buckets"
        raise InvalidParameters([ParameterFault("groupBy", detail)])
    nothing = Counts()
    return [
        Row(bucket_start=responses.instant(start), group=name, **_figures(groups.get(name, nothing)))
        for start, (_, groups) in zip(query.starts, found, strict=True)
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
