"""HEAD requests: every path that supports GET supports HEAD, as GET without the body."""

from __future__ import annotations

from collections.abc import Awaitable

from litestar.types import HTTPScope, Message, Receive, Send

from gateway.api.middleware.request_context import HTTPApp, context_of


class HeadMiddleware:
    """The ASGI layer. It also adds HEAD and OPTIONS to `Allow`, which Litestar takes from the routes alone."""

    def __init__(self, app: HTTPApp) -> None:
        self._app = app

    def __call__(self, scope: HTTPScope, receive: Receive, send: Send) -> Awaitable[None]:
        """Answer HEAD, and complete `Allow` in responses to other methods."""
        if scope["method"] == "GET":
            return self._app(scope, receive, send)
        if scope["method"] == "HEAD":
            return self._head(scope, receive, send)

        def send_allowed(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    (name, _with_head(value) if name.lower() == b"allow" else value)
                    for name, value in message["headers"]
                ]
            return send(message)

        return self._app(scope, receive, send_allowed)

    async def _head(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        async def send_without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                if message["more_body"]:
                    return
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        context_of(scope).is_head = True
        inner = scope.copy()  # a copy, because the server reads the method of its scope too
        inner["method"] = "GET"
        try:
            await self._app(inner, receive, send_without_body)
        finally:
            if "path_template" in inner:
                scope["path_template"] = inner["path_template"]


def _with_head(value: bytes) -> bytes:
    methods = {method.strip() for method in value.split(b",")}
    return b", ".join(sorted(methods | ({b"HEAD", b"OPTIONS"} if b"GET" in methods else set())))
