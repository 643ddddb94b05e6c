"""Readings for the change feed: the whole window of a feed at one instant, refreshed once for all who wait.

Rules:
- Nothing is told from a reading that failed or is stale (T3).
- What differs and rests on POSTs older than what was told is read once more; if it is still older, it is told later.
- A watch refreshes one set of clients for as long as someone waits for it, each time when its first point gets stale.
  A failure pauses it with backoff, and those who wait learn of it.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import asynccontextmanager

from msgspec import Struct
from msgspec.structs import replace
from prometheus_client import Gauge

from gateway.cache.extents import Extent, deduplicated
from gateway.cache.feed import Journal, Snapshot, Telling, make_snapshot, outdated, superseded, tell
from gateway.cache.feed_state import FeedState, advance, horizon, new_state
from gateway.cache.fingerprints import View
from gateway.cache.freshness import Provenance
from gateway.cache.level1 import bytes_of
from gateway.cache.reader import Cache, Query
from gateway.cache.scans import COUNTS, MAX_INLINE, Spans
from gateway.errors import GatewayError, InvalidParameters, Overloaded, ParameterFault, UpstreamFailed
from gateway.metrics import Metrics
from gateway.model import Window
from gateway.slices import in_slices

SKEW = 2.0  # seconds that the clock of this process may be behind a state of another
MIN_PAUSE, MAX_PAUSE = 1.0, 60.0  # seconds between refreshes that fail
MAX_WAIT = 15.0  # seconds between refreshes, even if the clock steps, or all that was read stays fresh for longer
MAX_SHARE = 0.5  # of the cache's bytes, for the calls of one feed: a larger one would be fetched again and again


class Clients(Struct, frozen=True):
    """The client codes of a feed (`*` alone for all), and whether it has the status of calls."""

    codes: tuple[str, ...]
    status: bool


class Terms(Struct, frozen=True):
    """For how long a request waits, until an instant of the event loop's clock, and what it does before it waits."""

    deadline: float | None = None
    before_wait: Callable[[], None] = lambda: None


NO_TERMS = Terms()


class FeedResult(Struct, frozen=True):
    """All calls from a start to `end`, merged, and what they rest on.

    `lost` are the calls of which there is a later version elsewhere: their start, and when its POST was sent.
    `evictions` is what the cache had evicted before and after the reading.
    """

    extents: Sequence[Extent]
    lost: Sequence[tuple[float, float]]
    end: int
    provenance: Provenance
    evictions: tuple[int, int]


class Answer(Struct, frozen=True):
    """What to tell a consumer, all calls of the feed, and the reading that both rest on."""

    telling: Telling
    snapshot: Snapshot
    reading: FeedResult


class Seen(Struct, frozen=True):
    """A reading as a view shows it, and the changes that led to it."""

    reading: FeedResult
    snapshot: Snapshot
    journal: Journal


