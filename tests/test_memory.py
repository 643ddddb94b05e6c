"""One bound of memory for all that grows with requests: counted bytes are held bytes, for all kinds of keys."""

import asyncio
import math
import sys
from collections.abc import Callable
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from gateway.access import Kind, Rate
from gateway.api.calendars import Calendar
from gateway.cache.aggregates import AggregateSpec, Aggregator
from gateway.cache.client_profiles import ClientProfiles
from gateway.cache.extents import Extent, make_extent, make_extent_of_all
from gateway.cache.feed_reader import Clients, FeedResult
from gateway.cache.feed_state import midnight
from gateway.cache.fingerprints import View
from gateway.cache.freshness import Provenance
from gateway.cache.level1 import UNPACKED, Level1
from gateway.cache.missed import MissedCallers
from gateway.cache.packed_calls import unpacked
from gateway.cache.watch import Feeds
from gateway.errors import UpstreamFailed
from gateway.memory import Lru, Memory
from gateway.metrics import Metrics
from gateway.model import CallResult, Window
from gateway.rates import RateLimiter
from gateway.slices import finish
from tests.support.memory import traced_memory
from tests.support.upstream import DAY, HOUR, NOW, Faulty, Upstream, ask, cache_of, call, unreadable

BOUND = 2**18
ANIS = [sys.intern(f"312555{n:04}") for n in range(100)]  # the table of interned texts is the process's
Fill = Callable[[int], object]  # fills something with a distinct key


def level1_of(memory: Memory) -> Level1:
    return Level1(memory, Metrics(CollectorRegistry()))


def extents(make: Callable[[int], tuple[str, Extent]]) -> Callable[[Memory], Fill]:
    def of(memory: Memory) -> Fill:
        level1 = level1_of(memory)

        def fill(number: int) -> None:
            code, extent = make(number)
            finish(level1.store(code, extent, status=bool(number % 2)))
            for one in level1.lookup(code, extent.window, NOW * 2, status=False):
                assert one.ids is not None

        return fill

    return of


def some_calls(number: int) -> tuple[str, Extent]:
    found = [call(f"{number}-{n}", NOW - n - 1, f"c{number}", campaign=f"campaign {n}") for n in range(20)]
    return f"c{number}", make_extent(Window(NOW - HOUR, NOW), NOW + number, found)


def unreadable_records(number: int) -> tuple[str, Extent]:
    found = [unreadable(f"{number}-{n}", NOW - n - 1, f"c{number}", NOW) for n in range(20)]
    return f"c{number}", make_extent(Window(NOW - HOUR, NOW), NOW + number, [], found)


def every_client(number: int) -> tuple[str, Extent]:
    window = Window(NOW + number * HOUR, NOW + number * HOUR + 60)
    return "*", make_extent_of_all(window, NOW + number, {f"{number}-{code}": [] for code in range(30)})


def test_the_version_of_a_client_changes_with_what_its_answers_rest_on():
    memory = Memory(BOUND)
    level1 = level1_of(memory)
    window, versions = Window(NOW - HOUR, NOW), set[int]()
    for code, expected in (("b", 1), ("a", 2), ("b", 2), ("*", 3)):
        extent = make_extent_of_all(window, NOW, {"a": []}) if code == "*" else make_extent(window, NOW, [])
        finish(level1.store(code, extent, status=False))
        versions.add(level1.version(["a"]))
        assert len(versions) == expected, code
    held = {code: level1.version([code]) for code in ("a", "b", "*")}
    memory.bound = 1
    memory.fit()
    assert not {level1.version([code]) for code in ("a", "b")} & set(held.values())


def test_a_version_does_not_come_back_after_what_was_stored_is_evicted():
    memory = Memory(1)
    level1, versions = level1_of(memory), list[int]()
    for later in range(3):
        versions.append(level1.version(["a"]))
        finish(level1.store("a", make_extent(Window(NOW - HOUR, NOW), NOW + later, []), status=False))
        assert memory.size == 0
    assert len(set(versions)) == len(versions)


def aggregates(memory: Memory) -> Fill:
    """Distinct filters, zones and groups of the same calls."""
    level1 = level1_of(memory)
    finish(
        level1.store(
            "a",
            make_extent(Window(NOW - DAY, NOW), NOW, [call(str(n), NOW - n * 60 - 1) for n in range(300)]),
            status=False,
        )
    )
    window = Window(NOW - DAY, NOW)

    def fill(number: int) -> None:
        slots = Calendar(window, "hour", ZoneInfo("UTC")).slots
        group = None if number % 2 else (lambda calls: [(one.id[-2:],) for one in calls])
        aggregator = Aggregator(AggregateSpec(number, slots, group, list, math.inf))
        extents = level1.lookup("a", window, NOW + 1, status=False)
        finish(aggregator.add(extents))
        assert not any(finish(extent.may_have("ani", str(number))) for extent in extents)
        assert sum(calls for _, calls in aggregator.calls()) == 300

    return fill


def callers(memory: Memory) -> Fill:
    """Figures of callers, of days that are packed before and after they are counted."""
    level1 = level1_of(memory)

    def fill(number: int) -> None:
        day = Window(number * DAY, (number + 1) * DAY)
        calls = [
            msgspec.structs.replace(
                call(f"{number}-{n}", day.start + n * 60, campaign=f"{number} {n}"),
                ani=ANIS[n], result=CallResult.BUSY,
            )
            for n in range(100)
        ]  # fmt: skip
        steps = level1.store("a", make_extent(day, NOW, calls), status=False)
        next(steps)
        slots = Calendar(day, "day", ZoneInfo("UTC")).slots
        for _ in range(2):
            stored = level1.lookup("a", day, NOW + 1, status=False)
            finish(Aggregator(AggregateSpec("all", slots, None, list, math.inf)).add(stored))
            finish(MissedCallers(day, list, "", status=False).add(stored))
            assert not any(finish(extent.may_have("ani", "0")) for extent in stored)
            finish(steps)

    return fill


