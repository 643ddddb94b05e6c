"""Flights, their POSTs and client profiles, against an in-process upstream."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from gateway.cache.client_profiles import MAX_POSTS, ClientProfiles
from gateway.cache.extents import Extent, covers, instant, overlay, overlay_all
from gateway.cache.freshness import (
    MAX_READ_POSTS,
    Rule,
    due_for_refresh,
    gaps,
    merge_gaps,
    plan_posts,
    seconds_past,
    stale_from,
)
from gateway.cache.reader import Cache, CacheSettings
from gateway.cache.scans import counted
from gateway.cache.single_flight import OVERDUE
from gateway.callbutton.client import Fetched
from gateway.errors import (
    Obstacle,
    Overloaded,
    UpstreamError,
    UpstreamFailed,
    UpstreamMalformed,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnauthorized,
    UpstreamUnreachable,
)
from gateway.metrics import Metrics
from gateway.model import UnreadableCall, Window
from tests.support.loops import settle
from tests.support.processes import wait_in_loop_for
from tests.support.upstream import DAY, HOUR, LAST_HOUR, NOW, Faulty, Upstream, ask, cache_of, call, ids


def codes_posted(upstream: Upstream) -> list[tuple[str, ...]]:
    return [codes for codes, _ in upstream.posts]


async def read_all(cache: Cache, codes: Sequence[str], window: Window) -> list[str]:
    return ids((await cache.read(ask(codes, window))).calls)


def test_fifty_clients_at_once_cost_two_posts():
    upstream = Upstream()
    upstream.published = [(0, call(f"id{number}", NOW - 60, f"c{number}")) for number in range(50)]

    async def run() -> list[list[str]]:
        cache = cache_of(upstream)
        return await asyncio.gather(*(read_all(cache, [f"c{number}"], LAST_HOUR) for number in range(50)))

    assert asyncio.run(run()) == [[f"id{number}"] for number in range(50)]
    assert [len(codes) for codes in codes_posted(upstream)] == [1, 49]


def test_a_hundred_overlapping_windows_of_one_client_cost_at_most_three_posts():
    upstream = Upstream()
    upstream.published = [(0, call(str(number), NOW - number * 600)) for number in range(1, 200)]
    draw = random.Random(3)
    windows = [Window(NOW - draw.randrange(2, 30) * HOUR, NOW - draw.randrange(0, HOUR)) for _ in range(100)]

    async def run() -> list[list[str]]:
        cache = cache_of(upstream)
        return await asyncio.gather(*(read_all(cache, ["a"], window) for window in windows))

    expected = [
        sorted(one.id for _, one in upstream.published if one.start_time.timestamp() in window) for window in windows
    ]
    assert asyncio.run(run()) == expected
    assert len(upstream.posts) <= 3


CODES = [f"c{number}" for number in range(8)]


@pytest.mark.parametrize(
    "error",
    [
        UpstreamMalformed("html"),
        UpstreamFailed("ERROR", reported=True),
        UpstreamFailed("500", status=500),
        UpstreamUnauthorized(None, None),
        UpstreamRejected("about c5"),
        UpstreamUnreachable("closed", Obstacle.CLOSED),
        UpstreamTimeout("no byte", answering=False),
        UpstreamTimeout("dripped", answering=True),
    ],
    ids=["malformed", "ERROR", "500", "unauthorized", "rejected", "closed", "hangs", "drips"],
)
def test_a_batch_that_fails_is_sent_again_code_by_code_and_the_bad_code_is_named(error: UpstreamError):
    upstream = Faulty(lambda codes, _: error if "c5" in codes else None)
    upstream.published = [(0, call("1", NOW - 60, "c4"))]
    good = [code for code in CODES if code != "c5"]

    async def run() -> None:
        cache = cache_of(upstream)
        with pytest.raises(type(error), match="client c5: "):
            await cache.read(ask(CODES, LAST_HOUR))
        assert len(upstream.posts) <= 1 + len(CODES)
        before = len(upstream.posts)
        assert await read_all(cache, good, LAST_HOUR) == ["1"]  # extents that landed are kept
        assert len(upstream.posts) == before
        await settle()  # a flight that is still up would be waited for, and its code not batched
        upstream.now += 60
        with pytest.raises(type(error), match="client c5: "):
            await cache.read(ask(CODES, Window(NOW - HOUR, NOW + 60)))
        assert {frozenset(codes) for codes in codes_posted(upstream)[before:]} == {frozenset(good), frozenset(["c5"])}

    asyncio.run(run())


@pytest.mark.parametrize("bad", [["b"], ["b", "d"]], ids=["one bad code", "two bad codes"])
def test_a_read_never_fails_for_a_code_that_it_does_not_ask_for(bad: list[str]):
    error = UpstreamFailed("500", status=500)
    upstream = Faulty(lambda codes, _: error if set(bad) & set(codes) else None)
    upstream.published = [(0, call(code, NOW - 60, code)) for code in "acde"]
    windows = [LAST_HOUR, Window(NOW - 40 * DAY, NOW - 3 * DAY)]  # the second one takes two POSTs

    async def run() -> None:
        cache = cache_of(upstream)
        for window in windows:
            upstream.now += 2
            first = asyncio.create_task(read_all(cache, ["x"], window))  # while it is in progress the others collect
            reads = {code: asyncio.create_task(read_all(cache, [code], window)) for code in "abcde"}
            await first
            for code, read in reads.items():
                if code in bad:
                    with pytest.raises(UpstreamFailed):
                        await read
                else:
                    assert await read == ([code] if window is LAST_HOUR else [])
        assert any(len(codes) > 1 and set(bad) & set(codes) for codes in codes_posted(upstream))

    asyncio.run(run())


def test_a_batch_that_is_answered_too_late_for_a_reader_is_given_up_for_a_post_alone():
    upstream = Upstream()
    upstream.published = [(0, call("1", NOW - 60, "good"))]
    ended = asyncio.Event()

    async def fetch(codes: Sequence[str], window: Window, **how: Any) -> Fetched:
        fetched = await upstream(codes, window, **how)
        if "drips" in codes:
            await ended.wait()
        return fetched

    async def run() -> None:
        cache = Cache(
            fetch, CacheSettings(Rule(), Rule(), 31 * DAY, 50, 2**28), Metrics(CollectorRegistry()), lambda: NOW
        )
        deadline = asyncio.get_running_loop().time() + 1
        with pytest.raises(UpstreamTimeout, match="client drips: the answer is still being fetched"):
            await cache.read(ask(["good", "drips"], LAST_HOUR, deadline=deadline))
        assert await read_all(cache, ["good"], LAST_HOUR) == ["1"]
        ended.set()
        await cache.close()

    asyncio.run(run())
    assert codes_posted(upstream)[0] == ("good", "drips")
    assert sorted(codes_posted(upstream)[1:]) == [("drips",), ("good",)]


def test_flights_that_are_overdue_hold_up_and_batch_nobody():
    """A code is never answered. Reads of others of the same window go at once, and never together with it."""
    upstream = Upstream()
    silent = asyncio.Event()

    async def fetch(codes: Sequence[str], window: Window, **how: Any) -> Fetched:
        fetched = await upstream(codes, window, **how)
        if "silent" in codes:
            await silent.wait()
        return fetched

    async def run() -> None:
        cache = Cache(
            fetch,
            CacheSettings(Rule(), Rule(), 31 * DAY, 50, 2**28),
            Metrics(CollectorRegistry()),
            lambda: upstream.now,
        )
        waiting = [asyncio.create_task(cache.read(ask(["silent"], LAST_HOUR)))]
        await wait_in_loop_for(lambda: upstream.posts, "the POST is sent")
        upstream.now += OVERDUE + 0.1
        read = asyncio.create_task(read_all(cache, ["good"], LAST_HOUR))
        await settle()
        assert codes_posted(upstream) == [("silent",), ("good",)]  # no timer has run
        await read
        window = Window(NOW - DAY, NOW - HOUR)
        waiting += [asyncio.create_task(cache.read(ask([code], window))) for code in ("good", "silent", "other")]
        await wait_in_loop_for(lambda: len(upstream.posts) == 5, "all are sent")
        assert all(codes == ("silent",) or "silent" not in codes for codes in codes_posted(upstream))
        silent.set()
        await asyncio.gather(*waiting)

    asyncio.run(run())


def test_a_window_that_is_too_much_is_halved_and_the_span_is_remembered():
    too_much = UpstreamFailed("ERROR", reported=True)
    upstream = Faulty(lambda _, window: too_much if window.end - window.start > 3 * DAY else None)
    upstream.published = [(0, call(str(day), NOW - day * DAY - 60)) for day in range(10)]

    async def run() -> None:
        cache = cache_of(upstream)
        assert await read_all(cache, ["a"], Window(NOW - 10 * DAY, NOW)) == [str(day) for day in range(10)]
        failed = sum(window.end - window.start > 3 * DAY for _, window in upstream.posts)
        upstream.posts.clear()
        await read_all(cache, ["a"], Window(NOW - 20 * DAY, NOW - 11 * DAY))
        assert failed == 3
        assert all(window.end - window.start <= 3 * DAY for _, window in upstream.posts)

    asyncio.run(run())


@pytest.mark.parametrize(
    ("error", "posts"),
    [
        (UpstreamFailed("ERROR", reported=True), 8),  # 5 days to 2 hours and less: an hour is the least
        (UpstreamFailed("HTTP status 500"), 1),
        (UpstreamTimeout("no byte", answering=False), 1),
        (UpstreamTimeout("in the middle", answering=True), 8),
        (UpstreamRejected("Client code not valid"), 1),
        (UpstreamUnreachable("refused"), 1),
    ],
    ids=["ERROR", "500", "no answer", "broke off", "rejected", "unreachable"],
)
def test_an_upstream_that_always_fails_is_not_asked_without_end(error: UpstreamError, posts: int):
    upstream = Faulty(lambda _, __: error)

    async def run() -> None:
        cache = cache_of(upstream)
        with pytest.raises(type(error)):
            await cache.read(ask(["a"], Window(NOW - 5 * DAY, NOW)))

    asyncio.run(run())
    assert len(upstream.posts) == posts


def test_a_code_that_is_echoed_otherwise_keeps_its_calls_and_travels_alone():
    upstream = Faulty()
    upstream.echoes = {"8005550100": "cust7"}
    upstream.published = [(0, call("1", NOW - 60, "8005550100")), (0, call("2", NOW - 60, "b"))]

    async def run() -> None:
        cache = cache_of(upstream)
        for later in (0, 60):
            upstream.now = NOW + later
            window = Window(NOW - HOUR, NOW + later)
            reading = await cache.read(ask(["8005550100", "b"], window))
            assert sorted((one.client_code, one.id) for one in reading.calls) == [("8005550100", "1"), ("b", "2")]

    asyncio.run(run())
    assert codes_posted(upstream)[:2] == [("8005550100", "b"), ("8005550100",)]
    assert ("8005550100", "b") not in codes_posted(upstream)[2:]


def test_a_plain_code_that_had_calls_is_empty_if_a_batch_leaves_it_out():
    upstream = Upstream()
    upstream.leave_out = {"b"}
    upstream.published = [(0, call("1", NOW - DAY, "b"))]

    async def run() -> None:
        cache = cache_of(upstream)
        await read_all(cache, ["a", "b"], LAST_HOUR)
        assert codes_posted(upstream) == [("a", "b"), ("b",)]
        assert await read_all(cache, ["b"], Window(NOW - 2 * DAY, NOW - HOUR)) == ["1"]
        upstream.posts.clear()
        upstream.now += 60
        await read_all(cache, ["a", "b"], Window(NOW - HOUR, NOW + 60))
        assert codes_posted(upstream) == [("a", "b")]

    asyncio.run(run())


def test_extents_of_every_client_serve_those_that_they_list_and_no_others():
    upstream = Upstream()
    upstream.published = [(0, call("1", NOW - 60, "a")), (0, call("2", NOW - 90, "b"))]

    async def run() -> None:
        cache = cache_of(upstream)
        assert await read_all(cache, ["*"], LAST_HOUR) == ["1", "2"]
        assert await read_all(cache, ["b"], LAST_HOUR) == ["2"]
        assert codes_posted(upstream) == [("*",)]
        assert await read_all(cache, ["c"], LAST_HOUR) == []  # not listed is unknown, not empty
        assert codes_posted(upstream) == [("*",), ("c",)]
        assert await read_all(cache, ["*"], LAST_HOUR) == ["1", "2"]

    asyncio.run(run())


def test_only_a_reply_with_calls_teaches_how_a_code_is_echoed():
    upstream = Faulty()
    upstream.echoes = {"cust7": "8005550100"}
    upstream.leave_out = {"cust7"}  # a batch lists its calls under the other code only

    async def run() -> None:
        cache = cache_of(upstream)
        quiet = Window(NOW - 3 * DAY, NOW - 2 * DAY)
        assert await read_all(cache, ["cust7"], quiet) == []
        assert await read_all(cache, ["b"], quiet) == []
        upstream.published = [(0, call(str(number), NOW - 60 - number, "cust7")) for number in range(17)]
        assert len(await read_all(cache, ["cust7", "b"], LAST_HOUR)) == 17

    asyncio.run(run())


@pytest.mark.parametrize(
    ("listed", "outcome"),
    [
        ({"a": ["1"], "b": ["2"]}, ["1"]),
        ({"a": [], "b": ["2"]}, []),
        ({"b": ["2"]}, ["2"]),
        ({"b": ["2"], "c": ["3"]}, UpstreamMalformed),
        ({"b": [], "c": ["3"]}, UpstreamMalformed),
        ({}, []),
    ],
    ids=["itself and another", "itself without calls", "one other", "two others", "two others, one empty", "none"],
)
def test_a_reply_to_one_code_holds_its_calls_or_those_of_the_one_other_that_is_listed(
    listed: dict[str, list[str]], outcome: Any
):
    posts = 0

    async def fetch(codes: Sequence[str], window: Window, **how: Any) -> Fetched:  # noqa: ARG001
        nonlocal posts
        posts += 1
        calls = {code: [call(identity, NOW - 60, code) for identity in found] for code, found in listed.items()}
        unreadable = {"b": [UnreadableCall("9", "b", instant(NOW - 60), instant(NOW - 60))]} if "a" in listed else {}
        return Fetched(NOW, calls, unreadable, status_ignored=False)

    async def run() -> None:
        cache = Cache(
            fetch, CacheSettings(Rule(), Rule(), 31 * DAY, 50, 2**28), Metrics(CollectorRegistry()), lambda: NOW
        )
        if outcome is UpstreamMalformed:
            with pytest.raises(UpstreamMalformed, match="other client codes"):
                await cache.read(ask(["a"], Window(NOW - DAY, NOW)))
            return
        reading = await cache.read(ask(["a"], Window(NOW - DAY, NOW)))
        assert [(one.client_code, one.id) for one in reading.calls] == [("a", identity) for identity in outcome]
        assert not any(extent.unreadable for extent in reading.extents)  # those of b

    asyncio.run(run())
    assert posts == 1  # a shorter window might list one other code, whose calls are not a's


def test_who_joined_a_flight_that_failed_asks_on_its_own_account():
    late = UpstreamTimeout("too late", answering=False)
    upstream = Faulty(lambda _, window: late if window.end - window.start > HOUR else None)
    upstream.published = [(0, call("1", NOW - 60))]

    async def run() -> None:
        upstream.gate = asyncio.Event()
        cache = cache_of(upstream)
        large = asyncio.create_task(cache.read(ask(["a"], Window(NOW - 2 * HOUR, NOW))))
        await settle()
        small = asyncio.create_task(read_all(cache, ["a"], LAST_HOUR))
        await settle()
        await wait_in_loop_for(lambda: upstream.posts, "the POST is sent")
        upstream.gate.set()
        with pytest.raises(UpstreamTimeout):
            await large
        assert await small == ["1"]

    asyncio.run(run())


def test_a_failed_read_of_every_client_is_not_the_failure_of_one():
    upstream = Faulty(lambda codes, _: UpstreamTimeout("no byte", answering=False) if "*" in codes else None)

    async def run() -> None:
        cache = cache_of(upstream)
        with pytest.raises(UpstreamTimeout):
            await cache.read(ask(["*"], LAST_HOUR))
        assert await read_all(cache, ["a"], LAST_HOUR) == []

    asyncio.run(run())
    assert codes_posted(upstream) == [("*",), ("a",)]


def test_no_connection_is_remembered_for_all_until_a_post_lands():
    upstream = Faulty(lambda codes, _: UpstreamUnreachable("refused") if "a" in codes else None)

    async def run() -> None:
        cache = cache_of(upstream)
        with pytest.raises(UpstreamUnreachable):
            await cache.read(ask(["a"], LAST_HOUR))
        with pytest.raises(UpstreamUnreachable):
            await cache.read(ask(["b"], LAST_HOUR))
        assert codes_posted(upstream) == [("a",)]
        upstream.now += 1.5
        assert await read_all(cache, ["b"], LAST_HOUR) == []
        upstream.gate = asyncio.Event()
        landing = asyncio.create_task(read_all(cache, ["c"], LAST_HOUR))
        failing = asyncio.create_task(cache.read(ask(["a"], Window(NOW - DAY, NOW - 60))))
        await wait_in_loop_for(lambda: len(upstream.posts) == 4, "both POSTs are sent")
        upstream.gate.set()
        assert await landing == []
        with pytest.raises(UpstreamUnreachable):
            await failing
        assert await read_all(cache, ["c"], LAST_HOUR) == []

    asyncio.run(run())


def test_an_extent_from_the_future_is_dropped():
    upstream = Upstream()

    async def run() -> None:
        cache = cache_of(upstream)
        await read_all(cache, ["a"], LAST_HOUR)
        upstream.now -= 60
        await read_all(cache, ["a"], Window(NOW - HOUR, NOW - 600))

    asyncio.run(run())
    assert len(upstream.posts) == 2


def test_old_points_are_fetched_again_in_the_background():
    upstream = Upstream()
    window = Window(NOW - 400 * DAY, NOW - 399 * DAY)

    async def run() -> None:
        cache = cache_of(upstream)
        await read_all(cache, ["a"], window)
        upstream.now += 7 * DAY - 1
        reading = await cache.read(ask(["a"], window))
        assert (reading.lookup, reading.stale) == ("hit", False)
        await cache.close()

    asyncio.run(run())
    assert len(upstream.posts) == 2


OVERLOAD = UpstreamFailed("HTTP status 503", status=503)


def spent(upstream: Upstream, cache: Cache, window: Window) -> Coroutine[Any, Any, int]:
    """Return the number of POSTs that a read costs."""

    async def read() -> int:
        before = len(upstream.posts)
        await cache.read(ask(["a"], window))
        return len(upstream.posts) - before

    return read()


@pytest.mark.parametrize("error", [OVERLOAD, UpstreamTimeout("no byte", answering=False)], ids=["503", "no answer"])
@pytest.mark.parametrize(
    "failed", [60, 1800, HOUR, DAY, 2 * DAY, 8 * DAY, 15 * DAY, 16 * DAY, 31 * DAY, 62 * DAY, 365 * DAY]
)
def test_after_one_failure_a_month_costs_at_most_8_posts_and_a_year_40(error: UpstreamError, failed: int):
    for days, most in ((31, 8), (365, 40)):
        upstream = Faulty(lambda _, __: error)

        async def run(upstream: Faulty = upstream, days: int = days) -> int:
            cache = cache_of(upstream)
            with pytest.raises(type(error)):
                await cache.read(ask(["a"], Window(NOW - failed, NOW)))
            upstream.fault = None
            upstream.now += 2
            end = NOW - 400 * DAY  # nothing of it was fetched
            return await spent(upstream, cache, Window(end - days * DAY, end))

        assert asyncio.run(run()) <= most


def test_a_short_window_that_fails_says_nothing_about_longer_ones():
    upstream = Faulty(lambda _, window: OVERLOAD if window.end - window.start <= 2 * HOUR else None)

    async def run() -> list[int]:
        cache = cache_of(upstream)
        with pytest.raises(UpstreamFailed):
            await cache.read(ask(["a"], Window(NOW - 1800, NOW)))
        return [await spent(upstream, cache, Window(NOW - 400 * DAY, NOW - 369 * DAY))]

    assert asyncio.run(run()) == [1]


def test_spans_shrink_to_the_window_that_is_answered_and_double_with_each_success():
    limit = [5 * DAY]
    upstream = Faulty(lambda _, window: OVERLOAD if window.end - window.start > limit[0] else None)

    async def run() -> None:
        cache = cache_of(upstream)
        window = Window(NOW - 431 * DAY, NOW - 400 * DAY)
        failures = 0
        while True:
            try:
                posts = await spent(upstream, cache, window)
                break
            except UpstreamFailed:
                failures, upstream.now = failures + 1, upstream.now + 2
        assert (failures, posts) == (3, 8)  # 31 days, 15.5, 7.75; then windows of 3.9 days
        limit[0] = 1000 * DAY
        costs = [
            await spent(upstream, cache, Window(window.start - n * 31 * DAY, window.end - n * 31 * DAY))
            for n in (1, 2, 3, 4)
        ]
        assert costs == [4, 2, 1, 1]

    asyncio.run(run())


def test_a_span_that_grew_too_far_stays_for_ten_minutes_and_no_longer_than_an_hour():
    profiles = ClientProfiles(32 * DAY, 50)
    for days in (32, 16, 8):
        profiles.overloaded("a", days * DAY, NOW)
    assert profiles.span("a", NOW) == 4 * DAY
    profiles.answered(["a"], 4 * DAY, NOW)
    profiles.overloaded("a", 8 * DAY, NOW + 1)
    profiles.answered(["a"], 4 * DAY, NOW + 2)
    assert profiles.span("a", NOW + 2) == 4 * DAY
    profiles.answered(["a"], 4 * DAY, NOW + 602)
    assert profiles.span("a", NOW + 602) == 8 * DAY
    assert profiles.span("a", NOW + 3602) == 32 * DAY
    for _ in range(2):
        profiles.batch_failed(["a", "b"], NOW + 3603)  # a limit that is forgotten stays forgotten
    assert [profiles.span(code, NOW + 3604) for code in "ab"] == [32 * DAY] * 2


def test_a_clock_that_is_set_back_does_not_prolong_what_was_learned_of_a_client():
    profiles = ClientProfiles(32 * DAY, 50)
    profiles.overloaded("a", 32 * DAY, NOW)
    profiles.failed("b", NOW, bad_reply=True)
    profiles.echoed("b", {"b": [call("1", NOW)]})
    assert (profiles.span("a", NOW), profiles.batches(["b", "c"], NOW)) == (16 * DAY, [["c"], ["b"]])
    before = NOW - HOUR
    assert (profiles.span("a", before), profiles.batches(["b", "c"], before)) == (32 * DAY, [["b", "c"]])


def test_a_batch_that_is_too_large_shortens_no_window_and_batches_are_halved_until_they_are_answered():
    upstream = Faulty(lambda codes, _: OVERLOAD if len(codes) > 4 else None)
    codes = [f"c{number}" for number in range(16)]

    async def run() -> None:
        cache = cache_of(upstream)
        costs = []
        for number in range(4):
            before = len(upstream.posts)
            start = NOW - (431 + 31 * number) * DAY
            assert await read_all(cache, codes, Window(start, start + 31 * DAY)) == []
            costs.append(len(upstream.posts) - before)
            assert all(window.end - window.start == 31 * DAY for _, window in upstream.posts)
        assert costs == [1 + 16, 1 + 16, 2 + 16, 4]  # 16, again 16, 8, then 4 at a time

    asyncio.run(run())


def test_a_content_that_always_fails_leaves_the_span_as_it_was():
    """One hour has a record that breaks every reply: the flight is split until it covers only that hour."""
    bad = NOW - 430 * DAY
    broken = UpstreamMalformed("broken")
    upstream = Faulty(lambda _, window: broken if bad in window else None)

    async def run() -> list[int]:
        cache = cache_of(upstream)
        with pytest.raises(UpstreamMalformed):
            await cache.read(ask(["a"], Window(NOW - 431 * DAY, NOW - 400 * DAY)))
        assert len(upstream.posts) <= MAX_POSTS
        return [await spent(upstream, cache, Window(NOW - n * 31 * DAY, NOW - (n - 1) * 31 * DAY)) for n in (1, 2)]

    first, second = asyncio.run(run())
    assert first <= 8
    assert second <= first


@given(st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 3)), max_size=200), st.integers(1, 100))
def test_the_posts_of_a_read_are_bounded_and_cover_what_is_needed(made: list[tuple[int, int]], span: int):
    windows = [Window(start * HOUR, (start + length) * HOUR) for start, length in made]
    planned = plan_posts(windows, span * HOUR, lambda window: window)
    assert len(planned) <= MAX_READ_POSTS
    assert all(before.end <= after.start for before, after in pairwise(planned))
    assert all(
        any(point * HOUR in part for part in planned)
        for start, length in made
        for point in range(start, start + length)
    )


def test_codes_that_a_reply_leaves_out_cost_no_more_than_the_posts_of_a_flight():
    codes = [f"c{number:02}" for number in range(50)]
    upstream = Upstream()
    upstream.leave_out = set(codes)

    async def run() -> None:
        cache = cache_of(upstream)
        with pytest.raises(Overloaded, match="left out over 31 of 50 client codes"):
            await cache.read(ask(codes, LAST_HOUR))
        assert len(upstream.posts) == MAX_POSTS
        assert (await cache.read(ask(codes, LAST_HOUR))).calls == []  # not remembered as an error
        assert len(upstream.posts) == MAX_POSTS + 20
        upstream.posts.clear()
        await cache.read(ask([f"d{number:02}" for number in range(50)], LAST_HOUR))
        upstream.leave_out |= {f"e{number:02}" for number in range(50)}
        upstream.posts.clear()
        await cache.read(ask(sorted(upstream.leave_out - set(codes)), LAST_HOUR))  # in batches that the budget allows
        assert {len(batch) for batch in codes_posted(upstream)} == {31, 19, 1}

    asyncio.run(run())


def test_a_server_that_takes_one_code_at_a_time_is_read_code_by_code():
    upstream = Faulty(lambda codes, _: UpstreamFailed("ERROR", reported=True) if len(codes) > 1 else None)
    codes = [f"c{number:02}" for number in range(50)]
    upstream.published = [(0, call(code, NOW - 60, code)) for code in codes]

    async def run() -> None:
        assert await read_all(cache_of(upstream), codes, LAST_HOUR) == codes

    asyncio.run(run())
    assert len(upstream.posts) == 1 + 50


def test_a_batch_of_many_windows_that_fails_costs_one_post_for_each_code_and_each_window_twice():
    upstream = Faulty(lambda codes, _: OVERLOAD if "bad" in codes else None)
    codes = [f"c{number:02}" for number in range(20)]

    async def run() -> None:
        cache = cache_of(upstream)
        with pytest.raises(UpstreamFailed, match="client bad: "):
            await cache.read(ask([*codes, "bad"], Window(NOW - 300 * DAY, NOW)))

    asyncio.run(run())
    windows = 10
    assert len(upstream.posts) <= 2 * windows + 1 + len(codes)


def test_a_slow_upstream_lengthens_the_least_life():
    upstream = Upstream()

    async def run() -> list[str]:
        cache = cache_of(upstream)
        window = Window(NOW - HOUR, NOW)
        upstream.gate = asyncio.Event()
        read = asyncio.create_task(cache.read(ask(["a"], window)))
        await wait_in_loop_for(lambda: upstream.posts, "the POST is sent")
        upstream.now += 20
        upstream.gate.set()
        await read
        upstream.now += 18  # 38 seconds after the POST
        first = await cache.read(ask(["a"], window))
        upstream.now += 3
        return [first.lookup, (await cache.read(ask(["a"], window))).lookup]

    assert asyncio.run(run()) == ["hit", "partial"]


SPANS = st.lists(st.tuples(st.integers(0, 400), st.integers(1, 200), st.integers(0, 1000)), max_size=8)


@given(SPANS)
def test_windows_put_together_cover_what_they_were_made_of_and_do_not_overlap(spans: list[tuple[int, int, int]]):
    windows = [Window(start, start + length) for start, length, _ in spans]
    merged = merge_gaps(windows)
    assert all(before.end < after.start for before, after in pairwise(merged))
    assert all(any(m.start <= w.start and w.end <= m.end for m in merged) for w in windows)
    needed = len({point for w in windows for point in range(w.start, w.end)})
    assert sum(m.end - m.start for m in merged) <= 2 * needed


@given(SPANS)
def test_extents_put_together_at_once_are_those_put_together_one_by_one(spans: list[tuple[int, int, int]]):
    extents = [Extent(Window(start, start + length), sent + n / 100) for n, (start, length, sent) in enumerate(spans)]
    one_by_one: list[Extent] = []
    for extent in extents:
        one_by_one = overlay(one_by_one, extent)
    assert overlay_all(extents) == one_by_one


def test_ten_thousand_extents_are_put_together_in_no_more_steps_than_their_order_takes():
    extents = [Extent(Window(n * 7 % 10_007, n * 7 % 10_007 + 5), float(n)) for n in range(10_000)]
    began = time.process_time()
    assert covers(overlay_all(extents), Window(5, 10_000))
    assert time.process_time() - began < 5  # one by one, this takes minutes


@given(SPANS, st.integers(1001, 9000))
def test_seconds_past_agree_with_the_stale_points(spans: list[tuple[int, int, int]], now: int):
    rule = Rule(minimum=15, ratio=0.1, maximum=2000)
    extents: list[Extent] = []
    for start, length, sent in spans:
        extents = overlay(extents, Extent(Window(start, start + length), float(sent)))
    for extent in extents:
        seconds_stale = seconds_past([extent], now, rule)
        assert seconds_stale <= 0 or stale_from(extent, now, rule) is not None
    assert covers(extents, Window(0, 600)) == all(any(p in e.window for e in extents) for p in range(600))


CASES = [  # days, seconds between reads, hours, ratio; POSTs a read, share of the data, extents: the model's figures
    (30, 30, 24, 0.1, 1.12, 0.0018, 28),
    (7, 30, 24, 0.1, 1.12, 0.0062, 27),
    (1, 15, 24, 0.1, 0.87, 0.0164, 28),
    (1, 5, 12, 0.1, 0.52, 0.0055, 41),
    (30, 300, 72, 0.1, 1.07, 0.0134, 17),
    (30, 30, 24, 0.01, 1.07, 0.0128, 21),
]


@pytest.mark.parametrize(("days", "refresh", "hours", "ratio", "posts", "share", "most"), CASES)
def test_a_refreshing_dashboard_costs_no_more_than_the_model(
    days: int, refresh: int, hours: int, ratio: float, posts: float, share: float, most: int
):
    """A simulation with the pure functions. It stores extents as the cache does, but does not cut them by day."""
    rule, draw = Rule(ratio=ratio), random.Random(1)
    extents: list[Extent] = []
    reads = sent = largest = 0
    fetched = asked = 0.0
    now = float(NOW)
    while now < NOW + hours * HOUR:
        window = Window(int(now) - days * DAY, int(now) + 1)
        reads, asked = reads + 1, asked + days * DAY
        kept = Window(window.start, window.end + DAY)
        extents = [extent.within(kept) for extent in extents if extent.window.overlaps(kept)]
        for gap in gaps(extents, window, now, rule, lambda window: window):
            reach = Window(gap.start, int(now + rule.minimum) + 1) if gap.end >= now else gap
            extents = overlay(extents, Extent(reach, now))
            sent, fetched = sent + 1, fetched + gap.end - gap.start
        largest = max(largest, len(extents))
        now += refresh * (0.85 + 0.3 * draw.random())
    assert sent / reads <= posts * 1.03
    assert fetched / asked <= share * 1.07
    assert largest <= most * 1.1


def test_extents_reach_their_maximum_each_at_its_own_time():
    rule = Rule(maximum=1000)
    extents = [Extent(Window(start, start + 5), 0.0) for start in range(0, 1000, 10)]
    counts = [len(due_for_refresh(extents, now, rule)) for now in (790, 850, 900, 950, 999.9)]
    assert counts[0] == 0
    assert counts[-1] == 100
    assert counts == sorted(counts)
    assert 0 < counts[2] < 100


TRANSIENT = [
    OVERLOAD,
    UpstreamTimeout("no byte", answering=False),
    UpstreamTimeout("in the middle", answering=True),
    UpstreamFailed("ERROR", reported=True),
    UpstreamMalformed("truncated"),
]


@pytest.mark.parametrize("error", TRANSIENT, ids=["503", "hangs", "drips", "ERROR", "malformed"])
@pytest.mark.parametrize("failed", [1800, HOUR, 2 * HOUR, DAY, 10 * DAY, 31 * DAY, 62 * DAY])
@pytest.mark.parametrize("codes", [("a",), ("b", "a")], ids=["alone", "in a batch"])
def test_after_one_failure_of_any_kind_a_summary_of_a_month_costs_at_most_8_posts_and_of_a_year_40(
    error: UpstreamError, failed: int, codes: tuple[str, ...]
):
    for days, most in ((31, 8), (365, 40)):
        upstream = Faulty()
        upstream.fault = lambda _, __, posts=upstream.posts: error if len(posts) == 1 else None

        async def run(upstream: Faulty = upstream, days: int = days) -> int:
            cache = cache_of(upstream)
            with suppress(UpstreamError):
                await cache.read(ask(codes, Window(NOW - failed, NOW)))
            upstream.now, upstream.fault = upstream.now + 2, None
            upstream.posts.clear()
            end = NOW - 400 * DAY  # nothing of it was fetched
            async for _ in counted(cache, ask(["a"], Window(end - days * DAY, end)), upstream.now):
                pass
            return len(upstream.posts)

        assert asyncio.run(run()) <= most
