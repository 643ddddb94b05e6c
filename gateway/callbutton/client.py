"""The upstream as a function from clients and a window to calls.

Rules: one `fetch` sends one POST in a slot of `admission`, or two if the upstream rejects a future EndDate (T4).
Each is retried at most once, if the error is retryable. Nothing is cached, and no upstream text is logged.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Callable, Sequence
from contextlib import suppress

import xmltodict
from msgspec import Struct

from gateway import tracing
from gateway.callbutton import central_time
from gateway.callbutton.admission import Admission, RetryBudget, backoff, is_retryable
from gateway.callbutton.reply import Reply, ReplyParser
from gateway.callbutton.transport import Answer, Transport, UpstreamLimits
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
from gateway.model import CLIENT_CODE, EVERY_CLIENT, Call, StartTimeCertainty, UnreadableCall, Window

LOGGER = logging.getLogger(__name__)
DECLARATION = '<?xml version="1.0"?>\n'  # as printed in the document, without an encoding
RETRY_WITHIN = 0.5  # of a POST's deadline; a later retry might time out and count as an outage
OUTCOMES = {
    UpstreamUnauthorized: "unauthorized",
    UpstreamRejected: "rejected",
    UpstreamFailed: "error",
    UpstreamMalformed: "malformed",
    UpstreamUnreachable: "unreachable",
    UpstreamTimeout: "timeout",
}


class UpstreamSettings(Struct, frozen=True):
    """URL, limits, proxy and status flag element of the upstream, and whether it accepts a null EndDate."""

    url: str
    limits: UpstreamLimits
    proxy: str | None = None
    flag_element: str = "StatusFlag"
    null_end: bool = True


class Fetched(Struct, frozen=True):
    """The result of one POST, sent at `sent` (Unix time). Keys are client codes as the upstream spells them.

    `seconds` is how long the POST took. It is not measured by the clock of `sent`, which may be set.
    """

    sent: float
    calls: dict[str, list[Call]]
    unreadable: dict[str, list[UnreadableCall]]
    status_ignored: bool
    seconds: float = 0


class UpstreamClient:
    """Client of the Callbutton server."""

    def __init__(self, settings: UpstreamSettings, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self.transport = Transport(settings.url, settings.limits, settings.proxy)
        self._admission = Admission(settings.limits.concurrency, metrics)
        self._retries = RetryBudget()

    async def close(self) -> None:
        """Close the connections."""
        await self.transport.close()

    async def fetch(
        self, codes: Sequence[str], window: Window, *, status: bool, now: float, waiters: Waiters | None = None
    ) -> Fetched:
        """Fetch the calls of `codes` in a window, planned at `now`. Raises UpstreamError.

        The window must be aligned by `central_time.align_to_fold`. The reply may hold calls outside it, and of a window
        up to now it holds those up to the POST. Without waiters, the time in the queue is unlimited.
        """
        null_end = self._settings.null_end
        waiters = waiters or Waiters(background=Priority.MISS)

        def at_sending() -> central_time.WallRange:
            sent, asked = max(now, self._clock()), window
            if window.end >= now:  # planned up to now: its extent counts for all points up to the POST
                asked = central_time.align_to_fold(Window(window.start, max(window.end, math.ceil(sent))))
            return central_time.wall_range(asked, sent, null_end=null_end)

        try:
            return await self._ask(codes, at_sending, waiters, status=status)
        except UpstreamRejected:
            if window.end + 1 < now or at_sending().end is None or not null_end:
                raise
            without_end = central_time.wall_range_to_now(window, now)
            return await self._ask(codes, lambda: without_end, waiters, status=status)

    async def fetch_all(self, code: str, *, status: bool) -> Fetched:
        """Fetch all calls of a client with null dates, in one POST. Raises UpstreamError."""
        return await self._ask((code,), lambda: None, Waiters(background=Priority.MISS), status=status)

    async def _ask(
        self,
        codes: Sequence[str],
        at_sending: Callable[[], central_time.WallRange | None],
        waiters: Waiters,
        *,
        status: bool,
    ) -> Fetched:
        """POST, and retry once if the error is retryable, within one deadline."""

        def body() -> bytes:
            return render_request(codes, at_sending(), status=status, flag_element=self._settings.flag_element)

        loop, deadline = asyncio.get_running_loop(), self._settings.limits.deadline
        until, suspect = NO_DEADLINE, self._admission.has_suspect(codes)
        self._retries.earn()
        try:
            async with self._admission.slot(codes, waiters):
                until = loop.time() + deadline
                return await self._post(body(), until, status=status, single=len(codes) == 1)
        except UpstreamError as error:
            if suspect or not is_retryable(error) or self._others_fail() or not self._retries.spend():
                raise
            failure = error
        await asyncio.sleep(backoff(random.random()))  # noqa: S311 - not a secret
        latest = until - (1 - RETRY_WITHIN) * deadline
        if not self._others_fail() and loop.time() < latest:
            with suppress(NotSent):
                async with self._admission.slot(codes, waiters, latest):
                    self._metrics.retries.inc()
                    return await self._post(body(), until, status=status, single=len(codes) == 1)
        self._retries.give_back()
        raise failure

    def _others_fail(self) -> bool:
        """Whether another code's POST has failed since the last success. Only isolated failures are retried."""
        return self._admission.breaker.failures > 1

    async def _post(self, body: bytes, until: float, *, status: bool, single: bool) -> Fetched:
        time = asyncio.get_running_loop().time
        sent, began = self._clock(), time()
        outcome = "cancelled"
        try:
            with tracing.span("POST"):
                reply = await self._receive(body, until, status=status, single=single)
            outcome = "ok"
        except UpstreamError as error:
            outcome = OUTCOMES[type(error)]
            self._log(error, outcome)
            raise
        finally:
            self._metrics.posts.labels(outcome).inc()
            self._metrics.post_seconds.observe(time() - began)
        self._count(reply)
        return Fetched(sent, reply.calls, reply.unreadable, reply.status_ignored, time() - began)

    async def _receive(self, body: bytes, until: float, *, status: bool, single: bool) -> Reply:
        """POST, and parse the response as it arrives. Raises UpstreamError."""
        async with self.transport.post(body, until) as answer:
            check_status(answer)
            with tracing.span("parse") as parsing:
                parser = ReplyParser(status=status, charset=answer.charset, single=single)
                async for piece in answer.chunks:
                    self._metrics.reply_bytes.inc(len(piece))
                    parser.feed(piece)
                reply = parser.close()
                await asyncio.sleep(0)  # other tasks run before the calls are counted and cached
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
        certainties = [call.start_time_certainty for calls in reply.calls.values() for call in calls]
        metrics.calls_translated.inc(len(certainties))
        for certainty in (StartTimeCertainty.INFERRED, StartTimeCertainty.ASSUMED):
            if count := certainties.count(certainty):
                metrics.ambiguous_times.labels(certainty.value).inc(count)
        unnamed = sum(len(calls) for code, calls in reply.calls.items() if CLIENT_CODE.fullmatch(code) is None)
        metrics.calls_of_unnameable_clients.inc(unnamed)
        unreadable = sum(map(len, reply.unreadable.values()))
        metrics.calls_unreadable.inc(unreadable)
        metrics.unknown_elements.inc(reply.unknown_elements)
        for repair, count in reply.repairs.items():
            metrics.repairs.labels(repair).inc(count)
        if reply.status_ignored:
            metrics.status_ignored.inc()
        if unreadable or reply.repairs or reply.status_ignored:
            fields = {"unreadable": unreadable, "repairs": dict(reply.repairs), "statusIgnored": reply.status_ignored}
            LOGGER.warning("reply needed care", extra={"fields": fields})


