"""Streams and filtered pages: each call once, in order, in bounded memory, and no clean end after a failure."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from gateway.cache.scans import MAX_PAGE_POSTS, ROWS, Page, counted, read_page, stream
from gateway.callbutton.client import Fetched
from gateway.callbutton.wait_queue import LEAD
from gateway.errors import UpstreamError, UpstreamFailed, UpstreamTimeout
from gateway.model import Call, Window
from tests.support.loops import settle
from tests.support.processes import wait_in_loop_for
from tests.support.upstream import DAY, HOUR, NOW, Upstream, ask, cache_of, call, ids, unreadable

MONTH = Window(NOW - 30 * DAY, NOW)


def scattered(count: int, seconds: int = 30 * DAY) -> list[tuple[float, Call]]:
    return [(0, call(f"{number:05}", NOW - 1 - number * (seconds // count))) for number in range(count)]


async def streamed(upstream: Upstream, window: Window = MONTH, *, newest_first: bool = True) -> list[Call]:
    parts = stream(cache_of(upstream), ask(["a"], window), upstream.now, 60, newest_first=newest_first)
    return [one async for part in parts for one in part.calls]


@pytest.mark.parametrize("newest_first", [True, False])
@pytest.mark.parametrize("count", [0, 1, 1000, 9000])
def test_a_stream_holds_every_call_once_in_order(count: int, newest_first: bool):
    upstream = Upstream()
    upstream.published = scattered(max(1, count))[:count]
    calls = asyncio.run(streamed(upstream, newest_first=newest_first))
    assert ids(calls) == ids([one for _, one in upstream.published])
    starts = [one.start_time for one in calls]
    assert starts == sorted(starts, reverse=newest_first)
    assert all(window.end - window.start <= ROWS.first for _, window in upstream.posts[:1])


def test_spans_follow_the_density():
    upstream = Upstream()
    upstream.published = scattered(40_000, 40_000)
    asyncio.run(streamed(upstream, Window(NOW - 40_000, NOW)))
    # The size of the first span is a guess; every later span fills its share of memory.
    spans = [window.end - window.start for _, window in upstream.posts[1:]]
    assert max(spans) <= ROWS.calls * 1.1


def test_one_span_is_read_ahead_and_no_more():
    upstream = Upstream()
    upstream.published = scattered(9000)

    async def run() -> list[int]:
        cache = cache_of(upstream)
        parts = stream(cache, ask(["a"], MONTH), upstream.now, 60, newest_first=True)
        posts: list[int] = []
        for _ in range(3):
            await anext(parts)
            await wait_in_loop_for(lambda: len(upstream.posts) >= len(posts) + 2, "the span ahead is asked for")
            await settle()
            posts.append(len(upstream.posts))
        await cache.close()  # sends the collected needs, if there are any
        assert len(upstream.posts) == posts[-1]
        return posts

    assert asyncio.run(run()) == [2, 3, 4]


def test_who_leaves_a_stream_cancels_no_flight():
    upstream = Upstream()
    upstream.published = scattered(9000)

    async def run() -> None:
        cache = cache_of(upstream)
        parts = stream(cache, ask(["a"], MONTH), upstream.now, 60, newest_first=True)
        for _ in range(2):
            await anext(parts)
        upstream.gate = asyncio.Event()
        await wait_in_loop_for(lambda: len(upstream.posts) == 3, "the third span is being fetched")
        await parts.aclose()  # type: ignore[attr-defined]
        upstream.gate.set()
        await cache.close()
        _, last = upstream.posts[-1]
        assert (await cache.read(ask(["a"], last))).lookup == "hit"

    asyncio.run(run())
    assert len(upstream.posts) == 3


def test_of_an_id_that_two_spans_have_the_later_is_sent():
    """A call moves out of the first span, or from the second to outside the window: it is sent once."""
    border = NOW - ROWS.first
    upstream = Upstream()
    upstream.published = [*scattered(300, ROWS.first), (0, call("moved", border + 10, campaign="before"))]

    async def run() -> list[Call]:
        cache = cache_of(upstream)
        parts = stream(cache, ask(["a"], MONTH), upstream.now, 60, newest_first=True)
        calls = (await anext(parts)).calls
        upstream.now += 1
        upstream.published = [(0, one) for _, one in upstream.published if one.id != "moved"]
        upstream.published.append((0, call("moved", border - 10, campaign="after")))
        return calls + [one async for part in parts for one in part.calls]

    calls = asyncio.run(run())
    assert [one.campaign for one in calls if one.id == "moved"] == ["after"]
    assert len(calls) == 301


@pytest.mark.parametrize("to", [10, 2], ids=["to the past", "to the present"])
def test_a_call_that_moved_between_far_spans_comes_once_in_pages_and_streams(to: int):
    upstream = Upstream()
    steady = [(0, call(f"s{number}", NOW - number * DAY - 50)) for number in range(20)]
    upstream.published = [*steady, (0, call("moved", NOW - (12 - to) * DAY, campaign="before"))]

    async def run() -> list[list[str | None]]:
        cache, found = cache_of(upstream), []
        question = ask(["a"], MONTH)
        await cache.read(question)
        upstream.now += 1
        upstream.published = [*steady, (0, call("moved", NOW - to * DAY, campaign="after"))]
        await cache.read(ask(["a"], Window(NOW - to * DAY - 60, NOW - to * DAY + 60), no_cache=True))
        for newest_first in (True, False):
            pages, after = list[Call](), None
            while True:
                page = await read_page(cache, question, NOW, newest_first=newest_first, limit=3, after=after)
                pages += page.calls
                after = page.after
                if after is None:
                    break
            parts = stream(cache, question, NOW, 60, newest_first=newest_first)
            streamed = [one async for part in parts for one in part.calls]
            found += [[one.campaign for one in calls if one.id == "moved"] for calls in (pages, streamed)]
        return found

    assert asyncio.run(run()) == [["after"]] * 4
    assert len(upstream.posts) == 2


def test_pages_count_each_unreadable_record_once():
    upstream = Upstream()
    upstream.published = scattered(40)
    upstream.unreadable = [
        unreadable(str(day), NOW - day * DAY, latest=NOW - day * DAY + 60) for day in range(1, 29, 3)
    ]

    async def run(limit: int) -> int:
        cache, after, count = cache_of(upstream), None, 0
        while True:
            page = await read_page(cache, ask(["a"], MONTH), NOW, newest_first=True, limit=limit, after=after)
            count, after = count + page.unreadable, page.after
            if after is None:
                return count

    assert {asyncio.run(run(limit)) for limit in (1, 3, 1000)} == {10}


@pytest.mark.parametrize("calls", [0, 1])
@pytest.mark.parametrize("newest_first", [True, False])
def test_a_stream_counts_an_unreadable_record_of_two_extents_once(calls: int, newest_first: bool):
    upstream, middle = Upstream(), NOW - 5 * DAY
    upstream.published = [(0, call("2", middle - 1800))] * calls
    upstream.unreadable = [unreadable("1", middle - 60, latest=middle + 60)]  # each half may have it
    halves = Window(middle - 3600, middle), Window(middle, middle + 3600)

    async def run() -> int:
        cache = cache_of(upstream)
        for half in halves:
            await cache.read(ask(["a"], half))
        window = ask(["a"], Window(halves[0].start, halves[1].end))
        parts = [part async for part in stream(cache, window, NOW, 60, newest_first=newest_first)]
        assert len(upstream.posts) == 2
        return sum(len(part.unreadable) for part in parts)

    assert asyncio.run(run()) == 1


def test_what_has_gone_out_is_not_sent_again():
    border = NOW - ROWS.first
    upstream = Upstream()
    upstream.published = [(0, call("moved", border + 10))]

    async def run() -> list[Call]:
        parts = stream(cache_of(upstream), ask(["a"], MONTH), upstream.now, 60, newest_first=True)
        calls = (await anext(parts)).calls
        upstream.now += 1
        upstream.published = [(0, call("moved", border - 10))]
        return calls + [one async for part in parts for one in part.calls]

    assert len(asyncio.run(run())) == 1


def test_a_failure_in_the_middle_ends_the_stream_with_its_error():
    upstream = Upstream()
    upstream.published = scattered(9000)

    async def run() -> int:
        parts = stream(cache_of(upstream), ask(["a"], MONTH), upstream.now, 60, newest_first=True)
        seen = len((await anext(parts)).calls)
        upstream.failure = UpstreamFailed("gone")
        try:
            async for part in parts:
                seen += len(part.calls)
        except UpstreamError:
            return seen
        raise AssertionError("a clean end")

    assert 0 < asyncio.run(run()) < 9000


def test_an_export_pushes_out_what_it_stored_itself_and_not_what_is_used():
    upstream, draw = Upstream(), random.Random(1)
    upstream.published = [  # of texts that take almost as much memory packed
        (0, msgspec.structs.replace(one, other_data=draw.randbytes(500).hex())) for _, one in scattered(9000)
    ]
    dashboard = ask(["a"], Window(NOW - 2 * DAY, NOW - DAY))

    async def run() -> None:
        cache = cache_of(upstream, cache_bytes=2**21)
        for _ in range(2):
            await cache.read(dashboard)
        parts = stream(cache, ask(["a"], MONTH, one_shot=True), upstream.now, 60, newest_first=True)
        assert sum([len(part.calls) async for part in parts]) == 9000
        posts = len(upstream.posts)
        assert (await cache.read(dashboard)).lookup == "hit"
        assert len(upstream.posts) == posts
        assert (await cache.read(ask(["a"], Window(NOW - 5 * DAY, NOW - 4 * DAY)))).lookup != "hit"

    asyncio.run(run())


def odd(calls: Sequence[Call]) -> list[Call]:
    return [one for one in calls if int(one.id) % 2]


@pytest.mark.parametrize("newest_first", [True, False])
def test_filtered_pages_come_to_an_end_with_every_call_that_fits(newest_first: bool):
    upstream = Upstream()
    upstream.published = scattered(2000, 800 * DAY)
    question = ask(["a"], Window(NOW - 800 * DAY, NOW))

    async def run() -> list[Page]:
        cache, after = cache_of(upstream), None
        pages: list[Page] = []
        while not pages or after is not None:
            before = len(upstream.posts)
            page = await read_page(cache, question, NOW, newest_first=newest_first, limit=70, after=after, keep=odd)
            assert len(upstream.posts) - before <= MAX_PAGE_POSTS
            assert page.after != after
            after = page.after
            pages.append(page)
        return pages

    pages = asyncio.run(run())
    calls = [one for page in pages for one in page.calls]
    assert ids(calls) == ids(odd([one for _, one in upstream.published]))
    assert [one.start_time for one in calls] == sorted((one.start_time for one in calls), reverse=newest_first)


def test_a_page_on_which_nothing_fits_costs_no_more_than_8_posts():
    upstream = Upstream()
    upstream.published = scattered(9000, 3000 * DAY)
    question = ask(["a"], Window(NOW - 3000 * DAY, NOW))
    page = asyncio.run(
        read_page(cache_of(upstream), question, NOW, newest_first=True, limit=100, after=None, keep=lambda _: [])
    )
    assert (page.calls, len(upstream.posts)) == ([], MAX_PAGE_POSTS)
    assert page.after is not None


class Slow(Upstream):
    """An upstream whose POSTs take some seconds by its clock. It notes how long their readers wait."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.untils: list[float] = []

    async def __call__(self, codes: Sequence[str], window: Window, **changes: Any) -> Fetched:
        self.untils.append(changes["waiters"].until)
        fetched = await super().__call__(codes, window, **changes)
        self.now += self.seconds
        return msgspec.structs.replace(fetched, seconds=self.seconds)


