"""The parts that all responses about calls share: services, negotiation, the cache query, `meta` and headers."""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Annotated, Any

import msgspec
from litestar import Request, Response
from msgspec import Struct

from gateway.access import Consumer, Key, authorized_codes, can_read, client_filter, require_list_scopes, require_scope
from gateway.api.filters import NO_FILTERS, Filters
from gateway.api.middleware.request_context import Lifetime, RequestContext, context_of
from gateway.api.negotiation import negotiate_media_type, parse_directives
from gateway.api.signing import SigningKeys
from gateway.cache.extents import Extent, Keep
from gateway.cache.freshness import Provenance
from gateway.cache.reader import Cache, Query
from gateway.cache.scans import Sees, counted, unreadable_of
from gateway.cache.watch import Feeds
from gateway.callbutton.recordings import Recordings
from gateway.errors import NotAcceptable
from gateway.extra_fields import NO_EXTRAS, ExtraFields
from gateway.model import Instant, Window, about
from gateway.rates import RateLimiter, Shares, Turns
from gateway.shutdown import Shutdown
from gateway.slices import Steps, in_slices, parts_of

JSON = {"application/json": "json"}
VARY = "Authorization, X-API-Key, Accept, Accept-Encoding, Origin"
STALE = "Whether a part is older than the freshness rule allows, for instance because the server failed."
UNREADABLE = (
    "Number of calls left out because they have no id or no valid start time. On a page, of those between its "
    "beginning and that of the next page."
)
STEP_ROWS = 100  # rows rendered in one step, at most 10 kB each; about half a millisecond
NOT_TAGGED = ("page", "meta")  # parts of a body that its entity tag does not cover
encode = msgspec.json.Encoder().encode


class AnswerMeta(Struct, frozen=True, kw_only=True, rename="camel"):
    """The window of the response, and its freshness."""

    start: Annotated[Instant, about("Start of the window (inclusive).", "2026-11-01T05:00:00Z")]
    end: Annotated[Instant, about("End of the window (exclusive).", "2026-11-01T09:00:00Z")]
    as_of: Annotated[Instant, about("When the newest point of the window was fetched.", "2026-11-01T12:00:00Z")]
    oldest_fetch: Annotated[Instant, about("When the oldest data in the response was fetched.", "2026-11-01T11:00:00Z")]
    stale: Annotated[bool, about(STALE, False)]
    unreadable: Annotated[int, about(UNREADABLE, 0)]


class Services(Struct, frozen=True):
    """The dependencies of the handlers.

    `deadline` is in seconds, `history_start` in seconds since 1970. `public_url` is the prefix of links.
    """

    cache: Cache
    clock: Callable[[], float]
    signing_keys: SigningKeys
    history_start: int
    deadline: float
    rates: RateLimiter
    waiting: Shares  # places of requests that wait for the upstream
    exports: Shares  # places of exports
    listeners: Shares  # places of recordings
    streams: Shares  # places of streams of the change feed, and of requests that wait for a change
    counting: Turns  # places of summaries, whose figures are in memory until they are rendered
    rendering: Turns  # one place, for the piece of a list that is being rendered
    recordings: Recordings
    current_rights: Callable[[Key], Consumer | None]  # the consumer as it is now; None if it has no valid key
    feeds: Feeds
    shutdown: Shutdown
    extras: ExtraFields = NO_EXTRAS
    public_url: str = ""


def services_of(request: Request[Any, Any, Any]) -> Services:
    """The services of the application."""
    services: Services = request.app.state.services
    return services


def consumer_of(context: RequestContext) -> Consumer:
    """The consumer of a request. Raises RuntimeError if the request was not authenticated."""
    if context.consumer is None:
        raise RuntimeError("the request is not authenticated")
    return context.consumer


@asynccontextmanager
async def counting_turn(request: Request[Any, Any, Any]) -> AsyncIterator[None]:
    """Hold a place for a summary while the block runs. Raises RateLimited, Overloaded.

    A request that waits for a place counts as one that waits for the upstream.
    """
    services, context = services_of(request), context_of(request.scope)
    async with services.counting.turn(context.party, partial(context.hold, services.waiting)):
        yield


def negotiate(context: RequestContext, offered: Mapping[str, str], named: str | None = None) -> str:
    """Choose the format of the response: the parameter `format`, else by `Accept`. Raises NotAcceptable."""
    chosen = named or negotiate_media_type(context.header(b"accept"), offered)
    if chosen is None:
        raise NotAcceptable(f"the available media types are {', '.join(offered)}")
    return chosen


def cache_query(
    services: Services,
    context: RequestContext,
    codes: tuple[str, ...],
    window: Window,
    *,
    filters: Filters = NO_FILTERS,
    status: bool = False,
) -> Query:
    """Authorize a query, and build it for the cache. Raises Forbidden."""
    consumer = consumer_of(context)
    searched = [*filters.texts, *([] if filters.recorded is None else ["recorded"])]
    require_list_scopes(consumer, searched, status=status)
    if not {element for element, _ in filters.extra} <= services.extras.public:
        require_scope(consumer, "personal")
    return Query(
        codes=authorized_codes(consumer, codes),
        window=window,
        status=status,
        no_cache=_no_cache(context) and "refresh" in consumer.scopes,
        deadline=deadline_of(services, context),
        before_wait=partial(context.hold, services.waiting),
    )


def deadline_of(services: Services, context: RequestContext) -> float:
    """The deadline of a request, counted from its arrival, as an instant of the event loop's clock."""
    return asyncio.get_running_loop().time() + services.deadline - (time.perf_counter() - context.started)


