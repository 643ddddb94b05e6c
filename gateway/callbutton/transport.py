"""One POST over httpx, with the time-outs of a flight kept by the network backend.

Rules:
- httpx's pool can wedge when requests are cancelled (encode/httpcore issue 1093), and its `read` time-out is per chunk.
  So a backend under the pool caps every read at the time that the flight has left, and nothing is cancelled.
- A POST has `first_byte` seconds to the first byte of the answer, `idle` between bytes, and until an instant of the
  event loop's clock in all.
- Bodies come in pieces of at most 64 KiB, decompressed by us, at most `max_bytes`; the loop runs between pieces.
- Errors are translated here, once.
"""

from __future__ import annotations

import asyncio
import math
import re
import socket
import ssl
import zlib
from base64 import b64encode
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import httpcore
import httpx
from msgspec import Struct

from gateway import __version__
from gateway.errors import Obstacle, UpstreamError, UpstreamMalformed, UpstreamTimeout, UpstreamUnreachable

OBSTACLES = {
    Obstacle.NAME: "its name is not found",
    Obstacle.REFUSED: "the port refuses it",
    Obstacle.ROUTE: "there is no way to the address",
    Obstacle.TLS: "TLS cannot be agreed on",
    Obstacle.PROXY: "the proxy does not let it through",
}
PIECE = 65536  # bytes
READ = 4 * PIECE  # what asyncio takes from a socket at once
CHARSET = re.compile(r"""charset *= *["']?([A-Za-z0-9._:+-]{1,40})""", re.IGNORECASE)
SECONDS = re.compile(r"\d{1,6}", re.ASCII)


class Limits(Struct, frozen=True):
    """Time-outs in seconds, the most POSTs at a time, and the largest decoded body in bytes."""

    first_byte: float = 30
    idle: float = 15
    deadline: float = 300
    concurrency: int = 8
    max_bytes: int = 64 * 1024**2


class Timer:
    """The time that one POST has left."""

    def __init__(self, limits: Limits, until: float) -> None:
        self._limits = limits
        self._until = until
        self._began = asyncio.get_running_loop().time()
        self.answering = False

    def left(self) -> float:
        """Seconds for the next step."""
        now = asyncio.get_running_loop().time()
        step = self._limits.idle if self.answering else self._limits.first_byte - (now - self._began)
        return max(0.001, min(self._until - now, step))


running: ContextVar[Timer] = ContextVar("running")  # the timer of what is under way in this task


