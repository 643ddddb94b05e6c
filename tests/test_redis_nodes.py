"""The addresses of servers, Sentinels and clusters, and the slots of clients."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio.cluster import ClusterNode, NodesManager, RedisCluster
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import MovedError

from gateway.redis_nodes import SPREAD, TAGS, Address, ClusterNodes, connect, hash_tag, parse_redis_url
from tests.support.processes import wait_in_loop_for

NOBODY = {"username": None, "password": None}
ADDRESSES = {
    "redis://a": Address("", False, [("a", 6379)], NOBODY, 0, "", {}),
    "valkeys://:p%40ss@[2001:db8::1]:7000/3": Address(
        "", True, [("2001:db8::1", 7000)], {"username": None, "password": "p@ss"}, 3, "", {}
    ),
    "redis://a?db=4": Address("", False, [("a", 6379)], NOBODY, 4, "", {}),
    "redis+sentinel://a,b:7000/calls": Address(
        "sentinel", False, [("a", 26379), ("b", 7000)], NOBODY, 0, "calls", NOBODY
    ),
    "rediss+sentinel://u:p@[::1]/calls/2?sentinel_username=s&sentinel_password=q%26": Address(
        "sentinel",
        True,
        [("::1", 26379)],
        {"username": "u", "password": "p"},
        2,
        "calls",
        {"username": "s", "password": "q&"},
    ),
    "valkey+cluster://u:p:@@a.example,[::1]:7000,10.0.0.1/": Address(
        "cluster",
        False,
        [("a.example", 6379), ("::1", 7000), ("10.0.0.1", 6379)],
        {"username": "u", "password": "p:@"},
        0,
        "",
        {},
    ),
}


@pytest.mark.parametrize(("url", "address"), ADDRESSES.items(), ids=ADDRESSES)
def test_an_address_has_the_parts_of_its_url_and_can_be_connected_to(url: str, address: Address):
    assert parse_redis_url(url) == address

    async def work() -> None:
        await connect(address, 1, 1).aclose()

    asyncio.run(work())


def test_hash_tags_are_evenly_spaced_over_the_slots():
    slots = [key_slot(f"callbutton:{tag}:x:{{y}}".encode()) for tag in TAGS]
    assert [slot * SPREAD // REDIS_CLUSTER_HASH_SLOTS for slot in slots] == list(range(SPREAD))
    assert {hash_tag(f"800555{number:04}") for number in range(200)} == set(TAGS)


def test_the_slots_are_read_again_if_a_slot_has_moved_to_a_node_without_a_name(monkeypatch: pytest.MonkeyPatch):
    read = list[str]()

    async def work() -> None:
        cluster = RedisCluster(startup_nodes=[ClusterNode("127.0.0.1", 1)])

        async def initialize(_: NodesManager) -> None:
            read.append("slots")

        monkeypatch.setattr(NodesManager, "initialize", initialize)
        cluster.nodes_manager.slots_cache[5] = [ClusterNode("127.0.0.1", 1)]
        nodes = ClusterNodes(cluster, 1)
        assert await nodes.moved(MovedError("5 :7000")) is None
        await wait_in_loop_for(lambda: bool(read), "the slots are read")
        await nodes.aclose()

    asyncio.run(work())
