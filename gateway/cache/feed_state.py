"""The state of a consumer of the change feed: fingerprints and ages by bucket of time, small enough for a token. Pure.

Rules:
- Buckets are hours from the UTC midnight at or before 48 hours ago, days from the first of the UTC month at or before
  35 days ago, and months before, so that older buckets are unions of younger ones.
- Ages are rounded up to a grid, so that a report never seems older than it is.
"""

from __future__ import annotations

import math
import struct
from bisect import bisect_right
from datetime import UTC, datetime
from functools import lru_cache
from itertools import pairwise

from msgspec import Struct
from msgspec.structs import replace

from gateway.cache.extents import DAY
from gateway.cache.fingerprints import HOUR, MODULUS, SIZE
from gateway.model import Window

HOURS_FROM = 48 * HOUR  # seconds ago
DAYS_FROM = 35 * DAY
MAX_HORIZON = 400 * DAY
KEPT_STATES = 128  # of consumers that poll again, for each direction; 20 kB each
PENDING, SUPERSEDED = 1 << 15, 1 << 14  # bits of a packed age
HEADER = struct.Struct(">HIdI4sHII5s")  # start in days, at, newest, resume, process, evictions, reading, cut


class BucketReport(Struct, frozen=True, array_like=True):
    """The last report of a bucket: the sum of the hashes of its calls, and when the newest POST it rests on was sent.

    A `pending` bucket is reported in a later answer, even if its sum is equal by then. In a `superseded` one, an older
    version of a call was left out, because another bucket had a later one; `newest` counts the POST of that one too.
    """

    total: int = 0
    newest: float = 0
    pending: bool = False
    superseded: bool = False


class Cut(Struct, frozen=True, array_like=True):
    """A bucket that was reported in part: up to an instant, with the sum of the calls before it."""

    until: int
    total: int


class FeedState(Struct, frozen=True, cache_hash=True):
    """The last report of each bucket from `start` to `at`. The next answer continues at `resume`. Seconds since 1970.

    `newest` is when the newest POST of all buckets was sent. `process` (4 bytes), `evictions` and `reading` identify
    the cache, its eviction counter and the reading that the last answer came from. A later reading of the same cache
    has no older versions, unless something was evicted in between.
    """

    start: int
    at: int
    reports: tuple[BucketReport, ...]
    newest: float = 0
    resume: int = 0
    cut: Cut | None = None
    process: bytes = bytes(4)
    evictions: int = 0
    reading: int = 0


def new_state(start: int, at: int) -> FeedState:
    """The state of a consumer that has nothing, and whose copy may hold anything: all is pending."""
    return FeedState(start, at, tuple(BucketReport(pending=True) for _ in buckets(start, at)))


def midnight(second: float) -> int:
    """The UTC midnight at or before an instant."""
    return int(second // DAY * DAY)


def _month(second: float, later: int = 0) -> int:
    """The first of the UTC month of an instant, or of one some months later."""
    day = datetime.fromtimestamp(second, UTC)
    months = day.year * 12 + day.month - 1 + later
    return int(datetime(months // 12, months % 12 + 1, 1, tzinfo=UTC).timestamp())


def buckets(start: int, at: int) -> tuple[Window, ...]:
    """The buckets from `start`, a UTC midnight, to the end of the hour of `at`."""
    return _buckets(start, midnight(at - HOURS_FROM), _month(at - DAYS_FROM), -(-at // HOUR) * HOUR)


@lru_cache(maxsize=256)
def _buckets(start: int, hours: int, days: int, end: int) -> tuple[Window, ...]:
    edges = {start}
    edge = _month(start)
    while edge <= days:
        edges.add(edge)
        edge = _month(edge, 1)
    edges |= set(range(max(midnight(start), days), hours, DAY))
    edges |= set(range(max(midnight(start), hours), end + 1, HOUR))
    return tuple(Window(*pair) for pair in pairwise(sorted(edge for edge in edges if edge >= start)))


def horizon(start: int, at: int) -> int:
    """The start of a feed on the day of an instant: one that is too long ago moves on by whole months."""
    while midnight(at) - start > MAX_HORIZON:
        start = _month(start, 1)
    return start


def advance(state: FeedState, at: int) -> FeedState:
    """The state in the buckets of a later instant. A start that is too long ago moves on by whole months."""
    start = horizon(state.start, at)
    new = buckets(start, at)
    if start == state.start and new == buckets(state.start, state.at):
        return replace(state, at=at)
    reports: list[list[BucketReport]] = [[] for _ in new]
    starts = [window.start for window in new]
    for window, one in zip(buckets(state.start, state.at), state.reports, strict=True):
        if window.start >= start:
            reports[bisect_right(starts, window.start) - 1].append(one)
    merged = tuple(
        BucketReport(
            sum(one.total for one in many) % MODULUS,
            max((one.newest for one in many), default=0),
            any(one.pending for one in many),
            any(one.superseded for one in many),
        )
        for many in reports
    )
    return replace(state, start=start, at=at, reports=merged)


def _grid(window: Window, at: int) -> int:
    """The seconds to which ages of a bucket are rounded up, so that they fit into 14 bits."""
    age = at + HOUR - window.start
    return 20 if age < 20 * SUPERSEDED else 360 if age < 360 * SUPERSEDED else 2400


@lru_cache(maxsize=KEPT_STATES)
def pack(state: FeedState) -> bytes:
    """Render a state as bytes: 37, and 7 for each bucket. Ages are rounded up."""
    until, total = (state.cut.until, state.cut.total) if state.cut is not None else (0, 0)
    header = HEADER.pack(
        state.start // DAY,
        state.at,
        state.newest,
        state.resume,
        state.process,
        state.evictions % (1 << 16),
        state.reading % (1 << 32),
        until,
        total.to_bytes(SIZE, "big"),
    )
    parts = [header]
    for window, report in zip(buckets(state.start, state.at), state.reports, strict=True):
        age = min(max(0, math.ceil((report.newest - window.start) / _grid(window, state.at))), SUPERSEDED - 1)
        age |= PENDING * report.pending | SUPERSEDED * report.superseded
        parts.append((report.total << 16 | age).to_bytes(SIZE + 2, "big"))
    return b"".join(parts)


@lru_cache(maxsize=KEPT_STATES)
def unpack(packed: bytes) -> FeedState:
    """Parse the result of `pack`. Raises ValueError for other bytes."""
    try:
        day, at, newest, resume, process, evictions, reading, until, cut_total = HEADER.unpack_from(packed)
    except struct.error as error:
        raise ValueError("too short") from error
    start = day * DAY
    windows = buckets(start, at)
    if len(packed) != HEADER.size + len(windows) * (SIZE + 2):
        raise ValueError("the number of buckets is wrong")
    reports = []
    for place, window in enumerate(windows):
        first = HEADER.size + place * (SIZE + 2)
        total, age = divmod(int.from_bytes(packed[first : first + SIZE + 2], "big"), 1 << 16)
        seconds = age % SUPERSEDED * _grid(window, at)
        reports.append(
            BucketReport(
                total,
                window.start + seconds if seconds else 0,
                bool(age & PENDING),
                bool(age & SUPERSEDED),
            )
        )
    cut = Cut(until, int.from_bytes(cut_total, "big")) if until else None
    return FeedState(start, at, tuple(reports), newest, resume, cut, process, evictions, reading)
