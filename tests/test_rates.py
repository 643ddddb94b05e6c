"""Token buckets, alone and synchronised between two replicas through a real Valkey server."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry

from gateway import app
from gateway.access import ANONYMOUS, Consumer, Rate
from gateway.errors import RateLimited
from gateway.memory import Memory
from gateway.metrics import Metrics
from gateway.rate_sync import RateSync
from gateway.rates import PART, ExportLimiter, RateLimiter, TokenBucket, policy_header, remaining_header
from gateway.redis_client import RedisClient
from gateway.settings import Settings
from tests.support.consumers import Member, keys_file
from tests.support.processes import wait_for
from tests.support.servers import Server, valkey
from tests.support.stand import NOW, Clock, serving


def consumer(name: str = "a", rate: Rate | None = Rate(10, 10)) -> Consumer:  # noqa: B008 - it is frozen
    return Consumer(name=name, clients=("*",), scopes=frozenset(), rate=rate, label=name)


def take(rates: RateLimiter, who: Consumer, now: float, times: int) -> int:
    return sum(rates.bucket(who, now).take(now) for _ in range(times))


def test_a_bucket_is_full_at_first_and_fills_evenly():
    rates = RateLimiter()
    assert take(rates, consumer(), NOW, 15) == 10
    assert take(rates, consumer(), NOW + 0.9, 5) == 0
    assert take(rates, consumer(), NOW + 3, 5) == 3
    assert take(rates, consumer(), NOW + 1000, 15) == 10
    assert take(rates, consumer("b"), NOW, 15) == 10


def test_over_any_time_no_more_goes_than_a_full_bucket_and_what_time_brings():
    rates = RateLimiter()
    gone = sum(take(rates, consumer(), NOW + step / 7, 1) for step in range(700))
    assert 10 + 99 <= gone <= 10 + 100


def test_a_clock_that_goes_back_neither_gives_nor_takes():
    bucket = TokenBucket(Rate(10, 10), 5, NOW)
    bucket.refill(NOW - 3600)
    assert bucket.tokens == 5
    bucket.refill(NOW - 3599)
    assert bucket.tokens == 6


def test_a_changed_rate_keeps_the_share_that_was_left():
    rates = RateLimiter()
    assert take(rates, consumer(), NOW, 5) == 5
    assert take(rates, consumer(rate=Rate(100, 10)), NOW, 200) == 50


def test_buckets_are_bounded():
    memory = Memory(2**20)
    rates = RateLimiter(memory)
    for number in range(10_000):
        rates.bucket(consumer(str(number)), NOW)
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


def test_exports_are_counted_for_each_consumer_and_end():
    exports = ExportLimiter(1)
    end = exports.begin(consumer())
    with pytest.raises(RateLimited):
        exports.begin(consumer())
    exports.begin(consumer("b"))
    for _ in range(3):
        exports.begin(ANONYMOUS)
    end()
    exports.begin(consumer())
    with pytest.raises(RateLimited):
        exports.begin(consumer())


def test_replicas_keep_their_buckets_in_step_and_do_without_when_the_server_is_gone():
    server = Server(valkey())
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


async def in_step(server: Server, clock: Clock, shareds: list[RedisClient]) -> None:
    rates = [RateLimiter(), RateLimiter()]
    tallies = [RateSync(one, shared, clock) for one, shared in zip(rates, shareds, strict=True)]
    who = consumer()

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
        with serving(app.create(settings)) as one, serving(app.create(settings)) as other, httpx.Client() as client:
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
