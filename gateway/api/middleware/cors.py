"""Cross-origin requests (CORS): pages of the configured origins may read responses.

Rules:
- This layer is outside every layer that refuses requests, and `RequestContextMiddleware` adds its headers. So pages can
  also read errors, and preflight requests need no credential.
- `Access-Control-Allow-Credentials` is never sent, because credentials are in headers, not in cookies.
- Requests without `Origin` are unchanged. Responses that shared caches may store have `Vary: Origin` anyway.
"""

from __future__ import annotations

from collections.abc import Awaitable

from litestar.types import HTTPScope, Receive, Send

from gateway.api.middleware.request_context import HTTPApp, context_of

ANY_ORIGIN = "*"
METHODS = b"GET, HEAD, OPTIONS"
ALLOWED_HEADERS = (
    b"Accept, Authorization, Cache-Control, If-None-Match, Last-Event-ID, Range, X-API-Key, X-Request-Id, "
    b"traceparent, tracestate, baggage"
)
EXPOSED_HEADERS = (
    b"Age, Cache-Status, Content-Disposition, ETag, Link, RateLimit, RateLimit-Policy, Retry-After, Server-Timing, "
    b"X-Request-Id"
)
MAX_AGE = b"3600"  # seconds for which browsers may cache a preflight; Chromium allows at most 7200


class Cors:
    """The ASGI layer."""

    def __init__(self, app: HTTPApp, origins: frozenset[str]) -> None:
        self._app = app
        self._origins = frozenset(map(str.lower, origins))  # as browsers send them

    def __call__(self, scope: HTTPScope, receive: Receive, send: Send) -> Awaitable[None]:
        """Answer a preflight request, or add CORS headers to the response."""
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
