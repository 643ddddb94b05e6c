"""Packed calls are the calls that they were made of, and level 1 packs the right days without changing an answer."""

from __future__ import annotations

import asyncio
import math
import zlib
from collections.abc import Callable
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from gateway.api.calendars import Calendar
from gateway.cache import level1, packed_calls
from gateway.cache.aggregates import AggregateSpec, Aggregator
from gateway.cache.extents import Extent, make_extent, make_extent_of_all
from gateway.cache.feed import make_snapshot
from gateway.cache.fingerprints import View
from gateway.cache.level1 import Level1
from gateway.cache.missed import MissedCallers
from gateway.cache.packed_calls import (
    BLOCK_SIZE,
    PackedCalls,
    compress,
    decompress,
    ids_of,
    in_whole_seconds,
    pack_calls,
    place_of,
    start_of,
    starts_of,
)
from gateway.cache.reader import Cache, Query
from gateway.cache.scans import read_page
from gateway.memory import Memory
from gateway.metrics import Metrics
from gateway.model import Call, Window
from gateway.slices import finish
from tests.support.memory import traced_memory
from tests.support.upstream import DAY, NOW, Upstream, ask, cache_of, call, ids, unreadable

TODAY = NOW // DAY
MONTH = Window((TODAY - 30) * DAY, TODAY * DAY)
GAPS = st.lists(st.sampled_from([0, 0, 1, 1, 2, 30]), max_size=3 * BLOCK_SIZE)  # seconds between calls
PLACES = st.one_of(st.none(), st.integers(-400, 400))


def calls_after(gaps: list[int], start: int = NOW) -> tuple[Call, ...]:
    """Calls that follow each other after some seconds each."""
    found = []
    for number, gap in enumerate(gaps):
        start += gap
        found.append(call(f"{number:06}", start, campaign=str(number)))
    return tuple(found)


def packed(calls: tuple[Call, ...]) -> PackedCalls:
    return finish(pack_calls("a", calls))


@given(GAPS, PLACES, PLACES, st.sampled_from([None, 1, 2, 7, -1, -3]))
def test_packed_calls_are_a_sequence_of_the_same_calls(
    gaps: list[int], first: int | None, after: int | None, step: int | None
):
    calls = calls_after(gaps)
    same = packed(calls)
    assert len(same) == len(calls)
    assert tuple(same) == calls
    assert same[first:after:step] == calls[first:after:step]
    assert [same[place] for place in range(0, len(calls), 50)] == list(calls[::50])
    assert ids_of(same) == ids_of(calls)
    assert list(starts_of(same)) == starts_of(calls)


