"""Scans: a window read span after span, as a page, as a stream of calls, or as extents to count.

Rules:
- A page is fetched no further than it needs. The first span is the 24 hours nearest the sort's beginning; spans double
  while the last held few calls. A page that has cost 8 POSTs, or examined 100,000 calls, is returned short.
- A stream or a count reads the next span while the last one is used. The length of a span follows from the density of
  the one before it, and grows by no more than its pace allows.
- Of an id that a window holds twice, the version whose POST was sent later counts (T2), wherever the two lie. A page is
  compared with all extents of the window. A stream or a count is compared with the extents of the part that is
  not read yet, a stream with the span read next, a count with those within `MAX_HELD` calls. An id that has been sent
  is not sent again, even if a later version of it is fetched afterwards.
- A failure ends a stream with its error, never as if it were complete (T3).
"""

from __future__ import annotations

import asyncio
import math
from array import array
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from itertools import chain, islice
from operator import attrgetter
from typing import NamedTuple

import msgspec
from msgspec import Struct

from gateway.cache.deduplication import deduplicated_in_steps, without_calls
from gateway.cache.extents import DAY, Extent, Keep, Key, instant
from gateway.cache.freshness import Provenance
from gateway.cache.packed_calls import in_whole_seconds, starts_of
from gateway.cache.reader import Cache, Query, ReadResult
from gateway.callbutton.central_time import align_to_fold
from gateway.model import Call, UnreadableCall, Window
from gateway.slices import Steps, in_slices, parts_of, sorted_in_steps

SPARSE = 100  # calls: the spans of a page double while the last held fewer
MAX_PAGE_POSTS = 8  # a page that has cost this many is returned short
MAX_PAGE_CALLS = 100_000  # examined for one page, 100 ms
FIRST_CALLS = 100  # of a stream, sent before the second span is read
MIN_SPAN = 60  # seconds
MAX_HELD = 300_000  # calls that wait to be counted: three spans
STEP_CALLS = 500  # calls that are filtered in one step, or whose ids are hashed; less than a millisecond
Sees = Callable[[str], bool]  # true for client codes that the consumer may see


class Position(NamedTuple):
    """The place of a call in the order of all lists."""

    start_time: datetime
    id: str
    client_code: str


class Page(Struct):
    """Calls in order; `after` is where the next page begins, None at the end.

    `unreadable` counts the unreadable records from where the page begins to where the next one does. `span` is how many
    seconds the next page may read at once.
    """

    calls: list[Call]
    after: Position | None
    unreadable: int
    provenance: Provenance
    span: int


order = attrgetter(*Position._fields)  # a call's position as a bare tuple, four times as fast


def position(record: Call | UnreadableCall) -> Position:
    """The position of a record in the order of lists."""
    return Position(record.start_time, record.id, record.client_code)


def unreadable_of(extents: Iterable[Extent], sees: Sees) -> list[UnreadableCall]:
    """The unreadable records of the clients that a consumer sees."""
    return [record for extent in extents for record in extent.unreadable if sees(record.client_code)]


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
    sees: Sees = bool,
    span: int = DAY,
) -> Page:
    """Read one page of the calls to keep, the first `span` seconds first. Raises UpstreamError.

    `texts` are the texts of every call to keep, by field (`model.text_reader`): extents without them are skipped.
    """
    rest = window = _up_to(query.window, now)
    if after is not None:
        second = math.floor(after.start_time.timestamp())
        rest = Window(rest.start, min(rest.end, second + 1)) if newest_first else Window(second, rest.end)
    first = rest
    step_size = min(max(limit + 1, FIRST_CALLS), STEP_CALLS)

    def from_page(extent: Extent) -> Steps[Sequence[Call]]:
        for field, text in (texts or {}).items():
            if not (yield from extent.may_have(field, text)):
                return ()
        kept: list[Call] = []  # as many as the page can show, with all of the last one's second
        for step in in_whole_seconds(extent.calls, step_size, backwards=newest_first):
            found = keep(step)
            if after is not None:
                found = [call for call in found if (order(call) < after if newest_first else order(call) > after)]
            kept += found
            yield
            if len(kept) > limit:
                break
        return kept

    def examine(read: Window) -> Steps[tuple[Sequence[Extent], list[Sequence[Call]]]]:
        others: list[Extent] = []
        for extent in held:
            others += extent.without(read)
            yield
        unique = (yield from deduplicated_in_steps([*extents, *others]))[: len(extents)]
        found: list[Sequence[Call]] = []
        for place, extent in enumerate(unique):
            is_known = place < len(distinct) and extent is distinct[place]
            found.append(calls[place] if is_known else (yield from from_page(extent)))
            yield
        return unique, found

    extents: list[Extent] = []
    held: list[Extent] = []
    distinct: Sequence[Extent] = ()
    calls: list[Sequence[Call]] = []  # of each extent
    total: Provenance | None = None
    count = posts = examined = 0
    while rest.start < rest.end and count <= limit and posts < MAX_PAGE_POSTS and examined < MAX_PAGE_CALLS:
        part, rest = _next_span(rest, span, newest_first=newest_first)
        reading = await cache.read(msgspec.structs.replace(query, window=part), span)
        if total is None:  # `changed` counts from before this lookup
            held = await cache.held(msgspec.structs.replace(query, window=window))
        total = total.combine(reading, newest_first=newest_first) if total else reading
        extents += reading.extents
        read = Window(part.start, first.end) if newest_first else Window(first.start, part.end)
        distinct, calls = await in_slices(examine(read))
        count = sum(map(len, calls))
        posts, examined = posts + reading.posts, examined + reading.size
        if reading.size < SPARSE:
            span *= 2
    ordered = await in_slices(_ordered(list(chain.from_iterable(calls)), newest_first=newest_first))
    following = None
    if count > limit or (count == limit and rest.start < rest.end):
        following = position(ordered[limit - 1])
    elif rest.start < rest.end:
        following = Position(instant(rest.end if newest_first else rest.start), "", "")
    unreadable = map(position, unreadable_of(distinct, sees))
    latest, earliest = (after, following) if newest_first else (following, after)
    return Page(
        calls=ordered[:limit],
        after=following,
        unreadable=sum((not latest or one < latest) and (not earliest or one > earliest) for one in unreadable),
        provenance=total or Provenance(planned=now, as_of=now, oldest_fetch=now, fresh_until=now),
        span=span,
    )


