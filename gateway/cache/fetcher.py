"""The fetcher sends the POSTs of a flight: a batch and the codes that its reply leaves out, or the parts of a window.

Rules:
- In the reply to one code its own calls count, or else those of the one other code that is listed. In a batch the
  listed codes stand and foreign ones are discarded. Codes that are missing are requested singly, unless they are known
  to echo themselves and nothing foreign came.
- A batch that fails is not split here: its readers send their codes again, each alone, and no reader waits for the code
  of another.
- ERROR, a malformed body, a body that is too large, or a timeout after the first byte: the window of a code is halved
  down to one hour. After a timeout before the first byte, or a 5xx, nothing is sent again: the next flight may be
  planned with a shorter window.
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
from gateway.cache.extents import DAY, Extent, extent_in_steps, extent_of_all_in_steps
from gateway.cache.single_flight import Flight, FlightResult
from gateway.callbutton.central_time import align_to_fold
from gateway.callbutton.client import Fetched
from gateway.callbutton.wait_queue import Waiters
from gateway.errors import (
    NotSent,
    Overloaded,
    UpstreamError,
    UpstreamFailed,
    UpstreamMalformed,
    UpstreamRejected,
    UpstreamTimeout,
)
from gateway.model import CLIENT_CODE, EVERY_CLIENT, UnreadableCall, Window
from gateway.slices import Steps, in_slices

# Seconds. The POST for a window of at most this length takes about as long as the next one, which refreshes its newest
# part. That for a longer window may take much longer.
SHORT = DAY
RETRY_AFTER = 1  # seconds; the codes that were fetched are in the cache by then


class Fetch(Protocol):
    """The network: the calls of some codes in a window, planned at `now`. Raises UpstreamError."""

    async def __call__(
        self, codes: Sequence[str], window: Window, *, status: bool, now: float, waiters: Waiters
    ) -> Fetched:
        """Send a POST, unless no reader waits for it when its turn comes."""


# Client code, extent, with status; returns the extents to answer with, which are others if the reply is doubted, and
# whether all of them are stored.
Store = Callable[[str, Extent, bool], Steps[tuple[list[Extent], bool]]]


class FetchState(Struct):
    """The state of a flight: the arguments of all its POSTs, their results, the POSTs left, and those split.

    `longest` is the longest window, in seconds, that was answered of each code whose window was split.
    """

    status: bool
    now: float  # when the flight was planned
    waiters: Waiters
    results: dict[str, FlightResult]
    posts_left: int = MAX_POSTS
    failures: int = 0
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
                self._profiles.answered_part(code, seconds, self._clock(), failures=state.failures)
        return state.results

    async def _fetch(self, codes: list[str], window: Window, state: FetchState) -> None:
        state.posts_left -= 1
        replied = False
        try:
            fetched = await self._post(codes, window, status=state.status, now=state.now, waiters=state.waiters)
            replied = True
            single = attributed(codes[0], fetched) if len(codes) == 1 else None
        except UpstreamError as error:
            await self._failed(error, codes, window, state, splittable=not replied and _is_splittable(error))
            return
        now, seconds = self._clock(), window.end - window.start
        if seconds <= SHORT:
            for code in codes:
                self._profiles.of(code).last_duration = fetched.seconds
        if state.longest.keys().isdisjoint(codes):
            self._profiles.answered(codes, seconds, now)
        else:
            state.longest[codes[0]] = max(seconds, state.longest[codes[0]])
        if single is not None:
            self._profiles.echoed(codes[0], fetched.calls)
            await self._keep(codes[0], window, single, state)
            return
        foreign = any(code not in state.results for code in fetched.calls)
        for code in codes:
            listed = code in fetched.calls or code in fetched.unreadable
            if listed or (self._profiles.of(code).echoes_itself and not foreign):
                await self._keep(code, window, fetched, state)
                continue
            self._profiles.omitted()
            if state.posts_left > 0:
                await self._fetch([code], window, state)
            else:
                detail = f"the Callbutton server left out over {MAX_POSTS - 1} of {len(codes)} client codes"
                self._fail(code, Overloaded(detail, RETRY_AFTER), state)

    async def _failed(
        self, error: UpstreamError, codes: list[str], window: Window, state: FetchState, *, splittable: bool
    ) -> None:
        """Learn from a POST that failed; halve the window if that may help."""
        now, sent = self._clock(), not (isinstance(error, NotSent) or error.disconnected)
        if len(codes) > 1:
            if sent:
                self._profiles.batch_failed(codes, now)
            for code in codes:
                self._fail(code, error, state)
            return
        code, seconds = codes[0], window.end - window.start
        state.results[code].alone = sent
        if _is_overload(error):
            self._profiles.overloaded(code, seconds, now)
        halves: list[Window] = []
        if splittable and seconds > MIN_SPAN:
            halves = _halves(window)
        if halves:
            state.failures += 1
            state.longest.setdefault(code, 0)
        else:
            if sent:
                bad_reply = isinstance(error, UpstreamRejected) or _is_splittable(error)
                self._profiles.failed(code, now, bad_reply=bad_reply)
                state.longest.pop(code, None)
            self._fail(code, error, state)
        for part in halves:
            if state.results[code].error is not None:  # if half of the window cannot be had, the flight has failed
                break
            if state.posts_left > 0:
                await self._fetch(codes, part, state)
            else:
                self._fail(code, error, state)

    def _fail(self, code: str, error: UpstreamError, state: FetchState) -> None:
        state.results[code].error = state.results[code].error or error

    async def _keep(self, code: str, window: Window, fetched: Fetched, state: FetchState) -> None:
        if window.end >= state.now:  # open: points after the POST count as fetched by it
            window = Window(window.start, max(window.end, math.ceil(fetched.sent + self._fresh)))
        if code == EVERY_CLIENT:
            unreadable = list(chain.from_iterable(fetched.unreadable.values()))
            steps = extent_of_all_in_steps(window, fetched.sent, fetched.calls, unreadable)
        else:
            calls, unreadable = fetched.calls.get(code, []), fetched.unreadable.get(code, [])
            steps = extent_in_steps(window, fetched.sent, calls, unreadable)
        extent = await in_slices(steps)
        extents, stored = await in_slices(self._store(code, extent, state.status))
        result = state.results[code]
        result.extents += extents
        result.doubted = result.doubted or not stored


def attributed(code: str, fetched: Fetched) -> Fetched:
    """Attribute a reply to one code: to itself, or to the only other code listed. Raises UpstreamMalformed."""
    if code == EVERY_CLIENT:
        return addressable(fetched)
    listed = fetched.calls.keys() | fetched.unreadable.keys()
    if listed <= {code}:
        return fetched
    if code in listed:
        calls, unreadable = fetched.calls.get(code, []), fetched.unreadable.get(code, [])
        return msgspec.structs.replace(fetched, calls={code: calls}, unreadable={code: unreadable})
    if len(listed) > 1:
        raise UpstreamMalformed("the Callbutton server's reply lists other client codes than the one requested")
    calls = [msgspec.structs.replace(call, client_code=code) for found in fetched.calls.values() for call in found]
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
    """Whether a shorter window may be answered where this one was not."""
    if isinstance(error, UpstreamTimeout):
        return error.answering
    if isinstance(error, UpstreamFailed):
        return error.reported
    return isinstance(error, UpstreamMalformed)


def _is_overload(error: UpstreamError) -> bool:
    """Whether the request may have been too much for the upstream, though it is not split."""
    if isinstance(error, UpstreamTimeout):
        return not error.answering and not error.disconnected
    return isinstance(error, UpstreamFailed) and not error.reported and not 0 < error.status < 500


def _halves(window: Window) -> list[Window]:
    middle = align_to_fold(Window(window.start, (window.start + window.end) // 2)).end
    if not window.start < middle < window.end:
        return []
    return [Window(window.start, middle), Window(middle, window.end)]
