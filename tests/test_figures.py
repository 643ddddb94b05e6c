"""Figures put together from hours and quarters are those of counting every call; pages pass over nothing that fits."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.api.query import Filters
from gateway.api.time_ranges import bucket_starts
from gateway.ledger.extents import DAY, by_day, make_extent
from gateway.ledger.figures import Figures, Group, Shape
from gateway.ledger.pages import Position, read_page
from gateway.ledger.reader import Ledger
from gateway.model import Call, Result, Window
from tests.test_ledger import NOW, Upstream, ask, call, ledger_of

ZONES = ["UTC", "America/Chicago", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe", "Pacific/Chatham"]
TURNS = [int(datetime(2026, month, day, tzinfo=UTC).timestamp()) for month, day in ((3, 8), (4, 5), (10, 3), (11, 1))]


@st.composite
def calls_near(draw: st.DrawFn, first: int) -> list[Call]:
    """Calls of four days, many of them at hours, quarters and seconds beside."""
    seconds = st.integers(0, 4 * 96).map(lambda quarter: quarter * 900) | st.integers(0, 4 * DAY - 1)
    starts = draw(
        st.lists(st.builds(lambda at, by: min(max(0, at + by), 4 * DAY - 1), seconds, st.integers(-1, 1)), max_size=30)
    )
    return [
        msgspec.structs.replace(
            call(str(number), first + at, campaign=draw(st.sampled_from([None, "1", "2"]))),
            ani=draw(st.sampled_from([None, "1", "2", "3", "4"])),
            result=draw(st.sampled_from([Result.CONNECTED, Result.BUSY])),
            talk_time_seconds=draw(st.sampled_from([None, 0, 7])),
        )
        for number, at in enumerate(dict.fromkeys(starts))  # who called first is plain
    ]


def plain(calls: Sequence[Call], starts: Sequence[int], *, grouped: bool) -> dict[tuple[int, Group], tuple[int, ...]]:
    """Count call by call."""
    rows: dict[tuple[int, Group], list[Call]] = {}
    new: dict[tuple[int, Group], int] = {}
    seen = set[str]()
    for one in sorted(calls, key=lambda one: one.start_time):
        bucket = max(start for start in starts if start <= one.start_time.timestamp())
        key = bucket, one.campaign if grouped else None
        rows.setdefault(key, []).append(one)
        if one.ani is not None and one.ani not in seen:
            seen.add(one.ani)
            new[key] = new.get(key, 0) + 1
    return {
        key: (
            len(found),
            sum(one.result is Result.CONNECTED for one in found),
            sum(one.duration_seconds or 0 for one in found),
            sum(one.talk_time_seconds or 0 for one in found),
            sum(one.talk_time_seconds is not None for one in found),
            len({one.ani for one in found} - {None}),
            new.get(key, 0),
        )
        for key, found in rows.items()
    }


@settings(max_examples=50)
@given(st.data(), st.sampled_from(TURNS))
def test_figures_of_every_calendar_are_those_of_counting_each_call(data: st.DataObject, turn: int):
    first = turn - 2 * DAY
    calls = data.draw(calls_near(first))
    cut = data.draw(st.integers(1, 4 * DAY - 1))
    windows = [Window(first, first + cut), Window(first + cut, first + 4 * DAY)]
    held = [part for window in windows for _, part in by_day(make_extent(window, 0, calls), 32 * DAY)]
    for _ in range(4):  # each time upon what is remembered
        start = data.draw(st.integers(0, 4 * DAY - 1))
        window = Window(first + start, first + data.draw(st.integers(start + 1, 4 * DAY)))
        if data.draw(st.booleans()):
            window = Window(first, first + 4 * DAY)
        zone, interval = data.draw(st.sampled_from(ZONES)), data.draw(st.sampled_from(["none", "hour", "day", "week"]))
        grouped, filtered = data.draw(st.booleans()), data.draw(st.booleans())
        filters = Filters(ani="2") if filtered else Filters()
        starts = bucket_starts(window, interval, ZoneInfo(zone))
        starts = [-(10**11)] if interval == "none" else starts
        group = (lambda one: one.campaign) if grouped else None
        counted = grouped, filters
        figures = Figures(Shape((interval, zone, counted), counted, starts, group, filters.apply))
        for extent in held:
            if extent.window.overlaps(window):
                figures.add(extent.looked_at(window))
        rows, total = figures.sums()
        inside = filters.apply([one for one in calls if one.start_time.timestamp() in window])
        found = {
            (start, name): msgspec.structs.astuple(count) for start, groups in rows for name, count in groups.items()
        }
        expected = plain(inside, starts, grouped=grouped)
        assert found == expected
        assert (total.calls, total.callers) == (len(inside), len({one.ani for one in inside} - {None}))


def test_an_extent_that_begins_between_hours_begins_its_bucket():
    """As one does that was fetched from a midnight in India on."""
    midnight = TURNS[0] - 19800
    extent = make_extent(Window(midnight, midnight + 7200), 0, [call("1", midnight + 60), call("2", midnight + 3660)])
    starts = bucket_starts(Window(midnight - 1, midnight + 7200), "day", ZoneInfo("Asia/Kolkata"))
    figures = Figures(Shape("days", "all", starts, None, list))
    figures.add(extent)
    (_, before), (start, groups) = figures.sums()[0]
    assert (before, start, groups[None].calls) == ({}, midnight, 2)


NUMBERS = ["3125550100", "5550100", "", "0", 'a"\\\u00e9\n']


@pytest.mark.parametrize("newest_first", [True, False])
@settings(max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 9 * DAY - 1), st.none() | st.sampled_from(NUMBERS), st.booleans()), max_size=40),
    st.sampled_from(NUMBERS),
    st.none() | st.sampled_from(["1", "2"]),
)
def test_a_filtered_page_passes_over_nothing_that_fits(
    newest_first: bool, made: list[tuple[int, str | None, bool]], number: str, campaign: str | None
):
    """Also where an id came twice, and what a number was in the older version."""
    upstream = Upstream()
    window = Window(NOW - 9 * DAY, NOW)
    filters = Filters(ani=number, campaign=campaign)

    def one(identity: str, at: int, ani: str | None, *, first: bool) -> Call:
        return msgspec.structs.replace(call(identity, window.start + at, campaign="1" if first else "2"), ani=ani)

    async def run() -> tuple[list[Call], list[Call]]:
        ledger = ledger_of(upstream)
        upstream.published = [(0, one(str(n), at, ani, first=n % 3 == 0)) for n, (at, ani, _) in enumerate(made)]
        await ledger.read(ask(["a"], Window(window.start, window.start + 5 * DAY)))
        upstream.now += 60  # some have moved, and have another number
        upstream.published = [
            (0, one(str(n), 9 * DAY - 1 - at if moves else at, NUMBERS[n % 5] if moves else ani, first=n % 3 == 0))
            for n, (at, ani, moves) in enumerate(made)
        ]
        await ledger.read(ask(["a"], window))
        return await pages(ledger, filters.texts), await pages(ledger, {})

    async def pages(ledger: Ledger, texts: dict[str, str]) -> list[Call]:
        found: list[Call] = []
        after: Position | None = None
        while True:
            page = await read_page(
                ledger, ask(["a"], window), upstream.now, newest_first=newest_first, limit=3, after=after,
                keep=filters.apply, texts=texts,
            )  # fmt: skip
            found += page.calls
            after = page.after
            if after is None:
                return found

    found, expected = asyncio.run(run())
    assert found == expected
