"""Level 1: extents in process, by client and day, bounded in bytes.

Rules:
- A segmented LRU. Days that were read once are evicted before days that were read again, so that an export cannot evict
  the working set.
- Days of one client are packed, the least recently read or stored first, when unpacked days take more than a quarter of
  the bound. A small deployment therefore packs none, as it would after an idle time. The part is fixed, although other
  days may leave more room: Python keeps the memory of packed days for the next unpacked ones, and returns little of it.
- At the bound, memoised values are evicted, then days.
- Packed days are read as they are and stay packed. A page unpacks a few hundred calls. Summaries and the change feed
  unpack none, because memoised values stay with the day. Packing takes 3 microseconds a call and saves nine tenths of
  its memory (`benchmarks/memory.py`).
- Extents of every client are not packed: they are read both by time and by client, and blocks have one order.
- The size of a day counts its calls, its extents, its place in the indexes, and the sets of ids that reads make of it.
  Other values that are derived from its extents are memoised, counted apart, and evicted first.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from itertools import chain
from zlib import crc32

from msgspec import Struct
from msgspec.structs import astuple

from gateway.cache.extents import DAY, Extent, by_day, overlay, overlay_all
from gateway.cache.packed_calls import PackedCalls
from gateway.memory import Memo, Memory, memo_table
from gateway.metrics import Metrics
from gateway.model import EVERY_CLIENT, Call, UnreadableCall, Window
from gateway.slices import Steps

Key = tuple[str, bool, int | None]  # client, with status, day since 1970; None for long stretches without calls
PROTECTED = 0.8  # of the bound, at most, for days that were read again; what segmented LRUs commonly use
UNPACKED = 0.25  # of the bound, at most, for days of one client that are not packed
MAX_EXTENTS = 128  # of a day; each read and each store looks at all of them, and one POST fetches the day again
SAMPLE = 8  # calls of an extent that are measured, at most
SKEW = 1.0  # seconds that the clocks of replicas may differ
COUNTERS = 1024  # of evictions, by client
SETS_BYTES = 100  # of a call in the set of ids and the tuples of calls
DAY_BYTES = 900  # of a day without extents: its key, and its entries in the indexes and in the order of eviction
EXTENT_BYTES = 900  # of an extent without calls
LISTED_BYTES = 200  # of a client that an extent of every client lists
BUSY_BYTES = 350  # more, if it has calls: its set of ids and their bounds


def _counter(code: str) -> int:
    return crc32(code.encode()) % COUNTERS


def _count(counters: Sequence[int], codes: Iterable[str]) -> int:
    if EVERY_CLIENT in codes:
        return sum(counters)
    return sum([counters[place] for place in {_counter(code) for code in (*codes, EVERY_CLIENT)}])


def bytes_of(records: Sequence[Call] | Sequence[UnreadableCall]) -> int:
    """Estimate the bytes that records take in memory, from a sample."""
    if isinstance(records, PackedCalls):
        return records.size
    if not records:
        return 0
    sample = records[:: -(-len(records) // SAMPLE)]
    return len(records) * sum(map(_bytes_of_record, sample)) // len(sample)


def _overlaid(layers: list[list[Extent]]) -> list[Extent]:
    """Combine layers of extents that do not overlap each other; of POSTs sent together the last layer's count."""
    busy = [layer for layer in reversed(layers) if layer]
    return busy[0] if len(busy) == 1 else overlay_all(chain.from_iterable(busy))


