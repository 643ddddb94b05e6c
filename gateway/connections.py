"""What uvicorn lacks towards slow clients, at the end, and in speed: its protocol and its server with our patience.

Rules:
- A connection has one task for all its requests, and a timer only once something is waited for: most requests arrive
  whole, and the next one soon.
- A request must be whole, head and body, within `WHOLE` seconds of its first byte, a new connection's of its opening;
  its head is at most `MOST_HEAD` bytes. A connection without a request is closed after `IDLE` seconds, more than load
  balancers keep theirs, so that they never send on one that is being closed.
- Who hangs up is not answered further: the request is cancelled, with `left` in its state.
- Who does not take in what is sent to it within `WRITE` seconds is cut off.
- There is a bound of connections; past it the answer is 503 at once.
- On SIGTERM readiness ends first. For `drain` seconds more everything is answered, with `Connection: close`; then
  nothing new is accepted, and what is under way ends. A second signal, or SIGINT, does not wait for that.
"""

from __future__ import annotations

import asyncio
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType
from typing import Any, cast
from urllib.parse import unquote

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from gateway.responses import CLOSE, Whole

WHOLE, IDLE, WRITE = 10.0, 75, 30.0  # seconds
MOST_HEAD = 32 * 1024  # bytes
SPARE = 100  # file descriptors that are not for connections


