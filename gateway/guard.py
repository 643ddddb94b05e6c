"""A guard between uvicorn and its clients, with the limits that uvicorn does not have.

Rules:
- It calls only the methods that uvicorn's protocol inherits from `asyncio.Protocol`, and `shutdown()`, which closes a
  connection as soon as no request is in progress.
- uvicorn receives complete requests only, head and body, so that its idle timeout applies to connections without a
  request. A request must be complete `request_timeout` after its first byte (the first request: after the connection
  was opened) and is at most `request_size` long. Line ends before a request are ignored. A body without a length is
  refused: no resource of this API takes a body. A client that waits for `100 Continue` gets it with the head.
- A request has one valid Host, as HTTP/1.1 demands (RFC 9112, section 3.2).
- A client that reads no part of a response for `write_timeout` is disconnected, also while its connection closes.
- HTTP/1.0 has no chunked bodies: the end of the connection ends the body.
"""

from __future__ import annotations

import asyncio
import re
import resource
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from msgspec import Struct
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_END, ANY_HEAD_END = b"\r\n\r\n", re.compile(rb"\r?\n\r?\n")  # uvicorn refuses heads with other ends
BODY = re.compile(rb"\r\n(?:content-length:[ \t]*(\d{1,18})|transfer-encoding:)", re.IGNORECASE)
EXPECT = re.compile(rb"\r\nexpect:[ \t]*100-continue[ \t]*(?=\r\n)", re.IGNORECASE)
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
NOTABLE = re.compile(rb"\r\n(content-length|transfer-encoding|expect|host):[ \t]*([^\r\n]*)", re.IGNORECASE)
HOST = re.compile(rb"(?:[A-Za-z0-9._~%!$&'()*+,;=-]*|\[[0-9A-Fa-f:.]+\])(?::\d*)?[ \t]*")
CHUNKED = b"transfer-encoding: chunked\r\n"
MAX_GATHERED = 64 * 1024  # bytes; more is sent at once; asyncio's high-water mark
RESERVED_DESCRIPTORS = 100  # file descriptors that connections leave for files, the upstream and Redis


class Limits(Struct, frozen=True, kw_only=True):
    """Limits of a server's connections; times are in seconds, sizes in bytes."""

    request_size: int = 32 * 1024  # nginx allows heads of 32 kB
    request_timeout: float = 10.0  # nginx allows 60, which makes attacks with slow requests cheap
    idle_timeout: float = 75.0  # load balancers close theirs after 60, so they do not reuse one that we are closing
    write_timeout: float = 30.0  # nginx allows 60
    connections: int = max(RESERVED_DESCRIPTORS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - RESERVED_DESCRIPTORS)
    shutdown_timeout: float = 60.0  # the default of GATEWAY_REQUEST_DEADLINE


