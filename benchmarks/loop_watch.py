"""A debug mode of the event loop, which records the slices that hold it for long, with the stack of the place.

Rules:
- A slice is the work of the loop between two marks. A mark is at the beginning and end of each callback and step of a
  task, and of each wait for sockets. The reading of all sockets that are ready is one slice.
- The time of a slice is CPU time of the loop's thread: other processes and other threads do not count. Collections of
  garbage are timed apart: their length follows from the heap of the process, not from the work of the slice.
- A busy neighbour on the same core doubles CPU times as well. Therefore a slice over the bound is judged by the pace of
  the thread right after it: its seconds are those of the reference machine at rest, whose pace is 1.
- A watcher thread samples the stack every few milliseconds. A slice that ends in time drops its samples.
- Everything is public API: a selector, a subclass of the loop, `faulthandler` for the stack.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import selectors
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from typing import TypeVarTuple

from msgspec import Struct

LONGEST = 0.010  # seconds; the promise of the gateway
INTERVAL = 0.002  # seconds between two samples of the stack
SWITCH = 0.0005  # seconds; how soon the watcher gets the interpreter: with 5 ms it samples what releases it
_Values = TypeVarTuple("_Values")  # the arguments of a callback
FRAMES = 12  # of a stack, the innermost first
PACE_SIZE, PACE_SECONDS = 2500, 0.0007  # a fixed workload, and its CPU time on the reference machine at rest


def pace() -> float:
    """How many times slower than the reference machine at rest this thread is now, at least 1. Takes about 5 ms."""
    times = []
    for _ in range(5):
        began = time.thread_time()
        found = {str(number): number * number % 977 for number in range(PACE_SIZE)}
        sorted(found, key=found.__getitem__)
        times.append(time.thread_time() - began)
    return max(1.0, statistics.median(times) / PACE_SECONDS)


class LongSlice(Struct, frozen=True):
    """A slice over the bound, with the stack that was seen most often.

    `seconds` is its CPU time, without that of `garbage` collection, divided by the `pace`.
    """

    seconds: float
    garbage: float
    pace: float
    stack: str

    def __str__(self) -> str:
        times = f"{self.seconds * 1e3:.1f} ms, and {self.garbage * 1e3:.1f} ms of garbage collection"
        return f"{times}, at a pace of {self.pace:.1f}\n{self.stack}"


class LoopWatch:
    """Times the slices of one event loop, which `make_loop` makes. `long` are those over `bound` seconds.

    `longest_collection` is that of garbage in the loop's thread, in CPU seconds.
    """

    def __init__(self, bound: float = LONGEST) -> None:
        self.bound = bound
        self.long: list[LongSlice] = []
        self.slices = 0
        self.longest_collection = 0.0
        self._busy = False
        self._thread = 0
        self._began = self._garbage = self._collecting = 0.0
        self._stacks: Counter[str] = Counter()  # of the current slice, filled by the watcher
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def make_loop(self) -> asyncio.AbstractEventLoop:
        """Make the loop. The thread that runs it calls this."""
        self._thread = threading.get_ident()
        return _Loop(self)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Sample stacks and time collections meanwhile."""
        watcher, interval = threading.Thread(target=self._watch), sys.getswitchinterval()
        watcher.start()
        sys.setswitchinterval(SWITCH)
        gc.callbacks.append(self._collect)
        try:
            yield
        finally:
            gc.callbacks.remove(self._collect)
            sys.setswitchinterval(interval)
            self._stopped.set()
            watcher.join()

    def mark(self, *, busy: bool = True) -> None:
        """End a slice and begin the next one, which is not timed unless `busy`."""
        if self._busy:
            seconds = time.thread_time() - self._began - self._garbage
            self.slices += 1
            if seconds > self.bound:
                self._judge(seconds)
        if self._stacks:
            self._stacks = Counter()
        self._busy, self._began, self._garbage = busy, time.thread_time(), 0.0

    def _judge(self, seconds: float) -> None:
        with self._lock:
            ((stack, _),) = self._stacks.most_common(1) or [("no sample of the stack", 0)]
        slower = pace()
        if seconds / slower > self.bound:
            self.long.append(LongSlice(seconds / slower, self._garbage / slower, slower, stack))

    def marked(self, callback: Callable[[*_Values], object]) -> Callable[[*_Values], None]:
        """Return the callback between two marks."""

        def call(*arguments: *_Values) -> None:
            self.mark()
            try:
                callback(*arguments)
            finally:
                self.mark()

        return call

    def _collect(self, phase: str, _: dict[str, int]) -> None:
        if threading.get_ident() == self._thread:
            now = time.thread_time()
            if phase == "start":
                self._collecting = now
            else:
                self._garbage += now - self._collecting
                self.longest_collection = max(self.longest_collection, now - self._collecting)

    def _watch(self) -> None:
        with tempfile.TemporaryFile() as file:
            while not self._stopped.wait(INTERVAL):
                stacks, number = self._stacks, self.slices
                if not self._busy:
                    continue
                file.seek(0)
                file.truncate()
                faulthandler.dump_traceback(file)
                file.seek(0)
                threads = file.read().decode().split("\n\n")
                sampled = [_frames(one) for one in threads if f"{self._thread:x} " in one.partition("\n")[0]]
                with self._lock:
                    if number == self.slices:
                        stacks.update(sampled)


def _frames(thread: str) -> str:
    return "\n".join(thread.splitlines()[1 : 1 + FRAMES])


class _Selector(selectors.DefaultSelector):
    def __init__(self, watch: LoopWatch) -> None:
        super().__init__()
        self._marking = watch

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._marking.mark(busy=False)
        ready = super().select(timeout)
        self._marking.mark()
        return ready


class _Loop(asyncio.SelectorEventLoop):
    """Marks each callback. `call_later` calls `call_at`."""

    def __init__(self, watch: LoopWatch) -> None:
        super().__init__(_Selector(watch))
        self._marking = watch

    def call_soon(
        self, callback: Callable[[*_Values], object], *args: *_Values, context: Context | None = None
    ) -> asyncio.Handle:
        return super().call_soon(self._marking.marked(callback), *args, context=context)

    def call_soon_threadsafe(
        self, callback: Callable[[*_Values], object], *args: *_Values, context: Context | None = None
    ) -> asyncio.Handle:
        return super().call_soon_threadsafe(self._marking.marked(callback), *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*_Values], object], *args: *_Values, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return super().call_at(when, self._marking.marked(callback), *args, context=context)
