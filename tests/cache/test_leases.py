"""Flights across replicas, by leases on real Redis and Valkey servers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import closing

import pytest

from gateway.cache import single_flight
from gateway.cache.leases import Leases
from gateway.errors import UpstreamError, UpstreamTimeout
from gateway.model import Window
from tests.support.replicas import Replica, run, slow, until
from tests.support.servers import Cluster, Server, redis, valkey
from tests.support.upstream import HOUR, LAST_HOUR, NOW, Faulty, Upstream, call

Read = asyncio.Task[list[str]]


async def lead_and_follow(one: Replica, two: Replica, upstream: Upstream) -> tuple[Read, Read]:
    """Start a read on one replica whose flight a read on the other waits for."""
    first = asyncio.create_task(one.read(["a"], LAST_HOUR))
    await until(lambda: len(upstream.posts) == 1)
    second = asyncio.create_task(two.read(["a"], LAST_HOUR))
    await until(lambda: two.metric("cache_shared_seconds_count", operation="claim") >= 1)
    return first, second


def test_a_store_that_crashes_leaves_nobody_waiting(server: Server):
    upstream = Upstream()
    upstream.published = [(0, call("1", NOW - 60, "a", "\ud800"))]  # half a character cannot be stored

    async def work() -> None:
        gate = slow(upstream)
        one, two = Replica(upstream, server.url), Replica(upstream, server.url)
        first, second = await lead_and_follow(one, two, upstream)
        gate.set()
        assert [await first, await second] == [["1"], ["1"]]
        assert len(upstream.posts) == 2
        await one.close()
        await two.close()

    run(work)


def busy(replica: Replica) -> bool:
    """Return whether all flights hold a claim and no need waits to be batched."""
    claims = replica.metric("cache_shared_seconds_count", operation="claim")
    return not replica.cache._single_flight._pending and claims >= replica.metric("batch_codes_count") > 0


def asked_of(replicas: Sequence[Replica]) -> float:
    """Return the number of planned reads."""
    return sum(
        one.metric("cache_lookups_total", result=kind) for one in replicas for kind in ("hit", "partial", "miss")
    )


@pytest.mark.parametrize(
    "make",
    [lambda: Server(valkey()), lambda: Server(redis()), lambda: Cluster(valkey())],
    ids=["Valkey", "Redis", "cluster"],
)
def test_the_same_herds_on_two_replicas_cost_at_most_one_post_more(
    make: Callable[[], Server | Cluster], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(single_flight, "COLLECT_TIME", 2)  # 50 ms are too short on a busy machine
    draw = random.Random(3)
    starts = [Window(NOW - draw.randrange(2, 30) * HOUR, NOW - draw.randrange(HOUR)) for _ in range(100)]
    herds = {
        "identical": [(("a",), LAST_HOUR)] * 300,
        "overlapping": [(("a",), window) for window in starts],
        "clients": [((f"c{number}",), LAST_HOUR) for number in range(50)],
    }

    async def herd(url: str, asked: Sequence[tuple[tuple[str, ...], Window]], replicas: int) -> int:
        upstream = Upstream()
        upstream.published = [(0, call(str(n), NOW - n * 600)) for n in range(1, 200)]
        gate, caches = slow(upstream), [Replica(upstream, url) for _ in range(replicas)]
        reads = [asyncio.create_task(one.read(*question)) for one in caches for question in asked]
        await until(lambda: bool(upstream.posts))
        await until(lambda: all(map(busy, caches)) and asked_of(caches) == len(reads))
        gate.set()
        for (_, window), found in zip(list(asked) * replicas, await asyncio.gather(*reads), strict=True):
            shown = [one.id for _, one in upstream.published if one.start_time.timestamp() in window]
            assert found == ([] if asked[0][0] != ("a",) else sorted(shown))
        for one in caches:
            await one.close()
        return len(upstream.posts)

    async def work(server: Server | Cluster) -> None:
        for name, asked in herds.items():
            server.client.flushall()
            alone = await herd(server.url, asked, 1)
            server.client.flushall()
            assert await herd(server.url, asked, 2) <= alone + 1, name

    with closing(make()) as server:
        run(lambda: work(server))


def test_a_holder_that_dies_costs_its_lease(server: Server):
    upstream = Upstream()
    upstream.published = [(0, call("1", NOW - 60))]

    async def work() -> None:
        gate = slow(upstream)
        one, two = Replica(upstream, server.url), Replica(upstream, server.url)
        first, second = await lead_and_follow(one, two, upstream)
        leases = one.cache._leases
        assert isinstance(leases, Leases)
        leases._held.clear()  # it stops renewing leases, as if it were dead
        await until(lambda: len(upstream.posts) == 2)
        gate.set()
        assert [await first, await second] == [["1"], ["1"]]
        await one.close()
        await two.close()

    run(work)


def test_who_waits_for_a_flight_that_fails_elsewhere_asks_on_its_own_account(server: Server):
    late = UpstreamTimeout("too late", answering=False)
    errors: list[UpstreamError | None] = [late]
    upstream = Faulty(lambda _, __: errors.pop() if errors else None)
    upstream.published = [(0, call("1", NOW - 60))]

    async def work() -> None:
        gate = slow(upstream)
        one, two = Replica(upstream, server.url), Replica(upstream, server.url)
        first, second = await lead_and_follow(one, two, upstream)
        gate.set()
        with pytest.raises(UpstreamTimeout):
            await first
        assert await second == ["1"]
        await one.close()
        await two.close()

    run(work)


def test_losing_the_server_while_waiting_for_another_replica_falls_back(server: Server):
    upstream = Upstream()
    upstream.published = [(0, call("1", NOW - 60))]

    async def work() -> None:
        gate = slow(upstream)
        one, two = Replica(upstream, server.url), Replica(upstream, server.url)
        first, second = await lead_and_follow(one, two, upstream)
        server.kill()
        await until(lambda: len(upstream.posts) == 2)
        gate.set()
        assert [await first, await second] == [["1"], ["1"]]
        await one.close()
        await two.close()

    run(work)


def test_a_flight_that_lands_while_a_read_waits_for_a_server_that_dies_is_not_sent_again(server: Server):
    upstream = Upstream()
    upstream.published = [(0, call("1", NOW - 60))]

    async def work() -> None:
        gate = slow(upstream)
        one = Replica(upstream, server.url)
        first = asyncio.create_task(one.read(["a"], LAST_HOUR))
        await until(lambda: len(upstream.posts) == 1)
        server.client.client_pause(60_000, all=False)  # scripts, but not CLIENT and INFO
        second = asyncio.create_task(one.read(["a"], LAST_HOUR))
        await until(lambda: server.client.info("clients")["blocked_clients"] == 1)
        gate.set()
        assert await first == ["1"]
        server.kill()
        assert await second == ["1"]
        await one.close()
        assert len(upstream.posts) == 1

    run(work)
