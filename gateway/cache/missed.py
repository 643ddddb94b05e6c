"""Missed callers: the callers with a missed call, and whether a later call reached them. Pure.

Rules:
- A caller is a number (`ani`) at a client; calls without a number are left out. A busy, unanswered or abandoned call is
  missed. A missed call counts if it lies in the window and passes the filters.
- Any call of the caller from the last missed call up to now can show that the caller was reached: a connected one, or
  one with such a sales status. A call in the same second as the last missed call is a later one.
- A connected call outranks a status, because it has a time; of several the first counts. A sale outranks a call back.
- The callers of an extent are memoised with it. Extents are added in the order of time: a missed call revokes the
  connected calls before it.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterable, Iterator, Sequence
from datetime import datetime
from enum import IntEnum
from heapq import merge
from itertools import chain, islice, pairwise
from operator import attrgetter
from typing import TypeVar

from msgspec import Struct

from gateway.cache.extents import Extent, Keep
from gateway.cache.level1 import bytes_of
from gateway.cache.packed_calls import in_whole_seconds
from gateway.cache.scans import Position, order
from gateway.model import Call, CallResult, SalesStatus, Window
from gateway.slices import STEP, Steps

_Item = TypeVar("_Item")
MISSED = CallResult.BUSY, CallResult.NO_ANSWER, CallResult.ABANDONED
MAX_CALLERS = 300_000  # of an answer; as many calls as a scan holds to compare them
EXTENT_BYTES = 1000  # of the tables of an extent, without its callers
CALLER_BYTES = 400  # of a caller's entry and name, without the last missed call


class Reached(IntEnum):
    """How a caller was reached since the last missed call; the greatest counts."""

    NO = 0
    CALLED_BACK = 1
    MADE_SALE = 2
    CONNECTED = 3


BY_STATUS = {SalesStatus.CALLED_BACK: Reached.CALLED_BACK, SalesStatus.MADE_SALE: Reached.MADE_SALE}


class Missed(Struct, frozen=True, gc=False):
    """The missed calls of one caller: how many, when the first began, the last; and how the caller was reached."""

    calls: int
    first: datetime
    last: Call
    reached: Reached = Reached.NO
    reached_at: datetime | None = None


class ExtentCallers(Struct, frozen=True):
    """The callers of one extent: their missed calls, the first connected call and the greatest status of each.

    `unanswered` are the callers whose last missed call no connected call follows.
    """

    missed: dict[str, Missed]
    connected: dict[str, datetime]
    by_status: dict[str, Reached]
    unanswered: frozenset[str]


class TooManyCallers(Exception):  # noqa: N818 - the query is refused for it
    """The window has more than MAX_CALLERS missed callers."""


place = attrgetter("last.start_time", "last.id", "last.client_code")  # of a caller in the list: that of the last call


class MissedCallers:
    """The missed callers of a window. `keep` filters missed calls; `name` tells it from other filters."""

    def __init__(self, window: Window, keep: Keep, name: Hashable, *, status: bool) -> None:
        self._window = window
        self._keep = keep
        self._name = name
        self._status = status
        self._callers: dict[str, Missed] = {}
        self._unanswered = set[str]()

    def add(self, extents: Sequence[Extent]) -> Steps[None]:
        """Add the extents of the next part of the time axis, in any order. Raises TooManyCallers."""
        for extent in sorted(_disjoint(extents, self._window), key=attrgetter("window")):
            counts = self._window.start <= extent.window.start < self._window.end
            yield from self._join((yield from self._callers_of(extent, counts=counts)))
            if len(self._callers) > MAX_CALLERS:
                raise TooManyCallers

    def _join(self, found: ExtentCallers) -> Steps[None]:
        # Sets of the extent's size are made, and none of the size of all callers.
        callers, unanswered = self._callers, self._unanswered
        for step in _steps((found.by_status.keys() & unanswered) - found.missed.keys()):
            callers |= {caller: _reached(callers[caller], found.by_status[caller]) for caller in step}
            yield
        answered = (found.connected.keys() & unanswered) - found.missed.keys()
        for step in _steps(answered):
            for caller in step:
                callers[caller] = _reached(callers[caller], Reached.CONNECTED, found.connected[caller])
            yield
        for part in _steps(found.missed.items()):
            for caller, new in part:
                if (known := callers.get(caller)) is None:
                    callers[caller] = new
                else:
                    count = known.calls + new.calls
                    callers[caller] = Missed(count, known.first, new.last, new.reached, new.reached_at)
            yield
        unanswered.difference_update(answered, found.missed)
        unanswered |= found.unanswered

    def _callers_of(self, extent: Extent, *, counts: bool) -> Steps[ExtentCallers]:
        """The callers of an extent. Its missed calls count only if `counts`."""
        memo, name = extent.memo_of_part, ("missed", counts and self._name, self._status, extent.window)
        found: ExtentCallers | None = memo.get(name) if memo is not None else None
        if found is None:
            found = yield from self._find(extent, counts=counts)
            if memo is not None:
                size = CALLER_BYTES * (len(found.missed) + len(found.connected)) + sys.getsizeof(found.unanswered)
                calls = [one.last for one in found.missed.values()]  # the extent's, until it is packed
                memo.put(name, found, EXTENT_BYTES + size + bytes_of(calls))
        return found

    def _find(self, extent: Extent, *, counts: bool) -> Steps[ExtentCallers]:
        missed: dict[str, Missed] = {}
        connected: dict[str, datetime] = {}
        by_status: dict[str, Reached] = {}
        answered = CallResult.CONNECTED
        for calls in in_whole_seconds(
            extent.calls, STEP
        ):  # a call in the second of the last missed call is a later one
            others = [call for call in calls if call.result is not answered and call.ani is not None] if counts else ()
            for call in self._keep([call for call in others if call.result in MISSED]):
                caller = _caller(call)
                before = missed.get(caller)
                count, first, last = (before.calls, before.first, before.last) if before else (0, call.start_time, call)
                missed[caller] = Missed(count + 1, first, max(last, call, key=order))
            for call in [call for call in calls if call.result is answered and call.ani is not None]:
                caller, start = _caller(call), call.start_time
                connected.setdefault(caller, start)
                if (one := missed.get(caller)) is not None and start >= one.last.start_time:
                    missed[caller] = _reached(one, Reached.CONNECTED, start)
            for call in [call for call in calls if call.status is not None] if self._status else ():
                reached = BY_STATUS.get(call.status.sales) if call.status is not None else None
                if reached is not None and call.ani is not None:
                    caller = _caller(call)
                    by_status[caller] = max(reached, by_status.get(caller, reached))
                    if (one := missed.get(caller)) is not None and call.start_time >= one.last.start_time:
                        missed[caller] = _reached(one, reached)
            yield
        unanswered = frozenset([caller for caller, one in missed.items() if one.reached is not Reached.CONNECTED])
        return ExtentCallers(missed, connected, by_status, unanswered)

    def ordered(
        self, after: tuple[bool, Position] | None, limit: int | None, *, reached: bool
    ) -> Steps[Iterator[Missed]]:
        """The callers in the order of the list: not reached first, and then, with `reached`, the others.

        Each group is in the order of the last missed calls, newest first. `after` is the place of a caller: whether it
        was reached, and the position of its last missed call. The list begins with the next caller. With `limit`,
        further callers may be missing.
        """
        groups = []
        for group in (False, True) if reached else (False,):
            if after is None or group >= after[0]:
                position = after[1] if after is not None and after[0] == group else None
                groups.append((yield from self._group(position, limit, reached=group)))
        return chain.from_iterable(groups)

    def _group(self, after: Position | None, limit: int | None, *, reached: bool) -> Steps[Iterator[Missed]]:
        parts: list[list[Missed]] = []
        earliest: datetime | None = None  # as many callers as the limit have no earlier last missed call
        for step in _steps(self._callers.values()):
            found = [one for one in step if (one.reached is not Reached.NO) is reached]
            if after is not None:
                found = [one for one in found if place(one) < after]
            if earliest is not None:
                found = [one for one in found if one.last.start_time >= earliest]
            found.sort(key=place, reverse=True)
            parts.append(found[:limit])
            if limit is not None and len(found) >= limit:
                earliest = found[limit - 1].last.start_time
            yield
        return merge(*parts, key=place, reverse=True)


def _reached(one: Missed, reached: Reached, at: datetime | None = None) -> Missed:
    """A missed caller with another way of being reached, which counts if it outranks the present one."""
    return Missed(one.calls, one.first, one.last, reached, at) if reached > one.reached else one


def _caller(call: Call) -> str:
    """The key of a caller."""
    return f"{call.client_code} {call.ani}"


def _disjoint(extents: Sequence[Extent], window: Window) -> Iterator[Extent]:
    """The extents, cut at the edges of the window. An extent of every client is also cut at the edges of others.

    The parts then follow each other: calls of single clients may replace its calls in the middle.
    """
    edges = {edge for extent in extents for edge in (extent.window.start, extent.window.end)}
    for extent in extents:
        start, end = extent.window.start, extent.window.end
        others = edges if extent.listed is not None else ()
        inner = sorted({edge for edge in (window.start, window.end, *others) if start < edge < end})
        for part in pairwise([start, *inner, end]):
            yield extent.view(Window(*part))


def _steps(items: Iterable[_Item]) -> Iterator[list[_Item]]:
    rest = iter(items)
    while step := list(islice(rest, STEP)):
        yield step
