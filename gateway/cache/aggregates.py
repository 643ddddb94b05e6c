"""Aggregates of extents: counts and talk time, by bucket of time and by group. Pure.

Rules:
- The aggregates of a whole extent are counted once for the same buckets, groups and filter, and memoised with it while
  it is stored and memory allows.
- Counting is done in steps: all of it together would hold the event loop.
- They are counted in cells of an hour, or of a quarter where a zone's days begin between hours; the buckets of every
  calendar are put together from cells. Parts of extents, at the edges of a window, are counted without cells.
- Extents have no call in common: they were deduplicated first (T2).
- A caller is new once in a window: in the bucket and the group of the first call.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from datetime import datetime
from itertools import chain
from operator import attrgetter
from sys import intern

import msgspec
from msgspec import Struct

from gateway.cache.extents import Extent, Keep, instant
from gateway.memory import Memo
from gateway.model import Call, CallResult
from gateway.slices import Steps

Group = str | None
_start_time = attrgetter("start_time")
STEP_CALLS = 1000  # calls counted in one step
STEP_GROUPS = 100  # groups joined in one step
BUCKET_BYTES = 500  # of a bucket without its groups
GROUP_BYTES = 600  # of a group without its calls and callers
CELLS = (3600, 900)  # seconds: hours, and for zones such as India's their quarters


class Totals(Struct, gc=False):
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


class PartialAggregate(Struct, frozen=True, gc=False):
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
    max_groups: float = math.inf


class TooManyGroups(Exception):  # noqa: N818 - the query is refused for it
    """The calls have more groups than the spec allows."""


def aggregate(extent: Extent, spec: AggregateSpec) -> Steps[dict[int, Groups]]:
    """The aggregates of an extent, by the start of the bucket. Raises TooManyGroups."""
    memo = extent.memo if extent.stored is extent else None
    if memo is None:
        return (yield from _count(extent, spec, spec.starts))
    return (yield from _memoised(memo, ("buckets", spec.name), _from_cells(extent, memo, spec)))


def _memoised(memo: Memo, name: Hashable, count: Steps[dict[int, Groups]]) -> Steps[dict[int, Groups]]:
    known: dict[int, Groups] | None = memo.get(name)
    if known is None:
        known = yield from count
        memo.put(name, known, sum(map(_bytes_of, known.values())))
    return known


def _bytes_of(groups: Groups) -> int:
    parts = [sys.getsizeof(part.callers) + sys.getsizeof(part.calls) for part in groups.values()]
    return BUCKET_BYTES + GROUP_BYTES * len(parts) + sum(parts)


def _from_cells(extent: Extent, memo: Memo, spec: AggregateSpec) -> Steps[dict[int, Groups]]:
    """Count by buckets, from cells if their edges are edges of cells."""
    starts, window = spec.starts, extent.window
    edges = starts[bisect_right(starts, window.start) : bisect_left(starts, window.end)]
    size = next((size for size in CELLS if not any(edge % size for edge in edges)), None)
    if size is None:
        return (yield from _count(extent, spec, starts))
    cell_starts = range(window.start // size * size, window.end, size)
    cells = yield from _memoised(memo, ("cells", spec.counted, size), _count(extent, spec, cell_starts))
    by_bucket: dict[int, list[Groups]] = defaultdict(list)
    for cell, groups in cells.items():
        by_bucket[starts[bisect_right(starts, max(cell, window.start)) - 1]].append(groups)
    return (yield from _joined(by_bucket, spec))


def _joined(by_bucket: Mapping[int, Sequence[Groups]], spec: AggregateSpec) -> Steps[dict[int, Groups]]:
    """Join the groups of each bucket, which are of different calls."""
    result: dict[int, Groups] = {}
    for start, many in by_bucket.items():
        parts: dict[Group, list[PartialAggregate]] = defaultdict(list)
        for groups in many:
            for name, part in groups.items():
                parts[name].append(part)
            if len(parts) > spec.max_groups:
                raise TooManyGroups
            yield
        result[start] = {}
        for number, (name, found) in enumerate(parts.items()):
            result[start][name] = _joined_parts(found)
            if number % STEP_GROUPS == 0:
                yield
    return result


def _joined_parts(parts: Sequence[PartialAggregate]) -> PartialAggregate:
    if len(parts) == 1:
        return parts[0]
    totals = zip(*[msgspec.structs.astuple(part.totals) for part in parts], strict=True)
    calls = tuple(chain.from_iterable([part.calls for part in parts]))
    return PartialAggregate(Totals(*map(sum, totals)), set[str]().union(*[part.callers for part in parts]), calls)


def _count(extent: Extent, spec: AggregateSpec, starts: Sequence[int]) -> Steps[dict[int, Groups]]:
    found: dict[int, list[Groups]] = defaultdict(list)
    for first in range(0, len(extent.calls), STEP_CALLS):
        calls = spec.keep(extent.calls[first : first + STEP_CALLS])
        place = 0
        while place < len(calls):
            bucket = bisect_right(starts, calls[place].start_time.timestamp()) - 1
            end = len(calls)
            if bucket + 1 < len(starts):
                end = bisect_left(calls, instant(starts[bucket + 1]), place, key=_start_time)
            found[starts[bucket]].append(_bucket(calls[place:end], spec.group))
            place = end
        yield
    return (yield from _joined(found, spec))


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
        self._names = set[Group]()

    def add(self, extent: Extent) -> Steps[None]:
        """Add an extent. Raises TooManyGroups."""
        for start, groups in (yield from aggregate(extent, self._spec)).items():
            found = self._found.setdefault(start, {})
            for number, (name, part) in enumerate(groups.items()):
                found.setdefault(name, []).append(part)
                if number % STEP_GROUPS == 0:
                    yield
            self._names.update(groups)
            if len(self._names) > self._spec.max_groups:
                raise TooManyGroups

    def sums(self) -> Steps[tuple[list[tuple[int, dict[Group, Totals]]], Totals]]:
        """The figures by bucket, empty ones included, and by group; and of all calls."""
        total, seen = Totals(), set[str]()
        rows = []
        for start in self._spec.starts:
            found = self._found.get(start, {})
            groups: dict[Group, Totals] = {}
            for number, (name, parts) in enumerate(found.items()):
                groups[name] = Totals(callers=_distinct([part.callers for part in parts]))
                for part in parts:
                    groups[name].add(part.totals)
                total.add(groups[name])
                if number % STEP_GROUPS == 0:
                    yield
            for number, (name, new) in enumerate((yield from _newcomers(found, seen)).items()):
                groups[name].new = new
                if number % STEP_GROUPS == 0:
                    yield
            rows.append((start, groups))
            yield
        total.callers = total.new = len(seen)
        return rows, total


def _distinct(sets: Sequence[set[str]]) -> int:
    """The number of distinct callers; most often there are one or two sets."""
    if len(sets) == 2:
        return len(sets[0]) + len(sets[1]) - len(sets[0] & sets[1])
    return len(sets[0].union(*sets[1:]))


def _newcomers(found: Mapping[Group, Sequence[PartialAggregate]], seen: set[str]) -> Steps[dict[Group, int]]:
    """The number of callers of each group of a bucket that were not seen before. They are added to `seen`."""
    if len(found) == 1:
        ((name, parts),) = found.items()
        before = len(seen)
        for part in parts:
            seen.update(part.callers)
            yield
        return {name: len(seen) - before}
    new: dict[Group, set[str]] = {}
    here, several = set[str](), set[str]()
    for number, (name, parts) in enumerate(found.items()):
        callers = parts[0].callers.union(*[part.callers for part in parts[1:]]) - seen
        several |= callers & here
        here |= callers
        new[name] = callers
        if number % STEP_GROUPS == 0:
            yield
    if several:  # callers of more than one group: the first call decides
        first: dict[str | None, tuple[datetime, Group]] = {}
        for number, (name, parts) in enumerate(found.items()):
            for call in (call for part in parts for call in part.calls if call.ani in several):
                if call.ani not in first or call.start_time < first[call.ani][0]:
                    first[call.ani] = call.start_time, name
            if number % STEP_GROUPS == 0:
                yield
        for name, callers in new.items():
            callers -= {caller for caller in callers & several if first[caller][1] != name}
    seen |= here
    return {name: len(callers) for name, callers in new.items()}
