"""Figures of extents: counts and talk time, by bucket of time and by group. Pure.

Rules:
- What an extent holds is counted once for the same buckets, groups and filter, and remembered with the extent.
- Extents have no call in common: where they had, they were put together first (T2).
- A caller is new once in a window: in the bucket and the group of the first call.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from datetime import datetime
from operator import attrgetter
from typing import cast

from msgspec import Struct

from gateway.ledger.extents import Extent, instant
from gateway.ledger.pages import Keep
from gateway.model import Call, Result

Group = str | None
_start_time = attrgetter("start_time")
MOST_SHAPES = 8  # remembered of an extent


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
    """Calls of one extent, bucket and group: their figures, who called, and the calls, in order."""

    count: Count
    callers: set[str]
    calls: Sequence[Call]


class Shape(Struct, frozen=True):
    """How to count: buckets begin at `starts`; `group` names what a call is counted under, `keep` filters.

    `name` tells shapes apart: two of the same name have buckets of the same calendar, and count alike.
    """

    name: Hashable
    starts: Sequence[int]
    group: Callable[[Call], Group] | None
    keep: Keep


def count_extent(extent: Extent, shape: Shape) -> dict[int, dict[Group, Part]]:
    """The figures of an extent, by the place of the bucket among `starts`."""
    known = extent.figures.get(shape.name)
    if known is None:
        known = {shape.starts[place]: bucket for place, bucket in _count(extent, shape)}
        if len(extent.figures) >= MOST_SHAPES:
            extent.figures.clear()
        extent.figures[shape.name] = known
    return known


def _count(extent: Extent, shape: Shape) -> Iterator[tuple[int, dict[Group, Part]]]:
    calls, starts = shape.keep(extent.calls), shape.starts
    place = 0
    while place < len(calls):
        bucket = bisect_right(starts, calls[place].start_time.timestamp()) - 1
        end = len(calls)
        if bucket + 1 < len(starts):
            end = bisect_left(calls, instant(starts[bucket + 1]), place, key=_start_time)
        yield bucket, _bucket(calls[place:end], shape.group)
        place = end


def _bucket(calls: Sequence[Call], group: Callable[[Call], Group] | None) -> dict[Group, Part]:
    if group is None:
        return {None: _part(calls)}
    by_group: dict[Group, list[Call]] = defaultdict(list)
    for call in calls:
        by_group[group(call)].append(call)
    return {name: _part(found) for name, found in by_group.items()}


def _part(calls: Sequence[Call]) -> Part:
    talk = [call.talk_time_seconds for call in calls]
    durations = [call.duration_seconds for call in calls]
    callers = {call.ani for call in calls}
    callers.discard(None)
    count = Count(
        calls=len(calls),
        connected=[call.result for call in calls].count(Result.CONNECTED),
        duration=sum(filter(None, durations)),
        talk=sum(filter(None, talk)),
        talked=len(talk) - talk.count(None),
    )
    return Part(count, cast("set[str]", callers), calls)


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
