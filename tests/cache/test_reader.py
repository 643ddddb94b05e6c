"""The cache against an in-process upstream: no call is lost or duplicated, and no partial answer is unmarked."""

import asyncio
import sys
import weakref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.cache.deduplication import deduplicated
from gateway.cache.extents import Extent, by_day, make_extent, overlay
from gateway.cache.freshness import Provenance, Rule, gaps, stale_from
from gateway.cache.reader import Cache, Query
from gateway.cache.scans import Position, read_page
from gateway.errors import UpstreamTimeout
from gateway.memory import Memo, Memory, memo_table
from gateway.model import Call, Window
from gateway.slices import finish
from tests.support.loops import settle
from tests.support.processes import wait_in_loop_for
from tests.support.upstream import DAY, HOUR, NOW, Upstream, ask, cache_of, call, ids, unreadable


def test_a_window_read_twice_within_freshness_is_posted_once() -> None:
    upstream = Upstream()
    upstream.published = [(0, call("1", NOW - 100))]

    async def run() -> None:
        cache = cache_of(upstream)
        window = Window(NOW - 3600, NOW)
        for _ in range(2):
            assert ids((await cache.read(ask(["a"], window))).calls) == ["1"]

    asyncio.run(run())
    assert len(upstream.posts) == 1


def test_a_moving_window_fetches_only_what_is_stale() -> None:
    upstream = Upstream()

    async def run() -> None:
        cache = cache_of(upstream)
        await cache.read(ask(["a"], Window(NOW - 30 * DAY, NOW)))
        upstream.now += 30
        await cache.read(ask(["a"], Window(NOW - 30 * DAY + 30, NOW + 30)))

    asyncio.run(run())
    _, second = upstream.posts[1]
    assert len(upstream.posts) == 2
    assert second.end - second.start < 1000


def test_a_thousand_identical_cold_reads_cost_one_post() -> None:
    upstream = Upstream()

    async def run() -> None:
        cache = cache_of(upstream)
        window = Window(NOW - 3600, NOW)
        await asyncio.gather(*(cache.read(ask(["a"], window)) for _ in range(1000)))

    asyncio.run(run())
    assert len(upstream.posts) == 1


def test_clients_of_one_window_share_a_post_and_a_missing_one_is_asked_singly() -> None:
    upstream = Upstream()
    upstream.published = [(0, call("1", NOW - 100)), (0, call("2", NOW - 100, "b"))]
    upstream.leave_out = {"b"}

    async def run() -> list[Call]:
        reading = await cache_of(upstream).read(ask(["a", "b"], Window(NOW - 3600, NOW)))
        return reading.calls

    assert ids(asyncio.run(run())) == ["1", "2"]
    assert [codes for codes, _ in upstream.posts] == [("a", "b"), ("b",)]


def test_a_failed_flight_fails_the_read_and_nothing_is_kept() -> None:
    upstream = Upstream()
    upstream.failure = UpstreamTimeout("too late", answering=False)

    async def run() -> None:
        cache = cache_of(upstream)
        window = Window(NOW - 3600, NOW)
        with pytest.raises(UpstreamTimeout):
            await cache.read(ask(["a"], window))
        upstream.failure = None
        upstream.published = [(0, call("1", NOW - 100))]
        with pytest.raises(UpstreamTimeout):  # a second long, so that a broken upstream is not hammered
            await cache.read(ask(["a"], window))
        assert len(upstream.posts) == 1
        upstream.now += 2
        assert ids((await cache.read(ask(["a"], window))).calls) == ["1"]

    asyncio.run(run())
    assert len(upstream.posts) == 2


def test_a_consumer_who_leaves_does_not_end_the_flight() -> None:
    upstream = Upstream()

    async def run() -> None:
        upstream.gate = asyncio.Event()
        cache = cache_of(upstream)
        window = Window(NOW - 3600, NOW)
        leaver = asyncio.create_task(cache.read(ask(["a"], window)))
        await wait_in_loop_for(lambda: upstream.posts, "the POST is sent")
        leaver.cancel()
        stayer = asyncio.create_task(cache.read(ask(["a"], window)))
        await settle()
        upstream.gate.set()
        assert (await stayer).calls == []

    asyncio.run(run())
    assert len(upstream.posts) == 1


