"""Level 2 on real Redis and Valkey servers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cache import level2
from gateway.cache.extents import Extent, make_extent, make_extent_of_all
from gateway.cache.level2 import DIGEST_SIZE, LAYOUT, Found, Wanted, sealed
from gateway.model import EVERY_CLIENT, CallerAddress, CallStatus, SalesStatus, Window
from gateway.redis_nodes import hash_tag
from gateway.slices import finish
from tests.support.processes import wait_for
from tests.support.replicas import Replica, day_before, run, settled, two_gateways
from tests.support.servers import Server, redis, running, valkey
from tests.support.upstream import DAY, NOW, Upstream, ask, call, ids, unreadable

HOUR = 3600
LAST_HOUR = Window(NOW - HOUR, NOW)
KEY = bytes(range(32))
ANY = float("inf")  # the clock of an in-process upstream differs from the server's


def pack(code: str, extent: Extent, key: bytes = b"", *, status: bool) -> bytes:
    return finish(level2.pack(code, extent, key, status=status))


def unpack(code: str, value: bytes, key: bytes = b"") -> tuple[bool, Extent] | None:
    if (found := finish(level2.unpack(code, value, key, code))) is None:
        return None
    extent = finish(level2.assembled(code, [found]))
    assert extent is not None
    return found.status, extent


def test_an_extent_is_what_it_was_after_packing():
    address = CallerAddress(
        first_name="A", middle_initial=None, last_name=None, street="1 Road", secondary=None, city=None, state="IL",
        zip="02134", zip4=None,
    )  # fmt: skip
    status = CallStatus(reviewed=True, sales=SalesStatus.MADE_SALE, journal="é")
    full = msgspec.structs.replace(
        call("1", NOW - 60), address=address, status=status, ani="0012", extra={"X.Y": "1\n2"}
    )
    extent = make_extent(LAST_HOUR, NOW + 0.123456, [full, call("2", NOW - 50)], [unreadable("x", NOW - 70)])
    assert unpack("a", pack("a", extent, status=True)) == (True, extent)
    every = make_extent_of_all(LAST_HOUR, NOW + 0.5, {"a": [full], "b": []}, [unreadable("x", NOW - 70, "b")])
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
    assert unpack("a", sealed("a", other, b"")) is None


def test_one_flipped_bit_anywhere_another_key_or_another_client_is_none():
    good = pack("a", make_extent(LAST_HOUR, NOW + 0.5, [call("1", NOW - 60), call("2", NOW - 50)]), KEY, status=True)
    assert unpack("a", good, KEY) is not None
    for place in range(len(good) * 8):
        spoiled = bytearray(good)
        spoiled[place // 8] ^= 1 << place % 8
        assert unpack("a", bytes(spoiled), KEY) is None, place
    for cut in range(len(good)):
        assert unpack("a", good[:cut], KEY) is None, cut
    assert unpack("a", good, KEY[::-1]) is None
    every = pack(EVERY_CLIENT, make_extent_of_all(LAST_HOUR, NOW, {"a": []}), KEY, status=False)
    assert unpack("a", every, KEY) is None
    assert unpack(EVERY_CLIENT, every, KEY) is not None


def test_an_extent_of_another_client_or_of_no_time_is_none():
    extent = make_extent(LAST_HOUR, 1.0, [])
    assert unpack("b", pack("a", extent, status=False)) is None
    for window, sent in ((Window(5, 5), 1.0), (Window(5, 2**60), 1.0), (LAST_HOUR, float("nan")), (LAST_HOUR, -1.0)):
        other = msgspec.structs.replace(extent, window=window, sent=sent)
        assert unpack("a", pack("a", other, status=False)) is None


@given(st.binary(max_size=200), st.integers(0, 400), st.integers(0, 255))
def test_no_bytes_do_more_than_not_be_read(garbage: bytes, place: int, byte: int):
    good = pack("a", make_extent(LAST_HOUR, NOW + 0.5, [call("1", NOW - 60)]), status=True)[DIGEST_SIZE:]
    spoiled = good[: place % len(good)] + bytes([byte]) + good[place % len(good) + 1 :]
    for value in (garbage, spoiled, good[: place % len(good)]):
        if (found := unpack("a", sealed("a", value, b""))) is not None:
            assert all(one.start_time.timestamp() in found[1].window for one in found[1].calls)


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
                assert [len(server.client.hkeys(key)) for key in server.client.keys("*:a:[0-9]*")] == [1]
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
        assert server.client.hlen(*server.client.keys("*:a:[0-9]*")) == 1  # it replaced the plain one
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


def test_extents_of_every_client_serve_reads_of_a_client_that_they_list(server: Server):
    upstream = Upstream()
    codes = [f"c{number}" for number in range(40)]
    upstream.published = [(0, call(f"{code}-{n}", NOW - n * HOUR - 9, code)) for code in codes for n in range(30)]
    upstream.unreadable = [unreadable("x", NOW - 90, code) for code in ("c0", "c1")]
    window = Window(NOW - 2 * DAY, NOW)

    async def work() -> None:
        one, two = Replica(upstream, server.url), Replica(upstream, server.url)
        await one.read(["*"], window)
        await settled(one)
        for code in codes:
            reading = await two.cache.read(ask([code], window))
            assert ids(reading.calls) == sorted(f"{code}-{n}" for n in range(30))
            assert sum(len(extent.unreadable) for extent in reading.extents) == (code in ("c0", "c1"))
        assert len(upstream.posts) == 1
        assert await two.read(["quiet"], LAST_HOUR) == []  # not listed: unknown
        assert len(upstream.posts) == 2
        await one.close()
        await two.close()

    run(work)


def test_a_lost_part_of_an_extent_of_every_client_is_a_miss_for_every_client_alone(server: Server):
    upstream = Upstream()
    codes = [f"c{number}" for number in range(40)]
    upstream.published = [(0, call(code, NOW - 9, code)) for code in codes]

    async def work() -> None:
        one, two = Replica(upstream, server.url), Replica(upstream, server.url)
        await one.read(["*"], LAST_HOUR)
        await settled(one)
        (key,) = server.client.keys(f"*:[*]{hash_tag('c0')}:*")
        server.client.delete(key)
        kept = [code for code in codes if hash_tag(code) != hash_tag("c0")]
        assert await two.read(kept, LAST_HOUR) == sorted(kept)
        assert len(upstream.posts) == 1
        assert await two.read(["*"], LAST_HOUR) == sorted(codes)
        assert len(upstream.posts) == 2
        await one.close()
        await two.close()

    run(work)


def test_a_lost_part_is_a_miss_also_for_two_gaps_of_one_day(server: Server):
    upstream = Upstream()
    day = NOW // DAY * DAY - DAY
    codes = [f"c{number}" for number in range(40)]
    upstream.published = [(0, call(code, day + HOUR, code)) for code in codes]

    async def work() -> None:
        one, two = Replica(upstream, server.url), Replica(upstream, server.url)
        await one.read(["*"], Window(day, day + DAY))
        await settled(one)
        (key,) = server.client.keys(f"*:[*]{hash_tag('c0')}:*")
        server.client.delete(key)
        assert await two.read(["*"], Window(day + 2 * HOUR, day + 22 * HOUR)) == []
        assert await two.read(["*"], Window(day, day + DAY)) == sorted(codes)
        await one.close()
        await two.close()

    run(work)


def test_an_extent_of_every_client_is_left_out_where_a_later_one_of_the_client_covers_it(server: Server):
    upstream = Upstream()
    upstream.published = [(0, call("1", NOW - 60))]

    async def work() -> None:
        one = Replica(upstream, server.url)
        await one.read(["*"], LAST_HOUR)
        for later, lookups in ((0.0, 1), (2.0, 2)):  # then that of every client is later
            await settled(one)
            upstream.now = NOW + later
            await one.read(["*" if later else "a"], LAST_HOUR, no_cache=True)
            await settled(one)
            two = Replica(upstream, server.url)
            level2 = two.cache._level2
            assert level2 is not None
            assert len(await level2.lookup((Wanted("a", LAST_HOUR, 0.0),), status=False)) == lookups
            await two.close()
        await one.close()

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
    codes, draw = [f"c{number}" for number in range(40)], random.Random(1)
    upstream.published = [
        (0, call(f"{code}-{n}", NOW - n * 600 - 9, code, draw.randbytes(500).hex()))
        for n in range(140)
        for code in codes
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
        (key,) = client.keys("*:a:[0-9]*")
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


def test_a_flipped_bit_in_the_server_is_a_miss_and_counted(server: Server):
    upstream = Upstream()
    upstream.published = [(0, call("1", NOW - 60))]

    async def work() -> None:
        one = Replica(upstream, server.url, signing_key=KEY)
        await one.read(["a"], LAST_HOUR)
        await one.close()
        client: Any = server.client
        (key,) = client.keys("*:a:[0-9]*")
        (field,) = client.hkeys(key)
        value = client.hget(key, field)
        draw = random.Random(3)
        for place in (0, len(value) - 1, *draw.sample(range(len(value)), 10)):
            spoiled = value[:place] + bytes([value[place] ^ 1 << draw.randrange(8)]) + value[place + 1 :]
            client.flushall()
            client.hset(key, field, spoiled)
            posts, two = len(upstream.posts), Replica(upstream, server.url, signing_key=KEY)
            assert await two.read(["a"], LAST_HOUR) == ["1"]
            assert len(upstream.posts) == posts + 1
            assert two.metric("cache_shared_lookups_total", result="unreadable") == 1
            await two.close()

    run(work)


def test_replicas_with_different_signing_keys_share_nothing(server: Server):
    upstream = Upstream()
    upstream.published = [(0, call("1", NOW - 60))]

    async def work() -> None:
        for posts, key in enumerate((KEY, KEY[::-1], b""), 1):
            one, two = (Replica(upstream, server.url, signing_key=key) for _ in range(2))
            for replica in (one, two):
                assert await replica.read(["a"], LAST_HOUR) == ["1"]
                assert len(upstream.posts) == posts
                await replica.close()

    run(work)


def test_keys_expire(server: Server):
    async def work() -> None:
        one = Replica(Upstream(), server.url)
        await one.read(["a"], LAST_HOUR)
        await one.close()
        assert all(server.client.ttl(key) > 0 for key in server.client.keys("*"))
        (key,) = server.client.keys("*:a:[0-9]*")
        assert 7 * DAY < server.client.ttl(key) <= 8 * DAY

    run(work)


@pytest.fixture
def gateways(server: Server) -> Iterator[tuple[Server, list[httpx.Client]]]:
    """Two gateways that share a Valkey server and a simulator, with the real clock."""
    with two_gateways(server.url.replace("redis", "valkey")) as clients:
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
        path = f"/clients/{code}/calls?{day_before(60 + days)}"
        found = {client.get(path).raise_for_status().text.split('"page"')[0] for client in clients}
        assert len(found) == 1
        answers += 1
    assert answers == 240


def test_two_gateways_share_what_they_fetch(gateways: tuple[Server, list[httpx.Client]]):
    server, (one, two) = gateways
    path = f"/clients/8005550100/calls?{day_before(60)}"
    first = one.get(path).raise_for_status()
    wait_for(lambda: server.client.keys("*:8005550100:[0-9]*"), "the extent is stored, after the answer")
    second = two.get(path).raise_for_status()
    assert first.json()["data"] == second.json()["data"] != []
    metrics = two.get("/metrics").text
    assert 'callbutton_gateway_cache_shared_lookups_total{result="found"} 1.0' in metrics
    assert 'callbutton_gateway_upstream_posts_total{outcome="ok"} 0.0' in metrics
