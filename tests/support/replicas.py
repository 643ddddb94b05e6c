"""Caches of separate replicas that share a level 2."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
from prometheus_client import CollectorRegistry

from gateway import app
from gateway.cache.freshness import Rule
from gateway.cache.reader import Cache, CacheSettings
from gateway.metrics import Metrics
from gateway.model import Window
from gateway.redis_client import RedisClient
from gateway.settings import Settings
from gateway.simulator.server import PATH, Options, create
from tests.support.processes import wait_in_loop_for
from tests.support.stand import serving
from tests.support.upstream import DAY, Upstream, ask, ids

ANY = float("inf")  # the clock of an in-process upstream differs from the server's


class Replica:
    """A cache with a separate connection to level 2, like that of a separate process."""

    def __init__(self, upstream: Upstream, url: str, timeout: float = 10, **changes: Any) -> None:
        self.registry = CollectorRegistry()
        self._upstream = upstream
        self._metrics = Metrics(self.registry)
        values: dict[str, Any] = {"max_span": 31 * DAY, "batch": 50, "cache_bytes": 2**28} | changes
        self._rules = CacheSettings(plain=Rule(), with_status=Rule(ratio=0.01), stale_if_error=DAY, **values)
        self.shared = RedisClient(url, self._metrics, lambda: upstream.now, ANY, timeout=timeout)
        self.forget()

    def forget(self) -> None:
        """Begin with an empty level 1. The connections stay."""
        self.cache = Cache(self._upstream, self._rules, self._metrics, lambda: self._upstream.now, self.shared)

    async def read(self, codes: Sequence[str], window: Window, **changes: Any) -> list[str]:
        return ids((await self.cache.read(ask(codes, window, **changes))).calls)

    async def close(self) -> None:
        await self.cache.close()
        await self.shared.close()

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"callbutton_gateway_{name}", labels) or 0.0


@contextmanager
def two_gateways(cache_url: str) -> Iterator[list[httpx.Client]]:
    """Two gateways that share a cache and a simulator, with the real clock."""
    with ExitStack() as stack:
        simulator = create(Options(latency=0.01), time.time)
        upstream = f"http://127.0.0.1:{stack.enter_context(serving(simulator))}{PATH}"
        settings = Settings(upstream_url=upstream, auth="none", signing_key="k" * 32, cache_url=cache_url)
        clients = []
        for _ in range(2):
            port = stack.enter_context(serving(app.create(settings)))
            clients.append(stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)))
        yield clients


def day_before(days: int) -> str:
    """The query of a day, some days before now. Its calls have no links, which change with the hour."""
    start = datetime.now(UTC).date() - timedelta(days=days)
    return f"start={start}&end={start + timedelta(days=1)}&limit=1000&fields=ani,durationSeconds,extra"


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
