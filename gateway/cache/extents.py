"""Extents: windows of one client for which the cache is complete, with the time their POST was sent. Pure.

Rules:
- An extent and its calls are one value, sorted by time. It is cut, and never edited to hold calls of another (T2).
- Where extents overlap, the one whose POST was sent later counts, point by point.
- Unreadable records are kept in their places, and are cut, deduplicated and counted as calls are (T3).
- An extent of every client (`*`) knows which client codes it lists: a code that is not listed is unknown, not empty.
"""

from __future__ import annotations

import sys
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from itertools import chain
from operator import attrgetter
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from gateway.cache.packed_calls import PackedCalls, ids_of, pack_calls, place_of, start_of
from gateway.memory import Memo
from gateway.model import Call, UnreadableCall, Window, text_reader
from gateway.slices import Steps, finish, parts_of, sorted_in_steps

DAY = 86400  # seconds
LONG = 32 * DAY  # seconds; a stretch without calls of at least this length is not cut at midnights
QUARTER = 900  # seconds
ID_BYTES = 64  # of an id in a set
SUMS = "hour sums"  # begins the names of fingerprints in a memo
_start_time = attrgetter("start_time")

Key = tuple[str, str]  # client code and id of a call: two clients may use the same ids
Record = TypeVar("Record", Call, UnreadableCall)
Keep = Callable[[Sequence[Call]], Sequence[Call]]  # a filter


class Extent(Struct, frozen=True, dict=True):
    """The calls of `window` as a POST sent at `sent` (seconds since 1970) found them, and its unreadable records.

    An extent of every client has `listed`: the same calls, by client code. One that is stored has a `memo`.
    """

    window: Window
    sent: float
    calls: Sequence[Call] = ()
    unreadable: tuple[UnreadableCall, ...] = ()
    listed: Mapping[str, Sequence[Call]] | None = None

    @property
    def by_client(self) -> Mapping[str, Sequence[Call]]:
        """The calls by client code. An extent that lists no codes is of one client."""
        if self.listed is not None:
            return self.listed
        if isinstance(self.calls, PackedCalls):
            return {self.calls.client_code: self.calls}
        return {self.calls[0].client_code: self.calls} if self.calls else {}

    def _ids(self) -> dict[str, list[str]]:
        found = {code: ids_of(calls) for code, calls in self.by_client.items() if calls}
        for record in self.unreadable:
            found.setdefault(record.client_code, []).append(record.id)
        return found

    @property
    def ids(self) -> dict[str, frozenset[str]]:
        """The ids of the records by client code, made when first needed: 5 % of the memory of the calls."""
        memo = self.memo if isinstance(self.calls, PackedCalls) else None
        found: dict[str, frozenset[str]] | None = self.__dict__.get("ids") if memo is None else memo.get("ids")
        if found is None:
            found = {code: frozenset(ids) for code, ids in self._ids().items()}
            if memo is None:
                self.__dict__["ids"] = found
            else:
                memo.put("ids", found, sum([sys.getsizeof(ids) + ID_BYTES * len(ids) for ids in found.values()]))
        return found

    def ids_of(self, code: str) -> frozenset[str]:
        """The ids of one client's records."""
        return self.ids.get(code, frozenset())

    @cached_property
    def id_ranges(self) -> dict[str, tuple[str, str]]:
        """Bounds of the ids by client code; ids are given out in order, so the ranges of days seldom overlap."""
        return {code: (min(ids), max(ids)) for code, ids in self._ids().items()}

    def may_have_id(self, code: str, identity: str) -> bool:
        """Whether an id is within the bounds of those of a client. False is certain."""
        bounds = self.id_ranges.get(code)
        return bounds is not None and bounds[0] <= identity <= bounds[1]

    @property
    def stored(self) -> Extent:
        """The stored extent that this view was cut from. Its memo has the memoised values."""
        cut_from: Extent | None = self.__dict__.get("cut_from")
        return self if cut_from is None else cut_from  # without a cycle, an evicted extent is freed at once

    @property
    def memo(self) -> Memo | None:
        """The values derived from it, if it is stored."""
        return self.__dict__.get("memo")

    @property
    def memo_of_part(self) -> Memo | None:
        """The memo for values of this part of the stored extent, named with its window; None if it is not kept.

        Parts between quarters of an hour are kept: days begin and end so in every time zone. Parts that end at the time
        of a request are seldom read twice.
        """
        regular = self.window.start % QUARTER == self.window.end % QUARTER == 0
        return self.stored.memo if regular or self.stored is self else None

    def keep(self, memo: Memo) -> None:
        """Give it a memo, when it is stored."""
        self.__dict__["memo"] = memo

    @property
    def hour_sums(self) -> dict[Hashable, Any]:
        """The fingerprints by hour that are known (`fingerprints.HourSums`), by the name of the view."""
        own: dict[Hashable, Any] = self.__dict__.get("hour_sums", {})
        kept = self.memo.values if self.memo is not None else {}
        return own | {name[1]: found for name, found in kept.items() if isinstance(name, tuple) and name[0] == SUMS}

    def may_have(self, field: str, text: str) -> Steps[bool]:
        """Whether a call may have a text in a field (`model.text_reader`); False is certain.

        The texts are collected when first needed, in steps.
        """
        memo = self.stored.memo
        if memo is None:
            return True
        texts: frozenset[str | None] | None = memo.get(("texts", field))
        if texts is None:
            found = set[str | None]()
            for step in parts_of(self.stored.calls):
                found.update(map(text_reader(field), step))
                yield
            texts = frozenset(found)
            memo.put(("texts", field), texts, sys.getsizeof(texts) + sum(map(sys.getsizeof, texts)))
        return text in texts

    def within(self, window: Window) -> Extent:
        """The part inside a window, which must overlap."""
        start, end = max(self.window.start, window.start), min(self.window.end, window.end)
        if (start, end) == (self.window.start, self.window.end):
            return self
        inside = Window(start, end)
        listed = self.listed and {code: _cut(calls, inside) for code, calls in self.listed.items()}
        calls, unreadable = _cut(self.calls, inside), _cut(self.unreadable, inside)
        part = msgspec.structs.replace(self, window=inside, calls=calls, unreadable=unreadable, listed=listed)
        if sums := self.hour_sums:
            part.__dict__["hour_sums"] = {view: found.cut(self.window, inside) for view, found in sums.items()}
        return part

    @property
    def can_be_packed(self) -> bool:
        """Whether it is of one client, and has calls that are not packed."""
        return self.listed is None and len(self.calls) > 0 and not isinstance(self.calls, PackedCalls)

    def packed(self) -> Steps[Extent]:
        """The same extent, and its memo, with its calls packed if they can be, in steps."""
        if not self.can_be_packed:
            return self
        ((code, calls),) = self.by_client.items()
        packed = msgspec.structs.replace(self, calls=(yield from pack_calls(code, calls)))
        packed.__dict__.update(id_ranges=self.id_ranges, memo=self.memo)
        return packed

    def view(self, window: Window) -> Extent:
        """The part inside a window, for a read. It keeps the id bounds of the whole extent."""
        part = self.within(window)
        part.__dict__["id_ranges"] = self.id_ranges
        if part is not self:
            part.__dict__["cut_from"] = self.stored
        return part

    def without(self, window: Window) -> list[Extent]:
        """The parts outside a window: none, one or two."""
        if not self.window.overlaps(window):
            return [self]
        return [self.within(part) for part in minus(self.window, window)]

    def of_client(self, code: str) -> Extent | None:
        """The part of one client of an extent of every client; None if it does not list the code."""
        calls = None if self.listed is None else self.listed.get(code)
        unreadable = tuple([record for record in self.unreadable if record.client_code == code])
        return None if calls is None else Extent(self.window, self.sent, calls, unreadable)


