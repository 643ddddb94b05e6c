"""Aggregates of extents: counts and talk time, by bucket of time and by group. Pure.

Rules:
- The aggregates of a whole extent are counted once for the same buckets, groups and filter, and memoised with it.
- They are counted in cells of an hour, or of a quarter where a zone's days begin between hours; the buckets of every
  calendar are put together from cells. Parts of extents, at the edges of a window, are counted without cells.
- Extents have no call in common: they were deduplicated first (T2).
- A caller is new once in a window: in the bucket and the group of the first call.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain
from operator import attrgetter
from sys import intern

import msgspec
from msgspec import Struct

from gateway.cache.extents import Extent, Keep, instant
from gateway.model import Call, CallResult

Group = str | None
_start_time = attrgetter("start_time")
MAX_MEMOISED = 8  # aggregates of an extent, cells included
CELLS = (3600, 900)  # seconds: hours, and for zones such as India's their quarters


class Totals(Struct):
    """Figures of some calls. `talked` counts the calls with a talk time, `new` the callers whose first call is here."""

    calls: int = 0
    connected: int = 0
    duration: int = 0
    talk: int = 0
    talked: int = 0
    callers: int = 0
    new: int = 0

    @property
    def mean_talk(self) -> float | None:
        """Mean talk time in seconds of the calls that have one."""
        return round(self.talk / self.talked, 3) if self.talked else None

    def add(self, other: Totals) -> None:
        """Add the figures of other calls, but not their callers: the same caller may be in both."""
        self.calls += other.calls
        self.connected += other.connected
        self.duration += other.duration
        self.talk += other.talk
        self.talked += other.talked


class PartialAggregate(Struct, frozen=True):
    """Calls of one extent, bucket and group: their figures, their callers and, if there are groups, the calls."""

    totals: Totals
    callers: set[str]
    calls: Sequence[Call]


Groups = dict[Group, PartialAggregate]


class AggregateSpec(Struct, frozen=True):
    """How to count: buckets begin at `starts`; `group` names the group of a call, `keep` filters.

    `name` tells specs apart: two of the same name count the same calls in buckets of the same calendar. `counted` names
    the calls and groups alone.
    """

    name: Hashable
    counted: Hashable
    starts: Sequence[int]
    group: Callable[[Call], Group] | None
    keep: Keep


def aggregate(extent: Extent, spec: AggregateSpec) -> dict[int, Groups]:
    """The aggregates of an extent, by the start of the bucket."""
    if extent.stored is not extent:
        return dict(_count(extent, spec, spec.starts))
    return _memoised(extent, (spec.name,), lambda: dict(_from_cells(extent, spec)))


def _memoised(extent: Extent, name: Hashable, count: Callable[[], dict[int, Groups]]) -> dict[int, Groups]:
    known: dict[int, Groups] | None = extent.aggregates.pop(name, None)
    if known is None:
        known = count()
        if len(extent.aggregates) >= MAX_MEMOISED:
            del extent.aggregates[next(iter(extent.aggregates))]  # the least recently used
    extent.aggregates[name] = known
    return known


def _from_cells(extent: Extent, spec: AggregateSpec) -> Iterator[tuple[int, Groups]]:
    """Count by buckets, from cells if their edges are edges of cells."""
    starts, window = spec.starts, extent.window
    edges = starts[bisect_right(starts, window.start) : bisect_left(starts, window.end)]
    size = next((size for size in CELLS if not any(edge % size for edge in edges)), None)
    if size is None:
        yield from _count(extent, spec, starts)
        return
    cell_starts = range(window.start // size * size, window.end, size)
    cells = _memoised(extent, (spec.counted, size), lambda: dict(_count(extent, spec, cell_starts)))
    by_bucket: dict[int, list[Groups]] = defaultdict(list)
    for cell, groups in cells.items():
        by_bucket[starts[bisect_right(starts, max(cell, window.start)) - 1]].append(groups)
    for start, many in by_bucket.items():
        names = dict.fromkeys(chain.from_iterable(many))
        yield start, {name: _joined([groups[name] for groups in many if name in groups]) for name in names}


def _joined(parts: Sequence[PartialAggregate]) -> PartialAggregate:
    if len(parts) == 1:
        return parts[0]
    totals = zip(*[msgspec.structs.astuple(part.totals) for part in parts], strict=True)
    calls = tuple(chain.from_iterable([part.calls for part in parts]))
    return PartialAggregate(Totals(*map(sum, totals)), set[str]().union(*[part.callers for part in parts]), calls)


def _count(extent: Extent, spec: AggregateSpec, starts: Sequence[int]) -> Iterator[tuple[int, Groups]]:
    calls = spec.keep(extent.calls)
    place = 0
    while place < len(calls):
        bucket = bisect_right(starts, calls[place].start_time.timestamp()) - 1
        end = len(calls)
        if bucket + 1 < len(starts):
            end = bisect_left(calls, instant(starts[bucket + 1]), place, key=_start_time)
        yield starts[bucket], _bucket(calls[place:end], spec.group)
        place = end


def _bucket(calls: Sequence[Call], group: Callable[[Call], Group] | None) -> Groups:
    if group is None:
        return {None: _partial(calls, ())}
    by_group: dict[Group, list[Call]] = defaultdict(list)
    for call in calls:
        by_group[group(call)].append(call)
    return {name: _partial(found, found) for name, found in by_group.items()}


def _partial(calls: Sequence[Call], kept: Sequence[Call]) -> PartialAggregate:
    talk = [call.talk_time_seconds for call in calls]
    totals = Totals(
        calls=len(calls),
        connected=[call.result for call in calls].count(CallResult.CONNECTED),
        duration=sum(filter(None, [call.duration_seconds for call in calls])),
        talk=sum(filter(None, talk)),
        talked=len(talk) - talk.count(None),
    )
    # Interned, equal numbers of all sets are one object: sets compare them without reading them.
    callers = {intern(caller) for call in calls if (caller := call.ani) is not None}
    return PartialAggregate(totals, callers, kept)


class Aggregator:
    """The aggregates of a window, put together from those of its extents."""

    def __init__(self, spec: AggregateSpec) -> None:
        self._spec = spec
        self._found: dict[int, dict[Group, list[PartialAggregate]]] = {}

    def add(self, extent: Extent) -> None:
        """Add an extent."""
        for start, groups in aggregate(extent, self._spec).items():
            found = self._found.setdefault(start, {})
            for name, part in groups.items():
                found.setdefault(name, []).append(part)

    def sums(self) -> tuple[list[tuple[int, dict[Group, Totals]]], Totals]:
        """The figures by bucket, empty ones included, and by group; and of all calls."""
        total, seen = Totals(), set[str]()
        rows = []
        for start in self._spec.starts:
            found = self._found.get(start, {})
            groups: dict[Group, Totals] = {}
            for name, parts in found.items():
                groups[name] = Totals(callers=_distinct([part.callers for part in parts]))
                for part in parts:
                    groups[name].add(part.totals)
                total.add(groups[name])
            for name, new in _newcomers(found, seen).items():
                groups[name].new = new
            rows.append((start, groups))
        total.callers = total.new = len(seen)
        return rows, total


def _distinct(sets: Sequence[set[str]]) -> int:
    """The number of distinct callers; most often there are one or two sets."""
    if len(sets) == 2:
        return len(sets[0]) + len(sets[1]) - len(sets[0] & sets[1])
    return len(sets[0].union(*sets[1:]))


def _newcomers(found: Mapping[Group, Sequence[PartialAggregate]], seen: set[str]) -> dict[Group, int]:
    """The number of callers of each group of a bucket that were not seen before. They are added to `seen`."""
    if len(found) == 1:
        ((name, parts),) = found.items()
        before = len(seen)
        seen.update(*[part.callers for part in parts])
        return {name: len(seen) - before}
    new: dict[Group, set[str]] = {}
    here, several = set[str](), set[str]()
    for name, parts in found.items():
        callers = parts[0].callers.union(*[part.callers for part in parts[1:]]) - seen
        several |= callers & here
        here |= callers
        new[name] = set(callers)
    if several:  # callers of more than one group: the first call decides
        first: dict[str | None, tuple[datetime, Group]] = {}
        for name, parts in found.items():
            for call in (call for part in parts for call in part.calls if call.ani in several):
                if call.ani not in first or call.start_time < first[call.ani][0]:
                    first[call.ani] = call.start_time, name
        for name, callers in new.items():
            callers -= {caller for caller in several if first[caller][1] != name}
    seen |= here
    return {name: len(callers) for name, callers in new.items()}
