"""Figures of extents: counts and talk time, by bucket of time and by group. Pure.

Rules:
- What an extent holds is counted once for the same buckets, groups and filter, and remembered with the extent.
- Extents have no call in common: where they had, they were put together first (T2).
- A caller is new once in a window: in the bucket and the group of the first call.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from operator import attrgetter

from msgspec import Struct

from gateway.ledger.extents import Extent, instant
from gateway.ledger.pages import Keep
from gateway.model import Call, Result

Group = str | None
_start_time = attrgetter("start_time")
MOST_SHAPES = 8  # remembered of an extent


class Count(Struct):
    """Figures of some calls; `talked` is how many say how long was talked."""

    calls: int = 0
    connected: int = 0
    duration: int = 0
    talk: int = 0
    talked: int = 0
    callers: set[str] | frozenset[str] = frozenset()
    new: int = 0

    @property
    def mean_talk(self) -> float | None:
        """Mean talk time in seconds of the calls that say it."""
        return round(self.talk / self.talked, 3) if self.talked else None

    def add(self, other: Count, *, callers: bool = True) -> None:
        """Take in the figures of other calls; whoever adds has a set of callers of its own."""
        self.calls += other.calls
        self.connected += other.connected
        self.duration += other.duration
        self.talk += other.talk
        self.talked += other.talked
        if callers:
            self.callers |= other.callers


class Bucket(Struct):
    """Figures of one bucket, by group, and the first call of each caller there: when, and in which group."""

    groups: dict[Group, Count]
    first: dict[str, tuple[float, Group]]


class Shape(Struct, frozen=True):
    """How to count: buckets begin at `starts`; `group` names what a call is counted under, `keep` filters.

    `name` tells shapes apart: two of the same name have buckets of the same calendar, and count alike.
    """

    name: Hashable
    starts: Sequence[int]
    group: Callable[[Call], Group] | None
    keep: Keep


def count_extent(extent: Extent, shape: Shape) -> dict[int, Bucket]:
    """The figures of an extent, by the place of the bucket among `starts`."""
    known = extent.figures.get(shape.name)
    if known is None:
        known = {shape.starts[place]: bucket for place, bucket in _count(extent, shape)}
        if len(extent.figures) >= MOST_SHAPES:
            extent.figures.clear()
        extent.figures[shape.name] = known
    return known


def _count(extent: Extent, shape: Shape) -> Iterator[tuple[int, Bucket]]:
    calls, starts = shape.keep(extent.calls), shape.starts
    place = 0
    while place < len(calls):
        bucket = bisect_right(starts, calls[place].start_time.timestamp()) - 1
        end = len(calls)
        if bucket + 1 < len(starts):
            end = bisect_left(calls, instant(starts[bucket + 1]), place, key=_start_time)
        yield bucket, _bucket(calls[place:end], shape.group)
        place = end


def _bucket(calls: Sequence[Call], group: Callable[[Call], Group] | None) -> Bucket:
    if group is None:
        return Bucket({None: _figures(calls)}, {})
    by_group: dict[Group, list[Call]] = {}
    for call in calls:
        by_group.setdefault(group(call), []).append(call)
    first = {call.ani: (call.start_time.timestamp(), group(call)) for call in reversed(calls) if call.ani is not None}
    return Bucket({name: _figures(found) for name, found in by_group.items()}, first)


def _figures(calls: Sequence[Call]) -> Count:
    talk = [seconds for call in calls if (seconds := call.talk_time_seconds) is not None]
    callers = {call.ani for call in calls}
    callers.discard(None)
    return Count(
        calls=len(calls),
        connected=[call.result for call in calls].count(Result.CONNECTED),
        duration=sum([call.duration_seconds or 0 for call in calls]),
        talk=sum(talk),
        talked=len(talk),
        callers=frozenset(callers),  # type: ignore[arg-type]
    )


class Figures:
    """Figures of a window, put together from those of extents."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._found: dict[int, list[Bucket]] = {}

    def add(self, extent: Extent) -> None:
        """Take in an extent."""
        for start, bucket in count_extent(extent, self._shape).items():
            self._found.setdefault(start, []).append(bucket)

    def sums(self) -> tuple[list[tuple[int, dict[Group, Count]]], Count]:
        """The figures by bucket, empty ones included, and by group; and of all."""
        total, seen = Count(callers=set()), set[str]()
        rows = []
        for start in self._shape.starts:
            buckets = self._found.get(start, ())
            groups: dict[Group, Count] = {}
            for bucket in buckets:
                for name, count in bucket.groups.items():
                    groups.setdefault(name, Count(callers=set())).add(count)
            if self._shape.group is None:
                for count in groups.values():
                    count.new = len(count.callers - seen)
                    seen |= count.callers
            else:
                first = _first(buckets)
                for caller in first.keys() - seen:
                    groups[first[caller][1]].new += 1
                seen |= first.keys()
            for count in groups.values():
                total.add(count, callers=False)
            rows.append((start, groups))
        total.callers, total.new = seen, len(seen)
        return rows, total


def _first(buckets: Iterable[Bucket]) -> dict[str, tuple[float, Group]]:
    """The first call of each caller."""
    found: dict[str, tuple[float, Group]] = {}
    for bucket in buckets:
        for caller, at in bucket.first.items():
            if caller not in found or at[0] < found[caller][0]:
                found[caller] = at
    return found
