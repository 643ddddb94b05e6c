"""Readings of the change feed that several consumers share, and what happens while one is in progress."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from prometheus_client import CollectorRegistry

from gateway.cache import watch as watch_module
from gateway.cache.extents import make_extent
from gateway.cache.feed_reader import Clients, FeedResult
from gateway.cache.feed_state import FeedState, midnight
from gateway.cache.fingerprints import View
from gateway.cache.freshness import Provenance, Rule
from gateway.cache.reader import Cache, CacheSettings
from gateway.cache.watch import Answer, Feeds
from gateway.callbutton.client import Fetched
from gateway.callbutton.wait_queue import Waiters
from gateway.errors import GatewayError, UpstreamFailed
from gateway.memory import Memory
from gateway.metrics import Metrics
from gateway.model import Call, Window
from tests.support.processes import wait_in_loop_for
from tests.support.upstream import DAY, NOW, call

pytestmark = pytest.mark.anyio
CLIENTS = Clients(("a",), False)
MONTH_AGO, WEEK_AGO = midnight(NOW - 30 * DAY), midnight(NOW - 7 * DAY)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def view() -> View:
    return View("all", list, lambda one: one)


class Upstream:
    """Calls that a test changes, and a gate that holds replies."""

    def __init__(self, calls: Sequence[Call], stale: float = 0) -> None:
        self.now = float(NOW)
        self.calls = list(calls)
        self.open = asyncio.Event()
        self.open.set()
        self.posts = 0
        self.error: GatewayError | None = None
        rule = Rule(minimum=1, ratio=0.1, maximum=7 * DAY)
        settings = CacheSettings(rule, rule, 40 * DAY, 1, 2**28, stale_if_error=stale, stale_while_revalidate=stale)
        metrics = Metrics(CollectorRegistry())
        self.memory = Memory(2**28)
        cache = Cache(self, settings, metrics, lambda: self.now, memory=self.memory)
        self.feeds = Feeds(cache, self.memory, lambda: self.now, 60, metrics)
        self.gauge = metrics.feed_streams

    async def __call__(
        self,
        codes: Sequence[str],
        window: Window,
        *,
        status: bool,  # noqa: ARG002
        now: float,  # noqa: ARG002
        waiters: Waiters,  # noqa: ARG002
    ) -> Fetched:
        sent = self.now
        self.posts += 1
        await self.open.wait()
        if self.error is not None:
            raise self.error
        found = [one for one in self.calls if window.start - 1 <= one.start_time.timestamp() <= window.end + 1]
        return Fetched(sent, dict.fromkeys(codes, found), {}, status_ignored=False)

    async def answer(self, state: FeedState | int) -> Answer:
        return await self.feeds.answer(CLIENTS, state, view(), 1000)


def reported(answer: Answer) -> tuple[set[str], set[str]]:
    """The ids of an answer: of added or changed calls, and of removed calls."""
    brought = {one.call.id for one in answer.report.upserts}
    brought |= {one.id for part in answer.report.replaces for one in part.calls}
    return brought, {one.call.id for one in answer.report.removes}


DAILY = [call(f"{day:02}", NOW - day * DAY - 100) for day in range(25)]


async def test_feeds_with_different_starts_share_a_reading_and_see_their_own_part():
    upstream = Upstream(DAILY)
    first = await upstream.answer(WEEK_AGO)
    async with (
        upstream.feeds.watching(CLIENTS, MONTH_AGO, view(), upstream.gauge) as watch,
        upstream.feeds.watching(CLIENTS, WEEK_AGO, view(), upstream.gauge) as same,
    ):
        assert same is watch
        upstream.now += 1
        seen = await watch.refreshed(WEEK_AGO, view(), first.report.state.at)
        assert seen is not None
        assert seen.snapshot.calls == first.calls
        again = await upstream.feeds.answer(CLIENTS, first.report.state, view(), 1000, seen=seen)
        assert (reported(again), again.report.replaces) == ((set(), set()), [])


async def test_a_feed_that_starts_earlier_waits_for_a_reading_of_all_of_it():
    upstream = Upstream(DAILY)
    recent, month = await upstream.answer(WEEK_AGO), await upstream.answer(MONTH_AGO)
    assert recent.calls < month.calls
    upstream.now += 2
    upstream.open.clear()
    posts = upstream.posts
    async with upstream.feeds.watching(CLIENTS, WEEK_AGO, view(), upstream.gauge) as watch:
        await wait_in_loop_for(lambda: upstream.posts > posts, "a refresh is in progress")
        async with upstream.feeds.watching(CLIENTS, MONTH_AGO, view(), upstream.gauge):
            upstream.open.set()  # the reading from a week ago lands now
            seen = await watch.refreshed(MONTH_AGO, view(), month.report.state.at)
            assert seen is not None
            again = await upstream.feeds.answer(CLIENTS, month.report.state, view(), 1000, seen=seen)
            assert (reported(again), again.calls) == ((set(), set()), month.calls)


async def test_a_start_that_moves_on_leaves_no_trace_of_what_lies_before():
    upstream = Upstream([call(f"{day:03}", NOW - day * DAY - 100) for day in range(399)])
    start = midnight(NOW) - 400 * DAY
    state = (await upstream.answer(start)).report.state
    assert state.start == start
    upstream.now += DAY
    moved = await upstream.answer(state)
    assert start < moved.report.state.start <= start + 31 * DAY
    kept = [one for one in upstream.calls if one.start_time.timestamp() >= moved.report.state.start]
    assert moved.calls == len(kept)
    assert reported(moved) == (set(), set())


async def test_a_refresh_that_came_while_a_stream_was_busy_is_not_missed():
    upstream = Upstream(DAILY)
    first = await upstream.answer(WEEK_AGO)
    async with upstream.feeds.watching(CLIENTS, WEEK_AGO, view(), upstream.gauge) as watch:
        upstream.now += 1
        seen = await watch.refreshed(WEEK_AGO, view(), first.report.state.at)
        upstream.open.clear()  # no other refresh lands
        assert await watch.refreshed(WEEK_AGO, view(), first.report.state.at) is seen


async def test_data_that_may_be_stale_is_no_reason_to_refuse_a_feed():
    upstream = Upstream(DAILY, stale=3600)
    state = (await upstream.answer(WEEK_AGO)).report.state
    upstream.now += 60
    upstream.calls.append(call("99", NOW + 30))
    assert reported(await upstream.answer(state)) == ({"99"}, set())
    upstream.now += 60
    upstream.error = UpstreamFailed("ERROR", reported=True)
    with pytest.raises(UpstreamFailed, match="ERROR"):
        await upstream.answer(state)


async def test_an_unexpected_error_ends_all_who_wait():
    upstream = Upstream(DAILY)

    def broken(_: Call) -> Call:
        raise ZeroDivisionError

    bad = View("bad", list, broken)
    async with upstream.feeds.watching(CLIENTS, WEEK_AGO, bad, upstream.gauge) as watch:
        with pytest.raises(ZeroDivisionError):
            await watch.refreshed(WEEK_AGO, bad, NOW)


async def test_a_clock_that_is_set_back_does_not_stop_refreshes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(watch_module, "MAX_WAIT", watch_module.MIN_PAUSE)
    upstream = Upstream(DAILY)
    first = await upstream.answer(WEEK_AGO)
    upstream.open.clear()
    upstream.now += 2
    posts = upstream.posts
    async with upstream.feeds.watching(CLIENTS, WEEK_AGO, view(), upstream.gauge) as watch:
        await wait_in_loop_for(lambda: upstream.posts > posts, "a refresh is in progress")
        upstream.now -= 3600  # while the first refresh is in progress
        upstream.open.set()
        await watch.refreshed(WEEK_AGO, view(), first.report.state.at)
        upstream.now += 7200
        async with asyncio.timeout(60):
            seen = await watch.refreshed(WEEK_AGO, view(), NOW + 3500)
        assert seen is not None


async def test_equal_requests_share_a_reading_and_an_answer_until_the_cache_changes():
    upstream = Upstream(DAILY)
    state = (await upstream.answer(WEEK_AGO)).report.state
    first = await upstream.answer(state)
    assert await upstream.answer(state) is first
    assert (await upstream.answer(first.report.state)).report.state == first.report.state
    upstream.calls.append(call("99", NOW - 30))
    await upstream.feeds.reader.read(CLIENTS, WEEK_AGO, windows=[Window(NOW - 60, NOW)])
    assert reported(await upstream.answer(state)) == ({"99"}, set())
    upstream.now += 1  # the newest point is stale
    upstream.calls.append(call("100", NOW - 20))
    posts = upstream.posts
    assert reported(await upstream.answer(state)) == ({"99", "100"}, set())
    assert upstream.posts == posts + 1


def older_reading(calls: Sequence[Call], evictions: tuple[int, int], numbers: tuple[int, int]) -> FeedResult:
    """A reading that rests on a POST of a minute ago."""
    extent = make_extent(Window(WEEK_AGO, NOW), NOW - 60, calls)
    provenance = Provenance(planned=NOW, as_of=NOW - 60, oldest_fetch=NOW - 60, fresh_until=NOW + 1)
    return FeedResult([extent], [], NOW, provenance, evictions, numbers)


@pytest.mark.parametrize(
    ("evicted", "earlier", "again"),
    [(0, False, False), (1, False, True), (0, True, True)],
    ids=["a later reading", "after an eviction", "a reading that began before"],
)
async def test_what_is_older_than_what_was_reported_is_read_again(evicted: int, earlier: bool, again: bool):
    upstream = Upstream(DAILY)
    state = (await upstream.answer(WEEK_AGO)).report.state
    numbers = (state.reading - 1, state.reading + 2) if earlier else (state.reading + 1, state.reading + 2)
    evictions = state.evictions + evicted, state.evictions + evicted
    seen = await upstream.feeds.show(older_reading(DAILY[:2], evictions, numbers), CLIENTS, WEEK_AGO, view())
    posts = upstream.posts
    answer = await upstream.feeds.answer(CLIENTS, state, view(), 1000, seen=seen)
    assert (upstream.posts > posts) is again
    assert bool(answer.report.size) is not again


async def test_evictions_during_a_reading_count_as_later_than_it():
    upstream = Upstream(DAILY)
    reading = older_reading(DAILY, (3, 4), (1, 2))
    seen = await upstream.feeds.show(reading, CLIENTS, WEEK_AGO, view())
    assert (await upstream.feeds.answer(CLIENTS, WEEK_AGO, view(), 1000, seen=seen)).report.state.evictions == 3


async def test_a_reading_has_the_evictions_before_it_and_after_it():
    upstream = Upstream(DAILY)
    before = (await upstream.feeds.reader.read(CLIENTS, WEEK_AGO)).evictions[1]
    upstream.now += 60
    upstream.open.clear()
    posts = upstream.posts
    reading = asyncio.create_task(upstream.feeds.reader.read(CLIENTS, WEEK_AGO))
    await wait_in_loop_for(lambda: upstream.posts > posts, "a POST is in progress")
    upstream.memory.bound = 0
    upstream.memory.fit()
    upstream.memory.bound = 2**28
    upstream.open.set()
    found = (await reading).evictions
    assert (found[0], found[1] > before) == (before, True)


async def test_all_who_wait_go_on_when_the_process_stops():
    upstream = Upstream(DAILY)
    upstream.open.clear()  # a refresh is in progress
    async with upstream.feeds.watching(CLIENTS, WEEK_AGO, view(), upstream.gauge) as watch:
        waiting = [asyncio.create_task(watch.refreshed(WEEK_AGO, view(), NOW)) for _ in range(50)]
        await wait_in_loop_for(lambda: upstream.posts > 0, "a refresh is in progress")
        upstream.feeds.stopping.set()
        assert await asyncio.gather(*waiting) == [None] * 50
        assert await watch.refreshed(WEEK_AGO, view(), NOW) is None
        upstream.open.set()


async def test_readings_are_evicted_before_calls_and_a_feed_goes_on_without_them():
    upstream = Upstream(DAILY)
    state = (await upstream.answer(WEEK_AGO)).report.state
    memory = upstream.memory
    for _ in range(2):  # answers, then readings
        memory.bound = memory.size - 1
        memory.fit()
    memory.bound = 2**28
    assert upstream.feeds.seen(CLIENTS, WEEK_AGO, view()) is None
    upstream.calls.append(call("99", NOW - 5))
    upstream.now += 1
    answer = await upstream.answer(state)
    assert reported(answer) == ({"99"}, set())
    assert answer.report.state.evictions == state.evictions
