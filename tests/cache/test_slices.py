"""Long pure work is cut into steps: none holds the event loop for long, by the CPU time of the thread."""

from __future__ import annotations

import asyncio
import gc
import math
import random
import time
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from gateway.access import ANONYMOUS
from gateway.api.calendars import Calendar
from gateway.api.dimensions import reader
from gateway.api.filters import NO_FILTERS
from gateway.api.query import UTC
from gateway.api.summary_query import SummaryQuery
from gateway.api.summary_table import Period, make_rows, render_csv
from gateway.cache.aggregates import AggregateSpec, Aggregator, TooManyGroups
from gateway.cache.client_profiles import ClientProfiles
from gateway.cache.deduplication import deduplicated_in_steps
from gateway.cache.extents import (
    Extent,
    by_day,
    extent_in_steps,
    extent_of_all_in_steps,
    make_extent,
)
from gateway.cache.fingerprints import View, hour_sums
from gateway.cache.level1 import MAX_EXTENTS, Level1
from gateway.cache.missed import MissedCallers
from gateway.cache.replies import Replies, lateness
from gateway.memory import Memory
from gateway.metrics import Metrics
from gateway.model import CallResult, Window
from gateway.slices import Steps, finish, in_slices, sorted_in_steps
from tests.support.upstream import DAY, NOW, call

MANY = 50_000
LONGEST = 0.1  # seconds of a step; ten times the limit of 10 ms, for slow machines
MONTH = Window(NOW - 30 * DAY, NOW)
CALLS = [call(f"{n:06}", MONTH.start + n * 50, campaign=str(n)) for n in range(MANY)]


def measured(steps: Steps[Any]) -> float:
    """Take all steps. Returns the CPU seconds of the longest, without those of the garbage collector."""
    longest, ended = 0.0, False
    gc.disable()
    try:
        while not ended:
            began = time.thread_time()
            ended = next(steps, steps) is steps
            longest = max(longest, time.thread_time() - began)
    finally:
        gc.enable()
    return longest


def test_no_step_of_making_an_extent_is_long():
    assert measured(extent_in_steps(MONTH, NOW, CALLS)) < LONGEST
    assert measured(extent_of_all_in_steps(MONTH, NOW, {"a": CALLS, "b": []})) < LONGEST


def spec_of(group: Any, interval: str = "none", most: float = math.inf) -> tuple[AggregateSpec, Calendar]:
    calendar = Calendar(MONTH, interval, ZoneInfo("Asia/Kolkata"), ("hourOfWeek",) if interval == "hour" else ())
    return AggregateSpec("all", calendar.slots, group, list, most), calendar


@pytest.mark.parametrize("interval", ["none", "hour"])
@pytest.mark.parametrize("group", [None, reader(["campaign"])], ids=["no groups", "a group a call"])
def test_no_step_of_counting_is_long(group: Any, interval: str):
    spec, calendar = spec_of(group, interval)
    aggregator = Aggregator(spec)
    assert measured(aggregator.add([make_extent(MONTH, NOW, CALLS)])) < LONGEST
    assert measured(aggregator.merged_as(lambda key: calendar.place(key[0]))) < LONGEST
    assert measured(calendar.seconds(NOW)) < LONGEST


def test_no_step_of_counting_callers_of_several_clients_is_long():
    """Two clients have the same callers."""
    extents = [make_extent(MONTH, NOW, [replace(one, client_code=code, ani=one.id) for one in CALLS]) for code in "ab"]
    aggregator = Aggregator(spec_of(None)[0])
    assert measured(aggregator.add(extents)) < LONGEST
    assert len(aggregator.callers) == MANY


