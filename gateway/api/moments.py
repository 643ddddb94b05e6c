"""Moments, ranges and buckets of time as consumers name them, in the zone that they name. Pure.

Rules:
- A day begins at the first instant of its date, a week on Monday; days have 23, 24 or 25 hours, as the zone says.
- Arithmetic is on dates and on seconds since 1970, never on local date-times.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from gateway.errors import InvalidParameters, ParameterFault
from gateway.model import Window

MOMENT = re.compile(
    r"(\d{4}-\d{2}-\d{2})(?:[Tt ](\d{2}:\d{2}(?::\d{2})?)(\.\d{1,9})?([Zz]|[+ -]\d{2}:\d{2})?)?", re.ASCII
)
EARLIEST, LATEST = datetime(1900, 1, 2, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)
MOST_BUCKETS = 10_000
HOUR = 3600
QUARTER = 900  # seconds: every zone's offset since 1972 is so many quarters
DAY = timedelta(days=1)

RANGES: dict[str, Callable[[date], tuple[date, date | None]]] = {
    "today": lambda day: (day, None),
    "yesterday": lambda day: (day - DAY, day),
    "last_7_days": lambda day: (day - 6 * DAY, None),
    "last_30_days": lambda day: (day - 29 * DAY, None),
    "this_month": lambda day: (day.replace(day=1), None),
    "last_month": lambda day: ((day.replace(day=1) - DAY).replace(day=1), day.replace(day=1)),
    "this_year": lambda day: (day.replace(month=1, day=1), None),
}


def read_zone(single: Mapping[str, str], faults: list[ParameterFault]) -> ZoneInfo:
    """Read `tz`."""
    try:
        return ZoneInfo(single.get("tz", "UTC"))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        faults.append(ParameterFault("tz", "is not an IANA time zone such as America/Chicago"))
        return ZoneInfo("UTC")


def read_window(
    single: Mapping[str, str], zone: ZoneInfo, now: float, history_start: int, faults: list[ParameterFault]
) -> Window:
    """Read `start` and `end`, or `range`, as whole seconds; a fraction rounds outwards."""
    current = math.ceil(now)
    if (name := single.get("range")) is not None:
        faults += [ParameterFault(other, "does not go with range") for other in ("start", "end") if other in single]
        if name not in RANGES:
            faults.append(ParameterFault("range", f"is none of {', '.join(RANGES)}"))
            return Window(history_start, current)
        first, after = RANGES[name](datetime.fromtimestamp(now, zone).date())
        start = max(history_start, midnight(first, zone))
        return Window(start, max(start + 1, current if after is None else midnight(after, zone)))
    before = len(faults)
    start = max(history_start, _moment("start", single.get("start"), zone, faults, default=history_start))
    end = _moment("end", single.get("end"), zone, faults, default=current)
    if len(faults) == before and start >= end:
        faults.append(ParameterFault("start", "is not before end"))
    return Window(start, end)


def _moment(name: str, text: str | None, zone: ZoneInfo, faults: list[ParameterFault], default: int) -> int:
    if text is None:
        return default
    match = MOMENT.fullmatch(text)
    if match is not None:
        date_part, clock, fraction, offset = match.groups()
        # A plus sign that was not encoded arrives as a space.
        marked = "+00:00" if offset in ("Z", "z") else (offset or "").replace(" ", "+")
        try:
            moment = datetime.fromisoformat(f"{date_part}T{clock or '00:00'}{marked}")
            moment = moment if marked else moment.replace(tzinfo=zone)
            if EARLIEST <= moment.astimezone(UTC) <= LATEST:
                return int(moment.timestamp()) + (name == "end" and bool((fraction or "").strip(".0")))
            faults.append(ParameterFault(name, f"is not between the years {EARLIEST.year} and {LATEST.year}"))
            return default
        except (ValueError, OverflowError):
            pass
    faults.append(ParameterFault(name, "is not a date (2026-11-01) or an instant (2026-11-01T06:30:00Z)"))
    return default


def midnight(day: date, zone: ZoneInfo) -> int:
    """The instant at which a date begins; where clocks skip midnight, the instant at which they do."""
    return int(datetime.combine(day, time.min, zone).timestamp())


def bucket_starts(window: Window, interval: str, zone: ZoneInfo) -> list[int]:
    """The instants at which the buckets of a window begin, the first at or before it. Raises InvalidParameters."""
    if interval == "none":
        return [window.start]
    first, last = (datetime.fromtimestamp(edge, zone).date() for edge in (window.start, window.end - 1))
    shortest = {"hour": HOUR, "day": 82800, "week": 7 * 82800, "month": 28 * 82800}[interval]
    if (window.end - window.start) / shortest > MOST_BUCKETS:
        detail = f"cuts this window into more than {MOST_BUCKETS} buckets; ask for longer ones or a shorter window"
        raise InvalidParameters([ParameterFault("interval", detail)])
    if interval == "hour":
        return _hours(window, zone)
    if interval == "month":
        count = (last.year - first.year) * 12 + last.month - first.month + 1
        months = [first.year * 12 + first.month - 1 + number for number in range(count)]
        days = [date(month // 12, month % 12 + 1, 1) for month in months]
    else:
        step = 7 if interval == "week" else 1
        begin = first - first.weekday() * DAY if interval == "week" else first
        days = [begin + number * step * DAY for number in range((last - begin).days // step + 1)]
    # A date that a zone left out begins where the next one does.
    return sorted({midnight(day, zone) for day in days})


def _hours(window: Window, zone: ZoneInfo) -> list[int]:
    """The beginnings of clock hours: of an hour that comes twice both, of one that is skipped none."""

    def offset(instant: int) -> int:
        moved = datetime.fromtimestamp(instant, zone).utcoffset()
        return 0 if moved is None else int(moved.total_seconds())

    def beginning(instant: int) -> int:
        """The last quarter at which the hour of the clock, or the offset, changed."""
        here = instant - instant % QUARTER
        label = (here + offset(here)) // HOUR, offset(here)
        while ((before := here - QUARTER) + offset(before)) // HOUR == label[0] and offset(before) == label[1]:
            here = before
        return here

    starts = [beginning(window.start)]
    while True:
        here = starts[-1]
        following = here + HOUR - (here + offset(here)) % HOUR
        if offset(following) != offset(here):
            quarters = range(here + QUARTER, following + QUARTER, QUARTER)
            following = next((at for at in quarters if beginning(at) == at), following)
        if following >= window.end:
            return starts
        starts.append(following)
