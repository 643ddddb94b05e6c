"""Answers as they go out on the wire: in one piece where they may, and else as uvicorn sends them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gateway.headers import Written
from gateway.server import listen, make_server

Send = Callable[[dict[str, Any]], Awaitable[None]]
HEADERS = [(b"content-type", b"text/plain"), (b"content-length", b"2"), (b"x-a", b"1")]
AGE = (b"age", b"7")
GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
LAST = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"


def exchange(asked: bytes, *messages: dict[str, Any], error: Exception | None = None) -> tuple[bytes, list[int]]:
    """What a server answers whose application sends these messages, and the sizes of the pieces it was written in."""
    pieces: list[int] = []

    async def application(scope: dict[str, Any], receive: object, send: Send) -> None:  # noqa: ARG001 - ASGI
        transport = send.__self__.transport  # type: ignore[attr-defined]
        send.__self__.transport = Watched(transport, pieces)  # type: ignore[attr-defined]
        for message in messages:
            await send(dict(message))
        if error is not None:
            raise error

    async def run() -> bytes:
        server = make_server(application, lifespan="off", signals=False)
        opened = listen("127.0.0.1", 0)
        serving = asyncio.create_task(server.serve(sockets=[opened]))
        reader, writer = await asyncio.open_connection(*opened.getsockname()[:2])
        writer.write(asked)
        answer = await asyncio.wait_for(reader.read(), 10)
        writer.close()
        server.should_exit = True
        await serving
        return re.sub(rb"date: [^\r]*\r\n", b"", answer)

    return asyncio.run(run()), pieces


class Watched:
    """A transport that notes how often it is written to."""

    def __init__(self, transport: Any, pieces: list[int]) -> None:
        self._transport = transport
        self._pieces = pieces

    def write(self, data: bytes) -> None:
        self._pieces.append(len(data))
        self._transport.write(data)

    def writelines(self, lines: list[bytes]) -> None:
        self._pieces.append(sum(map(len, lines)))
        self._transport.writelines(lines)

    def __getattr__(self, name: str) -> object:
        return getattr(self._transport, name)


def start(headers: list[tuple[bytes, bytes]], status: int = 200, **more: object) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": headers, **more}


def body(content: bytes, *, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": content, "more_body": more}


BEGUN = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\nx-a: 1\r\n"


@pytest.mark.parametrize("more", [{}, {"written": Written(HEADERS)}], ids=["plain", "written"])
def test_a_whole_answer_goes_out_in_one_piece_and_the_last_one_closes(more: dict[str, Any]):
    answer, pieces = exchange(GET + GET + LAST, start([*HEADERS, AGE], **more), body(b"ok"))
    one = BEGUN + b"age: 7\r\n"
    assert answer == (one + b"\r\nok") * 2 + one + b"connection: close\r\n\r\nok"
    assert len(pieces) == 4  # the last one is uvicorn's: head and body


@pytest.mark.parametrize(
    "headers",
    [
        [(b"content-type", b"text/plain"), (b"content-length", b"2"), (b"x-b", b"1")],
        [(b"x-b", b"1"), *HEADERS],
        [(b"content-length", b"2")],
    ],
    ids=["changed", "before", "fewer"],
)
def test_what_a_layer_has_changed_counts_and_not_what_was_written(headers: list[tuple[bytes, bytes]]):
    answer, _ = exchange(GET + LAST, start(headers, written=Written(HEADERS)), body(b"ok"))
    lines = b"".join(b"%b: %b\r\n" % pair for pair in headers)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n" + lines + b"\r\nokHTTP/1.1 200 OK\r\n" + lines)


@pytest.mark.parametrize("more", [{}, {"written": Written(HEADERS)}], ids=["plain", "written"])
def test_an_application_may_close_the_connection(more: dict[str, Any]):
    answer, _ = exchange(GET + GET, start([*HEADERS, (b"connection", b"close")], **more), body(b"ok"))
    assert answer == BEGUN + b"connection: close\r\n\r\nok"


def test_an_answer_without_length_is_chunked_and_begins_at_once():
    answer, pieces = exchange(LAST, start([AGE]), body(b"a", more=True), body(b"b"))
    head = b"HTTP/1.1 200 OK\r\nage: 7\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
    assert answer == head + b"1\r\na\r\n1\r\nb\r\n0\r\n\r\n"
    assert pieces[0] == len(head) + len(b"date: Thu, 01 Jan 1970 00:00:00 GMT\r\n")


def test_a_body_in_parts_has_its_length():
    answer, _ = exchange(GET + LAST, start(HEADERS), body(b"o", more=True), body(b"k"))
    assert answer == BEGUN + b"\r\nok" + BEGUN + b"connection: close\r\n\r\nok"


def test_head_has_no_body_and_304_none_either():
    answer, _ = exchange(b"HEAD" + GET[3:] + LAST, start(HEADERS), body(b"ok"))
    assert answer.startswith(BEGUN + b"\r\n" + BEGUN)
    answer, _ = exchange(GET + LAST, start([AGE], 304), body(b""))
    assert answer.startswith(b"HTTP/1.1 304 Not Modified\r\nage: 7\r\n\r\nHTTP/1.1 304")


@pytest.mark.parametrize("content", [b"", b"o", b"oko"])
def test_a_body_of_another_length_than_said_breaks_the_connection(content: bytes):
    answer, _ = exchange(GET + GET, start(HEADERS), body(content))
    assert answer.count(b"HTTP/1.1") == 1
    assert answer.partition(b"\r\n\r\n")[2] in (b"", b"o")


@pytest.mark.parametrize("bad", [b"1\r\nset-cookie: a", b"1\n", b"\x00", b"\x7f"])
@pytest.mark.parametrize("more", [{}, {"written": Written(HEADERS)}], ids=["plain", "written"])
def test_no_value_can_add_a_header(bad: bytes, more: dict[str, Any]):
    answer, _ = exchange(LAST, start([*HEADERS, (b"x-b", bad)], **more), body(b"ok"))
    assert answer.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
    assert b"cookie" not in answer
    with pytest.raises(RuntimeError):
        Written([(b"x-b", bad)])


@pytest.mark.parametrize(("status", "headers"), [(600, HEADERS), (99, HEADERS), (200, [*HEADERS, HEADERS[1]])])
def test_what_is_no_answer_is_refused_and_never_silence(status: int, headers: list[tuple[bytes, bytes]]):
    answer, _ = exchange(GET + LAST, start(headers, status), body(b"ok"))
    assert answer.startswith(b"HTTP/1.1 500" if status != 200 else BEGUN + b"content-length: 2\r\n")


def test_an_error_between_head_and_body_is_an_answer_of_its_own():
    answer, _ = exchange(GET, start(HEADERS), error=ValueError())
    assert answer.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
    assert answer.count(b"HTTP/1.1") == 1