def profiles(memory: Memory) -> Fill:
    known = ClientProfiles(32 * DAY, 50, memory)

    def fill(number: int) -> None:
        code = f"{number:064}"
        known.echoed(code, {code: [call(str(number), NOW)]})
        known.overloaded(code, 32 * DAY, NOW + number)
        known.of(code).last_duration = number / 3

    return fill


def buckets(memory: Memory) -> Fill:
    rates = RateLimiter(memory)
    return lambda number: rates.bucket((Kind.TOKEN, f"{number:064}"), Rate(10, 1), NOW).take(NOW + number / 7)


def feeds(memory: Memory) -> Fill:
    """Readings, journals and shared answers of the change feed."""
    upstream = Upstream()
    made = Feeds(cache_of(upstream), memory, lambda: NOW, 60, Metrics(CollectorRegistry()))
    start, view = midnight(NOW), View("all", list, lambda one: one)

    async def follow(number: int) -> None:
        clients = Clients((f"c{number}",), status=False)
        for edition in range(3):
            calls = [call(f"{n}", NOW - n - 1, f"c{number}", campaign=f"{number} {edition * n}") for n in range(9)]
            provenance = Provenance(planned=NOW, as_of=NOW, oldest_fetch=NOW, fresh_until=NOW)
            extent = make_extent(Window(start, NOW), NOW + edition, calls)
            numbers = 6 * number + 2 * edition, 6 * number + 2 * edition + 1
            reading = FeedResult([extent], [], NOW, provenance, (0, 0), numbers)
            seen = await made.show(reading, clients, start, view)
            answer = await made.answer(clients, start, view, 1000, seen=seen)
            answer.rendered[number] = bytes(1000 * answer.report.size)

    return lambda number: asyncio.run(follow(number))


FILLS = {
    "empty hours": extents(lambda n: (f"{n:010}", make_extent(Window(NOW - HOUR, NOW), NOW + n, []))),
    "empty years": extents(lambda n: (f"{n:010}", make_extent(Window(NOW - 400 * DAY, NOW), NOW + n, []))),
    "empty minutes of a client": extents(
        lambda n: ("a", make_extent(Window(NOW + n * 60, NOW + n * 60 + 60), NOW + n, []))
    ),
    "calls": extents(some_calls),
    "unreadable records": extents(unreadable_records),
    "every client": extents(every_client),
    "aggregates": aggregates,
    "callers": callers,
    "profiles": profiles,
    "buckets": buckets,
    "feeds": feeds,
}


@pytest.mark.parametrize("unpacked_part", [0, UNPACKED])
@pytest.mark.parametrize("made", FILLS.values(), ids=FILLS)
def test_what_is_held_stays_within_the_bound_whatever_the_keys(
    made: Callable[[Memory], Fill], unpacked_part: float, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("gateway.cache.level1.UNPACKED", unpacked_part)
    memory = Memory(BOUND)
    fill = made(memory)
    fill(0)
    with traced_memory() as held:
        for number in range(1, 300):
            fill(number)
            assert memory.size <= BOUND
            if number % 50 == 0 and memory.size > 0.9 * BOUND:
                break
        unpacked.cache_clear()  # a block of calls for the process
    assert held() < 1.1 * BOUND
    assert held() < 1.2 * memory.size + BOUND / 32


def test_aggregates_are_evicted_before_extents():
    memory = Memory(4 * BOUND)
    fill = aggregates(memory)  # each time it finds the calls in level 1
    for number in range(100):
        fill(number)
    assert memory.size > 2 * BOUND


def test_nothing_is_memoised_for_an_extent_that_has_left_level_1():
    memory = Memory(BOUND)
    level1 = level1_of(memory)
    window = Window(NOW - HOUR, NOW)
    finish(level1.store("a", make_extent(window, NOW, [call("1", NOW - 9)]), status=False))
    (extent,) = level1.lookup("a", window, NOW, status=False)
    assert not finish(extent.may_have("did", "1"))
    before = memory.size
    finish(level1.store("a", make_extent(window, NOW + 1, [call("1", NOW - 9)]), status=False))
    assert memory.size < before
    after = memory.size
    assert not finish(extent.may_have("did", "2"))
    assert memory.size == after


def test_remembered_errors_hold_neither_frames_nor_more_than_their_part():
    upstream = Faulty()

    def fault(*_: Any) -> UpstreamFailed:
        reply = b"x" * 100_000  # noqa: F841 - held by the frame of the error, like the reply of a POST
        try:
            raise ValueError
        except ValueError as error:
            try:
                raise UpstreamFailed("no") from error
            except UpstreamFailed as failed:
                return failed

    async def run() -> None:
        memory_bound = 64 * BOUND
        cache = cache_of(upstream, cache_bytes=memory_bound)
        upstream.fault = fault
        for number in range(300):
            with pytest.raises(UpstreamFailed):
                await cache.read(ask([f"c{number}"], Window(NOW - HOUR, NOW)))

    with traced_memory() as held:
        asyncio.run(run())
    assert held() < 4 * BOUND


def test_an_entry_that_is_larger_than_the_part_evicts_itself_alone():
    memory = Memory(BOUND)
    small, table = Lru[str, int](memory), Lru[str, int](memory, 1 / 8)
    small.put("small", 1, 10)
    table.put("large", 1, BOUND)
    assert (len(table), small.get("small"), table.size) == (0, 1, 0)
