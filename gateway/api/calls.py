"""The handlers of lists of calls and of single calls: parse the query, read the cache, render the response."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import urlencode

import msgspec
from litestar import Request, Response, get
from litestar.datastructures import State
from litestar.params import FromPath
from litestar.response import Stream
from msgspec import Struct

from gateway import access
from gateway.api import exports, responses
from gateway.api.list_query import parse_list_query, render_cursor
from gateway.api.middleware.request_context import RequestContext, context_of
from gateway.api.query import MAX_LIMIT, parse_call_query
from gateway.api.responses import JSON, STEP_ROWS, AnswerMeta, Services
from gateway.api.signing import link_renderer
from gateway.cache.extents import DAY
from gateway.cache.scans import Page, read_page, stream
from gateway.errors import NotFound
from gateway.formats import Projection, columns_of
from gateway.model import Call, Window, about
from gateway.slices import Steps, in_slices, parts_of

NEXT = "The `cursor` of the next page; null on the last page only."
RECENT = 31 * DAY  # seconds; where to search for a call that is not in the cache; the longest POST by default


class PageInfo(Struct, frozen=True, kw_only=True, rename="camel"):
    """The page size, and the cursor of the next page."""

    limit: Annotated[int, about("The maximum number of calls on a page.", 1, ge=1, le=MAX_LIMIT)]
    next_cursor: Annotated[str | None, about(NEXT, "uvkL5TFIUylomGu3e5M0UJOF")]


class CallPage(Struct, frozen=True, kw_only=True):
    """A page of calls."""

    data: Annotated[list[Call], about("The calls, sorted by start time.")]
    page: PageInfo
    meta: AnswerMeta


class SingleCall(Struct, frozen=True, kw_only=True):
    """One call."""

    data: Call
    meta: AnswerMeta


@get("/clients/{code:str}/calls", operation_id="listClientCalls", summary="List the calls of one client", kind="list")
async def list_client_calls(request: Request[Any, Any, State], code: FromPath[str]) -> Response[Any]:
    """The calls of one client in a window, newest first by default."""
    return await list_response(request, code)


@get("/calls", operation_id="listCalls", summary="List the calls of several clients", kind="list")
async def list_calls(request: Request[Any, Any, State]) -> Response[Any]:
    """The calls of several clients, or of all, in a window."""
    return await list_response(request, None)


@get(
    "/clients/{code:str}/calls/{call_id:str}",
    operation_id="getClientCall",
    summary="Get one call of a client",
    kind="call",
)
async def get_client_call(
    request: Request[Any, Any, State], code: FromPath[str], call_id: FromPath[str]
) -> Response[Any]:
    """One call. Without a window, the gateway searches where it last saw the call, then the last 31 days."""
    services, context = responses.services_of(request), context_of(request.scope)
    now = services.clock()
    responses.negotiate(context, JSON)
    query = parse_call_query(request.scope["query_string"], code, now, services.history_start, services.extras)
    recent = Window(int(now) - RECENT, int(now) + 1)
    # Authorize before the lookup: its duration would tell a consumer without access whether the call exists.
    responses.cache_query(services, context, (code,), recent, status=query.status)
    known = await services.cache.whereabouts(code, call_id, status=query.status)
    # The upstream may have changed the start time of the call since the cache last saw it.
    windows = [query.window] if query.window else [known, recent] if known else [recent]
    for window in windows:
        page = await _find(services, context, code, call_id, window, status=query.status)
        if page.calls:
            context.read_finished = time.perf_counter()
            (call,) = presenter(services, context, status=query.status)(page.calls)
            meta = responses.meta_of(window, page.provenance, page.unreadable)
            project = Projection(query.fields, columns_of(services.extras.call_type)) if query.fields else None
            body = {"data": project(call) if project else call, "meta": meta}
            return await responses.json_response(services, context, body, meta, page.provenance)
    raise NotFound("this client has no call with this id in the searched window")


async def list_response(request: Request[Any, Any, Any], code: str | None) -> Response[bytes] | Stream:
    """List the calls of the client `code`, or of the parameter `client` if it is None. Raises GatewayError."""
    services, context = responses.services_of(request), context_of(request.scope)
    now = services.clock()
    query = parse_list_query(
        request.scope["query_string"], code, now, services.history_start, services.signing_keys, "list", services.extras
    )
    form = responses.negotiate(context, exports.MEDIA_TYPES, query.format)
    cache_query = responses.cache_query(
        services, context, query.codes, query.window, filters=query.filters, status=query.status
    )
    keep = responses.row_filter(context, cache_query, query.filters)
    present = presenter(services, context, status=query.status)
    query.require_format(form)
    if form in exports.FORMATS:
        context.hold(services.exports)
        one_shot = msgspec.structs.replace(cache_query, one_shot=True, before_wait=lambda: None)
        parts = stream(services.cache, one_shot, now, services.deadline, newest_first=query.newest_first, keep=keep)
        return await exports.export_response(services, context, query, parts, present, form, now)
    page = await read_page(
        services.cache,
        cache_query,
        now,
        newest_first=query.newest_first,
        limit=query.limit,
        after=query.after,
        keep=keep,
        texts=query.filters.texts,
        sees=responses.client_sight(context),
    )
    context.read_finished = time.perf_counter()
    cursor, complete = render_cursor(query, page.after, services.signing_keys) if page.after else (None, False)
    page_info = PageInfo(limit=query.limit, next_cursor=cursor)
    meta = responses.meta_of(query.window, page.provenance, page.unreadable)
    next_link = f"{request.scope['path']}?{urlencode({'cursor': cursor})}" if complete else ""
    async with services.rendering.turn(context.party):
        project = Projection(query.fields, columns_of(services.extras.call_type)) if query.fields else None
        rows = await in_slices(_rows(page.calls, present, project))
        body = {"data": rows, "page": page_info, "meta": meta}
        return await responses.json_response(services, context, body, meta, page.provenance, next_link=next_link)


def _rows(calls: Sequence[Call], present: exports.Present, project: Projection | None) -> Steps[list[Any]]:
    """The calls as a consumer may see them, or some of their fields, in steps."""
    rows: list[Any] = []
    for step in parts_of(calls, STEP_ROWS):
        rows += map(project, present(step)) if project else present(step)
        yield
    return rows


def presenter(services: Services, context: RequestContext, *, status: bool) -> exports.Present:
    """A function that masks calls for the consumer, and adds links to their recordings."""
    consumer, extras = responses.consumer_of(context), services.extras
    if "recordings" not in consumer.scopes:
        return lambda calls: [access.mask_call(call, consumer, status=status, extras=extras) for call in calls]
    link = link_renderer(consumer, services.clock(), services.signing_keys, services.public_url)
    return lambda calls: [
        access.mask_call(call, consumer, status=status, extras=extras, recording_url=link(call)) for call in calls
    ]


async def _find(
    services: Services, context: RequestContext, code: str, call_id: str, window: Window, *, status: bool
) -> Page:
    """Search a window for a call, newest first. The page has the call, or is empty."""
    cache_query = responses.cache_query(services, context, (code,), window, status=status)
    after = None
    span = DAY
    while True:
        page = await read_page(
            services.cache,
            cache_query,
            services.clock(),
            newest_first=True,
            limit=1,
            after=after,
            keep=lambda calls: [call for call in calls if call.id == call_id],
            span=span,
        )
        if page.calls or page.after is None:
            return page
        after, span = page.after, page.span


HANDLERS = [list_client_calls, list_calls, get_client_call]