def test_all_spans_of_a_count_have_the_deadline_of_the_request():
    upstream = Slow(0)

    async def run() -> float:
        deadline = asyncio.get_running_loop().time() + 1000
        async for _ in counted(cache_of(upstream), ask(["a"], MONTH, deadline=deadline), NOW):
            pass
        return deadline

    deadline = asyncio.run(run())
    assert len(upstream.untils) > 1
    assert set(upstream.untils) == {deadline - LEAD}


def test_the_first_span_of_a_stream_has_the_deadline_of_the_request():
    upstream = Slow(0)

    async def run() -> float:
        deadline = asyncio.get_running_loop().time() + 1000
        parts = stream(cache_of(upstream), ask(["a"], MONTH, deadline=deadline), NOW, 5000, newest_first=True)
        async for _ in parts:
            pass
        return deadline

    deadline = asyncio.run(run())
    assert upstream.untils[0] == deadline - LEAD
    assert all(until >= deadline + 3000 for until in upstream.untils[1:])


def test_no_post_is_sent_after_the_deadline_of_the_request():
    upstream = Upstream()

    async def run() -> None:
        deadline = asyncio.get_running_loop().time()
        with pytest.raises(UpstreamTimeout):
            await cache_of(upstream).read(ask(["a"], MONTH, deadline=deadline))

    asyncio.run(run())
    assert upstream.posts == []