def _cut(calls: Sequence[Record], window: Window) -> Sequence[Record]:
    first, after = place_of(calls, window.start), place_of(calls, window.end)
    return calls.part(first, after) if isinstance(calls, PackedCalls) else calls[first:after]


ExtentsByCode = dict[str, list[Extent]]  # extents by client code


def instant(seconds: float) -> datetime:
    """Seconds since 1970 as a UTC instant."""
    return datetime.fromtimestamp(seconds, UTC)


def minus(window: Window, other: Window) -> list[Window]:
    """Subtract the second window from the first."""
    if not window.overlaps(other):
        return [window]
    parts = (Window(window.start, other.start), Window(other.end, window.end))
    return [part for part in parts if part.start < part.end]


def make_extent(
    window: Window, sent: float, calls: Sequence[Call], unreadable: Sequence[UnreadableCall] = ()
) -> Extent:
    """Make an extent of one client from the records that lie in the window. Of calls with one id the last counts."""
    return finish(extent_in_steps(window, sent, calls, unreadable))


def extent_in_steps(
    window: Window, sent: float, calls: Sequence[Call], unreadable: Sequence[UnreadableCall] = ()
) -> Steps[Extent]:
    """Make an extent as `make_extent` does, in steps."""
    start, end = instant(window.start), instant(window.end)
    by_id: dict[str, Call] = {}
    for step in parts_of(calls):
        by_id |= {call.id: call for call in step if start <= call.start_time < end}
        yield
    inside = tuple((yield from sorted_in_steps(list(by_id.values()), _start_time)))
    return Extent(window, sent, inside, (yield from _placed(unreadable, window)))


def _placed(unreadable: Sequence[UnreadableCall], window: Window) -> Steps[tuple[UnreadableCall, ...]]:
    """The unreadable records that may lie in a window, each at the earliest instant that it may."""
    start, end = instant(window.start), instant(window.end)
    inside: list[UnreadableCall] = []
    for step in parts_of(unreadable):
        inside += [
            record if record.start_time >= start else msgspec.structs.replace(record, start_time=start)
            for record in step
            if record.start_time < end and record.latest >= start
        ]
        yield
    return tuple((yield from sorted_in_steps(inside, _start_time)))


