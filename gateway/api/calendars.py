"""Calendars: the time buckets of a window, the hours and weekdays of a clock, and windows to compare with. Pure.

Rules:
- A day begins at the first instant of its date, and a week on Monday. A day has 23, 24 or 25 hours where clocks change.
- An hour that clocks repeat has one value of `hourOfDay`, and two buckets. An hour that clocks skip has no bucket.
- Arithmetic uses dates and seconds since 1970, never local date-times, which are ambiguous where clocks change.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime
from itertools import chain, pairwise
from zoneinfo import ZoneInfo

from gateway.api.time_ranges import DAY, HOUR, in_zone, midnight
from gateway.cache.aggregates import Group, Slot
from gateway.errors import InvalidParameters, ParameterFault
from gateway.model import Window
from gateway.slices import Steps

MAX_BUCKETS = 10_000  # of a summary; about 14 months of hours, 5 MB of JSON
STEP = 86400  # seconds; no zone has changed its offset twice within four days
STEP_SLOTS = 1000  # slots measured in one step
CLOCKS: dict[str, Callable[[int], int]] = {
    "hourOfDay": lambda hour: hour % 24,
    "dayOfWeek": lambda hour: (hour // 24 + 3) % 7 + 1,  # 1970 began on a Thursday
    "hourOfWeek": lambda hour: (hour + 72) % 168,
}  # the dimensions that are read from a clock, by hours of local time since 1970


class Calendar:
    """The slots of a window in a time zone: the parts of its buckets in which each clock dimension has one value.

    `starts` has the starts of the buckets, in seconds since 1970.
    """

    def __init__(self, window: Window, interval: str, zone: ZoneInfo, clocks: Sequence[str] = ()) -> None:
        self.starts = bucket_starts(window, interval, zone)
        self.name = (interval, str(zone), tuple(clocks)) if interval != "none" or clocks else ()
        self._window, self._zone = window, zone
        self._single = interval == "none"
        self._clocks = [CLOCKS[name] for name in clocks]

    def place(self, slot: Slot) -> int:
        """The index of a slot's bucket in `starts`."""
        return 0 if self._single else bisect_left(self.starts, slot[0])

    def slots(self, window: Window) -> list[tuple[int, Slot]]:
        """The slots in a part of the window, each with its start. The first one starts at or before the part.

        The slots of the interval `none` are the same for every window, so that figures are memoised.
        """
        return list(self._slots(window))

    def _slots(self, window: Window) -> Iterator[tuple[int, Slot]]:
        starts = [] if self._single else self.starts
        buckets = starts[max(0, bisect_right(starts, window.start) - 1) : bisect_left(starts, window.end)] or [0]
        if not self._clocks:
            yield from ((start, (start, ())) for start in buckets)
            return
        place = 0
        for edge, hour in _with_edges(clock_hours(window, self._zone), buckets):
            while place + 1 < len(buckets) and buckets[place + 1] <= edge:
                place += 1
            yield edge, (buckets[place], tuple([clock(hour) for clock in self._clocks]))

    def seconds(self, until: float) -> Steps[Counter[tuple[int, Group]]]:
        """The seconds of each slot within the window up to an instant, by the bucket's index and the clock's values."""
        found: Counter[tuple[int, Group]] = Counter()
        window = Window(self._window.start, max(self._window.start, min(self._window.end, int(until))))
        ended = chain(self._slots(window), [(window.end, (0, ()))])
        for number, ((start, slot), (end, _)) in enumerate(pairwise(ended)):
            found[self.place(slot), slot[1]] += max(0, end - max(start, window.start))
            if number % STEP_SLOTS == 0:
                yield
        return found


