"""Windows and time buckets of a query, in its time zone. Pure.

Rules:
- A day begins at the first instant of its date, and a week on Monday. A day has 23, 24 or 25 hours where clocks change.
- Arithmetic uses dates and seconds since 1970, never local date-times, which are ambiguous where clocks change.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from gateway.errors import InvalidParameters, ParameterFault
from gateway.model import Window

INSTANT = re.compile(
    r"(\d{4}-\d{2}-\d{2})(?:[Tt ](\d{2}:\d{2}(?::\d{2})?)(\.\d{1,9})?([Zz]|[+ -]\d{2}:\d{2})?)?", re.ASCII
)
MIN_INSTANT, MAX_INSTANT = datetime(1900, 1, 2, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)
MAX_BUCKETS = 10_000  # of a summary; about 14 months of hours, 5 MB of JSON
HOUR = 3600  # seconds
QUARTER = 900  # seconds; UTC offsets have been multiples of a quarter of an hour since 1972
DAY = timedelta(days=1)
NOT_IANA = re.compile("(?:right|posix)/.*|posixrules|localtime|Factory")  # files beside those of the zones

RANGES: dict[str, Callable[[date], tuple[date, date | None]]] = {
    "today": lambda day: (day, None),
    "yesterday": lambda day: (day - DAY, day),
    "last_7_days": lambda day: (day - 6 * DAY, None),
    "last_30_days": lambda day: (day - 29 * DAY, None),
    "this_month": lambda day: (day.replace(day=1), None),
    "last_month": lambda day: ((day.replace(day=1) - DAY).replace(day=1), day.replace(day=1)),
    "this_year": lambda day: (day.replace(month=1, day=1), None),
}  # by name: the first day, and the day after the last, None for a range until now


def parse_zone(text: str) -> ZoneInfo:
    """Parse the IANA name of a time zone. Raises ValueError."""
    try:
        if NOT_IANA.fullmatch(text):
            raise ValueError
        return ZoneInfo(text)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("is not an IANA time zone such as America/Chicago") from None


def parse_window(
    values: Mapping[str, str], zone: ZoneInfo, now: float, history_start: int, faults: list[ParameterFault]
) -> Window:
    """Parse `start` and `end`, or `range`. Fractions of a second extend the window. Adds errors to `faults`."""
    current = math.ceil(now)
    if (name := values.get("range")) is not None:
        faults += [
            ParameterFault(other, "cannot be combined with `range`") for other in ("start", "end") if other in values
        ]
        first, after = RANGES[name](datetime.fromtimestamp(now, zone).date())
        start = max(history_start, midnight(first, zone))
        return Window(start, max(start + 1, current if after is None else midnight(after, zone)))
    before = len(faults)
    start, end = history_start, current
    try:
        if "start" in values:
            start = max(history_start, _parse_instant(values["start"], zone)[0])
    except ValueError as error:
        faults.append(ParameterFault("start", str(error)))
    try:
        if "end" in values:
            end = sum(_parse_instant(values["end"], zone))
    except ValueError as error:
        faults.append(ParameterFault("end", str(error)))
    if len(faults) == before and start >= end:
        if "end" in values and end <= history_start:
            first_day = datetime.fromtimestamp(history_start, UTC).date()
            faults.append(ParameterFault("end", f"is not after {first_day}, the beginning of the history"))
        else:
            faults.append(ParameterFault("start", "is not before `end`" if "end" in values else "is in the future"))
    return Window(start, end)


def _parse_instant(text: str, zone: ZoneInfo) -> tuple[int, bool]:
    """Parse a date, a date-time or an instant to whole seconds since 1970, and whether it has a fraction.

    Raises ValueError.
    """
    match = INSTANT.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        day, clock, fraction, offset = match.groups()
        # In a query string, a plus sign that is not URL-encoded is a space.
        suffix = "+00:00" if offset in ("Z", "z") else (offset or "").replace(" ", "+")
        instant = datetime.fromisoformat(f"{day}T{clock or '00:00'}{suffix}")
        instant = instant if suffix else _in_zone(instant, zone)
        in_bounds = MIN_INSTANT <= instant.astimezone(UTC) <= MAX_INSTANT
    except (ValueError, OverflowError):
        raise ValueError("is not a date (2026-11-01) or an instant (2026-11-01T06:30:00Z)") from None
    if not in_bounds:
        raise ValueError(f"is not between the years {MIN_INSTANT.year} and {MAX_INSTANT.year}")
    return int(instant.timestamp()), bool((fraction or "").strip(".0"))


def _in_zone(wall: datetime, zone: ZoneInfo) -> datetime:
    """A wall time as an instant. Of a time that comes twice it is the first, of one that clocks skip their change."""
    instant = wall.replace(tzinfo=zone).astimezone(UTC)
    if instant.astimezone(zone).replace(tzinfo=None) == wall:
        return instant
    before, after = wall.replace(tzinfo=zone, fold=1).astimezone(UTC), instant  # the change is between these
    offset = before.astimezone(zone).utcoffset()
    while after - before > timedelta(seconds=1):
        middle = before + (after - before) // 2
        before, after = (middle, after) if middle.astimezone(zone).utcoffset() == offset else (before, middle)
    return after.replace(microsecond=0)


def midnight(day: date, zone: ZoneInfo) -> int:
    """The first instant of a date in seconds since 1970, also where clocks skip midnight."""
    return int(datetime.combine(day, time.min, zone).timestamp())


def bucket_starts(window: Window, interval: str, zone: ZoneInfo) -> list[int]:
    """The starts of the buckets of a window, the first at or before its start. Raises InvalidParameters."""
    if interval == "none":
        return [window.start]
    first, last = (datetime.fromtimestamp(edge, zone).date() for edge in (window.start, window.end - 1))
    shortest = {"hour": HOUR, "day": 82800, "week": 7 * 82800, "month": 28 * 82800}[interval]
    if (window.end - window.start) / shortest > MAX_BUCKETS:
        detail = f"gives more than {MAX_BUCKETS} buckets for this window; choose a longer interval or a shorter window"
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
    # A date that the zone skipped has the same start as the next date.
    return sorted({midnight(day, zone) for day in days})


def _hours(window: Window, zone: ZoneInfo) -> list[int]:
    """The starts of the clock hours of a window. A repeated hour has two starts, a skipped hour none."""

    def offset(instant: int) -> int:
        difference = datetime.fromtimestamp(instant, zone).utcoffset()
        return 0 if difference is None else int(difference.total_seconds())

    def hour_start(instant: int) -> int:
        """The latest instant, at or before `instant`, at which the clock hour or the UTC offset changed."""
        start = instant - instant % QUARTER
        hour, current = (start + offset(start)) // HOUR, offset(start)
        while ((before := start - QUARTER) + offset(before)) // HOUR == hour and offset(before) == current:
            start = before
        return start

    starts = [hour_start(window.start)]
    while True:
        start = starts[-1]
        following = start + HOUR - (start + offset(start)) % HOUR
        if offset(following) != offset(start):
            quarters = range(start + QUARTER, following + QUARTER, QUARTER)
            following = next((quarter for quarter in quarters if hour_start(quarter) == quarter), following)
        if following >= window.end:
            return starts
        starts.append(following)
