"""Recordings of calls, streamed from the upstream.

Rules:
- The address of a recording never depends on input of a consumer. It is the upstream's value if that has the scheme,
  host and port of the upstream or of the recording address, else the call's id in the recording address.
- Redirects are followed within one origin, and to https of the same host.
- Only audio is passed on, up to MAX_RECORDING_SIZE. Old servers mislabel it, so its first bytes decide, and its label
  (`audio/…`) only if they are of no known format. An HTML page with status 200 says that there is no recording.
- Nothing is cancelled (see `transport`): a task reads a few chunks ahead of the consumer, and ends at the next chunk
  after the consumer has disconnected.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import quote, urljoin, urlsplit

import httpx
from msgspec import Struct

from gateway.callbutton.transport import CHUNK_SIZE, TimedTransport, Timer, UpstreamLimits, current_timer
from gateway.errors import NotFound, UpstreamError, UpstreamFailed, UpstreamMalformed, UpstreamUnauthorized

MAX_RECORDINGS = 16  # streamed at the same time; each holds a connection to a slow server
MAX_RECORDING_SIZE = 512 * 1024**2  # bytes; eight hours of 16-bit telephone audio
MAX_LISTENING_TIME = 3600  # seconds
MAX_REDIRECTS = 3
MAX_BUFFERED = 4  # chunks that are read ahead of the consumer
RANGE = re.compile(r"bytes=(?:(\d{1,12})-(\d{0,12})|-\d{1,12})", re.ASCII)
CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)", re.ASCII)
PORTS = {"http": 80, "https": 443}
PASSED_ON = ("content-length", "content-range", "accept-ranges")
CODINGS = {"gzip", "x-gzip", "deflate", "compress", "x-compress", "br", "zstd"}  # other words are no coding
SIGNATURE_SIZE = 12  # bytes that tell the format
# The formats of telephony servers, by their first bytes. FF FE, the mark of UTF-16, is not among those of MPEG.
SIGNATURES = {
    re.compile(rb"(?:RIFF|RF64)(?!....(?:AVI |WEBP))", re.DOTALL): "audio/wav",
    re.compile(rb"ID3|\xff[\xe2-\xe5\xf2-\xf5\xfa-\xfd]"): "audio/mpeg",  # a tag, or a frame of layer II or III
    re.compile(rb"OggS"): "audio/ogg",
    re.compile(rb"\x30\x26\xb2\x75\x8e\x66\xcf\x11"): "audio/x-ms-wma",  # ASF
    re.compile(rb"FORM....AIF[FC]", re.DOTALL): "audio/aiff",
    re.compile(rb"\.snd"): "audio/basic",
}
HTML = re.compile(rb"[\s\xef\xbb\xbf]*<(?:!doctype|!--|\??[a-z])", re.IGNORECASE)


class Recording(Struct):
    """A recording that streams in. `status` is 200, or 206 for a part."""

    status: int
    headers: dict[str, str]
    chunks: ChunkReader


def origin(address: str) -> tuple[str, str, int | None]:
    """Scheme, host and port of an address. Raises ValueError."""
    parts = urlsplit(address)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or PORTS.get(parts.scheme)


def locate(value: str | None, identity: str, template: str, upstream: str) -> str:
    """The address of a recording. `value` is the upstream's, `template` an address or a path there, with {id}."""
    address = urljoin(upstream, template.replace("{id}", quote(identity, safe="")))
    with suppress(ValueError):
        if value is not None and origin(value) in (origin(address), origin(upstream)):
            return value
    return address