def test_no_step_of_finding_missed_callers_is_long():
    calls = [
        msgspec.structs.replace(one, ani=str(n), result=CallResult.BUSY if n < MANY // 2 else CallResult.CONNECTED)
        for n, one in enumerate(CALLS[: MANY // 2] + CALLS)
    ]
    callers = MissedCallers(MONTH, list, None, status=False)
    assert measured(callers.add([make_extent(MONTH, NOW, calls)])) < LONGEST
    assert measured(callers.add([make_extent(MONTH, NOW, calls)])) < LONGEST
    assert measured(callers.ordered(None, None, reached=True)) < LONGEST


def test_no_step_of_noting_what_is_late_is_long():
    held = [make_extent(Window(MONTH.start + n * 300, MONTH.start + n * 300 + 300), NOW - 9, []) for n in range(8640)]
    assert measured(lateness(held, make_extent(MONTH, NOW, CALLS))) < LONGEST


def test_no_step_of_making_many_rows_is_long():
    extent = make_extent(MONTH, NOW, CALLS[:20_000])
    spec, calendar = spec_of(reader(["campaign"]))
    aggregator = Aggregator(spec)
    finish(aggregator.add([extent]))
    query = SummaryQuery((), MONTH, NO_FILTERS, "none", UTC, ("campaign",), None, None, 20, 0, None, None)
    period = Period(aggregator, calendar, finish(calendar.seconds(NOW)))
    assert measured(make_rows(query, period, None, ANONYMOUS)) < LONGEST
    rows, _ = finish(make_rows(query, period, None, ANONYMOUS))
    assert len(rows) == 20_000
    assert measured(render_csv(rows, ("campaign",), compared=False)) < LONGEST


@pytest.mark.parametrize("status", [False, True])
def test_no_step_of_comparing_a_reply_with_what_is_held_is_long(status: bool):
    held = [one for _, one in by_day(make_extent(MONTH, NOW - 9, CALLS))]
    replies = Replies(ClientProfiles(31 * DAY, 50), 15)
    assert measured(replies.compare(make_extent(MONTH, NOW, CALLS[: MANY // 3]), held, status=status)) < LONGEST
    assert measured(deduplicated_in_steps([*held, make_extent(MONTH, NOW, CALLS)])) < LONGEST


def test_no_step_with_packed_calls_is_long():
    """A day of all calls is packed, counted, hashed, compared and cut."""
    day = make_extent(MONTH, NOW, [replace(one, ani=one.id) for one in CALLS])
    assert measured(day.packed()) < LONGEST
    packed = finish(day.packed())
    view = View("all", list, lambda one: one)
    assert measured(Aggregator(spec_of(None, "hour")[0]).add([packed])) < LONGEST
    assert measured(MissedCallers(MONTH, list, None, status=False).add([packed])) < LONGEST
    assert measured(hour_sums(packed, view)) < LONGEST
    assert measured(packed.may_have("campaign", "x")) < LONGEST
    later = make_extent(MONTH, NOW + 1, CALLS[::2])
    assert measured(deduplicated_in_steps([packed, later])) < LONGEST
    assert measured(Replies(ClientProfiles(31 * DAY, 50), 15).compare(later, [packed], status=True)) < LONGEST


SHUFFLED = random.Random(1).sample(range(MANY), MANY)


@pytest.mark.parametrize(
    "numbers",
    [range(MANY), range(MANY, 0, -1), SHUFFLED, [number // 1000 for number in SHUFFLED], [0] * MANY, [1, 0], [1], []],
    ids=["in order", "newest first", "in disorder", "few keys", "equal", "two", "one", "none"],
)
def test_sorting_in_steps_is_sorting(numbers: Sequence[int]):
    items = list(zip(numbers, range(len(numbers)), strict=True))
    key: Callable[[tuple[int, int]], int] = itemgetter(0)
    assert finish(sorted_in_steps(items, key)) == sorted(items, key=key)
    assert measured(sorted_in_steps(items, key)) < LONGEST


def test_groups_beyond_the_limit_are_refused_as_soon_as_they_are_found():
    counted = 0

    def group(_: Any) -> tuple[str]:
        nonlocal counted
        counted += 1
        return (str(counted),)

    aggregator = Aggregator(spec_of(group, most=100)[0])
    first = MONTH.start
    windows = [Window(first + n * 60, first + n * 60 + 60) for n in range(1000)]
    extents = [make_extent(window, NOW, [call(str(window.start), window.start)]) for window in windows]
    with pytest.raises(TooManyGroups):
        finish(aggregator.add(extents))
    assert counted == 101


def test_a_day_in_many_pieces_is_held_in_few_extents():
    level1 = Level1(Memory(), Metrics(CollectorRegistry()))
    day = NOW // DAY * DAY
    for start in range(day, day + DAY, 60):
        finish(
            level1.store(
                "a", make_extent(Window(start, start + 60), NOW + start, [call(str(start), start)]), status=False
            )
        )
        assert len(level1.lookup("a", Window(day, day + DAY), NOW * 3, status=False)) <= MAX_EXTENTS
    latest: list[Extent] = level1.lookup("a", Window(day + DAY - 60, day + DAY), NOW * 3, status=False)
    assert [len(extent.calls) for extent in latest] == [1]


def test_other_tasks_run_between_the_slices_of_long_work():
    turns = 0

    def work() -> Steps[str]:
        ends = time.monotonic() + 60  # far more than other tasks need for their turns
        while turns < 3 and time.monotonic() < ends:
            yield
        return "done"

    async def run() -> str:
        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other())
        done = await in_slices(work())
        task.cancel()
        return done

    assert asyncio.run(run()) == "done"
    assert turns >= 3
