"""The way to the upstream: the line, the limit and the breaker as one.

Rules: a POST has a place while its answer is read. What the breaker refuses does not wait; when it opens, all who wait
go away. Instants are of the event loop's clock.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from gateway.callbutton.breaker import Breaker, counts
from gateway.callbutton.limit import Limit
from gateway.callbutton.queue import Demand, Line, Reason, Waiting
from gateway.errors import UpstreamCircuitOpen, UpstreamError, UpstreamTimeout, UpstreamUnreachable
from gateway.metrics import Metrics


class Gate:
    """At most `most` POSTs at a time, in their order."""

    def __init__(self, most: int, metrics: Metrics) -> None:
        self._metrics = metrics
        self._limit = Limit(most)
        self._line = Line(lambda reason: metrics.dropped.labels(reason).inc())
        self._breaker = Breaker(random.random)
        self._under_way = 0
        self._show()

    @property
    def failures(self) -> int:
        """POSTs in a row that failed."""
        return self._breaker.failures

    @asynccontextmanager
    async def through(self, codes: Sequence[str], demand: Demand) -> AsyncIterator[None]:
        """Hold a place for one POST, and learn from its error. Raises Overloaded, UpstreamCircuitOpen."""
        loop = asyncio.get_running_loop()
        self._refuse(loop.time())
        await self._place(demand)
        try:
            sent = loop.time()
            self._refuse(sent)
            permit = self._breaker.admit(sent)
            self._show()
            failure: UpstreamError | None = None
            ended = False
            try:
                yield
                ended = True
            except UpstreamError as error:
                failure, ended = error, True
                raise
            finally:
                now = loop.time()
                self._line.learn(now - sent)
                if not ended:
                    self._breaker.unsent(permit, now)
                elif failure is None or not counts(failure):
                    self._breaker.answered(permit)
                    self._limit.answered()
                else:
                    refused = isinstance(failure, UpstreamUnreachable)
                    connected = not refused and not (isinstance(failure, UpstreamTimeout) and failure.connecting)
                    self._breaker.failed(permit, codes, now, connected=connected)
                    if not refused:
                        self._limit.strained(sent, now)
                if ended:
                    self._metrics.healthy.set(failure is None or not counts(failure))
        finally:
            self._under_way -= 1
            self._let_in(loop.time())

    def _refuse(self, now: float) -> None:
        try:
            self._breaker.refuse(now)
        except UpstreamCircuitOpen:
            self._metrics.dropped.labels(Reason.CIRCUIT).inc()
            raise

    async def _place(self, demand: Demand) -> None:
        """Wait for a place."""
        if self._under_way < self._limit.allowed and not len(self._line):
            self._under_way += 1
            self._show()
            return
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()

        def told(refusal: UpstreamError | None) -> None:
            if not turn.done():
                turn.set_exception(refusal) if refusal else turn.set_result(None)

        waiting = self._line.join(demand, loop.time(), self._limit.allowed, told)
        self._show()
        try:
            await self._turn(turn, waiting)
        finally:
            self._line.leave(waiting)
            self._show()

    async def _turn(self, turn: asyncio.Future[None], waiting: Waiting) -> None:
        """Wait for a turn until the last of those who await the POST leaves; they may become more meanwhile."""
        loop = asyncio.get_running_loop()
        while not turn.done():
            until = waiting.demand.until
            await asyncio.wait([turn], timeout=None if until == float("inf") else max(0.0, until - loop.time()))
            self._line.expire(waiting, loop.time(), self._limit.allowed)
        turn.result()

    def _let_in(self, now: float) -> None:
        refusal: UpstreamError | None = None
        try:
            self._breaker.refuse(now)
        except UpstreamCircuitOpen as error:
            refusal = error
        while (refusal or self._under_way < self._limit.allowed) and (first := self._line.take(now)) is not None:
            if refusal:
                self._metrics.dropped.labels(Reason.CIRCUIT).inc()
            else:
                self._under_way += 1
            first.told(refusal)
        self._show()

    def _show(self) -> None:
        self._metrics.posts_in_flight.set(self._under_way)
        self._metrics.queue.set(len(self._line))
        self._metrics.limit.set(self._limit.allowed)
        self._metrics.circuit.set(self._breaker.state)
