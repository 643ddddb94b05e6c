"""Load shedding: refusals before authentication, and the end of requests whose client disconnects.

Rules:
- At most `most` requests are in progress; one more is refused at once (503, Retry-After) rather than made to wait. What
  an operator asks (health, readiness, metrics) is always let in.
- A query is of bounded length.
- A request whose client disconnects is cancelled, which leaves the flights that it waits for: POSTs that are not sent
  yet are dropped. A request is watched for that once it takes longer than `LOOK`; most are over sooner.
- Once the process is about to stop, `/readyz` says so; all else is answered as before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import cast

from litestar.types import HTTPScope, Receive, Send

from gateway.api import problems
from gateway.api.negotiation import HTTPApp
from gateway.shutdown import Shutdown

ALWAYS = frozenset(("/healthz", "/readyz", "/metrics"))
MOST_QUERY = 16 * 1024  # bytes
LOOK = 0.05  # seconds between looks at the requests in progress; an answer from the cache takes 1 ms
Request = asyncio.Task[object]  # a request, as the task that answers it


class Door:
    """An ASGI application around another; lets in `most` requests at a time."""

    def __init__(self, app: HTTPApp, most: int, shutdown: Shutdown) -> None:
        self._app = app
        self._most = most
        self._shutdown = shutdown
        self._inside: dict[Request, Receive] = {}
        self._seen: set[Request] = set()  # those of `_inside` at the last look
        self._watchers: dict[Request, asyncio.Task[None]] = {}
        self._left: set[Request] = set()  # those whose client has disconnected
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self, scope: HTTPScope, receive: Receive, send: Send) -> Awaitable[None]:
        """Let a request in, or refuse it."""
        if scope["path"] in ALWAYS:
            if scope["path"] == "/readyz" and self._shutdown.begun.is_set():
                return self._refuse(scope, send, problems.OVERLOADED, "this replica is about to stop")
            return self._app(scope, receive, send)
        if len(self._inside) >= self._most:
            return self._refuse(scope, send, problems.OVERLOADED, "too many requests are in progress")
        if len(scope["query_string"]) > MOST_QUERY:
            return self._refuse(scope, send, problems.INVALID, f"the query is longer than {MOST_QUERY} bytes")
        return self._answer(scope, receive, send)

    def _refuse(self, scope: HTTPScope, send: Send, kind: problems.Kind, detail: str) -> Awaitable[None]:
        headers = ((b"retry-after", b"1"),) if kind is problems.OVERLOADED else ()
        return problems.send_problem(send, kind, scope["path"], scope["state"]["request_id"], detail, headers)

    async def _answer(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        request = cast("Request", asyncio.current_task())
        self._inside[request] = receive
        if self._timer is None:
            self._look_later()
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            if request not in self._left or request.uncancel():
                raise
        finally:
            del self._inside[request]
            self._left.discard(request)
            if (watcher := self._watchers.pop(request, None)) is not None:
                watcher.cancel()

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LOOK, self._look)

    def _look(self) -> None:
        """Watch the requests that were here at the last look."""
        self._timer = None
        for request in self._seen & self._inside.keys() - self._watchers.keys():
            watcher = asyncio.get_running_loop().create_task(self._watch(request, self._inside[request]))
            self._watchers[request] = watcher
        self._seen = set(self._inside)
        if self._seen:
            self._look_later()

    async def _watch(self, request: Request, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._left.add(request)
        request.cancel()
