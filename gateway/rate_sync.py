"""Rate limits across replicas: each replica has its own buckets and exchanges the spent tokens through Redis.

Rules:
- No request waits for it. Once a second each replica publishes the tokens that it spent, and debits the tokens that the
  others spent. A debited bucket may owe tokens, at most as many as it can hold.
- While Redis is unavailable each replica limits consumers by its own count. That time is not corrected afterwards.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from gateway.rates import RateLimiter
from gateway.redis_client import RedisClient, load_script

LOGGER = logging.getLogger(__name__)
SYNC_INTERVAL = 1.0  # seconds; bounds the requests that a consumer can send to other replicas above its rate
SUM_TTL = 600  # seconds that Redis keeps the sum of a consumer that no replica updates
BATCH_SIZE = 500  # consumers of one command; Redis runs nothing else meanwhile
PREFIX = "callbutton:{spent}:"  # one slot of a cluster: the sums of a batch are one command
SCRIPT = load_script("spend")


class RateSync:
    """Synchronizes the buckets of this process with those of the other replicas."""

    def __init__(self, rates: RateLimiter, shared: RedisClient, clock: Callable[[], float]) -> None:
        self._rates = rates
        self._shared = shared
        self._clock = clock
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the exchange every SYNC_INTERVAL."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop the exchange."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(SYNC_INTERVAL)
            try:
                await self.exchange()
            except Exception:
                LOGGER.exception("rate synchronization failed")

    async def exchange(self) -> None:
        """Publish the spent tokens of this process, and debit those of the other replicas."""
        spent = self._rates.take_spent()
        for start in range(0, len(spent), BATCH_SIZE):
            batch = spent[start : start + BATCH_SIZE]
            keys = [f"{PREFIX}{kind}/{name}" for (kind, name), _ in batch]
            totals = await self._shared.run("spent", SCRIPT, keys, [SUM_TTL], [[str(own)] for _, own in batch])
            for (key, own), total in zip(batch, totals, strict=True):
                if total is None:
                    self._rates.forget_totals([key])
                else:
                    self._rates.debit(key, own, int(total), self._clock())
