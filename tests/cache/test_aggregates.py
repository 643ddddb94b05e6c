"""Figures merged from aggregates equal a count of every call; filtered pages skip no matching call."""

import asyncio
import math
import os
import time
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.access import ANONYMOUS
from gateway.api.calendars import Calendar, compared_window
from gateway.api.dimensions import clocks_of, reader
from gateway.api.filters import NO_FILTERS, Filters
from gateway.api.query import UTC
from gateway.api.summary_query import SummaryQuery
from gateway.api.summary_table import Period, make_rows
from gateway.cache.aggregates import AggregateSpec, Aggregator, aggregate
from gateway.cache.deduplication import deduplicated, repeated_ids
from gateway.cache.extents import DAY, Extent, by_day, make_extent
from gateway.cache.reader import Cache
from gateway.cache.scans import Position, counted, read_page
from gateway.memory import Memo, Memory, memo_table
from gateway.model import Call, CallerAddress, CallResult, CallStatus, PhoneType, SalesStatus, Window
from gateway.slices import finish
from tests.support.figures import CLOCKS, FIELDS, Plain, plain_summary
from tests.support.upstream import NOW, Upstream, ask, cache_of, call

ZONES = [
    "UTC", "America/Chicago", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe", "Pacific/Chatham",
    "America/St_Johns", "Pacific/Apia", "America/Havana", "America/Sao_Paulo",
]  # fmt: skip
TURNS = [
    int(datetime.fromisoformat(f"{day}T00:00+00:00").timestamp())
    for day in (
        "2026-03-08", "2026-04-05", "2026-10-03", "2026-11-01",
        "2010-03-14", "2010-11-07",  # in Newfoundland at a minute past midnight
        "2011-12-30",  # does not exist on Samoa
        "2018-02-18", "2018-11-04",  # in Brazil at midnight
    )
]  # fmt: skip
DIMENSIONS = [*CLOCKS, *FIELDS]
EDGES = st.integers(0, 4 * 96 - 1).map(lambda quarter: quarter * 900) | st.integers(0, 4 * DAY - 1)  # memoised or not


@st.composite
def calls_near(draw: st.DrawFn, first: int) -> list[Call]:
    """Generate calls of four days, many of them on hours and quarters or one second away, some in the same second."""
    seconds = st.integers(0, 4 * 96).map(lambda quarter: quarter * 900) | st.integers(0, 4 * DAY - 1)
    starts = draw(
        st.lists(st.builds(lambda at, by: min(max(0, at + by), 4 * DAY - 1), seconds, st.integers(-1, 1)), max_size=30)
    )
    sales = CallStatus(reviewed=True, sales=SalesStatus.MADE_SALE, journal=None)
    return [
        msgspec.structs.replace(
            call(
                str(number * 7 % 100), first + at, draw(st.sampled_from("ab")), draw(st.sampled_from([None, "1", "2"]))
            ),
            ani=draw(
                st.sampled_from([None, "3125550100", "+13125550100", "13125550101", "7735550100", "1", "0125550100"])
            ),
            did=draw(st.sampled_from([None, "1", "2"])),
            target=draw(st.sampled_from([None, "5"])),
            result=draw(st.sampled_from(CallResult)),
            phone_type=draw(st.sampled_from(PhoneType)),
            address=draw(st.sampled_from([None, address("IL"), address(None)])),
            status=draw(st.sampled_from([None, sales])),
            duration_seconds=draw(st.sampled_from([None, 5, 7, 30])),
            talk_time_seconds=draw(st.sampled_from([None, 0, 6, 7])),
        )
        for number, at in enumerate(starts)
    ]


def address(state: str | None) -> CallerAddress:
    names = [field.name for field in msgspec.structs.fields(CallerAddress)]
    return CallerAddress(**dict.fromkeys(names) | {"state": state})


def aggregated(
    extents: Sequence[Extent],
    window: Window,
    calendar: Calendar,
    group_by: Sequence[str] = (),
    filters: Filters = NO_FILTERS,
    known: Collection[str] = (),
) -> Aggregator:
    dimensions = [name for name in group_by if name not in CLOCKS]
    name = calendar.name, tuple(dimensions), filters
    aggregator = Aggregator(AggregateSpec(name, calendar.slots, reader(dimensions), filters.apply, math.inf), known)
    finish(aggregator.add([extent.view(window) for extent in extents if extent.window.overlaps(window)]))
    return aggregator


