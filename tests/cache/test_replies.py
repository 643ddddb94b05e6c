"""What makes replies comparable: doubts, inferred readings and known statuses."""

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from gateway.cache.client_profiles import ClientProfiles
from gateway.cache.extents import make_extent
from gateway.cache.replies import Replies
from gateway.callbutton.client import Fetched
from gateway.callbutton.record import NO_STATUS
from gateway.model import Call, CallStatus, SalesStatus, StartTimeCertainty, Window
from gateway.slices import finish
from tests.support.loops import settle
from tests.support.upstream import DAY, HOUR, LAST_HOUR, NOW, Upstream, ask, cache_of, call, ids, unreadable

FOLD = 1_793_512_800  # 2026-11-01T06:00:00Z, when wall 01:00 comes for the first time
REVIEWED = CallStatus(reviewed=True, sales=SalesStatus.NONE, journal=None)


def make_replies() -> Replies:
    return Replies(ClientProfiles(31 * DAY, 50), wait=15)


@pytest.mark.parametrize(("held", "kept", "doubted"), [(40, 19, True), (40, 20, False), (21, 1, True), (19, 0, False)])
def test_a_reply_that_loses_much_is_doubted_until_another_agrees(held: int, kept: int, doubted: bool):
    upstream = Upstream()
    every: list[tuple[float, Call]] = [(0, call(str(number), NOW - number - 1)) for number in range(held)]
    upstream.published = every

    async def run() -> None:
        cache = cache_of(upstream)
        question = ask(["a"], Window(NOW - 3600, NOW))
        await cache.read(question)
        upstream.published = every[:kept]
        upstream.now += 1000
        first = await cache.read(question)
        assert (len(first.calls), first.stale) == ((held, True) if doubted else (kept, False))
        upstream.now += 14
        assert len((await cache.read(question)).calls) == (held if doubted else kept)
        upstream.now += 16
        last = await cache.read(question)
        assert (len(last.calls), last.stale) == (kept, False)

    asyncio.run(run())


def test_a_reply_that_has_the_calls_again_ends_the_doubt():
    upstream = Upstream()
    every: list[tuple[float, Call]] = [(0, call(str(number), NOW - number - 1)) for number in range(40)]

    async def run() -> None:
        cache = cache_of(upstream)
        question = ask(["a"], LAST_HOUR, no_cache=True)
        for published, expected in ((every, 40), ([], 40), (every, 40), ([], 40), ([], 0)):
            upstream.published = published
            assert len((await cache.read(question)).calls) == expected
            upstream.now += 20

    asyncio.run(run())


def test_a_doubt_does_not_outlast_a_clock_that_is_set_back():
    upstream = Upstream()
    upstream.published = [(0, call(str(number), NOW - number - 1)) for number in range(40)]

    async def run() -> list[int]:
        cache, found = cache_of(upstream), []
        for later in (0, DAY, DAY - HOUR):
            upstream.now = NOW + later
            found.append(len((await cache.read(ask(["a"], LAST_HOUR, no_cache=True))).calls))
            upstream.published = []
        return found

    assert asyncio.run(run()) == [40, 40, 0]


def test_an_assumed_reading_does_not_replace_an_inferred_one_of_the_same_wall_time():
    window = Window(FOLD - 3600, FOLD + 10_800)
    known = msgspec.structs.replace(call("1", FOLD + 3600 + 60), start_time_certainty=StartTimeCertainty.INFERRED)
    moved = msgspec.structs.replace(call("2", FOLD + 120), start_time_certainty=StartTimeCertainty.INFERRED)
    held = make_extent(window, 1.0, [known, moved])
    guessed = [
        msgspec.structs.replace(call("1", FOLD + 60, campaign="new"), start_time_certainty=StartTimeCertainty.ASSUMED),
        msgspec.structs.replace(call("2", FOLD + 240), start_time_certainty=StartTimeCertainty.ASSUMED),
    ]
    new, _ = finish(make_replies().compare(make_extent(window, 2.0, guessed), [held], status=False))
    second, first = new.calls
    assert (first.start_time, first.start_time_certainty, first.campaign) == (known.start_time, "inferred", "new")
    assert second == guessed[1]  # another wall time: it was moved


def test_whether_the_upstream_knows_the_status_is_learned_by_client():
    replies, with_status = make_replies(), msgspec.structs.replace(call("1", NOW - 60), status=REVIEWED)
    quiet = make_extent(LAST_HOUR, 2.0, [call("2", NOW - 50)])
    assert finish(replies.compare(quiet, [], status=True))[0].calls[0].status is None
    held = make_extent(LAST_HOUR, 1.0, [with_status])
    finish(replies.compare(held, [], status=True))
    assert finish(replies.compare(quiet, [held], status=True))[0].calls[0].status == NO_STATUS
    ignored = make_extent(LAST_HOUR, 3.0, [call("1", NOW - 60), call("2", NOW - 50)])
    assert [one.status for one in finish(replies.compare(ignored, [held], status=True))[0].calls] == [None, None]