def _with_edges(hours: Iterator[tuple[int, int]], edges: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Cut hours at other edges too: a day may begin within an hour, where clocks change between hours."""
    inside = iter(edges)
    edge = next(inside, None)
    before: int | None = None
    for start, hour in hours:
        while edge is not None and edge <= start:
            if before is not None and edge < start:
                yield edge, before
            edge = next(inside, None)
        yield start, hour
        before = hour
    while edge is not None and before is not None:
        yield edge, before
        edge = next(inside, None)


def offsets(window: Window, zone: ZoneInfo) -> list[tuple[int, int]]:
    """The UTC offsets in a window, in seconds, each with the instant from which it holds. The first is its start."""

    def offset(instant: int) -> int:
        difference = datetime.fromtimestamp(instant, zone).utcoffset()
        return 0 if difference is None else int(difference.total_seconds())

    found = [(window.start, offset(window.start))]
    for begin in range(window.start, window.end, STEP):
        end, before = min(begin + STEP, window.end), found[-1][1]
        if (after := offset(end)) != before:
            change = bisect_left(range(begin, end), True, key=lambda one: offset(one) != before) + begin
            found.append((change, after))
    return found


def clock_hours(window: Window, zone: ZoneInfo) -> Iterator[tuple[int, int]]:
    """The clock hours in a window: the start of each, and its number in hours of local time since 1970.

    The first one starts with the window. An hour begins again where clocks change.
    """
    for (start, offset), (end, _) in pairwise([*offsets(window, zone), (window.end, 0)]):
        first = (start + offset) // HOUR
        for hour in range(first, -(-(end + offset) // HOUR)):
            yield max(start, hour * HOUR - offset), hour


def bucket_starts(window: Window, interval: str, zone: ZoneInfo) -> list[int]:
    """The starts of the buckets of a window, the first at or before its start. Raises InvalidParameters."""
    if interval == "none":
        return [window.start]
    edges = window.start, max(window.start, window.end - 1)
    first, last = (datetime.fromtimestamp(edge, zone).date() for edge in edges)
    shortest = {"hour": HOUR, "day": 82800, "week": 7 * 82800, "month": 28 * 82800}[interval]
    if (window.end - window.start) / shortest > MAX_BUCKETS:
        detail = f"gives more than {MAX_BUCKETS} buckets for this window; choose a longer interval or a shorter window"
        raise InvalidParameters([ParameterFault("interval", detail)])
    if interval == "hour":
        hours = [start for start, _ in clock_hours(Window(window.start - HOUR, max(edges) + 1), zone)]
        return hours[bisect_right(hours, window.start) - 1 :]
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


def compared_window(window: Window, how: str, zone: ZoneInfo, current: int) -> Window:
    """The window to compare with: `previous`, the time just before, or `year`, the same dates a year before.

    Whole local days are compared with as many local days, and other windows with as many seconds. A window that is
    not over at the instant `current` is compared up to the same moment.
    """
    until = min(window.end, max(window.start, current))
    first, last = (datetime.fromtimestamp(edge, zone).date() for edge in (window.start, max(window.start, until - 1)))
    if how == "year":
        start, end = (_moved(edge, _year_before, zone) for edge in (window.start, until))
        return Window(start, max(start, end))
    final = datetime.fromtimestamp(window.end, zone).date()
    if window.start == midnight(first, zone) and (window.end in (midnight(final, zone), current)):
        if window.end != current:
            last = final - DAY
        length = last - first + DAY
        return Window(midnight(first - length, zone), _moved(until, lambda day: day - length, zone))
    length_in_seconds = window.end - window.start
    return Window(window.start - length_in_seconds, until - length_in_seconds)


def _year_before(day: date) -> date:
    return day.replace(year=day.year - 1, day=28 if (day.month, day.day) == (2, 29) else day.day)


def _moved(instant: int, move: Callable[[date], date], zone: ZoneInfo) -> int:
    """The same local time on another date."""
    local = datetime.fromtimestamp(instant, zone)
    day = move(local.date())
    if instant == midnight(local.date(), zone):
        return midnight(day, zone)
    return int(in_zone(datetime.combine(day, local.time()), zone).timestamp())