class GatheringTransport:
    """A transport that combines all writes of one iteration of the event loop into one."""

    def __init__(self, transport: asyncio.Transport, closing: Callable[[], None]) -> None:
        self._transport, self._call_soon, self._closing = transport, asyncio.get_running_loop().call_soon, closing
        self.is_closing, self.get_extra_info = transport.is_closing, transport.get_extra_info
        self.pause_reading, self.resume_reading = transport.pause_reading, transport.resume_reading
        self._gathered: list[bytes] = []
        self._size, self._in_chunks, self.without_chunks = 0, False, False

    def write(self, data: bytes) -> None:
        """Send data at the end of this iteration, or as soon as MAX_GATHERED is exceeded."""
        if self.without_chunks:
            data = self._unchunked(data)
        if not self._gathered:
            self._call_soon(self.flush)
        self._gathered.append(data)
        self._size += len(data)
        if self._size > MAX_GATHERED:
            self.flush()

    def flush(self) -> None:
        """Send the gathered data."""
        if self._gathered and not self.is_closing():
            self._transport.write(b"".join(self._gathered))
        self._gathered, self._size = [], 0

    def close(self) -> None:
        """Send the gathered data, then close."""
        self.flush()
        self._transport.close()
        self._closing()

    def _unchunked(self, data: bytes) -> bytes:
        """Remove the chunked encoding from a part of a response; uvicorn writes whole chunks."""
        if not self._in_chunks:
            self._in_chunks = CHUNKED in data
            return data.replace(CHUNKED, b"", 1)
        size, _, rest = data.partition(b"\r\n")
        end = int(size or b"0", 16)
        return rest[:end] + self._unchunked(rest[end + 2 :]) if end else b""


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol, whose refusal of invalid HTTP is a problem too."""

    def __init__(self, refuse: Callable[[], None], *arguments: Any, **named: Any) -> None:  # noqa: ANN401
        super().__init__(*arguments, **named)
        self._refuse = refuse

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - the same text for every fault
        """Refuse data that is not valid HTTP."""
        self._refuse()


class Guard(asyncio.Protocol):
    """One connection. A subclass sets the limits, the set of open connections, and the function that renders errors."""

    limits: Limits
    open: set[Guard]
    problem: Callable[[int, str], bytes]

    def __init__(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401 - the arguments of uvicorn's protocol
        self._http = Protocol(self._refuse_invalid, *arguments, **named)
        self._received = bytearray()  # the beginning of an incomplete request
        self._continued = False  # whether the client was told to send the body of that request
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request, unless there are too many connections."""
        self.abort, self._transport = transport.abort, GatheringTransport(transport, self._abort_later)
        self.open.add(self)
        self._http.connection_made(self._transport)  # type: ignore[arg-type]
        self._start("request", self.limits.request_timeout, self._http.shutdown)
        if len(self.open) > self.limits.connections:
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "too many connections", "retry-after: 1")

    def data_received(self, data: bytes) -> None:
        """Pass complete requests to uvicorn, and keep the beginning of the next."""
        one = 0 < data.find(HEAD_END) == len(data) - len(HEAD_END) <= self.limits.request_size - len(HEAD_END)
        if one and not self._received and data[:1].isupper() and not is_unusual(data):
            self._stop("request")
            self._http.data_received(data)
        else:
            self._received += data
            self._pass_on()

    def eof_received(self) -> None:
        """Close the connection of a client that closed its sending side, as uvicorn does."""
        self._abort_later()
        self._http.eof_received()

    def pause_writing(self) -> None:
        """Start the write timeout: the client does not read as fast as the response is sent."""
        self._abort_later()
        self._http.pause_writing()

    def resume_writing(self) -> None:
        """Stop the write timeout, unless the connection is closing and the remaining data must be read in that time."""
        if not self._transport.is_closing():
            self._stop("write")
        self._http.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.open.discard(self)
        self._http.connection_lost(exc)
        for timer in self._timers.values():
            timer.cancel()

    def _pass_on(self) -> None:
        received, limit = self._received, self.limits.request_size
        while received and not self._transport.is_closing():
            del received[: len(received) - len(received.lstrip(b"\r\n"))]
            size = size_of_request(received)
            if size > limit or (len(received) > limit and not size):
                self._refuse(
                    HTTPStatus.BAD_REQUEST, f"the request is longer than {limit} bytes, or its body has no length"
                )
            elif not size or size > len(received):
                if size and not self._continued and self._is_idle() and EXPECT.search(received):
                    self._continued = True
                    self._transport.write(CONTINUE)
                break
            elif not has_host(received):
                self._refuse(HTTPStatus.BAD_REQUEST, "the request does not have one valid Host")
            else:
                request = EXPECT.sub(b"", bytes(received[:size]), 1)  # uvicorn would answer it after the body
                del received[:size]
                self._continued = False
                self._stop("request")
                if request.partition(b"\r\n")[0].endswith(b" HTTP/1.0"):
                    self._pass_on_last(request)
                else:
                    self._http.data_received(request)
        if received:
            self._start("request", self.limits.request_timeout, self._http.shutdown)

    def _pass_on_last(self, request: bytes) -> None:
        """Pass on a request of HTTP/1.0, unless it was pipelined, and close the connection after the response."""
        if self._is_idle():
            self._transport.without_chunks = True
            self._http.data_received(request)
        self._received.clear()
        self._http.shutdown()

    def _is_idle(self) -> bool:
        """Whether every request passed on is answered."""
        return self._http.cycle is None or self._http.cycle.response_complete

    def _abort_later(self) -> None:
        self._start("write", self.limits.write_timeout, self.abort)

    def _start(self, name: str, seconds: float, act: Callable[[], object]) -> None:
        if name not in self._timers:
            self._timers[name] = asyncio.get_running_loop().call_later(seconds, act)

    def _stop(self, name: str) -> None:
        if name in self._timers:
            self._timers.pop(name).cancel()

    def _refuse_invalid(self) -> None:
        self._refuse(HTTPStatus.BAD_REQUEST, "the request is not valid HTTP; URL-encode the characters of its URL")

    def _refuse(self, status: HTTPStatus, detail: str, *headers: str) -> None:
        body = self.problem(status, detail)
        lines = f"HTTP/1.1 {status} {status.phrase}", "content-type: application/problem+json", "connection: close"
        head = "\r\n".join([*lines, f"content-length: {len(body)}", *headers, "", ""])
        self._transport.write(head.encode() + body)
        self._transport.close()


def is_unusual(head: bytes) -> bool:
    """Whether a request has a body or an expectation, uses HTTP/1.0, or does not have one valid Host."""
    fields = NOTABLE.findall(head)
    usual = len(fields) == 1 and len(fields[0][0]) == len(b"host") and HOST.fullmatch(fields[0][1])
    return not usual or b" HTTP/1.0\r\n" in head


def has_host(request: bytes | bytearray) -> bool:
    """Whether a request has one valid Host. In HTTP/1.0 it may lack it. Data that is not HTTP is left to uvicorn."""
    head, _, _ = request.partition(HEAD_END)
    hosts = [value for name, value in NOTABLE.findall(head) if name.lower() == b"host"]
    optional = not head.partition(b"\r\n")[0].endswith(b" HTTP/1.1")
    return all(HOST.fullmatch(host) for host in hosts) and (len(hosts) == 1 or (optional and not hosts))


def size_of_request(received: bytearray) -> int:
    """The size of the first request in bytes; 0 while its head is incomplete.

    For data that is not HTTP it is the size of the data: uvicorn refuses it. A body without a length exceeds any limit.
    """
    if not (end := ANY_HEAD_END.search(received)):
        return 0 if not received or received[:1].isupper() else len(received)
    body = BODY.search(received, 0, end.end())
    return end.end() + (int(body[1] or 10**18) if body else 0)  # 10**18: larger than any limit
