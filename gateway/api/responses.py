"""The parts that all responses about calls share: services, negotiation, the cache query, `meta`, headers, and 304."""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from litestar import Request, Response
from msgspec import Struct

from gateway.access import Consumer, authorized_codes, client_filter, require_list_scopes
from gateway.api.middleware.request_context import Lifetime, RequestContext
from gateway.api.middleware.response_cache import matches
from gateway.api.negotiation import negotiate_media_type
from gateway.api.query import NO_FILTERS, Filters
from gateway.cache.extents import Keep
from gateway.cache.reader import Cache, Query, ReadResult
from gateway.cache.scans import Page
from gateway.callbutton.recordings import Recordings
from gateway.errors import NotAcceptable
from gateway.model import Instant, Window
from gateway.rates import ExportLimiter, RateLimiter

JSON = {"application/json": "json"}
VARY = "Authorization, X-API-Key, Accept, Accept-Encoding, Origin"
STALE = "Whether a part is older than the freshness rule allows, because the server failed."
BEFORE_META = b',"meta":'  # the part of a body that is not data begins here
encode = msgspec.json.Encoder().encode


class Meta(Struct, frozen=True, kw_only=True, rename="camel"):
    """The window that the answer covers, and how fresh it is."""

    start: Annotated[
        Instant, msgspec.Meta(description="Start of the window, included.", examples=["2026-11-01T05:00:00Z"])
    ]
    end: Annotated[Instant, msgspec.Meta(description="End of the window, excluded.", examples=["2026-11-01T09:00:00Z"])]
    as_of: Annotated[
        Instant, msgspec.Meta(description="When its newest point was fetched.", examples=["2026-11-01T12:00:00Z"])
    ]
    oldest_fetch: Annotated[
        Instant, msgspec.Meta(description="The oldest fetch in use.", examples=["2026-11-01T11:00:00Z"])
    ]
    stale: Annotated[bool, msgspec.Meta(description=STALE, examples=[False])]
    unreadable: Annotated[int, msgspec.Meta(description="Calls left out because they cannot be read.", examples=[0])]


class Services(Struct, frozen=True):
    """What handlers need. `deadline` is in seconds; links begin with `public_url`."""

    cache: Cache
    clock: Callable[[], float]
    signing_key: bytes
    history_start: int
    deadline: float
    rates: RateLimiter
    exports: ExportLimiter
    recordings: Recordings
    current_rights: Callable[[str, str], Consumer | None]  # the current rights of a consumer, by name and label
    public_extra: frozenset[str] = frozenset()
    public_url: str = ""


def services_of(request: Request[Any, Any, Any]) -> Services:
    """The services of the application."""
    services: Services = request.app.state.services
    return services


def consumer_of(context: RequestContext) -> Consumer:
    """The consumer of a request. Raises RuntimeError for a request that no layer has authenticated."""
    if context.consumer is None:
        raise RuntimeError("the request is not authenticated")
    return context.consumer


def negotiate(context: RequestContext, offered: Mapping[str, str], named: str | None = None) -> str:
    """Choose the form of the response: the one that `format` names, else by `Accept`. Raises NotAcceptable."""
    chosen = named or negotiate_media_type(context.header(b"accept"), offered)
    if chosen is None:
        raise NotAcceptable(f"there are {', '.join(offered)}")
    return chosen


def cache_query(
    services: Services,
    context: RequestContext,
    codes: tuple[str, ...],
    window: Window,
    *,
    filters: Collection[str] = (),
    status: bool = False,
) -> Query:
    """The query of the cache for client codes, as far as the consumer may see them. Raises Forbidden."""
    consumer = consumer_of(context)
    require_list_scopes(consumer, filters, status=status)
    return Query(
        codes=authorized_codes(consumer, codes),
        window=window,
        status=status,
        no_cache=_no_cache(context) and "refresh" in consumer.scopes,
        deadline=asyncio.get_running_loop().time() + services.deadline,
    )


def row_filter(context: RequestContext, cache_query: Query, filters: Filters = NO_FILTERS) -> Keep:
    """The function that keeps the calls that were asked for, of the clients that the consumer may see."""
    seen = client_filter(consumer_of(context), cache_query.codes)
    return filters.apply if seen is list else lambda calls: seen(filters.apply(calls))


