"""What a read needs, the flights under way, and the tickets by which it claims them.

Rule: who has a ticket leaves it when he waits no longer. A flight that all have left goes on, but what it has not sent
by then is dropped if it has to wait for its turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from msgspec import Struct

from gateway import tracing
from gateway.callbutton.wait_queue import NO_DEADLINE, Priority, Waiters
from gateway.errors import UpstreamError
from gateway.ledger.extents import Extent
from gateway.ledger.freshness import Rule, stale_from
from gateway.model import Window


class Need(NamedTuple):
    """A window of a client that must be fetched, by POSTs of at most `span` seconds if nothing is known against it."""

    code: str
    window: Window
    span: int


class Landed(Struct):
    """What a flight brought for one code: extents, and the error of what could not be had."""

    extents: list[Extent] = msgspec.field(default_factory=list)
    error: UpstreamError | None = None


class Flight:
    """POSTs for some codes and a window, under way or landed.

    `begun` is when it was planned, `planned` the same or when a flight of another replica was that it waits for;
    `reach` is the end of what it counts for. One that is `alone` waits for hardly any other.
    """

    task: asyncio.Task[dict[str, Landed]]

    def __init__(
        self,
        codes: Sequence[str],
        window: Window,
        begun: float,
        fresh: float,
        demand: Waiters,
        *,
        status: bool,
        alone: bool = False,
    ) -> None:
        self.codes = frozenset(codes)
        self.window = window
        self.begun = self.planned = begun
        self.open = window.end >= begun
        self.reach = int(max(window.end, begun + fresh)) if self.open else window.end
        self.demand = demand
        self.status = status
        self.alone = alone
        self.span = tracing.begin("flight")

    def promise(self, planned: float, reach: int) -> None:
        """Rest on a flight of another replica."""
        self.planned, self.reach = min(self.planned, planned), min(self.reach, reach)

    def serves(self, now: float, rule: Rule) -> Window | None:
        """The window for whose points it counts, if it landed now."""
        reach = Window(self.window.start, self.reach)
        stale = stale_from(Extent(reach, self.planned), now, rule)
        end = reach.end if stale is None else int(stale)
        return Window(reach.start, end) if end > reach.start else None


class Ticket(Struct, eq=False):
    """A claim on flights for one need, or a part of it. `joined` tells that somebody else sent them.

    Who is to `insist` takes nothing older than a second.
    Of a `background` nobody waits; a consumer waits `until` an instant of the event loop's clock.
    """

    need: Need
    joined: bool
    background: Priority | None = None
    until: float = NO_DEADLINE
    insist: bool = False
    flights: list[Flight] = msgspec.field(default_factory=list)
    left: bool = False
    collected: asyncio.Future[None] | None = None
    error: UpstreamError | None = None

    def board(self, flight: Flight) -> None:
        """Claim a flight."""
        self.flights.append(flight)
        if self.background is None:
            flight.demand.join(self.until)

    def leave(self) -> None:
        """Wait no longer."""
        if self.background is None and not self.left:
            for flight in self.flights:
                flight.demand.leave()
        self.left = True

    async def wait(self) -> list[Extent]:
        """Wait for the extents. Raises UpstreamError; leaving does not touch the flights."""
        if self.error is not None:
            raise self.error.with_traceback(None)
        if self.collected is not None:
            await asyncio.shield(self.collected)
        extents: list[Extent] = []
        with tracing.span("wait", links=[flight.span for flight in self.flights]) as span:
            if span is not None:
                span.set_attribute("joined", self.joined)
            for flight in self.flights:
                landed = (await asyncio.shield(flight.task))[self.need.code]
                extents += landed.extents
                if landed.error is not None:
                    raise landed.error.with_traceback(None)
        return extents