@given(GAPS, st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400)), max_size=3))
def test_a_part_of_a_part_is_that_part_and_holds_no_other_block(gaps: list[int], cuts: list[tuple[int, int]]):
    calls = calls_after(gaps)
    part: PackedCalls = packed(calls)
    for cut in cuts:
        first, after, _ = slice(*sorted(cut)).indices(len(calls))
        part, calls = part.part(first, after), calls[first:after]
        assert tuple(part) == calls
        assert ids_of(part) == ids_of(calls)
        assert part[len(calls) // 3 :] == calls[len(calls) // 3 :]
        assert part.size <= packed(calls).size * 1.1 + 2 * packed(calls_after([1] * BLOCK_SIZE)).size


@given(GAPS, st.integers(1, 300), st.booleans())
def test_no_second_is_in_two_parts(gaps: list[int], size: int, backwards: bool):
    calls = calls_after(gaps)
    parts = list(in_whole_seconds(packed(calls), size, backwards=backwards))
    assert parts == list(in_whole_seconds(calls, size, backwards=backwards))
    ordered = parts[::-1] if backwards else parts
    assert tuple(one for part in ordered for one in part) == calls
    assert all(len(part) >= size for part in parts[:-1])
    seconds = [{one.start_time for one in part} for part in parts]
    assert sum(map(len, seconds)) == len(set().union(*seconds))


@given(GAPS, st.integers(-2, 400))
def test_the_place_of_a_second_is_found_without_unpacking(gaps: list[int], second: int):
    calls = calls_after(gaps)
    same = packed(calls)
    before = reads()
    assert place_of(same, NOW + second) == place_of(calls, NOW + second)
    assert [start_of(same, place) for place in range(len(calls))] == starts_of(calls)
    assert len(same.part(0, place_of(same, NOW + second)).ids()) == place_of(calls, NOW + second)
    assert reads() == before


def test_a_place_outside_is_an_error():
    same = packed(calls_after([1, 1]))
    assert same[-1].id == "000001"
    for place in (2, -3):
        with pytest.raises(IndexError):
            same[place]


@pytest.mark.parametrize(
    "block",
    [b"", b"x", zlib.compress(b"\xc1"), compress(calls_after([1]))[:-1], zlib.compress(bytes(2**20))],
    ids=["empty", "not compressed", "not msgpack", "cut off", "too large"],
)
def test_other_bytes_are_an_error_and_take_no_memory(block: bytes):
    with traced_memory() as held, pytest.raises(ValueError):  # noqa: PT011 - the message is not shown
        decompress(block, 2**10)
    assert held() < 2**16


def reads() -> int:
    """How many blocks have been read."""
    known = packed_calls.unpacked.cache_info()
    return known.hits + known.misses


class Days(Level1):
    """Level 1 with the days of client `a`, one extent each."""

    def __init__(self, bound: float = 2**30) -> None:
        self.memory = Memory(bound)
        self.registry = CollectorRegistry()
        super().__init__(self.memory, Metrics(self.registry))

    def add(self, day: int, sent: float = NOW, count: int = 2 * BLOCK_SIZE) -> None:
        """Store the calls of a day."""
        finish(self.store("a", extent_of(day, sent, count), status=False))

    def on(self, day: int, *, used: bool = False) -> list[Extent]:
        """The extents of a day."""
        return self.lookup("a", Window(day * DAY, (day + 1) * DAY), NOW + DAY, status=False, used=used)

    def is_packed(self, day: int) -> bool:
        return all(isinstance(extent.calls, PackedCalls) for extent in self.on(day))


def extent_of(day: int, sent: float = NOW, count: int = 2 * BLOCK_SIZE) -> Extent:
    calls = [call(f"{day * 1000 + n:08}", day * DAY + n * 60, campaign=str(sent)) for n in range(count)]
    return make_extent(Window(day * DAY, (day + 1) * DAY), sent, calls)


def size_of_a_day() -> int:
    days = Days()
    days.add(TODAY)
    return days.memory.size


def test_nothing_is_packed_while_days_fit_into_their_part():
    days = Days(size_of_a_day() * 29)
    for day in range(7):
        days.add(TODAY - day)
    assert not any(days.is_packed(TODAY - day) for day in range(7))


def test_days_that_were_not_read_for_longest_are_packed_first_and_nothing_is_evicted():
    days = Days(size_of_a_day() * 29)
    for day in range(7):
        days.add(TODAY - day)
    days.on(TODAY, used=True)
    evictions = days.evictions(["a"])
    days.add(TODAY - 7)
    assert [days.is_packed(TODAY - day) for day in range(8)] == [False, True, *[False] * 6]
    assert days.evictions(["a"]) == evictions
    for day in range(8):
        days.add(TODAY - 8 - day)
    assert [days.is_packed(TODAY - day) for day in range(16)] == [True] * 9 + [False] * 7
    assert [tuple(one.calls) for day in range(16) for one in days.on(TODAY - day)] == [
        extent_of(TODAY - day).calls for day in range(16)
    ]
    assert days.evictions(["a"]) == evictions
    assert days.registry.get_sample_value("callbutton_gateway_cache_packings_total") == sum(
        days.is_packed(TODAY - day) for day in range(16)
    )


@pytest.fixture
def tight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every day is packed as soon as it is stored."""
    monkeypatch.setattr(level1, "UNPACKED", 0)


@pytest.mark.usefixtures("tight")
def test_a_day_that_changes_while_it_is_packed_keeps_the_change():
    days = Days()
    steps = days.store("a", extent_of(TODAY), status=False)
    next(steps)
    version = days.version(["a"])
    next(steps)  # the first block is packed
    assert days.version(["a"]) == version
    days.add(TODAY, NOW + 1)
    finish(steps)
    (extent,) = days.on(TODAY)
    assert extent.sent == NOW + 1
    assert tuple(extent.calls) == extent_of(TODAY, NOW + 1).calls
    assert days.is_packed(TODAY)
    assert finish(days.store("b", extent_of(TODAY), status=False)) is None


@pytest.mark.usefixtures("tight")
def test_a_day_that_is_evicted_while_it_is_packed_stays_evicted():
    days = Days(2**30)
    steps = days.store("a", extent_of(TODAY), status=False)
    next(steps)
    next(steps)
    days.memory.bound = 0
    days.memory.fit()
    finish(steps)
    assert days.on(TODAY) == []
    assert days.memory.size == 0


@pytest.mark.usefixtures("tight")
def test_a_later_post_cuts_a_packed_day():
    days = Days()
    days.add(TODAY)
    later = make_extent(Window(TODAY * DAY + 6000, TODAY * DAY + 12_000), NOW + 1, [call("new", TODAY * DAY + 6000)])
    finish(days.store("a", later, status=False))
    before, middle, after = days.on(TODAY)
    whole = extent_of(TODAY).calls
    assert (tuple(before.calls), tuple(middle.calls), tuple(after.calls)) == (whole[:100], later.calls, whole[200:])
    assert days.is_packed(TODAY)
    days.memory.bound = 0
    days.memory.fit()
    assert days.memory.size == 0


@pytest.mark.usefixtures("tight")
def test_extents_of_every_client_and_unreadable_records_stay_as_they_are():
    days = Days()
    window = Window(TODAY * DAY, TODAY * DAY + 60)
    every = make_extent_of_all(window, NOW, {"a": [call("1", window.start)], "b": []})
    spoiled = make_extent(window, NOW, [], [unreadable("x", window.start, "c", window.start)])
    finish(days.store("*", every, status=False))
    finish(days.store("c", spoiled, status=False))
    assert days.lookup("*", window, NOW, status=False) == [every]
    assert days.lookup("c", window, NOW, status=False) == [spoiled]


def month_of(bound: int = 2**28) -> tuple[Cache, Query, Upstream]:
    upstream = Upstream()
    upstream.published = [(0, call(f"{n:06}", MONTH.start + n * 900, campaign=str(n % 7))) for n in range(2870)]
    return cache_of(upstream, cache_bytes=bound), ask(["a"], MONTH), upstream


def summarize(extents: list[Extent]) -> object:
    calendar = Calendar(MONTH, "day", ZoneInfo("Asia/Kolkata"), ())
    aggregator = Aggregator(AggregateSpec("all", calendar.slots, None, list, math.inf))
    finish(aggregator.add(extents))
    return finish(aggregator.merged_as(lambda key: key))


def fingerprints(extents: list[Extent]) -> object:
    return finish(make_snapshot(extents, [], MONTH.start, MONTH.end, View("all", list, lambda one: one))).buckets


def missed(extents: list[Extent]) -> object:
    callers = MissedCallers(MONTH, list, "", status=False)
    finish(callers.add(extents))
    return list(finish(callers.ordered(None, None, reached=True)))


@pytest.mark.usefixtures("tight")
@pytest.mark.parametrize("count", [summarize, fingerprints, missed])
def test_packed_days_are_counted_once_and_then_not_unpacked(count: Callable[[list[Extent]], object]):
    cache, month, upstream = month_of()

    async def run() -> None:
        await cache.read(month)
        extents = (await cache.read(month)).extents
        assert all(isinstance(extent.calls, PackedCalls) for extent in extents)
        before = reads()
        first = count(extents)
        assert reads() > before
        before = reads()
        assert count((await cache.read(month)).extents) == first
        assert reads() == before
        assert first == count([make_extent(one.window, one.sent, tuple(one.calls)) for one in extents])

    asyncio.run(run())
    assert len(upstream.posts) == 1


@pytest.mark.parametrize("newest_first", [True, False])
@pytest.mark.usefixtures("tight")
def test_pages_of_packed_days_have_every_call_and_unpack_few(newest_first: bool):
    cache, month, upstream = month_of()

    async def run() -> None:
        await cache.read(month)
        after, found = None, list[Call]()
        while True:
            before = reads()
            page = await read_page(cache, month, NOW, newest_first=newest_first, limit=100, after=after)
            assert reads() <= before + 12
            found, after = found + page.calls, page.after
            if after is None:
                break
        expected = [one for _, one in upstream.published]
        assert found == (expected[::-1] if newest_first else expected)
        assert ids((await cache.read(month)).calls) == ids(expected)
        window = await cache.whereabouts("a", expected[77].id, status=False)
        assert window is not None
        assert window.start == expected[77].start_time.timestamp()

    asyncio.run(run())
