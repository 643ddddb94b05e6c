"""A read: normalise the window, look up extents, find gaps, join or send flights, merge.

Rules:
- A read rests on values that it holds (extents that were looked up or that its flights brought), so that no eviction
  removes anything from it (T1). If any part cannot be fetched, the read fails, or is marked stale (T3).
- Freshness is judged once, when the read is planned. Extents that it fetches or joins are fresh for it.
- A reader that joined a flight that failed, or shared it with other client codes, sends the gap once more itself. A
  read never fails for a code that it does not ask for.
- Of two versions of a call the later POST's counts (T2), whichever of the two is asked for.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, partial

import msgspec
from msgspec import Struct

from gateway import tracing
from gateway.cache.client_profiles import ClientProfiles
from gateway.cache.extents import Extent, ExtentsByCode, covers, lateness, merge, overlay, overlay_all, repeated_ids
from gateway.cache.fetcher import Fetch, Fetcher
from gateway.cache.freshness import Rule, due_for_refresh, gaps, seconds_past
from gateway.cache.leases import Leases
from gateway.cache.level1 import SKEW, Level1
from gateway.cache.level2 import LAYOUT, Found, Level2
from gateway.cache.single_flight import Gap, SingleFlight, Subscription
from gateway.callbutton.central_time import align_to_fold
from gateway.callbutton.wait_queue import Priority
from gateway.errors import NotSent, UpstreamError, UpstreamRejected, UpstreamTimeout
from gateway.metrics import Metrics
from gateway.model import Call, Window
from gateway.redis_client import RedisClient

MAX_ATTEMPTS = 4  # of a read: together, first windows alone, the rest together, the rest alone
MAX_REVALIDATED = 2  # windows fetched again in the background for one read


class CacheSettings(Struct, frozen=True):
    """How the cache reads. `max_span`, `stale_if_error` and `stale_while_revalidate` in seconds."""

    plain: Rule
    with_status: Rule
    max_span: int
    batch: int
    cache_bytes: int
    stale_if_error: float = 0
    stale_while_revalidate: float = 0
    source: str = ""  # names the upstream in the keys that replicas share


class Query(Struct, frozen=True, kw_only=True):
    """A query: `codes` are client codes, or `*` alone. `deadline` is an instant of the event loop's clock.

    `no_cache` accepts only POSTs sent from now on. `one_shot` is for exports: it does not count as a use of the cache.
    """

    codes: tuple[str, ...]
    window: Window
    status: bool = False
    no_cache: bool = False
    one_shot: bool = False
    deadline: float | None = None


class ReadResult(Struct, kw_only=True, dict=True):
    """The calls of a window, unordered, and the extents that they rest on. Instants are seconds since 1970.

    `seconds_stale` is the time for which the stalest point has been stale, negative while all is fresh. `lookup` is
    hit, partial or miss; `collapsed`: it rests on flights of other readers alone; `posts` counts the gaps it sent.
    """

    as_of: float
    oldest_fetch: float
    seconds_stale: float
    stale: bool = False
    unreadable: int = 0
    used: ExtentsByCode = msgspec.field(default_factory=dict)
    lookup: str = "hit"
    collapsed: bool = False
    posts: int = 0

    @cached_property
    def extents(self) -> list[Extent]:
        """All extents of the window."""
        return [extent for extents in self.used.values() for extent in extents]

    @cached_property
    def calls(self) -> list[Call]:
        """The calls, merged when first asked for."""
        return merge(self.extents)

    def calls_with(self, texts: Mapping[str, str]) -> Sequence[Call]:
        """The calls, without the extents of which none can have these texts, by the names of fields."""
        if not texts or repeated_ids(self.extents):  # a version without them may be the later one (T2)
            return self.calls
        return [
            call
            for extent in self.extents
            if all(extent.may_have(field, text) for field, text in texts.items())
            for call in extent.calls
        ]

    @property
    def size(self) -> int:
        """The number of calls in its extents."""
        return sum(len(extent.calls) for extent in self.extents)


def make_result(held: ExtentsByCode, window: Window, now: float, rules: Mapping[str, Rule]) -> ReadResult:
    """Make a reading of extents that cover the window."""
    used = {
        code: [extent.view(window) for extent in found if extent.window.overlaps(window)]
        for code, found in held.items()
    }
    every = [extent for extents in used.values() for extent in extents]
    unreadable = {(code, extent.sent): extent.unreadable for code, extents in used.items() for extent in extents}
    return ReadResult(
        used=used,
        as_of=min(extent.sent for extent in every if extent.window.end == window.end),
        oldest_fetch=min(extent.sent for extent in every),
        seconds_stale=max(seconds_past(extents, now, rules[code]) for code, extents in used.items()),
        unreadable=sum(unreadable.values()),
    )


def _may_succeed_alone(one: Subscription, error: UpstreamError, query: Query) -> bool:
    """Whether a batch failed, and a POST for the code of a gap alone may be answered."""
    if error.disconnected or one.alone:
        return False
    return one.is_batched(query.codes if isinstance(error, NotSent) else ())


class Cache:
    """The cache in front of the upstream: calls and extents of the clients that were read."""

    def __init__(
        self,
        fetch: Fetch,
        settings: CacheSettings,
        metrics: Metrics,
        clock: Callable[[], float],
        shared: RedisClient | None = None,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._level1 = Level1(settings.cache_bytes, metrics)
        self._profiles = ClientProfiles(settings.max_span, settings.batch)
        fresh = settings.plain.minimum
        fetcher = Fetcher(fetch, self._profiles, self._store, clock, fresh)
        self._leases: Leases | None = None
        self._level2: Level2 | None = None
        if shared is not None:
            space = f"callbutton:{LAYOUT}:{settings.source}"
            self._level2 = Level2(shared, space, settings.plain.maximum + settings.stale_if_error, metrics, self._keep)
            self._leases = Leases(fetcher, shared, self._level2, space, fresh)
        send = fetcher.fetch if self._leases is None else self._leases.fetch
        self._single_flight = SingleFlight(send, self._profiles, fresh, clock, metrics)

    async def close(self) -> None:
        """Wait until all flights have landed."""
        await self._single_flight.close()
        if self._leases is not None:
            await self._leases.close()

    async def read(self, query: Query, span: int = 0) -> ReadResult:
        """Read the calls of a window, in POSTs of at most `span` seconds or the span allowed. Raises UpstreamError."""
        now = self._clock()
        window = Window(query.window.start, min(query.window.end, math.ceil(now)))
        if window.start >= window.end:
            return ReadResult(as_of=now, oldest_fetch=now, seconds_stale=-self._settings.plain.minimum)
        rules = {code: self._rule(code, status=query.status) for code in query.codes}
        look = partial(self._level1.lookup, window=window, status=query.status, used=not query.one_shot)
        held = {code: look(code, now=now) for code in query.codes}
        with tracing.span("plan") as plan:
            missing = self._gaps(query, window, now, rules, held, span)
            if plan is not None:
                plan.set_attributes({"clients": len(held), "gaps": len(missing)})
        if missing and self._level2 is not None and not query.no_cache:
            found = await self._level2.better(missing, held, status=query.status)
            held = {code: look(code, now=self._clock()) for code in query.codes}  # flights may have landed
            for code, extents in found.items():
                held[code] = [one for one in overlay_all(held[code] + extents) if one.window.overlaps(window)]
            missing = self._gaps(query, window, now, rules, held, span)
        incomplete = {gap.code for gap in missing}
        for code, extents in held.items():
            self._metrics.lookups.labels("hit" if code not in incomplete else "partial" if extents else "miss").inc()
        self._metrics.read_gaps.observe(len(missing))
        complete = all(covers(found, window) for found in held.values())
        before = make_result(held, window, now, rules) if complete else None
        if before is not None and not missing:
            self._revalidate(held, now, rules, status=query.status)
            self._metrics.rows.labels("ledger").inc(before.size)
            return before
        if before and not query.no_cache and before.seconds_stale < self._settings.stale_while_revalidate:
            self._single_flight.subscribe(missing, rules, status=query.status, background=Priority.REVALIDATION)
            return self._stale(before)
        known = sum(len(extent.calls) for found in held.values() for extent in found)
        lookup = "partial" if any(held.values()) else "miss"
        try:
            posts, joined = await self._fetch(query, missing, rules, held)
        except UpstreamError as error:
            refused = query.no_cache or isinstance(error, UpstreamRejected)
            if before is None or refused or before.seconds_stale >= self._settings.stale_if_error:
                raise
            return self._stale(before)
        if not all(covers(found, window) for found in held.values()):
            raise RuntimeError("a read does not rest on all of its window")
        reading = make_result(held, window, now, rules)
        reading.lookup, reading.posts, reading.collapsed = lookup, posts, joined and not posts
        kept = sum(len(e.calls) for found in held.values() for e in found if e.sent < now)
        self._metrics.rows.labels("ledger").inc(min(kept, known, reading.size))
        self._metrics.rows.labels("upstream").inc(max(0, reading.size - min(kept, known)))
        return reading

    def whereabouts(self, code: str, identity: str, *, status: bool) -> Window | None:
        """The second in which the cache last saw a call start, however long ago; None if it never did."""
        now = self._clock()
        for extent in reversed(self._level1.lookup(code, Window(0, math.ceil(now)), now, status=status)):
            for call in extent.calls:
                if call.id == identity:
                    second = int(call.start_time.timestamp())
                    return Window(second, second + 1)
        return None

    def _store(self, code: str, extent: Extent, status: bool) -> None:
        """Store an extent, and note how late its calls were published where the cache had looked before."""
        for seconds in lateness(self._level1.lookup(code, extent.window, extent.sent, status=status), extent):
            self._metrics.lateness.observe(seconds)
        self._level1.store(code, extent, status=status)

    def _keep(self, found: Found) -> bool:
        """Store an extent of level 2 in level 1, unless a clock was wrong."""
        if found.extent.sent > self._clock() + SKEW:
            self._metrics.skew.inc()
            return False
        self._level1.store(found.code, found.extent, status=found.status)
        return True

    def _rule(self, code: str, *, status: bool) -> Rule:
        """The freshness rule of a client: points are fresh for at least twice as long as its last POST took."""
        rule = self._settings.with_status if status else self._settings.plain
        minimum = min(max(rule.minimum, 2 * self._profiles.of(code).last_duration), rule.maximum)
        return rule if minimum == rule.minimum else Rule(minimum, rule.ratio, rule.maximum)

    def _gaps(
        self, query: Query, window: Window, now: float, rules: Mapping[str, Rule], held: ExtentsByCode, span: int
    ) -> list[Gap]:
        return [
            Gap(code, gap, span)
            for code, found in held.items()
            for gap in (
                [align_to_fold(window)] if query.no_cache else gaps(found, window, now, rules[code], align_to_fold)
            )
        ]

    async def _fetch(
        self, query: Query, missing: list[Gap], rules: Mapping[str, Rule], held: ExtentsByCode
    ) -> tuple[int, bool]:
        """Fetch gaps into `held`. Returns how many were sent, and whether any flight was joined."""
        posts, joined, clock = 0, False, asyncio.get_running_loop().time
        later: list[Gap] = []
        for attempt in range(MAX_ATTEMPTS):
            subscriptions = self._single_flight.subscribe(
                missing, rules, status=query.status, no_cache=query.no_cache, until=query.deadline
            )
            failed: list[Gap] = []
            try:
                for one in subscriptions:
                    try:
                        extents = await self._wait(one, query)
                    except UpstreamError as error:
                        in_time = query.deadline is None or clock() < query.deadline
                        again = (one.joined and attempt == 0) or _may_succeed_alone(one, error, query)
                        if attempt == MAX_ATTEMPTS - 1 or not (in_time and again):
                            if len(query.codes) > 1 and one.alone and not error.disconnected:
                                raise error.naming(one.gap.code) from error
                            raise
                        extents, rest = one.parts()
                        failed += rest
                    for extent in extents:
                        held[one.gap.code] = overlay(held[one.gap.code], extent)
                    joined, posts = joined or one.joined, posts + (not one.joined)
            finally:
                for one in subscriptions:
                    one.release()
            if not failed and not later:
                break
            if attempt == 0:  # the first window of each code tells which code fails
                first = {gap.code: gap for gap in reversed(failed)}
                later = [gap for gap in failed if gap is not first[gap.code]]
                missing = [gap._replace(alone=True) for gap in first.values()]
            else:
                missing = [gap._replace(alone=gap.alone or attempt > 1) for gap in failed] + later
                later = []
        return posts, joined

    async def _wait(self, one: Subscription, query: Query) -> list[Extent]:
        """Wait for a subscription until the deadline; for a batch half as long, so that a code can be sent alone."""
        now = asyncio.get_running_loop().time()
        late = UpstreamTimeout("the answer is still being fetched", answering=False)
        for limit in (query.deadline and (now + query.deadline) / 2, query.deadline):
            with suppress(TimeoutError):
                async with asyncio.timeout_at(limit):
                    return await one.wait()
            if one.is_batched():
                raise late
        one.alone = True
        raise late

    def _revalidate(self, held: ExtentsByCode, now: float, rules: Mapping[str, Rule], *, status: bool) -> None:
        """Fetch points that soon reach the maximum age in the background, a few windows for each read."""
        due = [
            Gap(code, align_to_fold(w), 0)
            for code, found in held.items()
            for w in due_for_refresh(found, now, rules[code])
        ]
        if due:
            self._single_flight.subscribe(due[:MAX_REVALIDATED], rules, status=status, background=Priority.PREFETCH)

    def _stale(self, reading: ReadResult) -> ReadResult:
        reading.stale = reading.seconds_stale > 0
        self._metrics.rows.labels("ledger").inc(reading.size)
        if reading.stale:
            self._metrics.stale_seconds.observe(reading.seconds_stale)
        return reading
