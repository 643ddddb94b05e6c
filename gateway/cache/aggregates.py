"""Aggregates of calls: figures by slot of a calendar and by group, which merge exactly. Pure.

Rules:
- One `AggregateSpec` defines a count. The slots of its calendar begin at any second, so every time zone is exact.
- The aggregate of an extent is memoised with it, by the name of the spec, while the extent is stored and memory allows.
  So are those of its parts between quarters of an hour; other parts are counted for each query.
- Aggregates merge: counts add, callers unite, and waits are counted by whole seconds, so percentiles are exact.
- Extents have no call in common: they were deduplicated first (T2).
- A caller is new once: in the slot and the group of the first call, in the order of lists.
- Counting is done in steps: all of it together would hold the event loop.
"""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from operator import attrgetter, eq, mul
from sys import intern
from typing import Any, NamedTuple, TypeVar

from msgspec import Struct

from gateway.cache.extents import Extent, Keep, instant
from gateway.cache.packed_calls import in_whole_seconds
from gateway.model import Call, CallResult, Window
from gateway.slices import Steps

Value = str | int | None  # of a dimension
Group = tuple[Value, ...]
Slot = tuple[int, Group]  # the start of a bucket, and the values of the dimensions that are read from the clock
Key = tuple[Slot, Group]
GroupsOf = Callable[[Sequence[Call]], Iterable[Group]]  # the group of each call
_Name = TypeVar("_Name", bound=Hashable)
CONNECTED, OTHER = CallResult.CONNECTED, CallResult.OTHER  # looked up once: members of enums are slow to look up
_start_time = attrgetter("start_time")
_order = attrgetter("start_time", "id", "client_code")  # of lists
STEP_CALLS = 1000  # calls counted in one step
STEP_GROUPS = 100  # groups counted in one step
STEP_PARTS = 500  # parts whose keys are looked up in one step
STEP_ITEMS = 4000  # callers and waits merged in one step
ITEMS_OF_PART = 10  # callers whose merging takes as long as a part without any
CALLER_BYTES = 100  # of the text of a caller, and its entry in the table of interned texts
PART_BYTES = 700  # of a part and its key, without its callers and waits


class Counts(NamedTuple):
    """Figures that add. `talked` counts the calls with a talk time; `duration` and `talk` are sums of seconds."""

    calls: int
    connected: int
    other: int
    duration: int
    talk: int
    talked: int


