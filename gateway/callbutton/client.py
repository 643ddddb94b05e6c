"""The upstream as a function: calls of some clients in a window.

Rules: one `fetch` is one POST in a slot of `admission`, two where the upstream refuses an EndDate that lies ahead (T4),
each sent a second time at most, where that can help. Nothing is cached, and no text of the upstream is logged.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress

from msgspec import Struct

from gateway import tracing
from gateway.callbutton import central_time
from gateway.callbutton.admission import Admission, RetryBudget, backoff, is_retryable
from gateway.callbutton.reply import Reply, ReplyParser
from gateway.callbutton.request import render_request
from gateway.callbutton.transport import Limits, Transport
from gateway.callbutton.wait_queue import NO_DEADLINE, Priority, Waiters
from gateway.errors import (
    NotSent,
    UpstreamError,
    UpstreamFailed,
    UpstreamMalformed,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnauthorized,
    UpstreamUnreachable,
)
from gateway.metrics import Metrics
from gateway.model import Call, Certainty, Window

LOGGER = logging.getLogger(__name__)
RETRY_WITHIN = 0.5  # of a POST's deadline; a retry that began later might be cut off and count as an outage
OUTCOMES = {
    UpstreamUnauthorized: "unauthorized",
    UpstreamRejected: "rejected",
    UpstreamFailed: "error",
    UpstreamMalformed: "malformed",
    UpstreamUnreachable: "unreachable",
    UpstreamTimeout: "timeout",
}


class UpstreamSettings(Struct, frozen=True):
    """Where the upstream is and how it is treated."""

    url: str
    limits: Limits
    proxy: str | None = None
    flag_element: str = "StatusFlag"


class Fetched(Struct, frozen=True):
    """What one POST brought: calls by client code as the upstream spells it, sent at an instant since 1970."""

    sent: float
    calls: dict[str, list[Call]]
    unreadable: dict[str, int]
    status_ignored: bool


class UpstreamClient:
    """The Callbutton server behind us."""

    def __init__(self, settings: UpstreamSettings, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._transport = Transport(settings.url, settings.limits, settings.proxy)
        self._admission = Admission(settings.limits.concurrency, metrics)
        self._retries = RetryBudget()

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    async def fetch(
        self, codes: Sequence[str], window: Window, *, status: bool, now: float, demand: Waiters | None = None
    ) -> Fetched:
        """Ask for the calls of `codes` in a window (that `central_time.whole` left as it is), planned at `now`.

        The reply may hold calls outside of it. Without a `demand` it waits for its turn as long as that takes. Raises
        UpstreamError.
        """
        wall_range = central_time.wall_range(window, now)
        demand = demand or Waiters(background=Priority.MISS)
        try:
            return await self._ask(codes, wall_range, demand, status=status)
        except UpstreamRejected:
            without_end = central_time.wall_range_to_now(window, now)
            if window.end < now or wall_range.end is None:
                raise
            return await self._ask(codes, without_end, demand, status=status)

    async def fetch_all(self, codes: Sequence[str], *, status: bool) -> Fetched:
        """Ask for all calls of `codes` by null dates, in one POST. Raises UpstreamError."""
        return await self._ask(codes, None, Waiters(background=Priority.MISS), status=status)

    async def _ask(
        self, codes: Sequence[str], wall_range: central_time.WallRange | None, waiters: Waiters, *, status: bool
    ) -> Fetched:
        """POST, and once more where that can help, all within one deadline."""
        body = render_request(codes, wall_range, status=status, flag_element=self._settings.flag_element)
        loop, deadline = asyncio.get_running_loop(), self._settings.limits.deadline
        until = NO_DEADLINE
        self._retries.earn()
        try:
            async with self._admission.slot(codes, waiters):
                until = loop.time() + deadline
                return await self._post(body, until, status=status)
        except UpstreamError as error:
            if not is_retryable(error) or self._others_fail() or not self._retries.spend():
                raise
            failure = error
        await asyncio.sleep(backoff(random.random()))  # noqa: S311 - not a secret
        latest = until - (1 - RETRY_WITHIN) * deadline
        if not self._others_fail() and loop.time() < latest:
            with suppress(NotSent):
                async with self._admission.slot(codes, waiters, latest):
                    self._metrics.retries.inc()
                    return await self._post(body, until, status=status)
        self._retries.give_back()
        raise failure

    def _others_fail(self) -> bool:
        """Whether another POST has failed since the last answer: a retry is for a failure that stands alone."""
        return self._admission.breaker.failures > 1

    async def _post(self, body: bytes, until: float, *, status: bool) -> Fetched:
        sent = self._clock()
        outcome = "cancelled"
        try:
            with tracing.span("POST"):
                reply = await self._receive(body, until, status=status)
            outcome = "ok"
        except UpstreamError as error:
            outcome = OUTCOMES[type(error)]
            self._log(error, outcome)
            raise
        finally:
            self._metrics.posts.labels(outcome).inc()
            self._metrics.post_seconds.observe(max(0.0, self._clock() - sent))
        self._count(reply)
        return Fetched(sent, reply.calls, reply.unreadable, reply.status_ignored)

    async def _receive(self, body: bytes, until: float, *, status: bool) -> Reply:
        """POST, and parse the answer as it comes. Raises UpstreamError."""
        async with self._transport.post(body, until) as answer:
            if answer.status in (401, 403):
                raise UpstreamUnauthorized(None, None)
            if answer.status not in (200, 203):
                raise UpstreamFailed(
                    f"the Callbutton server answered with HTTP status {answer.status}",
                    status=answer.status,
                    retry_after=answer.retry_after,
                )
            with tracing.span("parse") as parsing:
                parser = ReplyParser(status=status, charset=answer.charset)
                async for piece in answer.chunks:
                    self._metrics.reply_bytes.inc(len(piece))
                    parser.feed(piece)
                reply = parser.close()
                if parsing is not None:
                    parsing.set_attributes({"calls": sum(map(len, reply.calls.values())), "clients": len(reply.calls)})
                return reply

    def _log(self, error: UpstreamError, outcome: str) -> None:
        fields: dict[str, object] = {"outcome": outcome}
        if isinstance(error, UpstreamUnauthorized):
            fields |= {"username": error.username, "address": error.address}
        elif not isinstance(error, UpstreamRejected):
            fields["detail"] = str(error)
        LOGGER.warning("upstream failed", extra={"fields": fields})

    def _count(self, reply: Reply) -> None:
        metrics = self._metrics
        certainties: Counter[Certainty] = Counter()
        for calls in reply.calls.values():
            metrics.calls_translated.inc(len(calls))
            certainties.update(call.start_time_certainty for call in calls)
        for certainty in (Certainty.INFERRED, Certainty.ASSUMED):
            if certainties[certainty]:
                metrics.ambiguous_times.labels(certainty.value).inc(certainties[certainty])
        unreadable = sum(reply.unreadable.values())
        metrics.calls_unreadable.inc(unreadable)
        metrics.unknown_elements.inc(reply.unknown_elements)
        for repair, count in reply.repairs.items():
            metrics.repairs.labels(repair).inc(count)
        if reply.status_ignored:
            metrics.status_ignored.inc()
        if unreadable or reply.repairs or reply.status_ignored:
            fields = {"unreadable": unreadable, "repairs": dict(reply.repairs), "statusIgnored": reply.status_ignored}
            LOGGER.warning("reply needed care", extra={"fields": fields})
