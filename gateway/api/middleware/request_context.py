"""The outermost layer: the request context, metrics, the access log, and a problem for every unexpected error.

Rules:
- It is outside Litestar, whose own middleware does not see 404 and 405.
- It combines repeated header fields (RFC 9110, section 5.3). No other layer sees them as they came.
- Logs and labels contain route templates, never paths or queries, because client codes are telephone numbers.
- HEAD is GET without the body: the layers inside see GET. Every path supports both, and OPTIONS.
- Bodies are sent in chunks, so that a slow client does not fill the buffer of the server.
- While the process shuts down, every response closes its connection.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any

from litestar.enums import ScopeType
from litestar.types import (
    ASGIApp,
    HTTPResponseBodyEvent,
    HTTPResponseStartEvent,
    HTTPScope,
    Message,
    Receive,
    Scope,
    Send,
)
from msgspec import Struct

from gateway import tracing
from gateway.access import Consumer, Key, Kind
from gateway.api import problems
from gateway.api.negotiation import Headers
from gateway.errors import Overloaded, RateLimited
from gateway.logs import AccessEntry, AccessLog
from gateway.metrics import Metrics
from gateway.rates import Shares
from gateway.shutdown import Shutdown

LOGGER = logging.getLogger(__name__)
REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
ALLOWED = b"GET, HEAD, OPTIONS"  # on every path; Litestar would leave HEAD out
METHODS = {"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"}  # other methods share the label `other`
SECURITY_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))
CLOSE_HEADERS = ((b"connection", b"close"),)
CHUNK_SIZE = 64 * 1024  # bytes; uvicorn's high-water mark for unsent data
CLIENT_CLOSED = 499  # nginx's status for a client that disconnects before the response
HTTPApp = Callable[[HTTPScope, Receive, Send], Awaitable[None]]  # an inner layer; it gets HTTP requests only


class Lifetime(Struct, frozen=True):
    """For how long a response may be reused: until `until`, or until `changed` says that its calls have changed.

    Its newest data is of `as_of`; all in seconds since 1970.
    """

    as_of: float
    fresh_until: float
    until: float
    changed: Callable[[], bool] = lambda: False


class RequestContext(Struct):
    """The state of one request, shared by layers and handlers."""

    request_id: str
    headers: dict[bytes, bytes]  # by lower-case name; repeated fields are combined (RFC 9110, section 5.3)
    started: float  # by `time.perf_counter`, like `read_finished`
    consumer: Consumer | None = None
    current: Callable[[], Consumer | None] = lambda: None  # the consumer of the same credential now; None after its end
    rights_end: float = math.inf  # when a bearer token ends, in seconds since 1970
    address: str = ""  # of the client, or of a proxy in front of the gateway
    response_headers: Headers = []  # added to every response, whichever layer sends it
    read_finished: float = 0  # when the cache had been read
    lifetime: Lifetime | None = None  # set by a handler whose response may be reused
    held: dict[Shares, Callable[[], None]] = {}  # the parts that the request holds, and how to give each back
    is_head: bool = False  # a HEAD request: the body is not sent
    aborted: bool = False  # the stream ended early because of an error that is already logged

    def header(self, name: bytes) -> str:
        """The value of a request header; empty if the request does not have it."""
        return self.headers.get(name, b"").decode("latin-1")

    @property
    def source(self) -> str:
        """The network of the client: its IPv4 address, or the first 64 bits of its IPv6 address."""
        return source_of(self.address)

    @property
    def party(self) -> Key:
        """The consumer to which the request counts; without authentication the network of the client."""
        consumer = self.consumer
        return (Kind.ADDRESS, self.source) if consumer is None or consumer.kind is Kind.ADDRESS else consumer.key

    def hold(self, shares: Shares, amount: int = 1) -> None:
        """Hold a part of what consumers share until the request ends; once only. Raises RateLimited, Overloaded."""
        if shares not in self.held:
            self.held[shares] = shares.take(self.party, amount)

    def release(self, shares: Shares) -> None:
        """Give a part back before the request ends, if it is held."""
        self.held.pop(shares, lambda: None)()


@lru_cache(maxsize=1000)
def source_of(address: str) -> str:
    """The network from which a client sends: one IPv4 address, or 64 bits of IPv6, which one customer has."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        return str(parsed.ipv4_mapped or ip_network((parsed, 64), strict=False).network_address)
    return str(parsed)


def context_of(scope: Scope) -> RequestContext:
    """The context of a request."""
    context: RequestContext = scope["state"]["context"]
    return context


