"""Wall time (naive US Central Time, as on the wire) to UTC and back. Pure.

Rules (T4):
- A wall time in the autumn fold (01:00 to 02:00, which comes twice) has two readings. The order of the reply decides
  (`infer_folds`); otherwise the earlier reading is taken, as `assumed`. A wall time in the spring gap, which clocks
  skip, is read with the offset before the gap, as `assumed`.
- The fold is atomic: no window is split inside it (`align_to_fold`).
- No edge that is sent is ambiguous or non-existent. A request asks for one second more on each side, because the
  document does not say whether edges are inclusive. Near the fold it asks for wall 23:59:59 of the day before to
  04:00:01, so that calls with exact times show the direction of the reply. In the hour after the gap it asks from
  01:59:59.
- The dates of clock changes come from the zone data: the rules before 2007 differ from today's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from gateway.model import StartTimeCertainty, Window

try:
    ZONE = ZoneInfo("America/Chicago")
except ZoneInfoNotFoundError as error:
    raise RuntimeError("the zone America/Chicago is missing: install the package tzdata") from error

HOUR = 3600  # seconds
DAY = 86400  # seconds
MAX_YEAR = 9000  # some servers write 12/31/9999 in place of a missing date
WALL = re.compile(r"\s*(\d{1,2})/(\d{1,2})/(\d{4})\s+(\d{1,2}):(\d{1,2}):(\d{1,2})\s*", re.ASCII)
WITHIN_HOUR = {
    f":{minute:02}:{second:02}": timedelta(minutes=minute, seconds=second)
    for minute in range(60)
    for second in range(60)
}
MAX_HOURS = 100_000  # entries of `_hours`, eleven years
_hours: dict[str, tuple[datetime, StartTimeCertainty]] = {}


class Fold(NamedTuple):
    """The two hours of UTC whose wall time is 01:00 to 02:00 twice, in seconds since 1970."""

    start: int
    end: int


class WallRange(NamedTuple):
    """The wall times of a request. An `end` of None means up to now by the upstream's clock."""

    start: str
    end: str | None


def _offset(seconds: int) -> int:
    offset = datetime.fromtimestamp(seconds, ZONE).utcoffset()
    return 0 if offset is None else int(offset.total_seconds())


@lru_cache(maxsize=512)
def _changes(year: int) -> tuple[Fold | None, int | None]:
    """The fold of a year, and the instant of its gap in seconds since 1970, found from the zone's offsets."""
    fold, gap = None, None
    start = int(datetime(year, 1, 1, 6, tzinfo=UTC).timestamp())
    for day in range(start, start + 366 * DAY, DAY):
        before, after = _offset(day), _offset(day + DAY)
        if before != after:
            hour = next(h for h in range(day, day + DAY, HOUR) if _offset(h + HOUR) == after) + HOUR
            if after < before:
                fold = fold or Fold(hour - (before - after), hour + (before - after))
            else:
                gap = gap or hour
    return fold, gap


def _year(seconds: int) -> int:
    return datetime.fromtimestamp(seconds, ZONE).year


def fold_near(instant: int) -> Fold | None:
    """The fold in the wall year of an instant; None if clocks did not go back in that year."""
    return _changes(_year(instant))[0]


def gap_near(instant: int) -> int | None:
    """The instant of the gap in the wall year of an instant; None if clocks did not go forward in that year."""
    return _changes(_year(instant))[1]


def parse_wall(text: str) -> tuple[datetime, StartTimeCertainty]:
    """Parse `MM/DD/YYYY HH:MM:SS` to UTC. A time in the fold gets its earlier reading. Raises ValueError."""
    try:
        hour, certainty = _hours[text[:13]]
        return hour + WITHIN_HOUR[text[13:]], certainty
    except KeyError:
        pass
    match = WALL.fullmatch(text)
    if match is None:
        raise ValueError("not a time in the form MM/DD/YYYY HH:MM:SS")
    month, day, year, clock, minute, second = map(int, match.groups())
    if not 1900 <= year <= MAX_YEAR:
        raise ValueError(f"the year is not between 1900 and {MAX_YEAR}")
    within = timedelta(minutes=minute, seconds=second)
    if minute > 59 or second > 59:
        raise ValueError("a minute or second above 59")
    wall = datetime(year, month, day, clock, tzinfo=ZONE)
    exact = wall.utcoffset() == wall.replace(fold=1).utcoffset()
    certainty = StartTimeCertainty.EXACT if exact else StartTimeCertainty.ASSUMED
    hour = wall.astimezone(UTC)
    if len(_hours) >= MAX_HOURS:
        _hours.clear()
    _hours[f"{month:02}/{day:02}/{year} {clock:02}"] = hour, certainty
    return hour + within, certainty


