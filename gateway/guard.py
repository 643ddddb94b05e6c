"""A guard between uvicorn and its clients: it bounds what uvicorn leaves unbounded.

Rules:
- It is an `asyncio.Protocol` around uvicorn's. It knows of that one what asyncio asks of every protocol, and
  `shutdown()`, by which uvicorn's server closes a connection as soon as no request is in progress.
- uvicorn sees whole heads only. A head has `head_timeout` from its first byte, on a new connection from its opening;
  line ends before it count as silence. A body with a length is passed on, within the same time. A body without one is
  refused: no resource of this API takes a body.
- A connection is idle while no head arrives and nothing is sent.
- A client that takes nothing of an answer for `write_timeout` is disconnected, also while its connection closes.
- HTTP/1.0 has no chunks: the end of the connection ends the body.
"""

from __future__ import annotations

import asyncio
import re
import resource
from collections.abc import Callable
from typing import Any

from msgspec import Struct
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_END, ANY_HEAD_END = b"\r\n\r\n", re.compile(rb"\r?\n\r?\n")  # uvicorn refuses all but the first
BODY = re.compile(rb"\r\n(?:content-length:[ \t]*(\d{1,18})|transfer-encoding:)", re.IGNORECASE)
CHUNKED = b"transfer-encoding: chunked\r\n"
REASONS = {400: b"Bad Request", 503: b"Service Unavailable"}
GATHERED = 64 * 1024  # bytes that are sent without waiting for the turn's end; asyncio's high-water mark
SPARE = 100  # file descriptors that are left for files, the upstream and the shared cache


class Limits(Struct, frozen=True, kw_only=True):
    """Bounds of a server's connections; times are in seconds, sizes in bytes."""

    head_size: int = 32 * 1024  # nginx allows 32 kB
    head_timeout: float = 10.0  # nginx allows 60, which is what slow clients attack with
    idle_timeout: float = 75.0  # longer than load balancers keep theirs (60), so that none sends on a closing one
    write_timeout: float = 30.0  # nginx allows 60
    connections: int = max(SPARE, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE)
    shutdown_timeout: float = 60.0  # what a request may take by default (GATEWAY_REQUEST_DEADLINE)


class GatheringTransport:
    """A transport that sends what is written in one turn of the event loop in one piece."""

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, closing: Callable[[], None]
    ) -> None:
        self._transport, self._loop, self._closing = transport, loop, closing
        self._gathered: list[bytes] = []
        self._size = 0
        self._chunked = False  # whether the answer comes in chunks
        self.unchunk = False  # whether to take it out of them
        self.sent_at = loop.time()
        self.is_closing, self.get_extra_info = transport.is_closing, transport.get_extra_info
        self.pause_reading, self.resume_reading = transport.pause_reading, transport.resume_reading

    def write(self, data: bytes) -> None:
        """Send a part, with what else is written in this turn."""
        if self.unchunk:
            data = self._unchunked(data)
        if not self._gathered:
            self._loop.call_soon(self.flush)
        self._gathered.append(data)
        self._size += len(data)
        if self._size > GATHERED:
            self.flush()

    def flush(self) -> None:
        """Send what was gathered."""
        if self._gathered and not self.is_closing():
            self.sent_at = self._loop.time()
            self._transport.write(b"".join(self._gathered))
        self._gathered, self._size = [], 0

    def close(self) -> None:
        """Send what was gathered, then close."""
        self.flush()
        self._transport.close()
        self._closing()

    def _unchunked(self, data: bytes) -> bytes:
        if not self._chunked:
            self._chunked = CHUNKED in data
            return data.replace(CHUNKED, b"", 1)
        body = b""
        while data:
            size, _, data = data.partition(b"\r\n")
            body, data = body + data[: int(size, 16)], data[int(size, 16) + 2 :]
        return body