def check_status(answer: Answer) -> None:
    """Check the HTTP status of an answer. Raises UpstreamError."""
    if answer.status in (401, 403):
        raise UpstreamUnauthorized(None, None)
    if answer.status not in (200, 203):
        raise UpstreamFailed(
            f"the Callbutton server answered with HTTP status {answer.status}",
            status=answer.status,
            retry_after=answer.retry_after,
        )


def render_request(
    codes: Sequence[str],
    wall_range: central_time.WallRange | None,
    *,
    status: bool = False,
    flag_element: str = "StatusFlag",
) -> bytes:
    """Render the body of a POST for the calls of `codes` in a range of wall times; None is all. Raises ValueError.

    `ClientCode` comes first, each followed by its status flag if status is asked, then `StartDate` and `EndDate`.
    """
    elements: list[tuple[str, str | None]] = []
    for code in codes:
        if code != EVERY_CLIENT and CLIENT_CODE.fullmatch(code) is None:
            raise ValueError(f"{code!r} is not a client code: letters, digits, _, . and -, at most 64")
        elements.append(("ClientCode", code))
        if status:
            elements.append((flag_element, "true"))
    elements += [("StartDate", wall_range and wall_range.start), ("EndDate", wall_range and wall_range.end)]
    # xmltodict writes all elements of one name together. Numbered names keep their order; the preprocessor removes
    # the number when the element is written.
    numbered = {f"{name} {number}": value for number, (name, value) in enumerate(elements)}
    document = {"Callbutton": {"@version": "B", "CallbuttonService": {"GetCallDetailsRequest": numbered}}}
    text = xmltodict.unparse(
        document, full_document=False, preprocessor=lambda name, value: (name.partition(" ")[0], value)
    )
    return f"{DECLARATION}{text}\n".encode("ascii")