def row_filter(context: RequestContext, cache_query: Query, filters: Filters = NO_FILTERS) -> Keep:
    """A function that keeps the calls that match the filters and that the consumer may see."""
    seen = client_filter(consumer_of(context), cache_query.codes)
    return filters.apply if seen is list else lambda calls: seen(filters.apply(calls))


def client_sight(context: RequestContext) -> Sees:
    """Return the predicate that is true for client codes that the consumer may know."""
    return partial(can_read, consumer_of(context))


async def json_response(
    services: Services,
    context: RequestContext,
    body: Struct | dict[str, Any],
    meta: AnswerMeta,
    source: Provenance,
    *,
    next_link: str = "",
    until_now: bool = False,
) -> Response[bytes]:
    """Render a JSON response whose first part is `data`.

    `ETag` covers the body without `page` and `meta`, and `start` and `unreadable` of `meta`. `until_now` says that the
    response depends on calls up to now, even if the window ends earlier.
    """
    encoded, etag = await in_slices(_rendered(body, meta, has_next=bool(next_link)))
    now = services.clock()
    if not source.stale:
        # A window that ends in the future gets new calls every second.
        until = math.ceil(now) if until_now or meta.end.timestamp() > now else math.inf
        context.lifetime = Lifetime(source.as_of, source.fresh_until, until, source.changed)
    headers = {
        "ETag": etag,
        "Age": str(max(0, int(now - source.as_of))),
        "Cache-Status": f"callbutton-gateway; {_cache_status(source, now)}{_no_cache_ignored(context)}",
        **shared_headers(context),
    }
    if next_link:
        headers["Link"] = f'<{services.public_url}{next_link}>; rel="next"'
    return Response(encoded, media_type="application/json", headers=headers)


def shared_headers(context: RequestContext) -> dict[str, str]:
    """The headers that every response about calls has."""
    read, write = context.read_finished - context.started, time.perf_counter() - context.read_finished
    timing = f"cache;dur={read * 1e3:.1f}, write;dur={write * 1e3:.1f}"
    return {"Cache-Control": "private", "Vary": VARY, "Server-Timing": timing}


def empty_result(now: float) -> Provenance:
    """The result of reading an empty window."""
    return Provenance(planned=now, as_of=now, oldest_fetch=now, fresh_until=now + 1)


async def count_window(
    services: Services, context: RequestContext, cache_query: Query, add: Callable[[Sequence[Extent]], Steps[None]]
) -> tuple[Provenance, int]:
    """Call `add` with the extents of each span of a window. Returns their provenance and the unreadable records.

    Raises UpstreamError, and the errors of `add`.
    """
    now, unreadable = services.clock(), 0
    total: Provenance | None = None
    sees = client_sight(context)
    async for part in counted(services.cache, cache_query, now):
        await in_slices(add(part.extents))
        unreadable += len(unreadable_of(part.extents, sees))
        total = total.combine(part.reading) if total else part.reading
    return total or empty_result(now), unreadable


def meta_of(window: Window, source: Provenance, unreadable: int) -> AnswerMeta:
    """The `meta` of a response."""
    return AnswerMeta(
        start=instant(window.start),
        end=instant(window.end),
        as_of=instant(source.as_of),
        oldest_fetch=instant(source.oldest_fetch),
        stale=source.stale,
        unreadable=unreadable,
    )


def instant(seconds: float) -> datetime:
    """Convert seconds since 1970 to whole seconds in UTC."""
    return datetime.fromtimestamp(int(seconds), UTC)


def _no_cache(context: RequestContext) -> bool:
    return "no-cache" in parse_directives(context.header(b"cache-control"))


def _no_cache_ignored(context: RequestContext) -> str:
    """A note that `no-cache` was ignored. It is not an error, because browsers send it on each reload."""
    ignored = _no_cache(context) and "refresh" not in consumer_of(context).scopes
    return '; detail="no-cache needs the scope refresh"' if ignored else ""


def _rendered(body: Struct | dict[str, Any], meta: AnswerMeta, *, has_next: bool) -> Steps[tuple[bytes, str]]:
    """Render a body and its weak entity tag, a hash of the data, the number of unreadable records, and `has_next`.

    The start of the window is part of it: that of a relative range moves, and the next pages with it.
    """
    rest = body if isinstance(body, dict) else msgspec.structs.asdict(body)
    data = rest.pop("data")
    tag = hashlib.blake2b(digest_size=12, key=b"%d %d %d" % (meta.start.timestamp(), meta.unreadable, has_next))
    rows: list[bytes] = []
    for step in parts_of(data, STEP_ROWS) if isinstance(data, list) else [[data]]:
        rows.append((b"," if rows else b"") + encode(step)[1:-1])
        tag.update(rows[-1])
        yield
    tag.update(encode({name: value for name, value in rest.items() if name not in NOT_TAGGED}))
    opening, closing = (b"[", b"]") if isinstance(data, list) else (b"", b"")
    whole = b"".join((b'{"data":', opening, *rows, closing, b",", encode(rest)[1:]))  # up to 10 MB, copied once
    return whole, f'W/"{tag.hexdigest()}"'


def _cache_status(source: Provenance, now: float) -> str:
    """The `Cache-Status` of a response (RFC 9211). A negative ttl is the time since it became stale."""
    if source.lookup == "hit" or source.stale:
        return f"hit; ttl={math.floor(source.fresh_until - now)}"
    return f"fwd={source.lookup}{'; collapsed' if source.collapsed else ''}"
