"""One POST over httpx, with the timeouts of a flight kept by the network backend.

Rules:
- httpx's pool can wedge when requests are cancelled (encode/httpcore issue 1093), and its `read` timeout is per chunk.
  So the pool's network backend bounds every step by the time that the flight has left, and nothing is cancelled.
- A POST has `first_byte` seconds to the first byte of the answer, `idle` between bytes, and until an instant of the
  event loop's clock in all.
- Bodies are read in chunks of at most 64 KiB, decompressed by us, up to `max_bytes`; other tasks run between chunks.
- No redirect is followed, no cookie is kept, and no proxy is taken from the environment.
- httpcore's errors become ours in one place, by the table `ERRORS`.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import socket
import ssl
import zlib
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import httpcore
import httpx
from msgspec import Struct

from gateway import __version__
from gateway.errors import Obstacle, UpstreamError, UpstreamMalformed, UpstreamTimeout, UpstreamUnreachable

OBSTACLES = {
    Obstacle.NAME: "its host name cannot be resolved",
    Obstacle.REFUSED: "the port refuses connections",
    Obstacle.ROUTE: "there is no route to the address",
    Obstacle.TLS: "the TLS handshake failed",
    Obstacle.PROXY: "the proxy refuses it",
}
CHUNK_SIZE = 64 * 1024  # bytes of body between two turns of the event loop
READ_SIZE = 4 * CHUNK_SIZE  # bytes; what asyncio takes from a socket at once
KEEPALIVE = 5  # seconds that an idle connection is kept, as httpx keeps it
CHARSET = re.compile(r"""charset *= *["']?([A-Za-z0-9._:+-]{1,40})""", re.IGNORECASE)
SUPPORTED: tuple[list[str], ...] = ([], ["gzip"], ["x-gzip"])
CODINGS = frozenset(
    ("gzip", "x-gzip", "br", "compress", "dcb", "dcz", "deflate", "exi", "pack200-gzip", "x-compress", "zstd")
)
SECONDS = re.compile(r"\d{1,6}", re.ASCII)


class UpstreamLimits(Struct, frozen=True):
    """Timeouts in seconds, the most POSTs at a time, and the largest decoded body in bytes."""

    first_byte: float = 30
    idle: float = 15
    deadline: float = 300
    concurrency: int = 8
    max_bytes: int = 64 * 1024**2


class Timer:
    """The time that one request has left, and how far its answer has come."""

    def __init__(self, limits: UpstreamLimits, until: float) -> None:
        self._limits = limits
        self._until = until
        self._began = asyncio.get_running_loop().time()
        self.answering = False  # whether a byte of the answer has come
        self.closed = False  # whether the server has closed the connection
        self.received = 0  # bytes of body, decoded

    def left(self) -> float:
        """Seconds for the next step."""
        now = asyncio.get_running_loop().time()
        step = self._limits.idle if self.answering else self._limits.first_byte - (now - self._began)
        return max(0.001, min(self._until - now, step))


current_timer: ContextVar[Timer] = ContextVar("current_timer")  # of the request that this task makes


