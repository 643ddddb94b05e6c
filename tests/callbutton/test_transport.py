"""One POST over real sockets against servers that violate HTTP or respond very slowly."""

from __future__ import annotations

import asyncio
import base64
import gzip
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpcore
import pytest
from msgspec.structs import replace

from gateway import __version__
from gateway.callbutton.transport import Timer, Transport, UpstreamLimits, current_timer, translated_errors
from gateway.errors import Obstacle, UpstreamError, UpstreamMalformed, UpstreamTimeout, UpstreamUnreachable
from tests.support.certificates import Certificate

LIMITS = UpstreamLimits(first_byte=20, idle=20, deadline=60, concurrency=2, max_bytes=100_000)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/xml; charset=iso-8859-1\r\n"
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """Serve raw TCP. The handler is called after the head of the request."""

    under_way: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        under_way.add(task)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await reader.readuntil(b"\r\n\r\n")
                await handler(reader, writer)
                await writer.drain()
        finally:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/xml.jsp"
    finally:
        server.close()
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way)


async def post(transport: Transport) -> tuple[int, str | None, bytes]:
    async with transport.post(b"<x/>", asyncio.get_running_loop().time() + transport._limits.deadline) as answer:
        return answer.status, answer.charset, b"".join([piece async for piece in answer.chunks])


def outcome(handler: Handler, limits: UpstreamLimits = LIMITS) -> tuple[int, str | None, bytes]:
    async def run() -> tuple[int, str | None, bytes]:
        async with serving(handler) as url:
            transport = Transport(url, limits)
            try:
                return await post(transport)
            finally:
                await transport.close()

    return asyncio.run(run())


def answering(*pieces: bytes, pause: float = 0) -> Handler:
    async def handler(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause)

    return handler


def test_an_answer_comes_with_status_charset_and_body():
    body = outcome(answering(HEAD, b"Content-Length: 5\r\n\r\n", b"<a/>\n"))
    assert body == (200, "iso-8859-1", b"<a/>\n")


def test_gzip_is_undone_piece_by_piece():
    packed = gzip.compress(b"x" * 90_000)
    head = HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
    assert outcome(answering(head, packed[:20], packed[20:], pause=0.01))[2] == b"x" * 90_000


def test_gzip_of_several_members_is_read_to_its_end():
    packed = gzip.compress(b"<a>") + gzip.compress(b"</a>")
    head = HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
    assert outcome(answering(head, packed))[2] == b"<a></a>"


NO_CODINGS = ["UTF-8", "none", "identity", "utf-8, identity", "", "text/xml; charset=utf-8", "8bit", "binary"]


@pytest.mark.parametrize("words", NO_CODINGS)
def test_a_content_encoding_that_is_no_coding_is_ignored(words: str):
    head = HEAD + f"Content-Encoding: {words}\r\nContent-Length: 4\r\n\r\n".encode()
    assert outcome(answering(head + b"<a/>"))[2] == b"<a/>"


@pytest.mark.parametrize("words", ["gzip", "X-GZIP", "UTF-8, gzip", "identity,gzip"])
@pytest.mark.parametrize("rest", [b"", b"\0", b"\0" * 512, b"\0" * 200_000, b"\r\n\r\n", b" \t\n\0"], ids=len)
def test_zeros_and_white_space_after_gzip_are_ignored(words: str, rest: bytes):
    packed = gzip.compress(b"<a>") + b"\0" * 10 + gzip.compress(b"</a>") + rest
    head = HEAD + f"Content-Encoding: {words}\r\nContent-Length: {len(packed)}\r\n\r\n".encode()
    assert outcome(answering(head, packed[:40], packed[40:]))[2] == b"<a></a>"


def test_a_content_type_that_cannot_be_read_has_no_charset():
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/xml; charset*=a; charset*0=b\r\nContent-Length: 0\r\n\r\n"
    assert outcome(answering(head)) == (200, None, b"")


def test_headers_dripped_byte_by_byte_do_not_evade_the_time_out():
    drip = answering(*[bytes([byte]) for byte in HEAD], pause=0.05)
    with pytest.raises(UpstreamTimeout) as caught:
        outcome(drip, replace(LIMITS, deadline=2))
    assert caught.value.answering


def test_a_body_dripped_within_the_idle_time_ends_with_the_deadline():
    with pytest.raises(UpstreamTimeout, match="did not finish"):
        outcome(answering(HEAD + b"Content-Length: 100\r\n\r\n", *[b"x"] * 100, pause=0.1), replace(LIMITS, deadline=2))


def test_no_answer_within_the_first_byte_time_is_a_time_out():
    with pytest.raises(UpstreamTimeout, match="did not begin") as caught:
        outcome(answering(b"", pause=60), replace(LIMITS, first_byte=0.3))
    assert not caught.value.answering


