"""The handlers of missed callers: the callers with a missed call, and whether a later call reached them.

Rule: the list singles callers out, so it needs the scope `personal`.
"""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from enum import StrEnum
from itertools import islice
from typing import Annotated, Any
from urllib.parse import urlencode

from litestar import Request, Response, get
from litestar.datastructures import State
from litestar.params import FromPath
from litestar.response import Stream
from msgspec import Struct
from msgspec.structs import replace

from gateway import access
from gateway.api import exports, responses
from gateway.api.calls import PageInfo, presenter
from gateway.api.list_query import ListQuery, parse_list_query, render_cursor
from gateway.api.middleware.request_context import RequestContext, context_of
from gateway.api.responses import AnswerMeta, Services
from gateway.cache.freshness import Provenance
from gateway.cache.missed import MAX_CALLERS, Missed, MissedCallers, Reached, TooManyCallers
from gateway.cache.reader import Query
from gateway.cache.scans import position
from gateway.errors import InvalidParameters, ParameterFault
from gateway.formats import Format, columns_of
from gateway.model import Call, Instant, Window, about
from gateway.slices import in_slices

REACHED_AT = "When the first connected call since the last missed call began. Null for a sales status."


class ReachedBy(StrEnum):
    """How the caller was reached since the last missed call: by a connected call, or by the sales status of a call.

    A connected call outranks `made_sale`, and that `called_back`.
    """

    CONNECTED = "connected"
    CALLED_BACK = "called_back"
    MADE_SALE = "made_sale"


class MissedCaller(Struct, frozen=True, kw_only=True, rename="camel"):
    """A caller of a client whose calls were missed: busy, not answered or abandoned."""

    ani: Annotated[str, about("The number of the caller.", "3125550161")]
    client_code: Annotated[str, about("The code of the client that was called.", "8005550100")]
    missed_calls: Annotated[int, about("Number of missed calls in the window.", 2)]
    first_missed_at: Annotated[Instant, about("When the first of them began.", "2026-11-01T07:12:04Z")]
    reached: Annotated[ReachedBy | None, about("Null if no call since the last missed one reached the caller.")]
    reached_at: Annotated[Instant | None, about(REACHED_AT, "2026-11-01T09:30:00Z")]
    last_call: Call


class MissedPage(Struct, frozen=True, kw_only=True):
    """A page of missed callers."""

    data: Annotated[list[MissedCaller], about("The callers: not reached first, then by the last missed call.")]
    page: PageInfo
    meta: AnswerMeta


@get(
    "/clients/{code:str}/calls/missed",
    operation_id="listClientMissedCallers",
    summary="List the missed callers of one client",
    kind="missed",
)
async def list_client_missed_callers(request: Request[Any, Any, State], code: FromPath[str]) -> Response[Any]:
    """The callers of one client with a missed call in a window, who were not reached since."""
    return await missed_response(request, code)


@get(
    "/calls/missed",
    operation_id="listMissedCallers",
    summary="List the missed callers of several clients",
    kind="missed",
)
async def list_missed_callers(request: Request[Any, Any, State]) -> Response[Any]:
    """The callers of several clients, or of all, with a missed call in a window, who were not reached since."""
    return await missed_response(request, None)


async def missed_response(request: Request[Any, Any, Any], code: str | None) -> Response[bytes] | Stream:
    """List the missed callers of the client `code`, or of the parameter `client` if it is None. Raises GatewayError."""
    services, context = responses.services_of(request), context_of(request.scope)
    now, keys = services.clock(), services.signing_keys
    query = parse_list_query(
        request.scope["query_string"], code, now, services.history_start, keys, "missed", services.extras
    )
    form = responses.negotiate(context, exports.MEDIA_TYPES, query.format)
    access.require_scope(responses.consumer_of(context), "personal")
    # Calls up to now can reach a caller. An empty window has no missed calls.
    end = max(query.window.end, math.ceil(now)) if query.window.start < query.window.end else query.window.end
    window = Window(query.window.start, end)
    cache_query = responses.cache_query(
        services, context, query.codes, window, filters=query.filters, status=query.status
    )
    query.require_format(form)
    rows = _rows(presenter(services, context, status=query.status))
    if form in exports.FORMATS:
        context.hold(services.exports)
        async with responses.counting_turn(request):
            found, meta, source = await _find(services, context, query, cache_query, None)
        exports.refuse_stale(form, query, source)
        headers = exports.export_headers(context, form, "missed")
        writer = exports.make_writer(form, query, columns_of(MissedCaller, services.extras.call_type))
        body = iter([b""]) if context.is_head else _render(services, context, writer, found, rows, meta)
        return Stream(body, headers=headers)
    async with responses.counting_turn(request):
        found, meta, source = await _find(services, context, query, cache_query, query.limit + 1)
    page, cursor, complete = list(islice(found, query.limit + 1)), None, False
    if len(page) > query.limit:
        del page[query.limit :]
        following = replace(query, after_reached=page[-1].reached is not Reached.NO)
        cursor, complete = render_cursor(following, position(page[-1].last), keys)
    next_link = f"{request.scope['path']}?{urlencode({'cursor': cursor})}" if complete else ""
    async with services.rendering.turn(context.party):
        answer = MissedPage(data=rows(page), page=PageInfo(limit=query.limit, next_cursor=cursor), meta=meta)
        return await responses.json_response(
            services, context, answer, meta, source, next_link=next_link, until_now=True
        )


async def _find(
    services: Services, context: RequestContext, query: ListQuery, cache_query: Query, limit: int | None
) -> tuple[Iterator[Missed], AnswerMeta, Provenance]:
    """Read the window, and order its missed callers; with `limit`, the rest of the list may be missing."""
    name = query.filters, responses.consumer_of(context).clients
    keep = responses.row_filter(context, cache_query, query.filters)
    callers = MissedCallers(query.window, keep, name, status=query.status)
    try:
        source, unreadable = await responses.count_window(services, context, cache_query, callers.add)
    except TooManyCallers:
        detail = f"gives more than {MAX_CALLERS} missed callers; choose a shorter window"
        raise InvalidParameters([ParameterFault("start", detail)]) from None
    after = None if query.after is None else (query.after_reached, query.after)
    found = await in_slices(callers.ordered(after, limit, reached=query.reached))
    context.read_finished = time.perf_counter()
    return found, responses.meta_of(query.window, source, unreadable), source


def _rows(present: exports.Present) -> Callable[[Sequence[Missed]], list[MissedCaller]]:
    """A function that makes rows of missed callers, with their calls as the consumer may see them."""

    def rows(found: Sequence[Missed]) -> list[MissedCaller]:
        return [
            MissedCaller(
                ani=one.last.ani or "",
                client_code=one.last.client_code,
                missed_calls=one.calls,
                first_missed_at=one.first,
                reached=None if one.reached is Reached.NO else ReachedBy[one.reached.name],
                reached_at=one.reached_at,
                last_call=call,
            )
            for one, call in zip(found, present([one.last for one in found]), strict=True)
        ]

    return rows


async def _render(
    services: Services,
    context: RequestContext,
    writer: Format,
    found: Iterator[Missed],
    rows: Callable[[Sequence[Missed]], list[MissedCaller]],
    meta: AnswerMeta,
) -> AsyncIterator[bytes]:
    yield writer.begin()
    while piece := list(islice(found, exports.CHUNK_SIZE)):
        async with services.rendering.turn(context.party):
            chunk = await in_slices(exports.rows_in_steps(piece, rows, writer))
        yield chunk
    if ending := writer.end(meta):
        yield ending


HANDLERS = [list_client_missed_callers, list_missed_callers]
