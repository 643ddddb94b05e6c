"""Level 1: extents in process, by client and day, bounded in bytes.

Rule: a segmented LRU. Days that were read once are evicted before days that were read again, so that an export cannot
evict the working set.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterable

from msgspec.structs import astuple

from gateway.cache.extents import DAY, Extent, by_day, overlay
from gateway.metrics import Metrics
from gateway.model import EVERY_CLIENT, Call, Window

Key = tuple[str, bool, int | None]  # client, with status, day since 1970; None for long stretches without calls
LONG = 32 * DAY
PROTECTED = 0.8  # of the bound, at most, for days that were read again; what segmented LRUs commonly use
SAMPLE = 8  # calls of an extent that are measured, at most
SKEW = 1.0  # seconds that the clocks of replicas may differ
SETS_BYTES = 128  # of a call in memoised sets of ids, callers and texts
EXTENT_BYTES = 400  # of an extent without calls, with its place in lists and in the order of eviction


def bytes_of(calls: tuple[Call, ...]) -> int:
    """Estimate what calls hold in memory, from a sample."""
    if not calls:
        return 0
    sample = calls[:: -(-len(calls) // SAMPLE)]
    return len(calls) * sum(map(_bytes_of_call, sample)) // len(sample)


def _bytes_of_call(call: Call) -> int:
    values: list[object] = [*astuple(call), *call.extra.values()]
    total = sys.getsizeof(call) + 48 + SETS_BYTES + sys.getsizeof(call.extra)
    for part in (call.address, call.status):
        if part is not None:
            values += astuple(part)
            total += sys.getsizeof(part)
    return total + sum([sys.getsizeof(value) for value in values if type(value) is str])


class Level1:
    """Days of extents."""

    def __init__(self, bound: int, metrics: Metrics) -> None:
        self._bound = bound
        self._metrics = metrics
        self._days: dict[Key, tuple[list[Extent], int]] = {}
        self._probation: OrderedDict[Key, None] = (
            OrderedDict()
        )  # evicted first: not read since stored, or moved back from protected
        self._protected: OrderedDict[Key, None] = OrderedDict()
        self._bytes = 0
        self._bytes_protected = 0
        self._held: dict[tuple[str, bool], set[int]] = {}  # the days of each client

    def lookup(self, code: str, window: Window, now: float, *, status: bool, used: bool = False) -> list[Extent]:
        """Extents that overlap the window, sorted, not overlapping each other: for each point the latest POST's.

        With status: those with status alone. Those of every client serve each client that they list. One that was
        sent over a second ahead of now is dropped: the clock was wrong, then or now. `used` counts as a read.
        """
        kinds = (True,) if status else (True, False)
        owners = (code,) if code == EVERY_CLIENT else (code, EVERY_CLIENT)
        found: list[Extent] = []
        for day in self._days_held(owners, kinds, window):
            merged: list[Extent] = []
            for kind in kinds:
                for owner in owners:
                    layer = self._of(owner, code, kind, day, now)
                    if not merged:
                        merged = layer
                    else:
                        for extent in layer:
                            merged = overlay(merged, extent)
            if within := [extent for extent in merged if extent.window.overlaps(window)]:
                found += within
                if used:
                    self._use((owner, kind, day) for owner in owners for kind in kinds)
        for kind in kinds:
            for owner in owners:
                for extent in self._of(owner, code, kind, None, now):
                    if extent.window.overlaps(window):
                        found = overlay(found, extent.within(window))
        return found

    def clients_held(self, codes: Iterable[str], window: Window, *, status: bool) -> list[str]:
        """Those of the codes of which extents are held, beside those of every client, on the days of a window."""
        kinds = (True,) if status else (True, False)
        return [
            code
            for code in codes
            if any((code, kind, None) in self._days for kind in kinds) or self._days_held((code,), kinds, window)
        ]

    def _days_held(self, owners: Iterable[str], kinds: Iterable[bool], window: Window) -> list[int]:
        """The days of a window of which something is held, in order, at the cost of the smaller of the two."""
        first, after = window.start // DAY, -(-window.end // DAY)
        days: set[int] = set()
        for held in (self._held.get((owner, kind), set()) for owner in owners for kind in kinds):
            days |= (
                {d for d in held if first <= d < after}
                if len(held) < after - first
                else held & set(range(first, after))
            )
        return sorted(days)

    def _of(self, owner: str, code: str, kind: bool, day: int | None, now: float) -> list[Extent]:
        extents = self._day((owner, kind, day), now)
        return extents if owner == code else [part for extent in extents if (part := extent.of_client(code))]

    def _day(self, key: Key, now: float) -> list[Extent]:
        held = self._days.get(key)
        if held is None:
            return []
        extents, _ = held
        if any(extent.sent > now + SKEW for extent in extents):
            self._metrics.skew.inc()
            extents = [extent for extent in extents if extent.sent <= now + SKEW]
            self._put(key, extents)
        return extents

    def store(self, code: str, extent: Extent, *, status: bool) -> None:
        """Store an extent; where another was sent later, that one stays. One with status replaces both kinds."""
        for day, part in by_day(extent, LONG):
            key = code, status, day
            self._put(key, overlay(self._days[key][0] if key in self._days else (), part))
            if status and (plain := (code, False, day)) in self._days:
                kept = [one for one in self._days[plain][0] if one.sent > part.sent] + [
                    rest for one in self._days[plain][0] if one.sent <= part.sent for rest in one.without(part.window)
                ]
                self._put(plain, sorted(kept, key=lambda one: one.window))
        while self._bytes > self._bound and self._days:
            self._put(next(iter(self._probation or self._protected)), ())
            self._metrics.evictions.inc()
        self._metrics.cache_bytes.set(self._bytes)

    def _put(self, key: Key, extents: Iterable[Extent]) -> None:
        owner, kind, day = key
        _, before = self._days.pop(key, ([], 0))
        kept = list(extents)
        size = sum(EXTENT_BYTES + bytes_of(extent.calls) for extent in kept)
        self._bytes += size - before
        if key in self._protected:
            self._bytes_protected += size - before
        if kept:
            self._days[key] = (kept, size)
            rank = self._protected if key in self._protected else self._probation
            rank[key] = None
            rank.move_to_end(key)
            if day is not None:
                self._held.setdefault((owner, kind), set()).add(day)
        else:
            self._probation.pop(key, None)
            self._protected.pop(key, None)
            self._forget(owner, kind, day)

    def _use(self, keys: Iterable[Key]) -> None:
        """Move days to the protected segment, and its least recently used ones back if it is too large."""
        for key in keys:
            if key in self._protected:
                self._protected.move_to_end(key)
            elif key in self._probation:
                del self._probation[key]
                self._protected[key] = None
                self._bytes_protected += self._days[key][1]
        while self._bytes_protected > PROTECTED * self._bound:
            key, _ = self._protected.popitem(last=False)
            self._bytes_protected -= self._days[key][1]
            self._probation[key] = None

    def _forget(self, owner: str, kind: bool, day: int | None) -> None:
        days = self._held.get((owner, kind))
        if days is not None and day is not None:
            days.discard(day)
            if not days:
                del self._held[owner, kind]
