"""The parent of the workers: starts them, replaces those that end, adds up what they count, and stops them.

Rules:
- A worker that ends is replaced at once; one that ends again within a minute after a pause, twice as long each time,
  during which connections go to the others. Those that wait there when a pause begins are reset.
- A worker that ends before it serves, while no other serves, is not replaced: the start has failed, exit code 1.
- A worker that says nothing for a minute is killed.
- Signals are handed on, each once; when the last worker has ended the supervisor does, with exit code 0 if all did.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence

from gateway.workers.channel import Channel, Kind
from gateway.workers.sums import Counted, Sums, parse_counted
from gateway.workers.worker import Worker

LOGGER = logging.getLogger(__name__)
SIGNALS = signal.SIGTERM, signal.SIGINT
PAUSES = (1.0, 30.0)  # seconds before a worker is replaced: when it has ended twice, and at most
STEADY = 60.0  # seconds after which a worker that ends is as good as any
SILENCE = 60.0  # seconds
COLLECT = 1.0  # seconds for workers to tell what they count; of one that is late the last second's is taken
LOOK = 0.02  # seconds between looks at a process that is about to end

Work = Callable[[int, Worker, Sequence[socket.socket]], int]


class Place:
    """Where a worker is, one after the other, with the sockets that it serves."""

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        self.sockets = sockets
        self.pid = 0
        self.end: socket.socket | None = None  # ours of the pair
        self.channel: Channel | None = None  # over it, while a worker is there
        self.serves = False
        self.counted: Counted = []
        self.answer: asyncio.Future[None] | None = None  # done when it has told what it was asked for
        self.ended_early = 0  # times in a row


class Supervisor:
    """Runs `work` in a process for each group of sockets; it returns the process's exit code. `tend`: once a second."""

    def __init__(
        self, work: Work, sockets: Sequence[Sequence[socket.socket]], tend: Callable[[], None] = lambda: None
    ) -> None:
        self._work = work
        self._tend = tend
        self._places = [Place(group) for group in sockets]
        self._vacant: asyncio.Queue[int | None] = asyncio.Queue()  # None: all is over
        self._tasks: set[asyncio.Task[None]] = set()
        self._scrapes: list[Channel] = []
        self._collecting = False
        self._sums = Sums()
        self._stopping = False
        self._code = 0

    def run(self) -> int:
        """Run until told to stop; returns the exit code."""
        gc.freeze()  # what was loaded stays where it is, in memory that all share
        with asyncio.Runner() as runner:
            loop = runner.get_loop()
            for sig in SIGNALS:
                loop.add_signal_handler(sig, self._stop, sig)
            self._keep(loop.create_task(self._tend_always()))
            for number in range(len(self._places)):
                self._vacant.put_nowait(number)
            while (vacant := runner.run(self._vacant.get())) is not None:
                if not self._stopping:
                    self._fork(vacant, loop)
        return self._code

    def _fork(self, number: int, loop: asyncio.AbstractEventLoop) -> None:
        place = self._places[number]
        place.end, theirs = socket.socketpair()
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        place.pid = os.fork()
        if not place.pid:
            self._be_worker(number, theirs)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        theirs.close()
        self._keep(loop.create_task(self._attend(number, place)))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tend_always(self) -> None:
        while not self._stopping:
            self._tend()
            await asyncio.sleep(1)

    def _be_worker(self, number: int, end: socket.socket) -> None:
        """In the child: leave everything that is the supervisor's, work, and end."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for sig in SIGNALS:
                signal.signal(sig, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            for other, place in enumerate(self._places):
                if place.end is not None and place.end.fileno() >= 0:
                    os.close(place.end.fileno())
                for opened in place.sockets if other != number else ():
                    opened.close()
            code = self._work(number, Worker(end), self._places[number].sockets)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException:
            LOGGER.exception("a worker crashed")
        finally:
            with contextlib.suppress(OSError):
                sys.stderr.flush()
            os._exit(code)

    async def _attend(self, number: int, place: Place) -> None:
        """Hear a worker until it has ended; then see to what comes of its place."""
        began = asyncio.get_running_loop().time()
        place.channel = channel = await Channel.open(place.end)  # type: ignore[arg-type]
        if self._stopping:
            channel.send(Kind.STOP, bytes((signal.SIGTERM,)))
        try:
            while True:
                async with asyncio.timeout(SILENCE):
                    kind, body = await channel.receive()
                self._hear(place, kind, body)
        except TimeoutError:
            LOGGER.error("a worker that said nothing for a minute is killed")
            os.kill(place.pid, signal.SIGKILL)
        except EOFError:
            pass
        await channel.close()
        while (code := _exit_code(place.pid)) is None:  # noqa: ASYNC110 - nothing tells of it without a thread
            await asyncio.sleep(LOOK)
        served, place.serves, place.end, place.channel = place.serves, False, None, None
        self._sums.bury(place.counted)
        place.counted = []
        if place.answer is not None and not place.answer.done():
            place.answer.set_result(None)
        await self._replace(number, place, code, served, began)

    async def _replace(self, number: int, place: Place, code: int, served: bool, began: float) -> None:
        if not self._stopping:
            if not served and not any(other.serves for other in self._places):
                LOGGER.error("no worker can start", extra={"fields": {"exitCode": code}})
                self._code = 1
                self._stop(signal.SIGINT)
            else:
                steady = asyncio.get_running_loop().time() - began > STEADY
                place.ended_early = 0 if steady else place.ended_early + 1
                least, most = PAUSES
                pause = min(most, least * 2 ** (place.ended_early - 2)) if place.ended_early > 1 else 0
                fields = {"exitCode": code, "pause": pause}
                LOGGER.error("a worker ended; another takes its place", extra={"fields": fields})
                await self._rest(place, pause)
        elif code:
            self._code = 1
        if not self._stopping:
            self._vacant.put_nowait(number)
        elif all(other.end is None for other in self._places):
            self._vacant.put_nowait(None)

    async def _rest(self, place: Place, pause: float) -> None:
        """Take a place's sockets out of service for a while."""
        if pause:
            for opened in place.sockets:
                with contextlib.suppress(OSError):
                    opened.shutdown(socket.SHUT_RD)
            await asyncio.sleep(pause)
            if not self._stopping:
                for opened in place.sockets:
                    opened.listen()

    def _hear(self, place: Place, kind: Kind, body: bytes) -> None:
        if kind is Kind.SCRAPE and place.channel is not None:
            self._scrapes.append(place.channel)
            if not self._collecting:
                self._collecting = True
                self._keep(asyncio.create_task(self._collect()))
            return
        place.serves = place.serves or kind is Kind.BEAT
        place.counted = parse_counted(body)
        if kind is Kind.COUNTED and place.answer is not None and not place.answer.done():
            place.answer.set_result(None)

    async def _collect(self) -> None:
        """Ask all workers what they have counted, and tell the sums; who asks meanwhile has a turn of his own."""
        try:
            while self._scrapes:
                askers, self._scrapes = self._scrapes, []
                answers = []
                for place in self._places:
                    if place.channel is not None:
                        place.answer = asyncio.get_running_loop().create_future()
                        answers.append(place.answer)
                        place.channel.send(Kind.COLLECT)
                await asyncio.wait(answers, timeout=COLLECT)
                text = self._sums.render([place.counted for place in self._places if place.channel is not None])
                for asker in askers:
                    asker.send(Kind.SUMS, text)
        finally:
            self._collecting = False

    def _stop(self, sig: int) -> None:
        """Hand on a signal; nobody is replaced any more."""
        self._stopping = True
        for place in self._places:
            for opened in place.sockets:
                opened.close()
            if place.channel is not None:
                place.channel.send(Kind.STOP, bytes((sig,)))
        if all(place.end is None for place in self._places):
            self._vacant.put_nowait(None)


def _exit_code(pid: int) -> int | None:
    """The exit code of a process that has ended, negative for a signal."""
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None