def test_a_window_in_the_future_is_empty_without_a_post() -> None:
    upstream = Upstream()
    reading = asyncio.run(cache_of(upstream).read(ask(["a"], Window(NOW + 5, NOW + 99))))
    assert (reading.calls, upstream.posts) == ([], [])


def test_a_call_published_late_is_seen_within_the_freshness_rule() -> None:
    upstream = Upstream()
    late = 3600
    upstream.published = [(NOW + late, call("1", NOW - 10))]

    async def run() -> float:
        cache = cache_of(upstream)
        while True:
            reading = await cache.read(ask(["a"], Window(NOW - DAY, int(upstream.now))))
            if reading.calls:
                return upstream.now
            upstream.now += 30

    assert asyncio.run(run()) <= NOW + late + max(15, (late + 10) * 0.1) + 30


@pytest.mark.parametrize("newest_first", [True, False], ids=["newest first", "oldest first"])
def test_pages_hold_every_call_once_in_order(newest_first: bool) -> None:
    upstream = Upstream()
    upstream.published = [(0, call(str(index), NOW - index * index * 50 - 60)) for index in range(300)]

    async def run() -> list[Call]:
        cache, after, calls = cache_of(upstream), None, []
        for _ in range(100):
            page = await read_page(
                cache,
                ask(["a"], Window(NOW - 90 * DAY, NOW)),
                upstream.now,
                newest_first=newest_first,
                limit=7,
                after=after,
            )
            calls += page.calls
            after = page.after
            if after is None:
                return calls
        raise AssertionError("the pages do not end")

    calls = asyncio.run(run())
    expected = sorted((one for _, one in upstream.published), key=lambda one: one.start_time, reverse=newest_first)
    assert [one.id for one in calls] == [one.id for one in expected]


def test_a_call_that_moved_from_one_span_to_another_is_there_once() -> None:
    upstream = Upstream()
    old = call("x", NOW - 2 * DAY)
    upstream.published = [(0, old), (0, call("y", NOW - 3 * DAY))]

    async def run() -> list[Call]:
        cache = cache_of(upstream)
        question = ask(["a"], Window(NOW - 5 * DAY, NOW + DAY))
        await read_page(cache, question, upstream.now, newest_first=True, limit=100, after=None)
        upstream.now += 60
        upstream.published = [(0, call("x", NOW + 30)), (0, call("y", NOW - 3 * DAY))]
        page = await read_page(cache, question, upstream.now, newest_first=True, limit=100, after=None)
        return page.calls

    assert [(one.id, one.start_time.timestamp()) for one in asyncio.run(run())] == [
        ("x", NOW + 30),
        ("y", NOW - 3 * DAY),
    ]


def test_unreadable_calls_are_counted_once_however_often_their_extent_was_cut() -> None:
    upstream = Upstream()
    upstream.unreadable = [unreadable("x", NOW - 20 * DAY), unreadable("y", NOW - 40 * DAY)]

    async def run() -> list[int]:
        cache = cache_of(upstream)
        question = ask(["a"], Window(NOW - 30 * DAY, NOW))
        readings = [await cache.read(question) for _ in range(2)]
        return [sum(len(one.unreadable) for one in deduplicated(reading.extents)) for reading in readings]

    assert asyncio.run(run()) == [1, 1]


def test_years_without_calls_take_little_room_and_little_time() -> None:
    upstream = Upstream()
    upstream.published = [(0, call("1", NOW - 4000 * DAY)), (0, call("2", NOW - 20 * DAY))]

    async def run() -> None:
        cache = cache_of(upstream, max_span=20_000 * DAY)
        window = Window(946684800, NOW)
        for _ in range(2):
            assert ids((await cache.read(ask(["a"], window))).calls) == ["1", "2"]
        assert len(cache._level1._days) < 60
        assert ids((await cache.read(ask(["a"], Window(NOW - 4001 * DAY, NOW - 3999 * DAY)))).calls) == ["1"]
        assert ids((await cache.read(ask(["a"], Window(NOW - 900 * DAY, NOW - 21 * DAY)))).calls) == []

    asyncio.run(run())
    assert len(upstream.posts) == 1