def test_later_extents_of_single_clients_overlay_those_of_every_client():
    upstream = Upstream()
    upstream.published = [(0, call("1", NOW - 7200)), (0, call("2", NOW - 7100, "b"))]
    upstream.unreadable = [
        unreadable("before", NOW - 9001), unreadable("gone", NOW - 7200), unreadable("of b", NOW - 7200, "b"),
    ]  # fmt: skip

    async def run() -> None:
        cache = cache_of(upstream)
        window = Window(NOW - DAY, NOW)
        await cache.read(ask(["*"], window))
        upstream.published = [(0, call("3", NOW - 7000)), (0, call("4", NOW - 6900, "b"))]
        upstream.unreadable = [unreadable("new", NOW - 7200)]
        upstream.now += 1
        await cache.read(ask(["a"], Window(NOW - 9000, NOW), no_cache=True))
        reading = await cache.read(ask(["*"], window))
        assert ids(reading.calls) == ["2", "3"]
        found = [record.id for extent in reading.extents for record in extent.unreadable]
        assert sorted(found) == ["before", "new", "of b"]

    asyncio.run(run())
    assert len(upstream.posts) == 2


class Losing(Upstream):
    """An upstream whose replies with status, or to `*`, list a client without calls while it `loses`."""

    loses = False

    async def __call__(self, codes: Sequence[str], window: Window, *, status: bool, **terms: Any) -> Fetched:
        fetched = await super().__call__(codes, window, status=status, **terms)
        if self.loses and (status or "*" in codes):
            return msgspec.structs.replace(fetched, calls={code: [] for code in fetched.calls})
        return fetched


@pytest.mark.parametrize(("code", "status"), [("a", True), ("*", False), ("*", True)])
def test_a_reply_of_another_kind_that_loses_much_is_doubted_too(code: str, status: bool):
    """One with status replaces those without, and one of every client those of the clients that it lists."""
    upstream = Losing()
    upstream.published = [(0, call(str(number), NOW - number - 1)) for number in range(40)]

    async def run() -> list[int]:
        cache = cache_of(upstream)
        found = []
        await cache.read(ask(["a"], LAST_HOUR))
        upstream.loses = True
        for _ in range(2):
            upstream.now += 16
            await cache.read(ask([code], LAST_HOUR, status=status, no_cache=True))
            held = await cache.held(ask(["a"], LAST_HOUR))
            found.append(sum(len(extent.calls) for extent in held))
        return found

    assert asyncio.run(run()) == [40, 0]


def test_a_read_without_status_does_not_rest_on_a_doubted_reply_with_status_that_it_waited_for():
    upstream = Losing()
    upstream.published = [(0, call(str(number), NOW - number - 1)) for number in range(40)]

    async def run() -> int:
        cache = cache_of(upstream)
        await cache.read(ask(["a"], LAST_HOUR))
        upstream.loses, upstream.gate = True, asyncio.Event()
        upstream.now += 16
        reads = [cache.read(ask(["a"], LAST_HOUR, status=status, no_cache=True)) for status in (True, False)]
        waiting = asyncio.gather(*reads)
        await settle()
        assert len(upstream.posts) == 2
        upstream.gate.set()
        _, plain = await waiting
        return len(plain.calls)

    assert asyncio.run(run()) == 40
    assert len(upstream.posts) == 3


@pytest.mark.parametrize(("code", "status"), [("a", True), ("*", False)])
def test_an_inferred_reading_outlasts_an_assumed_one_of_a_reply_of_another_kind(code: str, status: bool):
    inferred = msgspec.structs.replace(call("1", FOLD + 3660), start_time_certainty=StartTimeCertainty.INFERRED)
    assumed = msgspec.structs.replace(call("1", FOLD + 60), start_time_certainty=StartTimeCertainty.ASSUMED)
    upstream = Upstream()
    upstream.now = FOLD + 10 * HOUR
    upstream.published = [(0, inferred)]
    window = Window(FOLD - HOUR, FOLD + 3 * HOUR)

    async def run() -> Sequence[Call]:
        cache = cache_of(upstream)
        await cache.read(ask(["a"], window))
        upstream.published = [(0, assumed)]
        upstream.now += 1
        await cache.read(ask([code], window, status=status, no_cache=True))
        return (await cache.read(ask(["a"], window))).calls

    (found,) = asyncio.run(run())
    assert (found.start_time, found.start_time_certainty) == (inferred.start_time, "inferred")
    assert len(upstream.posts) == 2
