"""T1, T2, T3 and T5 against an upstream that publishes late, edits, moves and deletes calls, and fails.

A hypothesis state machine runs sequences of reads, waits, changes, failures and evictions; an oracle remembers every
version of every call and the time during which the upstream returned it. `make soak` runs many more steps.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Sequence
from typing import NamedTuple

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from prometheus_client import CollectorRegistry

from gateway.cache.freshness import Rule
from gateway.cache.reader import Cache, CacheSettings, Query
from gateway.callbutton.central_time import align_to_fold
from gateway.callbutton.client import Fetched
from gateway.callbutton.wait_queue import Waiters
from gateway.errors import UpstreamError, UpstreamFailed, UpstreamMalformed, UpstreamTimeout, UpstreamUnreachable
from gateway.metrics import Metrics
from gateway.model import Call, Window
from gateway.redis_client import RedisClient
from tests.support.servers import Server
from tests.support.upstream import call

EXAMPLES = int(os.environ.get("SOAK_EXAMPLES", "60"))
STEPS = int(os.environ.get("SOAK_STEPS", "40"))
FOLD = 1_793_509_200  # an hour before the autumn change of clocks of 2026
RULE = Rule(minimum=15, ratio=0.1, maximum=20_000)
CODES = ("a", "b", "c")
FAILURES = (
    UpstreamFailed("ERROR", reported=True),
    UpstreamFailed("HTTP status 500"),
    UpstreamMalformed("broken"),
    UpstreamTimeout("late", answering=True),
    UpstreamTimeout("late", answering=False),
    UpstreamUnreachable("refused"),
)


class Version(NamedTuple):
    """A version of a call, and the period in which the upstream returned it."""

    call: Call
    since: float
    until: float


class World:
    """The upstream, and the oracle."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.versions: list[Version] = []
        self.echo: dict[str, str] = {}
        self.omits = False
        self.failing: tuple[UpstreamError, int] | None = None  # the error; windows above this many seconds fail
        self.serial = 0

    def shown(self, at: float) -> dict[tuple[str, str], Call]:
        return {(v.call.client_code, v.call.id): v.call for v in self.versions if v.since <= at < v.until}

    def end(self, index: int) -> Version:
        """End the period in which the upstream returns a version."""
        version = self.versions[index]
        self.versions[index] = version._replace(until=min(version.until, self.now))
        return version

    async def __call__(
        self,
        codes: Sequence[str],
        window: Window,
        *,
        status: bool,  # noqa: ARG002
        now: float,
        waiters: Waiters,  # noqa: ARG002
    ) -> Fetched:
        assert align_to_fold(window) == window
        sent = self.now
        await asyncio.sleep(0)
        if self.failing is not None and window.end - window.start > self.failing[1]:
            raise self.failing[0]
        end = sent if window.end >= now else window.end + 1
        asked = CODES if "*" in codes else codes
        found: dict[str, list[Call]] = {}
        for code in asked:
            calls = [
                one
                for (owner, _), one in self.shown(sent).items()
                if owner == code and window.start - 1 <= one.start_time.timestamp() <= end
            ]
            if calls or not self.omits or len(codes) == 1:
                found[code if "*" in codes else self.echo.get(code, code)] = calls
        return Fetched(sent, found, {}, status_ignored=False)


