"""Rate limits of consumers, and fair shares of common resources. Time is an argument, in seconds since 1970.

Requests are counted with token buckets: a bucket holds as many tokens as the rate allows requests in its period, starts
full and refills evenly; each request takes one token. (The library `limits` has no token bucket: its fixed windows
allow twice the rate at a boundary, and its moving windows store an entry for each request.)
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from functools import lru_cache, partial

from msgspec import Struct

from gateway.access import Key, Rate
from gateway.errors import Overloaded, RateLimited
from gateway.memory import Lru, Memory

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

    def bucket(self, key: Key, rate: Rate, now: float) -> TokenBucket:
        """The bucket of a consumer. If the rate has changed, the same fraction of tokens remains."""
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = TokenBucket(rate, rate.requests, now)
            self._buckets.put(key, bucket, BUCKET_BYTES + len(key[1]))
        elif bucket.rate != rate:
            bucket.tokens *= rate.requests / bucket.rate.requests
            bucket.rate = rate
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


class Shares:
    """A quantity that consumers hold parts of, such as places or bytes, and that is shared fairly.

    A consumer may take more while it holds at most `share / (1 - share)` times the free parts. So one consumer alone
    holds about `share` of it, several hold equal parts, and some is left for the next. (Dynamic thresholds: Choudhury
    and Hahne, 1998, for the buffers of switches.) The last part taken may exceed the rest. A consumer holds at most
    `most` parts. `name` names the parts, and `reason` is the label of a refusal.
    """

    def __init__(
        self, name: str, reason: str, size: int, share: float, most: float = math.inf, retry_after: int = 1
    ) -> None:
        self._name = name
        self._reason = reason
        self._share = share
        self._most = most
        self._retry_after = retry_after
        self._free = size
        self._held: dict[Key, tuple[int, int]] = {}  # how many parts, and their sum

    def take(self, key: Key, amount: int = 1) -> Callable[[], None]:
        """Take a part; returns a function to call once, to give it back. Raises RateLimited, Overloaded."""
        parts, held = self._held.get(key, (0, 0))
        if self._free <= 0:
            raise Overloaded(f"too many {self._name} are in progress", self._retry_after)
        if parts >= self._most or held * (1 - self._share) > self._free * self._share:
            raise RateLimited(f"this consumer has {parts} {self._name} in progress", self._reason, self._retry_after)
        self._held[key] = parts + 1, held + amount
        self._free -= amount
        return partial(self._give_back, key, amount)

    def _give_back(self, key: Key, amount: int) -> None:
        self._free += amount
        parts, held = self._held.pop(key)
        if parts > 1:
            self._held[key] = parts - 1, held - amount


class Turns:
    """Places for work that keeps the event loop busy. Consumers that wait for a place get the free ones in rotation.

    A consumer has at most `most` of them. A place is free again one iteration of the event loop after its work, so that
    with one place other tasks run after each piece of work.
    """

    def __init__(self, places: int, most: int) -> None:
        self._free = places
        self._most = most
        self._held: Counter[Key] = Counter()
        self._waiting: OrderedDict[Key, deque[asyncio.Future[None]]] = OrderedDict()  # the next consumer first

    @asynccontextmanager
    async def turn(self, key: Key, before_wait: Callable[[], None] = lambda: None) -> AsyncIterator[None]:
        """Work in a place. `before_wait` is called before a wait for one, and may refuse that by an error."""
        loop = asyncio.get_running_loop()
        if self._free and self._held[key] < self._most and key not in self._waiting:
            self._take(key)
        else:
            before_wait()
            turn = loop.create_future()
            self._waiting.setdefault(key, deque()).append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._give_back(key)
                raise
        try:
            yield
        finally:
            loop.call_soon(self._give_back, key)

    def _take(self, key: Key) -> None:
        self._free -= 1
        self._held[key] += 1

    def _give_back(self, key: Key) -> None:
        self._free += 1
        self._held[key] -= 1
        if not self._held[key]:
            del self._held[key]
        for waiting in list(self._waiting):
            if self._free and self._held[waiting] < self._most:
                turns = self._waiting.pop(waiting)
                while turns and turns[0].done():  # cancelled
                    turns.popleft()
                if turns:
                    self._take(waiting)
                    turns.popleft().set_result(None)
                if turns:
                    self._waiting[waiting] = turns  # last


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
