"""Recordings of calls, streamed from where the upstream keeps them.

Rules:
- Where a recording is, is worked out here, never from what a consumer sent: the upstream's own value, if its scheme,
  host and port are those of the recording address or of the upstream; else the call's id in the recording address.
- Redirects are followed within that origin alone, and few. Only audio is handed on, and only so much of it.
- As everywhere, nothing is cancelled (see `transport`): a task reads a few pieces ahead of the consumer, and ends by
  itself once nobody reads.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from urllib.parse import quote, urljoin, urlsplit

import httpx
from msgspec import Struct

from gateway.callbutton.transport import CHUNK_SIZE, Client, Limits, Timer, current_timer
from gateway.errors import NotFound, Overloaded, UpstreamError, UpstreamFailed, UpstreamMalformed, UpstreamUnauthorized

MOST = 16  # under way at a time
MOST_BYTES = 512 * 1024**2  # of a recording
LONGEST = 3600  # seconds to listen
REDIRECTS = 3
AHEAD = 4  # pieces
RANGE = re.compile(r"bytes=(?:\d{1,12}-\d{0,12}|-\d{1,12})", re.ASCII)
PORTS = {"http": 80, "https": 443}
HANDED_ON = ("content-type", "content-length", "content-range", "accept-ranges")


class Recording(Struct):
    """A recording that is arriving: status 200, or 206 for a part."""

    status: int
    headers: dict[str, str]
    pieces: Listener


def origin(address: str) -> tuple[str, str, int | None]:
    """Scheme, host and port of an address. Raises ValueError."""
    parts = urlsplit(address)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or PORTS.get(parts.scheme)


def locate(value: str | None, identity: str, template: str, upstream: str) -> str:
    """Where a recording is: `value` is what the upstream said, `template` an address, or a path there, with {id}."""
    address = urljoin(upstream, template.replace("{id}", quote(identity, safe="")))
    with suppress(ValueError):
        if value is not None and origin(value) in (origin(address), origin(upstream)):
            return value
    return address


class Recordings:
    """The recordings of one upstream."""

    def __init__(self, template: str, upstream: str, limits: Limits, proxy: str | None = None) -> None:
        self._template = template
        self._upstream = upstream
        self._limits = limits
        self._client = Client(MOST, proxy)
        self._pumps: set[asyncio.Task[None]] = set()

    async def open(self, value: str | None, identity: str, part: str | None) -> Recording:
        """Begin to fetch a recording, or a part of it if the upstream knows how. Raises GatewayError."""
        if len(self._pumps) >= MOST:
            raise Overloaded("too many recordings are being streamed", 5)
        address = locate(value, identity, self._template, self._upstream)
        headers = {"Accept": "audio/*", "Accept-Encoding": "identity"}
        if part is not None and RANGE.fullmatch(part):
            headers["Range"] = part
        pipe = Pipe()
        task = asyncio.get_running_loop().create_task(self._pump(address, headers, pipe))
        self._pumps.add(task)
        task.add_done_callback(self._pumps.discard)
        try:
            response = await asyncio.shield(pipe.begun)
        except BaseException:
            pipe.stop()
            raise
        handed = {name: response.headers[name] for name in HANDED_ON if name in response.headers}
        return Recording(response.status_code, handed, Listener(pipe))

    async def close(self) -> None:
        """Let what is under way end, and close the connections."""
        await asyncio.gather(*self._pumps, return_exceptions=True)
        await self._client.aclose()

    async def _pump(self, address: str, headers: dict[str, str], pipe: Pipe) -> None:
        timer = Timer(self._limits, asyncio.get_running_loop().time() + LONGEST)
        current_timer.set(timer)
        try:
            for _ in range(REDIRECTS + 1):
                async with self._client.stream("GET", address, headers) as response:
                    if response.has_redirect_location:
                        address = _redirected(address, response.headers["location"])
                        continue
                    if response.status_code == 416 and "Range" in headers:
                        del headers["Range"]  # the whole, then
                        continue
                    _check(response)
                    async for piece in response.aiter_raw(CHUNK_SIZE):
                        timer.received += len(piece)
                        if timer.received > MOST_BYTES:
                            raise UpstreamMalformed(f"the recording is larger than {MOST_BYTES} bytes")
                        pipe.begin(response)
                        await pipe.queue.put(piece)
                        if pipe.stopped:
                            return
                    pipe.begin(response)
                    await pipe.queue.put(None)
                    return
            raise UpstreamFailed("redirect loop while fetching the recording from the Callbutton server")
        except (UpstreamError, NotFound) as error:
            await pipe.fail(error)
        except httpx.InvalidURL:
            await pipe.fail(UpstreamMalformed("the Callbutton server redirects the recording to an invalid address"))
        except Exception as error:
            await pipe.fail(error)  # or else the listener would wait for ever
            raise


class Pipe:
    """Pieces on their way from the task that fetches to the consumer who listens."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes | Exception | None] = asyncio.Queue(AHEAD)
        self.begun: asyncio.Future[httpx.Response] = asyncio.get_running_loop().create_future()
        self.stopped = False

    def begin(self, response: httpx.Response) -> None:
        """Tell the consumer that the first piece is there, or that there is none."""
        if not self.begun.done():
            self.begun.set_result(response)

    async def fail(self, error: Exception) -> None:
        """Tell the consumer, at whatever point he is."""
        if self.stopped:
            return
        if self.begun.done():
            await self.queue.put(error)
        else:
            self.begun.set_exception(error)

    def stop(self) -> None:
        """Nobody listens any more: let the task go on to see it."""
        self.stopped = True
        while not self.queue.empty():
            self.queue.get_nowait()


class Listener:
    """The consumer's end of a pipe; who drops it listens no more, even if he never began."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe

    def __aiter__(self) -> Listener:
        return self

    async def __anext__(self) -> bytes:
        piece = await self._pipe.queue.get()
        if isinstance(piece, Exception):
            raise piece
        if piece is None:
            raise StopAsyncIteration
        return piece

    def __del__(self) -> None:
        self._pipe.stop()


def _redirected(address: str, location: str) -> str:
    with suppress(ValueError):
        target = urljoin(address, location)
        if origin(target) == origin(address):
            return target
    raise UpstreamFailed("the Callbutton server redirects the recording to another server")


def _check(response: httpx.Response) -> None:
    """See that it is a recording. Raises NotFound, UpstreamError."""
    status, headers = response.status_code, response.headers
    if status in (401, 403):
        raise UpstreamUnauthorized(None, None)
    if status in (404, 410):
        raise NotFound("the Callbutton server has no recording of this call")
    if status not in (200, 206) or (status == 206 and "content-range" not in headers):
        raise UpstreamFailed(f"the Callbutton server answered with HTTP status {status}")
    if not headers.get("content-type", "").lower().startswith("audio/"):
        raise UpstreamMalformed("the Callbutton server's reply for this recording is not audio")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise UpstreamMalformed("the recording has an unsupported content encoding")
    if (length := headers.get("content-length", "0")).isdigit() and int(length) > MOST_BYTES:
        raise UpstreamMalformed(f"the recording is larger than {MOST_BYTES} bytes")