class Pace(Struct, frozen=True):
    """The length of spans: the first in seconds, how many times longer the next may be, the calls of one."""

    first: int
    growth: int
    calls: int


ROWS = Pace(4 * 3600, 4, 4000)  # calls are rendered and dropped
COUNTS = Pace(DAY, 32, 100_000)  # calls are counted in the cache


class Part(Struct, frozen=True):
    """Calls in order, the unreadable records among them, and the reading that they are from."""

    calls: list[Call]
    unreadable: list[UnreadableCall]
    reading: ReadResult


class Counted(Struct, frozen=True):
    """Extents that have no record in common with others, and the reading that they are from."""

    extents: Sequence[Extent]
    reading: ReadResult


class SentIds:
    """The records that a scan has handed on, in 8 bytes each. Only those in overlapping ranges of ids are compared."""

    def __init__(self) -> None:
        self._parts: list[tuple[str, str, array[int]]] = []

    def add(self, extents: Iterable[Extent]) -> Steps[None]:
        """Add the records of extents, in steps."""
        bounds: list[str] = []
        hashes = array("q")
        for code, ids in chain.from_iterable(extent.ids.items() for extent in extents):
            bounds += (min(ids), max(ids))
            for step in parts_of(list(ids), STEP_CALLS):
                hashes.extend([hash((code, id_)) for id_ in step])
                yield
        if hashes:
            self._parts.append((min(bounds), max(bounds), hashes))

    def removed_from(self, extents: Sequence[Extent]) -> Steps[Sequence[Extent]]:
        """The extents without the records that were added, in steps."""
        ranges = [bounds for extent in extents for bounds in extent.id_ranges.values()]
        near: list[array[int]] = []
        for first, last, part in self._parts:
            if any(first <= greatest and least <= last for least, greatest in ranges):
                near.append(part)
            yield
        keys: dict[int, Key] = {}
        for code, ids in chain.from_iterable(extent.ids.items() for extent in extents) if near else ():
            for step in parts_of(list(ids), STEP_CALLS):
                keys |= {hash((code, id_)): (code, id_) for id_ in step}
                yield
        lost: dict[str, set[str]] = defaultdict(set)
        for part in near:
            for number in keys.keys() & part:
                code, id_ = keys[number]
                lost[code].add(id_)
            yield
        kept = list(extents)
        for place, extent in enumerate(extents if lost else ()):
            kept[place] = yield from without_calls(extent, lost)
        return kept


