"""The plan of a read: normalise, look up, find gaps, join flights, batch, POST, merge, filter.

Rules: a read rests on values that it holds (extents looked up, extents that its flights brought), so that nothing
dropped meanwhile is missing (T1). If any flight fails, the read fails (T3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple

from msgspec import Struct

from gateway.callbutton.central import whole
from gateway.ledger.extents import DAY, Extent, instant, merge, overlay
from gateway.ledger.flights import Fetch, Flight, Flights
from gateway.ledger.freshness import Rule, cut, gaps
from gateway.ledger.memory import Memory
from gateway.metrics import Metrics
from gateway.model import Call, Window

SPARSE = 100  # calls: spans double while the last held fewer
MOST_POSTS = 8  # a page that has cost so many is answered short


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
    stale: bool
    unreadable: int
    lookup: str


class Reading(Struct):
    """The calls of a window, unordered, and what they rest on."""

    calls: list[Call]
    as_of: float
    oldest_fetch: float
    unreadable: int
    cached: bool
    posts: int


class LedgerSettings(Struct, frozen=True):
    """How the ledger reads. `max_span` in seconds, `cache_bytes` in bytes."""

    plain: Rule
    with_status: Rule
    max_span: int
    batch: int
    cache_bytes: int


def position(call: Call) -> Position:
    """The place of a call."""
    return Position(call.start_time, call.id, call.client_code)


class Ledger:
    """Calls and extents of the clients seen so far."""

    def __init__(self, fetch: Fetch, settings: LedgerSettings, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._memory = Memory(settings.cache_bytes, metrics)
        self._flights = Flights(fetch, self._store, settings.plain.minimum)

    def _store(self, code: str, extent: Extent, status: bool) -> None:
        self._memory.store(code, extent, status=status)

    async def close(self) -> None:
        """Let the flights land."""
        await self._flights.close()

    async def read(self, codes: Sequence[str], window: Window, *, status: bool, span: int = 0) -> Reading:
        """Read the calls of a window. No POST asks for more than the longest span allowed, or `span` seconds if longer.

        Raises UpstreamError.
        """
        now = self._clock()
        window = Window(window.start, min(window.end, math.ceil(now)))
        if window.start >= window.end:
            return Reading([], now, now, 0, cached=True, posts=0)
        rule = self._settings.with_status if status else self._settings.plain
        held = {code: self._memory.lookup(code, window, status=status) for code in codes}
        flights: list[Flight] = []
        wanted: dict[Window, list[str]] = {}
        for code in codes:
            code_gaps = gaps(held[code], window, now, rule, whole)
            self._metrics.lookups.labels("hit" if not code_gaps else "partial" if held[code] else "miss").inc()
            for gap in code_gaps:
                for rest in self._join(code, gap, now, status, flights):
                    for part in cut(rest, max(span, self._settings.max_span), whole):
                        wanted.setdefault(part, []).append(code)
        joined = len(flights)
        for gap, needing in wanted.items():
            batches = self._flights.batches(needing, self._settings.batch)
            flights += [self._flights.start(batch, gap, now, status=status) for batch in batches]
        self._metrics.joined.inc(joined)
        for flight in flights:
            for code, extent in (await flight.wait()).items():
                if code in held:
                    held[code] = overlay(held[code], extent)
        used = [extent.within(window) for code in codes for extent in held[code] if extent.window.overlaps(window)]
        return Reading(
            merge(used),
            min(e.sent for e in used if e.window.end == window.end),
            min(e.sent for e in used),
            sum({id(e): e.unreadable for e in used}.values()),
            cached=not flights,
            posts=len(flights) - joined,
        )

    def _join(self, code: str, gap: Window, now: float, status: bool, flights: list[Flight]) -> list[Window]:
        """Join the flights that serve a gap; return what is left of it."""
        rest = [gap]
        for flight in self._flights.joinable(code, gap, now, status=status):
            if flight not in flights:
                flights.append(flight)
            rest = [part for window in rest for part in _minus(window, flight.reach)]
        return [whole(window) for window in rest]

    async def read_page(
        self,
        codes: Sequence[str],
        window: Window,
        *,
        status: bool,
        newest_first: bool,
        limit: int,
        after: Position | None,
    ) -> Page:
        """Read one page, fetching no further than it needs. Raises UpstreamError."""
        now = self._clock()
        rest = Window(window.start, min(window.end, max(window.start, math.ceil(now))))
        if after is not None:
            second = math.floor(after.start_time.timestamp())
            rest = Window(rest.start, min(rest.end, second + 1)) if newest_first else Window(second, rest.end)
        calls: list[Call] = []
        readings: list[Reading] = []
        span = DAY
        while rest.start < rest.end and len(calls) <= limit and sum(r.posts for r in readings) < MOST_POSTS:
            part = (
                Window(max(rest.start, rest.end - span), rest.end)
                if newest_first
                else Window(rest.start, min(rest.end, rest.start + span))
            )
            part = _clipped(whole(part), rest)
            reading = await self.read(codes, part, status=status, span=span)
            rest = Window(rest.start, part.start) if newest_first else Window(part.end, rest.end)
            found = sorted(reading.calls, key=position, reverse=newest_first)
            if after is not None:
                found = [c for c in found if (position(c) < after if newest_first else position(c) > after)]
            calls += found
            readings.append(reading)
            if len(reading.calls) < SPARSE:
                span *= 2
        following = position(calls[limit - 1]) if len(calls) > limit or (len(calls) == limit and _left(rest)) else None
        if following is None and _left(rest):
            following = Position(instant(rest.end if newest_first else rest.start), "", "")
        newest = readings[0 if newest_first else -1] if readings else None
        return Page(
            calls=calls[:limit],
            after=following,
            as_of=newest.as_of if newest else now,
            oldest_fetch=min((r.oldest_fetch for r in readings), default=now),
            stale=False,
            unreadable=sum(r.unreadable for r in readings),
            lookup=_lookup(readings),
        )


def _lookup(readings: Sequence[Reading]) -> str:
    cached = [reading.cached for reading in readings]
    return "hit" if all(cached) else "partial" if any(cached) else "miss"


def _left(window: Window) -> bool:
    return window.start < window.end


def _clipped(window: Window, to: Window) -> Window:
    return Window(max(window.start, to.start), min(window.end, to.end))


def _minus(window: Window, other: Window) -> list[Window]:
    if not window.overlaps(other):
        return [window]
    parts = (Window(window.start, other.start), Window(other.end, window.end))
    return [part for part in parts if _left(part)]