class Guard(asyncio.Protocol):
    """One connection. A subclass has the limits, the connections that are open, and the body of what is refused."""

    limits: Limits
    open: set[Guard]
    problem: Callable[[int, str], bytes]

    def __init__(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401 - what uvicorn gives its own protocol
        self._http = HttpToolsProtocol(*arguments, **named)
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()  # the part of a head that has come
        self._body_left = 0  # bytes of a body that have not come
        self._head_at = 0.0  # when the last whole head came
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a head, unless there are too many connections."""
        self.abort = transport.abort
        self._transport = GatheringTransport(transport, self._loop, self._abort_later)
        self.open.add(self)
        self._http.connection_made(self._transport)  # type: ignore[arg-type]
        self._start("head", self.limits.head_timeout, self._http.shutdown)
        self._start("idle", self.limits.idle_timeout, self._check_idle)
        if len(self.open) > self.limits.connections:
            self._refuse(503, "too many connections", b"retry-after: 1\r\n")

    def data_received(self, data: bytes) -> None:
        """Pass on whole heads, and keep what is not whole."""
        one_head = 0 < data.find(HEAD_END) == len(data) - len(HEAD_END) and not self._received and not self._body_left
        if one_head and data[:1].isupper() and len(data) <= self.limits.head_size and not may_be_special(data):
            self._pass_on(data)
        else:
            self._received += data
            self._pass_on_all()

    def eof_received(self) -> None:
        """Treat a client that sends no more as disconnected, as uvicorn does: the connection closes."""
        self._abort_later()
        self._http.eof_received()

    def pause_writing(self) -> None:
        """Give the client time to take what was sent."""
        self._start("write", self.limits.write_timeout, self.abort)
        self._http.pause_writing()

    def resume_writing(self) -> None:
        """Go on."""
        self._stop("write")
        self._http.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.open.discard(self)
        for name in list(self._timers):
            self._stop(name)
        self._http.connection_lost(exc)

    def _pass_on(self, head: bytes) -> None:
        self._head_at = self._loop.time()
        if "head" in self._timers:
            self._stop("head")
        self._http.data_received(head)

    def _pass_on_all(self) -> None:
        received = self._received
        while received and not self._transport.is_closing():
            if self._body_left:
                part = bytes(received[: self._body_left])
                self._body_left -= len(part)
                if not self._body_left:
                    self._stop("head")
                self._http.data_received(part)
                del received[: len(part)]
                continue
            del received[: len(received) - len(received.lstrip(b"\r\n"))]
            end = ANY_HEAD_END.search(received)
            size = end.end() if end else len(received)
            if size > self.limits.head_size:
                self._refuse(400, f"the head of the request is longer than {self.limits.head_size} bytes")
            elif not end and (not received or received[:1].isupper()):
                break
            else:  # a head, or what is not HTTP and uvicorn refuses
                head = bytes(received[:size])
                del received[:size]
                self._pass_on_special(head)
        if received or self._body_left:
            self._start("head", self.limits.head_timeout, self._http.shutdown)

    def _pass_on_special(self, head: bytes) -> None:
        """Pass on a head that says how its body comes, or that the client speaks HTTP/1.0."""
        body = BODY.search(head)
        if body and body[1] is None:
            self._refuse(400, "a body needs Content-Length, and no resource takes one")
            return
        if not self._head_at and head.partition(b"\r\n")[0].endswith(b" HTTP/1.0"):
            self._transport.unchunk = True
        self._body_left = int(body[1]) if body else 0
        self._pass_on(head)

    def _check_idle(self) -> None:
        self._stop("idle")
        left = max(self._head_at, self._transport.sent_at) + self.limits.idle_timeout - self._loop.time()
        if left <= 0:
            self._http.shutdown()
        self._start("idle", left if left > 0 else self.limits.idle_timeout, self._check_idle)

    def _abort_later(self) -> None:
        self._start("close", self.limits.write_timeout, self.abort)

    def _start(self, name: str, seconds: float, act: Callable[[], object]) -> None:
        if name not in self._timers:
            self._timers[name] = self._loop.call_later(seconds, act)

    def _stop(self, name: str) -> None:
        if name in self._timers:
            self._timers.pop(name).cancel()

    def _refuse(self, status: int, detail: str, headers: bytes = b"") -> None:
        body = self.problem(status, detail)
        start = b"HTTP/1.1 %d %b\r\ncontent-type: application/problem+json\r\nconnection: close\r\n"
        self._transport.write(
            start % (status, REASONS[status]) + headers + b"content-length: %d\r\n\r\n" % len(body) + body
        )
        self._transport.close()


def may_be_special(head: bytes) -> bool:
    """Whether `_pass_on_special` must look at a head; most are no concern of it."""
    low = head.lower()
    return b"\ncontent-length:" in low or b"\ntransfer-encoding:" in low or b" http/1.0\r\n" in low
