"""The table of a summary: rows of figures by time bucket and group, made from aggregates. Pure.

Rules:
- A group is in every bucket if it has a call in the window, or in the window to compare with.
- The figures of the calls outside the top groups are counted from these calls, never subtracted.
- Without the scope `personal`, figures do not tell which calls share a caller.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from heapq import merge
from itertools import islice
from typing import Annotated, Any, NamedTuple
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Struct

from gateway.access import Consumer, can_count_callers
from gateway.api.calendars import Calendar
from gateway.api.dimensions import clocks_of
from gateway.api.responses import AnswerMeta, instant
from gateway.api.summary_query import SummaryQuery
from gateway.cache.aggregates import NO_CALLS, Aggregator, Group, Key, Part, Value, merged
from gateway.errors import InvalidParameters, ParameterFault
from gateway.formats import render_header, render_records
from gateway.model import Instant, about
from gateway.slices import Steps

MAX_ROWS = 20_000  # of a summary; about 10 MB of JSON
MAX_SUM = 2**31 - 1  # seconds, 68 years; the contract promises int32
STEP_ROWS = 20  # rows made in one step
STEP_SORTED = 500  # groups sorted in one step
REST: Group = (None,) * 3  # the calls of all groups outside the top ones; no other group has three values
Place = tuple[int, Group]  # of a bucket in its window, and a group
_encoder = msgspec.json.Encoder()


class WaitSeconds(Struct, frozen=True, kw_only=True):
    """How long answered calls waited, in seconds: their duration without the talk time."""

    mean: Annotated[float, about("The mean.", 12.5)]
    p50: Annotated[int, about("The median: half of the calls waited at most this long (nearest rank).", 11)]
    p90: Annotated[int, about("90 % of the calls waited at most this long (nearest rank).", 19)]


class SummaryFigures(Struct, frozen=True, kw_only=True, rename="camel"):
    """The figures of a set of calls."""

    calls: Annotated[int, about("Number of calls.", 3)]
    connected: Annotated[int, about("Number of answered calls.", 2)]
    missed: Annotated[int, about("Number of calls that were busy, not answered or abandoned.", 1)]
    answer_rate: Annotated[float | None, about("The share of calls that were answered. Null without calls.", 0.666667)]
    answered_within_rate: Annotated[
        float | None,
        about("The share of calls that were answered within `answeredWithin` seconds. Null without it.", 0.333333),
    ]
    unique_callers: Annotated[
        int | None,
        about("Number of distinct callers, by `ani`. Without the scope `personal` null below five calls.", 3),
    ]
    new_callers: Annotated[
        int | None,
        about(
            "Number of callers whose first call in the window is among these calls. Null without the scope `personal`.",
            3,
        ),
    ]
    duration_seconds: Annotated[int, about("Sum of the durations, in seconds.", 412)]
    talk_time_seconds: Annotated[int, about("Sum of the talk times, in seconds.", 332)]
    mean_talk_time_seconds: Annotated[float | None, about("Mean of the known talk times.", 166.0)]
    wait_seconds: Annotated[
        WaitSeconds | None, about("How long answered calls waited. Null without an answered call whose wait is known.")
    ]
    hours: Annotated[
        float, about("The real time of the bucket and of the hours in it, within the window and up to now.", 24.0)
    ]


class SummaryTotals(SummaryFigures, frozen=True, kw_only=True, rename="camel"):
    """The figures of all calls of the window."""

    previous: Annotated[
        SummaryFigures | None, about("The figures of the window to compare with. Null without `compare`.")
    ]


class SummaryRow(SummaryFigures, frozen=True, kw_only=True, rename="camel"):
    """The figures of one time bucket and one group."""

    bucket_start: Annotated[Instant, about("Start of the bucket.", "2026-11-01T05:00:00Z")]
    group: Annotated[
        dict[str, Value] | None,
        about("The value of each dimension of `groupBy`; null without it, and of the rest.", {"campaign": "4018"}),
    ]
    rest: Annotated[bool, about("Whether these are the calls of all groups that are not among the `top`.", False)]
    previous: Annotated[
        SummaryFigures | None,
        about("The figures of the same group in the bucket of the same place in the window to compare with."),
    ]


FIGURES = {field.encode_name: field.name for field in msgspec.structs.fields(SummaryFigures)}
WAITS = {field.encode_name: field.name for field in msgspec.structs.fields(WaitSeconds)}
COLUMNS = tuple(
    column for name in FIGURES for column in ([f"{name}.{one}" for one in WAITS] if name == "waitSeconds" else [name])
)


class Period(NamedTuple):
    """The aggregate of a window by slot and group, and its calendar with the seconds of each slot."""

    aggregator: Aggregator
    calendar: Calendar
    seconds: Counter[tuple[int, tuple[Value, ...]]]


def make_rows(
    query: SummaryQuery, period: Period, previous: Period | None, consumer: Consumer
) -> Steps[tuple[list[SummaryRow], SummaryTotals]]:
    """The rows of each bucket, and the figures of all calls. Raises InvalidParameters if there are too many rows."""
    names, starts = query.group_by, period.calendar.starts
    clocks = clocks_of(names)
    source = [*clocks, *(name for name in names if name not in clocks)]
    order = [source.index(name) for name in names]

    def group_of(key: Key) -> Group:
        values = (*key[0][1], *key[1])
        return tuple([values[place] for place in order])

    calls: Counter[Group] = Counter()
    for one in filter(None, (period, previous)):
        for number, (key, count) in enumerate(one.aggregator.calls()):
            calls[group_of(key)] += count if one is period else 0
            if number % STEP_ROWS == 0:
                yield
    ranked = yield from _ranked(calls, by_calls=query.top is not None)
    groups, rest = ranked[: query.top], ranked[query.top :] if query.top else []
    shown = frozenset(groups)
    groups += [REST] if rest or not groups else []
    if len(groups) * len(starts) > MAX_ROWS:
        raise too_many_rows(len(starts), f"{len(groups)} groups")
    clock_places = [names.index(name) for name in clocks]

    def clock_values(groups: Iterable[Group]) -> set[tuple[Value, ...]]:
        """The values of the clock dimensions in some groups."""
        return {tuple([group[place] for place in clock_places]) for group in groups} or {()}

    clock_values_of = {group: clock_values([group]) for group in shown} | {REST: clock_values(rest)}

    def place_of(one: Period, key: Key) -> Place:
        group = group_of(key)
        return one.calendar.place(key[0]), group if group in shown else REST

    def figures(one: Period, parts: Mapping[Place, tuple[Part, int]], place: int, group: Group) -> dict[str, Any]:
        seconds = sum([one.seconds[place, values] for values in clock_values_of[group]])
        return _figures(*parts.get((place, group), (NO_CALLS, 0)), seconds, query, consumer)

    found = yield from period.aggregator.merged_as(partial(place_of, period))
    before = (yield from previous.aggregator.merged_as(partial(place_of, previous))) if previous else {}
    rows: list[SummaryRow] = []
    for place, start in enumerate(starts):
        for group in groups:
            compared = None
            if previous is not None and place < len(previous.calendar.starts):
                compared = SummaryFigures(**figures(previous, before, place, group))
            row = SummaryRow(
                bucket_start=instant(start),
                group=dict(zip(names, group, strict=True)) if names and group is not REST else None,
                rest=group is REST and bool(rest),
                previous=compared,
                **figures(period, found, place, group),
            )
            rows.append(row)
            if len(rows) % STEP_ROWS == 0:
                yield
    yield
    total = yield from _total(query, period, found, consumer)
    yield
    all_before = SummaryFigures(**(yield from _total(query, previous, before, consumer))) if previous else None
    return rows, SummaryTotals(previous=all_before, **total)


def _ranked(calls: Mapping[Group, int], *, by_calls: bool) -> Steps[list[Group]]:
    """Sort groups by their values, or by their calls, the most first, and then by their values."""

    def rank(group: Group) -> tuple[int, list[tuple[bool, Value]]]:
        return -calls[group] if by_calls else 0, [(value is None, value) for value in group]

    rest, runs, ranked = iter(calls), list[list[Group]](), list[Group]()
    while run := sorted(islice(rest, STEP_SORTED), key=rank):
        runs.append(run)
        yield
    for group in merge(*runs, key=rank):
        ranked.append(group)
        if len(ranked) % STEP_SORTED == 0:
            yield
    return ranked


def _total(
    query: SummaryQuery, period: Period, found: Mapping[Place, tuple[Part, int]], consumer: Consumer
) -> Steps[dict[str, Any]]:
    """The figures of all calls of a window. Raises InvalidParameters if the contract cannot tell them."""
    part = yield from merged([part for part, _ in found.values()], period.aggregator.callers)
    if max(part.counts.duration, part.counts.talk) > MAX_SUM:
        raise InvalidParameters(
            [ParameterFault("start", f"gives a sum of over {MAX_SUM} seconds; choose a shorter window")]
        )
    new = sum([number for _, number in found.values()])
    return _figures(part, new, sum(period.seconds.values()), query, consumer)


def _figures(part: Part, new: int, seconds: int, query: SummaryQuery, consumer: Consumer) -> dict[str, Any]:
    """The figures that the consumer may see: distinct counts of a few calls tell which of them share a caller."""
    counts, within, waits = part.counts, query.answered_within, part.wait_statistics(50, 90)

    def rate(number: int) -> float | None:
        return round(number / counts.calls, 6) if counts.calls else None

    return {
        "calls": counts.calls,
        "connected": counts.connected,
        "missed": part.missed,
        "answer_rate": rate(counts.connected),
        "answered_within_rate": None if within is None else rate(part.answered_within(within)),
        "unique_callers": len(part.callers) if can_count_callers(consumer, counts.calls) else None,
        "new_callers": new if "personal" in consumer.scopes else None,
        "duration_seconds": counts.duration,
        "talk_time_seconds": counts.talk,
        "mean_talk_time_seconds": part.mean_talk,
        "wait_seconds": waits and WaitSeconds(mean=waits[0], p50=waits[1][0], p90=waits[1][1]),
        "hours": round(seconds / 3600, 6),
    }


def too_many_rows(buckets: int, groups: str) -> InvalidParameters:
    """The refusal of a summary with too many rows."""
    detail = f"gives {buckets} buckets of {groups}, more than {MAX_ROWS} rows; use `top` or longer buckets"
    return InvalidParameters([ParameterFault("groupBy", detail)])


def render_csv(
    rows: Sequence[SummaryRow], group_by: Sequence[str], *, compared: bool, zone: ZoneInfo | None = None
) -> Steps[bytes]:
    """Render rows as CSV, a column for each figure and dimension. `zone` is the time zone of Excel's dialect."""

    def cells(row: SummaryRow) -> list[object]:
        before = _figure_cells(row.previous) if compared else ()
        return [row.bucket_start, *map((row.group or {}).get, group_by), row.rest, *_figure_cells(row), *before]

    previous = [f"previous.{name}" for name in COLUMNS] if compared else []
    columns = ["bucketStart", *[f"group.{name}" for name in group_by], "rest", *COLUMNS, *previous]
    text = [render_header(columns, zone)]
    for begin in range(0, len(rows), STEP_ROWS):
        text.append(render_records(map(cells, rows[begin : begin + STEP_ROWS]), zone))
        yield
    return b"".join(text)


def render_ndjson(rows: Sequence[SummaryRow], total: SummaryTotals, meta: AnswerMeta) -> Steps[bytes]:
    """Render one row a line, then a line with the figures of all calls and `meta`."""
    text = []
    for begin in range(0, len(rows), STEP_ROWS):
        text.append(_encoder.encode_lines(rows[begin : begin + STEP_ROWS]))
        yield
    return b"".join([*text, _encoder.encode({"total": total, "meta": meta}), b"\n"])


def _figure_cells(figures: SummaryFigures | None) -> Iterable[object]:
    if figures is None:
        return [None] * len(COLUMNS)
    cells: list[object] = []
    for attribute in FIGURES.values():
        value = getattr(figures, attribute)
        if attribute == "wait_seconds":
            cells += [None if value is None else getattr(value, inner) for inner in WAITS.values()]
        else:
            cells.append(value)
    return cells
