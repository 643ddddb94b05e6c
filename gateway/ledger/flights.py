"""Flights: upstream POSTs under way, each shared by all who need it.

Rules:
- A flight is a detached task. No consumer who leaves cancels it; it has the upstream's deadlines, waiters have theirs.
- In a batch the listed codes stand and foreign ones are discarded; missing codes are sent singly. A single reply is
  attributed to the code asked, whatever it echoes.
- What lands is stored before anybody is told.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import msgspec

from gateway.callbutton.service import Fetched
from gateway.errors import GatewayError
from gateway.ledger.extents import Extent, make_extent
from gateway.model import Call, Window

EVERY_CLIENT = "*"


class Fetch(Protocol):
    """The network: the calls of some codes in a window, planned at `now`. Raises UpstreamError."""

    async def __call__(self, codes: Sequence[str], window: Window, *, status: bool, now: float) -> Fetched:
        """POST."""


class Flight:
    """One POST for some codes and a window; `reach` is the window for whose points it counts."""

    def __init__(self, codes: Sequence[str], window: Window, reach: Window, *, status: bool, planned: float) -> None:
        self.codes = tuple(codes)
        self.window = window
        self.reach = reach
        self.status = status
        self.planned = planned
        self.result: dict[str, Extent] | BaseException | None = None
        self._waiters: set[asyncio.Future[None]] = set()

    async def wait(self) -> dict[str, Extent]:
        """Wait for it to land: extents by code. Raises the flight's UpstreamError."""
        if self.result is None:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)
        if isinstance(self.result, GatewayError):
            raise self.result.with_traceback(None)
        if isinstance(self.result, BaseException) or self.result is None:
            raise RuntimeError("a flight crashed; its own log line says where") from self.result
        return self.result

    def land(self, result: dict[str, Extent] | BaseException) -> None:
        """Tell everybody who waits."""
        self.result = result
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)


class Flights:
    """All flights under way."""

    def __init__(self, fetch: Fetch, store: Callable[[str, Extent, bool], None], fresh: float) -> None:
        self._send = fetch
        self._store = store
        self._fresh = fresh  # seconds for which points after the POST count as fetched
        self._up: dict[Flight, asyncio.Task[None]] = {}
        self._alone: set[str] = set()  # codes that answer under another code

    def joinable(self, code: str, gap: Window, now: float, *, status: bool) -> Iterable[Flight]:
        """Flights whose landing would make points of the gap fresh."""
        for flight in self._up:
            fits = flight.result is None and (flight.status or not status)
            if fits and code in flight.codes and flight.reach.overlaps(gap) and now - flight.planned < self._fresh:
                yield flight

    def start(self, codes: Sequence[str], window: Window, now: float, *, status: bool) -> Flight:
        """Send a POST, detached."""
        open_end = window.end if window.end < now else max(window.end, math.ceil(now + self._fresh))
        flight = Flight(codes, window, Window(window.start, open_end), status=status, planned=now)
        task = asyncio.get_running_loop().create_task(self._fly(flight, now))
        self._up[flight] = task
        task.add_done_callback(lambda _: self._up.pop(flight, None))
        return flight

    def batches(self, codes: Sequence[str], size: int) -> list[list[str]]:
        """Cut codes into batches; a code that answers under another name travels alone."""
        together = [code for code in codes if code not in self._alone]
        singly = [[code] for code in codes if code in self._alone]
        return [together[index : index + size] for index in range(0, len(together), size)] + singly

    async def close(self) -> None:
        """Wait for what is under way."""
        await asyncio.gather(*self._up.values(), return_exceptions=True)

    async def _fly(self, flight: Flight, now: float) -> None:
        try:
            flight.land(await self._fetch(flight, now))
        except BaseException as error:
            flight.land(error)
            if not isinstance(error, GatewayError):
                raise

    async def _fetch(self, flight: Flight, now: float) -> dict[str, Extent]:
        fetched = await self._send(flight.codes, flight.window, status=flight.status, now=now)
        if len(flight.codes) > 1:
            missing = [code for code in flight.codes if code not in fetched.calls and code not in fetched.unreadable]
        else:
            missing = []
            fetched = self._attributed(flight.codes[0], fetched)
        extents = {}
        for code in flight.codes:
            if code in missing:
                single = await self._send([code], flight.window, status=flight.status, now=now)
                extents[code] = self._keep(code, flight, self._attributed(code, single))
            else:
                extents[code] = self._keep(code, flight, fetched)
        return extents

    def _attributed(self, code: str, fetched: Fetched) -> Fetched:
        if code == EVERY_CLIENT:
            calls = [call for found in fetched.calls.values() for call in found]
            return msgspec.structs.replace(fetched, calls={code: calls}, unreadable=_total(code, fetched))
        if any(echoed != code for echoed in fetched.calls):
            self._alone.add(code)
        found: list[Call] = []
        for echoed, calls in fetched.calls.items():
            found += calls if echoed == code else [msgspec.structs.replace(call, client_code=code) for call in calls]
        return msgspec.structs.replace(fetched, calls={code: found}, unreadable=_total(code, fetched))

    def _keep(self, code: str, flight: Flight, fetched: Fetched) -> Extent:
        end = flight.reach.end
        if end > flight.window.end:  # open: points after the POST count as fetched by it
            end = max(end, math.ceil(fetched.sent + self._fresh))
        by_id = {(call.client_code, call.id): call for call in fetched.calls.get(code, [])}  # the last one counts
        window = Window(flight.window.start, end)
        extent = make_extent(window, fetched.sent, by_id.values(), fetched.unreadable.get(code, 0))
        self._store(code, extent, flight.status)
        return extent


def _total(code: str, fetched: Fetched) -> dict[str, int]:
    return {code: sum(fetched.unreadable.values())}
