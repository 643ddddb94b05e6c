"""Cross-origin requests: pages of the configured origins may read the responses.

Rules:
- It stands outside every layer that refuses requests, and its headers are added by the outermost layer: pages can read
  refusals and crashes, and preflights need no credential.
- `Access-Control-Allow-Credentials` is never sent: keys travel in headers, not in cookies.
- A request without `Origin` passes untouched. Responses that shared caches may store say `Vary: Origin` themselves.
"""

from __future__ import annotations

from collections.abc import Awaitable

from litestar.types import HTTPScope, Receive, Send

from gateway.api.middleware.request_context import HTTPApp, context_of

ANY_ORIGIN = "*"
METHODS = b"GET, HEAD, OPTIONS"
ALLOWED_HEADERS = (
    b"Accept, Authorization, Cache-Control, If-None-Match, Range, X-API-Key, X-Request-Id, "
    b"traceparent, tracestate, baggage"
)
EXPOSED_HEADERS = (
    b"Age, Cache-Status, Content-Disposition, ETag, Link, RateLimit, RateLimit-Policy, Retry-After, Server-Timing, "
    b"X-Request-Id"
)
MAX_AGE = b"3600"  # seconds for which a browser remembers a preflight; Chromium allows 7200


class Cors:
    """An ASGI layer that answers preflights and marks responses."""

    def __init__(self, app: HTTPApp, origins: frozenset[str]) -> None:
        self._app = app
        self._origins = origins

    def __call__(self, scope: HTTPScope, receive: Receive, send: Send) -> Awaitable[None]:
        """Answer a preflight, or mark the response to a request with `Origin`."""
        context = context_of(scope)
        origin = context.headers.get(b"origin")
        if origin is None:
            return self._app(scope, receive, send)
        context.response_headers.append((b"vary", b"Origin"))
        any_origin = ANY_ORIGIN in self._origins
        if any_origin or origin.decode("latin-1") in self._origins:
            context.response_headers.append((b"access-control-allow-origin", b"*" if any_origin else origin))
            if scope["method"] == "OPTIONS" and b"access-control-request-method" in context.headers:
                return self._answer_preflight(send)
            context.response_headers.append((b"access-control-expose-headers", EXPOSED_HEADERS))
        return self._app(scope, receive, send)

    async def _answer_preflight(self, send: Send) -> None:
        headers = [
            (b"access-control-allow-methods", METHODS),
            (b"access-control-allow-headers", ALLOWED_HEADERS),
            (b"access-control-max-age", MAX_AGE),
        ]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
