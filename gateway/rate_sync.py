"""What consumers have spent at all replicas: buckets are local, and told of each other's through the shared server.

Rules:
- No request waits for it: each second every replica adds what was spent at it, and takes what the others added from its
  own buckets. A bucket may so come to owe, at most as much as it holds.
- While the server is not there buckets count for themselves alone, and nothing of that time is made up for later.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from gateway.rates import Key, Rates
from gateway.redis_client import RedisClient, Unavailable, load_script

LOGGER = logging.getLogger(__name__)
SYNC_INTERVAL = 1.0  # seconds
SUM_TTL = 600  # seconds that the server keeps the sum of a consumer who asks nowhere
BATCH_SIZE = 500  # consumers
PREFIX = "callbutton:spent:"
SCRIPT = load_script("spend")


class RateSync:
    """Keeps the buckets of replicas in step."""

    def __init__(self, rates: Rates, shared: RedisClient, clock: Callable[[], float]) -> None:
        self._rates = rates
        self._shared = shared
        self._clock = clock
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(SYNC_INTERVAL)
            try:
                await self.exchange()
            except Exception:
                LOGGER.exception("telling other replicas what was spent failed")

    async def exchange(self) -> None:
        """Tell and be told, once."""
        spent = self._rates.spent()
        for place in range(0, len(spent), BATCH_SIZE):
            part = spent[place : place + BATCH_SIZE]
            try:
                sums = await self._add(part)
            except Unavailable:
                self._rates.forget(key for key, _ in spent[place:])
                return
            for (key, own), total in zip(part, sums, strict=True):
                self._rates.debit(key, own, total, self._clock())

    async def _add(self, part: Sequence[tuple[Key, int]]) -> list[int]:
        keys = [f"{PREFIX}{label}/{name}" for (label, name), _ in part]
        sums = await self._shared.run("spent", SCRIPT, keys, [*(str(own) for _, own in part), SUM_TTL])
        return [int(total) for total in sums]