class Patience(HttpToolsProtocol):
    """One connection."""

    whole, write, most_head = WHOLE, WRITE, MOST_HEAD
    most = max(SPARE, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE)
    problem: Callable[[int, str], bytes] = staticmethod(lambda _, detail: detail.encode())

    def __init__(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401 - uvicorn's
        super().__init__(*arguments, **named)
        self._whole_task: asyncio.TimerHandle | None = None
        self._write_task: asyncio.TimerHandle | None = None
        self._head_left: int | None = self.most_head  # None while no head is being read
        self._reading = False  # the rest of a request
        self._idle_since: float | None = None
        self._task: asyncio.Task[None] | None = None
        self._idle: asyncio.Future[None] | None = None  # what the task waits for without a request
        self._next: RequestResponseCycle | None = None
        self._answering: RequestResponseCycle | None = None
        self._lost = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, unless there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.most:
            self._refuse(503, "too many connections", b"retry-after: 1\r\n")
        else:
            self._await_whole()

    def connection_lost(self, exc: Exception | None) -> None:
        """End, and with it the request that is being answered."""
        self._stop_timers()
        self._lost = True
        self._wake()
        cycle = self._answering
        if cycle is not None and not cycle.response_complete and self._task is not None:
            cycle.scope["state"]["left"] = True
            self._task.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read what has come, a head no further than it may go; what is not whole must be soon."""
        self._read(data)
        if self._reading and self._whole_task is None:
            self._await_whole()

    def _read(self, data: bytes) -> None:
        while data and not self.transport.is_closing():
            if self._head_left is None:
                super().data_received(data)
                return
            if not self._head_left:
                self._refuse(400, f"the head of the request is longer than {self.most_head} bytes")
                return
            piece, data = data[: self._head_left], data[self._head_left :]
            self._head_left -= len(piece)
            super().data_received(piece)

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        if self._head_left is None:
            self._head_left = self.most_head
        self._reading = True

    def on_headers_complete(self) -> None:
        """Begin to answer, in half of uvicorn's time: without its root path, WebSockets, access log and own bound."""
        self._head_left = None
        parser, scope, before, url = self.parser, self.scope, self.cycle, httptools.parse_url(self.url)
        version, path = parser.get_http_version(), url.path.decode("ascii")
        scope["http_version"], scope["method"] = version, parser.get_method().decode("ascii")
        scope["path"], scope["raw_path"] = unquote(path) if "%" in path else path, url.path
        scope["query_string"] = url.query or b""
        self.cycle = Whole(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version != "1.0" and parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        if before is None or before.response_complete:
            self._begin(self.cycle)
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))

    def on_message_complete(self) -> None:
        """End the reading of a request."""
        self._reading = False
        if self._whole_task is not None:
            self._whole_task.cancel()
            self._whole_task = None
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP."""
        self._refuse(400, msg.rstrip("."))

    def pause_writing(self) -> None:
        """Wait for the client to take in what was sent."""
        super().pause_writing()
        self._cut_off_later()

    def resume_writing(self) -> None:
        """Go on."""
        super().resume_writing()
        if self._write_task is not None:
            self._write_task.cancel()
            self._write_task = None

    def on_response_complete(self) -> None:
        """Go on to the next request."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._begin(self.pipeline.pop()[0])
            return
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._await_next(self.timeout_keep_alive)

    def timeout_keep_alive_handler(self) -> None:
        """Close what has been idle for long, and cut it off if it does not take in the rest."""
        self.timeout_keep_alive_task = None
        if self._idle_since is None:
            return
        left = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left > 0:
            self._await_next(left)
        else:
            super().timeout_keep_alive_handler()
            self._cut_off_later()

    def _unset_keepalive_if_required(self) -> None:
        self._idle_since = None  # the timer looks at it

    def _await_next(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def _begin(self, cycle: RequestResponseCycle) -> None:
        self._next = cycle
        if self._task is None:
            self._task = self.loop.create_task(self._answer_all())
        self._wake()

    async def _answer_all(self) -> None:
        """Answer the requests of this connection, one after the other; a task for each would cost as much again."""
        task = cast("asyncio.Task[None]", self._task)
        while not self._lost and not task.cancelling():
            if (cycle := self._next) is None:
                self._idle = self.loop.create_future()
                await self._idle
                self._idle = None
                continue
            self._next, self._answering = None, cycle
            self.tasks.add(task)  # the end of the server waits for it
            try:
                await cycle.run_asgi(self.app)
            finally:
                self._answering = None
                self.tasks.discard(task)

    def _wake(self) -> None:
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _await_whole(self) -> None:
        self._whole_task = self.loop.call_later(self.whole, self._not_whole)

    def _not_whole(self) -> None:
        self._whole_task = None
        if self.cycle is not None and not self.cycle.response_complete:
            self._await_whole()  # a request before this one is being answered
        else:
            self.transport.close()
            self._cut_off_later()

    def _cut_off_later(self) -> None:
        if self._write_task is None:
            self._write_task = self.loop.call_later(self.write, self.transport.abort)

    def _stop_timers(self) -> None:
        for task in (self._whole_task, self._write_task, self.timeout_keep_alive_task):
            if task is not None:
                task.cancel()
        self._whole_task = self._write_task = self.timeout_keep_alive_task = None

    def _refuse(self, status: int, detail: str, headers: bytes = b"") -> None:
        body = self.problem(status, detail)
        reason = b"Bad Request" if status == 400 else b"Service Unavailable"
        self.transport.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: application/problem+json\r\nconnection: close\r\n" % (status, reason)
            + b"content-length: %d\r\n%s\r\n" % (len(body), headers)
            + body
        )
        self.transport.close()
        self._cut_off_later()


class Server(uvicorn.Server):
    """uvicorn's server, which ends with exit code 0, after `drain` seconds; `stopping` is called first.

    Without `signals` it heeds none: who runs it calls `handle_exit`.
    """

    def __init__(
        self, config: uvicorn.Config, drain: float, stopping: Callable[[], None], *, signals: bool = True
    ) -> None:
        super().__init__(config)
        self._signals = signals
        self._drain = drain
        self._stopping = stopping
        self._stop_at: float | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Heed signals while serving."""
        with super().capture_signals() if self._signals else nullcontext():
            yield

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - a signal handler
        """Begin to stop, or stop at once."""
        if self.should_exit:
            self.force_exit = True
        elif sig == signal.SIGINT or self._stop_at is not None or not self._drain:
            self.should_exit = True
        else:
            self._stop_at = time.monotonic() + self._drain
        self._stopping()

    async def on_tick(self, counter: int) -> bool:
        """Look after the end ten times a second."""
        ended = await super().on_tick(counter)
        if self._stop_at is None:
            return ended
        if CLOSE not in self.server_state.default_headers:
            self.server_state.default_headers = [*self.server_state.default_headers, CLOSE]
        return ended or time.monotonic() >= self._stop_at
