"""Response cache: serves repeated requests of a consumer from memory, for as long as the response is fresh.

Rules:
- It is inside authentication, so that every request is authenticated and counted, and outside compression and Litestar,
  whose work it saves. A handler that sets `lifetime` in the request context allows its response to be stored.
- The key is everything that a response depends on: consumer, path, query, Accept and Accept-Encoding, and the quarter
  of an hour, because relative windows such as `range=yesterday` change at midnight in their time zone. An entry is
  only served to an equal consumer, so a change of rights invalidates it.
- `Age` and `Cache-Status` are computed for each request. Requests with `Cache-Control` or `Pragma`, and methods other
  than GET and HEAD, bypass the cache.
- 304 is decided here alone, for cached and new responses alike: only whole responses are stored.
- An entry ends once anything that it rests on has changed in the cache of calls, so that it agrees with every other
  endpoint (T9).
- An entry expires after at most `MAX_TTL`, because the cache of calls must see which extents are in use.
- Its entries count in the memory of the cache, keys and expired entries included, and take at most PART of it (T8).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from litestar.types import HTTPScope, Message, Receive, Send
from msgspec import Struct

from gateway.access import Consumer, Key
from gateway.api.middleware.request_context import HTTPApp, Lifetime, context_of
from gateway.api.negotiation import Headers, split_list
from gateway.memory import Lru, Memory
from gateway.metrics import RequestMetrics

MAX_TTL = 60.0  # seconds; the cache of calls needs no finer knowledge of which extents are in use
MAX_BODY = 1024**2  # bytes; a page of 1,000 calls has 700 kB uncompressed
PART = 1 / 8  # of the memory
ENTRY_OVERHEAD = 1400  # bytes; the objects of an entry and its slot in the dictionary
FIELD_OVERHEAD = 150  # bytes; a tuple, two strings and two list slots for a header field
COMPUTED_HEADERS = {
    b"age",
    b"cache-status",
    b"server-timing",
    b"x-request-id",
}  # computed for each response, so not stored
BODY_HEADERS = {b"content-length", b"content-type", b"content-encoding"}  # not sent with 304
QUARTER = 900  # seconds; days begin at quarters of an hour in every time zone
EntryKey = tuple[Key | None, bytes, bytes, bytes, bytes, int]


class Entry(Struct, frozen=True):
    """A stored response."""

    consumer: Consumer | None
    route: str
    headers: Headers
    body: bytes
    lifetime: Lifetime
    stored: float  # seconds since 1970; an entry of the future is dropped, because the clock was set back


class ResponseCache:
    """The ASGI layer."""

    def __init__(self, app: HTTPApp, clock: Callable[[], float], memory: Memory, metrics: RequestMetrics) -> None:
        self._app = app
        self._clock = clock
        self._metrics = metrics
        self._entries: Lru[EntryKey, Entry] = Lru(memory, PART)
        self._swept = 0.0  # when expired entries were last dropped, in seconds since 1970

    def __call__(self, scope: HTTPScope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve from the cache, or store the response."""
        context = context_of(scope)
        headers, consumer, now = context.headers, context.consumer, self._clock()
        if (condition := headers.get(b"if-none-match")) is not None:
            send = conditional(send, condition.decode("latin-1"))
        if scope["method"] != "GET":
            return self._app(scope, receive, send)
        key = (
            None if consumer is None else consumer.key,
            scope["raw_path"],
            scope["query_string"],
            headers.get(b"accept", b""),
            headers.get(b"accept-encoding", b""),
            int(now // QUARTER),
        )
        entry = self._entries.get(key)
        if entry is None or b"cache-control" in headers or b"pragma" in headers:
            return self._serve_and_store(scope, receive, send, key)
        same_consumer = entry.consumer is consumer or entry.consumer == consumer
        if not entry.stored <= now < entry.lifetime.until or entry.lifetime.changed() or not same_consumer:
            self._entries.pop(key)
            return self._serve_and_store(scope, receive, send, key)
        return self._serve_entry(scope, send, entry, now)

    async def _serve_entry(self, scope: HTTPScope, send: Send, entry: Entry, now: float) -> None:
        lifetime = entry.lifetime
        self._metrics.repeats += 1
        scope["path_template"] = entry.route
        age = now - lifetime.as_of
        headers = [
            *entry.headers,
            (b"age", b"%d" % age if age > 0 else b"0"),
            (b"cache-status", b"callbutton-gateway; hit; ttl=%d" % (lifetime.fresh_until - now)),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": entry.body, "more_body": False})

    def _serve_and_store(self, scope: HTTPScope, receive: Receive, send: Send, key: EntryKey) -> Awaitable[None]:
        headers: Headers = []

        async def send_and_store(message: Message) -> None:
            nonlocal headers
            if message["type"] == "http.response.start" and message["status"] == 200:
                headers = list(message["headers"])  # a copy: outer layers change the list of the message
            await send(message)
            if headers and message["type"] == "http.response.body":
                lifetime = context_of(scope).lifetime
                if lifetime is not None and not message.get("more_body") and len(message["body"]) <= MAX_BODY:
                    self._store(scope, key, headers, message["body"], lifetime)
                headers = []

        return self._app(scope, receive, send_and_store)

    def _store(self, scope: HTTPScope, key: EntryKey, headers: Headers, body: bytes, lifetime: Lifetime) -> None:
        kept = [(name.lower(), value) for name, value in headers if name.lower() not in COMPUTED_HEADERS]
        now = self._clock()
        until = min(lifetime.until, lifetime.fresh_until, now + MAX_TTL)
        if b"etag" not in dict(kept) or until <= now or lifetime.changed():
            return
        fields = sum(len(name) + len(value) + FIELD_OVERHEAD for name, value in kept)
        if abs(now - self._swept) >= MAX_TTL:
            self._swept = now
            for expired in [one for one, e in self._entries.items() if not e.stored <= now < e.lifetime.until]:
                self._entries.pop(expired)
        entry = Entry(
            consumer=context_of(scope).consumer,
            route=str(scope.get("path_template")),
            headers=kept,
            body=body,
            lifetime=Lifetime(lifetime.as_of, lifetime.fresh_until, until, lifetime.changed),
            stored=now,
        )
        parts = sum(len(part) for part in key if isinstance(part, bytes))
        self._entries.put(key, entry, ENTRY_OVERHEAD + fields + len(body) + parts)


def conditional(send: Send, condition: str) -> Send:
    """Send a response 200 as 304 without its body if its entity tag matches If-None-Match."""
    unchanged = False

    async def send_if_changed(message: Message) -> None:
        nonlocal unchanged
        if message["type"] == "http.response.start" and message["status"] == 200:
            tags = [value.decode("latin-1") for name, value in message["headers"] if name.lower() == b"etag"]
            if unchanged := any(etag_matches(condition, tag) for tag in tags):
                kept = [(name, value) for name, value in message["headers"] if name.lower() not in BODY_HEADERS]
                message = {"type": "http.response.start", "status": 304, "headers": kept}
        elif message["type"] == "http.response.body" and unchanged:
            if message["more_body"]:
                return
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await send(message)

    return send_if_changed


def etag_matches(condition: str, etag: str) -> bool:
    """Whether If-None-Match matches an entity tag, by weak comparison (RFC 9110, section 8.8.3.2)."""
    given = {tag.removeprefix("W/") for tag in split_list(condition)}
    return "*" in given or etag.removeprefix("W/") in given