class TimedStream(httpcore.AsyncNetworkStream):
    """A connection on which every step ends with the flight's time."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        """Read some bytes."""
        timer = current_timer.get()
        data = await self._stream.read(max(max_bytes, READ_SIZE), timer.left())
        timer.answering, timer.closed = timer.answering or bool(data), not data
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        """Write all bytes."""
        await self._stream.write(buffer, current_timer.get().left())

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore.AsyncNetworkStream:
        """Begin TLS."""
        left = current_timer.get().left()
        return TimedStream(await self._stream.start_tls(ssl_context, server_hostname, left))

    def get_extra_info(self, info: str) -> Any:  # noqa: ANN401 - httpcore's own type
        """Look up a detail of the connection."""
        return self._stream.get_extra_info(info)


class TimedBackend(httpcore.AsyncNetworkBackend):
    """Makes connections that keep the flight's time, to the server or, if `to_proxy`, to a proxy."""

    def __init__(self, *, to_proxy: bool) -> None:
        self._backend = httpcore.AnyIOBackend()
        self._to_proxy = to_proxy

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect."""
        left = current_timer.get().left()
        try:
            return TimedStream(await self._backend.connect_tcp(host, port, left, local_address, socket_options))
        except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
            if self._to_proxy:
                raise httpcore.ProxyError from error
            raise


class Body(httpx.AsyncByteStream):
    """The body of an answer, as the network gives it. Raises UpstreamError."""

    def __init__(self, answer: httpcore.Response) -> None:
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        with translated_errors():
            async for data in self._answer.aiter_stream():
                yield data

    async def aclose(self) -> None:
        """Give the connection back, or close it if something of the answer is left."""
        await self._answer.aclose()


def _core_url(url: httpx.URL) -> httpcore.URL:
    return httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)


def parse_url(text: str, owner: str) -> httpx.URL:
    """Parse the URL of an `owner`, which the error names. Raises ValueError."""
    try:
        return httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ValueError(f"the address of the {owner} cannot be used: {error}") from error


@lru_cache(maxsize=1)
def _tls_context(_cert_file: str | None, _cert_dir: str | None) -> ssl.SSLContext:
    """The TLS context of the certificates that the environment names. Reading them takes 50 ms."""
    return httpx.create_ssl_context()


class TimedTransport(httpx.AsyncBaseTransport):
    """A transport for httpx over httpcore's pool. Each request keeps the time of `current_timer`.

    It is used without `httpx.AsyncClient`, whose cookies and redirects cost a quarter of a request.
    """

    def __init__(self, connections: int, proxy: str | None) -> None:
        tls = _tls_context(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))
        options: dict[str, Any] = {
            "ssl_context": tls,
            "max_connections": connections,
            "keepalive_expiry": KEEPALIVE,
            "network_backend": TimedBackend(to_proxy=bool(proxy)),
        }
        if proxy:
            via = httpx.Proxy(parse_url(proxy, "proxy"))
            options |= {"proxy_url": _core_url(via.url), "proxy_auth": via.raw_auth}
            options |= {"proxy_ssl_context": tls} if via.url.scheme == "https" else {}
        self.pool = httpcore.AsyncHTTPProxy(**options) if proxy else httpcore.AsyncConnectionPool(**options)

    async def aclose(self) -> None:
        """Close the connections."""
        await self.pool.aclose()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request, and return its response once the head has arrived. Raises UpstreamError."""
        url, headers = _core_url(request.url), request.headers.raw
        with translated_errors():
            answer = await self.pool.handle_async_request(
                httpcore.Request(request.method, url, headers=headers, content=request.stream)
            )
        return httpx.Response(answer.status, headers=answer.headers, stream=Body(answer))

    @asynccontextmanager
    async def stream(
        self, method: str, address: httpx.URL | str, headers: Mapping[str, str], content: bytes | None = None
    ) -> AsyncIterator[httpx.Response]:
        """Send a request, with the credentials that its address may hold. Raises UpstreamError, httpx.InvalidURL."""
        always = {"Accept": "*/*", "Connection": "keep-alive", "User-Agent": f"callbutton-gateway/{__version__}"}
        request = httpx.Request(method, address, headers={**always, **headers}, content=content)
        if request.url.userinfo:
            userinfo = f"{request.url.username}:{request.url.password}"
            request.headers["Authorization"] = f"Basic {b64encode(userinfo.encode()).decode()}"
        response = await self.handle_async_request(request)
        try:
            yield response
        finally:
            await response.aclose()


class Answer(Struct):
    """An answer whose body is still arriving."""

    status: int
    charset: str | None
    retry_after: float
    chunks: AsyncIterator[bytes]


class Transport:
    """POSTs to one address. Raises ValueError for one that cannot be used."""

    def __init__(self, url: str, limits: UpstreamLimits, proxy: str | None = None) -> None:
        self._url = parse_url(url, "upstream")
        self._limits = limits
        self.client = TimedTransport(limits.concurrency, proxy)

    async def close(self) -> None:
        """Close the connections."""
        await self.client.aclose()

    @asynccontextmanager
    async def post(self, body: bytes, until: float) -> AsyncIterator[Answer]:
        """POST. The answer must be complete at `until`, an instant of the event loop's clock. Raises UpstreamError."""
        timer = Timer(self._limits, until)
        token = current_timer.set(timer)
        headers = {"Content-Type": "text/xml; charset=utf-8", "Accept-Encoding": "gzip, identity"}
        try:
            async with self.client.stream("POST", self._url, headers, body) as response:
                named = CHARSET.search(response.headers.get("content-type", ""))
                wait = response.headers.get("retry-after", "0")
                yield Answer(
                    status=response.status_code,
                    charset=named[1] if named else None,
                    retry_after=float(wait) if SECONDS.fullmatch(wait) else math.inf,
                    chunks=self._chunks(response, timer),
                )
        finally:
            current_timer.reset(token)

    async def _chunks(self, response: httpx.Response, timer: Timer) -> AsyncIterator[bytes]:
        # Words that are no coding, such as `UTF-8`, are ignored, as by curl and browsers.
        words = re.split(r"[\s,;]+", response.headers.get("content-encoding", "").lower())
        codings = [word for word in words if word in CODINGS]
        if codings not in SUPPORTED:
            raise UpstreamMalformed("the Callbutton server's reply has an unsupported content encoding")
        inflate = zlib.decompressobj(31) if codings else None
        async for raw in response.aiter_raw():
            data = raw
            while data:
                if inflate is None:
                    chunk, data = data[:CHUNK_SIZE], data[CHUNK_SIZE:]
                else:
                    if inflate.eof:  # another member (RFC 1952), or zeros or the line ends of a JSP page
                        if not (data := data.lstrip(b"\0\r\n \t")):
                            break
                        inflate = zlib.decompressobj(31)
                    try:
                        chunk = inflate.decompress(data, CHUNK_SIZE)
                    except zlib.error as error:
                        raise UpstreamMalformed("the Callbutton server's reply is not valid gzip") from error
                    data = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
                timer.received += len(chunk)
                if timer.received > self._limits.max_bytes:
                    text = f"the Callbutton server's reply is larger than {self._limits.max_bytes} bytes"
                    raise UpstreamMalformed(text, too_large=True)
                yield chunk
                await asyncio.sleep(0)
        if inflate is not None and not inflate.eof:
            raise UpstreamMalformed("the Callbutton server's reply is truncated gzip")


