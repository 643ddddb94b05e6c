"""A summary counted call by call from a list, as the reference for the one that the gateway merges from aggregates."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from operator import itemgetter
from typing import Any
from zoneinfo import ZoneInfo

from gateway.api.calendars import bucket_starts
from gateway.model import Window

Row = dict[str, Any]  # a call, or figures, as JSON
Values = tuple[Any, ...]


def area_code(call: Row) -> str | None:
    digits = (call["ani"] or "").removeprefix("+")
    digits = digits[1:] if len(digits) == 11 and digits[0] == "1" else digits
    usual = len(digits) == 10 and digits.isdigit() and digits[0] not in "01" and digits[3] not in "01"
    return digits[:3] if usual else None


FIELDS: dict[str, Callable[[Row], Any]] = {
    **{name: itemgetter(name) for name in ("result", "campaign", "did", "target", "phoneType")},
    "client": itemgetter("clientCode"),
    "state": lambda call: (call["address"] or {}).get("state"),
    "areaCode": area_code,
    "sales": lambda call: (call["status"] or {}).get("sales"),
}
CLOCKS: dict[str, Callable[[datetime], int]] = {
    "hourOfDay": lambda local: local.hour,
    "dayOfWeek": lambda local: local.isoweekday(),
    "hourOfWeek": lambda local: local.weekday() * 24 + local.hour,
}


def second(call: Row) -> float:
    return datetime.fromisoformat(call["startTime"]).timestamp()


def instant(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


class Plain:
    """The calls of a window in their buckets and groups. `earlier` are the calls of the lookback."""

    def __init__(
        self,
        calls: Iterable[Row],
        window: Window,
        until: float,
        *,
        zone: ZoneInfo,
        interval: str = "none",
        group_by: Sequence[str] = (),
        earlier: Iterable[Row] = (),
    ) -> None:
        self.window, self.zone, self.group_by = window, zone, group_by
        self.until = max(window.start, min(window.end, int(until)))
        self.starts = bucket_starts(window, interval, zone)
        self.cells: dict[tuple[int, Values], list[Row]] = defaultdict(list)
        self.new: Counter[tuple[int, Values]] = Counter()
        seen = {call["ani"] for call in earlier} | {None}
        for call in sorted(calls, key=lambda call: (second(call), call["id"], call["clientCode"])):
            local = datetime.fromtimestamp(int(second(call)), zone)
            place = bisect_right(self.starts, second(call)) - 1
            group = tuple(CLOCKS[name](local) if name in CLOCKS else FIELDS[name](call) for name in group_by)
            self.cells[place, group].append(call)
            self.new[place, group] += call["ani"] not in seen
            seen.add(call["ani"])
        self.measured = self._measure()

    def ticks(self, groups: Iterable[Values]) -> set[Values]:
        """The values of the clock in groups."""
        clocks = [place for place, name in enumerate(self.group_by) if name in CLOCKS]
        return {tuple(group[place] for place in clocks) for group in groups} or {()}

    def _measure(self) -> Counter[tuple[int, Values]]:
        """The seconds of each bucket and value of the clock. Offsets are whole minutes."""
        found: Counter[tuple[int, Values]] = Counter()
        clocks = [CLOCKS[name] for name in self.group_by if name in CLOCKS]
        edges = {self.window.start, self.until, *self.starts}
        edges |= set(range(-(-self.window.start // 900) * 900, self.until, 900)) if clocks else set()
        edges |= set(self._changes()) if clocks else set()
        inside = sorted(edge for edge in edges if self.window.start <= edge <= self.until)
        for start, end in pairwise(inside):
            local = datetime.fromtimestamp(start, self.zone)
            found[bisect_right(self.starts, start) - 1, tuple(clock(local) for clock in clocks)] += end - start
        return found

    def _changes(self) -> Iterator[int]:
        """The minutes in which the offset changes."""
        offsets = (
            (at, datetime.fromtimestamp(at, self.zone).utcoffset())
            for at in range(self.window.start // 60 * 60, self.until + 60, 60)
        )
        for (_, before), (at, after) in pairwise(offsets):
            if before != after:
                yield at

    def seconds(self, place: int, ticks: set[Values]) -> int:
        """The seconds of a bucket at some values of the clock."""
        return sum(self.measured[place, values] for values in ticks)

    def figures(self, place: int | None, groups: Iterable[Values], ticks: set[Values], within: int | None) -> Row:
        """The figures of some groups of a bucket, or of the window."""
        keys = [(one, group) for one in ([place] if place is not None else range(len(self.starts))) for group in groups]
        keys = [key for key in keys if key in self.cells]
        calls = [call for key in keys for call in self.cells[key]]
        connected = [call for call in calls if call["result"] == "connected"]
        talk = [call["talkTimeSeconds"] for call in calls if call["talkTimeSeconds"] is not None]
        waits = sorted(
            max(0, call["durationSeconds"] - call["talkTimeSeconds"])
            for call in connected
            if call["durationSeconds"] is not None and call["talkTimeSeconds"] is not None
        )
        count = len(calls)
        soon = sum(wait <= within for wait in waits) if within is not None else None
        return {
            "calls": count,
            "connected": len(connected),
            "missed": sum(call["result"] in ("busy", "no_answer", "abandoned") for call in calls),
            "answerRate": round(len(connected) / count, 6) if count else None,
            "answeredWithinRate": round(soon / count, 6) if count and soon is not None else None,
            "uniqueCallers": len({call["ani"] for call in calls} - {None}),
            "newCallers": sum(self.new[key] for key in keys),
            "durationSeconds": sum(call["durationSeconds"] or 0 for call in calls),
            "talkTimeSeconds": sum(talk),
            "meanTalkTimeSeconds": round(sum(talk) / len(talk), 3) if talk else None,
            "waitSeconds": {
                "mean": round(sum(waits) / len(waits), 3),
                "p50": waits[math.ceil(len(waits) / 2) - 1],
                "p90": waits[math.ceil(len(waits) * 9 / 10) - 1],
            }
            if waits
            else None,
            "hours": round((0 if place is None else self.seconds(place, ticks)) / 3600, 6),
        }


def plain_summary(
    period: Plain, previous: Plain | None = None, *, top: int | None = None, within: int | None = None
) -> tuple[list[Row], Row]:
    """The rows and the total of a summary, as JSON."""
    groups = {key[1] for one in (period, previous) if one for key in one.cells}
    calls = Counter(dict.fromkeys(groups, 0))
    for key, found in period.cells.items():
        calls[key[1]] += len(found)
    ranked = sorted(groups, key=lambda group: [(value is None, value) for value in group])
    if top is not None:
        ranked.sort(key=lambda group: -calls[group])
    shown, rest = (ranked, []) if top is None else (ranked[:top], ranked[top:])
    kinds = [([group], False) for group in shown] + ([(rest, True)] if rest or not shown else [])
    rows = []
    for place, start in enumerate(period.starts):
        for some, is_rest in kinds:
            ticks = period.ticks(some)
            compared = None
            if previous is not None and place < len(previous.starts):
                compared = previous.figures(place, some, ticks, within)
            named = dict(zip(period.group_by, some[0], strict=True)) if period.group_by and not is_rest else None
            row = {"bucketStart": instant(start), "group": named, "rest": is_rest and bool(rest), "previous": compared}
            rows.append(period.figures(place, some, ticks, within) | row)

    def total(one: Plain) -> Row:
        everything = one.figures(None, {key[1] for key in one.cells}, set(), within)
        return everything | {"hours": round(max(0, one.until - one.window.start) / 3600, 6)}

    return rows, total(period) | {"previous": total(previous) if previous else None}
