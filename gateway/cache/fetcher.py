"""The fetcher sends the POSTs of a flight: a batch, the codes that its reply leaves out, and its halves if it fails.

Rules:
- A reply to one code is attributed to it, whatever it echoes. In a batch the listed codes stand and foreign ones are
  discarded. Codes that are missing are requested singly, unless they are known to echo themselves and nothing foreign
  came.
- ERROR, a malformed body, a body that is too large, or a timeout after the first byte: the batch is halved down to one
  code, then the window down to one hour. After a timeout before the first byte, or a 5xx, nothing is sent again: the
  next flight may be planned with a shorter window or a smaller batch.
- Extents are stored as they come. A flight costs at most `MAX_POSTS`: past that, the rest of a split fails with the
  error that caused it, and codes that are missing with `Overloaded`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Protocol

import msgspec
from msgspec import Struct

from gateway.cache.client_profiles import MAX_POSTS, MIN_SPAN, ClientProfiles
from gateway.cache.extents import Extent, make_extent, make_extent_of_all
from gateway.cache.single_flight import Flight, FlightResult
from gateway.callbutton.central_time import align_to_fold
from gateway.callbutton.client import Fetched
from gateway.callbutton.wait_queue import Waiters
from gateway.errors import (
    Overloaded,
    UpstreamError,
    UpstreamFailed,
    UpstreamMalformed,
    UpstreamRejected,
    UpstreamTimeout,
)
from gateway.model import CLIENT_CODE, EVERY_CLIENT, UnreadableCall, Window

RETRY_AFTER = 1  # seconds; the codes that were fetched are in the cache by then


class Fetch(Protocol):
    """The network: the calls of some codes in a window, planned at `now`. Raises UpstreamError."""

    async def __call__(
        self, codes: Sequence[str], window: Window, *, status: bool, now: float, waiters: Waiters
    ) -> Fetched:
        """Send a POST, unless no reader waits for it when its turn comes."""


# Client code, extent, with status; returns the extents to answer with, which are others if the reply is doubted.
Store = Callable[[str, Extent, bool], list[Extent]]


class FetchState(Struct):
    """The state of a flight: the arguments of all its POSTs, their results, and the number of POSTs left.

    `longest` is the longest window, in seconds, that was answered of each code whose window was split.
    """

    status: bool
    now: float  # when the flight was planned
    waiters: Waiters
    results: dict[str, FlightResult]
    posts_left: int = MAX_POSTS
    longest: dict[str, int] = msgspec.field(default_factory=dict)


class Fetcher:
    """Sends the POSTs of flights. Points after an open POST count as fetched for `fresh` seconds."""

    def __init__(
        self,
        fetch: Fetch,
        profiles: ClientProfiles,
        store: Store,
        clock: Callable[[], float],
        fresh: float,
    ) -> None:
        self._post = fetch
        self._profiles = profiles
        self._store = store
        self._clock = clock
        self._fresh = fresh

    async def fetch(self, flight: Flight, codes: Sequence[str]) -> dict[str, FlightResult]:
        """Fetch some of the codes of a flight. Errors are in the result."""
        state = FetchState(flight.status, flight.planned, flight.waiters, {code: FlightResult() for code in codes})
        await self._fetch(list(codes), flight.window, state)
        for code, seconds in state.longest.items():
            if seconds:
                self._profiles.answered_part(code, seconds, self._clock())
        return state.results

    async def _fetch(self, codes: list[str], window: Window, state: FetchState) -> None:
        state.posts_left -= 1
        try:
            fetched = await self._post(codes, window, status=state.status, now=state.now, waiters=state.waiters)
        except UpstreamError as error:
            await self._fetch_halves(error, codes, window, state)
            return
        now, seconds = self._clock(), window.end - window.start
        for code in codes:
            self._profiles.of(code).last_duration = max(0.0, now - fetched.sent)
        if state.longest.keys().isdisjoint(codes):
            self._profiles.answered(codes, seconds, now)
        else:
            state.longest[codes[0]] = max(seconds, state.longest[codes[0]])
        if len(codes) == 1:
            self._profiles.echoed(codes[0], fetched.calls)
            self._keep(codes[0], window, attributed(codes[0], fetched), state)
            return
        foreign = any(code not in state.results for code in fetched.calls)
        for code in codes:
            listed = code in fetched.calls or code in fetched.unreadable
            if listed or (self._profiles.of(code).echoes_itself and not foreign):
                self._keep(code, window, fetched, state)
                continue
            self._profiles.omitted()
            if state.posts_left > 0:
                await self._fetch([code], window, state)
            else:
                detail = f"the Callbutton server left out over {MAX_POSTS - 1} of {len(codes)} client codes"
                self._fail(code, Overloaded(detail, RETRY_AFTER), state)

    async def _fetch_halves(self, error: UpstreamError, codes: list[str], window: Window, state: FetchState) -> None:
        seconds = window.end - window.start
        if _is_overload(error):
            self._profiles.overloaded(codes, seconds, self._clock())
        halves: list[tuple[list[str], Window]] = []
        if _is_splittable(error):
            middle = len(codes) // 2
            if middle:
                halves = [(codes[:middle], window), (codes[middle:], window)]
            elif seconds > MIN_SPAN and not isinstance(error, UpstreamRejected):
                halves = [(codes, part) for part in _halves(window)]
                state.longest.setdefault(codes[0], 0)
        if not halves:
            for code in codes:
                if len(codes) == 1 and _is_splittable(error):
                    self._profiles.failed(code, self._clock())
                    state.longest.pop(code, None)
                self._fail(code, error, state)
        for part, within in halves:
            # If half of a client's window cannot be had, its flight has failed.
            if len(part) == 1 and state.results[part[0]].error is not None:
                continue
            if state.posts_left > 0:
                await self._fetch(part, within, state)
            else:
                for code in part:
                    self._fail(code, error, state)

    def _fail(self, code: str, error: UpstreamError, state: FetchState) -> None:
        state.results[code].error = state.results[code].error or error

    def _keep(self, code: str, window: Window, fetched: Fetched, state: FetchState) -> None:
        if window.end >= state.now:  # open: points after the POST count as fetched by it
            window = Window(window.start, max(window.end, math.ceil(fetched.sent + self._fresh)))
        if code == EVERY_CLIENT:
            unreadable = list(chain.from_iterable(fetched.unreadable.values()))
            extent = make_extent_of_all(window, fetched.sent, fetched.calls, unreadable)
        else:
            calls, unreadable = fetched.calls.get(code, []), fetched.unreadable.get(code, [])
            extent = make_extent(window, fetched.sent, calls, unreadable)
        state.results[code].extents += self._store(code, extent, state.status)


def attributed(code: str, fetched: Fetched) -> Fetched:
    """Attribute a reply to one code to it."""
    if code == EVERY_CLIENT:
        return addressable(fetched)
    if set(fetched.calls) <= {code} and set(fetched.unreadable) <= {code}:
        return fetched
    calls = [
        call if echoed == code else msgspec.structs.replace(call, client_code=code)
        for echoed, found in fetched.calls.items()
        for call in found
    ]
    unreadable = [
        msgspec.structs.replace(one, client_code=code) for found in fetched.unreadable.values() for one in found
    ]
    return msgspec.structs.replace(fetched, calls={code: calls}, unreadable={code: unreadable})


def addressable(fetched: Fetched) -> Fetched:
    """Count the calls of clients that no request can name as unreadable: no endpoint knows these clients."""
    calls, unreadable = dict(fetched.calls), dict(fetched.unreadable)
    for code in fetched.calls:
        if CLIENT_CODE.fullmatch(code) is None:
            records = [UnreadableCall(call.id, code, call.start_time, call.start_time) for call in calls.pop(code)]
            unreadable[code] = unreadable.get(code, []) + records
    return msgspec.structs.replace(fetched, calls=calls, unreadable=unreadable)


def _is_splittable(error: UpstreamError) -> bool:
    """Whether fewer codes or a shorter window may be answered where this request was not."""
    if isinstance(error, UpstreamTimeout):
        return error.answering
    if isinstance(error, UpstreamFailed):
        return error.reported
    return isinstance(error, (UpstreamMalformed, UpstreamRejected))


def _is_overload(error: UpstreamError) -> bool:
    """Whether the request may have been too much for the upstream, though it is not split."""
    if isinstance(error, UpstreamTimeout):
        return not error.answering and not error.connecting
    return isinstance(error, UpstreamFailed) and not error.reported and not 0 < error.status < 500


def _halves(window: Window) -> list[Window]:
    middle = align_to_fold(Window(window.start, (window.start + window.end) // 2)).end
    if not window.start < middle < window.end:
        return []
    return [Window(window.start, middle), Window(middle, window.end)]