class Recordings:
    """The recordings of one upstream."""

    def __init__(self, template: str, upstream: str, limits: UpstreamLimits, proxy: str | None = None) -> None:
        self._template = template
        self._upstream = upstream
        self._limits = limits
        self._client = TimedTransport(2 * MAX_RECORDINGS, proxy)  # the beginning of one may be fetched besides a part
        self._pumps: set[asyncio.Task[None]] = set()

    async def open(
        self, value: str | None, identity: str, part: str | None, ended: Callable[[], None] = lambda: None
    ) -> Recording:
        """Begin to fetch a recording, or a part of it if the upstream supports ranges. Raises GatewayError.

        `ended` is called when the upstream's connection is free again, which may be after the consumer has left.
        """
        address = locate(value, identity, self._template, self._upstream)
        headers = {"Accept": "audio/*", "Accept-Encoding": "identity"}
        if part is not None and _is_range(part):
            headers["Range"] = part
        pipe = Pipe()
        task = asyncio.get_running_loop().create_task(self._pump(address, headers, pipe))
        self._pumps.add(task)
        task.add_done_callback(self._pumps.discard)
        task.add_done_callback(lambda _: ended())
        try:
            status, handed = await asyncio.shield(pipe.begun)
        except BaseException:
            pipe.stop()
            raise
        return Recording(status, handed, ChunkReader(pipe))

    async def close(self) -> None:
        """Wait for the recordings in progress, then close the connections."""
        await asyncio.gather(*self._pumps, return_exceptions=True)
        await self._client.aclose()

    async def _pump(self, address: str, headers: dict[str, str], pipe: Pipe) -> None:
        timer = Timer(self._limits, asyncio.get_running_loop().time() + MAX_LISTENING_TIME)
        current_timer.set(timer)
        asked = headers.get("Range")
        try:
            for _ in range(MAX_REDIRECTS + 1):
                async with self._client.stream("GET", address, headers) as response:
                    if response.has_redirect_location:
                        address = redirected(address, response.headers["location"])
                        continue
                    if response.status_code == 416 and "Range" in headers:
                        del headers["Range"]  # ask for the whole recording
                        asked = None
                        continue
                    _check(response)
                    whole = response.status_code == httpx.codes.OK or _is_whole(response)
                    if not whole and "Range" not in headers:
                        headers["Range"] = "bytes=0-"  # a part that was not asked for
                        continue
                    if not whole and headers["Range"] == "bytes=0-" != asked:
                        raise UpstreamFailed("the Callbutton server sends only parts of this recording")
                    chunks = response.aiter_raw(CHUNK_SIZE)
                    first = await anext(chunks, b"")
                    beginning = first if whole else await self._beginning(response, first, address)
                    pipe.begin(response, _media_type(response, beginning), whole=whole and asked is None)
                    chunk: bytes | None = first or None
                    while chunk is not None:
                        timer.received += len(chunk)
                        if timer.received > MAX_RECORDING_SIZE:
                            raise UpstreamMalformed(f"the recording is larger than {MAX_RECORDING_SIZE} bytes")
                        await pipe.queue.put(chunk)
                        if pipe.stopped:
                            return
                        chunk = await anext(chunks, None)
                    await pipe.queue.put(None)
                    return
            raise UpstreamFailed("redirect loop while fetching the recording from the Callbutton server")
        except (UpstreamError, NotFound) as error:
            await pipe.fail(error)
        except httpx.InvalidURL:
            await pipe.fail(UpstreamMalformed("the Callbutton server redirects the recording to an invalid address"))
        except Exception as error:
            await pipe.fail(error)  # the consumer would wait without end otherwise
            raise

    async def _beginning(self, part: httpx.Response, first: bytes, address: str) -> bytes:
        """The first bytes of a recording, of which a part was fetched. They are fetched only if nothing else tells."""
        labelled = _label(part).startswith("audio/")
        starts = part.headers["content-range"].startswith("bytes 0-")
        if labelled or (starts and len(first) >= SIGNATURE_SIZE):
            return first if starts else b""
        headers = {"Accept": "audio/*", "Accept-Encoding": "identity", "Range": f"bytes=0-{SIGNATURE_SIZE - 1}"}
        async with self._client.stream("GET", address, headers) as response:
            _check(response)
            return await anext(response.aiter_raw(CHUNK_SIZE), b"")


