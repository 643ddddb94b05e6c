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
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import chain

import msgspec
from msgspec import Struct

from gateway import tracing
from gateway.cache.client_profiles import ClientProfiles
from gateway.cache.deduplication import deduplicated
from gateway.cache.extents import Extent, ExtentsByCode, by_day, covers, overlay_all, overlay_clients
from gateway.cache.fetcher import Fetch, Fetcher
from gateway.cache.freshness import Provenance, Rule, due_for_refresh, gaps, seconds_past
from gateway.cache.leases import Leases
from gateway.cache.level1 import SKEW, Change, Level1
from gateway.cache.level2 import Found, Level2, space_of
from gateway.cache.packed_calls import ids_of, start_of
from gateway.cache.replies import Replies, lateness
from gateway.cache.single_flight import Gap, SingleFlight, Subscription
from gateway.callbutton.central_time import align_to_fold
from gateway.callbutton.wait_queue import Priority
from gateway.errors import NotSent, UpstreamError, UpstreamRejected, UpstreamTimeout
from gateway.memory import Memory
from gateway.metrics import Metrics
from gateway.model import EVERY_CLIENT, Call, Window
from gateway.redis_client import RedisClient
from gateway.slices import Steps, in_slices, parts_of

MAX_ATTEMPTS = 4  # of a read: together, first windows alone, the rest together, the rest alone
STEP_OBSERVED = 100  # measurements of one step; each takes 10 microseconds
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
    signing_key: bytes = b""  # keys the digests of the values that replicas share


class Query(Struct, frozen=True, kw_only=True):
    """A query: `codes` are client codes, or `*` alone. `deadline` is an instant of the event loop's clock.

    `no_cache` accepts only POSTs sent from now on, `no_stale` nothing stale except extents that a doubted reply keeps.
    `one_shot` is for exports: it does not count as a use of the cache.
    `before_wait` is called before the read waits for flights, and may refuse that by an error.
    """

    codes: tuple[str, ...]
    window: Window
    status: bool = False
    no_cache: bool = False
    no_stale: bool = False
    one_shot: bool = False
    deadline: float | None = None
    before_wait: Callable[[], None] = lambda: None


