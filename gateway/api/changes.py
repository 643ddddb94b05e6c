"""The handlers of the change feed: what changed since a token, as JSON, NDJSON or server-sent events.

Rules:
- Rights are judged anew whenever a waiting request has something to tell.
- Nothing is told from a reading that failed or is stale: the response is a problem, and the token stays good.
- Waiting requests and streams count against the places of their consumer.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec
from litestar import Request, Response, get
from litestar.datastructures import State
from litestar.params import FromPath
from litestar.response import Stream
from msgspec import Struct

from gateway.api import responses
from gateway.api.feed import Changes, Feed, UpToDate, feed_of
from gateway.api.middleware.request_context import RequestContext, context_of
from gateway.api.query import Parameters
from gateway.api.responses import JSON, Services
from gateway.cache.extents import DAY
from gateway.cache.feed_state import MAX_HORIZON, FeedState, midnight
from gateway.cache.fingerprints import View
from gateway.cache.watch import Answer, Seen, Terms, Watch
from gateway.errors import GatewayError

MEDIA_TYPES = JSON | {
    "application/x-ndjson": "ndjson",
    "application/ndjson": "ndjson",
    "application/jsonl": "ndjson",
    "text/event-stream": "events",
}
HEARTBEAT = 15  # seconds between comments on a stream
DEFAULT_DAYS = 30  # days ago at which a copy begins
encode = msgspec.json.Encoder().encode


@get("/clients/{code:str}/changes", operation_id="listClientChanges", summary="Follow one client", kind="changes")
async def list_client_changes(request: Request[Any, Any, State], code: FromPath[str]) -> Response[Any]:
    """What changed in the calls of one client since a token. Without a token: all calls."""
    return await changes_response(request, code)


@get("/changes", operation_id="listChanges", summary="Follow several clients", kind="changes")
async def list_changes(request: Request[Any, Any, State]) -> Response[Any]:
    """What changed in the calls of several clients, or of all, since a token. Without a token: all calls."""
    return await changes_response(request, None)


class ChangesQuery(Struct, frozen=True):
    """What changed since a token, or all calls from `start` on. `wait` in seconds."""

    codes: tuple[str, ...]
    since: str | None
    start: int
    status: bool
    limit: int
    wait: int
    format: str | None


def parse_changes_query(query_string: bytes, code: str | None, now: float) -> ChangesQuery:
    """Parse the query of the change feed. `code` is the client in the path, if there is one.

    Raises InvalidParameters.
    """
    parameters = Parameters(query_string, "changes", code)
    parameters.require_client()
    start = parameters.window(now, 0).start if "start" in parameters.values else int(now) - DEFAULT_DAYS * DAY
    if "start" in parameters.values and "since" in parameters.values:
        parameters.fault("start", "does not go with `since`, which has a start")
    elif not parameters.faults and not midnight(int(now) - MAX_HORIZON) <= start <= now:
        parameters.fault("start", "is in the future or more than 400 days ago")
    values = parameters.checked()
    return ChangesQuery(
        values["client"],
        values.get("since"),
        midnight(start),
        "include" in values,
        values.get("limit", 1000),
        values.get("wait", 0),
        values.get("format"),
    )


async def changes_response(request: Request[Any, Any, Any], code: str | None) -> Response[bytes] | Stream:
    """Tell what changed for the client `code`, or for the parameter `client` if it is None. Raises GatewayError."""
    services, context = responses.services_of(request), context_of(request.scope)
    query = parse_changes_query(request.scope["query_string"], code, services.clock())
    form = responses.negotiate(context, MEDIA_TYPES, query.format)
    feed = feed_of(services, context, query.codes, query.limit, status=query.status)
    since = query.since
    if form == "events":
        since = context.header(b"last-event-id") or since
    state = feed.parse(since) if since else query.start
    terms = Terms(responses.deadline_of(services, context), partial(context.hold, services.waiting))
    if form == "events":
        context.hold(services.streams)
    async with responses.counting_turn(request):
        answer = await feed.feeds.answer(feed.clients, state, feed.view, feed.limit, terms)
    context.read_finished = time.perf_counter()
    headers = responses.shared_headers(context) | {"Cache-Control": "private, no-store"}
    if form == "events":
        headers |= {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
        if context.is_head:
            return Stream(iter([b""]), headers=headers)
        return Stream(_events(services, context, feed, answer), headers=headers)
    if query.wait and since and _is_empty(answer):
        context.hold(services.streams)
        answer = await _wait(services, context, feed, answer, query.wait)
    page, meta = feed.page(answer), feed.meta(answer)
    if form == "json":
        async with services.rendering.turn(context.party):
            body = encode(Changes(data=list(feed.items(answer)), page=page, meta=meta))
        return Response(body, media_type="application/json", headers=headers)
    headers["Content-Type"] = "application/x-ndjson"
    return Stream(_lines(feed, answer, {"page": page, "meta": meta}), headers=headers)


async def _lines(feed: Feed, answer: Answer, last: dict[str, Struct]) -> AsyncIterator[bytes]:
    for item in feed.items(answer):
        yield encode(item) + b"\n"
    yield encode(last) + b"\n"


async def _wait(services: Services, context: RequestContext, feed: Feed, answer: Answer, seconds: int) -> Answer:
    """Wait until there is something to tell, for some seconds at most. Raises GatewayError."""
    state = answer.telling.state
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds), feed.feeds.watching(feed.clients, state.start, feed.view) as watch:
            while _is_empty(answer) and _goes_on(services, context):
                seen = await _refreshed(services, watch, state, feed.view)
                if seen is not None:
                    answer = await feed.feeds.answer(feed.clients, state, feed.view, feed.limit, seen=seen)
                elif watch.error is not None:
                    raise watch.error.with_traceback(None)
    return answer


async def _events(services: Services, context: RequestContext, feed: Feed, answer: Answer) -> AsyncIterator[bytes]:
    """Server-sent events, from the first answer on, until the rights of the consumer change or the process stops."""
    yield f"retry: {random.randint(1000, 5000)}\n\n".encode()  # noqa: S311 - spreads reconnections
    state, seen = answer.telling.state, None
    async with feed.feeds.watching(feed.clients, state.start, feed.view) as watch:
        following: Answer | None = answer
        while _goes_on(services, context):
            if following is not None:
                for item in feed.items(following):
                    yield _event(item)
                state = following.telling.state
                yield f"id: {feed.token(state)}\n".encode() + (
                    _event(UpToDate(page=feed.page(following), meta=feed.meta(following)))
                    if following.telling.up_to_date
                    else b"\n"
                )
            if following is None or following.telling.up_to_date:
                following = None
                try:
                    async with asyncio.timeout(HEARTBEAT):
                        seen = await _refreshed(services, watch, state, feed.view)
                except TimeoutError:
                    yield b":\n\n"
                    continue
                if seen is None:
                    yield b": the Callbutton server cannot be read at present\n\n"
                    continue
            try:
                told = await feed.feeds.answer(feed.clients, state, feed.view, feed.limit, seen=seen)
            except GatewayError:
                following = None
                yield b": the Callbutton server cannot be read at present\n\n"
            else:
                following = None if _is_empty(told) else told


async def _refreshed(services: Services, watch: Watch, state: FeedState, view: View) -> Seen | None:
    """Wait for a refresh, or for the end of the process; None after a failure or at the end."""
    ends = asyncio.ensure_future(services.shutdown.begun.wait())
    refresh = asyncio.ensure_future(watch.refreshed(state.start, view))
    try:
        await asyncio.wait({ends, refresh}, return_when=asyncio.FIRST_COMPLETED)
        return refresh.result() if refresh.done() else None
    finally:
        ends.cancel()
        refresh.cancel()


def _event(item: Struct) -> bytes:
    """An event named after the operation, with the item as its data."""
    body = encode(item)
    name = item.__struct_config__.tag
    return f"event: {name}\ndata: ".encode() + body + b"\n\n"


def _goes_on(services: Services, context: RequestContext) -> bool:
    """Whether the process runs and the consumer has the rights that it had."""
    consumer = responses.consumer_of(context)
    same = services.current_rights(consumer.key) == consumer
    return same and not services.shutdown.begun.is_set()


def _is_empty(answer: Answer) -> bool:
    telling = answer.telling
    return telling.up_to_date and not (telling.removes or telling.replaces or telling.upserts)


HANDLERS = [list_client_changes, list_changes]