class Pipe:
    """A bounded queue of chunks between the task that fetches them and the consumer."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes | Exception | None] = asyncio.Queue(MAX_BUFFERED)
        self.begun: asyncio.Future[tuple[int, dict[str, str]]] = asyncio.get_running_loop().create_future()
        self.stopped = False

    def begin(self, response: httpx.Response, media_type: str, *, whole: bool) -> None:
        """Hand over status and headers, once the first chunk is there or the recording is empty."""
        headers = {name: response.headers[name] for name in PASSED_ON if name in response.headers}
        if whole:
            headers.pop("content-range", None)
        status = httpx.codes.OK if whole else response.status_code
        self.begun.set_result((int(status), {"content-type": media_type, **headers}))

    async def fail(self, error: Exception) -> None:
        """Raise an error in the consumer, before or after its first chunk."""
        if self.stopped:
            return
        if self.begun.done():
            await self.queue.put(error)
        else:
            self.begun.set_exception(error)

    def stop(self) -> None:
        """End the task, which may wait for space in the queue."""
        self.stopped = True
        while not self.queue.empty():
            self.queue.get_nowait()


class ChunkReader:
    """The consumer's end of a pipe. The pipe stops when this object is deleted, even if nothing was read."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    def __aiter__(self) -> ChunkReader:
        return self

    async def __anext__(self) -> bytes:
        chunk = await self._pipe.queue.get()
        if isinstance(chunk, Exception):
            raise chunk
        if chunk is None:
            raise StopAsyncIteration
        return chunk

    def __del__(self) -> None:
        self._pipe.stop()


def redirected(address: str, location: str) -> str:
    """The address to which a recording is redirected. Raises UpstreamFailed for another server."""
    with suppress(ValueError):
        target = urljoin(address, location)
        secure = urlsplit(target).scheme == "https" and origin(target)[1] == origin(address)[1]
        if secure or origin(target) == origin(address):
            return target
    raise UpstreamFailed("the Callbutton server redirects the recording to another server")


def _check(response: httpx.Response) -> None:
    """Check that a response is a recording. Raises NotFound, UpstreamError."""
    status, headers = response.status_code, response.headers
    if status in (401, 403):
        raise UpstreamUnauthorized(None, None)
    if status in (404, 410):
        raise NotFound("the Callbutton server has no recording of this call")
    if status not in (200, 206) or (status == 206 and not CONTENT_RANGE.fullmatch(headers.get("content-range", ""))):
        raise UpstreamFailed(f"the Callbutton server answered with HTTP status {status}")
    if {word.strip() for word in headers.get("content-encoding", "").lower().split(",")} & CODINGS:
        raise UpstreamMalformed("the recording has an unsupported content encoding")
    if (length := headers.get("content-length", "0")).isdigit() and int(length) > MAX_RECORDING_SIZE:
        raise UpstreamMalformed(f"the recording is larger than {MAX_RECORDING_SIZE} bytes")


def _is_range(text: str) -> bool:
    """Whether the value of a Range header asks for one range. One that ends before its start is invalid (RFC 9110)."""
    match = RANGE.fullmatch(text)
    return match is not None and not (match[2] and int(match[2]) < int(match[1]))


def _is_whole(response: httpx.Response) -> bool:
    """Whether a part, of status 206, is all of the recording."""
    parts = CONTENT_RANGE.fullmatch(response.headers["content-range"])
    return parts is not None and parts[1] == "0" and parts[3].isdigit() and int(parts[2]) + 1 == int(parts[3])


def _label(response: httpx.Response) -> str:
    return str(response.headers.get("content-type", "")).strip().lower()


def _media_type(response: httpx.Response, beginning: bytes) -> str:
    """The media type of a recording, by its first bytes, else by its label. Raises NotFound, UpstreamMalformed."""
    label = _label(response)
    for signature, media_type in SIGNATURES.items():
        if signature.match(beginning):
            return media_type
    if label.startswith(("text/html", "application/xhtml")) or HTML.match(beginning):
        raise NotFound("the Callbutton server has no recording of this call")
    if not label.startswith("audio/"):
        raise UpstreamMalformed("the Callbutton server's reply for this recording is not audio")
    return label
