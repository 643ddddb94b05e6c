"""Figures of extents: counts and talk time, by bucket of time and by group. Pure.

Rules:
- What an extent holds is counted once for the same buckets, groups and filter, and remembered with the extent.
- It is counted by hours, or quarters of hours where a zone's days begin between: buckets of every calendar are put
  together from these. Parts of extents, at a window's edges, are counted as they are.
- Extents have no call in common: where they had, they were put together first (T2).
- A caller is new once in a window: in the bucket and the group of the first call.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain
from operator import attrgetter
from sys import intern

import msgspec
from msgspec import Struct

from gateway.ledger.extents import Extent, instant
from gateway.ledger.pages import Keep
from gateway.model import Call, Result

Group = str | None
_start_time = attrgetter("start_time")
MOST_SHAPES = 8  # remembered of an extent, cells included
CELLS = (3600, 900)  # seconds: hours, and for zones such as India's quarters of them


class Count(Struct):
    """Figures of some calls; `talked` is how many say how long was talked, `new` how many callers called first here."""

    calls: int = 0
    connected: int = 0
    duration: int = 0
    talk: int = 0
    talked: int = 0
    callers: int = 0
    new: int = 0

    @property
    def mean_talk(self) -> float | None:
        """Mean talk time in seconds of the calls that say it."""
        return round(self.talk / self.talked, 3) if self.talked else None

    def add(self, other: Count) -> None:
        """Take in the figures of other calls, but for their callers, who may be the same."""
        self.calls += other.calls
        self.connected += other.connected
        self.duration += other.duration
        self.talk += other.talk
        self.talked += other.talked


class Part(Struct, frozen=True):
    """Calls of one extent, bucket and group: their figures, who called, and if there are groups the calls, in order."""

    count: Count
    callers: set[str]
    calls: Sequence[Call]


Groups = dict[Group, Part]


class Shape(Struct, frozen=True):
    """How to count: buckets begin at `starts`; `group` names what a call is counted under, `keep` filters.

    `name` tells shapes apart: two of the same name have buckets of the same calendar, and count alike. `counted` names
    what is counted, whatever the buckets.
    """

    name: Hashable
    counted: Hashable
    starts: Sequence[int]
    group: Callable[[Call], Group] | None
    keep: Keep


def count_extent(extent: Extent, shape: Shape) -> dict[int, Groups]:
    """The figures of an extent, by the start of the bucket."""
    if extent.whole is not extent:
        return dict(_count(extent, shape, shape.starts))
    return _remembered(extent, (shape.name,), lambda: dict(_put_together(extent, shape)))


def _remembered(extent: Extent, name: Hashable, count: Callable[[], dict[int, Groups]]) -> dict[int, Groups]:
    figures = extent.figures
    known: dict[int, Groups] | None = figures.pop(name, None)
    if known is None:
        known = count()
        if len(figures) >= MOST_SHAPES:
            del figures[next(iter(figures))]  # the least recently used
    figures[name] = known
    return known


def _put_together(extent: Extent, shape: Shape) -> Iterator[tuple[int, Groups]]:
    """Count by buckets, from cells if their edges are edges of cells."""
    starts, window = shape.starts, extent.window
    edges = starts[bisect_right(starts, window.start) : bisect_left(starts, window.end)]
    size = next((size for size in CELLS if not any(edge % size for edge in edges)), None)
    if size is None:
        yield from _count(extent, shape, starts)
        return
    first = window.start // size * size
    cells = _remembered(
        extent, (shape.counted, size), lambda: dict(_count(extent, shape, range(first, window.end, size)))
    )
    by_bucket: dict[int, list[Groups]] = defaultdict(list)
    for cell, groups in cells.items():
        by_bucket[starts[bisect_right(starts, max(cell, window.start)) - 1]].append(groups)
    for start, many in by_bucket.items():
        yield start, {name: _joined([groups[name] for groups in many if name in groups]) for name in _names(many)}


def _names(many: Sequence[Groups]) -> Iterable[Group]:
    return dict.fromkeys(chain.from_iterable(many))


def _joined(parts: Sequence[Part]) -> Part:
    if len(parts) == 1:
        return parts[0]
    counts = zip(*[msgspec.structs.astuple(part.count) for part in parts], strict=True)
    calls = tuple(chain.from_iterable([part.calls for part in parts]))
    return Part(Count(*map(sum, counts)), set[str]().union(*[part.callers for part in parts]), calls)


def _count(extent: Extent, shape: Shape, starts: Sequence[int]) -> Iterator[tuple[int, Groups]]:
    calls = shape.keep(extent.calls)
    place = 0
    while place < len(calls):
        bucket = bisect_right(starts, calls[place].start_time.timestamp()) - 1
        end = len(calls)
        if bucket + 1 < len(starts):
            end = bisect_left(calls, instant(starts[bucket + 1]), place, key=_start_time)
        yield starts[bucket], _bucket(calls[place:end], shape.group)
        place = end


def _bucket(calls: Sequence[Call], group: Callable[[Call], Group] | None) -> Groups:
    if group is None:
        return {None: _part(calls, ())}
    by_group: dict[Group, list[Call]] = defaultdict(list)
    for call in calls:
        by_group[group(call)].append(call)
    return {name: _part(found, found) for name, found in by_group.items()}


def _part(calls: Sequence[Call], kept: Sequence[Call]) -> Part:
    talk = [call.talk_time_seconds for call in calls]
    durations = [call.duration_seconds for call in calls]
    count = Count(
        calls=len(calls),
        connected=[call.result for call in calls].count(Result.CONNECTED),
        duration=sum(filter(None, durations)),
        talk=sum(filter(None, talk)),
        talked=len(talk) - talk.count(None),
    )
    # Interned, the numbers of all sets are one object each: to compare them nothing is read.
    return Part(count, {intern(caller) for call in calls if (caller := call.ani) is not None}, kept)


class Figures:
    """Figures of a window, put together from those of extents."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._found: dict[int, dict[Group, list[Part]]] = {}

    def add(self, extent: Extent) -> None:
        """Take in an extent."""
        for start, groups in count_extent(extent, self._shape).items():
            found = self._found.setdefault(start, {})
            for name, part in groups.items():
                found.setdefault(name, []).append(part)

    def sums(self) -> tuple[list[tuple[int, dict[Group, Count]]], Count]:
        """The figures by bucket, empty ones included, and by group; and of all."""
        total, seen = Count(), set[str]()
        rows = []
        for start in self._shape.starts:
            found = self._found.get(start, {})
            groups: dict[Group, Count] = {}
            for name, parts in found.items():
                groups[name] = Count(callers=_unlike([part.callers for part in parts]))
                for part in parts:
                    groups[name].add(part.count)
                total.add(groups[name])
            for name, new in _newcomers(found, seen).items():
                groups[name].new = new
            rows.append((start, groups))
        total.callers = total.new = len(seen)
        return rows, total


def _unlike(sets: Sequence[set[str]]) -> int:
    """How many are in any of the sets; most often these are one or two."""
    if len(sets) == 2:
        return len(sets[0]) + len(sets[1]) - len(sets[0] & sets[1])
    return len(sets[0].union(*sets[1:]))


def _newcomers(found: Mapping[Group, Sequence[Part]], seen: set[str]) -> dict[Group, int]:
    """How many callers of each group of a bucket nobody has seen; they are, from now on."""
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
    if several:  # called in more than one group: the first call decides
        first: dict[str | None, tuple[datetime, Group]] = {}
        for name, parts in found.items():
            for call in (call for part in parts for call in part.calls if call.ani in several):
                if call.ani not in first or call.start_time < first[call.ani][0]:
                    first[call.ani] = call.start_time, name
        for name, callers in new.items():
            callers -= {caller for caller in several if first[caller][1] != name}
    seen |= here
    return {name: len(callers) for name, callers in new.items()}