def inside(calls: Sequence[Call], window: Window, filters: Filters) -> list[Any]:
    """Those of the calls that lie in a window and pass filters, as JSON."""
    found = filters.apply([one for one in calls if one.start_time.timestamp() in window])
    listed: list[Any] = msgspec.to_builtins(found)
    return listed


@settings(max_examples=int(os.environ.get("SOAK_EXAMPLES", "60")), deadline=None)
@given(st.data(), st.sampled_from(TURNS))
def test_every_figure_is_that_of_counting_each_call(data: st.DataObject, turn: int):
    """Two clients whose extents overlap; later rounds use memoised aggregates."""
    draw = data.draw
    first = turn - 2 * DAY
    calls = draw(calls_near(first))
    whole, memos = Window(first, first + 4 * DAY), memo_table(Memory())
    held: list[Extent] = []
    for code in "ab":
        cut = first + draw(st.integers(1, 4 * DAY - 1))
        own = [one for one in calls if one.client_code == code]
        for window in (Window(first, cut), Window(cut, whole.end)):
            held += [part for _, part in by_day(make_extent(window, 0, own))]
    for extent in held:
        extent.keep(Memo(memos))
    calls = [one for extent in held for one in extent.calls]  # of one id the last
    for _ in range(4):
        start, end = sorted([draw(EDGES), draw(EDGES)])
        window = Window(first + start, first + max(end, start + 1))
        window = draw(st.sampled_from([whole, window]))
        now = draw(st.sampled_from([whole.end + 5, draw(st.integers(window.start, whole.end))]))
        zone = ZoneInfo(draw(st.sampled_from(ZONES)))
        interval = draw(st.sampled_from(["none", "hour", "day", "week", "month"]))
        group_by = tuple(draw(st.lists(st.sampled_from(DIMENSIONS), max_size=2, unique=True)))
        filters = draw(st.sampled_from([NO_FILTERS, Filters(ani="7735550100"), Filters(min_duration=6)]))
        how, lookback = draw(st.sampled_from([None, "previous", "year"])), draw(st.sampled_from([0, DAY]))
        top, within = draw(st.sampled_from([None, 1, 3])), draw(st.sampled_from([None, 0, 7]))
        compared = how and compared_window(window, how, zone, now)
        query = SummaryQuery(
            ("a", "b"), window, filters, interval, zone, group_by, top, compared or None, within, lookback, None, None
        )  # fmt: skip
        periods, plain = list[Period](), list[Plain]()
        for part in [window, *([compared] if compared else [])]:
            before = Window(part.start - lookback, part.start)
            known = aggregated(held, before, Calendar(before, "none", zone), (), filters).callers
            calendar = Calendar(part, interval, zone, clocks_of(group_by))
            aggregator = aggregated(held, part, calendar, group_by, filters, known)
            periods.append(Period(aggregator, calendar, finish(calendar.seconds(now))))
            listed, earlier = (inside(calls, one, filters) for one in (part, before))
            plain.append(Plain(listed, part, now, zone=zone, interval=interval, group_by=group_by, earlier=earlier))
        rows, total = finish(make_rows(query, periods[0], (*periods, None)[1], ANONYMOUS))
        expected_rows, expected_total = plain_summary(plain[0], (*plain, None)[1], top=top, within=within)
        assert msgspec.to_builtins(rows) == expected_rows
        assert msgspec.to_builtins(total) == expected_total


EDGE_CASES = {  # the windows of reads of a day that was counted, and how often their calls are counted in two reads
    "the whole day": (Window(0, DAY), 0),
    "a day of a time zone": (Window(5 * 3600, DAY), 1),
    "to a quarter of an hour": (Window(0, 4500), 1),
    "to another second": (Window(0, 4501), 2),
}


