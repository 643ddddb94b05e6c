"""Compression: zstd, br or gzip, as `Accept-Encoding` weighs them; streams too, flushed piece by piece.

Rules: text alone, and nothing that is tiny, a part, without a body, or compressed already. `Vary` tells caches what the
answer depends on. Entity tags are weak, so they hold for every coding. A stream that breaks off is never finished.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Protocol

import brotli  # type: ignore[import-untyped]
import zstandard
from litestar.types import HTTPResponseStartEvent, HTTPScope, Message, Receive, Send

from gateway.api.negotiation import Headers, HTTPApp, coding, with_vary

LEAST = 1024  # bytes of a whole body
TEXTS = (b"text/", b"application/json", b"application/problem+json", b"application/x-ndjson", b"application/yaml")
MORE_TEXTS = (b"image/svg+xml", b"application/openmetrics-text")
BODILESS = (204, 206, 304)


class Compressor(Protocol):
    """What compresses a body piece by piece."""

    def compress(self, piece: bytes) -> bytes:
        """Take a piece, and give all of it that can be read."""

    def finish(self) -> bytes:
        """The end."""


class Zstd:
    """Zstandard (RFC 8878), in a window that browsers take."""

    def __init__(self) -> None:
        self._stream = zstandard.ZstdCompressor(level=3).compressobj()

    def compress(self, piece: bytes) -> bytes:
        """Take a piece."""
        return self._stream.compress(piece) + self._stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)

    def finish(self) -> bytes:
        """The end."""
        return self._stream.flush()


class Brotli:
    """Brotli (RFC 7932)."""

    def __init__(self) -> None:
        self._stream = brotli.Compressor(mode=brotli.MODE_TEXT, quality=4)

    def compress(self, piece: bytes) -> bytes:
        """Take a piece."""
        return bytes(self._stream.process(piece) + self._stream.flush())

    def finish(self) -> bytes:
        """The end."""
        return bytes(self._stream.finish())


class Gzip:
    """Gzip (RFC 1952)."""

    def __init__(self) -> None:
        self._stream = zlib.compressobj(5, zlib.DEFLATED, 16 + zlib.MAX_WBITS)

    def compress(self, piece: bytes) -> bytes:
        """Take a piece."""
        return self._stream.compress(piece) + self._stream.flush(zlib.Z_SYNC_FLUSH)

    def finish(self) -> bytes:
        """The end."""
        return self._stream.flush()


CODINGS: dict[str, Callable[[], Compressor]] = {"zstd": Zstd, "br": Brotli, "gzip": Gzip}


class Compression:
    """An ASGI application around another."""

    def __init__(self, app: HTTPApp) -> None:
        self._app = app

    async def __call__(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        """Compress the answer, if that is asked for and worth it."""
        accepted = ",".join(value.decode("latin-1") for name, value in scope["headers"] if name == b"accept-encoding")
        chosen = coding(accepted, tuple(CODINGS))
        start: HTTPResponseStartEvent | None = None
        compressor: Compressor | None = None

        async def compressed(message: Message) -> None:
            nonlocal start, compressor
            if message["type"] == "http.response.start":
                start = message
                return
            if message["type"] != "http.response.body":
                await send(message)
                return
            body, more = message["body"], message["more_body"]
            if start is not None:
                if _is_text(start):
                    start["headers"] = with_vary(list(start["headers"]), "Accept-Encoding")
                    if chosen is not None and (more or len(body) >= LEAST):
                        compressor = CODINGS[chosen]()
                if compressor is not None and chosen is not None:
                    body = compressor.compress(body) if body else b""
                    body += b"" if more else compressor.finish()
                    start["headers"] = _coded(list(start["headers"]), chosen, None if more else len(body))
                await send(start)
                start = None
            elif compressor is not None:
                body = compressor.compress(body) if body else b""
                body += b"" if more else compressor.finish()
            await send({"type": "http.response.body", "body": body, "more_body": more})

        await self._app(scope, receive, compressed)


def _is_text(start: HTTPResponseStartEvent) -> bool:
    headers = {name.lower(): value for name, value in start["headers"]}
    media_type = headers.get(b"content-type", b"")
    plain = b"content-encoding" not in headers and b"no-transform" not in headers.get(b"cache-control", b"")
    return plain and start["status"] not in BODILESS and media_type.startswith(TEXTS + MORE_TEXTS)


def _coded(headers: Headers, chosen: str, length: int | None) -> Headers:
    kept = [(name, value) for name, value in headers if name.lower() != b"content-length"]
    if length is not None:
        kept.append((b"content-length", b"%d" % length))
    return [*kept, (b"content-encoding", chosen.encode("ascii"))]
