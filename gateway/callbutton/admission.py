"""Admission to the upstream: how many POSTs are in flight, whether to send one at all, and whether to send it again.

    Admission       a slot for one POST: wait queue, limit and circuit breaker together
    AdaptiveLimit   the number of slots
    Suspects        client codes that may be the reason of failures
    RetryBudget     the number of POSTs that may be sent a second time

All but Admission are pure; instants are of the event loop's clock, and arguments.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

from gateway.callbutton.wait_queue import NO_DEADLINE, DropReason, Waiters, WaitQueue
from gateway.circuit_breaker import CircuitBreaker, Permit
from gateway.errors import (
    UpstreamCircuitOpen,
    UpstreamError,
    UpstreamFailed,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from gateway.metrics import Metrics

FAILURES_TO_OPEN = 5  # in a row; fewer happen by chance
RETRY_RATIO = 0.1  # retries a request: an upstream that is down is not asked twice as much
MAX_SAVED_RETRIES = 5.0  # a retry is for one POST among many that succeed, not for an outage
MIN_BACKOFF, MAX_BACKOFF = 0.05, 0.25  # seconds


class AdaptiveLimit:
    """The number of slots: additive increase, multiplicative decrease (AIMD), from 1 to `maximum`, where it begins.

    A timeout or a 5xx halves it, once for all POSTs that were in flight at that moment: eight that time out together
    are one piece of news. As many answers as there are slots add one slot.
    """

    def __init__(self, maximum: int) -> None:
        self._maximum = maximum
        self._value = float(maximum)
        self._halved = -math.inf

    @property
    def slots(self) -> int:
        """POSTs that may be in flight."""
        return int(self._value)

    def on_success(self) -> None:
        """Learn that a POST was answered."""
        self._value = min(float(self._maximum), self._value + 1 / self._value)

    def on_overload(self, sent: float, now: float) -> None:
        """Learn at `now` that a POST sent at `sent` timed out, or was answered with a 5xx."""
        if sent >= self._halved:
            self._value = max(1.0, self._value / 2)
            self._halved = now


def is_outage(error: UpstreamError) -> bool:
    """Whether an error counts against the upstream: no connection, a timeout, a 5xx.

    ERROR, UNAUTHORIZED and a malformed answer are answers: the upstream works.
    """
    if isinstance(error, UpstreamFailed):
        return error.status >= 500
    return isinstance(error, (UpstreamUnreachable, UpstreamTimeout))


class Suspects:
    """The client codes that were in every failure in a row: one of them may be the reason, rather than the upstream."""

    def __init__(self) -> None:
        self._codes: frozenset[str] | None = None

    def narrow(self, codes: Iterable[str]) -> bool:
        """Add a POST that failed; whether a code was in all of them. Without a connection no code is to blame."""
        self._codes = frozenset(codes) if self._codes is None else self._codes.intersection(codes)
        return bool(self._codes)

    def clear(self) -> None:
        """Begin again, after an answer."""
        self._codes = None


def is_retryable(error: UpstreamError) -> bool:
    """Whether the same POST may succeed a moment later.

    No connection, one closed before the first byte, 502, 503, 504; not a 503 that asks for a longer pause than ours.
    """
    if isinstance(error, UpstreamFailed):
        return error.status in (502, 503, 504) and error.retry_after <= MAX_BACKOFF
    return isinstance(error, UpstreamUnreachable)


def backoff(chance: float) -> float:
    """Seconds until the retry; `chance` is from 0 to 1."""
    return MIN_BACKOFF + (MAX_BACKOFF - MIN_BACKOFF) * chance


class RetryBudget:
    """How many POSTs may be sent a second time: `RETRY_RATIO` of requests, of which a few are saved."""

    def __init__(self) -> None:
        self._saved = 0.0

    def earn(self) -> None:
        """Count a request."""
        self._saved = min(MAX_SAVED_RETRIES, self._saved + RETRY_RATIO)

    def spend(self) -> bool:
        """Take a retry, if one is left."""
        if self._saved < 1 - 1e-9:  # ten tenths
            return False
        self._saved -= 1
        return True

    def give_back(self) -> None:
        """Return a retry that was not sent."""
        self._saved += 1


class Admission:
    """Slots for at most `max_posts` POSTs.

    Rules:
    - A POST holds its slot while its answer is read.
    - POSTs that the breaker refuses do not wait; when it opens, every waiting POST is refused.
    - The breaker does not open while one client code was in all failures in a row.
    """

    def __init__(self, max_posts: int, metrics: Metrics) -> None:
        self._metrics = metrics
        self._limit = AdaptiveLimit(max_posts)
        self._queue = WaitQueue(lambda reason: metrics.dropped.labels(reason).inc())
        self._suspects = Suspects()
        self._in_flight = 0
        self.breaker = CircuitBreaker(FAILURES_TO_OPEN, random.random)
        self._publish()

    @asynccontextmanager
    async def slot(self, codes: Sequence[str], waiters: Waiters, until: float = NO_DEADLINE) -> AsyncIterator[None]:
        """Hold a slot for one POST that is sent before `until`, and learn from its outcome.

        Raises Overloaded, UpstreamCircuitOpen.
        """
        loop = asyncio.get_running_loop()
        if not self.breaker.admits(now := loop.time()):
            raise self._refusal(now)
        await self._acquire(waiters, until)
        try:
            sent = loop.time()
            permit = self.breaker.admit(sent)
            if permit is None:
                raise self._refusal(sent)
            self._publish()
            outcome: UpstreamError | None = None
            ended = False
            try:
                yield
                ended = True
            except UpstreamError as error:
                outcome, ended = error, True
                raise
            finally:
                self._queue.record(loop.time() - sent)
                if ended:
                    self._learn(outcome, permit, codes, sent, loop.time())
                else:
                    self.breaker.withdraw(permit, loop.time())
        finally:
            self._release()

    def _learn(
        self, outcome: UpstreamError | None, permit: Permit, codes: Sequence[str], sent: float, now: float
    ) -> None:
        outage = outcome is not None and is_outage(outcome)
        self._metrics.healthy.set(not outage)
        current = self.breaker.counts(permit)
        if not outage:
            if current:
                self._suspects.clear()
            self.breaker.succeed(permit)
            self._limit.on_success()
            return
        refused = isinstance(outcome, UpstreamUnreachable)
        connected = not refused and not (isinstance(outcome, UpstreamTimeout) and outcome.connecting)
        excused = current and self._suspects.narrow(codes if connected else ())
        self.breaker.fail(permit, now, excused=excused)
        if not refused:
            self._limit.on_overload(sent, now)

    def _refusal(self, now: float) -> UpstreamCircuitOpen:
        """The refusal by the breaker, counted."""
        self._metrics.dropped.labels(DropReason.CIRCUIT).inc()
        seconds = max(1, math.ceil(self.breaker.until - now))
        return UpstreamCircuitOpen("the Callbutton server has failed several times in a row", seconds)

    async def _acquire(self, waiters: Waiters, limit: float) -> None:
        """Wait for a slot, until the last of the waiters gives up; more of them may join meanwhile."""
        if self._in_flight < self._limit.slots and not len(self._queue):
            self._in_flight += 1
            self._publish()
            return
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()

        def notify(refusal: UpstreamError | None) -> None:
            if not turn.done():
                turn.set_exception(refusal) if refusal else turn.set_result(None)

        entry = self._queue.add(waiters, loop.time(), self._limit.slots, notify, limit)
        self._publish()
        try:
            while not turn.done():
                until = entry.until
                await asyncio.wait([turn], timeout=None if until == math.inf else max(0.0, until - loop.time()))
                self._queue.expire(entry, loop.time(), self._limit.slots)
        except BaseException:
            if turn.done() and turn.exception() is None:
                self._release()  # cancelled after its turn had come
            raise
        finally:
            self._queue.remove(entry)
            self._publish()
        turn.result()

    def _release(self) -> None:
        """Give a slot back and admit the next POST; if the breaker is open, refuse every waiting one."""
        now = asyncio.get_running_loop().time()
        self._in_flight -= 1
        is_open = not self.breaker.admits(now)
        while (is_open or self._in_flight < self._limit.slots) and (first := self._queue.take(now)) is not None:
            if not is_open:
                self._in_flight += 1
            first.notify(self._refusal(now) if is_open else None)
        self._publish()

    def _publish(self) -> None:
        self._metrics.posts_in_flight.set(self._in_flight)
        self._metrics.queue.set(len(self._queue))
        self._metrics.limit.set(self._limit.slots)
        self._metrics.circuit.set(self.breaker.state)