@given(st.lists(st.integers(0, 2000), max_size=6), st.integers(0, 86_399), st.integers(1, 2000))
def test_an_extent_by_day_is_the_extent(days: list[int], offset: int, length: int) -> None:
    calls = [call(str(day), day * DAY + offset) for day in days]
    extent = make_extent(Window(offset, offset + length * 50_000), 1.0, calls)
    parts = [part for _, part in by_day(extent)]
    assert [part.window.start for part in parts] == [offset, *(part.window.end for part in parts[:-1])]
    assert parts[-1].window.end == extent.window.end
    assert tuple(call for part in parts for call in part.calls) == extent.calls
    for day, part in by_day(extent):
        if day is None:
            assert not part.calls
            assert part.window.end - part.window.start >= 32 * DAY
        else:
            assert day * DAY <= part.window.start < part.window.end <= (day + 1) * DAY


def test_a_list_without_dates_costs_a_few_posts_not_all_of_history() -> None:
    upstream = Upstream()

    async def run() -> Position | None:
        page = await read_page(
            cache_of(upstream),
            ask(["a"], Window(946684800, NOW)),
            upstream.now,
            newest_first=True,
            limit=100,
            after=None,
        )
        return page.after

    assert asyncio.run(run()) is not None
    assert len(upstream.posts) == 8


SPANS = st.tuples(st.integers(0, 400), st.integers(1, 200), st.integers(0, 1000))


@given(st.lists(SPANS, max_size=12))
def test_overlay_gives_each_point_to_the_latest_post(spans: list[tuple[int, int, int]]) -> None:
    extents: list[Extent] = []
    for start, length, sent in spans:
        extents = overlay(extents, Extent(Window(start, start + length), float(sent), ()))
    for point in range(0, 601, 7):
        sent_at_point = [sent for start, length, sent in spans if start <= point < start + length]
        assert [e.sent for e in extents if point in e.window] == ([max(sent_at_point)] if sent_at_point else [])


@given(st.lists(SPANS, max_size=8), st.integers(1001, 5000))
def test_gaps_cover_exactly_at_least_what_is_stale(spans: list[tuple[int, int, int]], now: int) -> None:
    rule = Rule(minimum=15, ratio=0.1, maximum=2000)
    extents: list[Extent] = []
    for start, length, sent in spans:
        extents = overlay(extents, Extent(Window(start, start + length), float(sent), ()))
    planned = gaps(extents, Window(0, 600), now, rule, lambda window: window)
    for point in range(600):
        held = [e for e in extents if point in e.window]
        stale = not held or ((edge := stale_from(held[0], now, rule)) is not None and point >= edge)
        assert not stale or any(point in gap for gap in planned)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(0, 40_000), st.integers(1, 40_000)),
        st.tuples(st.just("wait"), st.integers(1, 4000), st.just(0)),
        st.tuples(st.just("publish"), st.integers(0, 40_000), st.integers(0, 4000)),
    ),
    max_size=25,
)


@settings(max_examples=150, deadline=None)
@given(STEPS, st.sampled_from([2**28, 3000]))
def test_no_sequence_of_reads_loses_or_doubles_a_call(steps: list[tuple[str, int, int]], bound: int) -> None:
    upstream = Upstream()
    rule = Rule()

    async def run() -> None:
        cache = cache_of(upstream, cache_bytes=bound)
        for number, (step, first, second) in enumerate(steps):
            if step == "wait":
                upstream.now += first
            elif step == "publish":
                start = int(upstream.now) - first
                upstream.published.append((upstream.now + second, call(str(number), start)))
            else:
                window = Window(int(upstream.now) - first, int(upstream.now) - first + second)
                seen = ids((await cache.read(ask(["a"], window))).calls)
                assert len(seen) == len(set(seen))
                for since, one in upstream.published:
                    start = int(one.start_time.timestamp())
                    # A fetch at or after `since` shows the call; one before it may count until it is stale.
                    bound_to_show = max(since, start) + max(rule.minimum, 0.12 * (since - start)) + 1
                    if start in window and bound_to_show <= upstream.now:
                        assert one.id in seen
                    if start not in window or since > upstream.now:
                        assert one.id not in seen

    asyncio.run(run())


