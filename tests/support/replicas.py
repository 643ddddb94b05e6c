"""Caches of separate replicas that share a level 2."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from prometheus_client import CollectorRegistry

from gateway.cache.freshness import Rule
from gateway.cache.reader import Cache, CacheSettings
from gateway.metrics import Metrics
from gateway.model import Window
from gateway.redis_client import RedisClient
from tests.support.processes import wait_in_loop_for
from tests.support.upstream import DAY, Upstream, ask, ids

ANY = float("inf")  # the clock of an in-process upstream differs from the server's


class Replica:
    """A cache with a separate connection to level 2, like that of a separate process."""

    def __init__(self, upstream: Upstream, url: str, timeout: float = 10, **changes: Any) -> None:
        self.registry = CollectorRegistry()
        metrics = Metrics(self.registry)
        values: dict[str, Any] = {"max_span": 31 * DAY, "batch": 50, "cache_bytes": 2**28} | changes
        rules = CacheSettings(plain=Rule(), with_status=Rule(ratio=0.01), stale_if_error=DAY, **values)
        self.shared = RedisClient(url, metrics, lambda: upstream.now, ANY, timeout=timeout)
        self.cache = Cache(upstream, rules, metrics, lambda: upstream.now, self.shared)

    async def read(self, codes: Sequence[str], window: Window, **changes: Any) -> list[str]:
        return ids((await self.cache.read(ask(codes, window, **changes))).calls)

    async def close(self) -> None:
        await self.cache.close()
        await self.shared.close()

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"callbutton_gateway_{name}", labels) or 0.0


async def settled(*replicas: Replica) -> None:
    """Wait until everything is stored."""
    for replica in replicas:
        await replica.cache.close()


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 60))


def slow(upstream: Upstream) -> asyncio.Event:
    upstream.gate = asyncio.Event()
    return upstream.gate


async def until(condition: Callable[[], bool]) -> None:
    await wait_in_loop_for(condition, "a condition of the test")