def make_extent_of_all(
    window: Window, sent: float, calls: Mapping[str, Sequence[Call]], unreadable: Sequence[UnreadableCall] = ()
) -> Extent:
    """Make an extent of every client from calls by client code."""
    return finish(extent_of_all_in_steps(window, sent, calls, unreadable))


def extent_of_all_in_steps(
    window: Window, sent: float, calls: Mapping[str, Sequence[Call]], unreadable: Sequence[UnreadableCall] = ()
) -> Steps[Extent]:
    """Make an extent as `make_extent_of_all` does, in steps."""
    listed: dict[str, Sequence[Call]] = {}
    for code, found in calls.items():
        listed[code] = (yield from extent_in_steps(window, sent, found)).calls
        yield
    every = tuple((yield from sorted_in_steps(list(chain.from_iterable(listed.values())), _start_time)))
    return Extent(window, sent, every, (yield from _placed(unreadable, window)), listed)


def overlay(extents: Iterable[Extent], new: Extent) -> list[Extent]:
    """Add an extent to others that do not overlap each other: the later POST wins for each point."""
    return overlay_all([new, *extents])


def overlay_all(extents: Iterable[Extent]) -> list[Extent]:
    """Combine any number of extents: the later POST wins for each point, and the first of those sent together."""
    covered: list[Window] = []  # sorted; they do not touch
    result: list[Extent] = []
    for extent in sorted(extents, key=attrgetter("sent"), reverse=True):
        start, end = extent.window.start, extent.window.end
        first = bisect_left(covered, start, key=attrgetter("end"))
        after = bisect_right(covered, end, key=attrgetter("start"))
        reached = start
        for other in covered[first:after]:
            if other.start > reached:
                result.append(extent.within(Window(reached, other.start)))
            reached = max(reached, other.end)
        if reached < end:
            result.append(extent.within(Window(reached, end)))
        if first < after:
            start, end = min(start, covered[first].start), max(end, covered[after - 1].end)
        covered[first:after] = [Window(start, end)]
    return sorted(result, key=lambda extent: extent.window)


def overlay_clients(every: Extent, own: Mapping[str, Iterable[Extent]]) -> list[Extent]:
    """Replace parts of an extent of every client by later extents of single clients that it lists."""
    listed, unreadable, parts = dict(every.listed or {}), every.unreadable, list[Extent]()
    for code, extents in own.items():
        for extent in extents:
            if extent.sent > every.sent and extent.window.overlaps(every.window) and code in listed:
                part = extent.within(every.window)
                parts.append(part)
                inside = _cut(listed[code], part.window)
                first = place_of(listed[code], part.window.start)
                listed[code] = [*listed[code][:first], *listed[code][first + len(inside) :]]
                replaced = {record for record in _cut(unreadable, part.window) if record.client_code == code}
                unreadable = tuple([record for record in unreadable if record not in replaced])
    if not parts:
        return [every]
    calls = tuple(sorted(chain.from_iterable(listed.values()), key=_start_time))
    return [msgspec.structs.replace(every, calls=calls, unreadable=unreadable, listed=listed), *parts]


def by_day(extent: Extent) -> Iterable[tuple[int | None, Extent]]:
    """The extent cut at UTC midnights, each part with its day's number since 1970.

    A stretch of at least `LONG` seconds without calls is not cut, and has None: years without calls are one extent.
    """
    reached = extent.window.start
    for busy_day in [*_busy_days(extent.calls), None]:
        until = extent.window.end if busy_day is None else busy_day * DAY
        if until - reached >= LONG:
            yield None, extent.within(Window(reached, until))
            reached = until
        end = until if busy_day is None else min(extent.window.end, until + DAY)
        for day in range(reached // DAY, -(-end // DAY) if end > reached else 0):
            yield day, extent.within(Window(max(reached, day * DAY), min(end, (day + 1) * DAY)))
        reached = max(reached, end)


def _busy_days(calls: Sequence[Call]) -> Iterator[int]:
    """The days, since 1970, on which calls start, at the cost of a binary search for each."""
    place = 0
    while place < len(calls):
        day = start_of(calls, place) // DAY
        yield day
        place = place_of(calls, (day + 1) * DAY)


def covers(extents: Sequence[Extent], window: Window) -> bool:
    """Whether sorted extents leave no point of a window out."""
    reached = window.start
    for extent in extents:
        if extent.window.start > reached:
            return False
        reached = max(reached, extent.window.end)
    return reached >= window.end


def key_of(call: Call | UnreadableCall) -> Key:
    """The client code and the id, by which a record is known."""
    return call.client_code, call.id


def with_calls(extent: Extent, by_client: Mapping[str, Sequence[Call]]) -> Steps[Extent]:
    """Replace the calls of an extent by these, which are in order of time, in steps."""
    if extent.listed is None:
        return msgspec.structs.replace(extent, calls=next(iter(by_client.values()), ()))
    every = yield from sorted_in_steps(list(chain.from_iterable(by_client.values())), _start_time)
    return msgspec.structs.replace(extent, calls=tuple(every), listed=by_client)
