"""Token buckets: how often a consumer may ask. Pure; time is an argument.

A bucket holds as many tokens as the rate allows requests in its period, is full at first, and fills evenly. A request
takes one. (`limits` was weighed: its windows, fixed or moving, let twice the rate through at a seam or keep an entry a
request, and it has no token bucket.)
"""

from __future__ import annotations

import math
from collections import OrderedDict
from functools import lru_cache

from msgspec import Struct

from gateway.access import Consumer, Rate

MOST_BUCKETS = 10_000  # of OIDC consumers there may be any number; the one not used for longest starts afresh


class Bucket(Struct):
    """What is left of a rate; `at` in seconds since 1970. `spent` counts what was taken since somebody asked."""

    rate: Rate
    tokens: float
    at: float
    spent: int = 0

    def fill(self, now: float) -> None:
        """Add what time has brought."""
        brought = max(0.0, now - self.at) * self.rate.requests / self.rate.seconds
        self.tokens = min(float(self.rate.requests), self.tokens + brought)
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
        self._buckets: OrderedDict[tuple[str, str], Bucket] = OrderedDict()

    def bucket(self, consumer: Consumer, now: float) -> Bucket:
        """The bucket of a consumer that has a rate; a new rate keeps the share that was left."""
        if consumer.rate is None:
            raise ValueError(f"{consumer.name} has no rate")
        key = consumer.label, consumer.name
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = Bucket(consumer.rate, consumer.rate.requests, now)
            if len(self._buckets) > MOST_BUCKETS:
                self._buckets.popitem(last=False)
        elif bucket.rate != consumer.rate:
            bucket.tokens *= consumer.rate.requests / bucket.rate.requests
            bucket.rate = consumer.rate
        self._buckets.move_to_end(key)
        return bucket


@lru_cache(maxsize=1000)
def policy(rate: Rate) -> bytes:
    """`RateLimit-Policy`, as draft-ietf-httpapi-ratelimit-headers writes it since its version 08."""
    return b'"requests";q=%d;w=%d' % (rate.requests, rate.seconds)


def left(bucket: Bucket) -> bytes:
    """`RateLimit`, of the same draft: what is left, and the seconds until nothing is missing."""
    return b'"requests";r=%d;t=%d' % (max(0, math.floor(bucket.tokens)), math.ceil(bucket.until_full()))
