"""A window as a stream, in bounded memory: span after span, the next read while the last goes out.

Rules:
- Spans hold about as many calls as memory is meant for: the next is as long as the density of the last says, and
  grows by no more than its pace allows.
- A span goes out once its neighbour is read: an id that both have is kept where its POST was sent later (T2). Only the
  very first calls go at once; what has gone out is not sent again.
- A failure ends the stream with its error, never as if it were whole (T3).
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Sequence
from itertools import islice

import msgspec
from msgspec import Struct

from gateway.callbutton.central import whole
from gateway.ledger.extents import DAY, Extent, deduplicated, key_of, not_superseded
from gateway.ledger.pages import Keep, order
from gateway.ledger.reader import Ledger, Question
from gateway.ledger.readings import Reading
from gateway.model import Call, Window

FIRST_SPAN = 4 * 3600  # seconds
CALLS = 4000  # of a span of rows that go out, about
AT_ONCE = 100  # calls
MAX_INLINE = 10_000  # calls that are compared without a thread, in about 2 ms
MAX_HELD = 300_000  # calls that wait to be counted: three spans


class Pace(Struct, frozen=True):
    """How long spans are: the first, in seconds; how many times longer the next may be; how many calls one has."""

    first: int
    growth: int
    calls: int


ROWS = Pace(FIRST_SPAN, 4, CALLS)  # calls go out and are let go
COUNTS = Pace(DAY, 32, 100_000)  # calls are counted where they are


class Part(Struct, frozen=True):
    """Calls in order, and the reading that they are from."""

    calls: list[Call]
    reading: Reading


class Counted(Struct, frozen=True):
    """Extents with calls that nobody else has, and the reading that they are from."""

    extents: Sequence[Extent]
    reading: Reading


class Spans:
    """The spans of a window, read one after another, the next one ahead."""

    def __init__(
        self, ledger: Ledger, question: Question, now: float, patience: float, pace: Pace, *, newest_first: bool
    ) -> None:
        self._ledger = ledger
        self._question = question
        self._patience = patience
        self._newest_first = newest_first
        window = question.window
        self._rest = Window(window.start, min(window.end, max(window.start, math.ceil(now))))
        self._pace = pace
        self._span = pace.first
        self._ahead: asyncio.Task[Reading] | None = None

    def begin(self) -> None:
        """Begin to read the next span, if there is one."""
        rest = self._rest
        if rest.start >= rest.end:
            return
        if self._newest_first:
            part = whole(Window(max(rest.start, rest.end - self._span), rest.end))
            part = Window(max(part.start, rest.start), rest.end)
            self._rest = Window(rest.start, part.start)
        else:
            part = whole(Window(rest.start, min(rest.end, rest.start + self._span)))
            part = Window(rest.start, min(part.end, rest.end))
            self._rest = Window(part.end, rest.end)
        deadline = asyncio.get_running_loop().time() + self._patience
        question = msgspec.structs.replace(self._question, window=part, deadline=deadline)
        self._ahead = asyncio.create_task(self._ledger.read(question, self._span))

    async def next(self) -> Reading | None:
        """Wait for the span that was begun. Raises UpstreamError."""
        if self._ahead is None:
            return None
        reading = await self._ahead
        self._ahead = None
        growth = self._pace.calls / max(1, reading.size)
        self._span = max(60, int(self._span * min(self._pace.growth, growth)))
        return reading

    def leave(self) -> None:
        """Wait no longer; flights under way land all the same."""
        if self._ahead is not None:
            self._ahead.cancel()


async def stream(
    ledger: Ledger, question: Question, now: float, patience: float, *, newest_first: bool, keep: Keep = list
) -> AsyncIterator[Part]:
    """Read a window as parts in order; each span may take `patience` seconds. Raises UpstreamError."""
    spans = Spans(ledger, question, now, patience, ROWS, newest_first=newest_first)
    try:
        spans.begin()
        reading = await spans.next()
        gone: list[Call] = []
        calls: list[Call] = []
        if reading is not None:
            calls = _ordered(keep(reading.calls), newest_first=newest_first)
            spans.begin()
            gone, calls = calls[:AT_ONCE], calls[AT_ONCE:]
            yield Part(gone, reading)
        while reading is not None:
            following = await spans.next()
            found: list[Call] = []
            if following is not None:
                spans.begin()
                found = _ordered(keep(following.calls), newest_first=newest_first)
                calls = not_superseded(calls, reading.extents, following.extents, ties=False)
                found = not_superseded(found, following.extents, reading.extents, ties=True)
                sent = set(map(key_of, gone))
                found = [call for call in found if key_of(call) not in sent]
            yield Part(calls, reading)
            reading, calls, gone = following, found, []
    finally:
        spans.leave()


async def counted(ledger: Ledger, question: Question, now: float, patience: float) -> AsyncIterator[Counted]:
    """Read a window as extents to count, the oldest first, each call in one of them. Raises UpstreamError.

    Spans wait for those after them, up to `MAX_HELD` calls: a call that moved between them is in one of them.
    """
    spans = Spans(ledger, question, now, patience, COUNTS, newest_first=False)
    waiting: deque[Counted] = deque()
    held = 0
    try:
        spans.begin()
        while (reading := await spans.next()) is not None:
            spans.begin()
            waiting.append(Counted(reading.extents, reading))
            held += reading.size
            while held > MAX_HELD and len(waiting) > 2:
                await _deduplicate(waiting)
                held -= waiting[0].reading.size
                yield waiting.popleft()
        await _deduplicate(waiting)
        for part in waiting:
            yield part
    finally:
        spans.leave()


async def _deduplicate(parts: deque[Counted]) -> None:
    """Leave each call in the part that has its latest version; many calls in a thread, so that the loop goes on."""
    every = [extent for part in parts for extent in part.extents]
    many = sum(len(extent.calls) for extent in every) > MAX_INLINE
    rest = iter(await asyncio.to_thread(deduplicated, every) if many else deduplicated(every))
    for place, part in enumerate(parts):
        parts[place] = Counted(list(islice(rest, len(part.extents))), part.reading)


def _ordered(calls: Sequence[Call], *, newest_first: bool) -> list[Call]:
    return sorted(calls, key=order, reverse=newest_first)
