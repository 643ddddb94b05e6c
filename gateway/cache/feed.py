"""The change feed: compares the state of a consumer with the calls in the cache, and returns the changes. Pure.

Rules:
- The state of the consumer has a fingerprint of its calls for each bucket of time. It is compared with one merged
  reading of the whole window (T2). A bucket whose fingerprint differs is reported: as single changes if they are known,
  else as a replacement of all its calls.
- Buckets that do not fit in an answer are pending: a later answer reports them, even if their fingerprint is equal by
  then. Each answer continues where the last one stopped, and wraps around, so that every bucket gets its turn, and a
  call that moves out of a bucket and back is not lost.
- A bucket is reported only from POSTs that are no older than those of its last report, so that a copy never returns to
  an older version, whichever replica answers.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from operator import attrgetter

from msgspec import Struct
from msgspec.structs import astuple, replace

from gateway.cache.extents import Extent, Key, instant, key_of
from gateway.cache.feed_state import BucketReport, Cut, FeedState, buckets
from gateway.cache.fingerprints import MODULUS, NOTHING, STEP_CALLS, Fingerprint, View, hash_of, hour_sums
from gateway.cache.level1 import bytes_of
from gateway.cache.packed_calls import place_of
from gateway.model import Call, Window
from gateway.slices import Steps

MAX_SEARCHED = 2000  # calls of a bucket that are hashed to find the one that was added
STEP_BYTES = 500  # of a step of the journal without calls
_start_time = attrgetter("start_time")


class Changes(Struct, frozen=True):
    """What changed in a bucket between two fingerprints."""

    upserts: tuple[Call, ...] = ()
    removes: tuple[Call, ...] = ()

    @property
    def size(self) -> int:
        """The number of calls."""
        return len(self.upserts) + len(self.removes)


Lookup = Callable[[Window, int, int], Changes | None]  # bucket, the sum that was reported, the sum now


class Bucket(Struct, frozen=True):
    """The fingerprint of a bucket's calls now, and when the `oldest` and `newest` POST that it rests on were sent.

    `superseded` is as in `BucketReport`.
    """

    window: Window
    found: Fingerprint
    oldest: float
    newest: float
    superseded: bool


class Snapshot(Struct, frozen=True):
    """One merged reading of a window, as a view shows it, in buckets. `end` is the end of the reading."""

    buckets: Sequence[Bucket]
    extents: Sequence[Extent]
    view: View
    end: int

    @property
    def calls(self) -> int:
        """The number of calls."""
        return sum(bucket.found.calls for bucket in self.buckets)

    def calls_of(self, window: Window, count: float = math.inf) -> Steps[list[Call]]:
        """The calls of a part of the window, in order of time. Of more than `count` calls, the first `count + 1`."""
        found: list[Call] = []
        for extent in self._overlapping(window):
            if len(found) > count and found[-1].start_time < instant(extent.window.start):
                break
            place, end = [place_of(extent.calls, edge) for edge in astuple(window)]
            before = len(found)
            while place < end and len(found) - before <= count:
                found += self.view.keep(extent.calls[place : min(end, place + STEP_CALLS)])
                place += STEP_CALLS
                yield
            found.sort(key=_start_time)
            del found[len(found) if count == math.inf else int(count) + 1 :]
        return found

    def sum_of(self, window: Window) -> Steps[int]:
        """The sum of the hashes of the calls of a part of the window."""
        total = NOTHING
        for extent in self._overlapping(window):
            total += (yield from hour_sums(extent.view(window), self.view)).total
        return total.total

    def _overlapping(self, window: Window) -> list[Extent]:
        overlapping = [extent for extent in self.extents if extent.window.overlaps(window)]
        return sorted(overlapping, key=lambda extent: extent.window.start)


def make_snapshot(
    extents: Sequence[Extent], lost: Collection[tuple[float, float]], start: int, end: int, view: View
) -> Steps[Snapshot]:
    """Put the parts of deduplicated extents from `start` on into buckets, in steps.

    `lost` are the calls of which another extent has a later version: their start, and when its POST was sent.
    """
    windows = buckets(start, end)
    starts = [window.start for window in windows]
    extents = [
        extent.view(Window(start, extent.window.end)) if extent.window.start < start else extent
        for extent in extents
        if extent.window.end > start
    ]
    found = [NOTHING] * len(windows)
    sent: list[list[float]] = [[] for _ in windows]
    superseding: list[list[float]] = [[] for _ in windows]
    for second, post in lost:
        if second >= start:
            superseding[bisect_right(starts, second) - 1].append(post)
    for extent in extents:
        first = bisect_right(starts, extent.window.start) - 1
        for place in range(first, bisect_left(starts, extent.window.end)):
            sent[place].append(extent.sent)
        sums = yield from hour_sums(extent, view)
        if extent.window.end <= windows[first].end:
            found[first] += sums.total
            continue
        for hour, part in sums.known.items():
            found[bisect_right(starts, hour) - 1] += part
    return Snapshot(
        [
            Bucket(window, one, min(times, default=0), max([*times, *later], default=0), bool(later))
            for window, one, times, later in zip(windows, found, sent, superseding, strict=True)
        ],
        extents,
        view,
        end,
    )


def outdated(state: FeedState, snapshot: Snapshot, *, same_cache: bool) -> list[Window]:
    """The buckets that differ from the state, but rest on older POSTs than their last report: read them again first.

    `state` was advanced to the buckets of the snapshot. `same_cache`: the last report was made from this cache, from
    which nothing was evicted since, so that each point is at least as new as it was. Then an older version can appear
    only in a bucket that a call had left: the later version that hid it may be gone.
    """
    return [
        bucket.window
        for bucket, report in zip(snapshot.buckets, state.reports, strict=True)
        if (report.superseded or not same_cache)
        and _differs(bucket, report)
        and bucket.oldest < min(report.newest, state.newest)
    ]


def _differs(bucket: Bucket, report: BucketReport) -> bool:
    return report.pending or report.total != bucket.found.total


class Upsert(Struct, frozen=True):
    """A call that is new or was changed."""

    call: Call


class Remove(Struct, frozen=True):
    """A call that the upstream no longer returns."""

    call: Call


class Replace(Struct, frozen=True):
    """All calls of a window."""

    window: Window
    calls: tuple[Call, ...]


class Report(Struct, frozen=True, dict=True):
    """Changes for a consumer, in the order in which they are applied, and the state of the consumer afterwards."""

    removes: Sequence[Remove]
    replaces: Sequence[Replace]
    upserts: Sequence[Upsert]
    state: FeedState

    @cached_property
    def up_to_date(self) -> bool:
        """Whether nothing is pending."""
        return not any(report.pending for report in self.state.reports)

    @property
    def size(self) -> int:
        """The number of changes, with each call of a replacement."""
        return len(self.removes) + sum(1 + len(part.calls) for part in self.replaces) + len(self.upserts)


def make_report(
    state: FeedState, snapshot: Snapshot, limit: int, *, lookup: Lookup | None = None, wait: Collection[Window] = ()
) -> Steps[Report]:
    """Report the next changes to a consumer: at most `limit` calls, or one second of calls if that has more.

    `state` was advanced to the buckets of the snapshot. `lookup` returns the single changes of a bucket that are known,
    as a `Journal` does. Buckets in `wait` become pending.
    """
    reports = [
        BucketReport(bucket.found.total, max(one.newest, bucket.newest), superseded=bucket.superseded)
        for bucket, one in zip(snapshot.buckets, state.reports, strict=True)
    ]
    differing = [place for place, bucket in enumerate(snapshot.buckets) if _differs(bucket, state.reports[place])]
    circle = bisect_right([snapshot.buckets[place].window.end for place in differing], state.resume)
    builder = _ReportBuilder(snapshot, limit)
    resume, cut = state.resume, None
    pending = [place for place in differing if snapshot.buckets[place].window in wait]
    waiting = iter([place for place in [*differing[circle:], *differing[:circle]] if place not in pending])
    for place in waiting:
        bucket, before = snapshot.buckets[place], state.reports[place]
        changes = None if before.pending else (yield from _changes(bucket, before.total, snapshot, lookup))
        if changes is not None and (yield from builder.add_changes(place, changes)):
            continue
        begin = (yield from _begin(state.cut, bucket, snapshot)) if before.pending else bucket.window.start
        resume = yield from builder.add_window(Window(begin, bucket.window.end))
        if resume < bucket.window.end:
            if resume > bucket.window.start:
                cut = Cut(resume, (yield from snapshot.sum_of(Window(bucket.window.start, resume))))
            pending += [place, *waiting]
    for place in (*pending, *builder.moved_elsewhere()):
        before = state.reports[place]
        also = reports[place].superseded or before.superseded
        reports[place] = replace(reports[place], total=before.total, pending=True, superseded=also)
    newest = max([state.newest, *[bucket.newest for bucket in snapshot.buckets]])
    at = max(state.at, snapshot.end)
    following = replace(state, at=at, reports=tuple(reports), newest=newest, resume=resume, cut=cut)
    return builder.report(following)


class _ReportBuilder:
    """A report that is filled up to its limit."""

    def __init__(self, snapshot: Snapshot, limit: int) -> None:
        self._snapshot = snapshot
        self._left = limit
        self._upserts: list[Call] = []
        self._removes: list[Call] = []
        self._replaces: list[Replace] = []
        self._moved: list[tuple[int, Call]] = []

    def add_changes(self, place: int, changes: Changes) -> Steps[bool]:
        """Add the changes of a bucket if they fit. A call that is now in another bucket is not removed."""
        if changes.size > self._left:
            return False
        self._left -= changes.size
        self._upserts += changes.upserts
        held = set[Key]()
        for extent in self._snapshot.extents if changes.removes else ():
            if near := [key for key in map(key_of, changes.removes) if extent.may_have_id(*key)]:
                ids = extent.ids  # once: those of a packed day may not be kept
                held.update([key for key in near if key[1] in ids.get(key[0], ())])
                yield
        for call in changes.removes:
            if key_of(call) in held:
                self._moved.append((place, call))
            else:
                self._removes.append(call)
        return True

    def add_window(self, window: Window) -> Steps[int]:
        """Add the calls of a window, or of as many whole seconds as fit. Returns the end of the part that was added."""
        calls = yield from self._snapshot.calls_of(window, self._left)
        end = window.end
        if len(calls) > self._left:
            end = int(calls[self._left].start_time.timestamp())
            if end == window.start and not (self._upserts or self._removes or self._replaces):
                end += 1  # a second with more calls than the limit
                calls = yield from self._snapshot.calls_of(Window(window.start, end))
            calls = calls[: bisect_left(calls, instant(end), key=_start_time)]
        if end > window.start:
            self._left -= len(calls)
            clipped = Window(window.start, min(end, self._snapshot.end))
            last = self._replaces[-1] if self._replaces else None
            if last is not None and last.window.end == clipped.start:
                self._replaces[-1] = Replace(Window(last.window.start, clipped.end), (*last.calls, *calls))
            elif clipped.start < clipped.end:
                self._replaces.append(Replace(clipped, tuple(calls)))
        return end

    def moved_elsewhere(self) -> list[int]:
        """The buckets from which calls moved to buckets that are not in this report: the copy still has them."""
        given = {key_of(call) for call in self._upserts}
        given |= {key_of(call) for one in self._replaces for call in one.calls}
        return [place for place, call in self._moved if key_of(call) not in given]

    def report(self, state: FeedState) -> Report:
        """The report, with the state of the consumer after it."""
        return Report(
            [Remove(call) for call in self._removes], self._replaces, [Upsert(call) for call in self._upserts], state
        )


def _begin(cut: Cut | None, bucket: Bucket, snapshot: Snapshot) -> Steps[int]:
    """Where to begin in a pending bucket: at its cut, unless a call before the cut changed; else at its start."""
    if cut is None or not bucket.window.start < cut.until < bucket.window.end:
        return bucket.window.start
    before = yield from snapshot.sum_of(Window(bucket.window.start, cut.until))
    return cut.until if before == cut.total else bucket.window.start


def _changes(bucket: Bucket, total: int, snapshot: Snapshot, lookup: Lookup | None) -> Steps[Changes | None]:
    """The changes of a bucket since its fingerprint was `total`, if they are known or one call was added; else None."""
    known = lookup(bucket.window, total, bucket.found.total) if lookup is not None else None
    if known is not None or bucket.found.calls > MAX_SEARCHED:
        return known
    added = (bucket.found.total - total) % MODULUS
    for place, call in enumerate((yield from snapshot.calls_of(bucket.window))):
        if hash_of(call, snapshot.view) == added:
            return Changes((call,))
        if place % STEP_CALLS == 0:
            yield
    return None


def _difference(before: Snapshot, after: Snapshot, window: Window) -> Steps[Changes]:
    """The changes of a window between two readings."""
    upserts: list[Call] = []
    were: dict[Key, Call] = {}
    for call in (yield from before.calls_of(window)):
        were[key_of(call)] = call
        if len(were) % STEP_CALLS == 0:
            yield
    for place, call in enumerate((yield from after.calls_of(window))):
        known = were.pop(key_of(call), None)
        if known is not call and known != call:
            upserts.append(call)
        if place % STEP_CALLS == 0:
            yield
    return Changes(tuple(upserts), tuple(were.values()))


class Journal:
    """The changes of buckets between successive readings of this process, by bucket and fingerprint before the change.

    The oldest steps are dropped beyond `bound` bytes.
    """

    def __init__(self, bound: int = 2**23) -> None:
        self.size = 0  # bytes
        self._bound = bound
        self._steps: dict[tuple[Window, int], tuple[int, Changes, int]] = {}

    def record(self, before: Snapshot, after: Snapshot) -> Steps[None]:
        """Add the changes between two readings that begin with the same buckets."""
        for old, new in zip(before.buckets, after.buckets, strict=False):
            if (
                old.window != new.window
                or old.found.total == new.found.total
                or (old.window, old.found.total) in self._steps
            ):
                continue
            changes = yield from _difference(before, after, old.window)
            if changes.size > new.found.calls // 2 + 1 or (old.window, old.found.total) in self._steps:
                continue  # a replacement of the bucket is hardly longer, or another reader was here meanwhile
            size = STEP_BYTES + bytes_of(changes.upserts) + bytes_of(changes.removes)
            self._steps[old.window, old.found.total] = new.found.total, changes, size
            self.size += size
        while self.size > self._bound:
            self.size -= self._steps.pop(next(iter(self._steps)))[2]

    def __call__(self, window: Window, reported: int, now: int) -> Changes | None:
        """The changes that lead from one fingerprint of a bucket to another; None if a step is not known."""
        upserts: dict[Key, Call] = {}
        removes: dict[Key, Call] = {}
        seen = {reported}
        while reported != now:
            step = self._steps.get((window, reported))
            if step is None:
                return None
            reported, changes, _ = step
            if reported in seen:
                return None
            seen.add(reported)
            for call in changes.removes:
                upserts.pop(key_of(call), None)
                removes[key_of(call)] = call
            for call in changes.upserts:
                removes.pop(key_of(call), None)
                upserts[key_of(call)] = call
        return Changes(tuple(upserts.values()), tuple(removes.values()))