def test_an_extent_keeps_only_what_lies_in_its_window() -> None:
    extent = make_extent(Window(10, 20), 30.0, [call("1", 9), call("2", 10), call("3", 19), call("4", 20)])
    assert ids(extent.calls) == ["2", "3"]


def test_an_extent_does_not_hold_itself_so_that_what_is_dropped_is_freed_at_once():
    extent = make_extent(Window(0, 86400), 1.0, [])
    held = sys.getrefcount(extent)
    extent.keep(Memo(memo_table(Memory())))
    assert not finish(extent.may_have("ani", "3125550100"))
    assert extent.stored is extent
    assert extent.view(Window(0, 86400)) is extent
    assert extent.view(Window(0, 3600)).stored is extent
    assert sys.getrefcount(extent) == held


class Tracked(Provenance, weakref=True):
    """A provenance whose end can be seen."""


def test_what_tells_of_changes_holds_no_reading_and_may_be_of_any_number_of_spans():
    changes = list[bool]()

    def changed() -> bool:
        return bool(changes)

    first = Tracked(planned=NOW, as_of=NOW, oldest_fetch=NOW, fresh_until=NOW, changed=changed)
    end = weakref.ref(first)
    total = first.combine(first)
    for _ in range(sys.getrecursionlimit()):
        total = total.combine(first, newest_first=True)
    kept = total.changed
    del first, total
    assert end() is None
    assert not kept()
    changes.append(True)
    assert kept()


def test_an_answer_of_several_spans_is_unchanged_until_one_of_them_is():
    upstream = Upstream()
    upstream.published = [(0, call(str(day), NOW - day * DAY - 60)) for day in range(5)]

    async def run() -> None:
        cache, week = cache_of(upstream), ask(["a"], Window(NOW - 7 * DAY, NOW))
        await cache.read(week)
        page = await read_page(cache, week, NOW, newest_first=True, limit=5, after=None)
        assert len(page.calls) == 5
        assert not page.provenance.changed()
        await cache.read(ask(["a"], Window(NOW - 3 * DAY, NOW - 2 * DAY), no_cache=True))
        assert page.provenance.changed()

    asyncio.run(run())


class Moving(Cache):
    """A cache in which a POST lands right after each lookup of held extents."""

    landing: Query

    async def held(self, query: Query) -> list[Extent]:
        found = await super().held(query)
        await self.read(self.landing)
        return found


def test_a_page_shows_a_change_after_it_saw_what_is_held_or_knows_of_it():
    upstream = Upstream()
    older, newer = Window(NOW - 5 * DAY, NOW - 4 * DAY), Window(NOW - 3 * DAY, NOW - 2 * DAY)
    upstream.published = [(0, call(str(n), older.start + n)) for n in (1, 2)]

    async def run() -> None:
        cache = cache_of(upstream, Moving)
        assert isinstance(cache, Moving)
        cache.landing = ask(["a"], newer, no_cache=True)
        both = ask(["a"], Window(older.start, newer.end))
        await cache.read(both)
        upstream.now += 1
        upstream.published[0] = (0, call("1", newer.start + 60))
        page = await read_page(cache, both, NOW, newest_first=False, limit=1, after=None)
        assert ids(page.calls) == ["2"] or page.provenance.changed()

    asyncio.run(run())


def test_the_search_for_a_call_yields_after_each_day():
    upstream = Upstream()
    upstream.published = [(0, call(f"{n % 10}-{n}", NOW - n * HOUR - 60)) for n in range(30 * 24)]

    async def run() -> None:
        cache, turns, done = cache_of(upstream), 0, False
        await cache.read(ask(["a"], Window(NOW - 30 * DAY, NOW)))

        async def count_turns() -> None:
            nonlocal turns
            while not done:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count_turns())
        await asyncio.sleep(0)
        assert await cache.whereabouts("a", "5", status=False) is None
        done = True
        await counting
        assert turns >= 30

    asyncio.run(run())