def test_a_pause_longer_than_the_idle_time_is_a_time_out():
    with pytest.raises(UpstreamTimeout, match="did not finish"):
        outcome(answering(HEAD + b"Content-Length: 9\r\n\r\n<", b"a/>", pause=60), replace(LIMITS, idle=0.3))


BROKEN = {
    "short of its Content-Length": (HEAD + b"Content-Length: 100\r\n\r\n<Callbutton>",),
    "in the middle of a chunk": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n10\r\n<Callbu",),
    "not HTTP": (b"220 smtp.example ready\r\n\r\n",),
    "gzip cut off": (HEAD + b"Content-Encoding: gzip\r\nContent-Length: 20\r\n\r\n" + gzip.compress(b"x" * 99)[:20],),
    "not gzip": (HEAD + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello",),
    "an encoding that was not requested": (HEAD + b"Content-Encoding: br\r\nContent-Length: 5\r\n\r\nhello",),
    "compressed twice": (HEAD + b"Content-Encoding: gzip, gzip\r\nContent-Length: 5\r\n\r\nhello",),
    "junk after gzip": (HEAD + b"Content-Encoding: gzip\r\nConnection: close\r\n\r\n" + gzip.compress(b"x") + b"\0x",),
    "too large": (HEAD + b"Content-Length: 200000\r\n\r\n", b"x" * 200_000),
    "a gzip bomb": (
        HEAD + b"Content-Encoding: gzip\r\n\r\n",
        zlib.compressobj(9, zlib.DEFLATED, 31).compress(b"\0" * 50_000_000),
    ),
}


@pytest.mark.parametrize("pieces", BROKEN.values(), ids=BROKEN)
def test_a_broken_answer_is_malformed(pieces: tuple[bytes, ...]):
    with pytest.raises(UpstreamMalformed):
        outcome(answering(*pieces))


INVALID = {
    "does not begin with an HTTP status line, after 0": b"220 smtp.example ready\r\n\r\n",
    "has a header line that is not valid HTTP, after 0": HEAD + b"Set Cookie: secret\r\n\r\n",
    "has a Content-Length that is not a number, after 0": HEAD + b"Content-Length: many\r\n\r\n",
    "has several Content-Length headers that differ, after 0": HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "has a Transfer-Encoding that is not supported, after 0": HEAD + b"Transfer-Encoding: secret\r\n\r\n",
    "has a header or chunk line that is too long, after 0": HEAD + b"X: " + b"secret" * 40_000,
    "has a chunk that is not valid HTTP, after 0": HEAD + b"Transfer-Encoding: chunked\r\n\r\nsecret\r\n",
    "is not valid HTTP, after 3": HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabcsecret\r\n",
    "is truncated after 3": HEAD + b"Content-Length: 9\r\n\r\nabc",
    "is truncated after 0": HEAD + b"Content-Len",
}


@pytest.mark.parametrize("said", INVALID)
def test_a_reply_that_is_not_http_is_told_as_what_it_is_and_not_quoted(said: str):
    with pytest.raises(UpstreamMalformed, match=said) as caught:
        outcome(answering(INVALID[said]))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("proxy", "reason"),
    [
        ("http://127.0.0.1:{port}", "the port refuses connections"),
        ("http://proxy.invalid:3128", "its host name cannot be resolved"),
    ],
    ids=["refuses", "unknown"],
)
def test_a_proxy_that_cannot_be_reached_is_told_as_such(proxy: str, reason: str):
    async def run() -> None:
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            address = proxy.format(port=bound.getsockname()[1])
            transport = Transport("http://callbutton.invalid/xml.jsp", UpstreamLimits(), address)
            with pytest.raises(UpstreamUnreachable, match=f"the proxy cannot be reached: {reason}") as caught:
                await post(transport)
            assert caught.value.obstacle is Obstacle.PROXY
            assert caught.value.disconnected
            await transport.close()

    asyncio.run(run())


