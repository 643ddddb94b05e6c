"""Scans: a window read span after span, as a page, as a stream of calls, or as extents to count.

Rules:
- A page is fetched no further than it needs. The first span is the 24 hours nearest the sort's beginning; spans double
  while the last held few calls. A page that has cost 8 POSTs, or examined 100,000 calls, is returned short.
- A stream or a count reads the next span while the last one is used. The length of a span follows from the density of
  the one before it, and grows by no more than its pace allows.
- Of an id that two spans hold, the version whose POST was sent later counts (T2). Of a page all spans are compared, of
  a count those within `MAX_HELD` calls, of a stream neighbours: a span is sent once the next one is read. Only the very
  first calls are sent at once, and not sent again.
- A failure ends a stream with its error, never as if it were complete (T3).
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from itertools import islice
from operator import attrgetter
from typing import NamedTuple

import msgspec
from msgspec import Struct

from gateway.cache.extents import DAY, Extent, Keep, deduplicated, instant, key_of, not_superseded
from gateway.cache.reader import Cache, Query, ReadResult
from gateway.callbutton.central_time import align_to_fold
from gateway.model import Call, Window

SPARSE = 100  # calls: the spans of a page double while the last held fewer
MAX_PAGE_POSTS = 8  # a page that has cost this many is returned short
MAX_PAGE_CALLS = 100_000  # examined for one page, 100 ms
FIRST_CALLS = 100  # of a stream, sent before the second span is read
MIN_SPAN = 60  # seconds
MAX_HELD = 300_000  # calls that wait to be counted: three spans
MAX_INLINE = 10_000  # calls that are compared without a thread, in about 2 ms


class Position(NamedTuple):
    """The place of a call in the order of all lists."""

    start_time: datetime
    id: str
    client_code: str


class Page(Struct):
    """Calls in order; `after` is where the next page begins, None at the end. Instants are seconds since 1970."""

    calls: list[Call]
    after: Position | None
    as_of: float
    oldest_fetch: float
    fresh_until: float
    stale: bool
    unreadable: int
    lookup: str
    collapsed: bool


order = attrgetter(*Position._fields)  # a call's position as a bare tuple, four times as fast


def position(call: Call) -> Position:
    """The position of a call in the order of lists."""
    return Position(call.start_time, call.id, call.client_code)


async def read_page(
    cache: Cache,
    query: Query,
    now: float,
    *,
    newest_first: bool,
    limit: int,
    after: Position | None,
    keep: Keep = list,
    texts: Mapping[str, str] | None = None,
) -> Page:
    """Read one page of the calls to keep. Raises UpstreamError.

    `texts` are the texts of every call to keep, by the names of fields: extents without them are skipped.
    """
    rest = _up_to(query.window, now)
    if after is not None:
        second = math.floor(after.start_time.timestamp())
        rest = Window(rest.start, min(rest.end, second + 1)) if newest_first else Window(second, rest.end)
    calls: list[Call] = []
    readings: list[ReadResult] = []
    span = DAY
    posts = examined = 0
    while rest.start < rest.end and len(calls) <= limit and posts < MAX_PAGE_POSTS and examined < MAX_PAGE_CALLS:
        part, rest = _next_span(rest, span, newest_first=newest_first)
        reading = await cache.read(msgspec.structs.replace(query, window=part), span)
        before = [extent for earlier in readings for extent in earlier.extents]
        found = keep(reading.calls_with(texts or {}))
        found = _ordered(not_superseded(found, reading.extents, before, ties=True), newest_first=newest_first)
        if after is not None:
            found = [call for call in found if (position(call) < after if newest_first else position(call) > after)]
        calls = not_superseded(calls, before, reading.extents, ties=False) + found
        readings.append(reading)
        posts, examined = posts + reading.posts, examined + reading.size
        if reading.size < SPARSE:
            span *= 2
    following = None
    if len(calls) > limit or (len(calls) == limit and rest.start < rest.end):
        following = position(calls[limit - 1])
    elif rest.start < rest.end:
        following = Position(instant(rest.end if newest_first else rest.start), "", "")
    newest = readings[0 if newest_first else -1] if readings else None
    lookups = {reading.lookup for reading in readings} or {"hit"}
    return Page(
        calls=calls[:limit],
        after=following,
        as_of=newest.as_of if newest else now,
        oldest_fetch=min((reading.oldest_fetch for reading in readings), default=now),
        fresh_until=min((reading.fresh_until for reading in readings), default=now),
        stale=any(reading.stale for reading in readings),
        unreadable=sum(reading.unreadable for reading in readings),
        lookup=lookups.pop() if len(lookups) == 1 else "partial",
        collapsed=any(r.collapsed for r in readings) and all(r.collapsed or r.lookup == "hit" for r in readings),
    )


class Pace(Struct, frozen=True):
    """The length of spans: the first in seconds, how many times longer the next may be, the calls of one."""

    first: int
    growth: int
    calls: int


ROWS = Pace(4 * 3600, 4, 4000)  # calls are rendered and dropped
COUNTS = Pace(DAY, 32, 100_000)  # calls are counted in the cache


class Part(Struct, frozen=True):
    """Calls in order, and the reading that they are from."""

    calls: list[Call]
    reading: ReadResult


class Counted(Struct, frozen=True):
    """Extents that have no call in common with others, and the reading that they are from."""

    extents: Sequence[Extent]
    reading: ReadResult


class Spans:
    """The spans of a window, read one after another, the next one ahead.

    The deadline of the query is that of all spans; with a `timeout` of the first alone, and others may take so long.
    """

    def __init__(
        self, cache: Cache, query: Query, now: float, pace: Pace, *, newest_first: bool, timeout: float | None = None
    ) -> None:
        self._cache = cache
        self._question = query
        self._deadline = query.deadline
        self._timeout = timeout
        self._newest_first = newest_first
        self._rest = _up_to(query.window, now)
        self._pace = pace
        self._span = pace.first
        self._ahead: asyncio.Task[ReadResult] | None = None

    def begin(self) -> None:
        """Begin to read the next span, if there is one."""
        if self._rest.start < self._rest.end:
            part, self._rest = _next_span(self._rest, self._span, newest_first=self._newest_first)
            if self._deadline is None and self._timeout is not None:
                deadline: float | None = asyncio.get_running_loop().time() + self._timeout
            else:
                deadline = self._deadline
            query = msgspec.structs.replace(self._question, window=part, deadline=deadline)
            self._ahead = asyncio.create_task(self._cache.read(query, self._span))
            if self._timeout is not None:
                self._deadline = None

    async def next(self) -> ReadResult | None:
        """Wait for the span that was begun. Raises UpstreamError."""
        if self._ahead is None:
            return None
        reading = await self._ahead
        self._ahead = None
        growth = self._pace.calls / max(1, reading.size)
        self._span = max(MIN_SPAN, int(self._span * min(self._pace.growth, growth)))
        return reading

    def leave(self) -> None:
        """Stop waiting. Flights in progress land all the same."""
        if self._ahead is not None:
            self._ahead.cancel()


async def stream(
    cache: Cache, query: Query, now: float, timeout: float, *, newest_first: bool, keep: Keep = list
) -> AsyncIterator[Part]:
    """Read a window as parts in order; each span after the first may take `timeout` seconds. Raises UpstreamError."""
    spans = Spans(cache, query, now, ROWS, newest_first=newest_first, timeout=timeout)
    try:
        spans.begin()
        reading = await spans.next()
        gone: list[Call] = []
        calls: list[Call] = []
        if reading is not None:
            calls = _ordered(keep(reading.calls), newest_first=newest_first)
            spans.begin()
            gone, calls = calls[:FIRST_CALLS], calls[FIRST_CALLS:]
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


async def counted(cache: Cache, query: Query, now: float) -> AsyncIterator[Counted]:
    """Read a window as extents to count, the oldest first, each call in one of them. Raises UpstreamError."""
    spans = Spans(cache, query, now, COUNTS, newest_first=False)
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
    """Leave each call in the part that has its latest version; many calls in a thread, which does not hold the loop."""
    every = [extent for part in parts for extent in part.extents]
    many = sum(len(extent.calls) for extent in every) > MAX_INLINE
    rest = iter(await asyncio.to_thread(deduplicated, every) if many else deduplicated(every))
    for place, part in enumerate(parts):
        parts[place] = Counted(list(islice(rest, len(part.extents))), part.reading)


def _up_to(window: Window, now: float) -> Window:
    """The part of a window up to now, which may be empty."""
    return Window(window.start, min(window.end, max(window.start, math.ceil(now))))


def _next_span(rest: Window, span: int, *, newest_first: bool) -> tuple[Window, Window]:
    """Cut a span off a window, at the end where the order begins. Returns the span and the rest."""
    if newest_first:
        start = align_to_fold(Window(max(rest.start, rest.end - span), rest.end)).start
        start = max(start, rest.start)
        return Window(start, rest.end), Window(rest.start, start)
    end = min(align_to_fold(Window(rest.start, min(rest.end, rest.start + span))).end, rest.end)
    return Window(rest.start, end), Window(end, rest.end)


def _ordered(calls: Sequence[Call], *, newest_first: bool) -> list[Call]:
    return sorted(calls, key=order, reverse=newest_first)
