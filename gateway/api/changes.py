"""The handlers of the change feed: what changed since a token, as JSON, NDJSON or server-sent events.

Rules:
- The rights of the consumer are checked again before each answer to a waiting request.
- A link, `access`, is a credential for one path, its clients and `include`. Without a token of the feed it is valid for
  CONNECT_TIME: long enough to connect, and too short to be taken from the log of a proxy.
- Nothing is reported from a reading that failed or is stale: the response is a problem, and the token stays valid.
- Waiting requests and streams count against the places of their consumer.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import parse_qsl, urlencode

from litestar import Request, Response, get
from litestar.datastructures import State
from litestar.params import FromPath
from litestar.response import Stream
from msgspec import Struct
from msgspec.structs import replace

from gateway.access import Consumer, Kind
from gateway.api import responses
from gateway.api.feed import Feed, FeedAddress, digest, encode, event_stream, feed_of, json_lines, json_object
from gateway.api.middleware.authentication import admit
from gateway.api.middleware.request_context import RequestContext, context_of
from gateway.api.query import Parameters
from gateway.api.responses import JSON, Services
from gateway.api.signing import CONNECT_TIME, FEED_LINKS, MAX_SKEW, FeedLink, FeedToken
from gateway.cache.extents import DAY
from gateway.cache.feed_reader import Terms
from gateway.cache.feed_state import MAX_HORIZON, FeedState, midnight
from gateway.cache.watch import Answer
from gateway.errors import Forbidden, GatewayError

MEDIA_TYPES = JSON | {
    "application/x-ndjson": "ndjson",
    "application/ndjson": "ndjson",
    "application/jsonl": "ndjson",
    "text/event-stream": "events",
}
LINK_TYPE = (
    "application/vnd.callbutton.link+json"  # a separate media type, so that generated clients have one type for JSON
)
HEARTBEAT = 15  # seconds between comments on a stream
UNREADABLE = b": the Callbutton server cannot be read at present\n\n"
STREAM_LIMIT = 100  # calls of an answer on a stream; about as many bytes as the server buffers of any unread response
DEFAULT_DAYS = 30  # before now, where a copy begins without `start`


@get("/clients/{code:str}/changes", operation_id="listClientChanges", summary="Follow one client", kind="changes")
async def list_client_changes(request: Request[Any, Any, State], code: FromPath[str]) -> Response[Any]:
    """What changed in the calls of one client since a token. Without a token: all calls."""
    return await changes_response(request, code)


@get("/changes", operation_id="listChanges", summary="Follow several clients", kind="changes")
async def list_changes(request: Request[Any, Any, State]) -> Response[Any]:
    """What changed in the calls of several clients, or of all, since a token. Without a token: all calls."""
    return await changes_response(request, None)


class ChangesQuery(Struct, frozen=True):
    """What changed since a token, or all calls from `start` on, in seconds since 1970. `wait` is in seconds."""

    codes: tuple[str, ...]
    since: str | None
    start: int
    status: bool
    limit: int
    wait: int
    format: str | None
    link: bool
    access: str | None
    given: list[tuple[str, str]]  # as in the query string


def parse_changes_query(query_string: bytes, code: str | None, now: float) -> ChangesQuery:
    """Parse the query of the change feed. `code` is the client in the path, if there is one.

    Raises InvalidParameters.
    """
    parameters = Parameters(query_string, "changes", code)
    parameters.require_client()
    start = parameters.window(now, 0).start if "start" in parameters.values else int(now) - DEFAULT_DAYS * DAY
    if "start" in parameters.values and "since" in parameters.values:
        parameters.fault("start", "cannot be combined with `since`: the token has the start of its copy")
    elif not parameters.faults and not midnight(int(now) - MAX_HORIZON) <= start <= now:
        parameters.fault("start", "is in the future or more than 400 days ago")
    if "link" in parameters.values and "access" in parameters.values:
        parameters.fault("link", "cannot be requested with a link; send the credential of the consumer")
    values = parameters.checked()
    return ChangesQuery(
        values["client"],
        values.get("since"),
        midnight(start),
        "include" in values,
        values.get("limit", 1000),
        values.get("wait", 0),
        values.get("format"),
        values.get("link", False),
        values.get("access"),
        parse_qsl(query_string.decode("ascii")),
    )


async def changes_response(request: Request[Any, Any, Any], code: str | None) -> Response[bytes] | Stream:
    """Report the changes of the client `code`, or of the parameter `client` if it is None. Raises GatewayError."""
    services, context = responses.services_of(request), context_of(request.scope)
    query = parse_changes_query(request.scope["query_string"], code, services.clock())
    form = "link" if query.link else responses.negotiate(context, MEDIA_TYPES, query.format)
    link = open_link(services, context, query, code) if query.access is not None else None
    limit = min(query.limit, STREAM_LIMIT) if form == "events" else query.limit
    feed = feed_of(services, context, query.codes, limit, status=query.status)
    since = query.since
    if form == "events":
        since = context.header(b"last-event-id") or since
    state = feed.parse(since) if since else query.start
    if link is not None:
        state = _begin(services, context, feed, link, state)
    if query.link:
        return link_response(
            services, context, query, code, feed.content(state) if isinstance(state, FeedState) else None
        )
    terms = Terms(responses.deadline_of(services, context), partial(context.hold, services.waiting))
    if form == "events":
        context.hold(services.streams)
    async with responses.counting_turn(request):
        answer = await feed.feeds.answer(feed.clients, state, feed.view, feed.limit, terms)
    context.read_finished = time.perf_counter()
    context.release(services.waiting)  # the request no longer waits for the upstream; a stream lasts
    headers = responses.shared_headers(context) | {"Cache-Control": "private, no-store"}
    if form == "events":
        headers |= {"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
        if context.is_head:
            return Stream(iter([b""]), headers=headers)
        return Stream(_events(services, context, feed, answer), headers=headers)
    if query.wait and since and _is_empty(answer):
        context.hold(services.streams)
        answer = await _wait(services, context, feed, answer, query.wait)
    if form == "ndjson":
        headers["Content-Type"] = "application/x-ndjson"
        return Response(await feed.body(answer, json_lines), headers=headers)
    return Response(await feed.body(answer, json_object), media_type="application/json", headers=headers)


def open_link(services: Services, context: RequestContext, query: ChangesQuery, code: str | None) -> FeedLink:
    """Verify the link of a request, whose consumer becomes that of the request. Raises Forbidden."""
    try:
        link = FEED_LINKS.verify(query.access or "", services.signing_keys)
    except ValueError:
        raise Forbidden("this link is invalid", "link") from None
    if link.feed != _purpose(query, code):
        raise Forbidden("this link is of another feed", "link")

    def current() -> Consumer | None:
        consumer = services.current_rights((link.kind, link.consumer))
        if consumer is None or services.clock() >= link.rights_end:
            return None
        if consumer.kind is Kind.TOKEN:
            return replace(consumer, clients=link.clients, scopes=frozenset(link.scopes))
        return consumer

    context.current, context.rights_end, context.consumer = current, link.rights_end, current()
    if context.consumer is None:
        raise Forbidden("this link was revoked", "link")
    return link


def _begin(
    services: Services, context: RequestContext, feed: Feed, link: FeedLink, state: FeedState | int
) -> FeedState | int:
    """Admit the consumer of a link, and return the state from which it continues. Raises Forbidden, RateLimited."""
    now = services.clock()
    if isinstance(state, int):
        if not 0 < link.expires - now <= CONNECT_TIME + MAX_SKEW:  # past, or made before the clock was set back
            raise Forbidden("this link has expired: it needs the header Last-Event-ID, or `since`", "expired link")
        state = state if link.since is None else feed.state_of(link.since)
    admit(context, responses.consumer_of(context), services.rates, now)
    return state


def link_response(
    services: Services, context: RequestContext, query: ChangesQuery, code: str | None, since: FeedToken | None
) -> Response[bytes]:
    """Make a link to a feed, which continues from `since`."""
    consumer, expires = responses.consumer_of(context), math.ceil(services.clock()) + CONNECT_TIME
    link = FeedLink(consumer.kind, consumer.name, _purpose(query, code), expires, since, context.rights_end)
    if consumer.kind is Kind.TOKEN:
        link = replace(link, clients=consumer.clients, scopes=tuple(sorted(consumer.scopes)))
    parameters = [pair for pair in query.given if pair[0] not in ("link", "since")]
    parameters.append(("access", FEED_LINKS.sign(link, services.signing_keys)))
    path = "/changes" if code is None else f"/clients/{code}/changes"
    address = FeedAddress(
        url=f"{services.public_url}{path}?{urlencode(parameters)}", expires_at=responses.instant(expires)
    )
    headers = responses.shared_headers(context) | {"Cache-Control": "private, no-store", "Content-Type": LINK_TYPE}
    return Response(encode(address), headers=headers)


def _purpose(query: ChangesQuery, code: str | None) -> bytes:
    """A hash of the path, the clients and `include` of a query. A link is valid only for a query with the same hash."""
    return digest(16, code, sorted(query.codes), query.status)


async def _wait(services: Services, context: RequestContext, feed: Feed, answer: Answer, seconds: int) -> Answer:
    """Wait until there is a change, for some seconds at most. Raises GatewayError."""
    state = answer.report.state
    after, gauge = state.at, feed.feeds.metrics.feed_waiting
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds), feed.feeds.watching(feed.clients, state.start, feed.view, gauge) as watch:
            while _is_empty(answer):
                seen = await watch.refreshed(state.start, feed.view, after)
                if not _goes_on(services, context):
                    break
                if seen is not None:
                    after = seen.snapshot.end
                    answer = await feed.feeds.answer(feed.clients, state, feed.view, feed.limit, seen=seen)
                    del seen  # a waiting request references no calls
                elif watch.error is not None:
                    raise watch.error.with_traceback(None)
    return answer


async def _events(services: Services, context: RequestContext, feed: Feed, answer: Answer) -> AsyncIterator[bytes]:
    """Server-sent events, from the first answer on, until the rights of the consumer change or the process stops.

    A waiting stream references no calls, so that evicted calls are freed.
    """
    yield f"retry: {random.randint(1000, 5000)}\n\n".encode()  # noqa: S311 - spreads reconnections
    state, following = answer.report.state, await feed.body(answer, event_stream)
    start, after, more = state.start, state.at, not _is_done(answer)
    del answer
    clock = asyncio.get_running_loop().time
    heartbeat = clock() + HEARTBEAT  # due then, however often the feed is refreshed without a change
    async with feed.feeds.watching(feed.clients, start, feed.view, feed.feeds.metrics.feed_streams) as watch:
        while _goes_on(services, context):
            if following:
                yield following
                following, heartbeat = b"", clock() + HEARTBEAT
                continue
            seen = None
            try:
                if not more:
                    async with asyncio.timeout_at(heartbeat):
                        seen = await watch.refreshed(start, feed.view, after)
                    if seen is None:
                        following = UNREADABLE if watch.error is not None else b""
                        continue
                    after = seen.snapshot.end
                answer = await feed.feeds.answer(feed.clients, state, feed.view, feed.limit, seen=seen)
            except TimeoutError:
                following = b":\n\n"
            except GatewayError:
                following, more = UNREADABLE, False
            else:
                if not _is_empty(answer):
                    following = await feed.body(answer, event_stream)
                state, more = answer.report.state, not _is_done(answer)
                del answer
            del seen


def _goes_on(services: Services, context: RequestContext) -> bool:
    """Whether the process is not stopping, and the consumer still has the rights of the beginning."""
    return context.current() == context.consumer and not services.shutdown.begun.is_set()


def _is_empty(answer: Answer) -> bool:
    return answer.report.up_to_date and not answer.report.size


def _is_done(answer: Answer) -> bool:
    """Whether nothing more can be reported from the same reading."""
    return answer.report.up_to_date or not answer.report.size


HANDLERS = [list_client_changes, list_changes]
