"""The outermost layer: request ids, metrics, the access log, and a problem for whatever escapes.

It sends bodies in pieces, so that what the client has not taken waits here and not in the server's buffer. Once the
process is about to stop, every answer closes its connection. It reads the headers once for all layers inside
(`state["headers"]`, the last of each name), and adds those that a layer leaves in `state["added_headers"]`. It wraps
Litestar, whose 404 and 405 are raised before its middleware. Logs and labels hold route templates, never paths or
queries: client codes are telephone numbers.
"""

from __future__ import annotations

import itertools
import logging
import re
import secrets
import time
from collections.abc import Awaitable

from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPResponseBodyEvent, HTTPScope, Message, Receive, Scope, Send

from gateway import tracing
from gateway.access import Consumer
from gateway.api import problems
from gateway.api.door import Door
from gateway.logs import AccessLog
from gateway.metrics import Metrics
from gateway.shutdown import Shutdown

LOGGER = logging.getLogger(__name__)
REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
METHODS = {"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"}
SECURITY = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))  # of every answer
CLOSE = ((b"connection", b"close"),)
CHUNK_SIZE = 64 * 1024  # bytes of a body that are sent at a time; the server's buffer is as large
GONE = 499  # the client disconnected before the answer began; nginx's status for it


class Edge:
    """The ASGI application; behind the door is the rest. `operator` answers the metrics' port, if there is one."""

    operator: Edge | None = None

    def __init__(self, door: Door, rest: ASGIApp, metrics: Metrics, access_log: AccessLog, shutdown: Shutdown) -> None:
        self.shutdown = shutdown
        self._door = door
        self._rest = rest
        self._metrics = metrics
        self._access_log = access_log
        self._process = secrets.token_hex(8)
        self._numbers = itertools.count()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; what is not HTTP is the business of `rest`."""
        if scope["type"] != ScopeType.HTTP:
            await self._rest(scope, receive, send)
        else:
            with tracing.span("request", headers=scope["headers"]) as span:
                await self._serve(scope, receive, send, span)

    async def _serve(self, scope: HTTPScope, receive: Receive, send: Send, span: tracing.Span | None) -> None:
        state = scope.setdefault("state", {})
        state["headers"] = headers = dict(scope["headers"])
        request_id = self._request_id(headers.get(b"x-request-id"))
        state["request_id"] = request_id
        status, began = GONE, time.perf_counter()

        def send_with_id(message: Message) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                added = state.get("added_headers", ())
                closing = CLOSE if self.shutdown.begun.is_set() else ()
                own = (b"x-request-id", request_id.encode())
                message["headers"] = [*message["headers"], *added, *SECURITY, *closing, own]
            elif message["type"] == "http.response.body" and len(message["body"]) > CHUNK_SIZE:
                return send_in_chunks(message, send)
            return send(message)

        requests = self._metrics.requests
        requests.under_way += 1
        try:
            await self._door(scope, receive, send_with_id)
        except Exception:
            if state.get("broken_off"):
                return  # without the end of the answer: the server closes the connection, and the consumer sees it
            LOGGER.exception("request crashed", extra={"fields": {"requestId": request_id}})
            if status != GONE:
                raise  # the answer has begun: breaking it off is all that can be said
            await problems.send_problem(send_with_id, problems.INTERNAL, scope["path"], request_id)
        finally:
            seconds = time.perf_counter() - began
            method = scope["method"] if scope["method"] in METHODS else "other"
            route = "unmatched" if status == 404 else str(scope.get("path_template") or "unmatched")
            requests.under_way -= 1
            consumer: Consumer | None = state.get("consumer")
            requests.add(method, route, status, seconds, consumer.label if consumer else "")
            self._access_log.write(time.time(), request_id, method, route, status, seconds, tracing.trace_id())
            if span is not None:
                span.update_name(f"{method} {route}")
                span.set_attributes({"http.request.method": method, "http.route": route, "request.id": request_id})
                span.set_attribute("http.response.status_code", status)

    def _request_id(self, given: bytes | None) -> str:
        if given is not None and (text := given.decode("latin-1")) and REQUEST_ID.fullmatch(text):
            return text
        return f"{self._process}{next(self._numbers):010x}"


async def send_in_chunks(message: HTTPResponseBodyEvent, send: Send) -> None:
    """Send a part of a body in pieces, each once the client has taken enough of those before."""
    body, more = message["body"], message["more_body"]
    for place in range(0, len(body), CHUNK_SIZE):
        last = place + CHUNK_SIZE >= len(body)
        await send(
            {
                "type": "http.response.body",
                "body": body[place : place + CHUNK_SIZE],
                "more_body": more or not last,
            }
        )
