"""An in-process upstream, and a cache in front of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry

from benchmarks.world import DAY as DAY
from benchmarks.world import HOUR as HOUR
from benchmarks.world import NOW as NOW
from benchmarks.world import call as call
from gateway.cache.freshness import Rule
from gateway.cache.reader import Cache, CacheSettings, Query
from gateway.callbutton.client import Fetched
from gateway.callbutton.wait_queue import Waiters
from gateway.errors import UpstreamError
from gateway.metrics import Metrics
from gateway.model import Call, UnreadableCall, Window

LAST_HOUR = Window(NOW - HOUR, NOW)
Fault = Callable[[Sequence[str], Window], UpstreamError | None]


def unreadable(identity: str, start: int, code: str = "a", latest: int | None = None) -> UnreadableCall:
    """A record that starts at `start`, or somewhen up to `latest`."""
    first, last = (datetime.fromtimestamp(second, UTC) for second in (start, latest or start))
    return UnreadableCall(identity, code, first, last)


class Upstream:
    """Calls, each with its time of publication. Replies cover one second more than requested on each side."""

    def __init__(self) -> None:
        self.now: float = NOW
        self.published: list[tuple[float, Call]] = []
        self.posts: list[tuple[tuple[str, ...], Window]] = []
        self.failure: Exception | None = None
        self.leave_out: set[str] = set()
        self.gate: asyncio.Event | None = None
        self.unreadable: list[UnreadableCall] = []

    async def __call__(
        self,
        codes: Sequence[str],
        window: Window,
        *,
        status: bool,  # noqa: ARG002
        now: float,
        waiters: Waiters,  # noqa: ARG002
    ) -> Fetched:
        self.posts.append((tuple(codes), window))
        sent = self.now
        end = self.now if window.end >= now else window.end + 1
        found: dict[str, list[Call]] = {
            code: [] for code in codes if code != "*" and (len(codes) == 1 or code not in self.leave_out)
        }
        for since, one in self.published:
            seconds = one.start_time.timestamp()
            if since <= sent and window.start - 1 <= seconds <= end and ("*" in codes or one.client_code in found):
                found.setdefault(one.client_code, []).append(one)
        if self.gate is not None:
            await self.gate.wait()
        else:
            await asyncio.sleep(0)
        if self.failure is not None:
            raise self.failure
        unreadable: dict[str, list[UnreadableCall]] = {}
        for record in self.unreadable:
            if record.client_code in found or "*" in codes:
                unreadable.setdefault(record.client_code, []).append(record)
        return Fetched(sent, found, unreadable, status_ignored=False, seconds=self.now - sent)


def cache_of(upstream: Upstream, kind: type[Cache] = Cache, **changes: int) -> Cache:
    values: dict[str, Any] = {"max_span": 31 * DAY, "batch": 50, "cache_bytes": 2**28} | changes
    rules = CacheSettings(plain=Rule(), with_status=Rule(ratio=0.01), **values)
    return kind(upstream, rules, Metrics(CollectorRegistry()), lambda: upstream.now)


def ask(codes: Sequence[str], window: Window, **changes: Any) -> Query:
    return Query(codes=tuple(codes), window=window, **changes)


def ids(calls: Sequence[Call]) -> list[str]:
    return sorted(one.id for one in calls)


class Faulty(Upstream):
    """An upstream whose POSTs fail for given codes and windows, and that may echo other codes."""

    def __init__(self, fault: Fault | None = None) -> None:
        super().__init__()
        self.fault = fault
        self.echoes: dict[str, str] = {}

    async def __call__(
        self,
        codes: Sequence[str],
        window: Window,
        *,
        status: bool,
        now: float,
        waiters: Waiters,
    ) -> Fetched:
        fetched = await super().__call__(codes, window, status=status, now=now, waiters=waiters)
        if self.fault is not None and (error := self.fault(codes, window)) is not None:
            raise error
        return Fetched(
            fetched.sent,
            {self.echoes.get(code, code): calls for code, calls in fetched.calls.items()},
            fetched.unreadable,
            status_ignored=False,
        )