def render_wall(instant: int) -> str:
    """Render an instant, in seconds since 1970, as wall time."""
    return datetime.fromtimestamp(instant, ZONE).strftime("%m/%d/%Y %H:%M:%S")


def is_same_wall_time(one: datetime, other: datetime) -> bool:
    """Whether two instants are readings of one wall time."""
    return render_wall(int(one.timestamp())) == render_wall(int(other.timestamp()))


def infer_folds(times: Sequence[datetime]) -> dict[int, datetime]:
    """Find the instants of calls in a fold by the order of the reply, by the index of the call.

    `times` are the starts of one client's calls in the order of the reply, those in the fold by their earlier reading.
    A fold is decided if the exact calls around it run in one direction and its own calls turn back against that
    direction exactly once: that turn is the clock's.
    """
    seconds = [int(time.timestamp()) for time in times]
    decided: dict[int, datetime] = {}
    for fold in {fold for second in seconds if (fold := fold_near(second)) and fold.start <= second < fold.end}:
        # Wall 00:00:00 to 04:00:00 is an hour before the fold to two hours after it.
        anchors = [s for s in seconds if fold.start - HOUR <= s < fold.start or fold.end <= s <= fold.end + 2 * HOUR]
        steps = {after > before for before, after in pairwise(anchors) if after != before}
        if len(steps) != 1:
            continue
        ascending = steps.pop()
        inside = [index for index, second in enumerate(seconds) if fold.start <= second < fold.end]
        walls = [seconds[index] for index in inside]
        turns = [
            place
            for place, (before, after) in enumerate(pairwise(walls), start=1)
            if (after < before if ascending else after > before)
        ]
        if len(turns) != 1:
            continue
        later = set(inside[turns[0] :] if ascending else inside[: turns[0]])
        for index in inside:
            decided[index] = times[index] + timedelta(hours=index in later)
    return decided


def align_to_fold(window: Window) -> Window:
    """Widen a window so that no edge lies inside a fold."""
    start, end = window.start, window.end
    if (fold := fold_near(start)) and fold.start < start < fold.end:
        start = fold.start
    if (fold := fold_near(end)) and fold.start < end < fold.end:
        end = fold.end
    return Window(start, end)


def wall_range(window: Window, now: float, *, null_end: bool = True) -> WallRange:
    """The wall times to send for an aligned window, at `now` in seconds since 1970.

    The EndDate of a window up to now is null. Without `null_end` it is this second, because no call starts later; of a
    window that touches a fold it is after the fold.
    """
    start, end = window.start - 1, window.end + 1
    first, last = _touched(start, window), _touched(end, window)
    closed = window.end < now
    if first is not None:
        start = first.start - HOUR - 1
    elif (gap := gap_near(start)) is not None and gap <= start < gap + HOUR:
        start = gap - 1
    if last is not None:
        end = last.end + 2 * HOUR + 1
        closed = closed or now <= end
    if not null_end:
        end, closed = end if last is not None else min(end, math.floor(now)), True
    return WallRange(render_wall(start), render_wall(end) if closed else None)


def _touched(edge: int, window: Window) -> Fold | None:
    """The fold near an edge of a window that touches it, if the edge lies within the exact calls around the fold."""
    fold = fold_near(edge)
    if fold is None or not (window.start - 1 < fold.end and window.end + 1 >= fold.start):
        return None
    if edge == window.start - 1:
        return fold if edge >= fold.start - HOUR - 1 else None
    return fold if edge <= fold.end + 2 * HOUR + 1 else None


def wall_range_to_now(window: Window, now: float) -> WallRange:
    """The wall times for an upstream that refuses an EndDate in the future."""
    return wall_range(window, now)._replace(end=None)