def _bounded(extents: list[Extent]) -> list[Extent]:
    """The extents of a day, without the oldest POSTs' if there are too many."""
    if len(extents) <= MAX_EXTENTS:
        return extents
    oldest = sorted(extent.sent for extent in extents)[-MAX_EXTENTS // 2]
    return [extent for extent in extents if extent.sent >= oldest]


def _bytes_of_extent(extent: Extent) -> int:
    listed = 0
    if extent.listed is not None:
        listed = LISTED_BYTES * len(extent.listed) + BUSY_BYTES * sum(map(bool, extent.listed.values()))
    return EXTENT_BYTES + listed + bytes_of(extent.calls) + bytes_of(extent.unreadable)


def _bytes_of_record(record: Call | UnreadableCall) -> int:
    values: list[object] = list(astuple(record))
    total = sys.getsizeof(record) + 48 + SETS_BYTES
    if isinstance(record, Call):
        values += record.extra.values()
        total += sys.getsizeof(record.extra)
        for part in (record.address, record.status):
            if part is not None:
                values += astuple(part)
                total += sys.getsizeof(part)
    else:
        total += 48  # the other instant
    return total + sum([sys.getsizeof(value) for value in values if type(value) is str])


class Change(Struct, frozen=True):
    """Whether anything of some clients has changed since a version. Equal ones began at the same version."""

    level1: Level1
    codes: tuple[str, ...]
    version: int

    def __call__(self) -> bool:
        """Whether anything has changed."""
        return self.level1.version(self.codes) != self.version


class Level1:
    """Days of extents."""

    def __init__(self, memory: Memory, metrics: Metrics) -> None:
        self._memory = memory
        self._memos = memo_table(memory)
        memory.first_to_last += [self._memos.free, self._evict]
        self._metrics = metrics
        metrics.cache_bytes.set_function(lambda: memory.size)
        self._days: dict[Key, tuple[list[Extent], int]] = {}
        self._probation: OrderedDict[Key, None] = (
            OrderedDict()
        )  # evicted first: not read since stored, or moved back from protected
        self._protected: OrderedDict[Key, None] = OrderedDict()
        self._bytes_protected = 0
        self._unpacked: OrderedDict[Key, int] = OrderedDict()  # bytes; packed first: not stored or read for longest
        self._bytes_unpacked = 0
        self._evicted = [0] * COUNTERS
        self._changes = 0
        self._changed: dict[str, int] = {}  # the number of the last change of each client of which something is held
        self._held: dict[tuple[str, bool], set[int]] = {}  # the days of each client

    def lookup(self, code: str, window: Window, now: float, *, status: bool, used: bool = False) -> list[Extent]:
        """Extents that overlap the window, sorted, not overlapping each other: for each point the latest POST's.

        With `status`, only extents with status are found. Extents of every client serve each client that they list. An
        extent that was sent more than SKEW after now is dropped: the clock was wrong, then or now. `used` counts this
        as a read of the days.
        """
        kinds = (True,) if status else (True, False)
        owners = (code,) if code == EVERY_CLIENT else (code, EVERY_CLIENT)
        found: list[Extent] = []
        layers = [(owner, kind) for kind in kinds for owner in owners]
        for day in self._days_held(owners, kinds, window):
            merged = _overlaid([self._of(owner, code, kind, day, now) for owner, kind in layers])
            if within := [extent for extent in merged if extent.window.overlaps(window)]:
                found += within
                if used:
                    self._use((owner, kind, day) for owner, kind in layers)
        for owner, kind in layers:
            long = [e.within(window) for e in self._of(owner, code, kind, None, now) if e.window.overlaps(window)]
            found = _overlaid([found, long])
        return found

    def clients_held(self, codes: Iterable[str], window: Window, *, status: bool) -> list[str]:
        """Those of the codes that have extents of their own on the days of a window."""
        kinds = (True,) if status else (True, False)
        return [
            code
            for code in codes
            if any((code, kind, None) in self._days for kind in kinds) or self._days_held((code,), kinds, window)
        ]

    def replaced_by(
        self, code: str, extent: Extent, now: float, *, status: bool
    ) -> Steps[tuple[list[Extent], dict[str, list[Extent]]]]:
        """The held parts that a stored extent replaces for readers: those of its own kind, and others by client.

        The others are parts without status, and parts of the single clients that an extent of every client lists.
        """
        own = [one.within(extent.window) for one in self.lookup(code, extent.window, now, status=status)]
        if extent.listed is not None:
            clients = self.clients_held(extent.listed, extent.window, status=False)
        else:
            clients = [code] if status else []
        others: dict[str, list[Extent]] = {}
        for client in clients:
            held = self.lookup(client, extent.window, now, status=False)
            others[client] = [one.within(extent.window) for one in held]
            yield
        return own, others

    def evictions(self, codes: Iterable[str]) -> int:
        """How often days of some clients were evicted, or of clients that share their counters."""
        return _count(self._evicted, codes)

    def version(self, codes: Iterable[str]) -> int:
        """A number that changes whenever anything changes that an answer for some clients rests on.

        No earlier number comes back: for a client of which nothing is held, the evictions are part of it.
        """
        if EVERY_CLIENT in codes:
            return self._changes
        owners = (*codes, EVERY_CLIENT)
        return hash(tuple([self._changed.get(owner) or (self._evicted[_counter(owner)],) for owner in owners]))

    def _days_held(self, owners: Iterable[str], kinds: Iterable[bool], window: Window) -> list[int]:
        """The days of a window of which something is held, in order, at the cost of the smaller of the two."""
        first, after = window.start // DAY, -(-window.end // DAY)
        days: set[int] = set()
        for held in (self._held.get((owner, kind), set()) for owner in owners for kind in kinds):
            days |= (
                {d for d in held if first <= d < after}
                if len(held) < after - first
                else held & set(range(first, after))
            )
        return sorted(days)

    def _of(self, owner: str, code: str, kind: bool, day: int | None, now: float) -> list[Extent]:
        extents = self._day((owner, kind, day), now)
        return extents if owner == code else [part for extent in extents if (part := extent.of_client(code))]

    def _day(self, key: Key, now: float) -> list[Extent]:
        held = self._days.get(key)
        if held is None:
            return []
        extents, _ = held
        if any(extent.sent > now + SKEW for extent in extents):
            self._metrics.skew.inc()
            extents = [extent for extent in extents if extent.sent <= now + SKEW]
            self._put(key, extents)
        return extents

    def store(self, code: str, extent: Extent, *, status: bool) -> Steps[None]:
        """Store an extent in the first step, except where another was sent later. Then pack days until the rest fits.

        An extent with status replaces older ones with and without status.
        """
        for day, part in by_day(extent):
            key = code, status, day
            extents = overlay(self._days[key][0] if key in self._days else (), part)
            self._evicted[_counter(code)] += len(extents) > MAX_EXTENTS
            self._put(key, _bounded(extents))
            if status and (plain := (code, False, day)) in self._days:
                kept = [one for one in self._days[plain][0] if one.sent > part.sent] + [
                    rest for one in self._days[plain][0] if one.sent <= part.sent for rest in one.without(part.window)
                ]
                self._put(plain, sorted(kept, key=lambda one: one.window))
        self._memory.fit()
        yield
        yield from self._pack()

    def _evict(self) -> bool:
        """Evict the day that was not read for longest. Returns False if there is none."""
        if not self._days:
            return False
        key = next(iter(self._probation or self._protected))
        self._evicted[_counter(key[0])] += 1
        self._put(key, ())
        self._metrics.evictions.inc()
        return True

    def _pack(self) -> Steps[None]:
        """Pack the days that were not stored or read for longest, until the others fit into their part, in steps."""
        while self._bytes_unpacked > UNPACKED * self._memory.bound:
            key, size = self._unpacked.popitem(last=False)
            self._bytes_unpacked -= size
            extents, _ = self._days[key]
            packed = list(extents)
            for place, extent in enumerate(extents):
                packed[place] = yield from extent.packed()
            if key in self._days and self._days[key][0] is extents:  # nothing was stored meanwhile
                for extent in packed:
                    if extent.memo is not None:
                        extent.memo.size = _bytes_of_extent(extent)
                self._hold(key, packed)
                self._metrics.packings.inc()

    def _put(self, key: Key, extents: Iterable[Extent]) -> None:
        """Store a day, or remove it if it has no extents."""
        kept = list(extents)
        self._changes += 1
        self._changed[key[0]] = self._changes
        self._hold(key, kept)
        self._bytes_unpacked -= self._unpacked.pop(key, 0)
        if kept:
            rank = self._protected if key in self._protected else self._probation
            rank[key] = None
            rank.move_to_end(key)
            if any(extent.can_be_packed for extent in kept):
                self._unpacked[key] = self._days[key][1]
                self._bytes_unpacked += self._unpacked[key]

    def _hold(self, key: Key, kept: list[Extent]) -> None:
        """Hold these extents of a day in place of others."""
        owner, kind, day = key
        replaced, before = self._days.pop(key, ([], 0))
        for extent in kept:
            if extent.memo is None:
                extent.keep(Memo(self._memos, _bytes_of_extent(extent)))
                _ = extent.id_ranges  # of each day now, not of all days of a read at once
        memos = {id(extent.memo) for extent in kept}
        for extent in replaced:
            if id(extent.memo) not in memos and extent.memo is not None:
                extent.memo.clear()
        size = sum(extent.memo.size for extent in kept if extent.memo) + (DAY_BYTES + sys.getsizeof(owner)) * bool(kept)
        self._memory.size += size - before
        if key in self._protected:
            self._bytes_protected += size - before
        if kept:
            self._days[key] = (kept, size)
            if day is not None:
                self._held.setdefault((owner, kind), set()).add(day)
        else:
            self._probation.pop(key, None)
            self._protected.pop(key, None)
            self._forget(owner, kind, day)

    def _use(self, keys: Iterable[Key]) -> None:
        """Move days to the protected segment, and its least recently used ones back if it is too large."""
        for key in keys:
            if key in self._unpacked:
                self._unpacked.move_to_end(key)
            if key in self._protected:
                self._protected.move_to_end(key)
            elif key in self._probation:
                del self._probation[key]
                self._protected[key] = None
                self._bytes_protected += self._days[key][1]
        while self._bytes_protected > PROTECTED * self._memory.bound:
            key, _ = self._protected.popitem(last=False)
            self._bytes_protected -= self._days[key][1]
            self._probation[key] = None

    def _forget(self, owner: str, kind: bool, day: int | None) -> None:
        days = self._held.get((owner, kind))
        if days is not None and day is not None:
            days.discard(day)
            if not days:
                del self._held[owner, kind]
        if not any((owner, k) in self._held or (owner, k, None) in self._days for k in (True, False)):
            self._changed.pop(owner, None)
