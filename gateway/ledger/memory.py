"""Level 1: extents in process, by client and day, bounded in bytes; the least recently used day goes first."""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterable

from gateway.ledger.extents import DAY, Extent, by_day, overlay
from gateway.metrics import Metrics
from gateway.model import Call, Window

Key = tuple[str, bool, int]  # client, with status, day since 1970
SAMPLE = 8  # every so many calls are measured
EXTENT_BYTES = 400  # of an extent without calls, its place in the list and in the order included


def bytes_of(calls: tuple[Call, ...]) -> int:
    """Estimate what calls hold in memory, from a sample."""
    sample = calls[::SAMPLE]
    if not sample:
        return 0
    return len(calls) * sum(map(_bytes_of_call, sample)) // len(sample)


def _bytes_of_call(call: Call) -> int:
    total = sys.getsizeof(call) + 48 + sum(sys.getsizeof(value) for value in call.extra.values())
    for part in (call, call.address, call.status):
        if part is not None:
            values = (getattr(part, field) for field in part.__struct_fields__)
            total += sys.getsizeof(part) + sum(sys.getsizeof(value) for value in values if isinstance(value, str))
    return total + sys.getsizeof(call.extra)


class Memory:
    """Days of extents."""

    def __init__(self, bound: int, metrics: Metrics) -> None:
        self._bound = bound
        self._metrics = metrics
        self._days: OrderedDict[Key, tuple[list[Extent], int]] = OrderedDict()
        self._bytes = 0

    def lookup(self, code: str, window: Window, *, status: bool) -> list[Extent]:
        """Extents that overlap the window, sorted, not overlapping each other.

        With status: those with status alone; without: the later of both kinds for each point.
        """
        found: list[Extent] = []
        for day in range(window.start // DAY, -(-window.end // DAY)):
            extents = self._day(code, day, status=True)
            if not status:
                plain = self._day(code, day, status=False)
                for extent in extents:
                    plain = overlay(plain, extent)
                extents = plain
            found += [extent for extent in extents if extent.window.overlaps(window)]
        return found

    def _day(self, code: str, day: int, *, status: bool) -> list[Extent]:
        held = self._days.get((code, status, day))
        if held is None:
            return []
        self._days.move_to_end((code, status, day))
        return held[0]

    def store(self, code: str, extent: Extent, *, status: bool) -> None:
        """Keep an extent; where another's POST was sent later, the other stays."""
        for day, part in by_day(extent):
            self._put((code, status, day), overlay(self._day(code, day, status=status), part))
        while self._bytes > self._bound and self._days:
            _, (_, size) = self._days.popitem(last=False)
            self._bytes -= size
            self._metrics.evictions.inc()
        self._metrics.cache_bytes.set(self._bytes)

    def _put(self, key: Key, extents: Iterable[Extent]) -> None:
        _, size = self._days.pop(key, ([], 0))
        kept = list(extents)
        now = sum(EXTENT_BYTES + bytes_of(extent.calls) for extent in kept)
        self._bytes += now - size
        self._days[key] = (kept, now)
