"""Cross-origin requests: pages of the origins that the operator named may read the answers.

Rules: it stands around authentication, so that refusals can be read too, and preflights need no credentials. Those
of the browser are never allowed: keys travel in headers.
"""

from __future__ import annotations

from litestar.types import HTTPScope, Message, Receive, Send

from gateway.api.negotiation import Headers, HTTPApp, with_vary

EVERY_ORIGIN = "*"
METHODS = b"GET, HEAD, OPTIONS"
REQUEST_HEADERS = b"Accept, Authorization, Cache-Control, If-None-Match, Range, X-API-Key, X-Request-Id"
SHOWN = (
    b"Age, Cache-Status, Content-Disposition, ETag, Link, RateLimit, RateLimit-Policy, Retry-After, Server-Timing, "
    b"X-Request-Id"
)
REMEMBERED = b"3600"  # seconds for which a browser need not ask again


class Cors:
    """An ASGI application around another."""

    def __init__(self, app: HTTPApp, origins: frozenset[str]) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        """Answer preflights, and mark answers."""
        asked = scope["state"]["headers"]
        marks = self._marks(asked.get(b"origin"))
        if marks and scope["method"] == "OPTIONS" and b"access-control-request-method" in asked:
            headers: Headers = [
                *marks,
                (b"access-control-allow-methods", METHODS),
                (b"access-control-allow-headers", REQUEST_HEADERS),
                (b"access-control-max-age", REMEMBERED),
                (b"vary", b"Origin"),
            ]
            await send({"type": "http.response.start", "status": 204, "headers": headers})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                shown = [(b"access-control-expose-headers", SHOWN)] if marks else []
                message["headers"] = with_vary([*message["headers"], *marks, *shown], "Origin")
            await send(message)

        await self._app(scope, receive, marked)

    def _marks(self, origin: bytes | None) -> Headers:
        """The origin that may read the answer."""
        if origin is None:
            return []
        if EVERY_ORIGIN in self._origins:
            return [(b"access-control-allow-origin", b"*")]
        allowed = origin.decode("latin-1") in self._origins
        return [(b"access-control-allow-origin", origin)] if allowed else []
