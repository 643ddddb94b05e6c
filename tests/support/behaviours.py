"""An upstream that runs a behaviour for each request, and the replies and behaviours that tests need."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import threading
import zlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from tests.support.processes import wait_in_loop_for

Behaviour = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]
CODE = "8005550100"


def call(identity: str = "1", minute: int = 30, more: str = "", start: str = "") -> str:
    when = start or f"06/01/2026 07:{minute:02}:00"
    return f'<Call ID="{identity}"><StartTime>{when}</StartTime><Duration>5</Duration>{more}</Call>'


def client(calls: str, code: str = CODE) -> str:
    return f"<Client><ClientCode>{code}</ClientCode><CallDetails>{calls}</CallDetails></Client>"


def envelope(inside: str) -> str:
    return (
        '<?xml version="1.0"?><Callbutton version="B"><Username>u</Username><Authentication>192.0.2.1'
        f"</Authentication><CallbuttonService>{inside}</CallbuttonService></Callbutton>"
    )


def document(clients: str) -> str:
    return envelope(f'<GetCallDetailsResponse status="OK">{clients}</GetCallDetailsResponse>')


def failure(status: str, message: str = "Connection time out", element: str = "GetCallDetailResponse") -> str:
    return envelope(f'<{element} status="{status}">{message}</{element}>')


def http(body: bytes | str, *, status: str = "200 OK", headers: str = "", length: int | None = None) -> bytes:
    sent = body.encode() if isinstance(body, str) else body
    size = len(sent) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Type: text/xml\r\n{headers}Content-Length: {size}\r\n\r\n".encode() + sent


def sends(*pieces: Any, close: bool = False) -> Behaviour:
    """Send each piece that is bytes; pause for each that is a number of seconds."""

    async def behave(_: bytes, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            if isinstance(piece, bytes):
                writer.write(piece)
                await writer.drain()
            else:
                await asyncio.sleep(piece)
        if close:
            writer.close()

    return behave


def answers(text: str, **how: Any) -> Behaviour:
    return sends(http(text, **how))


def resets(*pieces: bytes) -> Behaviour:
    async def behave(_: bytes, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        # A reset discards the bytes that still wait here. The gateway reads those that the kernel has, then the reset.
        await wait_in_loop_for(lambda: not writer.transport.get_write_buffer_size(), "the bytes are sent")
        opened = writer.get_extra_info("socket")
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    return behave


def endless(piece: bytes, times: int, *, packed: bool = False) -> Behaviour:
    """Send a head, then the same piece many times, generated while sending."""

    async def behave(_: bytes, writer: asyncio.StreamWriter) -> None:
        squeeze = zlib.compressobj(9, zlib.DEFLATED, 31) if packed else None
        encoding = "Content-Encoding: gzip\r\n" if packed else ""
        writer.write(f"HTTP/1.1 200 OK\r\n{encoding}Connection: close\r\n\r\n".encode())
        head = document(client(call(more="<OtherData>"))).partition("</OtherData>")[0].partition("</Call>")[0].encode()
        for index in range(times):
            sent = head + piece if not index else piece
            writer.write(squeeze.compress(sent) if squeeze else sent)
            await writer.drain()
        writer.close()

    return behave


async def by_code(request: bytes, writer: asyncio.StreamWriter) -> None:
    """Answer with one call for each requested code; if both are requested, with the first code only."""
    codes = re.findall(rb"<ClientCode>(\d+)</ClientCode>", request)[:1]
    writer.write(http(document("".join(client(call(code.decode()), code.decode()) for code in codes))))


def drip(body: bytes, seconds: float) -> Behaviour:
    pieces: list[bytes | float] = []
    for byte in body:
        pieces += [bytes([byte]), seconds]
    return sends(*pieces)


class Upstream:
    """A server that reads each request completely, then runs a configurable behaviour."""

    def __init__(self) -> None:
        self.behave: Behaviour = sends()
        self.posts = 0
        self.port = 0
        self._started = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Upstream:
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(20)
        self._loop.close()

    def hang_up(self) -> None:
        """Close all connections."""
        for task in list(self._tasks):
            self._loop.call_soon_threadsafe(task.cancel)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stop.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while not writer.is_closing():
                first = await reader.readexactly(1)
                if first == b"\x16":  # a client that begins TLS
                    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                    break
                head = first + await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head.lower())
                body = await reader.readexactly(int(length[1]) if length else 0)
                self.posts += 1
                await self.behave(body, writer)
                await writer.drain()
        writer.close()
