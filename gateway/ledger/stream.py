"""A window as a stream, in bounded memory: span after span, the next read while the last goes out.

Rules:
- Spans hold about as many calls as memory is meant for: the next is as long as the density of the last says, and at
  most four times as long. The first is four hours.
- A span goes out once its neighbour is read: an id that both have is kept where its POST was sent later (T2). Only the
  very first calls go at once; what has gone out is not sent again.
- A failure ends the stream with its error, never as if it were whole (T3).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence

import msgspec
from msgspec import Struct

from gateway.callbutton.central import whole
from gateway.ledger.pages import Keep, order
from gateway.ledger.reader import Ledger, Question, Reading
from gateway.model import Call, Window

FIRST_SPAN = 4 * 3600  # seconds
GROWTH = 4
CALLS = 4000  # of a span, about
AT_ONCE = 100  # calls


class Part(Struct, frozen=True):
    """Calls in order, and the reading that they are from."""

    calls: list[Call]
    reading: Reading


class Spans:
    """The spans of a window, read one after another, the next one ahead."""

    def __init__(self, ledger: Ledger, question: Question, now: float, patience: float, *, newest_first: bool) -> None:
        self._ledger = ledger
        self._question = question
        self._patience = patience
        self._newest_first = newest_first
        window = question.window
        self._rest = Window(window.start, min(window.end, max(window.start, math.ceil(now))))
        self._span = FIRST_SPAN
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
        growth = CALLS / max(1, reading.size)
        self._span = max(60, int(self._span * min(GROWTH, growth)))
        return reading

    def leave(self) -> None:
        """Wait no longer; flights under way land all the same."""
        if self._ahead is not None:
            self._ahead.cancel()


async def stream(
    ledger: Ledger, question: Question, now: float, patience: float, *, newest_first: bool, keep: Keep = list
) -> AsyncIterator[Part]:
    """Read a window as parts in order; each span may take `patience` seconds. Raises UpstreamError."""
    spans = Spans(ledger, question, now, patience, newest_first=newest_first)
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
                if following.meets(calls):
                    calls = [call for call in calls if following.sent(call) < reading.sent(call)]
                if reading.meets(found):
                    sent = {(call.client_code, call.id) for call in gone}
                    found = [
                        call
                        for call in found
                        if reading.sent(call) <= following.sent(call) and (call.client_code, call.id) not in sent
                    ]
            yield Part(calls, reading)
            reading, calls, gone = following, found, []
    finally:
        spans.leave()


def _ordered(calls: Sequence[Call], *, newest_first: bool) -> list[Call]:
    return sorted(calls, key=order, reverse=newest_first)