def _timed_out(error: Exception, timer: Timer) -> UpstreamError:
    disconnected = isinstance(error, httpcore.ConnectTimeout)
    when = "did not accept a connection" if disconnected else "did not begin to answer"
    when = "did not finish its answer" if timer.answering else when
    text = f"the Callbutton server {when} in time"
    return UpstreamTimeout(text, answering=timer.answering, disconnected=disconnected)


def _not_connected(error: Exception, timer: Timer) -> UpstreamError:  # noqa: ARG001
    obstacle = Obstacle.PROXY if isinstance(error, httpcore.ProxyError) else _obstacle(error)
    text = OBSTACLES[obstacle]
    if obstacle is Obstacle.PROXY and (cause := error.__context__) is not None:  # of `TimedBackend`
        timed_out = isinstance(cause, httpcore.ConnectTimeout)
        text = f"the proxy cannot be reached: {'it takes too long' if timed_out else OBSTACLES[_obstacle(cause)]}"
    return UpstreamUnreachable(f"no connection to the Callbutton server: {text}", obstacle)


def _broken_off(error: Exception, timer: Timer) -> UpstreamError:
    if not timer.answering:
        text = "the Callbutton server closed the connection without a reply"
        return UpstreamUnreachable(text, Obstacle.CLOSED)
    if timer.closed or isinstance(error, httpcore.NetworkError):
        text = f"the Callbutton server's reply is truncated after {timer.received} bytes of body"
        return UpstreamMalformed(text, truncated=True)
    text = str(error)
    what = next((what for start, what in INVALID_HTTP.items() if text.startswith(start)), "is not valid HTTP")
    return UpstreamMalformed(f"the Callbutton server's reply {what}, after {timer.received} bytes of body")


# What h11 refuses, by the beginning of its message, of which the rest may quote the reply.
INVALID_HTTP = {
    "illegal status line": "does not begin with an HTTP status line",
    "illegal header line": "has a header line that is not valid HTTP",
    "Illegal header": "has a header that is not valid HTTP",
    "bad Content-Length": "has a Content-Length that is not a number",
    "conflicting Content-Length": "has several Content-Length headers that differ",
    "multiple Transfer-Encoding": "has several Transfer-Encoding headers",
    "Only Transfer-Encoding": "has a Transfer-Encoding that is not supported",
    "Receive buffer too long": "has a header or chunk line that is too long",
    "illegal chunk": "has a chunk that is not valid HTTP",
}
# What each error of httpcore means. The first kind that fits counts: ConnectError is a NetworkError.
ERRORS: dict[type[Exception], Callable[[Exception, Timer], UpstreamError]] = {
    httpcore.TimeoutException: _timed_out,
    httpcore.ConnectError: _not_connected,
    httpcore.ProxyError: _not_connected,
    httpcore.NetworkError: _broken_off,
    httpcore.ProtocolError: _broken_off,
    httpcore.UnsupportedProtocol: _broken_off,
}


@contextmanager
def translated_errors() -> Iterator[None]:
    """Raise our errors in place of httpcore's, for the request of `current_timer`."""
    try:
        yield
    except tuple(ERRORS) as error:
        translate = next(translate for kind, translate in ERRORS.items() if isinstance(error, kind))
        raise translate(error, current_timer.get()) from error


def _obstacle(error: BaseException) -> Obstacle:
    """Find the obstacle among the causes of an error."""
    found: list[BaseException | None] = [error]
    while found:
        cause = found.pop()
        match cause:
            case socket.gaierror():
                return Obstacle.NAME
            case ConnectionRefusedError():
                return Obstacle.REFUSED
            case ssl.SSLError():
                return Obstacle.TLS
            case BaseExceptionGroup():
                found += cause.exceptions
        if cause is not None:
            found += [cause.__cause__, cause.__context__ if cause.__cause__ is None else None]
    return Obstacle.ROUTE