@pytest.mark.parametrize(("window", "times"), EDGE_CASES.values(), ids=EDGE_CASES)
def test_parts_between_quarters_of_an_hour_are_counted_once(window: Window, times: int):
    extent = make_extent(Window(0, DAY), 0, [call(str(number), number * 600) for number in range(144)])
    extent.keep(Memo(memo_table(Memory())))
    part, counted_calls = extent.view(window), list[Call]()

    def keep(calls: Sequence[Call]) -> Sequence[Call]:
        counted_calls.extend(calls)
        return calls

    spec = AggregateSpec("", Calendar(window, "none", UTC).slots, None, keep, math.inf)
    finish(aggregate(extent, spec))
    counted_calls.clear()
    for _ in range(2):
        (found,) = finish(aggregate(part, spec)).parts.values()
        assert found.counts.calls == len(part.calls) > 0
    assert len(counted_calls) == times * len(part.calls)


MONTHS = Window(NOW - 70 * DAY, NOW)  # three spans of a summary
MOVES = st.lists(st.tuples(st.integers(0, 29), st.integers(0, 70 * DAY - 1)), max_size=6)
LOOKS = st.lists(st.tuples(st.integers(0, 69), st.integers(1, 30), MOVES), max_size=4)


def edited(one: Call, start: int, number: int) -> Call:
    """Return a call with a different start, caller and campaign."""
    moved = call(one.id, start, one.client_code, campaign=str(number % 3))
    return msgspec.structs.replace(moved, ani=str(number % 4), talk_time_seconds=number)


async def summary(cache: Cache, codes: Sequence[str], interval: str, group_by: Sequence[str]) -> Any:
    """Read a summary of MONTHS. Returns its rows and total as JSON."""
    calendar = Calendar(MONTHS, interval, UTC)
    spec = AggregateSpec((calendar.name, tuple(group_by)), calendar.slots, reader(group_by), list, math.inf)
    aggregator = Aggregator(spec)
    async for part in counted(cache, ask(codes, MONTHS), NOW + 1000):
        for extent in part.extents:
            assert all(one.start_time.timestamp() in extent.window for one in extent.calls)
        finish(aggregator.add(part.extents))
    period = Period(aggregator, calendar, finish(calendar.seconds(NOW)))
    query = SummaryQuery((*codes,), MONTHS, NO_FILTERS, interval, UTC, (*group_by,), None, None, None, 0, None, None)
    return msgspec.to_builtins(finish(make_rows(query, period, None, ANONYMOUS)))


@pytest.mark.parametrize("codes", [["a"], ["a", "b"], ["*"]], ids=str)
@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 70 * DAY - 1), min_size=1, max_size=30), LOOKS)
def test_a_summary_counts_the_calls_of_the_list(
    codes: list[str], made: list[int], looks: list[tuple[int, int, list[tuple[int, int]]]]
):
    """Calls move between fetches of parts of the window, and clients share ids."""
    upstream = Upstream()
    calls = [edited(call(str(n // 2), 0, "ab"[n % 2]), MONTHS.start + at, n) for n, at in enumerate(made)]

    async def run() -> None:
        cache = cache_of(upstream)
        for day, length, moves in looks:
            upstream.published = [(0, one) for one in calls]
            first = MONTHS.start + day * DAY
            await cache.read(ask(codes, Window(first, min(first + length * DAY, NOW))))
            for which, start in moves:
                if which < len(calls):
                    calls[which] = edited(calls[which], MONTHS.start + start, which + start)
            upstream.now += 100
        upstream.published = [(0, one) for one in calls]
        listed = (await cache.read(ask(codes, MONTHS))).calls
        page = await read_page(
            cache, ask(codes, MONTHS), upstream.now, newest_first=True, limit=1000, after=None
        )  # fmt: skip
        assert sorted(page.calls, key=repr) == sorted(listed, key=repr)
        for interval in ("none", "hour", "day"):
            for group_by in ((), ("campaign",), ()):  # the last round uses memoised aggregates
                plain = Plain(msgspec.to_builtins(listed), MONTHS, NOW, zone=UTC, interval=interval, group_by=group_by)
                assert await summary(cache, codes, interval, group_by) == plain_summary(plain), interval

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
        calendar = Calendar(window, "day", UTC)
        aggregator = Aggregator(AggregateSpec("day", calendar.slots, None, list, math.inf))
        async for part in counted(cache, ask(["a"], window), upstream.now):
            finish(aggregator.add(part.extents))
        return [calls for _, calls in sorted(aggregator.calls())]

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
    assert not finish(repeated_ids([first, second]))


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
