"""Exact repeats: an answer that is asked for again within its freshness goes out as the bytes that it was.

Rules:
- It stands between authentication and compression, so that a repeat costs neither Litestar nor compressing. The edge
  and authentication see every request alike. It knows nothing of calls: a handler that has an answer worth keeping
  leaves a `Lifetime` in the request's state.
- What an answer depends on is its key: consumer, path, query, and the headers Accept, Accept-Encoding and Origin. An
  entry is for the very consumer that it was made for: whose rights are read anew is another.
- `Age`, `Cache-Status` and `304` are made anew each time. What is revalidated (`no-cache`) or not GET goes past it.
- A life is at most a minute, so that the ledger learns which days are in use, and the entries are bounded in bytes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable

from litestar.types import HTTPScope, Message, Receive, Send
from msgspec import Struct

from gateway.api.negotiation import Headers, HTTPApp
from gateway.metrics import RequestMetrics

LONGEST = 60.0  # seconds
LARGEST = 1024**2  # bytes of a body
ENTRY_BYTES = 3000  # of an entry without its body
MADE_ANEW = {b"age", b"cache-status", b"server-timing", b"x-request-id"}
OF_BODY = {b"content-length", b"content-type", b"content-encoding"}


class Lifetime(Struct, frozen=True):
    """How long an answer holds: fetched `as_of`, fresh until `fresh_until`, the same for repeats until `until`."""

    as_of: float
    fresh_until: float
    until: float


class Entry(Struct, frozen=True):
    """An answer."""

    consumer: object
    route: str
    etag: bytes
    whole: Headers
    unchanged: Headers  # without those of the body
    body: bytes
    lifetime: Lifetime


class Repeats:
    """An ASGI application around another."""

    def __init__(self, app: HTTPApp, clock: Callable[[], float], bound: int, tally: RequestMetrics) -> None:
        self._app = app
        self._clock = clock
        self._bound = bound
        self._tally = tally
        self._held: OrderedDict[tuple[object, ...], Entry] = OrderedDict()
        self._bytes = 0

    def __call__(self, scope: HTTPScope, receive: Receive, send: Send) -> Awaitable[None]:
        """Answer from what is held, or hold what is answered."""
        if scope["method"] != "GET":
            return self._app(scope, receive, send)
        state = scope["state"]
        headers = state["headers"]
        consumer = state.get("consumer")
        key = (
            consumer and consumer.name,
            scope["raw_path"],
            scope["query_string"],
            headers.get(b"accept"),
            headers.get(b"accept-encoding"),
            headers.get(b"origin"),
        )
        entry = self._held.get(key)
        if entry is None or b"cache-control" in headers or b"pragma" in headers:
            return self._ask(scope, receive, send, key)
        now = self._clock()
        if now >= entry.lifetime.until or (entry.consumer is not consumer and entry.consumer != consumer):
            self._drop(key)
            return self._ask(scope, receive, send, key)
        self._held.move_to_end(key)
        return self._repeat(scope, send, entry, now)

    async def _repeat(self, scope: HTTPScope, send: Send, entry: Entry, now: float) -> None:
        lifetime = entry.lifetime
        self._tally.repeats += 1
        scope["path_template"] = entry.route
        status, kept, body = 200, entry.whole, entry.body
        asked = scope["state"]["headers"].get(b"if-none-match")
        if asked is not None and matches(asked.decode("latin-1"), entry.etag.decode()):
            status, kept, body = 304, entry.unchanged, b""
        age = now - lifetime.as_of
        headers = [
            *kept,
            (b"age", b"%d" % age if age > 0 else b"0"),
            (b"cache-status", b"callbutton-gateway; hit; ttl=%d" % (lifetime.fresh_until - now)),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _ask(self, scope: HTTPScope, receive: Receive, send: Send, key: tuple[object, ...]) -> None:
        headers: Headers = []

        async def keep(message: Message) -> None:
            nonlocal headers
            if message["type"] == "http.response.start":
                headers = list(message["headers"]) if message["status"] == 200 else []
            await send(message)  # the edge adds to the headers
            if headers and message["type"] == "http.response.body":
                lifetime = scope["state"].get("lifetime")
                if lifetime is not None and not message.get("more_body") and len(message["body"]) <= LARGEST:
                    self._keep(scope, key, headers, message["body"], lifetime)
                headers = []

        await self._app(scope, receive, keep)

    def _keep(
        self, scope: HTTPScope, key: tuple[object, ...], headers: Headers, body: bytes, lifetime: Lifetime
    ) -> None:
        kept = [(name.lower(), value) for name, value in headers if name.lower() not in MADE_ANEW]
        etag = dict(kept).get(b"etag")
        if etag is None:
            return
        until = min(lifetime.until, lifetime.fresh_until, self._clock() + LONGEST)
        entry = Entry(
            scope["state"].get("consumer"),
            str(scope.get("path_template")),
            etag,
            kept,
            [pair for pair in kept if pair[0] not in OF_BODY],
            body,
            Lifetime(lifetime.as_of, lifetime.fresh_until, until),
        )
        self._drop(key)
        self._held[key] = entry
        self._bytes += ENTRY_BYTES + len(body)
        while self._bytes > self._bound:
            self._drop(next(iter(self._held)))

    def _drop(self, key: tuple[object, ...]) -> None:
        if (entry := self._held.pop(key, None)) is not None:
            self._bytes -= ENTRY_BYTES + len(entry.body)


def matches(header: str, etag: str) -> bool:
    """Compare as If-None-Match does: weakly."""
    given = {tag.strip().removeprefix("W/") for tag in header.split(",")}
    return "*" in given or etag.removeprefix("W/") in given
