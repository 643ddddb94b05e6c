"""Admission to the upstream: how many POSTs are in flight, whether to send one at all, and whether to send it again.

    Admission       a slot for one POST: wait queue, limit and circuit breaker together
    AdaptiveLimit   the number of slots
    Evidence        outcomes by client code: which failures count for all codes
    RetryBudget     the number of POSTs that may be sent a second time

All but Admission are pure; instants are of the event loop's clock, and arguments.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from gateway.callbutton.wait_queue import NO_DEADLINE, DropReason, Entry, Waiters, WaitQueue
from gateway.circuit_breaker import CircuitBreaker, Permit
from gateway.errors import (
    UpstreamCircuitOpen,
    UpstreamError,
    UpstreamFailed,
    UpstreamTimeout,
    UpstreamUnauthorized,
    UpstreamUnreachable,
)
from gateway.metrics import Metrics
from gateway.model import EVERY_CLIENT

FAILURES_TO_OPEN = 5  # in a row; fewer happen by chance
RETRY_RATIO = 0.1  # retries a request: an upstream that is down is not asked twice as much
MAX_SAVED_RETRIES = 5.0  # a retry is for one POST among many that succeed, not for an outage
MIN_BACKOFF, MAX_BACKOFF = 0.05, 0.25  # seconds
MAX_SUSPECTS, MAX_PROVEN = 1000, 20_000  # codes, at most 3 MB; the least recent is dropped
T = TypeVar("T")


class AdaptiveLimit:
    """The number of slots: additive increase, multiplicative decrease (AIMD), from 1 to `maximum`, where it begins.

    A timeout or a 5xx halves it, once for all POSTs that were in flight at that moment: eight that time out together
    count as one. As many answers as there are slots add one slot.
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


class Evidence:
    """The outcomes of POSTs by client code, and the one rule of which failures count for all codes.

    Rules:
    - A code is a suspect from a failed POST for it alone until its next answer.
    - A failure counts for all codes if no code is to blame: there was no connection, `*` was asked for, or its code was
      no suspect before. Repeated failures of suspects count for themselves, however many there are.
    - The failure of a batch counts for nothing: its codes are sent again, each alone.
    - UNAUTHORIZED is an answer. If `*` or two codes in a row are refused, so is the gateway's address, presumably.
    """

    def __init__(self) -> None:
        self._suspects: OrderedDict[str, float] = OrderedDict()  # with the seconds that the POST which failed took
        self._proven: OrderedDict[str, None] = OrderedDict()  # codes whose last POST was answered
        self._refused: frozenset[str] = frozenset()  # codes that were refused since another was not, at most two

    def answered(self, codes: Sequence[str], *, refused: bool = False) -> bool:
        """Learn that a POST was answered, or `refused`. Returns whether the gateway's address seems to be allowed."""
        if not refused:
            self._refused = frozenset()
        elif len(codes) == 1:
            self._refused = frozenset([*codes, *list(self._refused)[:1]])
        for code in codes:
            self._suspects.pop(code, None)
            _remember(self._proven, code, None, MAX_PROVEN)
        return len(self._refused) < 2 and EVERY_CLIENT not in self._refused

    def failed(self, codes: Sequence[str], seconds: float, *, connected: bool) -> bool:
        """Learn that a POST failed after some seconds. Returns whether that counts for all codes."""
        if not connected:
            return True
        if len(codes) > 1:
            return False
        counts = codes[0] == EVERY_CLIENT or codes[0] not in self._suspects
        self._proven.pop(codes[0], None)
        _remember(self._suspects, codes[0], seconds, MAX_SUSPECTS)
        return counts

    def seconds_of_suspects(self, codes: Iterable[str]) -> float | None:
        """The longest time that a POST for a suspect among codes took; None if there is none."""
        return max((self._suspects[code] for code in codes if code in self._suspects), default=None)

    def are_proven(self, codes: Sequence[str]) -> bool:
        """Whether the last POST for each of the codes was answered."""
        return all(code in self._proven for code in codes)

    @property
    def is_spread(self) -> bool:
        """Whether more than two codes are suspects: one or two may be at fault themselves."""
        return len(self._suspects) > 2


