"""The plan of a read: normalise, look up, find gaps, join, fetch, store, merge, filter.

Rules:
- A read rests on values that it holds (extents looked up, extents that its flights brought), so that nothing dropped
  meanwhile is missing (T1). If any part cannot be had, the read fails, or is stale and says so (T3).
- Freshness is judged once, when the read is planned; what it fetches or joins is fresh for it.
- Who joined a flight that failed asks once more on its own account.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from functools import partial

from msgspec import Struct

from gateway import tracing
from gateway.callbutton.central import whole
from gateway.callbutton.queue import Priority
from gateway.errors import UpstreamError, UpstreamRejected, UpstreamTimeout
from gateway.ledger.claims import Claims
from gateway.ledger.codes import ClientProfiles
from gateway.ledger.extents import Extent, covers, late, overlay, overlay_all
from gateway.ledger.flights import Flights
from gateway.ledger.freshness import Rule, gaps, old
from gateway.ledger.level2 import Found, Level2
from gateway.ledger.memory import SKEW, Memory
from gateway.ledger.packing import LAYOUT
from gateway.ledger.posts import Fetch, Posts
from gateway.ledger.readings import Held, Reading, make_reading
from gateway.ledger.tickets import Need
from gateway.metrics import Metrics
from gateway.model import Window
from gateway.shared import Shared

MOST_REVALIDATED = 2  # windows fetched again in the background for one read


class LedgerSettings(Struct, frozen=True):
    """How the ledger reads. `max_span`, `stale_if_error` and `stale_while_revalidate` in seconds."""

    plain: Rule
    with_status: Rule
    max_span: int
    batch: int
    cache_bytes: int
    stale_if_error: float = 0
    stale_while_revalidate: float = 0
    source: str = ""  # names the upstream in what replicas share


class Question(Struct, frozen=True, kw_only=True):
    """What is read: `codes` are client codes, or `*` alone. `deadline` is an instant of the event loop's clock.

    `passing` is for who reads much once: it does not count as a use of what the ledger holds.
    """

    codes: tuple[str, ...]
    window: Window
    status: bool = False
    insist: bool = False  # on what is sent from now on
    passing: bool = False
    deadline: float | None = None


class Ledger:
    """Calls and extents of the clients seen so far."""

    def __init__(
        self,
        fetch: Fetch,
        settings: LedgerSettings,
        metrics: Metrics,
        clock: Callable[[], float],
        shared: Shared | None = None,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._memory = Memory(settings.cache_bytes, metrics)
        self._profiles = ClientProfiles(settings.max_span, settings.batch)
        fresh = settings.plain.minimum
        posts = Posts(fetch, self._profiles, self._store, clock, fresh)
        self._claims: Claims | None = None
        self._level2: Level2 | None = None
        if shared is not None:
            space = f"callbutton:{LAYOUT}:{settings.source}"
            self._level2 = Level2(shared, space, settings.plain.maximum + settings.stale_if_error, metrics, self._keep)
            self._claims = Claims(posts, shared, self._level2, space, fresh)
        send = posts.send if self._claims is None else self._claims.fetch
        self._flights = Flights(send, self._profiles, fresh, clock, metrics)

    async def close(self) -> None:
        """Let the flights land."""
        await self._flights.close()
        if self._claims is not None:
            await self._claims.close()

    async def read(self, question: Question, span: int = 0) -> Reading:
        """Read the calls of a window, by POSTs of at most `span` seconds or the span allowed. Raises UpstreamError."""
        now = self._clock()
        window = Window(question.window.start, min(question.window.end, math.ceil(now)))
        if window.start >= window.end:
            return Reading(as_of=now, oldest_fetch=now, past=-self._settings.plain.minimum)
        rules = {code: self._rule(code, status=question.status) for code in question.codes}
        look = partial(self._memory.lookup, window=window, status=question.status, used=not question.passing)
        held = {code: look(code, now=now) for code in question.codes}
        with tracing.span("plan") as plan:
            needs = self._needs(question, window, now, rules, held, span)
            plan.note({"clients": len(held), "gaps": len(needs)})
        if needs and self._level2 is not None and not question.insist:
            found = await self._level2.better(needs, held, status=question.status)
            held = {code: look(code, now=self._clock()) for code in question.codes}  # flights may have landed
            for code, extents in found.items():
                held[code] = [one for one in overlay_all(held[code] + extents) if one.window.overlaps(window)]
            needs = self._needs(question, window, now, rules, held, span)
        lacking = {need.code for need in needs}
        for code, extents in held.items():
            self._metrics.lookups.labels("hit" if code not in lacking else "partial" if extents else "miss").inc()
        self._metrics.read_gaps.observe(len(needs))
        complete = all(covers(found, window) for found in held.values())
        before = make_reading(held, window, now, rules) if complete else None
        if before is not None and not needs:
            self._revalidate(held, now, rules, status=question.status)
            self._metrics.rows.labels("ledger").inc(before.size)
            return before
        if before and not question.insist and before.past < self._settings.stale_while_revalidate:
            self._flights.ask(needs, rules, status=question.status, background=Priority.REVALIDATION)
            return self._stale(before)
        known = sum(len(extent.calls) for found in held.values() for extent in found)
        lookup = "partial" if any(held.values()) else "miss"
        try:
            posts, joined = await self._fetch(question, needs, rules, held)
        except UpstreamError as error:
            refused = question.insist or isinstance(error, UpstreamRejected)
            if before is None or refused or before.past >= self._settings.stale_if_error:
                raise
            return self._stale(before)
        if not all(covers(found, window) for found in held.values()):
            raise RuntimeError("a read does not rest on all of its window")
        reading = make_reading(held, window, now, rules)
        reading.lookup, reading.posts, reading.collapsed = lookup, posts, joined and not posts
        kept = sum(len(e.calls) for found in held.values() for e in found if e.sent < now)
        self._metrics.rows.labels("ledger").inc(min(kept, known, reading.size))
        self._metrics.rows.labels("upstream").inc(max(0, reading.size - min(kept, known)))
        return reading

    def whereabouts(self, code: str, identity: str, *, status: bool) -> Window | None:
        """The second in which the ledger last saw a call start, however long ago; None if it never did."""
        now = self._clock()
        for extent in reversed(self._memory.lookup(code, Window(0, math.ceil(now)), now, status=status)):
            for call in extent.calls:
                if call.id == identity:
                    second = int(call.start_time.timestamp())
                    return Window(second, second + 1)
        return None

    def _store(self, code: str, extent: Extent, *, status: bool) -> None:
        """Keep what landed, and note how late calls showed up where the ledger had looked before."""
        for seconds in late(self._memory.lookup(code, extent.window, extent.sent, status=status), extent):
            self._metrics.lateness.observe(seconds)
        self._memory.store(code, extent, status=status)

    def _keep(self, found: Found) -> bool:
        """Keep an extent of level 2 in level 1, unless a clock was wrong."""
        if found.extent.sent > self._clock() + SKEW:
            self._metrics.skew.inc()
            return False
        self._memory.store(found.code, found.extent, status=found.status)
        return True

    def _rule(self, code: str, *, status: bool) -> Rule:
        """The freshness rule of a client: a slow upstream is not asked again before twice the time that it takes."""
        rule = self._settings.with_status if status else self._settings.plain
        minimum = min(max(rule.minimum, 2 * self._profiles.of(code).last_duration), rule.maximum)
        return rule if minimum == rule.minimum else Rule(minimum, rule.ratio, rule.maximum)

    def _needs(
        self, question: Question, window: Window, now: float, rules: Mapping[str, Rule], held: Held, span: int
    ) -> list[Need]:
        needs: list[Need] = []
        for code, found in held.items():
            windows = [whole(window)] if question.insist else gaps(found, window, now, rules[code], whole)
            needs += [Need(code, gap, span) for gap in windows]
        return needs

    async def _fetch(
        self, question: Question, needs: list[Need], rules: Mapping[str, Rule], held: Held
    ) -> tuple[int, bool]:
        """Fetch what is needed into `held`; returns how many needs went out, and whether any joined a flight."""
        posts, joined = 0, False
        for last in (False, True):
            tickets = self._flights.ask(
                needs, rules, status=question.status, insist=question.insist, until=question.deadline
            )
            needs = []
            try:
                for ticket in tickets:
                    try:
                        async with asyncio.timeout_at(question.deadline):
                            extents = await ticket.wait()
                    except TimeoutError:
                        raise UpstreamTimeout("the answer is still being fetched", answering=False) from None
                    except UpstreamError:
                        if last or not ticket.joined:
                            raise
                        needs.append(ticket.need)
                    else:
                        for extent in extents:
                            held[ticket.need.code] = overlay(held[ticket.need.code], extent)
                    joined, posts = joined or ticket.joined, posts + (not ticket.joined)
            finally:
                for ticket in tickets:
                    ticket.leave()
            if not needs:
                break
        return posts, joined

    def _revalidate(self, held: Held, now: float, rules: Mapping[str, Rule], *, status: bool) -> None:
        """Fetch in the background what soon reaches the maximum, a little for each read."""
        windows = [Need(code, whole(w), 0) for code, found in held.items() for w in old(found, now, rules[code])]
        if windows:
            self._flights.ask(windows[:MOST_REVALIDATED], rules, status=status, background=Priority.PREFETCH)

    def _stale(self, reading: Reading) -> Reading:
        reading.stale = reading.past > 0
        self._metrics.rows.labels("ledger").inc(reading.size)
        if reading.stale:
            self._metrics.stale_seconds.observe(reading.past)
        return reading
