"""The shared cache on a cluster of Valkey servers, and behind a Sentinel, while nodes die, hang and give slots away."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.support.certificates import Certificate
from tests.support.processes import free_port, wait_for, wait_in_loop_for
from tests.support.replicas import Replica, day_before, run, settled, two_gateways
from tests.support.servers import Cluster, Sentinel, Server, redis, running, valkey
from tests.support.upstream import LAST_HOUR, NOW, Upstream, call

CODES = [f"c{number}" for number in range(40)]  # in every slot that is used
EVERYTHING = sorted(f"{code}-{n}" for code in CODES for n in range(3))


def make_upstream() -> Upstream:
    upstream = Upstream()
    upstream.published = [(0, call(f"{code}-{n}", NOW - n * 60 - 9, code)) for code in CODES for n in range(3)]
    return upstream


def calls_of(codes: Sequence[str]) -> list[str]:
    return [one for one in EVERYTHING if one.partition("-")[0] in codes or "*" in codes]


async def is_hit(replica: Replica, upstream: Upstream, codes: Sequence[str]) -> bool:
    """Read codes with an empty level 1, and return whether level 2 had all."""
    replica.forget()
    posts = len(upstream.posts)
    assert await replica.read(codes, LAST_HOUR) == calls_of(codes)
    await settled(replica)
    return len(upstream.posts) == posts


async def until_hit(replica: Replica, upstream: Upstream, codes: Sequence[str]) -> None:
    """Read until level 2 has all again. Each answer is right meanwhile."""
    async with asyncio.timeout(120):
        while not await is_hit(replica, upstream, codes):
            pass


@pytest.mark.parametrize("program", [valkey, redis], ids=["Valkey", "Redis"])
def test_what_one_replica_fetched_serves_the_other_from_every_node(program: Callable[[], str]):
    upstream = make_upstream()

    async def work(cluster: Cluster) -> None:
        one = Replica(upstream, cluster.url)
        two = Replica(upstream, f"valkey+cluster://127.0.0.1:{cluster.servers[2].port}")  # one node leads to all
        assert await one.read(CODES, LAST_HOUR) == EVERYTHING
        await settled(one)
        assert len(upstream.posts) == 1
        assert await is_hit(two, upstream, CODES)
        assert await two.read(["*"], LAST_HOUR) == EVERYTHING
        await settled(two)
        assert await is_hit(one, upstream, ["*"])
        assert all(server.client.dbsize() > 10 for server in cluster.servers)
        for replica in (one, two):
            assert replica.metric("cache_shared_up") == 1
            await replica.close()

    with closing(Cluster(program())) as cluster:
        run(lambda: work(cluster))


@pytest.mark.parametrize(
    "full", ["no", "yes"], ids=["the other nodes answer", "no node answers without the killed one"]
)
def test_a_primary_killed_and_restarted_under_load_fails_no_answer(full: str):
    cluster = Cluster(valkey(), "--cluster-require-full-coverage", full)
    draw, killed, shown = random.Random(1), itertools.cycle(cluster.servers), dict[str, str]()
    with closing(cluster), two_gateways(cluster.url) as clients:
        for turn in range(180):
            if turn % 60 == 20:
                server = next(killed)
                server.kill()
            if turn % 60 == 40:
                server.start()
            path = f"/clients/800555{100 + draw.randrange(20):04}/calls?{day_before(60 + draw.randrange(25))}"
            found = {client.get(path).raise_for_status().text.split('"page"')[0] for client in clients}
            assert found == {shown.setdefault(path, next(iter(found)))}
        wait_for(cluster.is_whole, "the cluster is whole")
        unread = itertools.count(100)

        def is_whole(client: httpx.Client) -> bool:
            day = day_before(next(unread))
            for number in range(20):
                client.get(f"/clients/800555{100 + number:04}/calls?{day}").raise_for_status()
            return "callbutton_gateway_cache_shared_up 1.0" in client.get("/metrics").text

        for client in clients:
            wait_for(partial(is_whole, client), "it uses all nodes")
    with two_gateways("") as (alone, _):
        for path, text in shown.items():
            assert alone.get(path).text.split('"page"')[0] == text


def test_a_replica_that_takes_the_place_of_a_killed_primary_is_used_and_what_it_has_is_found():
    upstream = make_upstream()

    async def work(cluster: Cluster) -> None:
        first, *_, spare = cluster.servers
        lost = [code for code in CODES if cluster.owner(code) is first]
        kept = [code for code in CODES if code not in lost]
        replicas = [Replica(upstream, f"redis+cluster://127.0.0.1:{first.port}") for _ in range(2)]
        for replica in replicas:
            assert await replica.read(CODES, LAST_HOUR) == EVERYTHING
            await settled(replica)
        assert len(upstream.posts) == 1
        assert first.client.wait(1, 10_000) == 1  # the replica has all
        first.kill()
        assert await replicas[0].read(CODES, LAST_HOUR) == EVERYTHING
        assert await is_hit(replicas[1], upstream, kept)
        upstream.now += 0.001
        await wait_in_loop_for(lambda: spare.client.info("replication")["role"] == "master", "the replica takes over")
        for replica in replicas:
            await until_hit(replica, upstream, CODES)
            await replica.close()

    with closing(Cluster(valkey(), replica=True)) as cluster:
        run(lambda: work(cluster))


def test_slots_that_move_while_they_are_read_cost_no_answer_and_what_has_moved_is_found():
    upstream = make_upstream()

    async def work(cluster: Cluster) -> None:
        replicas = [Replica(upstream, cluster.url) for _ in range(2)]
        assert await replicas[0].read(CODES, LAST_HOUR) == EVERYTHING
        await settled(replicas[0])
        moving = True

        async def keep_reading(replica: Replica) -> int:
            reads = 0
            while moving:
                reads += 1
                await is_hit(replica, upstream, random.sample(CODES, 5))
            return reads

        readers = [asyncio.create_task(keep_reading(replica)) for replica in replicas]
        for code in CODES:
            others = [server for server in cluster.servers if server is not cluster.owner(code)]
            await asyncio.to_thread(cluster.move, code, random.choice(others))
        moving = False
        assert all(await asyncio.gather(*readers))
        for replica in replicas:
            await until_hit(replica, upstream, CODES)
            assert replica.metric("cache_shared_errors_total", operation="lookup", error="bug") == 0
            await replica.close()

    with closing(Cluster(valkey())) as cluster:
        run(lambda: work(cluster))


def test_a_slot_that_is_moving_is_a_miss_and_one_that_has_moved_is_followed():
    upstream = make_upstream()

    async def work(cluster: Cluster) -> None:
        replica = Replica(upstream, cluster.url)
        assert await replica.read(CODES, LAST_HOUR) == EVERYTHING
        await settled(replica)
        target = next(server for server in cluster.servers if server is not cluster.owner("c0"))
        cluster.move("c0", target, finish=False)
        assert not await is_hit(replica, upstream, ["c0"])  # the owner answers with ASK
        assert replica.metric("cache_shared_up") == 1
        cluster.finish_move("c0", target)
        assert await is_hit(replica, upstream, ["c0"])  # with MOVED
        assert await is_hit(replica, upstream, CODES)
        await replica.close()

    with closing(Cluster(valkey())) as cluster:
        run(lambda: work(cluster))


def test_a_node_that_hangs_costs_only_what_it_has():
    upstream = make_upstream()

    async def work(cluster: Cluster) -> None:
        first = cluster.servers[0]
        lost = [code for code in CODES if cluster.owner(code) is first]
        kept = [code for code in CODES if code not in lost]
        replica = Replica(upstream, cluster.url, timeout=1)
        assert await replica.read(CODES, LAST_HOUR) == EVERYTHING
        await settled(replica)
        first.stop()
        assert await replica.read(lost, LAST_HOUR) == calls_of(lost)
        for _ in range(20):
            assert not await is_hit(replica, upstream, lost)
            await until_hit(replica, upstream, kept)
        errors = sum(
            replica.metric("cache_shared_errors_total", operation=operation, error="timeout")
            for operation in ("lookup", "claim", "store", "release", "renew")
        )
        assert 1 <= errors < 50  # of several hundred commands: only those sent before the breaker opened, and probes
        first.resume()
        await until_hit(replica, upstream, CODES)
        await replica.close()

    with closing(Cluster(valkey())) as cluster:
        run(lambda: work(cluster))


def test_a_cluster_that_comes_later_is_used_then():
    upstream = make_upstream()

    async def work(cluster: Cluster) -> None:
        cluster.kill()
        replica = Replica(upstream, cluster.url)
        assert await replica.read(CODES, LAST_HOUR) == EVERYTHING
        assert replica.metric("cache_shared_up") == 0
        for server in cluster.servers:
            server.start()
        await until_hit(replica, upstream, CODES)
        assert replica.metric("cache_shared_up") == 1
        await replica.close()

    with closing(Cluster(valkey())) as cluster:
        run(lambda: work(cluster))


def test_a_cluster_is_reached_over_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    upstream, certificate = make_upstream(), Certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.cert))

    async def work(cluster: Cluster) -> None:
        one, two = Replica(upstream, cluster.url), Replica(upstream, cluster.url)
        assert await one.read(CODES, LAST_HOUR) == EVERYTHING
        await settled(one)
        assert await is_hit(two, upstream, CODES)
        await one.close()
        await two.close()

    with closing(Cluster(redis(), tls=certificate)) as cluster:
        run(lambda: work(cluster))


def test_the_primary_that_a_sentinel_names_is_used_also_after_a_failover():
    upstream = make_upstream()

    async def work(url: str, primary: Server, spare: Server) -> None:
        one, two = Replica(upstream, url), Replica(upstream, url)
        assert await one.read(CODES, LAST_HOUR) == EVERYTHING
        await settled(one)
        assert await is_hit(two, upstream, CODES)
        assert primary.client.info("keyspace").keys() == {"db1"}
        assert primary.client.wait(1, 10_000) == 1
        primary.kill()
        assert not await is_hit(two, upstream, CODES)
        await wait_in_loop_for(lambda: spare.client.info("replication")["role"] == "master", "the replica takes over")
        for replica in (one, two):
            await until_hit(replica, upstream, CODES)
            await replica.close()

    with (
        running(valkey(), password="p@ss") as primary,
        running(valkey(), "--replicaof", "127.0.0.1", str(primary.port), password="p@ss") as spare,
        closing(Sentinel(valkey(), primary, "p@ss")) as sentinel,
    ):
        wait_for(lambda: primary.client.info("replication")["connected_slaves"] == 1, "the replica is linked")
        wait_for(lambda: sentinel.client.sentinel_slaves("calls"), "the Sentinel knows the replica")
        hosts = f"127.0.0.1:{free_port()},127.0.0.1:{sentinel.port}"  # the first is down
        url = f"redis+sentinel://:p%40ss@{hosts}/calls/1?sentinel_password=p%40ss"
        run(lambda: work(url, primary, spare))
