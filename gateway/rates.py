"""Rate limits and limits of exports, for each consumer. Pure; time is an argument, in seconds since 1970.

Requests are counted with token buckets: a bucket holds as many tokens as the rate allows requests in its period, starts
full and refills evenly; each request takes one token. (The library `limits` has no token bucket: its fixed windows
allow twice the rate at a boundary, and its moving windows store an entry for each request.)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache, partial

from msgspec import Struct

from gateway.access import ANONYMOUS, Consumer, Rate
from gateway.errors import RateLimited
from gateway.memory import Lru, Memory

EXPORT_RETRY_AFTER = 10.0  # seconds; many exports end within them
Key = tuple[str, str]  # label and name of a consumer
PART = 1 / 16  # of the memory, for buckets: consumers with tokens are not limited in number
BUCKET_BYTES = 500  # of a bucket and its key


class TokenBucket(Struct):
    """The tokens of a consumer at the time `updated`. They may be negative, after a debit.

    `spent` counts the tokens taken since the last exchange with the other replicas. `total` is the sum of all replicas
    at that exchange, None before the first one.
    """

    rate: Rate
    tokens: float
    updated: float
    spent: int = 0
    total: int | None = None

    def refill(self, now: float) -> None:
        """Add the tokens of the time since the last update."""
        rate, passed = self.rate, now - self.updated
        if passed > 0:
            tokens = self.tokens + passed * rate.requests / rate.seconds
            self.tokens = tokens if tokens < rate.requests else float(rate.requests)
        self.updated = now

    def take(self, now: float) -> bool:
        """Take a token. Returns False if there is none."""
        self.refill(now)
        if self.tokens < 1:
            return False
        self.tokens -= 1
        self.spent += 1
        return True

    def seconds_until_token(self) -> float:
        """Seconds until the bucket has a token."""
        return max(0.0, (1 - self.tokens) * self.rate.seconds / self.rate.requests)

    def seconds_until_full(self) -> float:
        """Seconds until the bucket is full."""
        return (self.rate.requests - self.tokens) * self.rate.seconds / self.rate.requests


class RateLimiter:
    """The buckets of all consumers that have a rate."""

    def __init__(self, memory: Memory | None = None) -> None:
        self._buckets: Lru[Key, TokenBucket] = Lru(memory or Memory(), PART)

    def bucket(self, consumer: Consumer, now: float) -> TokenBucket:
        """The bucket of a consumer. If the rate has changed, the same fraction of tokens remains.

        Raises ValueError for a consumer without a rate.
        """
        if consumer.rate is None:
            raise ValueError(f"{consumer.name} has no rate")
        key = consumer.label, consumer.name
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = TokenBucket(consumer.rate, consumer.rate.requests, now)
            self._buckets.put(key, bucket, BUCKET_BYTES + len(consumer.name))
        elif bucket.rate != consumer.rate:
            bucket.tokens *= consumer.rate.requests / bucket.rate.requests
            bucket.rate = consumer.rate
        return bucket

    def take_spent(self) -> list[tuple[Key, int]]:
        """Return the tokens that each bucket spent since the last call, and reset the counts."""
        spent = []
        for key, bucket in self._buckets.items():
            spent.append((key, bucket.spent))
            bucket.spent = 0
        return spent

    def debit(self, key: Key, own: int, total: int, now: float) -> None:
        """Take the tokens that other replicas spent from a bucket.

        `total` is the new sum of all replicas, `own` the part of it that this bucket has just added. A bucket owes at
        most its own size.
        """
        bucket = self._buckets.get(key)
        if bucket is None:
            return
        bucket.refill(now)
        if bucket.total is not None and total > bucket.total + own:
            others = total - bucket.total - own
            bucket.tokens = max(-float(bucket.rate.requests), bucket.tokens - others)
        bucket.total = total

    def forget_totals(self, keys: Iterable[Key]) -> None:
        """Forget the sums of these buckets: after a failed exchange the next sum is a new starting point."""
        for key in keys:
            if (bucket := self._buckets.get(key)) is not None:
                bucket.total = None


class ExportLimiter:
    """Counts the exports in progress of each consumer, and allows at most `max_exports`."""

    def __init__(self, max_exports: int) -> None:
        self._max_exports = max_exports
        self._in_progress: Counter[Key] = Counter()

    def begin(self, consumer: Consumer) -> Callable[[], None]:
        """Count one more export; returns a function to call once, when it ends. Raises RateLimited."""
        key = consumer.label, consumer.name
        if consumer is ANONYMOUS:  # all consumers share it if GATEWAY_AUTH is none
            return lambda: None
        if self._in_progress[key] >= self._max_exports:
            raise RateLimited(
                f"this consumer has {self._max_exports} exports in progress", "exports", EXPORT_RETRY_AFTER
            )
        self._in_progress[key] += 1
        return partial(self._end, key)

    def _end(self, key: Key) -> None:
        self._in_progress[key] -= 1
        if not self._in_progress[key]:
            del self._in_progress[key]


def rate_headers(bucket: TokenBucket) -> list[tuple[bytes, bytes]]:
    """The response headers of draft-ietf-httpapi-ratelimit-headers, version 08 and later."""
    return [(b"ratelimit-policy", policy_header(bucket.rate)), (b"ratelimit", remaining_header(bucket))]


@lru_cache(maxsize=1000)
def policy_header(rate: Rate) -> bytes:
    """The value of `RateLimit-Policy`: the rate."""
    return b'"requests";q=%d;w=%d' % (rate.requests, rate.seconds)


def remaining_header(bucket: TokenBucket) -> bytes:
    """The value of `RateLimit`: remaining tokens, and seconds until the bucket is full."""
    return b'"requests";r=%d;t=%d' % (max(0, int(bucket.tokens)), math.ceil(bucket.seconds_until_full()))