class ReadResult(Provenance, kw_only=True, dict=True):
    """The extents of a window by client code, and their calls, unordered. `posts` counts the gaps that were sent."""

    used: ExtentsByCode = msgspec.field(default_factory=dict)
    posts: int = 0

    @property
    def seconds_stale(self) -> float:
        """Seconds for which the stalest point was stale when the read was planned, negative while all is fresh."""
        return self.planned - self.fresh_until

    @cached_property
    def extents(self) -> list[Extent]:
        """All extents of the window, as they were fetched."""
        return [extent for extents in self.used.values() for extent in extents]

    @property
    def calls(self) -> list[Call]:
        """The calls, one version of each, the later POST's (T2)."""
        return [call for extent in deduplicated(self.extents) for call in extent.calls]

    @property
    def size(self) -> int:
        """The number of calls in its extents."""
        return sum(len(extent.calls) for extent in self.extents)


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
        memory: Memory | None = None,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        memory = memory or Memory(settings.cache_bytes)
        self._level1 = Level1(memory, metrics)
        self._profiles = ClientProfiles(settings.max_span, settings.batch, memory)
        self._replies = Replies(self._profiles, settings.plain.minimum)
        fresh = settings.plain.minimum
        fetcher = Fetcher(fetch, self._profiles, self._store, clock, fresh)
        self._leases: Leases | None = None
        self._level2: Level2 | None = None
        if shared is not None:
            space, key = space_of(settings.source, settings.signing_key)
            life = settings.plain.maximum + settings.stale_if_error
            self._level2 = Level2(shared, space, key, life, metrics, self._keep)
            self._leases = Leases(fetcher, shared, self._level2, space, fresh)
        send = fetcher.fetch if self._leases is None else self._leases.fetch
        self._single_flight = SingleFlight(send, self._profiles, fresh, clock, metrics, memory)

    async def close(self) -> None:
        """Wait until all flights have ended, and their extents are stored."""
        await self._single_flight.close()
        if self._leases is not None:
            await self._leases.close()

    async def read(self, query: Query, span: int = 0) -> ReadResult:
        """Read the calls of a window, in POSTs of at most `span` seconds or the span allowed. Raises UpstreamError."""
        now = self._clock()
        window = Window(query.window.start, min(query.window.end, math.ceil(now)))
        if window.start >= window.end:
            until = now + self._settings.plain.minimum
            return ReadResult(planned=now, as_of=now, oldest_fetch=now, fresh_until=until)
        rules = {code: self._rule(code, status=query.status) for code in query.codes}
        with tracing.span("plan") as plan:
            held, missing, changed = await in_slices(self._plan(query, window, now, rules, span, {}))
            if plan is not None:
                plan.set_attributes({"clients": len(held), "gaps": len(missing)})
        if missing and self._level2 is not None and not query.no_cache:
            found = await self._level2.better(missing, held, status=query.status, until=query.deadline)
            held, missing, changed = await in_slices(self._plan(query, window, now, rules, span, found))
        incomplete = {gap.code for gap in missing}
        for code, extents in held.items():
            self._metrics.lookups.labels("hit" if code not in incomplete else "partial" if extents else "miss").inc()
        self._metrics.read_gaps.observe(len(missing))
        complete = all(covers(found, window) for found in held.values())
        before = await in_slices(self._result(held, window, now, rules, status=query.status)) if complete else None
        if before is not None and not missing:
            await in_slices(self._revalidate(held, now, rules, status=query.status))
            self._metrics.rows.labels("ledger").inc(before.size)
            before.changed = changed
            return before
        may_be_stale = not (query.no_cache or query.no_stale)
        if before and may_be_stale and before.seconds_stale < self._settings.stale_while_revalidate:
            self._single_flight.subscribe(missing, rules, status=query.status, background=Priority.REVALIDATION)
            return self._stale(before)
        known = sum(len(extent.calls) for found in held.values() for extent in found)
        lookup = "partial" if any(held.values()) else "miss"
        query.before_wait()
        try:
            posts, joined = await self._fetch(query, missing, rules, held)
        except UpstreamError as error:
            refused = isinstance(error, UpstreamRejected) or not may_be_stale
            if before is None or refused or before.seconds_stale >= self._settings.stale_if_error:
                raise
            return self._stale(before)
        held, _, changed = await in_slices(self._plan(query, window, now, rules, span, held))  # with newer extents
        if not all(covers(found, window) for found in held.values()):
            raise RuntimeError("a read does not rest on all of its window")
        reading = await in_slices(self._result(held, window, now, rules, status=query.status))
        reading.stale, reading.changed = reading.seconds_stale > 0, changed  # stale: a reply that is doubted
        reading.lookup, reading.posts, reading.collapsed = lookup, posts, joined and not posts
        kept = sum(len(e.calls) for found in held.values() for e in found if e.sent < now)
        self._metrics.rows.labels("ledger").inc(min(kept, known, reading.size))
        self._metrics.rows.labels("upstream").inc(max(0, reading.size - min(kept, known)))
        return reading

    async def held(self, query: Query) -> list[Extent]:
        """The extents of a query that are in process, however old. Nothing is fetched."""
        now, found = self._clock(), list[Extent]()
        for code in query.codes if query.window.start < query.window.end else ():
            extents = self._level1.lookup(code, query.window, now, status=query.status)
            found += await in_slices(self._view(code, extents, query.window, now, status=query.status))
            await asyncio.sleep(0)  # a long window of many clients must not hold the loop
        return found

    def evictions(self, codes: Sequence[str]) -> int:
        """A number that differs after calls of some clients were evicted. It may differ for other reasons."""
        return self._level1.evictions(codes)

    async def whereabouts(self, code: str, identity: str, *, status: bool) -> Window | None:
        """The second in which a call starts, by the latest POST in level 1 that returned it; None if none did."""
        now, found = self._clock(), list[tuple[float, int, int]]()
        for extent in self._level1.lookup(code, Window(0, math.ceil(now)), now, status=status):
            if extent.may_have_id(code, identity):
                if identity in (ids := ids_of(extent.calls)):
                    found.append((extent.sent, extent.window.start, start_of(extent.calls, ids.index(identity))))
                await asyncio.sleep(0)  # a day's calls at a time
        if not found:
            return None
        second = max(found)[2]
        return Window(second, second + 1)

    def _result(
        self, held: ExtentsByCode, window: Window, now: float, rules: Mapping[str, Rule], *, status: bool
    ) -> Steps[ReadResult]:
        """Make a reading of extents that cover the window."""
        used: ExtentsByCode = {}
        past: list[float] = []
        for code, found in held.items():
            used[code] = yield from self._view(code, found, window, now, status=status)
            past.append(seconds_past(used[code], now, rules[code]))
        every = [extent for extents in used.values() for extent in extents]
        return ReadResult(
            used=used,
            planned=now,
            as_of=min(extent.sent for extent in every if extent.window.end == window.end),
            oldest_fetch=min(extent.sent for extent in every),
            fresh_until=now - max(past),
        )

    def _view(
        self, code: str, extents: Iterable[Extent], window: Window, now: float, *, status: bool
    ) -> Steps[list[Extent]]:
        """The parts of extents inside a window. Later extents of single clients overlay those of every client (T9)."""
        inside: list[Extent] = []
        for extent in extents:
            if extent.window.overlaps(window):
                inside.append(extent.view(window))
            yield
        if code != EVERY_CLIENT:
            return inside
        listed = set[str]().union(*[extent.listed or () for extent in inside])
        own: ExtentsByCode = {}
        for client in self._level1.clients_held(listed, window, status=status):
            own[client] = self._level1.lookup(client, window, now, status=status)
            yield
        parts: list[Extent] = []
        for extent in inside:
            parts += overlay_clients(extent, own)
            yield
        return parts

    def _store(self, code: str, extent: Extent, status: bool) -> Steps[tuple[list[Extent], bool]]:
        """Store the extent of a reply. Return the extents to answer with, and whether all are stored.

        A reply that is doubted adds to the earlier ones, and is stored where it stands in for none of another kind.
        Notes how late its calls were published where the cache had looked before.
        """
        held = self._level1.lookup(code, extent.window, self._clock(), status=status)
        for late in parts_of((yield from lateness(held, extent)), STEP_OBSERVED):
            for seconds in late:
                self._metrics.lateness.observe(seconds)
            yield
        held, others = yield from self._level1.replaced_by(code, extent, self._clock(), status=status)
        new, believed = yield from self._replies.compare(extent, held, others, status=status)
        parts, answer, complete = [new], [] if believed else held, True
        for one in answer:
            parts = [part for rest in parts for part in rest.without(one.window)]
        for piece in [piece for part in parts for _, piece in by_day(part)]:
            stored = believed or not any(one.window.overlaps(piece.window) for one in chain(*others.values()))
            if stored:
                yield from self._level1.store(code, piece, status=status)
            answer, complete = [*answer, piece], complete and stored
        return answer, complete

    def _keep(self, found: Found) -> Steps[bool]:
        """Store an extent of level 2 in level 1, unless a clock was wrong or it is doubted."""
        code, status, extent = found
        if extent.sent > self._clock() + SKEW:
            self._metrics.skew.inc()
            return False
        held, others = yield from self._level1.replaced_by(code, extent, self._clock(), status=status)
        if not (yield from self._replies.believes(extent, held, others, status=status)):
            return False
        yield from self._level1.store(code, extent, status=status)
        return True

    def _rule(self, code: str, *, status: bool) -> Rule:
        """The freshness rule of a client: points are fresh for at least twice as long as its last short POST took."""
        rule = self._settings.with_status if status else self._settings.plain
        minimum = min(max(rule.minimum, 2 * self._profiles.of(code).last_duration), rule.maximum)
        return rule if minimum == rule.minimum else Rule(minimum, rule.ratio, rule.maximum)

    def _plan(
        self, query: Query, window: Window, now: float, rules: Mapping[str, Rule], span: int, found: ExtentsByCode
    ) -> Steps[tuple[ExtentsByCode, list[Gap], Change]]:
        """Look up the extents of a window by client code, beside those `found` elsewhere, and the gaps of them.

        A flight that lands during a long plan is not seen: its window may be fetched once more.
        """
        changed = Change(self._level1, query.codes, self._level1.version(query.codes))
        held: ExtentsByCode = {}
        missing: list[Gap] = []
        for code in query.codes:
            held[code] = self._level1.lookup(code, window, self._clock(), status=query.status, used=not query.one_shot)
            if code in found:
                held[code] = [one for one in overlay_all([*held[code], *found[code]]) if one.window.overlaps(window)]
            rest = gaps(held[code], window, now, rules[code], align_to_fold)
            missing += [Gap(code, gap, span) for gap in ([align_to_fold(window)] if query.no_cache else rest)]
            yield
        return held, missing, changed

    async def _fetch(
        self, query: Query, missing: list[Gap], rules: Mapping[str, Rule], held: ExtentsByCode
    ) -> tuple[int, bool]:
        """Fetch gaps into `held`. Returns how many were sent, and whether any flight was joined."""
        posts, joined, clock = 0, False, asyncio.get_running_loop().time
        later: list[Gap] = []
        if query.deadline is not None and clock() >= query.deadline:
            raise UpstreamTimeout("the deadline of the request has passed", answering=False)
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
                    held[one.gap.code] = overlay_all([*reversed(extents), *held[one.gap.code]])
                    await asyncio.sleep(0)  # the flights of many clients may have landed together
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

    def _revalidate(self, held: ExtentsByCode, now: float, rules: Mapping[str, Rule], *, status: bool) -> Steps[None]:
        """Fetch points that soon reach the maximum age in the background, a few windows for each read."""
        due: list[Gap] = []
        for code, found in held.items():
            due += [Gap(code, align_to_fold(window), 0) for window in due_for_refresh(found, now, rules[code])]
            yield
        if due:
            self._single_flight.subscribe(due[:MAX_REVALIDATED], rules, status=status, background=Priority.PREFETCH)

    def _stale(self, reading: ReadResult) -> ReadResult:
        reading.stale = reading.seconds_stale > 0
        self._metrics.rows.labels("ledger").inc(reading.size)
        if reading.stale:
            self._metrics.stale_seconds.observe(reading.seconds_stale)
        return reading
