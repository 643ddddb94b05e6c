"""Compression of responses with zstd, br or gzip, as `Accept-Encoding` prefers.

Rules:
- Only text of at least `MIN_SIZE` is compressed, and no response that is empty, partial or already compressed.
- Streams are flushed after each chunk, so that consumers get calls as soon as they are read. Event streams, which stay
  open, are not compressed: each would hold up to 1 MB for the state of its compressor.
- `Vary` names Accept-Encoding. Entity tags are weak, so they are the same for every coding.
- The compressed form of an aborted stream has no end either, so that consumers notice.
"""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

import brotli  # type: ignore[import-untyped]
import zstandard
from litestar.types import HTTPResponseStartEvent, HTTPScope, Message, Receive, Send

from gateway.api.middleware.request_context import HTTPApp, context_of
from gateway.api.negotiation import Headers, negotiate_coding, with_vary
from gateway.slices import Steps, in_slices

MIN_SIZE = 1024  # bytes of a body; a smaller one fits in one packet anyway
STEP_SIZE = 32 * 1024  # bytes compressed in one step, in at most a millisecond
TEXT_TYPES = (
    b"text/",
    b"application/json",
    b"application/problem+json",
    b"application/x-ndjson",
    b"application/yaml",
    b"image/svg+xml",
    b"application/openmetrics-text",
)
NEVER_COMPRESSED = (204, 206, 304)  # without a body, or a byte range of the original


class Compressor(NamedTuple):
    """Compresses a body. `compress` takes a piece; `flush(last)` returns the rest of all pieces so far."""

    compress: Callable[[bytes], bytes]
    flush: Callable[[bool], bytes]


def _zstd() -> Compressor:
    """Zstandard (RFC 8878). The window of level 3 is 2 MB; browsers accept at most 8 MB."""
    stream = zstandard.ZstdCompressor(level=3).compressobj()
    finish, block = zstandard.COMPRESSOBJ_FLUSH_FINISH, zstandard.COMPRESSOBJ_FLUSH_BLOCK
    return Compressor(stream.compress, lambda last: stream.flush(finish if last else block))


def _brotli() -> Compressor:
    """Brotli (RFC 7932)."""
    stream = brotli.Compressor(mode=brotli.MODE_TEXT, quality=4)
    return Compressor(stream.process, lambda last: stream.finish() if last else stream.flush())


def _gzip() -> Compressor:
    """Gzip (RFC 1952)."""
    stream = zlib.compressobj(5, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    return Compressor(stream.compress, lambda last: stream.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH))


CODINGS: dict[str, Callable[[], Compressor]] = {"zstd": _zstd, "br": _brotli, "gzip": _gzip}  # preferred first


class Compression:
    """The ASGI layer."""

    def __init__(self, app: HTTPApp) -> None:
        self._app = app

    def __call__(self, scope: HTTPScope, receive: Receive, send: Send) -> Awaitable[None]:
        """Compress the response if the rules allow it."""
        chosen = negotiate_coding(context_of(scope).header(b"accept-encoding"), tuple(CODINGS))
        start: HTTPResponseStartEvent | None = None
        compressor: Compressor | None = None

        async def send_compressed(message: Message) -> None:
            nonlocal start, compressor
            if message["type"] == "http.response.start":
                start = message
                return
            if message["type"] != "http.response.body":
                await send(message)
                return
            body, more = message["body"], message["more_body"]
            beginning, start = start, None
            if beginning is not None and _is_compressible(beginning):
                beginning["headers"] = with_vary(list(beginning["headers"]), "Accept-Encoding")
                if chosen is not None and (more or len(body) >= MIN_SIZE):
                    compressor = CODINGS[chosen]()
            if compressor is not None and (body or not more):
                body = await in_slices(_compressed(compressor, body, last=not more))
            if beginning is not None:
                if compressor is not None and chosen is not None:
                    beginning["headers"] = _coded_headers(beginning["headers"], chosen, None if more else len(body))
                await send(beginning)
            await send({"type": "http.response.body", "body": body, "more_body": more})

        return self._app(scope, receive, send_compressed)


def _compressed(compressor: Compressor, body: bytes, *, last: bool) -> Steps[bytes]:
    """Compress the next piece of a body, or the last one, in steps."""
    pieces: list[bytes] = []
    for place in range(0, len(body), STEP_SIZE):
        pieces.append(compressor.compress(body[place : place + STEP_SIZE]))
        yield
    return b"".join((*pieces, compressor.flush(last)))


def _is_compressible(start: HTTPResponseStartEvent) -> bool:
    headers = {name.lower(): value for name, value in start["headers"]}
    media_type = headers.get(b"content-type", b"")
    allowed = b"content-encoding" not in headers and b"no-transform" not in headers.get(b"cache-control", b"")
    suitable = media_type.startswith(TEXT_TYPES) and not media_type.startswith(b"text/event-stream")
    return allowed and start["status"] not in NEVER_COMPRESSED and suitable


def _coded_headers(headers: Iterable[tuple[bytes, bytes]], chosen: str, length: int | None) -> Headers:
    kept = [(name, value) for name, value in headers if name.lower() != b"content-length"]
    if length is not None:
        kept.append((b"content-length", b"%d" % length))
    return [*kept, (b"content-encoding", chosen.encode("ascii"))]