def test_a_proxy_that_refuses_the_request_does_not_let_it_through():
    async def run() -> None:
        async with serving(answering(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n")) as url:
            transport = Transport("https://callbutton.invalid/xml.jsp", UpstreamLimits(), url.removesuffix("/xml.jsp"))
            with pytest.raises(UpstreamUnreachable, match="the proxy refuses it"):
                await post(transport)
            await transport.close()

    asyncio.run(run())


def test_a_connection_closed_without_an_answer_is_unreachable():
    with pytest.raises(UpstreamUnreachable, match="without a reply"):
        outcome(answering())


def test_a_redirect_is_not_followed_and_no_cookie_is_kept():
    seen: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readexactly(4))
        writer.write(b"HTTP/1.1 301 Gone\r\nLocation: /other\r\nSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n")

    assert outcome(handler)[0] == 301
    assert seen == [b"<x/>"]


def test_time_outs_leave_no_connection_behind():
    async def run() -> None:
        async with serving(answering(b"", pause=5)) as url:
            transport = Transport(url, UpstreamLimits(first_byte=0.05, concurrency=2))
            for _ in range(5):
                with pytest.raises(UpstreamTimeout):
                    await post(transport)
            assert transport.client.pool.connections == []
            await transport.close()

    asyncio.run(run())


def test_a_request_has_the_credentials_of_its_address_and_never_a_cookie():
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                heads.append(head)
                await reader.readexactly(4)
                writer.write(HEAD + b"Set-Cookie: JSESSIONID=1\r\nContent-Length: 0\r\n\r\n")
        writer.close()
        ended.set()

    ended = asyncio.Event()

    async def run() -> int:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port: int = server.sockets[0].getsockname()[1]
        transport = Transport(f"http://some%40body:secret@127.0.0.1:{port}/a/xml.jsp?b=c", LIMITS)
        for _ in range(2):
            await post(transport)
        await transport.close()
        await asyncio.wait_for(ended.wait(), 10)
        server.close()
        return port

    port = asyncio.run(run())
    credentials = base64.b64encode(b"some@body:secret").decode()
    for head in heads:
        line, *fields = head.decode().removesuffix("\r\n\r\n").split("\r\n")
        assert line == "POST /a/xml.jsp?b=c HTTP/1.1"
        assert sorted(field.lower() for field in fields) == [
            "accept-encoding: gzip, identity",
            "accept: */*",
            f"authorization: basic {credentials}".lower(),
            "connection: keep-alive",
            "content-length: 4",
            "content-type: text/xml; charset=utf-8",
            f"host: 127.0.0.1:{port}",
            f"user-agent: callbutton-gateway/{__version__}",
        ]
    assert len(heads) == 2


def test_an_environment_proxy_is_not_used(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    assert outcome(answering(HEAD + b"Content-Length: 0\r\n\r\n"))[0] == 200


def test_a_proxy_that_is_set_is_used():
    async def run() -> None:
        answer = answering(HEAD + b"Content-Length: 0\r\n\r\n")
        async with serving(answer) as url:
            transport = Transport("http://callbutton.invalid/xml.jsp", LIMITS, url.removesuffix("/xml.jsp"))
            assert (await post(transport))[0] == 200
            await transport.close()

    asyncio.run(run())


def test_a_proxy_receives_the_credentials_of_its_address():
    heads: list[bytes] = []

    async def run() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(HEAD + b"Content-Length: 0\r\nConnection: close\r\n\r\n")
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            proxy = f"http://some%40body:secret@127.0.0.1:{server.sockets[0].getsockname()[1]}"
            transport = Transport("http://callbutton.invalid/xml.jsp", LIMITS, proxy)
            assert (await post(transport))[0] == 200
            await transport.close()

    asyncio.run(run())
    credentials = base64.b64encode(b"some@body:secret")
    assert heads[0].startswith(b"POST http://callbutton.invalid/xml.jsp HTTP/1.1\r\n")
    assert b"\r\nproxy-authorization: basic " + credentials.lower() in heads[0].lower()


def test_a_private_ca_is_trusted_where_ssl_cert_file_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    certificate = Certificate(tmp_path)

    async def run() -> int:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate.cert, certificate.key)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(HEAD + b"Content-Length: 0\r\nConnection: close\r\n\r\n")
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls) as server:
            port = server.sockets[0].getsockname()[1]
            transport = Transport(f"https://127.0.0.1:{port}/xml.jsp", UpstreamLimits(first_byte=30))
            try:
                return (await post(transport))[0]
            finally:
                await transport.close()

    with pytest.raises(UpstreamUnreachable, match="TLS"):
        asyncio.run(run())
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.cert))
    assert asyncio.run(run()) == 200


FOREIGN = [
    kind
    for kind in vars(httpcore).values()
    if isinstance(kind, type) and issubclass(kind, Exception) and kind is not httpcore.ConnectionNotAvailable
]  # the pool handles ConnectionNotAvailable: it tries another connection


@pytest.mark.parametrize("answering", [False, True], ids=["before the answer", "within it"])
@pytest.mark.parametrize("kind", FOREIGN, ids=[kind.__name__ for kind in FOREIGN])
def test_every_error_of_httpcore_becomes_one_of_ours_and_stays_its_cause(kind: type[Exception], answering: bool):
    async def run() -> None:
        timer = Timer(LIMITS, 0)
        timer.answering = answering
        current_timer.set(timer)
        with translated_errors():
            raise kind("text of the library")

    with pytest.raises(UpstreamError) as caught:
        asyncio.run(run())
    assert type(caught.value.__cause__) is kind
    assert "library" not in str(caught.value)
    ours = UpstreamTimeout if issubclass(kind, httpcore.TimeoutException) else (UpstreamUnreachable, UpstreamMalformed)
    assert isinstance(caught.value, ours)
