"""A copy that only applies the change feed, against an upstream that publishes late, edits, moves, deletes and fails.

A consumer polls either of two caches, which share nothing, or nothing but a server that forgets. After quiet the copy
equals the upstream, and it never returns to an older version. `SOAK_EXAMPLES` and `SOAK_STEPS` run more.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from prometheus_client import CollectorRegistry

from gateway.cache import level1
from gateway.cache.feed import Report
from gateway.cache.feed_reader import Clients
from gateway.cache.feed_state import midnight, pack, unpack
from gateway.cache.fingerprints import View
from gateway.cache.freshness import Rule
from gateway.cache.level1 import UNPACKED
from gateway.cache.reader import Cache, CacheSettings, Query
from gateway.cache.watch import Answer, Feeds, Seen
from gateway.callbutton.central_time import align_to_fold
from gateway.callbutton.client import Fetched
from gateway.callbutton.wait_queue import Waiters
from gateway.errors import (
    GatewayError,
    UpstreamError,
    UpstreamFailed,
    UpstreamMalformed,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from gateway.memory import Memory
from gateway.metrics import Metrics
from gateway.model import Call, Window
from gateway.redis_client import RedisClient
from tests.support.servers import Server
from tests.support.upstream import call

VIEW = View("all", list, lambda one: one)
Key = tuple[str, str]
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


class Feed(RuleBasedStateMachine):
    """A state machine of polls, reads and of the events between them."""

    @initialize(
        start=st.sampled_from([FOLD, FOLD + 40_000, 1_773_561_600]),  # autumn, the day after, spring
        bound=st.sampled_from([2**28, 20_000]),
        echo=st.sampled_from([{}, {"b": "B"}]),
        omits=st.booleans(),
        unpacked_part=st.sampled_from([0, UNPACKED]),
    )
    def begin(self, start: int, bound: int, echo: dict[str, str], omits: bool, unpacked_part: float) -> None:
        level1.UNPACKED = unpacked_part  # of the memory; 0: every day is packed as soon as it is stored
        self.loop = asyncio.new_event_loop()
        self.world = World(float(start))
        self.world.echo, self.world.omits = echo, omits
        rules = CacheSettings(RULE, RULE, max_span=30_000, batch=2, cache_bytes=bound, stale_if_error=1000)
        self.caches = self.replicas(rules)

    def teardown(self) -> None:
        level1.UNPACKED = UNPACKED
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
        self.world.now += 0.1  # two POSTs of the same instant see the same calls
        version = self.world.end(which % len(self.world.versions))
        if not gone and version.until > self.world.now >= version.since:
            self.world.serial += 1
            start = min(int(version.call.start_time.timestamp()) + shift, int(self.world.now))  # never in the future
            edited = call(version.call.id, start, version.call.client_code, campaign=str(self.world.serial))
            self.world.versions.append(Version(edited, self.world.now, version.until))

    @rule(failure=st.sampled_from((None, *FAILURES)), above=st.sampled_from([0, 0, 4000, 20_000]))
    def fail(self, failure: UpstreamError | None, above: int) -> None:
        self.world.failing = (failure, above) if failure else None

    days = 1
    clients = Clients(("a",), False)

    @initialize(days=st.integers(0, 2), codes=st.sampled_from([("a",), ("a", "b"), ("*",)]))
    def begin_feed(self, days: int, codes: tuple[str, ...]) -> None:
        self.days, self.clients = days, Clients(codes, False)

    @rule(seconds=st.floats(0.1, 5))
    def wait_shortly(self, seconds: float) -> None:
        self.world.now += seconds

    def replicas(self, rules: CacheSettings) -> list[Cache]:
        caches = self.two_caches(rules)
        self.feeds = [
            Feeds(cache, Memory(), lambda: self.world.now, 60, Metrics(CollectorRegistry())) for cache in caches
        ]
        self.copies: dict[Clients, dict[Key, Call]] = {}
        self.states: dict[Clients, bytes] = {}
        self.newest: dict[tuple[Clients, Key], float] = {}
        self.seen: dict[int, Seen] = {}  # by cache
        return caches

    def two_caches(self, rules: CacheSettings) -> list[Cache]:
        return [Cache(self.world, rules, Metrics(CollectorRegistry()), lambda: self.world.now) for _ in range(2)]

    @rule(
        which=st.integers(0, 1),
        ago=st.integers(0, 60_000),
        length=st.integers(1, 60_000),
        codes=st.sampled_from([("a",), ("b",), ("a", "b", "c"), ("*",)]),
        no_cache=st.booleans(),
    )
    def read(self, which: int, ago: int, length: int, codes: tuple[str, ...], no_cache: bool) -> None:
        """A list that someone else reads."""
        start = int(self.world.now) - ago
        query = Query(codes=codes, window=Window(start, start + length), no_cache=no_cache)
        with suppress(GatewayError):
            self.loop.run_until_complete(self.caches[which].read(query))

    @rule(which=st.integers(0, 1), limit=st.sampled_from([1, 3, 1000]))
    def poll(self, which: int, limit: int) -> None:
        self.answer(self.clients, which, limit)

    @rule(
        first=st.integers(0, 1), second=st.integers(0, 1), which=st.integers(0, 50), shift=st.sampled_from([0, -3000])
    )
    def edit_between_polls(self, first: int, second: int, which: int, shift: int) -> None:
        self.answer(self.clients, first, 1000)
        shown = [
            index
            for index, version in enumerate(self.world.versions)
            if version.since <= self.world.now < version.until
            and (version.call.client_code, version.call.id) in self.copies.get(self.clients, {})
        ]
        if shown:
            self.world.now += 0.1  # two POSTs of the same instant see the same calls
            self.change(shown[which % len(shown)], shift, gone=False)
            self.answer(self.clients, second, 1000)
            self.answer(self.clients, first, 1000)

    @rule(ago=st.integers(0, 30_000), code=st.sampled_from(CODES))
    def happen_now(self, ago: int, code: str) -> None:
        self.happen(ago, 0.0, code)

    @rule(which=st.integers(0, 1), wait=st.booleans(), limit=st.sampled_from([3, 1000]))
    def refresh(self, which: int, wait: bool, limit: int) -> None:
        """A refresh of a watch, for which the consumer perhaps waits. Its changes may be reported later."""
        packed, feeds = self.states.get(self.clients), self.feeds[which]
        if packed is None:
            return
        start = unpack(packed).start
        with suppress(GatewayError):
            reading = self.loop.run_until_complete(feeds.reader.read(self.clients, start))
            self.seen[which] = self.loop.run_until_complete(feeds.show(reading, self.clients, start, VIEW))
        if wait:
            self.wake(which, limit)

    @rule(which=st.integers(0, 1), limit=st.sampled_from([3, 1000]))
    def wake(self, which: int, limit: int) -> None:
        """The consumer is told from the last refresh, as one that waited for it, or is slow."""
        packed, seen = self.states.get(self.clients), self.seen.get(which)
        if packed is not None and seen is not None and seen.snapshot.end > unpack(packed).at:
            self.answer(self.clients, which, limit, seen)

    def answer(self, clients: Clients, which: int, limit: int, seen: Seen | None = None) -> Answer | None:
        packed = self.states.get(clients)
        state = unpack(packed) if packed else midnight(self.world.now) - self.days * 86400
        try:
            answer = self.loop.run_until_complete(self.feeds[which].answer(clients, state, VIEW, limit, seen=seen))
        except GatewayError:
            return None
        self.apply(clients, answer.report)
        self.states[clients] = pack(answer.report.state)
        if answer.report.up_to_date:
            copy = self.copies[clients]
            if seen is None or seen.reading.numbers[1] != answer.report.state.reading:
                seen = self.feeds[which].seen(clients, state if isinstance(state, int) else state.start, VIEW)
            assert seen is not None
            assert answer.calls == len(copy), "page.calls"
            held = {(one.client_code, one.id): one for e in seen.snapshot.extents for one in e.calls}
            assert copy == held
            self.complete(clients, answer)
        return answer

    def complete(self, clients: Clients, answer: Answer) -> None:
        """Changes from before the oldest POST are in the copy."""
        start, until = answer.report.state.start, answer.provenance.oldest_fetch
        for version in self.world.versions:
            one = version.call
            lasting = version.since < until and version.until > self.world.now
            if lasting and one.client_code in self.listed(clients) and one.start_time.timestamp() >= start:
                assert self.copies[clients].get((one.client_code, one.id)) == one, "completeThrough"

    def listed(self, clients: Clients) -> Sequence[str]:
        return CODES if clients.codes == ("*",) else clients.codes

    def apply(self, clients: Clients, report: Report) -> None:
        copy = self.copies.setdefault(clients, {})

        def upsert(one: Call) -> None:
            key = one.client_code, one.id
            copy[key] = one
            since = max(version.since for version in self.world.versions if version.call == one)
            assert since >= self.newest.get((clients, key), 0), "an older version"
            self.newest[clients, key] = since

        for remove in report.removes:
            copy.pop((remove.call.client_code, remove.call.id), None)
        for part in report.replaces:
            listed = {(one.client_code, one.id) for one in part.calls}
            for key, one in list(copy.items()):
                if one.start_time.timestamp() in part.window and key not in listed:
                    del copy[key]
            for one in part.calls:
                upsert(one)
        for change in report.upserts:
            upsert(change.call)

    @rule(which=st.integers(0, 1))
    def quiet(self, which: int) -> None:
        """Nothing changes for as long as the freshness rule allows: the copy becomes exact."""
        clients = self.clients
        self.world.failing = None
        pending = [version.since for version in self.world.versions if version.since > self.world.now]
        self.world.now = max([self.world.now, *pending]) + RULE.maximum + 10
        for _ in range(300):
            answer = self.answer(clients, which, 4)
            if answer is not None and answer.report.up_to_date:
                break
        else:
            raise AssertionError("the copy is never up to date")
        start = answer.report.state.start
        shown = {
            key: one
            for key, one in self.world.shown(self.world.now).items()
            if key[0] in self.listed(clients) and one.start_time.timestamp() >= start
        }
        assert self.copies[clients] == shown


class SharedFeed(Feed):
    """The same with two replicas that share a server, which loses data, evicts, fails and restarts."""

    server: Server

    def two_caches(self, rules: CacheSettings) -> list[Cache]:
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
        level1.UNPACKED = UNPACKED
        if hasattr(self, "loop"):
            for cache in self.caches:
                self.loop.run_until_complete(cache.close())
            for connection in self.connections:
                self.loop.run_until_complete(connection.close())
            self.loop.close()


def sequences(machine: type[Feed], examples: int) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_copy_is_exact_after_any_sequence_of_events():
    sequences(Feed, EXAMPLES)


def test_a_copy_is_exact_after_any_sequence_of_events_on_two_replicas(server: Server):
    SharedFeed.server = server
    sequences(SharedFeed, max(1, EXAMPLES // 3))
