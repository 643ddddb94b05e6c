"""HEAD is GET without the body, on every path, and `Allow` says so.

The state of the request has `head`, for whoever would write what nobody reads.
"""

from __future__ import annotations

from litestar.types import HTTPScope, Message, Receive, Send

from gateway.api.negotiation import HTTPApp


class Methods:
    """An ASGI application around another."""

    def __init__(self, app: HTTPApp) -> None:
        self._app = app

    async def __call__(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        """Answer HEAD from GET."""
        head = scope["method"] == "HEAD"

        async def without_body(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    (name, _allowed(value) if name.lower() == b"allow" else value) for name, value in message["headers"]
                ]
            elif head and message["type"] == "http.response.body":
                if message["more_body"]:
                    return
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        if not head:
            await self._app(scope, receive, without_body)
            return
        scope["state"]["head"] = True
        inside = scope.copy()  # the server looks at the method, too
        inside["method"] = "GET"
        try:
            await self._app(inside, receive, without_body)
        finally:
            if "path_template" in inside:
                scope["path_template"] = inside["path_template"]


def _allowed(value: bytes) -> bytes:
    methods = {method.strip() for method in value.split(b",")}
    return b", ".join(sorted(methods | ({b"HEAD", b"OPTIONS"} if b"GET" in methods else set())))
