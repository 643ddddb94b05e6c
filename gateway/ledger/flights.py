"""Flights: upstream POSTs under way, each shared by all who need it.

Rules:
- A flight is a detached task. No consumer who leaves cancels it; it has the upstream's deadlines, waiters have theirs.
- A flight under way is joined for the points that would be fresh if it landed now.
- The first need goes at once. While a flight of the same client or window is up, further needs collect until it lands,
  at most 50 ms, and go together: windows of a client that are near each other as one, clients of one window as one.
- An error is remembered for a second, for needs that hold all of what failed; nobody else inherits it, unless any POST
  would meet it (no connection, an address that is not allowed) and none has landed since. That the upstream was not
  asked is not remembered: the next may be.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from gateway import tracing
from gateway.callbutton.central import whole
from gateway.callbutton.queue import FOR_EVER, Demand, Priority
from gateway.errors import Postponed, UpstreamError, UpstreamUnauthorized, UpstreamUnreachable
from gateway.ledger.codes import ClientProfiles
from gateway.ledger.extents import minus
from gateway.ledger.freshness import COVER, Rule, plan_posts
from gateway.ledger.tickets import Flight, Landed, Need, Ticket
from gateway.metrics import Metrics
from gateway.model import Window

LOGGER = logging.getLogger(__name__)
COLLECT = 0.05  # seconds
REMEMBER = 1.0  # seconds
MOST_ERRORS = 10_000  # remembered
EVERYTHING = ""  # the key of errors that any POST would meet; no client code is empty
INSISTED = Rule(minimum=1, ratio=1e-9, maximum=1)  # who insists joins nothing older than a second


Send = Callable[[Flight, Sequence[str]], Coroutine[Any, Any, dict[str, Landed]]]


class Collection:
    """Needs that wait to go together."""

    def __init__(self) -> None:
        self.tickets: list[Ticket] = []
        self.codes: set[str] = set()
        self.windows: set[Window] = set()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Flights:
    """All flights under way."""

    def __init__(
        self, send: Send, profiles: ClientProfiles, fresh: float, clock: Callable[[], float], metrics: Metrics
    ) -> None:
        self._send = send
        self._profiles = profiles
        self._fresh = fresh  # seconds for which points after an open POST count as fetched
        self._clock = clock
        self._metrics = metrics
        self._up: dict[bool, dict[str, set[Flight]]] = {False: defaultdict(set), True: defaultdict(set)}
        self._windows: dict[Window, int] = defaultdict(int)  # of flights under way
        self._collections: dict[bool, Collection] = {}
        self._errors: dict[tuple[str, bool], tuple[float, Window, UpstreamError]] = {}

    def ask(
        self,
        needs: Iterable[Need],
        rules: Mapping[str, Rule],
        *,
        status: bool,
        insist: bool = False,
        background: Priority | None = None,
        until: float | None = None,
    ) -> list[Ticket]:
        """Join flights that serve the needs, and send or collect the rest; `rules` are by client code.

        Who asks waits `until` an instant of the event loop's clock, and leaves each ticket; a `background` does not.
        """
        now = self._clock()
        tickets: list[Ticket] = []
        at_once: list[Ticket] = []
        for need in needs:
            rule = INSISTED if insist else rules[need.code]
            claim = Ticket(
                need,
                joined=True,
                background=background,
                until=FOR_EVER if until is None else until,
                insist=insist,
            )
            for window in self._join(claim, rule, status, now, tickets):
                part = Need(need.code, window, need.span)
                ticket = msgspec.structs.replace(
                    claim, need=part, joined=False, flights=[], error=self._remembered(part, status)
                )
                tickets.append(ticket)
                if ticket.error is None:
                    at_once.append(ticket)
        waiting = [ticket for ticket in at_once if self._busy(ticket.need, status)]
        for ticket in waiting:
            self._collect(ticket, status)
        self._launch([ticket for ticket in at_once if ticket.collected is None], status)
        return tickets

    def _join(self, claim: Ticket, rule: Rule, status: bool, now: float, tickets: list[Ticket]) -> list[Window]:
        need = claim.need
        rest = [need.window]
        for kind in (True,) if status else (False, True):
            for flight in self._up[kind].get(need.code, ()):
                served = flight.serves(now, rule)
                if served is not None and any(served.overlaps(window) for window in rest):
                    tickets.append(msgspec.structs.replace(claim, flights=[]))
                    tickets[-1].board(flight)
                    rest = [whole(part) for window in rest for part in minus(window, served)]
        if len(rest) != 1 or rest[0] != need.window:
            self._metrics.joined.inc()
        return rest

    def _busy(self, need: Need, status: bool) -> bool:
        if need.code in self._up[status] or need.window in self._windows:
            return True
        collection = self._collections.get(status)
        return collection is not None and (need.code in collection.codes or need.window in collection.windows)

    def _collect(self, ticket: Ticket, status: bool) -> None:
        collection = self._collections.get(status)
        if collection is None:
            collection = self._collections[status] = Collection()
            asyncio.get_running_loop().call_later(COLLECT, self._flush, status, collection)
        collection.tickets.append(ticket)
        collection.codes.add(ticket.need.code)
        collection.windows.add(ticket.need.window)
        ticket.collected = collection.done

    def _flush(self, status: bool, collection: Collection) -> None:
        if self._collections.get(status) is collection:
            del self._collections[status]
            try:
                self._launch([ticket for ticket in collection.tickets if not ticket.left], status)
            finally:  # whatever happens, nobody is left waiting
                collection.done.set_result(None)

    def _launch(self, tickets: Sequence[Ticket], status: bool) -> None:
        """Send what the tickets need: windows of one client merged, clients of one window batched."""
        now = self._clock()
        wanted: dict[str, list[Window]] = defaultdict(list)
        spans: dict[str, int] = {}
        for ticket in tickets:
            code = ticket.need.code
            wanted[code].append(ticket.need.window)
            spans[code] = max(spans.get(code, 0), ticket.need.span)
        by_window: dict[Window, list[str]] = defaultdict(list)
        for code, windows in wanted.items():
            span = self._profiles.span(code, now, spans[code])
            for part in plan_posts(windows, span, whole):
                by_window[part].append(code)
        backgrounds = [ticket.background for ticket in tickets if ticket.background is not None]
        background = min(backgrounds, default=None)
        alone = any(ticket.insist for ticket in tickets)
        sent: dict[str, list[Flight]] = defaultdict(list)
        for window, codes in _alike(by_window, self._profiles.max_span):
            for batch in self._profiles.batches(codes, now):
                flight = Flight(batch, window, now, self._fresh, Demand(background), status=status, alone=alone)
                self._start(flight, batch)
                for code in batch:
                    sent[code].append(flight)
        for ticket in tickets:
            for flight in sent[ticket.need.code]:
                if flight.window.overlaps(ticket.need.window):
                    ticket.board(flight)

    def _start(self, flight: Flight, codes: Sequence[str]) -> None:
        window = flight.window
        flight.span = tracing.span("flight")
        flight.span.note({"clients": len(codes), "seconds": window.end - window.start})
        flight.task = asyncio.get_running_loop().create_task(self._send(flight, codes), context=flight.span.context)
        self._metrics.batch_codes.observe(len(codes))
        self._windows[flight.window] += 1
        for code in codes:
            self._up[flight.status][code].add(flight)
        flight.task.add_done_callback(lambda _: self._land(flight, flight.status))

    def _land(self, flight: Flight, status: bool) -> None:
        flight.span.end()
        self._windows[flight.window] -= 1
        if not self._windows[flight.window]:
            del self._windows[flight.window]
        for code in flight.codes:
            self._up[status][code].discard(flight)
            if not self._up[status][code]:
                del self._up[status][code]
        if (collection := self._collections.get(status)) is not None:
            self._flush(status, collection)
        if flight.task.cancelled():
            return
        if (crash := flight.task.exception()) is not None:
            LOGGER.error("flight crashed", exc_info=crash)
            return
        until = self._clock() + REMEMBER
        if len(self._errors) > MOST_ERRORS:
            self._errors.clear()
        for code, landed in flight.task.result().items():
            if landed.error is None:
                self._errors.pop((EVERYTHING, status), None)
            elif not isinstance(landed.error, Postponed):
                everything = isinstance(landed.error, (UpstreamUnreachable, UpstreamUnauthorized))
                self._errors[EVERYTHING if everything else code, status] = until, flight.window, landed.error

    def _remembered(self, need: Need, status: bool) -> UpstreamError | None:
        """The error of a second ago that a need would meet again."""
        now = self._clock()
        for key in ((need.code, status), (EVERYTHING, status)):
            if (found := self._errors.get(key)) is None:
                continue
            until, window, error = found
            if until <= now:
                del self._errors[key]
            elif isinstance(error, (UpstreamUnreachable, UpstreamUnauthorized)) or (
                need.window.start <= window.start and window.end <= need.window.end
            ):
                return error
        return None

    async def close(self) -> None:
        """Wait for what is under way."""
        while self._collections or any(self._up.values()):
            for status, collection in list(self._collections.items()):
                self._flush(status, collection)
            flights = {flight for kind in self._up.values() for up in kind.values() for flight in up}
            await asyncio.gather(*(flight.task for flight in flights), return_exceptions=True)
            await asyncio.sleep(0)


def _alike(by_window: dict[Window, list[str]], most: int) -> list[tuple[Window, list[str]]]:
    """Group clients whose windows are nearly one: a window for all asks each for at most twice what it needs."""
    groups: list[tuple[Window, int, list[str]]] = []  # with the shortest window in it
    for window, codes in sorted(by_window.items()):
        if groups:
            union, least, others = groups[-1]
            wider = Window(union.start, max(union.end, window.end))
            least = min(least, window.end - window.start)
            if wider.end - wider.start <= min(COVER * least, most) and not set(codes) & set(others):
                groups[-1] = wider, least, others + codes
                continue
        groups.append((window, window.end - window.start, codes))
    return [(window, codes) for window, _, codes in groups]