class Part(Struct, frozen=True, gc=False):
    """Some calls: their counts, their callers, and the number of answered calls by seconds of waiting."""

    counts: Counts
    callers: set[str]
    waits: Mapping[int, int]

    @property
    def missed(self) -> int:
        """The number of calls that were busy, not answered or abandoned."""
        return self.counts.calls - self.counts.connected - self.counts.other

    @property
    def mean_talk(self) -> float | None:
        """The mean talk time in seconds of the calls that have one."""
        return round(self.counts.talk / self.counts.talked, 3) if self.counts.talked else None

    def answered_within(self, seconds: int) -> int:
        """The number of answered calls that waited at most some seconds."""
        return sum([number for wait, number in self.waits.items() if wait <= seconds])

    def wait_statistics(self, *percents: int) -> tuple[float, list[int]] | None:
        """The mean wait in seconds, and percentiles by nearest rank; None without a known wait."""
        if not self.waits:
            return None
        waits = sorted(self.waits)
        numbers = [self.waits[wait] for wait in waits]
        reached = list(accumulate(numbers))
        found = [waits[bisect_left(reached, -(-reached[-1] * percent // 100))] for percent in percents]
        return round(sum(map(mul, waits, numbers)) / reached[-1], 3), found


NO_CALLS = Part(Counts(0, 0, 0, 0, 0, 0), set(), {})


class Aggregate(Struct, frozen=True, gc=False):
    """Parts by slot and group, and the callers by the slot and group of their first call."""

    parts: dict[Key, Part]
    firsts: dict[Key, set[str]]


class AggregateSpec(Struct, frozen=True):
    """The definition of a count: slots of time, groups and filter.

    `slots` returns the starts of the slots of a window, the first at or before its start, with the slots. `groups`
    returns the group of each call, `keep` filters. Specs of the same `name` count the same. More than `max_parts` parts
    are refused.
    """

    name: Hashable
    slots: Callable[[Window], Sequence[tuple[int, Slot]]]
    groups: GroupsOf | None
    keep: Keep
    max_parts: float


class TooManyGroups(Exception):  # noqa: N818 - the query is refused for it
    """The calls have more groups than the spec allows."""


def aggregate(extent: Extent, spec: AggregateSpec) -> Steps[Aggregate]:
    """The aggregate of an extent. Raises TooManyGroups."""
    memo, name = extent.memo_of_part, ("aggregate", spec.name, extent.window)
    known: Aggregate | None = None if memo is None else memo.get(name)
    if known is None:
        known = yield from _count(extent, spec)
        if memo is not None:
            memo.put(name, known, _bytes_of(known))
    return known


def _bytes_of(known: Aggregate) -> int:
    sets = {id(one): one for part in known.parts.values() for one in (part.callers, part.waits)}
    sets |= {id(one): one for one in known.firsts.values()}
    callers = sum([len(part.callers) for part in known.parts.values()])  # their calls may be packed or evicted
    return PART_BYTES * (len(known.parts) + 1) + sum(map(sys.getsizeof, sets.values())) + CALLER_BYTES * callers


def _count(extent: Extent, spec: AggregateSpec) -> Steps[Aggregate]:
    found: dict[Key, list[Part]] = defaultdict(list)
    firsts: dict[Key, set[str]] = defaultdict(set)
    seen = set[str]()
    slots = spec.slots(extent.window) if extent.calls else ()
    edges = [instant(start) for start, _ in slots[1:]]
    for step in in_whole_seconds(extent.calls, STEP_CALLS):  # calls of one second are put in order together
        if calls := spec.keep(step):
            starts = [call.start_time for call in calls]
            calls = calls if spec.groups is None else _in_order(calls, starts)
            first = bisect_right(edges, starts[0])
            cuts = [bisect_left(starts, edge) for edge in edges[first : bisect_right(edges, starts[-1])]]
            for place, (left, right) in enumerate(pairwise([0, *cuts, len(calls)]), first):
                for number, (group, part, new) in enumerate(_groups(calls[left:right], spec.groups, seen)):
                    found[slots[place][1], group].append(part)
                    firsts[slots[place][1], group] |= new
                    if number % STEP_GROUPS == 0:
                        yield
            if len(found) > spec.max_parts:
                raise TooManyGroups
        yield
    parts, held = dict[Key, Part](), dict[Key, set[str]]()
    for key, many in found.items():
        part = parts[key] = yield from merged(many)
        # Most callers have one key only. Then the set is held once.
        held[key] = part.callers if len(firsts[key]) == len(part.callers) else firsts[key]
        yield
    return Aggregate(parts, held)


def _in_order(calls: Sequence[Call], starts: Sequence[object]) -> Sequence[Call]:
    """Put the calls of each second, which are sorted by time alone, into the order of lists."""
    ties = [place for place, same in enumerate(map(eq, starts, starts[1:])) if same]
    if not ties:
        return calls
    ordered, after = list(calls), 0
    for place in ties:
        if place >= after:
            after = bisect_right(calls, calls[place].start_time, place, key=_start_time)
            ordered[place:after] = sorted(calls[place:after], key=_order)
    return ordered


def _groups(calls: Sequence[Call], groups: GroupsOf | None, seen: set[str]) -> Iterable[tuple[Group, Part, set[str]]]:
    """The groups of some calls, and those callers of each who call first in it. Adds the callers to `seen`."""
    if not calls:
        return
    # Interned, equal numbers of all sets are one object: sets compare them without reading them.
    callers = [caller and intern(caller) for caller in [call.ani for call in calls]]
    if groups is None:
        part = _part(calls, callers)
        yield (), part, part.callers - seen
        seen |= part.callers
        return
    members: dict[Group, list[int]] = defaultdict(list)
    names = list(groups(calls))
    for place, name in enumerate(names):
        members[name].append(place)
    firsts: dict[Group, set[str]] = defaultdict(set)
    for caller, name in dict(zip(reversed(callers), reversed(names), strict=True)).items():  # the first call wins
        if caller is not None and caller not in seen:
            firsts[name].add(caller)
    for name, places in members.items():
        yield name, _part([calls[place] for place in places], [callers[place] for place in places]), firsts[name]
    seen.update(*firsts.values())


def _part(calls: Sequence[Call], callers: Iterable[str | None]) -> Part:
    results = [call.result for call in calls]
    durations, talks = [call.duration_seconds for call in calls], [call.talk_time_seconds for call in calls]
    distinct = {caller for caller in callers if caller is not None}
    waits: dict[int, int] = Counter(
        [
            duration - talk
            for result, duration, talk in zip(results, durations, talks, strict=True)
            if result is CONNECTED and duration is not None and talk is not None
        ]
    )
    if waits and min(waits) < 0:  # the server says that they talked for longer than the call took
        waits = {0: 0} | waits
        waits[0] += sum([waits.pop(wait) for wait in list(waits) if wait < 0])
    counts = Counts(
        calls=len(calls),
        connected=results.count(CONNECTED),
        other=results.count(OTHER),
        duration=sum(filter(None, durations)),
        talk=sum(filter(None, talks)),
        talked=len(talks) - talks.count(None),
    )
    return Part(counts, distinct, waits)


def merged(parts: Sequence[Part], callers: set[str] | None = None) -> Steps[Part]:
    """Merge parts of different calls. `callers` are their callers, if they are known."""
    if len(parts) == 1:
        return parts[0]
    union, waits, items = set[str](), dict[int, int](), 0
    for part in parts:
        if callers is None:
            union |= part.callers
            items += len(part.callers)
        for wait, number in part.waits.items():
            waits[wait] = waits.get(wait, 0) + number
        items += len(part.waits) + ITEMS_OF_PART
        if items > STEP_ITEMS:
            items = 0
            yield
    counts = (
        Counts(*map(sum, zip(*[part.counts for part in parts], strict=True))) if parts else Counts(0, 0, 0, 0, 0, 0)
    )
    return Part(counts, union if callers is None else callers, waits)


class Aggregator:
    """The aggregate of a window, put together from those of its extents. `known` are callers that are not new."""

    def __init__(self, spec: AggregateSpec, known: Collection[str] = ()) -> None:
        self._spec = spec
        self._parts: dict[Key, list[Part]] = defaultdict(list)
        self._new: Counter[Key] = Counter()
        self._known = set(known)
        self._callers = self._known if not known else set[str]()

    @property
    def callers(self) -> set[str]:
        """All callers."""
        return self._callers

    def calls(self) -> Iterator[tuple[Key, int]]:
        """The slots and groups, and the number of calls of each."""
        return ((key, sum([part.counts.calls for part in parts])) for key, parts in self._parts.items())

    def add(self, extents: Iterable[Extent]) -> Steps[None]:
        """Add extents that begin after all that were added before. Raises TooManyGroups."""
        together: list[tuple[Extent, Aggregate]] = []  # of several clients, of overlapping windows
        reached = -sys.maxsize
        for extent in sorted([one for one in extents if one.calls], key=attrgetter("window")):
            found = yield from aggregate(extent, self._spec)
            if extent.window.start >= reached:
                yield from self._add_firsts(together)
                together = []
            together.append((extent, found))
            reached = max(reached, extent.window.end)
            for number, (key, part) in enumerate(found.parts.items()):
                self._parts[key].append(part)
                if number % STEP_PARTS == 0:
                    yield
            if len(self._parts) > self._spec.max_parts:
                raise TooManyGroups
        yield from self._add_firsts(together)

    def _add_firsts(self, together: Sequence[tuple[Extent, Aggregate]]) -> Steps[None]:
        """Count the new callers of extents of overlapping windows."""
        first_keys = (yield from self._first_keys(together)) if len(together) > 1 else {}
        items = 0
        for _, found in together:
            for key, callers in found.firsts.items():
                before = len(self._known)
                self._known |= callers.difference(first_keys) if first_keys else callers
                self._new[key] += len(self._known) - before
                if self._callers is not self._known:
                    self._callers |= callers
                items += len(callers) + ITEMS_OF_PART
                if items > STEP_ITEMS:
                    items = 0
                    yield
        self._new.update([key for caller, key in first_keys.items() if caller not in self._known])
        self._known.update(first_keys)
        self._callers.update(first_keys)

    def _first_keys(self, together: Sequence[tuple[Extent, Aggregate]]) -> Steps[dict[str, Key]]:
        """The key of the first call of each caller that several extents have."""
        seen, several = set[str](), set[str]()
        for _, found in together:
            callers = set[str]().union(*found.firsts.values())
            several |= callers & seen
            seen |= callers
            yield
        earliest: dict[str, tuple[Any, Key]] = {}
        for extent, found in together if several else ():
            keys = {caller: key for key, callers in found.firsts.items() for caller in callers & several}
            for begin in range(0, len(extent.calls) if keys else 0, STEP_CALLS):
                for call in self._spec.keep(extent.calls[begin : begin + STEP_CALLS]):
                    if (caller := call.ani) in keys and (caller not in earliest or _order(call) < earliest[caller][0]):
                        earliest[caller] = _order(call), keys[caller]
                yield
        return {caller: key for caller, (_, key) in earliest.items()}

    def merged_as(self, name: Callable[[Key], _Name]) -> Steps[dict[_Name, tuple[Part, int]]]:
        """Merge the parts whose keys have the same name. Returns each part with its number of new callers."""
        named: dict[_Name, list[Part]] = defaultdict(list)
        new: Counter[_Name] = Counter()
        for number, (key, parts) in enumerate(self._parts.items()):
            named[name(key)] += parts
            new[name(key)] += self._new[key]
            if number % STEP_PARTS == 0:
                yield
        found: dict[_Name, tuple[Part, int]] = {}
        for one, parts in named.items():
            found[one] = (yield from merged(parts)), new[one]
            yield
        return found
