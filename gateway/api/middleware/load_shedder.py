"""Load shedding: refuse requests that cannot be served, and cancel requests whose client disconnects.

Rules:
- Requests that wait are limited where the wait begins (`RequestContext.hold`), so cached responses are always sent.
- A query string has at most `MAX_QUERY` bytes.
- When a client disconnects, its request is cancelled and releases its flights, so POSTs that are not sent yet are
  dropped. Only requests that take longer than `POLL_INTERVAL` are watched.
- While the process shuts down, `/readyz` is 503 and all other requests are served.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from litestar.types import HTTPScope, Receive, Send

from gateway.api import problems
from gateway.api.middleware.request_context import HTTPApp, context_of
from gateway.shutdown import Shutdown

PROBE_PATHS = frozenset(("/healthz", "/readyz", "/metrics"))
MAX_QUERY = 16 * 1024  # bytes; a cursor has a few hundred, 50 client codes have 4,000
POLL_INTERVAL = 0.05  # seconds; a response from the cache takes about 1 ms, so it is never watched
Request = asyncio.Task[object]  # the task that serves a request


class LoadShedder:
    """The ASGI layer."""

    def __init__(self, app: HTTPApp, shutdown: Shutdown) -> None:
        self._app = app
        self._shutdown = shutdown
        self._in_progress: dict[Request, Receive] = {}
        self._polled: set[Request] = set()  # the requests in progress at the last poll
        self._watchers: dict[Request, asyncio.Task[None]] = {}
        self._disconnected: set[Request] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self, scope: HTTPScope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve a request, or refuse it."""
        if scope["path"] in PROBE_PATHS:
            if scope["path"] == "/readyz" and self._shutdown.begun.is_set():
                return self._refuse(scope, send, problems.OVERLOADED, "this replica is shutting down")
            return self._app(scope, receive, send)
        if len(scope["query_string"]) > MAX_QUERY:
            return self._refuse(scope, send, problems.INVALID, f"the query string is longer than {MAX_QUERY} bytes")
        return self._serve(scope, receive, send)

    def _refuse(self, scope: HTTPScope, send: Send, kind: problems.ProblemType, detail: str) -> Awaitable[None]:
        headers = ((b"retry-after", b"1"),) if kind is problems.OVERLOADED else ()
        return problems.send_problem(send, kind, scope["path"], context_of(scope).request_id, detail, headers)

    async def _serve(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        request: Any = asyncio.current_task()
        self._in_progress[request] = receive
        if self._timer is None:
            self._poll_later()
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            if request not in self._disconnected or request.uncancel():
                raise
        finally:
            del self._in_progress[request]
            self._disconnected.discard(request)
            if (watcher := self._watchers.pop(request, None)) is not None:
                watcher.cancel()

    def _poll_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(POLL_INTERVAL, self._poll)

    def _poll(self) -> None:
        """Start watching the requests that were already in progress at the last poll."""
        self._timer = None
        for request in self._polled & self._in_progress.keys() - self._watchers.keys():
            watcher = asyncio.get_running_loop().create_task(self._watch(request, self._in_progress[request]))
            self._watchers[request] = watcher
        self._polled = set(self._in_progress)
        if self._polled:
            self._poll_later()

    async def _watch(self, request: Request, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._disconnected.add(request)
        request.cancel()
