"""Answers to the consumers of the change feed, and readings that are refreshed once for all consumers that wait.

Rules:
- A bucket that differs from the consumer's state, but rests on older POSTs than its last report, is read again past the
  cache. If it is still older, it becomes pending.
- Consumers with equal states, views and limits share one comparison and one rendering.
- A watch refreshes one set of clients while consumers wait for changes, each time when its first point becomes stale.
  After a failure it retries with backoff, and the waiting consumers get the error.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from prometheus_client import Gauge

from gateway.cache.feed import Journal, Report, Snapshot, make_report, make_snapshot, outdated
from gateway.cache.feed_reader import NO_TERMS, Clients, FeedReader, FeedResult, Terms
from gateway.cache.feed_state import FeedState, advance, horizon, new_state
from gateway.cache.fingerprints import View
from gateway.cache.freshness import Provenance
from gateway.cache.level1 import bytes_of
from gateway.cache.reader import Cache
from gateway.errors import GatewayError, Overloaded
from gateway.memory import Lru, Memory
from gateway.metrics import Metrics
from gateway.model import Window
from gateway.slices import in_slices

SKEW = 2.0  # seconds that the clock of this process may be behind a state of another
MIN_PAUSE, MAX_PAUSE = 1.0, 60.0  # seconds between refreshes that fail
MAX_WAIT = 15.0  # seconds between refreshes, even if the clock steps, or all that was read stays fresh for longer
WOKEN = 20  # consumers in one iteration of the event loop
BUCKET_BYTES = 300
ANSWERS_SHARE = 1 / 16  # of the cache's bytes, for answers that several consumers may have
MAX_SHARED = 200  # changes of such an answer; longer ones are rare, and rendered for one consumer
SHARED_CALL_BYTES = 3500  # of a change, its rendering, and its part of a body
STATE_BYTES = 200  # of a bucket in a state
MAX_SHARE = 0.5  # of the cache's bytes, for the calls of one feed: a larger one would be fetched again and again


class Seen(Struct, frozen=True):
    """A reading as a view shows it, and the changes that led to it."""

    reading: FeedResult
    snapshot: Snapshot
    journal: Journal

    @property
    def size(self) -> int:
        """The memory that it holds, in bytes. Most calls are in the cache too, until they are evicted there."""
        calls = sum([extent.memo.size if extent.memo else bytes_of(extent.calls) for extent in self.snapshot.extents])
        return calls + BUCKET_BYTES * len(self.snapshot.buckets) + self.journal.size


class Answer(Struct, frozen=True):
    """The changes for a consumer, the number of calls that its copy then has, and the freshness of the reading.

    `rendered` keeps the rendered items, by the client codes of the request, which they contain, and the last body.
    """

    report: Report
    calls: int
    provenance: Provenance
    rendered: dict[Hashable, Any] = msgspec.field(default_factory=dict)


class Feeds:
    """The feeds of one cache. `memory` accounts for their readings, which are evicted first.

    A refresh may take `timeout` seconds, and the next one follows `fresh` seconds later, or when a point becomes stale.
    Waits end when the process is `stopping`.
    """

    def __init__(
        self,
        cache: Cache,
        memory: Memory,
        clock: Callable[[], float],
        timeout: float,
        metrics: Metrics,
        fresh: float = 15,
        stopping: asyncio.Event | None = None,
    ) -> None:
        self.clock = clock
        self.fresh = fresh
        self.metrics = metrics
        self.stopping = stopping or asyncio.Event()
        metrics.feed_seconds_behind.set_function(
            lambda: max([clock() - watch.as_of for watch in self._watches.values()], default=0)
        )
        self._cache = cache
        self.reader = FeedReader(cache, clock, timeout, MAX_SHARE * memory.bound)
        self._process = os.urandom(4)
        self._watches: dict[Clients, Watch] = {}
        self._seen: Lru[tuple[Clients, int, Hashable], Seen] = Lru(memory, MAX_SHARE)
        self._answers: Lru[tuple[int, Hashable, FeedState | int, int], Answer] = Lru(memory, ANSWERS_SHARE)
        memory.first_to_last[:0] = [self._answers.free, self._seen.free]

    async def answer(
        self,
        clients: Clients,
        state: FeedState | int,
        view: View,
        limit: int,
        terms: Terms = NO_TERMS,
        *,
        seen: Seen | None = None,
    ) -> Answer:
        """The changes for a consumer: since `state`, or all calls from a start on. Raises GatewayError.

        With `seen`, from this reading, unless the state is later; else from a fresh one.
        """
        start, at = (state, 0) if isinstance(state, int) else (state.start, state.at)
        if (behind := at - math.ceil(self.clock())) > 0:
            if behind > SKEW:
                raise Overloaded("the clock of this replica is behind the one that made `since`", behind)
            await asyncio.sleep(behind)
        if seen is None or seen.snapshot.end < at:
            seen = await self.see(clients, start, view, terms, at)
        key = seen.reading.numbers[1], view.name, state, limit
        if (known := self._answers.get(key)) is not None:
            return known
        current = self._advance(state, seen)
        if older := self._outdated(current, seen):
            reading = await self.reader.read(clients, start, terms, _joined(older))
            seen = await self.show(reading, clients, start, view)
            current = self._advance(state, seen)
            older = self._outdated(current, seen)
        report = await in_slices(make_report(current, seen.snapshot, limit, lookup=seen.journal, wait=older))
        after = replace(
            report.state,
            process=bytes(4) if older else self._process,
            evictions=seen.reading.evictions[0] % (1 << 16),
            reading=seen.reading.numbers[1],
        )
        answer = Answer(replace(report, state=after), seen.snapshot.calls, seen.reading.provenance)
        if not older and report.size <= MAX_SHARED:
            size = SHARED_CALL_BYTES * report.size + 2 * STATE_BYTES * len(after.reports)
            self._answers.put(key, answer, size)
        return answer

    def seen(self, clients: Clients, start: int, view: View) -> Seen | None:
        """The last reading of a feed; None if there is none in memory."""
        return self._seen.get((clients, start, view.name))

    async def see(self, clients: Clients, start: int, view: View, terms: Terms = NO_TERMS, until: int = 0) -> Seen:
        """A reading as a view shows it, up to `until` at least. Raises GatewayError.

        The last one is used while it is fresh and the cache has not changed.
        """
        last, now = self.seen(clients, start, view), self.clock()
        if last is not None and last.snapshot.end >= until:
            provenance = last.reading.provenance
            fresh_until = min(provenance.fresh_until, provenance.as_of + self.fresh)
            if provenance.planned <= now < fresh_until and not provenance.changed():
                return last
        return await self.show(await self.reader.read(clients, start, terms), clients, start, view)

    async def show(self, reading: FeedResult, clients: Clients, start: int, view: View) -> Seen:
        """A reading as a view shows it. Hashing yields to the event loop."""
        begin = horizon(start, reading.end)
        snapshot = await in_slices(make_snapshot(reading.extents, reading.lost, begin, reading.end, view))
        before = self.seen(clients, start, view)
        journal = Journal() if before is None else before.journal
        if before is not None:
            await in_slices(journal.record(before.snapshot, snapshot))
        seen = Seen(reading, snapshot, journal)
        self._seen.put((clients, start, view.name), seen, seen.size)
        return seen

    def _advance(self, state: FeedState | int, seen: Seen) -> FeedState:
        end = seen.reading.end
        return new_state(horizon(state, end), end) if isinstance(state, int) else advance(state, end)

    def _outdated(self, state: FeedState, seen: Seen) -> list[Window]:
        begun, ended = seen.reading.numbers
        same = (state.process, state.evictions) == (self._process, seen.reading.evictions[1] % (1 << 16))
        return outdated(state, seen.snapshot, same_cache=same and (begun > state.reading or ended == state.reading))

    @asynccontextmanager
    async def watching(self, clients: Clients, start: int, view: View, gauge: Gauge) -> AsyncIterator[Watch]:
        """Keep the calls of clients from a start on refreshed, with one watch for all consumers that wait for them.

        `gauge` counts these consumers.
        """
        watch = self._watches.get(clients)
        if watch is None:
            watch = self._watches[clients] = Watch(self, clients)
        watch.join(start, view)
        try:
            with gauge.track_inprogress():
                yield watch
        finally:
            if watch.leave(start, view):
                del self._watches[clients]


class Watch:
    """Refreshes of one set of clients, while consumers wait.

    `error` is that of the last refresh. `as_of` is when the newest point of the last successful reading was fetched, in
    seconds since 1970.
    """

    def __init__(self, feeds: Feeds, clients: Clients) -> None:
        self._feeds = feeds
        self._clients = clients
        self._joined: Counter[tuple[int, Hashable]] = Counter()  # by start and name of the view
        self._views: dict[Hashable, View] = {}
        self._waiters: dict[asyncio.Future[Seen | None], tuple[int, Hashable]] = {}
        self._end = 0  # of the last reading
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(self._ended)
        self._stop = asyncio.create_task(self._wake_at_the_end())
        self.error: GatewayError | None = None
        self.as_of = feeds.clock()

    def join(self, start: int, view: View) -> None:
        """Begin to wait."""
        self._joined[start, view.name] += 1
        self._views[view.name] = view

    def leave(self, start: int, view: View) -> bool:
        """Stop waiting. Returns True if no consumer waits any more."""
        self._joined[start, view.name] -= 1
        if not self._joined[start, view.name]:
            del self._joined[start, view.name]
            if not any(name == view.name for _, name in self._joined):
                del self._views[view.name]
        if not self._joined:
            self._task.cancel()
            self._stop.cancel()
        return not self._joined

    async def refreshed(self, start: int, view: View, after: int) -> Seen | None:
        """Wait for a reading that ends after the instant `after`. Raises GatewayError.

        Returns None when a refresh failed, with `error`, or when the process stops.
        """
        while not self._feeds.stopping.is_set():
            if self._end > after:  # the refresh came before the wait, or was of a later start
                seen = self._feeds.seen(self._clients, start, view)
                if seen is None or seen.snapshot.end <= after:
                    seen = await self._feeds.see(self._clients, start, view)
            else:
                seen = await self._next(start, view)
                if self.error is not None:
                    break
            if seen is not None and seen.snapshot.end > after:
                return seen
        return None

    async def _next(self, start: int, view: View) -> Seen | None:
        """Wait for the next refresh."""
        if self._task.done():
            self._task.result()  # raises its error
        waiter: asyncio.Future[Seen | None] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = start, view.name
        try:
            return await waiter
        finally:
            del self._waiters[waiter]

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Raise an unexpected error in all waiting consumers, which no refresh would wake any more."""
        if not task.cancelled() and (error := task.exception()) is not None:
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_exception(error)

    async def _wake_at_the_end(self) -> None:
        await self._feeds.stopping.wait()
        await self._wake({})

    async def _wake(self, seen: Mapping[tuple[int, Hashable], Seen]) -> None:
        """Wake all waiting consumers, a few in each iteration of the event loop, so that others are served."""
        for place, (waiter, key) in enumerate(list(self._waiters.items())):
            if not waiter.done():
                waiter.set_result(seen.get(key))
            if place % WOKEN == WOKEN - 1:
                await asyncio.sleep(0)

    async def _run(self) -> None:
        pause = MIN_PAUSE
        while True:
            seen: dict[tuple[int, Hashable], Seen] = {}
            try:
                wait = min(max(MIN_PAUSE, await self._refresh(seen)), MAX_WAIT)
            except GatewayError as error:
                self.error = error
                self._feeds.metrics.feed_refreshes.labels("failed").inc()
                wait = pause = min(MAX_PAUSE, 2 * pause)
            else:
                self.error, pause = None, MIN_PAUSE
                self._feeds.metrics.feed_refreshes.labels("ok").inc()
            await self._wake(seen)
            del seen
            await asyncio.sleep(wait)

    async def _refresh(self, seen: dict[tuple[int, Hashable], Seen]) -> float:
        """Read, and add the reading as each view shows it to `seen`. Returns for how many seconds it stays fresh."""
        first = min(start for start, _ in self._joined)
        reading = await self._feeds.reader.read(self._clients, first)
        for start, name in list(self._joined):
            if start >= first and (start, name) in self._joined:  # others came or went meanwhile
                seen[start, name] = await self._feeds.show(reading, self._clients, start, self._views[name])
        # Points after the window of the reading become stale too, once they are as old as its newest POST.
        provenance = reading.provenance
        self.as_of, self._end = provenance.as_of, reading.end
        return min(provenance.fresh_until, provenance.as_of + self._feeds.fresh) - self._feeds.clock()


def _joined(windows: Sequence[Window]) -> list[Window]:
    """Join windows that touch."""
    joined: list[Window] = []
    for window in windows:
        if joined and joined[-1].end == window.start:
            joined[-1] = Window(joined[-1].start, window.end)
        else:
            joined.append(window)
    return joined
