"""Token buckets, alone and synchronised between two replicas through a real Valkey server."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry

from gateway import app
from gateway.access import Key, Kind, Rate
from gateway.errors import Overloaded, RateLimited
from gateway.memory import Memory
from gateway.metrics import Metrics
from gateway.rate_sync import RateSync
from gateway.rates import PART, RateLimiter, Shares, TokenBucket, Turns, policy_header, remaining_header
from gateway.redis_client import RedisClient
from gateway.settings import Settings
from tests.support.consumers import Member, keys_file
from tests.support.loops import settle
from tests.support.processes import wait_for
from tests.support.servers import Cluster, Server, valkey
from tests.support.stand import NOW, Clock, serving

TEN = Rate(10, 10)


def key(name: str = "a", kind: Kind = Kind.KEY) -> Key:
    return kind, name


def take(rates: RateLimiter, who: Key, now: float, times: int, rate: Rate = TEN) -> int:
    return sum(rates.bucket(who, rate, now).take(now) for _ in range(times))


def test_a_bucket_is_full_at_first_and_fills_evenly():
    rates = RateLimiter()
    assert take(rates, key(), NOW, 15) == 10
    assert take(rates, key(), NOW + 0.9, 5) == 0
    assert take(rates, key(), NOW + 3, 5) == 3
    assert take(rates, key(), NOW + 1000, 15) == 10
    assert take(rates, key("b"), NOW, 15) == 10


def test_over_any_time_no_more_goes_than_a_full_bucket_and_what_time_brings():
    rates = RateLimiter()
    gone = sum(take(rates, key(), NOW + step / 7, 1) for step in range(700))
    assert 10 + 99 <= gone <= 10 + 100


def test_a_clock_that_goes_back_neither_gives_nor_takes():
    bucket = TokenBucket(Rate(10, 10), 5, NOW)
    bucket.refill(NOW - 3600)
    assert bucket.tokens == 5
    bucket.refill(NOW - 3599)
    assert bucket.tokens == 6


def test_a_changed_rate_keeps_the_share_that_was_left():
    rates = RateLimiter()
    assert take(rates, key(), NOW, 5) == 5
    assert take(rates, key(), NOW, 200, Rate(100, 10)) == 50


def test_buckets_are_bounded():
    memory = Memory(2**20)
    rates = RateLimiter(memory)
    for number in range(10_000):
        rates.bucket(key(str(number)), TEN, NOW)
    assert 0 < memory.size <= PART * memory.bound
    spent = rates.take_spent()
    assert (spent[-1][0][1], len(spent) < 500) == ("9999", True)


def test_the_fields_say_what_is_left_and_when_nothing_is_missing():
    bucket = TokenBucket(Rate(10, 60), 10, NOW)
    assert (policy_header(bucket.rate), remaining_header(bucket)) == (b'"requests";q=10;w=60', b'"requests";r=10;t=0')
    bucket.take(NOW)
    assert remaining_header(bucket) == b'"requests";r=9;t=6'
    bucket.tokens = -3
    assert remaining_header(bucket) == b'"requests";r=0;t=78'
    assert bucket.seconds_until_token() == 24


def fill(shares: Shares, who: Key, amount: int = 1) -> list[Callable[[], None]]:
    """Take parts until one is refused."""
    taken = []
    with suppress(RateLimited, Overloaded):
        while True:
            taken.append(shares.take(who, amount))
    return taken


@pytest.mark.parametrize(("share", "held"), [(0.5, 501), (0.1, 101), (0.9, 900), (1.0, 1000)])
def test_one_consumer_alone_holds_its_share(share: float, held: int):
    shares = Shares("requests", "requests", 1000, share)
    assert abs(len(fill(shares, key())) - held) <= 1
    with pytest.raises(Overloaded if share == 1 else RateLimited):
        shares.take(key())


def test_several_consumers_hold_equal_parts_and_the_next_has_room():
    shares = Shares("requests", "requests", 1000, 0.5)
    names = [key(name, kind) for name in ("oidc", "b") for kind in Kind]
    held = {name: fill(shares, name) for name in names}
    for _ in range(50):  # each releases its parts in turn, then takes as many as it may
        for name in names:
            for give_back in held[name]:
                give_back()
            held[name] = fill(shares, name)
    assert all(abs(len(parts) - 1000 / 7) < 20 for parts in held.values()), [len(parts) for parts in held.values()]
    shares.take(key("newcomer"))


def test_a_consumer_may_always_hold_one_part_however_large():
    shares = Shares("bytes", "unread", 100, 0.5)
    give_back = shares.take(key(), 10_000)
    with pytest.raises(Overloaded):
        shares.take(key("b"))
    give_back()
    shares.take(key("b"), 10_000)


def test_a_consumer_holds_at_most_a_number_of_parts_and_gets_them_back():
    exports = Shares("exports", "exports", 100, 0.5, most=2, retry_after=10)
    first, second = exports.take(key()), exports.take(key())
    with pytest.raises(RateLimited, match="has 2 exports in progress"):
        exports.take(key())
    exports.take(key(kind=Kind.TOKEN))
    first()
    second()
    assert len(fill(exports, key())) == 2


def test_turns_go_in_rotation_one_in_each_iteration_of_the_loop():
    turns, order = Turns(1, most=1), []

    async def work(name: str) -> None:
        async with turns.turn(key(name)):
            order.append(name)

    async def run() -> None:
        many = [asyncio.create_task(work("many")) for _ in range(6)]
        await asyncio.sleep(0)
        assert order == ["many"]  # the others wait for the next iterations
        few = [asyncio.create_task(work("few")) for _ in range(2)]
        await asyncio.gather(*many, *few)

    asyncio.run(run())
    assert order[order.index("few") :][:3] == ["few", "many", "few"]
    assert order[-2:] == ["many", "many"]


def test_a_consumer_has_a_part_of_the_turns_and_a_wait_may_be_refused_or_cancelled():
    turns = Turns(4, most=2)
    ended = asyncio.Event()
    working: list[str] = []

    async def work(name: str) -> None:
        async with turns.turn(key(name)):
            working.append(name)
            await ended.wait()

    def refuse() -> None:
        raise RateLimited("too many", "requests", 1)

    async def run() -> None:
        tasks = [asyncio.create_task(work(name)) for name in "aaaabb"]
        await settle()
        assert "".join(sorted(working)) == "aabb"
        with pytest.raises(RateLimited):
            async with turns.turn(key("c"), refuse):
                raise AssertionError("it has a turn")
        tasks[2].cancel()
        tasks.append(asyncio.create_task(work("c")))
        await settle()
        assert len(working) == 4
        ended.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert "".join(sorted(working)) == "aaabbc"
        async with asyncio.timeout(30), turns.turn(key("a")), turns.turn(key("a")):
            pass  # every place was given back

    asyncio.run(run())


@pytest.mark.parametrize("make", [Server, Cluster])
def test_replicas_keep_their_buckets_in_step_and_do_without_when_the_server_is_gone(
    make: Callable[[str], Server | Cluster],
):
    server = make(valkey())
    clock = Clock()

    async def run() -> None:
        shareds = [RedisClient(server.url, Metrics(CollectorRegistry()), clock, skew=float("inf")) for _ in range(2)]
        try:
            await in_step(server, clock, shareds)
        finally:
            for shared in shareds:
                await shared.close()

    try:
        asyncio.run(run())
    finally:
        server.close()


async def in_step(server: Server | Cluster, clock: Clock, shareds: list[RedisClient]) -> None:
    rates = [RateLimiter(), RateLimiter()]
    tallies = [RateSync(one, shared, clock) for one, shared in zip(rates, shareds, strict=True)]
    who = key()

    async def exchange() -> None:
        for _ in range(2):  # the second round passes the second replica's tally to the first
            for tally in tallies:
                await tally.exchange()

    assert [take(one, who, clock.now, 1) for one in rates] == [1, 1]
    await exchange()
    assert take(rates[0], who, clock.now, 6) == 6
    await exchange()
    # The first replica counts 1 + 6 + 1 of 10. The second joined after the first 1 was spent, so it counts 6 + 1.
    assert [take(one, who, clock.now, 10) for one in rates] == [2, 3]
    await exchange()
    clock.now += 3  # the first owes 3, the second 2
    assert [take(one, who, clock.now, 10) for one in rates] == [0, 1]
    clock.now += 2
    assert [take(one, who, clock.now, 10) for one in rates] == [2, 2]
    server.kill()
    for tally in tallies:
        await tally.exchange()
    clock.now += 100
    assert [take(one, who, clock.now, 20) for one in rates] == [10, 10]


def test_what_is_spent_at_one_gateway_is_missing_at_another(tmp_path: Path):
    member = Member("spender", rate="100000/day")
    server = Server(valkey())
    settings = Settings(
        upstream_url="http://127.0.0.1:9/xml.jsp",
        keys_file=keys_file(tmp_path, member),
        cache_url=server.url,
        log_level="error",
    )
    try:
        with (
            serving(app.create(settings)) as one,
            serving(app.create(settings)) as other,
            httpx.Client(timeout=60) as client,
        ):
            asked = 0

            def missing() -> bool:
                nonlocal asked
                asked += 1
                for port in (one, other):
                    answer = client.get(f"http://127.0.0.1:{port}/clients/1/calls", headers=member.headers)
                found = re.match(r'"requests";r=(\d+);', answer.headers["ratelimit"])
                assert found is not None
                return 100_000 - int(found[1]) - asked > 0

            wait_for(missing, "requests at one gateway are debited at the other")
    finally:
        server.close()