class TimedStream(httpcore.AsyncNetworkStream):
    """A connection whose every step ends with the flight's time."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        """Read some bytes."""
        timer = running.get()
        data = await self._stream.read(max(max_bytes, READ), timer.left())
        timer.answering = timer.answering or bool(data)
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        """Write all bytes."""
        await self._stream.write(buffer, running.get().left())

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
        return TimedStream(await self._stream.start_tls(ssl_context, server_hostname, running.get().left()))

    def get_extra_info(self, info: str) -> Any:  # noqa: ANN401 - httpcore's own type
        """Tell what httpcore asks of the connection."""
        return self._stream.get_extra_info(info)


class TimedBackend(httpcore.AsyncNetworkBackend):
    """Connections that keep a flight's time."""

    def __init__(self) -> None:
        self._backend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect."""
        stream = await self._backend.connect_tcp(host, port, running.get().left(), local_address, socket_options)
        return TimedStream(stream)


class Answer(Struct):
    """An answer whose body is still arriving."""

    status: int
    charset: str | None
    retry_after: float
    chunks: AsyncIterator[bytes]


def read_address(text: str, whose: str) -> httpx.URL:
    """Read an address. Raises ValueError, which says whose it is."""
    try:
        return httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ValueError(f"the address of the {whose} cannot be used: {error}") from error


class Client:
    """httpx without its client, which costs a quarter of a request for cookies and redirects that nobody wants.

    It has so many connections, and every step keeps the time of `running`. Nothing looks at where a redirect leads.
    """

    def __init__(self, connections: int, proxy: str | None) -> None:
        limits = httpx.Limits(max_connections=connections, keepalive_expiry=5)
        via = httpx.Proxy(read_address(proxy, "proxy")) if proxy else None
        self._transport = httpx.AsyncHTTPTransport(proxy=via, limits=limits)
        # httpx has no public way to hand in a network backend; its pool, proxied or not, keeps it under this name.
        self._transport._pool._network_backend = TimedBackend()

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.aclose()

    @asynccontextmanager
    async def stream(
        self, method: str, address: httpx.URL | str, headers: Mapping[str, str], content: bytes | None = None
    ) -> AsyncIterator[httpx.Response]:
        """Send a request, with the credentials that its address may hold. Raises httpx.HTTPError, httpx.InvalidURL."""
        always = {"Accept": "*/*", "Connection": "keep-alive", "User-Agent": f"callbutton-gateway/{__version__}"}
        request = httpx.Request(method, address, headers={**always, **headers}, content=content)
        if request.url.userinfo:
            userinfo = f"{request.url.username}:{request.url.password}"
            request.headers["Authorization"] = f"Basic {b64encode(userinfo.encode()).decode()}"
        response = await self._transport.handle_async_request(request)
        try:
            yield response
        finally:
            await response.aclose()


class Transport:
    """POSTs to one address. Raises ValueError for one that cannot be used."""

    def __init__(self, url: str, limits: Limits, proxy: str | None = None) -> None:
        self._url = read_address(url, "upstream")
        self._limits = limits
        self._client = Client(limits.concurrency, proxy)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    @asynccontextmanager
    async def post(self, body: bytes, until: float) -> AsyncIterator[Answer]:
        """POST; all must have been read by an instant of the event loop's clock. Raises UpstreamError."""
        timer = Timer(self._limits, until)
        token = running.set(timer)
        received = [0]
        headers = {"Content-Type": "text/xml; charset=utf-8", "Accept-Encoding": "gzip, identity"}
        try:
            async with self._client.stream("POST", self._url, headers, body) as response:
                named = CHARSET.search(response.headers.get("content-type", ""))
                wait = response.headers.get("retry-after", "0")
                yield Answer(
                    status=response.status_code,
                    charset=named[1] if named else None,
                    retry_after=float(wait) if SECONDS.fullmatch(wait) else math.inf,
                    chunks=self._chunks(response, received),
                )
        except httpx.HTTPError as error:
            raise translated(error, timer, received[0]) from error
        finally:
            running.reset(token)

    async def _chunks(self, response: httpx.Response, received: list[int]) -> AsyncIterator[bytes]:
        encoding = response.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", "gzip", "x-gzip", ""):
            raise UpstreamMalformed("the Callbutton server's answer has a content encoding that was not asked for")
        inflate = zlib.decompressobj(31) if "gzip" in encoding else None
        async for raw in response.aiter_raw():
            data = raw
            while data:
                if inflate is None:
                    piece, data = data[:PIECE], data[PIECE:]
                else:
                    try:
                        piece = inflate.decompress(data, PIECE)
                    except zlib.error as error:
                        raise UpstreamMalformed("the Callbutton server's answer is not sound gzip") from error
                    data = inflate.unconsumed_tail
                    if inflate.eof and inflate.unused_data:  # another member (RFC 1952)
                        data, inflate = inflate.unused_data, zlib.decompressobj(31)
                received[0] += len(piece)
                if received[0] > self._limits.max_bytes:
                    raise UpstreamMalformed(
                        f"the Callbutton server's answer is larger than {self._limits.max_bytes} bytes"
                    )
                yield piece
                await asyncio.sleep(0)
        if inflate is not None and not inflate.eof:
            raise UpstreamMalformed("the Callbutton server's answer is gzip that breaks off")


def translated(error: httpx.HTTPError, timer: Timer, received: int) -> UpstreamError:
    """What an error of httpx means."""
    if isinstance(error, httpx.TimeoutException):
        connecting = isinstance(error, httpx.ConnectTimeout)
        when = "took no connection" if connecting else "did not begin to answer"
        when = "did not finish its answer" if timer.answering else when
        return UpstreamTimeout(
            f"the Callbutton server {when} in time", answering=timer.answering, connecting=connecting
        )
    if isinstance(error, (httpx.ConnectError, httpx.ProxyError)):
        obstacle = _obstacle(error)
        return UpstreamUnreachable(f"no connection to the Callbutton server: {OBSTACLES[obstacle]}", obstacle)
    if not timer.answering:
        text = "the Callbutton server closed the connection without an answer"
        return UpstreamUnreachable(text, Obstacle.CLOSED)
    return UpstreamMalformed(
        f"the Callbutton server's answer broke off, or is not HTTP, after {received} bytes of body"
    )


def _obstacle(error: httpx.HTTPError) -> Obstacle:
    """Find what is in the way among the causes of an error."""
    if isinstance(error, httpx.ProxyError):
        return Obstacle.PROXY
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