def _remember(known: OrderedDict[str, T], code: str, value: T, most: int) -> None:
    known[code] = value
    known.move_to_end(code)
    if len(known) > most:
        known.popitem(last=False)


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
        if self._saved < 1 - 1e-9:  # a sum of ten tenths may be slightly less than 1
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
    - A client code holds at most half of the slots, a quarter until it was answered, one while it is a suspect. All
      suspects together hold at most half.
    - POSTs that the breaker refuses do not wait; when it opens, every waiting POST is refused.
    - The breaker, the limit and the durations that the queue reckons with learn only failures that count for all codes,
      and the limit only if these are spread over several.
    - While the breaker is open, a code whose last POST was answered may be the probe.
    """

    def __init__(self, max_posts: int, metrics: Metrics) -> None:
        self._metrics = metrics
        self._limit = AdaptiveLimit(max_posts)
        self._queue = WaitQueue(lambda reason: metrics.dropped.labels(reason).inc())
        self._evidence = Evidence()
        self._in_flight = 0
        self.breaker = CircuitBreaker(FAILURES_TO_OPEN, random.random)
        self._publish()

    def has_suspect(self, codes: Sequence[str]) -> bool:
        """Whether the last POST for one of the codes failed."""
        return self._evidence.seconds_of_suspects(codes) is not None

    @asynccontextmanager
    async def slot(self, codes: Sequence[str], waiters: Waiters, until: float = NO_DEADLINE) -> AsyncIterator[None]:
        """Hold a slot for one POST that is sent before `until`, and learn from its outcome.

        Raises Overloaded, UpstreamCircuitOpen.
        """
        loop = asyncio.get_running_loop()
        if not self.breaker.admits(now := loop.time(), trusted=self._evidence.are_proven(codes)):
            raise self._refusal(now)
        await self._acquire(codes, waiters, until)
        try:
            sent = loop.time()
            permit = self.breaker.admit(sent, trusted=self._evidence.are_proven(codes))
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
                if ended:
                    self._learn(outcome, permit, codes, sent, loop.time())
                else:
                    self.breaker.withdraw(permit, loop.time())
        finally:
            self._release(codes)

    def _learn(
        self, outcome: UpstreamError | None, permit: Permit, codes: Sequence[str], sent: float, now: float
    ) -> None:
        if outcome is None or not is_outage(outcome):
            allowed = self._evidence.answered(codes, refused=isinstance(outcome, UpstreamUnauthorized))
            self._metrics.healthy.set(allowed)
            self._queue.record(now - sent)
            self.breaker.succeed(permit)
            self._limit.on_success()
            return
        connected = not outcome.disconnected
        counts = self._evidence.failed(codes, now - sent, connected=connected)
        self.breaker.fail(permit, now, excused=not counts)
        if counts:
            self._metrics.healthy.set(0)
            self._queue.record(now - sent)
            if not isinstance(outcome, UpstreamUnreachable) and (self._evidence.is_spread or not connected):
                self._limit.on_overload(sent, now)

    def _may_go(self, codes: Sequence[str]) -> bool:
        """Whether a slot is free for a POST, and its codes hold less than their share."""
        slots, held = self._limit.slots, self._queue.held
        if self.has_suspect(codes):
            share = 1
            if sum(count for code, count in held.items() if self.has_suspect([code])) >= max(1, slots // 2):
                return False
        else:
            share = max(1, slots // (2 if self._evidence.are_proven(codes) else 4))
        return self._in_flight < slots and all(held[code] < share for code in codes)

    def _take(self, codes: Sequence[str]) -> None:
        self._in_flight += 1
        self._queue.held.update(codes)
        self._publish()

    def _refusal(self, now: float) -> UpstreamCircuitOpen:
        """The refusal by the breaker, counted."""
        self._metrics.dropped.labels(DropReason.CIRCUIT).inc()
        seconds = max(1, math.ceil(self.breaker.until - now))
        return UpstreamCircuitOpen("the Callbutton server has failed several times in a row", seconds)

    async def _acquire(self, codes: Sequence[str], waiters: Waiters, limit: float) -> None:
        """Wait for a slot, until the last of the waiters gives up; more of them may join meanwhile."""
        if self._may_go(codes):  # this overtakes no waiting entry that may go: it would have gone already
            self._take(codes)
            return
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()

        def notify(refusal: UpstreamError | None) -> None:
            if not turn.done():
                turn.set_exception(refusal) if refusal else turn.set_result(None)

        alone = self._evidence.seconds_of_suspects(codes) or 0.0
        entry = self._queue.add(Entry(waiters, notify, codes, limit), loop.time(), self._limit.slots, alone)
        self._publish()
        try:
            while not turn.done():
                until = entry.until
                await asyncio.wait([turn], timeout=None if until == math.inf else max(0.0, until - loop.time()))
                self._queue.expire(entry, loop.time(), self._limit.slots)
        except BaseException:
            if turn.done() and turn.exception() is None:
                self._release(codes)  # cancelled after its turn had come
            raise
        finally:
            self._queue.remove(entry)
            self._publish()
        turn.result()

    def _release(self, codes: Sequence[str]) -> None:
        """Give a slot back and admit the next POSTs; if the breaker is open, refuse every waiting one."""
        now = asyncio.get_running_loop().time()
        self._in_flight -= 1
        self._queue.held -= Counter(codes)
        if self.breaker.admits(now):
            while (first := self._queue.take(now, self._may_go)) is not None:
                self._take(first.codes)
                first.notify(None)
        else:
            while (first := self._queue.take(now)) is not None:
                first.notify(self._refusal(now))
        self._publish()

    def _publish(self) -> None:
        self._metrics.posts_in_flight.set(self._in_flight)
        self._metrics.queue.set(len(self._queue))
        self._metrics.limit.set(self._limit.slots)
        self._metrics.circuit.set(self.breaker.state)
