"""Compression of responses with zstd, br or gzip, as `Accept-Encoding` prefers.

Rules:
- Only text of at least `MIN_SIZE` is compressed, and no response that is empty or already compressed.
- Streams are flushed after each chunk, so that consumers get calls as soon as they are read.
- `Vary` names Accept-Encoding. Entity tags are weak, so they are the same for every coding.
- The compressed form of an aborted stream has no end either, so that consumers notice.
"""

from __future__ import annotations

import zlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

import brotli  # type: ignore[import-untyped]
import zstandard
from litestar.types import HTTPResponseStartEvent, HTTPScope, Message, Receive, Send

from gateway.api.middleware.request_context import HTTPApp, context_of
from gateway.api.negotiation import Headers, negotiate_coding, with_vary

MIN_SIZE = 1024  # bytes of a body; a smaller one fits in one packet anyway
TEXT_TYPES = (
    b"text/",
    b"application/json",
    b"application/problem+json",
    b"application/x-ndjson",
    b"application/yaml",
    b"image/svg+xml",
    b"application/openmetrics-text",
)
BODILESS = (204, 206, 304)


class Compressor(Protocol):
    """Compresses the chunks of a body."""

    def compress(self, chunk: bytes) -> bytes:
        """Compress a chunk to bytes that a client can decompress without further ones."""

    def finish(self) -> bytes:
        """The end of the compressed body."""


class Zstd:
    """Zstandard (RFC 8878). The window of level 3 is 2 MB; browsers accept at most 8 MB."""

    def __init__(self) -> None:
        self._stream = zstandard.ZstdCompressor(level=3).compressobj()

    def compress(self, chunk: bytes) -> bytes:
        """Compress a chunk."""
        return self._stream.compress(chunk) + self._stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)

    def finish(self) -> bytes:
        """The end of the compressed body."""
        return self._stream.flush()


class Brotli:
    """Brotli (RFC 7932)."""

    def __init__(self) -> None:
        self._stream = brotli.Compressor(mode=brotli.MODE_TEXT, quality=4)

    def compress(self, chunk: bytes) -> bytes:
        """Compress a chunk."""
        return bytes(self._stream.process(chunk) + self._stream.flush())

    def finish(self) -> bytes:
        """The end of the compressed body."""
        return bytes(self._stream.finish())


class Gzip:
    """Gzip (RFC 1952)."""

    def __init__(self) -> None:
        self._stream = zlib.compressobj(5, zlib.DEFLATED, 16 + zlib.MAX_WBITS)

    def compress(self, chunk: bytes) -> bytes:
        """Compress a chunk."""
        return self._stream.compress(chunk) + self._stream.flush(zlib.Z_SYNC_FLUSH)

    def finish(self) -> bytes:
        """The end of the compressed body."""
        return self._stream.flush()


CODINGS: dict[str, Callable[[], Compressor]] = {"zstd": Zstd, "br": Brotli, "gzip": Gzip}


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
            if compressor is not None:
                body = (compressor.compress(body) if body else b"") + (b"" if more else compressor.finish())
            if beginning is not None:
                if compressor is not None and chosen is not None:
                    beginning["headers"] = _coded_headers(beginning["headers"], chosen, None if more else len(body))
                await send(beginning)
            await send({"type": "http.response.body", "body": body, "more_body": more})

        return self._app(scope, receive, send_compressed)


def _is_compressible(start: HTTPResponseStartEvent) -> bool:
    headers = {name.lower(): value for name, value in start["headers"]}
    media_type = headers.get(b"content-type", b"")
    allowed = b"content-encoding" not in headers and b"no-transform" not in headers.get(b"cache-control", b"")
    return allowed and start["status"] not in BODILESS and media_type.startswith(TEXT_TYPES)


def _coded_headers(headers: Iterable[tuple[bytes, bytes]], chosen: str, length: int | None) -> Headers:
    kept = [(name, value) for name, value in headers if name.lower() != b"content-length"]
    if length is not None:
        kept.append((b"content-length", b"%d" % length))
    return [*kept, (b"content-encoding", chosen.encode("ascii"))]
