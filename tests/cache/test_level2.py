"""Level 2 and flights across replicas, on real Redis and Valkey servers."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import httpx
import msgspec
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from gateway import app
from gateway.cache import single_flight
from gateway.cache.extents import make_extent, make_extent_of_all
from gateway.cache.freshness import Rule
from gateway.cache.leases import Leases
from gateway.cache.level2 import LAYOUT, Found, pack, unpack
from gateway.cache.reader import Cache, CacheSettings
from gateway.errors import UpstreamError, UpstreamTimeout
from gateway.metrics import Metrics
from gateway.model import EVERY_CLIENT, Address, SalesStatus, Status, Window
from gateway.redis_client import TIMEOUT, RedisClient, Unavailable, make_script
from gateway.settings import Settings
from gateway.simulator.server import PATH, Options, create
from tests.support.processes import wait_for, wait_in_loop_for
from tests.support.servers import Server, redis, running, server, valkey
from tests.support.stand import serving
from tests.support.upstream import DAY, NOW, Faulty, Upstream, ask, call, ids

__all__ = ["server"]  # a fixture
HOUR = 3600
LAST_HOUR = Window(NOW - HOUR, NOW)
ANY = float("inf")  # the clock of an upstream that is a function is not the server's


class Replica:
    """A cache with a connection of its own, as a process of its own would have."""

    def __init__(self, upstream: Upstream, url: str, patience: float = 10, **changes: Any) -> None:
        self.registry = CollectorRegistry()
        metrics = Metrics(self.registry)
        values: dict[str, Any] = {"max_span": 31 * DAY, "batch": 50, "cache_bytes": 2**28} | changes
        rules = CacheSettings(plain=Rule(), with_status=Rule(ratio=0.01), stale_if_error=DAY, **values)
        self.shared = RedisClient(url, metrics, lambda: upstream.now, ANY, timeout=patience)
        self.cache = Cache(upstream, rules, metrics, lambda: upstream.now, self.shared)

    async def read(self, codes: Sequence[str], window: Window, **changes: Any) -> list[str]:
        return ids((await self.cache.read(ask(codes, window, **changes))).calls)

    async def close(self) -> None:
        await self.cache.close()
        await self.shared.close()

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"callbutton_gateway_{name}", labels) or 0.0


async def settled(*replicas: Replica) -> None:
    """Let everything be stored."""
    for replica in replicas:
        await replica.cache.close()


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 60))


def test_an_extent_is_what_it_was_after_packing():
    address = Address(
        first_name="A", middle_initial=None, last_name=None, street="1 Road", secondary=None, city=None, state="IL",
        zip="02134", zip4=None,
    )  # fmt: skip
    status = Status(reviewed=True, sales=SalesStatus.MADE_SALE, journal="é")
    full = msgspec.structs.replace(
        call("1", NOW - 60), address=address, status=status, ani="0012", extra={"X.Y": "1\n2"}
    )
    extent = make_extent(LAST_HOUR, NOW + 0.123456, [full, call("2", NOW - 50)], 3)
    assert unpack("a", pack("a", extent, status=True)) == (True, extent)
    every = make_extent_of_all(LAST_HOUR, NOW + 0.5, {"a": [full], "b": []}, 1)
    assert unpack(EVERY_CLIENT, pack(EVERY_CLIENT, every, status=False)) == (False, every)
    assert (
        len(pack("a", make_extent(LAST_HOUR, 1.0, [call(str(n), NOW - n - 1) for n in range(100)]), status=False))
        < 6000
    )


@pytest.mark.parametrize(
    "other", [b"", b"garbage", b"\xc1", msgspec.msgpack.encode([1, 2]), msgspec.msgpack.encode({})]
)
def test_what_is_not_an_extent_is_none(other: bytes):
    assert unpack("a", other) is None


def test_an_extent_of_another_client_or_of_no_time_is_none():
    extent = make_extent(LAST_HOUR, 1.0, [])
    assert unpack("b", pack("a", extent, status=False)) is None
    for window, sent in ((Window(5, 5), 1.0), (Window(5, 2**60), 1.0), (LAST_HOUR, float("nan")), (LAST_HOUR, -1.0)):
        other = msgspec.structs.replace(extent, window=window, sent=sent)
        assert unpack("a", pack("a", other, status=False)) is None


@given(st.binary(max_size=200), st.integers(0, 400), st.integers(0, 255))
def test_no_bytes_do_more_than_not_be_read(garbage: bytes, place: int, byte: int):
    good = pack("a", make_extent(LAST_HOUR, NOW + 0.5, [call("1", NOW - 60)]), status=True)
    spoiled = good[: place % len(good)] + bytes([byte]) + good[place % len(good) + 1 :]
    for value in (garbage, spoiled, good[: place % len(good)]):
        if (found := unpack("a", value)) is not None:
            assert all(one.start_time.timestamp() in found[1].window for one in found[1].calls)


def test_a_store_that_crashes_leaves_nobody_waiting(server: Server):
    upstream = Upstream()
    upstream.published = [(0, call("1", NOW - 60, "a", "\ud800"))]  # half a character cannot be stored

    async def work() -> None:
        gate = slow(upstream)
        one, two = Replica(upstream, server.url), Replica(upstream, server.url)
        first = asyncio.create_task(one.read(["a"], LAST_HOUR))
        await until(lambda: len(upstream.posts) == 1)
        second = asyncio.create_task(two.read(["a"], LAST_HOUR))
        await until(lambda: two.metric("cache_shared_seconds_count", operation="claim") >= 1)
        gate.set()
        assert [await first, await second] == [["1"], ["1"]]
        assert len(upstream.posts) == 2
        await one.close()
        await two.close()

    run(work)


@pytest.mark.parametrize("program", [valkey, redis], ids=["Valkey", "Redis"])
def test_what_one_replica_fetched_serves_the_other(program: Callable[[], str]):
    upstream = Upstream()
    upstream.published = [(0, call(str(day), NOW - day * DAY - 60)) for day in range(40)]
    window = Window(NOW - 100 * DAY, NOW)

    async def work(url: str) -> None:
        one, two = Replica(upstream, url), Replica(upstream, url)
        expected = await one.read(["a"], window)
        posts = len(upstream.posts)
        await settled(one)
        reading = await two.cache.read(ask(["a"], window))
        assert ids(reading.calls) == expected == ids([found for _, found in upstream.published])
        assert (reading.lookup, len(upstream.posts)) == ("hit", posts)
        asked = two.metric("cache_shared_seconds_count", operation="lookup")
        assert await two.read(["a"], window) == expected  # of level 1 now
        assert two.metric("cache_shared_seconds_count", operation="lookup") == asked == 1
        await one.close()
        await two.close()

    with running(program()) as server:
        run(lambda: work(server.url))


def test_the_later_post_wins_for_each_point_whatever_the_order_of_storing(server: Server):
    upstream = Upstream()
    versions = [call("1", NOW - 600, campaign=str(number)) for number in range(4)]
    windows = [LAST_HOUR, Window(NOW - 1200, NOW), Window(NOW - HOUR, NOW - 900), LAST_HOUR]
    extents = [make_extent(w, NOW + n, [v]) for n, (w, v) in enumerate(zip(windows, versions, strict=True))]

    async def work() -> None:
        draw = random.Random(5)
        for _ in range(12):
            server.client.flushall()
            replica = Replica(upstream, server.url)
            level2 = replica.cache._level2
            assert level2 is not None
            order = draw.sample(range(3), 3) if draw.random() < 0.5 else draw.sample(range(4), 4)
            for number in order:
                await level2.store([Found("a", False, extents[number])])
            upstream.now = NOW + 4
            reading = await replica.cache.read(ask(["a"], LAST_HOUR))
            latest = max(number for number in order if NOW - 600 in windows[number])
            assert [one.campaign for one in reading.calls] == [str(latest)]
            if 3 in order:  # the last covers all others
                assert [len(server.client.hkeys(key)) for key in server.client.keys("*:a:*")] == [1]
            await replica.close()
        assert upstream.posts == []

    run(work)


def test_plain_reads_may_rest_on_extents_with_status_and_not_the_other_way_round(server: Server):
    upstream = Upstream()

    async def work() -> None:
        one, two, three = (Replica(upstream, server.url) for _ in range(3))
        await one.read(["a"], LAST_HOUR)
        await settled(one)
        await two.read(["a"], LAST_HOUR, status=True)
        assert len(upstream.posts) == 2
        await settled(two)
        assert server.client.hlen(*server.client.keys("*:a:*")) == 1  # it replaced the plain one
        await three.read(["a"], LAST_HOUR)
        assert len(upstream.posts) == 2
        for replica in (one, two, three):
            await replica.close()

    run(work)


def test_extents_of_every_client_are_shared_too(server: Server):
    upstream = Upstream()
    upstream.published = [(0, call("1", NOW - 60, "a")), (0, call("2", NOW - 90, "b"))]

    async def work() -> None:
        one, two = Replica(upstream, server.url), Replica(upstream, server.url)
        assert await one.read(["*"], LAST_HOUR) == ["1", "2"]
        await settled(one)
        assert await two.read(["*"], LAST_HOUR) == ["1", "2"]
        assert await two.read(["b"], LAST_HOUR) == ["2"]
        assert len(upstream.posts) == 1
        await one.close()
        await two.close()

    run(work)


def test_what_is_evicted_costs_a_post_and_no_call(server: Server):
    upstream = Upstream()
    upstream.published = [(0, call(f"{code}{n}", NOW - n * HOUR - 9, code)) for n in range(48) for code in "abcdef"]
    window = Window(NOW - 2 * DAY, NOW)

    async def work() -> None:
        draw = random.Random(7)
        for _ in range(4):
            one = Replica(upstream, server.url)
            for code in "abcdef":
                assert len(await one.read([code], window)) == 48
            await one.close()
            for key in server.client.keys("*"):  # any part of it may be gone
                fields = server.client.hkeys(key) if server.client.type(key) == b"hash" else []
                server.client.delete(key) if draw.random() < 0.3 else None
                if fields and draw.random() < 0.5:
                    server.client.hdel(key, draw.choice(fields))

    run(work)


def test_a_server_that_evicts_under_load_costs_no_call():
    upstream = Upstream()
    codes = [f"c{number}" for number in range(40)]
    upstream.published = [
        (0, call(f"{code}-{n}", NOW - n * 600 - 9, code, "x" * 400)) for n in range(140) for code in codes
    ]
    window = Window(NOW - DAY + 2000, NOW)

    async def work(server: Server) -> None:
        one, two = Replica(upstream, server.url, cache_bytes=50_000), Replica(upstream, server.url, cache_bytes=50_000)
        for turn in range(3):
            for code in codes:
                assert len(await (one if turn % 2 else two).read([code], window)) == 140
            await settled(one, two)
        assert server.client.info("stats")["evicted_keys"] > 0
        await one.close()
        await two.close()

    with running(valkey(), "--maxmemory", "2mb", "--maxmemory-policy", "allkeys-lru") as server:
        run(lambda: work(server))


def test_a_full_server_that_evicts_nothing_is_read_and_costs_no_call():
    upstream = Upstream()
    upstream.published = [(0, call(str(n), NOW - n * 60 - 9, "a", "x" * 900)) for n in range(60)]

    async def work(server: Server) -> None:
        one = Replica(upstream, server.url)
        server.client.config_set("maxmemory", "1")
        assert len(await one.read(["a"], LAST_HOUR)) == 60
        await settled(one)
        assert one.metric("cache_shared_errors_total", operation="store", error="refused") == 1
        assert one.metric("cache_shared_up") == 1
        await one.close()

    with running(valkey()) as server:
        run(lambda: work(server))


SPOILERS: list[Callable[[Any, bytes, bytes], object]] = [
    lambda client, key, field: client.hset(key, field, b"\x93\x01\x02\x03"),
    lambda client, key, field: client.hset(key, field, client.hget(key, field)[:-1]),
    lambda client, key, field: client.hset(key, b"nonsense", b"nonsense") and client.hdel(key, field),
    lambda client, key, _: client.delete(key) and client.set(key, "not a hash"),
    lambda client, key, _: client.rename(key, key.replace(LAYOUT.encode(), b"0.00000000")),
]


def test_garbage_and_another_version_are_a_miss(server: Server):
    upstream = Upstream()
    upstream.published = [(0, call("1", NOW - 60))]

    async def work() -> None:
        one = Replica(upstream, server.url)
        await one.read(["a"], LAST_HOUR)
        await one.close()
        client: Any = server.client
        (key,) = client.keys("*:a:*")
        assert LAYOUT.encode() in key
        for spoil in SPOILERS:
            (field,) = client.hkeys(key)
            spoil(client, key, field)
            posts, two = len(upstream.posts), Replica(upstream, server.url)
            assert await two.read(["a"], LAST_HOUR) == ["1"]
            assert len(upstream.posts) == posts + 1
            await two.close()
            client.flushall()
            three = Replica(upstream, server.url)
            await three.read(["a"], LAST_HOUR)
            await three.close()

    run(work)


def test_keys_expire(server: Server):
    async def work() -> None:
        one = Replica(Upstream(), server.url)
        await one.read(["a"], LAST_HOUR)
        await one.close()
        assert all(server.client.ttl(key) > 0 for key in server.client.keys("*"))
        (key,) = server.client.keys("*:a:*")
        assert 7 * DAY < server.client.ttl(key) <= 8 * DAY

    run(work)


def test_a_gateway_whose_clock_is_off_takes_no_part(server: Server):
    async def work() -> None:
        metrics = Metrics(registry := CollectorRegistry())
        off = [0.0]
        shared = RedisClient(server.url, metrics, lambda: time.time() + off[0])
        assert await shared.run("lookup", make_script("return KEYS[1] .. text(1)"), ["a"], ["b"]) == b"ab"
        for off[0] in (-1.5, 1.5, 3600.0):
            with pytest.raises(Unavailable):
                await shared.run("store", make_script("redis.call('SET', KEYS[1], '1')"), ["a"], [])
        assert server.client.keys("*") == []
        labels = {"operation": "store", "error": "skew"}
        assert registry.get_sample_value("callbutton_gateway_cache_shared_errors_total", labels) == 3
        await shared.close()

    run(work)


def test_a_server_that_hangs_is_asked_once_and_then_left_alone():
    """A listener that never answers: its time-out is paid once, by those who ask before it is known."""
    upstream = Upstream()

    async def work() -> None:
        asked = 0

        async def hang(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal asked
            asked += 1
            await over.wait()
            writer.close()

        over = asyncio.Event()
        listener = await asyncio.start_server(hang, "127.0.0.1", 0)
        replica = Replica(upstream, f"redis://127.0.0.1:{listener.sockets[0].getsockname()[1]}", TIMEOUT)
        for number in range(200):
            assert await replica.read([f"c{number}"], LAST_HOUR) == []
        assert asked <= 2 + int(replica.metric("cache_shared_seconds_count", operation="lookup"))
        errors = sum(
            replica.metric("cache_shared_errors_total", operation=operation, error="timeout")
            for operation in ("lookup", "claim", "store")
        )
        assert 1 <= errors <= 6  # of 600 commands: a pause of 1 s ends now and then
        assert replica.metric("cache_shared_up") == 0
        over.set()
        listener.close()
        await replica.close()

    run(work)


def slow(upstream: Upstream) -> asyncio.Event:
    upstream.gate = asyncio.Event()
    return upstream.gate


def busy(replica: Replica) -> bool:
    """Whether all flights have claimed, and no need waits to go with others."""
    claims = replica.metric("cache_shared_seconds_count", operation="claim")
    return not replica.cache._single_flight._pending and claims >= replica.metric("batch_codes_count") > 0


def asked_of(replicas: Sequence[Replica]) -> float:
    """How many reads have been planned."""
    return sum(
        one.metric("cache_lookups_total", result=kind) for one in replicas for kind in ("hit", "partial", "miss")
    )


async def until(condition: Callable[[], bool]) -> None:
    await wait_in_loop_for(condition, "a condition of the test")


@pytest.mark.parametrize("program", [valkey, redis], ids=["Valkey", "Redis"])
def test_the_same_herds_on_two_replicas_cost_at_most_one_post_more(
    program: Callable[[], str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        single_flight, "COLLECT_TIME", 0.5
    )  # on a machine that is busy with other things 50 ms are too short
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

    async def work(server: Server) -> None:
        for name, asked in herds.items():
            server.client.flushall()
            alone = await herd(server.url, asked, 1)
            server.client.flushall()
            assert await herd(server.url, asked, 2) <= alone + 1, name

    with running(program()) as server:
        run(lambda: work(server))


def test_a_holder_that_dies_costs_its_lease(server: Server):
    upstream = Upstream()
    upstream.published = [(0, call("1", NOW - 60))]

    async def work() -> None:
        gate = slow(upstream)
        one, two = Replica(upstream, server.url), Replica(upstream, server.url)
        first = asyncio.create_task(one.read(["a"], LAST_HOUR))
        await until(lambda: len(upstream.posts) == 1)
        second = asyncio.create_task(two.read(["a"], LAST_HOUR))
        await until(lambda: two.metric("cache_shared_seconds_count", operation="claim") >= 1)
        leases = one.cache._leases
        assert isinstance(leases, Leases)
        leases._held.clear()  # it renews nothing any more, as if it were dead
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
        first = asyncio.create_task(one.read(["a"], LAST_HOUR))
        await until(lambda: len(upstream.posts) == 1)
        second = asyncio.create_task(two.read(["a"], LAST_HOUR))
        await until(lambda: two.metric("cache_shared_seconds_count", operation="claim") >= 1)
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
        first = asyncio.create_task(one.read(["a"], LAST_HOUR))
        await until(lambda: len(upstream.posts) == 1)
        second = asyncio.create_task(two.read(["a"], LAST_HOUR))
        await until(lambda: two.metric("cache_shared_seconds_count", operation="claim") >= 1)
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


def test_a_connection_that_is_reset_is_no_bug_of_the_driver_on_the_loop_of_production():
    metrics = Metrics(registry := CollectorRegistry())

    async def deny(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"-DENIED as in protected mode\r\n")
        await writer.drain()
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        asyncio.get_running_loop().call_later(0.02, writer.transport.abort)

    async def work() -> None:
        listening = await asyncio.start_server(deny, "127.0.0.1")
        shared = RedisClient(f"redis://127.0.0.1:{listening.sockets[0].getsockname()[1]}", metrics, time.time, ANY)
        for _ in range(2):
            with pytest.raises(Unavailable):
                await shared.run("claim", make_script("return 1"), [], [])
            await asyncio.sleep(0.1)  # the reset must have come
        await shared.close()
        listening.close()

    uvloop.run(work())
    found = {
        sample.labels["error"]
        for metric in registry.collect()
        for sample in metric.samples
        if sample.name == "callbutton_gateway_cache_shared_errors_total" and sample.value
    }
    assert "bug" not in found


@pytest.fixture
def gateways(server: Server) -> Iterator[tuple[Server, list[httpx.Client]]]:
    """Two gateways on one Valkey and one simulator, by the clock on the wall."""
    with ExitStack() as stack:
        simulator = create(Options(latency=0.01), time.time)
        upstream = f"http://127.0.0.1:{stack.enter_context(serving(simulator))}{PATH}"
        settings = Settings(
            upstream_url=upstream, auth="none", signing_key="k" * 32, cache_url=server.url.replace("redis", "valkey")
        )
        clients = []
        for _ in range(2):
            port = stack.enter_context(serving(app.create(settings)))
            clients.append(stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)))
        yield server, clients


def test_a_server_killed_and_restarted_under_load_fails_no_answer(
    gateways: tuple[Server, list[httpx.Client]],
):
    server, clients = gateways
    draw, answers = random.Random(1), 0
    for turn in range(240):
        if turn % 60 == 30:
            server.kill()
        if turn % 60 == 50:
            server.start()
        code, days = f"800555{100 + draw.randrange(3):04}", draw.randrange(2, 25)
        path = f"/clients/{code}/calls?start=2026-09-{days:02}&end=2026-09-{days + 1:02}&limit=1000"
        found = {client.get(path).raise_for_status().text.split('"page"')[0] for client in clients}
        assert len(found) == 1
        answers += 1
    assert answers == 240


def test_two_gateways_share_what_they_fetch(gateways: tuple[Server, list[httpx.Client]]):
    server, (one, two) = gateways
    path = "/clients/8005550100/calls?start=2026-09-01&end=2026-09-02&limit=1000"
    first = one.get(path).raise_for_status()
    wait_for(lambda: server.client.keys("*:8005550100:*"), "the extent is stored, after the answer")
    second = two.get(path).raise_for_status()
    assert first.json()["data"] == second.json()["data"] != []
    metrics = two.get("/metrics").text
    assert 'callbutton_gateway_cache_shared_lookups_total{result="found"} 1.0' in metrics
    assert 'callbutton_gateway_upstream_posts_total{outcome="ok"} 0.0' in metrics
