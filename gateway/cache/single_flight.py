"""Single flight: upstream POSTs in progress, each shared by all readers that need it.

Rules:
- A flight is a detached task with the upstream's deadlines; its subscribers have their own. A consumer that disconnects
  cancels no flight. When the last subscriber has released a flight, its POSTs that still wait for a place are dropped.
- A flight in progress is joined for the points that would be fresh if it landed now.
- The first gap is sent at once. While a flight of the same client or window is in progress, further gaps wait until it
  lands, at most 50 ms, and are sent together: windows of a client that are near each other as one POST, clients of
  nearly the same window as one batch.
- An overdue flight delays no other POST: nothing waits until it lands, and its codes are not batched.
- An error of one code is remembered for a second, for gaps that contain the window that failed; the error of a batch is
  not. A failure to connect is remembered for all gaps, for a second or until a POST is answered. Other errors of POSTs
  that were not sent are not remembered.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from gateway import tracing
from gateway.cache.client_profiles import ClientProfiles
from gateway.cache.extents import Extent, minus
from gateway.cache.freshness import COVER, Rule, plan_posts, stale_from
from gateway.callbutton.central_time import align_to_fold
from gateway.callbutton.wait_queue import NO_DEADLINE, Priority, Waiters
from gateway.errors import NotSent, UpstreamError, UpstreamFailed, forget_frames
from gateway.memory import Lru, Memory
from gateway.metrics import Metrics
from gateway.model import Window

LOGGER = logging.getLogger(__name__)
COLLECT_TIME = 0.05  # seconds; short beside a POST, long enough for the requests of one dashboard
ERROR_TTL = 1.0  # seconds
ERRORS_PART = 1 / 64  # of the memory; a million bytes hold 600 errors
ERROR_BYTES = 1200  # of an error with its cause and its message, without the client code
ANY_POST = ""  # the key of errors that every POST would meet; no client code is empty
NO_CACHE_RULE = Rule(minimum=1, ratio=1e-9, maximum=1)  # a read past the cache joins no flight older than a second
OVERDUE = 1.0  # seconds; a POST for a window that dashboards ask for takes less


class Gap(NamedTuple):
    """A window of a client that must be fetched, in POSTs of at most `span` seconds unless that is known to fail.

    `alone`: not together with other clients, because that has failed.
    """

    code: str
    window: Window
    span: int
    alone: bool = False


class FlightResult(Struct):
    """The result of a flight for one client: extents, and the error of the rest, perhaps of a POST for it `alone`."""

    extents: list[Extent] = msgspec.field(default_factory=list)
    error: UpstreamError | None = None
    alone: bool = False
    doubted: bool = False  # some of the extents are not stored, and other replicas must not store them either


class Flight:
    """POSTs for some client codes and a window, in progress or landed.

    `planned` is the time at which it was planned; no POST that it rests on was planned before `oldest`. `reach` is the
    end of the points that it counts for: an `open` window ends at or after `planned`.
    """

    task: asyncio.Task[dict[str, FlightResult]]

    def __init__(
        self,
        codes: Sequence[str],
        window: Window,
        planned: float,
        fresh: float,
        waiters: Waiters,
        *,
        status: bool,
        no_cache: bool = False,
    ) -> None:
        self.codes = frozenset(codes)
        self.window = window
        self.planned = self.oldest = planned
        self.open = window.end >= planned
        self.reach = int(max(window.end, planned + fresh)) if self.open else window.end
        self.waiters = waiters
        self.status = status
        self.no_cache = no_cache
        self.span = tracing.begin("flight")

    def follow(self, planned: float, reach: int) -> None:
        """Follow the flight of another replica: the result is no fresher than its POSTs, and reaches no further."""
        self.oldest, self.reach = min(self.oldest, planned), min(self.reach, reach)

    def serves(self, now: float, rule: Rule) -> Window | None:
        """The window for whose points it would count if it landed now."""
        stale = stale_from(Extent(Window(self.window.start, self.reach), self.oldest), now, rule)
        end = self.reach if stale is None else int(stale)
        return Window(self.window.start, end) if end > self.window.start else None


class Subscription(Struct, eq=False):
    """A reader's interest in the flights for one gap. `joined`: another subscription has sent them.

    A consumer waits `until` an instant of the event loop's clock. With a `background` priority, no consumer waits.
    """

    gap: Gap
    joined: bool
    background: Priority | None = None
    until: float = NO_DEADLINE
    no_cache: bool = False
    status: bool = False
    flights: list[Flight] = msgspec.field(default_factory=list)
    released: bool = False
    launched: asyncio.Future[None] | None = None  # of a gap that waits to be sent with others
    error: UpstreamError | None = None
    alone: bool = False  # whether its error is of a POST for its code alone

    def subscribe(self, flight: Flight) -> None:
        """Add a flight."""
        self.flights.append(flight)
        if self.background is None:
            flight.waiters.join(self.until)

    def parts(self) -> tuple[list[Extent], list[Gap]]:
        """The extents that its flights have brought so far, and the parts of the gap that are missing."""
        if len(self.flights) < 2:
            return [], [self.gap]
        extents: list[Extent] = []
        missing: list[Gap] = []
        for flight in self.flights:
            if flight.task.done() and (result := flight.task.result()[self.gap.code]).error is None:
                extents += result.extents
            else:
                start = max(flight.window.start, self.gap.window.start)
                missing.append(self.gap._replace(window=Window(start, min(flight.window.end, self.gap.window.end))))
        return extents, missing

    def is_batched(self, others_than: Collection[str] = ()) -> bool:
        """Whether a flight is for several codes; with `others_than`, for a code that is not among them."""
        return any(len(flight.codes.union(others_than)) > max(1, len(others_than)) for flight in self.flights)

    def release(self) -> None:
        """Stop waiting. The flights continue."""
        if self.background is None and not self.released:
            for flight in self.flights:
                flight.waiters.leave()
        self.released = True

    async def wait(self) -> list[Extent]:
        """Wait for the extents. Raises UpstreamError."""
        if self.error is not None:
            self.alone = True
            raise self.error.with_traceback(None)
        if self.launched is not None:
            await asyncio.shield(self.launched)
        extents: list[Extent] = []
        with tracing.span("wait", links=[flight.span for flight in self.flights]) as span:
            if span is not None:
                span.set_attribute("joined", self.joined)
            for flight in self.flights:
                result = (await asyncio.shield(flight.task))[self.gap.code]
                extents += result.extents
                if result.error is not None:
                    self.alone = result.alone
                    raise result.error.with_traceback(None)
                if result.doubted and flight.status and not self.status:
                    raise UpstreamFailed("a reply with status lost many calls, and is doubted")
        return extents


class Pending:
    """Subscriptions whose gaps wait to be sent together."""

    def __init__(self) -> None:
        self.subscriptions: list[Subscription] = []
        self.meets: set[str | Window] = set()  # their client codes and windows
        self.launched: asyncio.Future[None] = asyncio.get_running_loop().create_future()


Send = Callable[[Flight, Sequence[str]], Coroutine[Any, Any, dict[str, FlightResult]]]


class SingleFlight:
    """All flights in progress. Points after an open POST count as fetched for `fresh` seconds."""

    def __init__(
        self,
        send: Send,
        profiles: ClientProfiles,
        fresh: float,
        clock: Callable[[], float],
        metrics: Metrics,
        memory: Memory,
    ) -> None:
        self._send = send
        self._profiles = profiles
        self._fresh = fresh
        self._clock = clock
        self._metrics = metrics
        self._flights: dict[tuple[str, bool], set[Flight]] = defaultdict(set)  # by client code, with status
        self._windows: dict[Window, set[Flight]] = defaultdict(set)  # of flights in progress
        self._pending: dict[bool, Pending] = {}  # by whether with status
        self._errors: Lru[tuple[str, bool], tuple[float, Window, UpstreamError]] = Lru(memory, ERRORS_PART)

    def subscribe(
        self,
        gaps: Iterable[Gap],
        rules: Mapping[str, Rule],
        *,
        status: bool,
        no_cache: bool = False,
        background: Priority | None = None,
        until: float | None = None,
    ) -> list[Subscription]:
        """Join the flights that serve the gaps, and send the rest; `rules` are by client code.

        A consumer waits `until` an instant of the event loop's clock, and releases each subscription.
        """
        now, subscriptions, unsent = self._clock(), list[Subscription](), list[Subscription]()
        until = NO_DEADLINE if until is None else until
        make = partial(Subscription, background=background, until=until, no_cache=no_cache, status=status)
        for gap in gaps:
            rest = [gap.window]
            for flight, served in self._joinable(gap, NO_CACHE_RULE if no_cache else rules[gap.code], status, now):
                if any(served.overlaps(window) for window in rest):
                    subscriptions.append(make(gap, joined=True))
                    subscriptions[-1].subscribe(flight)
                    rest = [align_to_fold(part) for window in rest for part in minus(window, served)]
            if rest != [gap.window]:
                self._metrics.joined.inc()
            for window in rest:
                part = gap._replace(window=window)
                subscriptions.append(make(part, joined=False, error=self._remembered(part, status)))
                if subscriptions[-1].error is None:
                    unsent.append(subscriptions[-1])
        for waiting in [one for one in unsent if self._is_busy(one.gap, status)]:
            self._collect(waiting, status)
        self._launch([one for one in unsent if one.launched is None], status)
        return subscriptions

    def _joinable(self, gap: Gap, rule: Rule, status: bool, now: float) -> Iterator[tuple[Flight, Window]]:
        for kind in (True,) if status else (False, True):
            for flight in self._flights.get((gap.code, kind), ()):
                if gap.alone and len(flight.codes) > 1:
                    continue
                if (served := flight.serves(now, rule)) is not None:
                    yield flight, served

    def _is_busy(self, gap: Gap, status: bool) -> bool:
        if gap.alone:
            return False
        flights = self._flights.get((gap.code, status), set()) | self._windows.get(gap.window, set())
        pending = self._pending.get(status)
        meets = pending is not None and not pending.meets.isdisjoint((gap.code, gap.window))
        return meets or any(not f.task.done() and self._clock() - f.planned < OVERDUE for f in flights)

    def _collect(self, subscription: Subscription, status: bool) -> None:
        pending = self._pending.get(status)
        if pending is None:
            pending = self._pending[status] = Pending()
            asyncio.get_running_loop().call_later(COLLECT_TIME, self._flush, status, pending)
        pending.subscriptions.append(subscription)
        pending.meets |= {subscription.gap.code, subscription.gap.window}
        subscription.launched = pending.launched

    def _flush(self, status: bool, pending: Pending) -> None:
        if self._pending.get(status) is pending:
            del self._pending[status]
            try:
                self._launch([one for one in pending.subscriptions if not one.released], status)
            finally:  # a bug must not leave readers waiting
                pending.launched.set_result(None)

    def _launch(self, subscriptions: Sequence[Subscription], status: bool) -> None:
        """Start flights for the gaps: windows of one client are merged, clients of one window batched."""
        now = self._clock()
        windows: dict[str, list[Window]] = defaultdict(list)
        spans: dict[str, int] = defaultdict(int)
        for one in subscriptions:
            windows[one.gap.code].append(one.gap.window)
            spans[one.gap.code] = max(spans[one.gap.code], one.gap.span)
        by_window: dict[Window, list[str]] = defaultdict(list)
        for code in windows:
            for part in plan_posts(windows[code], self._profiles.span(code, now, spans[code]), align_to_fold):
                by_window[part].append(code)
        background = min((one.background for one in subscriptions if one.background is not None), default=None)
        no_cache = any(one.no_cache for one in subscriptions)
        alone = {one.gap.code for one in subscriptions if one.gap.alone}
        alone |= {code for code in windows if self._is_overdue(code, now)}
        started: dict[str, list[Flight]] = defaultdict(list)
        for window, codes in _group_alike(by_window, self._profiles.max_span):
            for batch in self._profiles.batches(codes, now, alone):
                waiters = Waiters(background)
                flight = Flight(batch, window, now, self._fresh, waiters, status=status, no_cache=no_cache)
                self._start(flight, batch)
                for code in batch:
                    started[code].append(flight)
        for one in subscriptions:
            for flight in started[one.gap.code]:
                if flight.window.overlaps(one.gap.window):
                    one.subscribe(flight)

    def _is_overdue(self, code: str, now: float) -> bool:
        """Whether a POST of a code takes longer than usual."""
        usual = max(OVERDUE, 2 * self._profiles.of(code).last_duration)
        flights = [flight for status in (False, True) for flight in self._flights.get((code, status), ())]
        return any(now - flight.planned > usual for flight in flights)

    def _start(self, flight: Flight, codes: Sequence[str]) -> None:
        flight.task = asyncio.get_running_loop().create_task(self._fly(flight, codes))
        self._metrics.batch_codes.observe(len(codes))
        self._windows[flight.window].add(flight)
        for code in codes:
            self._flights[code, flight.status].add(flight)
        flight.task.add_done_callback(lambda _: self._land(flight))

    async def _fly(self, flight: Flight, codes: Sequence[str]) -> dict[str, FlightResult]:
        with tracing.within(flight.span) as span:
            if span is not None:
                span.set_attributes({"clients": len(codes), "seconds": flight.window.end - flight.window.start})
            return await self._send(flight, codes)

    def _land(self, flight: Flight) -> None:
        self._windows[flight.window].discard(flight)
        if not self._windows[flight.window]:
            del self._windows[flight.window]
        for key in [(code, flight.status) for code in flight.codes]:
            self._flights[key].discard(flight)
            if not self._flights[key]:
                del self._flights[key]
        if (pending := self._pending.get(flight.status)) is not None:
            self._flush(flight.status, pending)
        if flight.task.cancelled():
            return
        if (crash := flight.task.exception()) is not None:
            LOGGER.error("flight crashed", exc_info=crash)
            return
        self._remember(flight)

    def _remember(self, flight: Flight) -> None:
        for code, result in flight.task.result().items():
            if result.error is None:
                self._errors.pop((ANY_POST, flight.status))
            elif result.error.disconnected:
                self._put_error(ANY_POST, flight, result.error)
            elif not isinstance(result.error, NotSent) and len(flight.codes) == 1:
                self._put_error(code, flight, result.error)

    def _put_error(self, code: str, flight: Flight, error: UpstreamError) -> None:
        forget_frames(error)
        remembered = self._clock(), flight.window, error
        self._errors.put((code, flight.status), remembered, ERROR_BYTES + len(code))

    def _remembered(self, gap: Gap, status: bool) -> UpstreamError | None:
        """The error of the last second that a gap would meet again."""
        for key in ((gap.code, status), (ANY_POST, status)):
            if (remembered := self._errors.get(key)) is None:
                continue
            at, window, error = remembered
            if not 0 <= self._clock() - at < ERROR_TTL:  # the clock may step back
                self._errors.pop(key)
            elif error.disconnected or minus(window, gap.window) == []:
                return error
        return None

    async def close(self) -> None:
        """Wait for the flights in progress."""
        while self._pending or self._flights:
            for status, pending in list(self._pending.items()):
                self._flush(status, pending)
            tasks = {flight.task for flights in self._flights.values() for flight in flights}
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0)


def _group_alike(by_window: dict[Window, list[str]], max_span: int) -> list[tuple[Window, list[str]]]:
    """Group clients whose windows are nearly one: a window for all asks each for at most twice the seconds needed."""
    groups: list[tuple[Window, int, list[str]]] = []  # with the seconds of the shortest window in it
    for window, codes in sorted(by_window.items()):
        if groups:
            union, least, others = groups[-1]
            wider = Window(union.start, max(union.end, window.end))
            least = min(least, window.end - window.start)
            if wider.end - wider.start <= min(COVER * least, max_span) and not set(codes) & set(others):
                groups[-1] = wider, least, others + codes
                continue
        groups.append((window, window.end - window.start, codes))
    return [(window, codes) for window, _, codes in groups]
