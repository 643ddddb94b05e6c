"""The window of a query, in its time zone. Pure.

Rules:
- A day begins at the first instant of its date.
- Arithmetic uses dates and seconds since 1970, never local date-times, which are ambiguous where clocks change.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from gateway.errors import ParameterFault
from gateway.model import Window

INSTANT = re.compile(
    r"(\d{4}-\d{2}-\d{2})(?:[Tt ](\d{2}:\d{2}(?::\d{2}(\.\d{1,9})?)?)([Zz]|[+ -]\d{2}:\d{2})?)?", re.ASCII
)
YEARS = range(1900, 9000)  # of a date as it is written; the years around them keep every time zone in bounds
HOUR = 3600  # seconds
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
    """Parse `start` and `end`, or `range`. Fractions of a second extend the window. Adds errors to `faults`.

    A window before the beginning of history is empty, and so is one without `end` that starts in the future: its end
    is its start, so that a consumer that continues from `end` neither skips nor repeats calls.
    """
    current = math.ceil(now)
    if (name := values.get("range")) is not None:
        faults += [
            ParameterFault(other, "cannot be combined with `range`") for other in ("start", "end") if other in values
        ]
        first, after = RANGES[name](datetime.fromtimestamp(now, zone).date())
        start, end = midnight(first, zone), current if after is None else midnight(after, zone)
    else:
        edges = _parse_edges(values, zone, faults)
        end = edges.get("end", max(current, edges.get("start", current)))
        start = edges.get("start", min(history_start, end))
        if start > end:
            faults.append(ParameterFault("start", "is after `end`"))
    return Window(min(max(start, history_start), end), end)


def _parse_edges(values: Mapping[str, str], zone: ZoneInfo, faults: list[ParameterFault]) -> dict[str, int]:
    edges = {}
    for name in ("start", "end"):
        try:
            if name in values:
                seconds, has_fraction = _parse_instant(values[name], zone)
                edges[name] = seconds + (has_fraction and name == "end")
        except ValueError as error:
            faults.append(ParameterFault(name, str(error)))
    return edges


def _parse_instant(text: str, zone: ZoneInfo) -> tuple[int, bool]:
    """Parse a date, a date-time or an instant to whole seconds since 1970, and whether it has a fraction.

    Raises ValueError.
    """
    match = INSTANT.fullmatch(text)
    if match is not None and int(text[:4]) not in YEARS:
        raise ValueError(f"is not between the years {YEARS.start} and {YEARS.stop}")
    try:
        if match is None:
            raise ValueError
        day, clock, fraction, offset = match.groups(default="")
        # In a query string, a plus sign that is not URL-encoded is a space.
        suffix = "+00:00" if offset in ("Z", "z") else offset.replace(" ", "+")
        instant = datetime.fromisoformat(f"{day}T{clock.removesuffix(fraction) or '00:00'}{suffix}")
        instant = instant if suffix else in_zone(instant, zone)
    except (ValueError, OverflowError):
        raise ValueError("is not a date (2026-11-01) or an instant (2026-11-01T06:30:00Z)") from None
    return int(instant.timestamp()), bool(fraction.strip(".0"))


def in_zone(wall: datetime, zone: ZoneInfo) -> datetime:
    """Convert a wall time to an instant: the first one of a repeated time, the clock change for a skipped time."""
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
