"""Extents: windows of one client for which the ledger is complete, with the instant their POST was sent.

Rules:
- An extent and its calls are one value, sorted by time. It is cut, never edited for another's calls (T2).
- Where extents overlap, the one whose POST was sent later counts, point by point.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import msgspec
from msgspec import Struct

from gateway.model import Call, Window

DAY = 86400


class Extent(Struct, frozen=True):
    """The calls of `window` as a POST sent at `sent` (seconds since 1970) found them; `unreadable` were left out."""

    window: Window
    sent: float
    calls: tuple[Call, ...]
    unreadable: int = 0

    def within(self, window: Window) -> Extent:
        """The part inside a window that overlaps."""
        start, end = max(self.window.start, window.start), min(self.window.end, window.end)
        if (start, end) == (self.window.start, self.window.end):
            return self
        first, last = (bisect_left(self.calls, instant(edge), key=_start_time) for edge in (start, end))
        return msgspec.structs.replace(self, window=Window(start, end), calls=self.calls[first:last])

    def without(self, window: Window) -> list[Extent]:
        """The parts outside a window: none, one or two."""
        if not self.window.overlaps(window):
            return [self]
        before, after = Window(self.window.start, window.start), Window(window.end, self.window.end)
        return [self.within(part) for part in (before, after) if part.start < part.end]


def _start_time(call: Call) -> datetime:
    return call.start_time


def instant(seconds: float) -> datetime:
    """Seconds since 1970 as a UTC instant."""
    return datetime.fromtimestamp(seconds, UTC)


def make_extent(window: Window, sent: float, calls: Iterable[Call], unreadable: int = 0) -> Extent:
    """An extent of those of the calls that lie in the window."""
    start, end = instant(window.start), instant(window.end)
    inside = sorted((call for call in calls if start <= call.start_time < end), key=_start_time)
    return Extent(window, sent, tuple(inside), unreadable)


def overlay(extents: Iterable[Extent], new: Extent) -> list[Extent]:
    """Put an extent among others that do not overlap each other: the later POST wins for each point."""
    result, parts = [], [new]
    for extent in extents:
        if extent.sent <= new.sent:
            result += extent.without(new.window)
        else:
            result.append(extent)
            parts = [rest for part in parts for rest in part.without(extent.window)]
    return sorted(result + parts, key=lambda extent: extent.window)


def by_day(extent: Extent) -> Iterable[tuple[int, Extent]]:
    """The extent cut at UTC midnights, each part with its day's number since 1970."""
    for day in range(extent.window.start // DAY, -(-extent.window.end // DAY)):
        yield day, extent.within(Window(day * DAY, (day + 1) * DAY))


def merge(extents: Sequence[Extent]) -> list[Call]:
    """The calls of extents that do not overlap, one for each client and id: the later POST's (T2)."""
    found: dict[tuple[str, str], Call] = {}
    for extent in sorted(extents, key=lambda extent: extent.sent):
        for call in extent.calls:
            found[call.client_code, call.id] = call
    return list(found.values())
