"""The POSTs of one flight: a batch, what is missing from it, and its halves if it fails.

Rules:
- A reply to one code is attributed to it, whatever it echoes. In a batch the listed codes stand and foreign ones are
  discarded; codes that are missing are asked singly, unless they are known to be plain and nothing foreign came.
- ERROR, a malformed body, too big a body, or a deadline after bytes came: the batch is halved down to one code, then
  the window down to one hour. A time-out before the first byte, or a 5xx, only shortens the next window.
- What lands is stored at once. A flight costs at most `MOST` POSTs: past that, what is left fails as its sibling did.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec
from msgspec import Struct

from gateway.callbutton.central import whole
from gateway.callbutton.service import Fetched
from gateway.callbutton.wait_queue import Waiters
from gateway.errors import UpstreamError, UpstreamFailed, UpstreamMalformed, UpstreamRejected, UpstreamTimeout
from gateway.ledger.codes import HOUR, Codes
from gateway.ledger.extents import Extent, make_extent, make_extent_of_all
from gateway.ledger.tickets import Flight, Landed
from gateway.model import EVERY_CLIENT, Window

MOST = 32


class Fetch(Protocol):
    """The network: the calls of some codes in a window, planned at `now`. Raises UpstreamError."""

    async def __call__(
        self, codes: Sequence[str], window: Window, *, status: bool, now: float, demand: Waiters
    ) -> Fetched:
        """POST, unless nobody waits for it when its turn comes."""


class Store(Protocol):
    """The ledger's memory."""

    def __call__(self, code: str, extent: Extent, *, status: bool) -> None:
        """Keep an extent."""


class Errand(Struct):
    """What stays the same for all POSTs of a flight, what they bring, and how many are left."""

    status: bool
    now: float  # when it was planned
    demand: Waiters
    landed: dict[str, Landed]
    left: int = MOST


class Posts:
    """Sends the POSTs of flights."""

    def __init__(
        self,
        fetch: Fetch,
        codes: Codes,
        store: Store,
        clock: Callable[[], float],
        fresh: float,
    ) -> None:
        self._send = fetch
        self._codes = codes
        self._store = store
        self._clock = clock
        self._fresh = fresh  # seconds for which points after an open POST count as fetched

    async def send(self, flight: Flight, codes: Sequence[str]) -> dict[str, Landed]:
        """Fetch some of the codes of a flight; what fails is in the result."""
        errand = Errand(flight.status, flight.begun, flight.demand, {code: Landed() for code in codes})
        await self._fetch(list(codes), flight.window, errand)
        return errand.landed

    async def _fetch(self, codes: list[str], window: Window, errand: Errand) -> None:
        errand.left -= 1
        try:
            fetched = await self._send(codes, window, status=errand.status, now=errand.now, demand=errand.demand)
        except UpstreamError as error:
            await self._recover(error, codes, window, errand)
            return
        for code in codes:
            self._codes.of(code).took = max(0.0, self._clock() - fetched.sent)
        if len(codes) == 1:
            self._codes.learn(codes[0], fetched.calls)
            self._keep(codes[0], window, attributed(codes[0], fetched), errand)
            return
        foreign = any(code not in errand.landed for code in fetched.calls)
        for code in codes:
            if code in fetched.calls or code in fetched.unreadable or (self._codes.of(code).plain and not foreign):
                self._keep(code, window, fetched, errand)
            else:
                await self._fetch([code], window, errand)

    async def _recover(self, error: UpstreamError, codes: list[str], window: Window, errand: Errand) -> None:
        seconds = window.end - window.start
        if _only_shortens(error):
            for code in codes:
                self._codes.halve(code, seconds, self._clock())
        halves: list[tuple[list[str], Window]] = []
        if _splits(error) and errand.left > 0:
            middle = len(codes) // 2
            if middle:
                halves = [(codes[:middle], window), (codes[middle:], window)]
            elif seconds > HOUR and not isinstance(error, UpstreamRejected):
                self._codes.halve(codes[0], seconds, self._clock())
                halves = [(codes, part) for part in _halves(window)]
        if not halves:
            for code in codes:
                if len(codes) == 1 and _splits(error):
                    self._codes.fail(code, self._clock())
                errand.landed[code].error = errand.landed[code].error or error
        for part, within in halves:
            # One half of a client's window that cannot be had is enough to fail its flight.
            if len(part) > 1 or errand.landed[part[0]].error is None:
                await self._fetch(part, within, errand)

    def _keep(self, code: str, window: Window, fetched: Fetched, errand: Errand) -> None:
        if window.end >= errand.now:  # open: points after the POST count as fetched by it
            window = Window(window.start, max(window.end, math.ceil(fetched.sent + self._fresh)))
        if code == EVERY_CLIENT:
            unreadable = sum(fetched.unreadable.values())
            extent = make_extent_of_all(window, fetched.sent, fetched.calls, unreadable)
        else:
            calls, unreadable = fetched.calls.get(code, []), fetched.unreadable.get(code, 0)
            extent = make_extent(window, fetched.sent, calls, unreadable)
        self._store(code, extent, status=errand.status)
        errand.landed[code].extents.append(extent)


def attributed(code: str, fetched: Fetched) -> Fetched:
    """Give a reply to one code to it."""
    if code == EVERY_CLIENT or (set(fetched.calls) <= {code} and set(fetched.unreadable) <= {code}):
        return fetched
    calls = [
        call if echoed == code else msgspec.structs.replace(call, client_code=code)
        for echoed, found in fetched.calls.items()
        for call in found
    ]
    return msgspec.structs.replace(fetched, calls={code: calls}, unreadable={code: sum(fetched.unreadable.values())})


def _splits(error: UpstreamError) -> bool:
    """Whether less may be had where all could not."""
    if isinstance(error, UpstreamTimeout):
        return error.answering
    if isinstance(error, UpstreamFailed):
        return error.reported
    return isinstance(error, (UpstreamMalformed, UpstreamRejected))


def _only_shortens(error: UpstreamError) -> bool:
    """Whether the next window had better be shorter, though this one is not tried again."""
    if isinstance(error, UpstreamTimeout):
        return not error.answering
    return isinstance(error, UpstreamFailed) and not error.reported


def _halves(window: Window) -> list[Window]:
    middle = whole(Window(window.start, (window.start + window.end) // 2)).end
    if not window.start < middle < window.end:
        return []
    return [Window(window.start, middle), Window(middle, window.end)]