class Spans:
    """The spans of a window, read one after another, the next one ahead. `rest` is the part not begun.

    The deadline of the query applies to all spans. With `timeout`, it applies to the first one, and each of the others
    may take `timeout` seconds.
    """

    def __init__(
        self, cache: Cache, query: Query, now: float, pace: Pace, *, newest_first: bool, timeout: float | None = None
    ) -> None:
        self._cache = cache
        self._query = query
        self._deadline = query.deadline
        self._timeout = timeout
        self.newest_first = newest_first
        self.rest = _up_to(query.window, now)
        self._pace = pace
        self._span = pace.first
        self._ahead: asyncio.Task[ReadResult] | None = None

    def begin(self) -> None:
        """Begin to read the next span, if there is one."""
        if self.rest.start < self.rest.end:
            part, self.rest = _next_span(self.rest, self._span, newest_first=self.newest_first)
            if self._deadline is None and self._timeout is not None:
                deadline: float | None = asyncio.get_running_loop().time() + self._timeout
            else:
                deadline = self._deadline
            query = msgspec.structs.replace(self._query, window=part, deadline=deadline)
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
        """Stop waiting. Flights in progress continue."""
        if self._ahead is not None:
            self._ahead.cancel()


async def stream(
    cache: Cache, query: Query, now: float, timeout: float, *, newest_first: bool, keep: Keep = list
) -> AsyncIterator[Part]:
    """Read a window as parts in order; each span after the first may take `timeout` seconds. Raises UpstreamError.

    The first part is the beginning of a span; every other one completes a span.
    """
    spans = Spans(cache, query, now, ROWS, newest_first=newest_first, timeout=timeout)
    async for part in _settled(cache, query, spans, 0):
        calls: list[Call] = []
        for extent in part.extents:
            calls += await in_slices(_kept(extent.calls, keep))
        records = [record for extent in part.extents for record in extent.unreadable]
        yield Part(await in_slices(_ordered(calls, newest_first=newest_first)), records, part.reading)


async def counted(cache: Cache, query: Query, now: float) -> AsyncIterator[Counted]:
    """Read a window as extents to count, the oldest first, each record in one of them. Raises UpstreamError."""
    spans = Spans(cache, query, now, COUNTS, newest_first=False)
    async for part in _settled(cache, query, spans, MAX_HELD):
        yield part


async def _settled(cache: Cache, query: Query, spans: Spans, max_held: int) -> AsyncIterator[Counted]:
    """Read spans whose extents have no record in common. Those of up to `max_held` calls wait to be compared.

    If no call may wait, the first part has about `FIRST_CALLS` calls, so that a stream begins early.
    """
    waiting: deque[Counted] = deque()
    sent = SentIds()
    held = 0
    try:
        spans.begin()
        while (reading := await spans.next()) is not None:
            ahead = msgspec.structs.replace(query, window=spans.rest)
            spans.begin()
            waiting.append(Counted(await in_slices(sent.removed_from(reading.extents)), reading))
            held += reading.size
            if held >= max_held:
                await _settle(waiting, await cache.held(ahead))
            if max_held == 0 and len(waiting) == 1:
                first, waiting[0] = _split(waiting[0], FIRST_CALLS, newest_first=spans.newest_first)
                await in_slices(sent.add(first.extents))
                yield first
            while held > max_held and len(waiting) > 1:
                part = waiting.popleft()
                held -= part.reading.size
                await in_slices(sent.add(part.extents))
                yield part
        await _settle(waiting, ())
        for part in waiting:
            yield part
    finally:
        spans.leave()


async def _settle(parts: deque[Counted], others: Iterable[Extent]) -> None:
    """Leave each record in the part that has its latest version, unless one of `others` has a later one."""
    extents = [*chain.from_iterable(part.extents for part in parts), *others]
    rest = iter(await in_slices(deduplicated_in_steps(extents)))
    for place, part in enumerate(parts):
        parts[place] = Counted(list(islice(rest, len(part.extents))), part.reading)


def _split(part: Counted, count: int, *, newest_first: bool) -> tuple[Counted, Counted]:
    """The part of about the first `count` calls, and the rest."""
    starts = sorted(chain.from_iterable(starts_of(extent.calls) for extent in part.extents), reverse=newest_first)
    if len(starts) <= count:
        return part, Counted((), part.reading)
    edge = starts[count - 1] + (not newest_first)
    windows = [extent.window for extent in part.extents]  # those of single clients come after those of every client
    halves = Window(min(windows).start, edge), Window(edge, max(window.end for window in windows))
    first, rest = halves if newest_first else reversed(halves)  # `rest` is cut off
    return (
        Counted([piece for extent in part.extents for piece in extent.without(first)], part.reading),
        Counted([piece for extent in part.extents for piece in extent.without(rest)], part.reading),
    )


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


def _kept(calls: Sequence[Call], keep: Keep) -> Steps[list[Call]]:
    kept: list[Call] = []
    for step in parts_of(calls, STEP_CALLS):
        kept += keep(step)
        yield
    return kept


def _ordered(calls: Sequence[Call], *, newest_first: bool) -> Steps[list[Call]]:
    ordered = yield from sorted_in_steps(calls, order)
    return ordered[::-1] if newest_first else ordered
