"""Our own door: what is refused before anybody asks who it is, and the end for who has left.

Rules:
- So many requests at a time; one more is refused at once (503, Retry-After) rather than made to wait for all of them.
  What an operator asks (health, readiness, metrics) is let in always.
- A query is of bounded length.
- Who hangs up is not waited for: the server cancels the request, with `left` in its state, which leaves the flights
  that it waits for. What of them is not sent yet need not be. Here that ends in peace.
- Once told to stop, `/readyz` says so; all else is answered as before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from litestar.types import HTTPScope, Receive, Send

from gateway.api import problems
from gateway.api.negotiation import HTTPApp

ALWAYS = frozenset(("/healthz", "/readyz", "/metrics"))
MOST_QUERY = 16 * 1024  # bytes


class Door:
    """An ASGI application around another; lets in `most` requests at a time."""

    def __init__(self, app: HTTPApp, most: int) -> None:
        self._app = app
        self._most = most
        self._inside = 0
        self._stopping = False

    def stop(self) -> None:
        """Tell load balancers that this replica is about to end."""
        self._stopping = True

    def __call__(self, scope: HTTPScope, receive: Receive, send: Send) -> Awaitable[None]:
        """Let a request in, or refuse it."""
        if scope["path"] in ALWAYS:
            if self._stopping and scope["path"] == "/readyz":
                return self._refuse(scope, send, problems.OVERLOADED, "this replica is about to stop")
            return self._app(scope, receive, send)
        if self._inside >= self._most:
            return self._refuse(scope, send, problems.OVERLOADED, "too many requests are under way")
        if len(scope["query_string"]) > MOST_QUERY:
            return self._refuse(scope, send, problems.INVALID, f"the query is longer than {MOST_QUERY} bytes")
        return self._answer(scope, receive, send)

    def _refuse(self, scope: HTTPScope, send: Send, kind: problems.Kind, detail: str) -> Awaitable[None]:
        headers = ((b"retry-after", b"1"),) if kind is problems.OVERLOADED else ()
        return problems.send_problem(send, kind, scope["path"], scope["state"]["request_id"], detail, headers)

    async def _answer(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        self._inside += 1
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            answering = asyncio.current_task()
            if not scope["state"].get("left") or answering is None or answering.uncancel():
                raise
        finally:
            self._inside -= 1