def test_a_page_is_fresh_as_long_as_its_oldest_post_allows():
    upstream = Slow(48)
    upstream.published = [(0, call(str(day), NOW - 9 - day * DAY)) for day in range(30)]
    page = asyncio.run(
        read_page(cache_of(upstream), ask(["a"], MONTH), NOW, newest_first=True, limit=10, after=None)
    )  # fmt: skip
    assert len(upstream.posts) > 1
    assert (page.provenance.as_of, page.provenance.fresh_until) == (NOW, NOW + 15)


def test_a_long_post_says_nothing_about_how_long_the_latest_points_are_fresh():
    upstream = Slow(48)

    async def run() -> list[str]:
        cache = cache_of(upstream)
        await cache.read(ask(["a"], MONTH))  # 48 s, in one POST
        upstream.seconds = 1
        return [(await cache.read(ask(["a"], Window(NOW - 3600, NOW + 3600)))).lookup for _ in range(2)]

    assert asyncio.run(run()) == ["partial", "hit"]


def test_a_filter_judges_the_later_version():
    """An older version that matches is not sent in place of a newer version that does not match."""
    upstream = Upstream()
    upstream.published = [(0, call("7", NOW - 100_000, campaign="fits"))]
    question = ask(["a"], Window(NOW - 3 * DAY, NOW))

    async def run() -> Page:
        cache = cache_of(upstream)
        await cache.read(ask(["a"], Window(NOW - 2 * DAY, NOW - DAY)))
        upstream.now += 60
        upstream.published = [(0, call("7", NOW - 100, campaign="other"))]
        return await read_page(
            cache,
            question,
            upstream.now,
            newest_first=True,
            limit=10,
            after=None,
            keep=lambda calls: [one for one in calls if one.campaign == "fits"],
        )

    assert asyncio.run(run()).calls == []


@pytest.mark.parametrize("newest_first", [True, False])
def test_a_stream_of_every_client_begins_with_each_call_once_beside_later_extents_of_one_client(newest_first: bool):
    """The first span is cut after its first calls, while a later POST for one client covers only its middle."""
    window = Window(NOW - 3 * HOUR, NOW)
    upstream = Upstream()
    upstream.published = [(0, call(f"{n:04}", window.start + 20 * n, "b" if n % 2 else "a")) for n in range(540)]

    async def run() -> list[Call]:
        cache = cache_of(upstream)
        await cache.read(ask(["*"], window))
        upstream.now += 1
        await cache.read(ask(["a"], Window(NOW - 2 * HOUR, NOW - 2 * HOUR + 600), no_cache=True))
        parts = stream(cache, ask(["*"], window), upstream.now, 60, newest_first=newest_first)
        return [one async for part in parts for one in part.calls]

    calls = asyncio.run(run())
    assert len(upstream.posts) == 2
    assert ids(calls) == ids([one for _, one in upstream.published])
    starts = [one.start_time for one in calls]
    assert starts == sorted(starts, reverse=newest_first)
