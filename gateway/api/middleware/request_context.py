"""The outermost layer: the request context, metrics, the access log, and a problem for every unexpected error.

Rules:
- It is outside Litestar, whose own middleware does not see 404 and 405.
- It combines repeated header fields (RFC 9110, section 5.3). No other layer sees them as they came.
- Logs and labels contain route templates, never paths or queries, because client codes are telephone numbers.
- Bodies are sent in chunks, so that a slow client does not fill the buffer of the server.
- While the process shuts down, every response closes its connection.
"""

from __future__ import annotations

import itertools
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPResponseBodyEvent, HTTPScope, Message, Receive, Scope, Send
from msgspec import Struct

from gateway import tracing
from gateway.access import Consumer
from gateway.api import problems
from gateway.api.negotiation import Headers
from gateway.logs import AccessEntry, AccessLog
from gateway.metrics import Metrics
from gateway.shutdown import Shutdown

LOGGER = logging.getLogger(__name__)
REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
METHODS = {"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"}  # other methods share the label `other`
SECURITY_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))
CLOSE_HEADERS = ((b"connection", b"close"),)
CHUNK_SIZE = 64 * 1024  # bytes; uvicorn's high-water mark for unsent data
CLIENT_CLOSED = 499  # nginx's status for a client that disconnects before the response
HTTPApp = Callable[[HTTPScope, Receive, Send], Awaitable[None]]  # an inner layer; it gets HTTP requests only


class Lifetime(Struct, frozen=True):
    """For how long a response may be reused. Its newest data is of `as_of`; all in seconds since 1970."""

    as_of: float
    fresh_until: float
    until: float


class RequestContext(Struct):
    """The state of one request, shared by layers and handlers."""

    request_id: str
    headers: dict[bytes, bytes]  # by lower-case name; repeated fields are combined (RFC 9110, section 5.3)
    started: float  # by `time.perf_counter`, like `read_finished`
    consumer: Consumer | None = None
    response_headers: Headers = []  # added to every response, whichever layer sends it
    read_finished: float = 0  # when the cache had been read
    lifetime: Lifetime | None = None  # set by a handler whose response may be reused
    release: Callable[[], None] | None = None  # called at the end of the request, to free its export slot
    is_head: bool = False  # a HEAD request: the body is not sent
    aborted: bool = False  # the stream ended early because of an error that is already logged

    def header(self, name: bytes) -> str:
        """The value of a request header; empty if the request does not have it."""
        return self.headers.get(name, b"").decode("latin-1")


def context_of(scope: Scope) -> RequestContext:
    """The context of a request."""
    context: RequestContext = scope["state"]["context"]
    return context


class RequestContextMiddleware:
    """The ASGI application. `lifespan` handles start and stop; `operator` is the application of the metrics port."""

    operator: RequestContextMiddleware | None = None

    def __init__(
        self,
        app: HTTPApp,
        lifespan: ASGIApp,
        metrics: Metrics,
        access_log: AccessLog,
        shutdown: Shutdown,
        route_of: Callable[[str], str],
    ) -> None:
        self._route_of = route_of
        self.shutdown = shutdown
        self._app = app
        self._lifespan = lifespan
        self._metrics = metrics
        self._access_log = access_log
        self._process = secrets.token_hex(8)
        self._numbers = itertools.count()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != ScopeType.HTTP:
            await self._lifespan(scope, receive, send)
        else:
            scope["headers"] = list(combine_fields(scope["headers"]).items())
            with tracing.span("request", headers=scope["headers"]) as span:
                await self._serve(scope, receive, send, span)

    async def _serve(self, scope: HTTPScope, receive: Receive, send: Send, span: tracing.Span | None) -> None:
        headers = dict(scope["headers"])
        request_id, started = self._request_id(headers.get(b"x-request-id")), time.perf_counter()
        context = RequestContext(request_id, headers, started)
        scope.setdefault("state", {})["context"] = context
        status, cache = CLIENT_CLOSED, ""

        def send_with_headers(message: Message) -> Awaitable[None]:
            nonlocal status, cache
            if message["type"] == "http.response.start":
                status, cache = message["status"], cache_status(message["headers"])
                closing = CLOSE_HEADERS if self.shutdown.begun.is_set() else ()
                own = (b"x-request-id", request_id.encode())
                message["headers"] = [*message["headers"], *context.response_headers, *SECURITY_HEADERS, *closing, own]
            elif message["type"] == "http.response.body" and len(message["body"]) > CHUNK_SIZE:
                return send_in_chunks(message, send)
            return send(message)

        requests = self._metrics.requests
        requests.in_flight += 1
        try:
            await self._app(scope, receive, send_with_headers)
        except Exception:
            if context.aborted:
                return  # without a last chunk, so the server closes the connection and the client notices
            LOGGER.exception("request crashed", extra={"fields": {"requestId": request_id}})
            if status != CLIENT_CLOSED:
                raise  # the response has begun, so the connection must be closed
            await problems.send_problem(send_with_headers, problems.INTERNAL, scope["path"], request_id)
        finally:
            if context.release is not None:
                context.release()
            seconds = time.perf_counter() - started
            method = scope["method"] if scope["method"] in METHODS else "other"
            route = str(scope.get("path_template") or self._route_of(scope["path"]))
            requests.in_flight -= 1
            consumer = context.consumer
            requests.add(method, route, status, seconds, consumer.label if consumer else "")
            name, trace = consumer.name if consumer else "", tracing.trace_id()
            self._access_log.write(
                AccessEntry(time.time(), request_id, method, route, status, seconds, name, cache, trace)
            )
            if span is not None:
                span.update_name(f"{method} {route}")
                span.set_attributes({"http.request.method": method, "http.route": route, "request.id": request_id})
                span.set_attribute("http.response.status_code", status)

    def _request_id(self, given: bytes | None) -> str:
        if given is not None and (text := given.decode("latin-1")) and REQUEST_ID.fullmatch(text):
            return text
        return f"{self._process}{next(self._numbers):010x}"


def combine_fields(fields: Any) -> dict[bytes, bytes]:  # noqa: ANN401 - a list, of which ASGI promises an iterable only
    """The header fields of a request by name. Repeated fields are combined (RFC 9110, section 5.3)."""
    headers: dict[bytes, bytes] = dict(fields)
    if len(headers) != len(fields):
        headers = {name: b", ".join([value for other, value in fields if other == name]) for name in headers}
    return headers


def cache_status(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The word of `Cache-Status` for the access log: hit, stale, partial or miss; empty without the field."""
    for name, value in headers:
        if name.lower() == b"cache-status":
            _, word, *others = value.decode("latin-1").split("; ")
            return "stale" if any(other.startswith("ttl=-") for other in others) else word.removeprefix("fwd=")
    return ""


async def send_in_chunks(message: HTTPResponseBodyEvent, send: Send) -> None:
    """Send a body in chunks, each when the buffer of the server has room for it."""
    body, more = message["body"], message["more_body"]
    for start in range(0, len(body), CHUNK_SIZE):
        more_body = more or start + CHUNK_SIZE < len(body)
        await send({"type": "http.response.body", "body": body[start : start + CHUNK_SIZE], "more_body": more_body})
