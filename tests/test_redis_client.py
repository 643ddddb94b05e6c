"""The Redis client against servers that hang, reset connections or have a different clock."""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from contextlib import suppress

import uvloop
from prometheus_client import CollectorRegistry

from gateway.metrics import Metrics
from gateway.redis_client import TIMEOUT, RedisClient, make_script
from tests.support.loops import settle
from tests.support.processes import wait_in_loop_for
from tests.support.replicas import ANY, Replica, run
from tests.support.servers import Server
from tests.support.upstream import LAST_HOUR, Upstream


def test_a_gateway_whose_clock_is_off_takes_no_part(server: Server):
    async def work() -> None:
        metrics = Metrics(registry := CollectorRegistry())
        off = [0.0]
        shared = RedisClient(server.url, metrics, lambda: time.time() + off[0])
        assert await shared.run("lookup", make_script("return {KEYS[1] .. text(1)}"), ["a"], ["b"]) == [b"ab"]
        for off[0] in (-1.5, 1.5, 3600.0):
            assert await shared.run("store", make_script("redis.call('SET', KEYS[1], '1')"), ["a"]) == [None]
        assert server.client.keys("*") == []
        labels = {"operation": "store", "error": "skew"}
        assert registry.get_sample_value("callbutton_gateway_cache_shared_errors_total", labels) == 3
        await shared.close()

    run(work)


def test_a_server_that_hangs_is_asked_once_and_then_left_alone():
    """Only requests sent before the client marks the server as unavailable wait for the time-out."""
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


def test_a_connection_that_is_reset_is_no_bug_of_the_driver_on_the_loop_of_production():
    metrics = Metrics(registry := CollectorRegistry())

    resets: list[asyncio.StreamWriter] = []

    async def deny(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"-DENIED as in protected mode\r\n")
        await writer.drain()
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        asyncio.get_running_loop().call_later(0.02, writer.transport.abort)
        with suppress(ConnectionError):
            await writer.wait_closed()
        resets.append(writer)

    async def work() -> None:
        listening = await asyncio.start_server(deny, "127.0.0.1")
        shared = RedisClient(f"redis://127.0.0.1:{listening.sockets[0].getsockname()[1]}", metrics, time.time, ANY)
        for _ in range(2):
            assert await shared.run("claim", make_script("return {1}"), ["a"]) == [None]
            await wait_in_loop_for(lambda: resets, "the reset is sent")
            await settle()  # and has come
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