class Feeds:
    """The feeds of one cache, which holds `bound` bytes.

    A refresh may take `timeout` seconds, and the next one follows `fresh` seconds later, or when a point becomes stale.
    """

    def __init__(
        self,
        cache: Cache,
        bound: float,
        clock: Callable[[], float],
        timeout: float,
        metrics: Metrics,
        fresh: float = 15,
    ) -> None:
        self.clock = clock
        self.fresh = fresh
        self.metrics = metrics
        metrics.feed_seconds_behind.set_function(
            lambda: max([clock() - watch.as_of for watch in self._watches.values()], default=0)
        )
        self._cache = cache
        self._bound = bound
        self._timeout = timeout
        self._process = os.urandom(4)
        self._watches: dict[Clients, Watch] = {}

    async def read(
        self, clients: Clients, start: int, terms: Terms = NO_TERMS, *, windows: Sequence[Window] = ()
    ) -> FeedResult:
        """Read the calls of clients from a start until now, `windows` of it past the cache. Raises UpstreamError."""
        for window in windows:
            await self._read(clients, window, terms, no_cache=True)
        return await self._read(clients, Window(start, math.ceil(self.clock())), terms)

    async def _read(self, clients: Clients, window: Window, terms: Terms, *, no_cache: bool = False) -> FeedResult:
        now, evictions = self.clock(), self._cache.evictions(clients.codes)
        query = Query(
            codes=clients.codes,
            window=window,
            status=clients.status,
            no_cache=no_cache,
            no_stale=True,
            deadline=terms.deadline or asyncio.get_running_loop().time() + self._timeout,
            before_wait=terms.before_wait,
        )
        extents: list[Extent] = []
        total: Provenance | None = None
        spans = Spans(self._cache, query, now, COUNTS, newest_first=False)
        try:
            spans.begin()
            while (part := await spans.next()) is not None:
                spans.begin()
                if part.stale:
                    raise UpstreamFailed("a reply lost many calls, and is doubted until another one confirms it")
                extents += part.extents
                total = total.combine(part) if total is not None else part
        finally:
            spans.leave()
        evicted = self._cache.evictions(clients.codes)
        if evicted != evictions:
            _refuse_too_large(sum(bytes_of(extent.calls) for extent in extents), int(MAX_SHARE * self._bound))
        many = sum(len(extent.calls) for extent in extents) > MAX_INLINE
        merged = await asyncio.to_thread(deduplicated, extents) if many else deduplicated(extents)
        total = total or Provenance(planned=now, as_of=now, oldest_fetch=now, fresh_until=now)
        return FeedResult(merged, superseded(extents, merged), window.end, total, (evictions, evicted))

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
        """What to tell a consumer that has a state, or nothing yet from a start on. Raises GatewayError."""
        start = state if isinstance(state, int) else state.start
        if not isinstance(state, int) and (behind := state.at - math.ceil(self.clock())) > 0:
            if behind > SKEW:
                raise Overloaded("the clock of this replica is behind the one that made `since`", behind)
            await asyncio.sleep(behind)
        if seen is None or seen.snapshot.end < (0 if isinstance(state, int) else state.at):
            seen = await self.see(await self.read(clients, start, terms), start, view)
        current = self._advance(state, seen)
        if older := self._outdated(current, seen):
            seen = await self.see(await self.read(clients, start, terms, windows=_joined(older)), current.start, view)
            current = self._advance(state, seen)
            older = self._outdated(current, seen)
        telling = tell(current, seen.snapshot, limit, lookup=seen.journal, wait=older)
        process = bytes(4) if older else self._process
        after = replace(telling.state, process=process, evictions=seen.reading.evictions[0] % (1 << 16))
        return Answer(replace(telling, state=after), seen.snapshot, seen.reading)

    async def see(self, reading: FeedResult, start: int, view: View, before: Seen | None = None) -> Seen:
        """A reading as a view shows it. `before` was seen earlier. Hashing yields to the event loop."""
        start = horizon(start, reading.end)
        snapshot = await in_slices(make_snapshot(reading.extents, reading.lost, start, reading.end, view))
        journal = Journal() if before is None else before.journal
        if before is not None:
            journal.record(before.snapshot, snapshot)
        return Seen(reading, snapshot, journal)

    def _advance(self, state: FeedState | int, seen: Seen) -> FeedState:
        end = seen.reading.end
        return new_state(horizon(state, end), end) if isinstance(state, int) else advance(state, end)

    def _outdated(self, state: FeedState, seen: Seen) -> list[Window]:
        same = (state.process, state.evictions) == (self._process, seen.reading.evictions[1] % (1 << 16))
        return outdated(state, seen.snapshot, same_cache=same)

    @asynccontextmanager
    async def watching(self, clients: Clients, start: int, view: View, gauge: Gauge) -> AsyncIterator[Watch]:
        """Keep the calls of clients from a start on refreshed, together with all others who wait for them.

        `gauge` counts those who wait.
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
    """Refreshes of one set of clients, while someone waits.

    `error` is that of the last refresh. `as_of` is of when the newest point was at the last that succeeded.
    """

    def __init__(self, feeds: Feeds, clients: Clients) -> None:
        self._feeds = feeds
        self._clients = clients
        self._waiting: Counter[tuple[int, Hashable]] = Counter()  # by start and name of the view
        self._views: dict[Hashable, View] = {}
        self._seen: dict[tuple[int, Hashable], Seen] = {}
        self._refreshed = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(self._ended)
        self.error: GatewayError | None = None
        self.as_of = feeds.clock()

    def join(self, start: int, view: View) -> None:
        """Begin to wait."""
        self._waiting[start, view.name] += 1
        self._views[view.name] = view

    def leave(self, start: int, view: View) -> bool:
        """Stop waiting. Returns True if nobody waits any more."""
        self._waiting[start, view.name] -= 1
        if not self._waiting[start, view.name]:
            del self._waiting[start, view.name]
            self._seen.pop((start, view.name), None)
            if not any(name == view.name for _, name in self._waiting):
                del self._views[view.name]
        if not self._waiting:
            self._task.cancel()
        return not self._waiting

    async def refreshed(self, start: int, view: View, after: int) -> Seen | None:
        """Wait until what is seen is of later than an instant; None if a refresh failed before, with `error`."""
        while (seen := self._seen.get((start, view.name))) is None or seen.snapshot.end <= after:
            await asyncio.shield(self._refreshed)
            if self.error is not None:
                return None
        return seen

    def _ended(self, task: asyncio.Task[None]) -> None:
        """After an error that is none of the upstream's, all who wait have it, so that none waits in vain."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._refreshed.set_exception(error)

    async def _run(self) -> None:
        pause = MIN_PAUSE
        while True:
            try:
                wait = min(max(MIN_PAUSE, await self._refresh()), MAX_WAIT)
            except GatewayError as error:
                self.error = error
                self._feeds.metrics.feed_refreshes.labels("failed").inc()
                wait = pause = min(MAX_PAUSE, 2 * pause)
            else:
                self.error, pause = None, MIN_PAUSE
                self._feeds.metrics.feed_refreshes.labels("ok").inc()
            refreshed, self._refreshed = self._refreshed, asyncio.get_running_loop().create_future()
            refreshed.set_result(None)
            await asyncio.sleep(wait)

    async def _refresh(self) -> float:
        """Read, and show what was read to every view. Returns for how many seconds it stays fresh."""
        first = min(start for start, _ in self._waiting)
        reading = await self._feeds.read(self._clients, first)
        for start, name in list(self._waiting):
            if start < first or (start, name) not in self._waiting:
                continue  # came or went meanwhile
            before = self._seen.get((start, name))
            seen = await self._feeds.see(reading, start, self._views[name], before)
            if (start, name) in self._waiting:
                self._seen[start, name] = seen
        # Points after the window of the reading become stale too, once they are as old as its newest POST.
        provenance = reading.provenance
        self.as_of = provenance.as_of
        return min(provenance.fresh_until, provenance.as_of + self._feeds.fresh) - self._feeds.clock()


def _refuse_too_large(needed: int, allowed: int) -> None:
    """Raise InvalidParameters for a feed whose calls take more bytes than one feed may have of the cache."""
    if needed > allowed:
        detail = f"this feed needs about {needed:,} bytes of GATEWAY_CACHE_BYTES, and may have {allowed:,} of them"
        raise InvalidParameters([ParameterFault("start", detail)])


def _joined(windows: Sequence[Window]) -> list[Window]:
    """Join windows that touch."""
    joined: list[Window] = []
    for window in windows:
        if joined and joined[-1].end == window.start:
            joined[-1] = Window(joined[-1].start, window.end)
        else:
            joined.append(window)
    return joined