def json_response(
    services: Services,
    context: RequestContext,
    body: object,
    window: Window,
    source: Page | ReadResult,
    *,
    data_end: bytes = BEFORE_META,
    next_link: str = "",
) -> Response[bytes]:
    """Render a response as JSON, or as 304. The data, which `ETag` stands for, ends before the last `data_end`."""
    encoded, now = encode(body), services.clock()
    if not source.stale:
        # A window that reaches into the future grows by the second.
        until = math.inf if window.end <= now else math.ceil(now)
        context.lifetime = Lifetime(source.as_of, now - source.seconds_stale, until)
    etag = _etag(encoded[: encoded.rindex(data_end)], has_next=bool(next_link))
    headers = {
        "ETag": etag,
        "Age": str(max(0, int(now - source.as_of))),
        "Cache-Status": f"callbutton-gateway; {_cache_status(source)}{_ignored(context)}",
        **shared_headers(context),
    }
    if next_link:
        headers["Link"] = f'<{services.public_url}{next_link}>; rel="next"'
    if matches(context.header(b"if-none-match"), etag):
        return Response(b"", status_code=304, headers=headers)
    return Response(encoded, media_type="application/json", headers=headers)


def shared_headers(context: RequestContext) -> dict[str, str]:
    """The headers of every response about calls."""
    read, write = context.read_finished - context.started, time.perf_counter() - context.read_finished
    timing = f"ledger;dur={read * 1e3:.1f}, write;dur={write * 1e3:.1f}"
    return {"Cache-Control": "private", "Vary": VARY, "Server-Timing": timing}


def combined(before: ReadResult | None, reading: ReadResult, *, newest_first: bool = False) -> ReadResult:
    """The reading of two neighbouring spans, of which `before` was read first."""
    if before is None:
        return reading
    return ReadResult(
        as_of=before.as_of if newest_first else reading.as_of,
        oldest_fetch=min(before.oldest_fetch, reading.oldest_fetch),
        seconds_stale=max(before.seconds_stale, reading.seconds_stale),
        stale=before.stale or reading.stale,
        unreadable=before.unreadable + reading.unreadable,
        lookup=reading.lookup if before.lookup == reading.lookup else "partial",
        collapsed=reading.collapsed and before.collapsed,
    )


def empty_reading(now: float) -> ReadResult:
    """The reading of a window in which there is nothing to read."""
    return ReadResult(as_of=now, oldest_fetch=now, seconds_stale=-1)


def meta_of(window: Window, source: Page | ReadResult) -> Meta:
    """The window that a response covers, and how fresh it is."""
    return Meta(
        start=instant(window.start),
        end=instant(window.end),
        as_of=instant(source.as_of),
        oldest_fetch=instant(source.oldest_fetch),
        stale=source.stale,
        unreadable=source.unreadable,
    )


def instant(seconds: float) -> datetime:
    """Seconds since 1970 as responses show them."""
    return datetime.fromtimestamp(int(seconds), UTC)


def _no_cache(context: RequestContext) -> bool:
    return "no-cache" in context.header(b"cache-control").lower()


def _ignored(context: RequestContext) -> str:
    """Report that `no-cache` was ignored. It is no reason to refuse: browsers send it with each reload."""
    heeded = "refresh" in consumer_of(context).scopes or not _no_cache(context)
    return "" if heeded else '; detail="no-cache needs the scope refresh"'


def _etag(data: bytes, *, has_next: bool) -> str:
    """The tag of an answer: a hash of its data and of whether a next page exists, not of when it was fetched."""
    return f'W/"{hashlib.blake2b(data, digest_size=12, key=b"more" if has_next else b"end").hexdigest()}"'


def _cache_status(source: Page | ReadResult) -> str:
    """The answer's source (RFC 9211); a negative ttl is how long it has been stale."""
    if source.lookup == "hit" or source.stale:
        return f"hit; ttl={-math.ceil(source.seconds_stale)}"
    return f"fwd={source.lookup}{'; collapsed' if source.collapsed else ''}"