class ResponseSender:
    """Sends the response to a request: adds the headers that every response has, and sends large bodies in chunks.

    A large body that was rendered whole is counted in `unsent` until it is sent, and refused when consumers have too
    many unread. `status` is CLIENT_CLOSED until the response begins.
    """

    def __init__(self, context: RequestContext, path: str, send: Send, unsent: Shares, closing: asyncio.Event) -> None:
        self.status = CLIENT_CLOSED
        self.cache = ""  # the word of `Cache-Status` for the access log
        self._context = context
        self._path = path
        self._send = send
        self._unsent = unsent
        self._closing = closing
        self._start: HTTPResponseStartEvent | None = None  # held back until the first part of the body

    async def send(self, message: Message) -> None:
        """Send a message of the layers inside."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        if message["type"] != "http.response.body":
            await self._send(message)
            return
        if self._context.is_head:
            message = {"type": "http.response.body", "body": b"", "more_body": message["more_body"]}
        size = len(message["body"])
        if self._start is not None:
            start, self._start = self._start, None
            whole = not message["more_body"]  # streams are counted separately
            if size > CHUNK_SIZE and whole and (error := self._no_room(size)):
                await problems.send_error(self.send, error, self._path, self._context.request_id)
                return
            self.status, self.cache = start["status"], cache_status(start["headers"])
            start["headers"] = self._completed(start["headers"])
            await self._send(start)
        if size > CHUNK_SIZE:
            await send_in_chunks(message, self._send)
        else:
            await self._send(message)

    def _completed(self, headers: Iterable[tuple[bytes, bytes]]) -> Headers:
        if self.status in (204, 405):
            headers = [(name, ALLOWED if name == b"allow" else value) for name, value in headers]
        return [
            *headers,
            *self._context.response_headers,
            *SECURITY_HEADERS,
            *(CLOSE_HEADERS if self._closing.is_set() else ()),
            (b"x-request-id", self._context.request_id.encode()),
        ]

    def _no_room(self, size: int) -> RateLimited | Overloaded | None:
        """Hold the bytes of a body until they are sent. Returns an error if consumers read too slowly for that."""
        try:
            self._context.hold(self._unsent, size)
        except (RateLimited, Overloaded) as error:
            return error
        return None


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
        unsent: Shares,
        route_of: Callable[[str], str],
    ) -> None:
        self._route_of = route_of
        self.shutdown = shutdown
        self._app = app
        self._lifespan = lifespan
        self._metrics = metrics
        self._access_log = access_log
        self._unsent = unsent
        self._process = secrets.token_hex(8)
        self._numbers = itertools.count()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != ScopeType.HTTP:
            await self._lifespan(scope, receive, send)
        else:
            headers = combine_fields(scope["headers"])
            scope["headers"] = list(headers.items())
            with tracing.span("request", headers=scope["headers"]) as span:
                await self._serve(scope, headers, receive, send, span)

    async def _serve(
        self, scope: HTTPScope, headers: dict[bytes, bytes], receive: Receive, send: Send, span: tracing.Span | None
    ) -> None:
        request_id, started = self._request_id(headers.get(b"x-request-id")), time.perf_counter()
        context = RequestContext(request_id, headers, started, address=(scope["client"] or ("",))[0])
        scope.setdefault("state", {})["context"] = context
        inner, context.is_head = scope, scope["method"] == "HEAD"
        if context.is_head:  # a copy, because the server reads the method of its scope too
            inner = scope.copy()
            inner["method"] = "GET"
        response = ResponseSender(context, scope["path"], send, self._unsent, self.shutdown.begun)
        requests = self._metrics.requests
        requests.in_flight += 1
        try:
            await self._app(inner, receive, response.send)
        except Exception:
            if context.aborted:
                return  # without a last chunk, so the server closes the connection and the client notices
            LOGGER.exception("request crashed", extra={"fields": {"requestId": request_id}})
            if response.status != CLIENT_CLOSED:
                raise  # the response has begun, so the connection must be closed
            await problems.send_problem(response.send, problems.INTERNAL, scope["path"], request_id)
        finally:
            for give_back in context.held.values():
                give_back()
            seconds = time.perf_counter() - started
            method = scope["method"] if scope["method"] in METHODS else "other"
            route = str(inner.get("path_template") or self._route_of(scope["path"]))
            requests.in_flight -= 1
            consumer = context.consumer
            requests.add(method, route, response.status, seconds, consumer.label if consumer else "")
            name, trace = consumer.name if consumer else "", tracing.trace_id()
            entry = AccessEntry(
                time.time(), request_id, method, route, response.status, seconds, name, response.cache, trace
            )
            self._access_log.write(entry)
            if span is not None:
                span.update_name(f"{method} {route}")
                span.set_attributes({"http.request.method": method, "http.route": route, "request.id": request_id})
                span.set_attribute("http.response.status_code", response.status)

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
    value = dict(headers).get(b"cache-status", b"").decode("latin-1")
    return "stale" if "; ttl=-" in value else value.partition("; ")[2].partition("; ")[0].removeprefix("fwd=")


async def send_in_chunks(message: HTTPResponseBodyEvent, send: Send) -> None:
    """Send a body in chunks, each when the buffer of the server has room for it."""
    body, more = message["body"], message["more_body"]
    for start in range(0, len(body), CHUNK_SIZE):
        more_body = more or start + CHUNK_SIZE < len(body)
        await send({"type": "http.response.body", "body": body[start : start + CHUNK_SIZE], "more_body": more_body})
