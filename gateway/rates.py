"""How often a consumer may ask, and how many exports it may have under way. Pure; time is an argument.

Requests are counted by token buckets. One holds as many tokens as the rate allows requests in its period, is full at
first, and fills evenly. A request takes one. (`limits` was weighed: its windows, fixed or moving, let twice the rate
through at a seam or keep an entry a request, and it has no token bucket.)
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from functools import lru_cache, partial

from msgspec import Struct

from gateway.access import ANYONE, Consumer, Rate
from gateway.errors import RateLimited

EXPORT_RETRY_AFTER = 10.0  # seconds after which an export may have ended
Key = tuple[str, str]  # label and name of a consumer
MAX_BUCKETS = 10_000  # of OIDC consumers there may be any number; the one not used for longest starts afresh


class Bucket(Struct):
    """What is left of a rate; `at` in seconds since 1970.

    `spent` counts what was taken since the other replicas were told, `total` is what all had taken then, if known.
    """

    rate: Rate
    tokens: float
    at: float
    spent: int = 0
    total: int | None = None

    def fill(self, now: float) -> None:
        """Add what time has brought."""
        rate, passed = self.rate, now - self.at
        if passed > 0:
            tokens = self.tokens + passed * rate.requests / rate.seconds
            self.tokens = tokens if tokens < rate.requests else float(rate.requests)
        self.at = now

    def take(self, now: float) -> bool:
        """Take a token if there is one."""
        self.fill(now)
        if self.tokens < 1:
            return False
        self.tokens -= 1
        self.spent += 1
        return True

    def wait(self) -> float:
        """Seconds until there is a token."""
        return max(0.0, (1 - self.tokens) * self.rate.seconds / self.rate.requests)

    def until_full(self) -> float:
        """Seconds until nothing is missing."""
        return (self.rate.requests - self.tokens) * self.rate.seconds / self.rate.requests


class Rates:
    """The buckets of all consumers that have a rate."""

    def __init__(self) -> None:
        self._buckets: OrderedDict[Key, Bucket] = OrderedDict()

    def bucket(self, consumer: Consumer, now: float) -> Bucket:
        """The bucket of a consumer that has a rate; a new rate keeps the share that was left."""
        if consumer.rate is None:
            raise ValueError(f"{consumer.name} has no rate")
        key = consumer.label, consumer.name
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = Bucket(consumer.rate, consumer.rate.requests, now)
            if len(self._buckets) > MAX_BUCKETS:
                self._buckets.popitem(last=False)
        elif bucket.rate != consumer.rate:
            bucket.tokens *= consumer.rate.requests / bucket.rate.requests
            bucket.rate = consumer.rate
        self._buckets.move_to_end(key)
        return bucket

    def spent(self) -> list[tuple[Key, int]]:
        """What each bucket has spent since this was asked."""
        found = []
        for key, bucket in list(self._buckets.items()):
            found.append((key, bucket.spent))
            bucket.spent = 0
        return found

    def debit(self, key: Key, own: int, total: int, now: float) -> None:
        """Take from a bucket what others spent: `total` is what all have, `own` of it was the bucket's last part."""
        bucket = self._buckets.get(key)
        if bucket is None:
            return
        bucket.fill(now)
        if bucket.total is not None and total > bucket.total + own:
            others = total - bucket.total - own
            bucket.tokens = max(-float(bucket.rate.requests), bucket.tokens - others)
        bucket.total = total

    def forget(self, keys: Iterable[Key]) -> None:
        """Begin anew with the others, who could not be told."""
        for key in keys:
            if key in self._buckets:
                self._buckets[key].total = None


class Exports:
    """How many exports each consumer has in progress, at most `max_exports` of them."""

    def __init__(self, max_exports: int) -> None:
        self._max_exports = max_exports
        self._in_progress: Counter[Key] = Counter()

    def begin(self, consumer: Consumer) -> Callable[[], None]:
        """Count one more; returns the function that ends it, to be called once. Raises RateLimited."""
        key = consumer.label, consumer.name
        if consumer is ANYONE:  # many consumers
            return lambda: None
        if self._in_progress[key] >= self._max_exports:
            raise RateLimited(
                f"this consumer has {self._max_exports} exports in progress", EXPORT_RETRY_AFTER, "exports"
            )
        self._in_progress[key] += 1
        return partial(self._end, key)

    def _end(self, key: Key) -> None:
        self._in_progress[key] -= 1
        if not self._in_progress[key]:
            del self._in_progress[key]


def rate_headers(bucket: Bucket) -> list[tuple[bytes, bytes]]:
    """The header fields that tell of a bucket."""
    return [(b"ratelimit-policy", policy(bucket.rate)), (b"ratelimit", remaining(bucket))]


@lru_cache(maxsize=1000)
def policy(rate: Rate) -> bytes:
    """`RateLimit-Policy`, as draft-ietf-httpapi-ratelimit-headers writes it since its version 08."""
    return b'"requests";q=%d;w=%d' % (rate.requests, rate.seconds)


def remaining(bucket: Bucket) -> bytes:
    """`RateLimit`, of the same draft: what is left, and the seconds until nothing is missing."""
    return b'"requests";r=%d;t=%d' % (max(0, int(bucket.tokens)), math.ceil(bucket.until_full()))
