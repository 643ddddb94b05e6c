"""Aggregates merged from hours and quarters equal a count of every call; filtered pages skip no matching call."""

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.api.filters import Filters
from gateway.api.time_ranges import bucket_starts
from gateway.cache.aggregates import AggregateSpec, Aggregator, Group
from gateway.cache.extents import DAY, by_day, deduplicated, make_extent, repeated_ids
from gateway.cache.reader import Cache
from gateway.cache.scans import Position, counted, read_page
from gateway.memory import Memo, Memory, memo_table
from gateway.model import Call, CallResult, Window
from gateway.slices import finish
from tests.support.upstream import NOW, Upstream, ask, cache_of, call

ZONES = ["UTC", "America/Chicago", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe", "Pacific/Chatham"]
TURNS = [int(datetime(2026, month, day, tzinfo=UTC).timestamp()) for month, day in ((3, 8), (4, 5), (10, 3), (11, 1))]


@st.composite
def calls_near(draw: st.DrawFn, first: int) -> list[Call]:
    """Generate calls of four days, many of them on hours and quarters or one second away."""
    seconds = st.integers(0, 4 * 96).map(lambda quarter: quarter * 900) | st.integers(0, 4 * DAY - 1)
    starts = draw(
        st.lists(st.builds(lambda at, by: min(max(0, at + by), 4 * DAY - 1), seconds, st.integers(-1, 1)), max_size=30)
    )
    return [
        msgspec.structs.replace(
            call(str(number), first + at, campaign=draw(st.sampled_from([None, "1", "2"]))),
            ani=draw(st.sampled_from([None, "1", "2", "3", "4"])),
            result=draw(st.sampled_from([CallResult.CONNECTED, CallResult.BUSY])),
            talk_time_seconds=draw(st.sampled_from([None, 0, 7])),
        )
        for number, at in enumerate(dict.fromkeys(starts))  # the first call is unambiguous
    ]


def plain(calls: Sequence[Call], starts: Sequence[int], *, grouped: bool) -> dict[tuple[int, Group], tuple[int, ...]]:
    """Compute the aggregate call by call, as the reference."""
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
            sum(one.result is CallResult.CONNECTED for one in found),
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
    memos = memo_table(Memory())
    for extent in held:
        extent.keep(Memo(memos))
    for _ in range(4):  # later rounds use memoised aggregates
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
        aggregator = Aggregator(AggregateSpec((interval, zone, counted), counted, starts, group, filters.apply))
        for extent in held:
            if extent.window.overlaps(window):
                finish(aggregator.add(extent.view(window)))
        rows, total = finish(aggregator.sums())
        inside = filters.apply([one for one in calls if one.start_time.timestamp() in window])
        found = {
            (start, name): msgspec.structs.astuple(count) for start, groups in rows for name, count in groups.items()
        }
        expected = plain(inside, starts, grouped=grouped)
        assert found == expected
        assert (total.calls, total.callers) == (len(inside), len({one.ani for one in inside} - {None}))


def test_an_extent_that_begins_between_hours_begins_its_bucket():
    """For example, an extent fetched from midnight in India (UTC+05:30)."""
    midnight = TURNS[0] - 19800
    extent = make_extent(Window(midnight, midnight + 7200), 0, [call("1", midnight + 60), call("2", midnight + 3660)])
    starts = bucket_starts(Window(midnight - 1, midnight + 7200), "day", ZoneInfo("Asia/Kolkata"))
    aggregator = Aggregator(AggregateSpec("days", "all", starts, None, list))
    finish(aggregator.add(extent))
    (_, before), (start, groups) = finish(aggregator.sums())[0]
    assert (before, start, groups[None].calls) == ({}, midnight, 2)


MONTHS = Window(NOW - 70 * DAY, NOW)  # three spans of a summary
MOVES = st.lists(st.tuples(st.integers(0, 29), st.integers(0, 70 * DAY - 1)), max_size=6)
LOOKS = st.lists(st.tuples(st.integers(0, 69), st.integers(1, 30), MOVES), max_size=4)


def edited(one: Call, start: int, number: int) -> Call:
    """Return a call with a different start, caller and campaign."""
    moved = call(one.id, start, one.client_code, campaign=str(number % 3))
    return msgspec.structs.replace(moved, ani=str(number % 4), talk_time_seconds=number)


async def summary(
    cache: Cache, codes: Sequence[str], starts: Sequence[int], name: str, *, grouped: bool
) -> tuple[dict[tuple[int, Group], tuple[int, ...]], int]:
    aggregator = Aggregator(
        AggregateSpec((name, grouped), grouped, starts, (lambda one: one.campaign) if grouped else None, list)
    )
    async for part in counted(cache, ask(codes, MONTHS), NOW + 1000):
        for extent in part.extents:
            assert all(one.start_time.timestamp() in extent.window for one in extent.calls)
            finish(aggregator.add(extent))
    rows, total = finish(aggregator.sums())
    return {(at, group): msgspec.structs.astuple(c) for at, groups in rows for group, c in groups.items()}, total.calls


@pytest.mark.parametrize("codes", [["a"], ["a", "b"], ["*"]], ids=str)
@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 70 * DAY - 1), min_size=1, max_size=30), LOOKS)
def test_a_summary_counts_the_calls_of_the_list(
    codes: list[str], made: list[int], looks: list[tuple[int, int, list[tuple[int, int]]]]
):
    """Calls move between fetches of parts of the window, and clients share ids."""
    upstream, used = Upstream(), set[int]()

    def free(start: int) -> int:
        while start in used:  # the order of two calls of the same second is undefined
            start = (start + 1) % (70 * DAY)
        used.add(start)
        return MONTHS.start + start

    calls = [edited(call(str(n // 2), 0, "ab"[n % 2]), free(start), n) for n, start in enumerate(made)]

    async def run() -> None:
        cache = cache_of(upstream)
        for day, length, moves in looks:
            upstream.published = [(0, one) for one in calls]
            first = MONTHS.start + day * DAY
            await cache.read(ask(codes, Window(first, min(first + length * DAY, NOW))))
            for which, start in moves:
                if which < len(calls):
                    calls[which] = edited(calls[which], free(start), which + start)
            upstream.now += 100
        upstream.published = [(0, one) for one in calls]
        listed = (await cache.read(ask(codes, MONTHS))).calls
        page = await read_page(
            cache, ask(codes, MONTHS), upstream.now, newest_first=True, limit=1000, after=None
        )  # fmt: skip
        assert sorted(page.calls, key=repr) == sorted(listed, key=repr)
        for interval in ("none", "hour", "day"):
            starts = [-(10**11)] if interval == "none" else bucket_starts(MONTHS, interval, ZoneInfo("UTC"))
            for grouped in (False, True, False):  # the last round uses memoised aggregates
                found = await summary(cache, codes, starts, interval, grouped=grouped)
                assert found == (plain(listed, starts, grouped=grouped), len(listed)), interval

    asyncio.run(run())


def test_one_edit_leaves_the_figures_of_other_days_as_they_are():
    """One call of yesterday is corrected. Each day has 20 calls with ascending ids."""
    upstream = Upstream()
    window, day = Window(NOW // DAY * DAY - 5 * DAY, NOW // DAY * DAY), NOW // DAY * DAY - DAY
    calls = [call(f"{n:04}", window.start + n * DAY // 20) for n in range(100)]

    async def run() -> list[int]:
        cache = cache_of(upstream)
        upstream.published = [(0, one) for one in calls]
        await cache.read(ask(["a"], window))
        upstream.now += 60
        upstream.published[-1] = (0, call("0099", day - 2 * DAY + 1))
        await cache.read(ask(["a"], Window(day - 2 * DAY, day - DAY), no_cache=True))
        aggregator = Aggregator(AggregateSpec("day", "all", list(range(window.start, window.end, DAY)), None, list))
        async for part in counted(cache, ask(["a"], window), upstream.now):
            for extent in part.extents:
                finish(aggregator.add(extent))
        rows, _ = finish(aggregator.sums())
        return [groups[None].calls for _, groups in rows]

    assert asyncio.run(run()) == [20, 20, 21, 20, 19]


def test_clients_that_use_the_same_ids_have_no_call_in_common():
    extents = [
        make_extent(Window(day * DAY, (day + 1) * DAY), day, [call(str(n), day * DAY + n, code) for n in range(20)])
        for day, code in enumerate("abab")
    ]
    first, second, *later = extents
    assert deduplicated([first, second]) == [first, second]
    assert [len(one.calls) for one in deduplicated(extents)] == [0, 0, 20, 20]
    assert [one.window for one in deduplicated(extents)] == [one.window for one in extents]
    assert list(deduplicated(extents))[2:] == later
    assert not repeated_ids([first, second])


def test_many_ids_that_two_extents_share_take_no_more_steps_than_ids():
    many = 40_000
    before = make_extent(Window(0, DAY), 1, [call(str(n), n) for n in range(many)])
    after = make_extent(Window(DAY, 2 * DAY), 2, [call(str(n), DAY + n) for n in range(many)])
    began = time.process_time()
    assert [len(one.calls) for one in deduplicated([before, after])] == [0, many]
    assert time.process_time() - began < 10  # a comparison call by call takes minutes


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
    """This holds for an id in two extents, and for a number that only the older version has."""
    upstream = Upstream()
    window = Window(NOW - 9 * DAY, NOW)
    filters = Filters(ani=number, campaign=campaign)

    def one(identity: str, at: int, ani: str | None, *, first: bool) -> Call:
        return msgspec.structs.replace(call(identity, window.start + at, campaign="1" if first else "2"), ani=ani)

    async def run() -> tuple[list[Call], list[Call]]:
        cache = cache_of(upstream)
        upstream.published = [(0, one(str(n), at, ani, first=n % 3 == 0)) for n, (at, ani, _) in enumerate(made)]
        await cache.read(ask(["a"], Window(window.start, window.start + 5 * DAY)))
        upstream.now += 60  # some calls have moved and have another number
        upstream.published = [
            (0, one(str(n), 9 * DAY - 1 - at if moves else at, NUMBERS[n % 5] if moves else ani, first=n % 3 == 0))
            for n, (at, ani, moves) in enumerate(made)
        ]
        await cache.read(ask(["a"], window))
        return await pages(cache, filters.texts), await pages(cache, {})

    async def pages(cache: Cache, texts: dict[str, str]) -> list[Call]:
        found: list[Call] = []
        after: Position | None = None
        while True:
            page = await read_page(
                cache, ask(["a"], window), upstream.now, newest_first=newest_first, limit=3, after=after,
                keep=filters.apply, texts=texts,
            )  # fmt: skip
            found += page.calls
            after = page.after
            if after is None:
                return found

    found, expected = asyncio.run(run())
    assert found == expected