class Truth(RuleBasedStateMachine):
    """A state machine of reads and of the events between them."""

    @initialize(
        start=st.sampled_from([FOLD, FOLD + 40_000, 1_773_561_600]),  # autumn, the day after, spring
        bound=st.sampled_from([2**28, 20_000]),
        echo=st.sampled_from([{}, {"b": "B"}]),
        omits=st.booleans(),
    )
    def begin(self, start: int, bound: int, echo: dict[str, str], omits: bool) -> None:
        self.loop = asyncio.new_event_loop()
        self.world = World(float(start))
        self.world.echo, self.world.omits = echo, omits
        rules = CacheSettings(RULE, RULE, max_span=30_000, batch=2, cache_bytes=bound, stale_if_error=1000)
        self.caches = self.replicas(rules)

    def replicas(self, rules: CacheSettings) -> list[Cache]:
        return [Cache(self.world, rules, Metrics(CollectorRegistry()), lambda: self.world.now)]

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            for cache in self.caches:
                self.loop.run_until_complete(cache.close())
            self.loop.close()

    @rule(seconds=st.one_of(st.floats(0.1, 40), st.floats(40, 9000)))
    def wait(self, seconds: float) -> None:
        self.world.now += seconds

    @rule(ago=st.integers(0, 30_000), late=st.floats(0, 6000), code=st.sampled_from(CODES))
    def happen(self, ago: int, late: float, code: str) -> None:
        self.world.serial += 1
        made = call(str(self.world.serial), int(self.world.now) - ago, code)
        self.world.versions.append(Version(made, self.world.now + late, float("inf")))

    @rule(which=st.integers(0, 50), shift=st.sampled_from([0, 0, -3000, 3600]), gone=st.booleans())
    def change(self, which: int, shift: int, gone: bool) -> None:
        """Edit, move or delete a call."""
        if not self.world.versions:
            return
        version = self.world.end(which % len(self.world.versions))
        if not gone and version.until > self.world.now >= version.since:
            self.world.serial += 1
            start = min(int(version.call.start_time.timestamp()) + shift, int(self.world.now))  # never in the future
            edited = call(version.call.id, start, version.call.client_code, campaign=str(self.world.serial))
            self.world.versions.append(Version(edited, self.world.now, version.until))

    @rule(failure=st.sampled_from((None, *FAILURES)), above=st.sampled_from([0, 0, 4000, 20_000]))
    def fail(self, failure: UpstreamError | None, above: int) -> None:
        self.world.failing = (failure, above) if failure else None

    @rule(
        ago=st.integers(0, 60_000),
        length=st.integers(1, 60_000),
        codes=st.sampled_from([("a",), ("b",), ("a", "b"), ("a", "b", "c"), ("*",)]),
        no_cache=st.sampled_from([False, False, False, True]),
        crowd=st.integers(1, 3),
        first=st.integers(0, 1),
    )
    def read(self, ago: int, length: int, codes: tuple[str, ...], no_cache: bool, crowd: int, first: int) -> None:
        now = self.world.now
        start = int(now) - ago
        windows = [Window(start - shift, start - shift + length) for shift in range(0, crowd * 700, 700)]

        async def one(number: int, window: Window) -> None:
            cache = self.caches[(first + number) % len(self.caches)]
            try:
                reading = await cache.read(Query(codes=codes, window=window, no_cache=no_cache))
            except UpstreamError:
                assert self.world.failing is not None or now < self.healed + 2
                return
            self.check(reading.calls, codes, window, now, reading.seconds_stale if reading.stale else None)

        async def together() -> None:
            await asyncio.gather(*(one(*numbered) for numbered in enumerate(windows)))

        self.loop.run_until_complete(together())
        if self.world.failing is not None:
            self.healed = now

    healed = 0.0  # when the upstream was last seen to fail: errors are remembered for a second

    def check(
        self, calls: Sequence[Call], codes: tuple[str, ...], window: Window, now: float, seconds_stale: float | None
    ) -> None:
        """Compare an answer with the upstream's calls at some instant that the staleness rule allows."""
        listed = CODES if codes == ("*",) else codes
        keys = [(one.client_code, one.id) for one in calls]
        assert len(keys) == len(set(keys)), "T2"
        answered = {(one.client_code, one.id): one for one in calls}
        for one in calls:
            start = one.start_time.timestamp()
            assert start in window
            assert one.client_code in listed
            assert any(v.call == one and v.since <= now for v in self.world.versions), "made up"
        for version in self.world.versions:
            start = version.call.start_time.timestamp()
            if start not in window or version.call.client_code not in listed:
                continue
            # The oldest fetch that a fresh answer may rest on for this point: f with now - f < life(f - p).
            oldest = now - RULE.minimum
            if now > start:
                oldest = min(oldest, max((now + RULE.ratio * start) / (1 + RULE.ratio), now - RULE.maximum))
            oldest -= (seconds_stale or 0) * 1.2 + 1
            shown_all_along = version.since <= oldest and version.until > now
            key = version.call.client_code, version.call.id
            if shown_all_along and not self._moved(key, oldest):
                assert answered.get(key) == version.call, "T1"
            never_shown = version.until <= oldest or version.since > now
            if never_shown and answered.get(key) == version.call:
                same = [v for v in self.world.versions if v.call == version.call and v is not version]
                assert same, "T5: an answer older than the rule allows"

    def _moved(self, key: tuple[str, str], since: float) -> bool:
        """Return whether a call's start changed recently: the boundary of two extents may then hold either version."""
        versions = [v for v in self.world.versions if (v.call.client_code, v.call.id) == key and v.until > since]
        return len({v.call.start_time for v in versions}) > 1


class SharedTruth(Truth):
    """The same with two replicas that share a server, which loses data, evicts, fails and restarts."""

    server: Server

    def replicas(self, rules: CacheSettings) -> list[Cache]:
        if self.server.process.poll() is not None:
            self.server.start()
        self.server.client.flushall()

        def clock() -> float:
            return self.world.now

        self.connections = [
            RedisClient(
                self.server.url, Metrics(CollectorRegistry()), lambda: self.world.now, math.inf, lambda: self.world.now
            )
            for _ in range(2)
        ]
        return [
            Cache(self.world, rules, Metrics(CollectorRegistry()), clock, connection) for connection in self.connections
        ]

    @rule(what=st.sampled_from(["flush", "evict", "evict", "evict", "kill", "start", "start"]), which=st.integers(0, 9))
    def disturb(self, what: str, which: int) -> None:
        alive = self.server.process.poll() is None
        if what == "start" and not alive:
            self.server.start()
        elif what == "kill" and alive:
            self.server.kill()
        elif what == "flush" and alive:
            self.server.client.flushall()
        elif what == "evict" and alive and (keys := self.server.client.keys("*")):
            self.server.client.delete(sorted(keys)[which % len(keys)])

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            for cache in self.caches:
                self.loop.run_until_complete(cache.close())
            for connection in self.connections:
                self.loop.run_until_complete(connection.close())
            self.loop.close()


def sequences(machine: type[Truth], examples: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_any_sequence_of_events_gives_true_answers():
    sequences(Truth, EXAMPLES)


def test_any_sequence_of_events_gives_true_answers_on_two_replicas(server: Server):
    SharedTruth.server = server
    sequences(SharedTruth, max(1, EXAMPLES // 3))
