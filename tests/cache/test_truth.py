"""T1, T2, T3, T5 and T9: every endpoint, against an upstream that publishes late, edits, moves, spoils and deletes.

A hypothesis state machine runs sequences of reads, waits, changes, failures and evictions through the gateway's ASGI
application. An oracle remembers every version of every record and the time during which the upstream returned it. At
one instant all endpoints are compared with each other and with the oracle. `make soak` runs many more steps.
"""

from __future__ import annotations

import asyncio
import csv
import io
import json
import math
import os
import tempfile
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from prometheus_client import CollectorRegistry

from benchmarks.world import ALIAS, CODES, OWNER, Version, World
from gateway import app
from gateway.cache import level1
from gateway.cache.freshness import Rule
from gateway.cache.level1 import UNPACKED
from gateway.cache.reader import Cache, CacheSettings
from gateway.errors import UpstreamError, UpstreamFailed, UpstreamMalformed, UpstreamTimeout, UpstreamUnreachable
from gateway.metrics import Metrics
from gateway.model import Window
from gateway.redis_client import RedisClient
from gateway.settings import Settings
from tests.support import asgi
from tests.support.consumers import Member, keys_file
from tests.support.figures import Plain, plain_summary
from tests.support.servers import Cluster, Server, valkey

EXAMPLES = int(os.environ.get("SOAK_EXAMPLES", "60"))
STEPS = int(os.environ.get("SOAK_STEPS", "40"))
FOLD = 1_793_509_200  # an hour before the autumn change of clocks of 2026
RULE = Rule(minimum=15, ratio=0.1, maximum=20_000)
FAILURES = (
    UpstreamFailed("ERROR", reported=True),
    UpstreamFailed("HTTP status 500"),
    UpstreamMalformed("broken"),
    UpstreamTimeout("late", answering=True),
    UpstreamTimeout("late", answering=False),
    UpstreamUnreachable("refused"),
)
FULL = Member("full", scopes=("calls", "personal", "status", "recordings", "refresh"))
MASKED = Member("masked", clients=("*",), scopes=("calls",))
LIMITED = Member("limited", clients=("a", ALIAS), scopes=("calls", "personal"))
PREFIX = Member("prefix", clients=("b*", "c"), scopes=("calls", "personal"))
MEMBERS = (FULL, MASKED, LIMITED, PREFIX)
ASKED = (("a",), ("b",), (ALIAS,), ("a", "b"), ("a", "b", "c", ALIAS), ("*",))
CHOICES = [(FULL, codes) for codes in ASKED] + [
    (MASKED, ("*",)), (LIMITED, ("a", "b")), (LIMITED, ("*",)), (PREFIX, ("*",)), (PREFIX, ("b",)),
]  # fmt: skip
AGO = st.one_of(st.just(50_000), st.integers(0, 60_000))  # seconds
LENGTHS = st.one_of(st.just(70_000), st.integers(1, 60_000))
INTERVALS = ("none", "hour", "day", "week", "month")
GROUPS = ("result", "campaign,hourOfDay", "did", "phoneType,result", "client,dayOfWeek", "hourOfWeek", "target")
MISSED = ("busy", "no_answer", "abandoned")
ZONES = ("UTC", "America/Chicago", "Asia/Kolkata")
PAGE_STATUS = {502, 503, 504}  # while the upstream fails

Row = dict[str, Any]


class Reading(NamedTuple):
    """The calls of an answer in order, its count of unreadable records, and how stale it is in seconds, or None."""

    calls: list[Row]
    unreadable: int
    stale: float | None


def sees(member: Member, code: str) -> bool:
    return any(code == one or (one.endswith("*") and code.startswith(one[:-1])) for one in member.clients)


def codes_of(member: Member, codes: tuple[str, ...]) -> tuple[str, ...]:
    """The codes that an answer may list."""
    if codes != ("*",):
        return codes
    if any(one.endswith("*") for one in member.clients):
        return tuple(code for code in CODES if sees(member, code))
    return member.clients


def second(row: Row) -> int:
    return int(datetime.fromisoformat(row["startTime"]).timestamp())


class Truth(RuleBasedStateMachine):
    """A state machine of reads and of the events between them."""

    folder: Path

    @initialize(
        start=st.sampled_from([FOLD, FOLD + 40_000, 1_773_561_600]),  # autumn, the day after, spring
        bound=st.sampled_from([2**28, 2**28, 20_000]),
        omits=st.booleans(),
        shared_ids=st.booleans(),
        spacing=st.sampled_from([60, 700, 3000]),
        unpacked_part=st.sampled_from([0, UNPACKED]),
    )
    def begin(
        self, start: int, bound: int, omits: bool, shared_ids: bool, spacing: int, unpacked_part: float
    ) -> None:  # fmt: skip
        level1.UNPACKED = unpacked_part  # of the memory; 0: every day is packed as soon as it is stored
        self.loop = asyncio.new_event_loop()
        self.world = World(float(start), omits=omits, shared_ids=shared_ids)
        self.cache_settings = CacheSettings(
            RULE, RULE, max_span=30_000, batch=2, cache_bytes=bound, stale_if_error=1000
        )
        for number in range(15 * len(CODES)):
            self.world.publish(start - 5 - number * spacing, CODES[number % len(CODES)], late=0)
        for index in range(4, 15 * len(CODES), 13):
            if (version := self.world.end(index)) is not None:
                self.world.edit(version, version.start, readable=False, timed=index % 2 == 0)
        self.caches: list[Cache] = []
        self.metrics: list[Metrics] = []
        self.healed = 0.0  # when the upstream was last seen to fail: errors are remembered for a second
        self.apps = [self.make_app(connection) for connection in self.connect()]

    def connect(self) -> list[RedisClient | None]:
        """The connections of the replicas to level 2."""
        return [None]

    def make_app(self, shared: RedisClient | None) -> Any:

        def build_cache(_settings: Settings, _upstream: object, metrics: Metrics, *_: object) -> Cache:
            self.caches.append(Cache(self.world, self.cache_settings, metrics, lambda: self.world.now, shared))
            self.metrics.append(metrics)
            return self.caches[-1]

        values = Settings(
            upstream_url="http://127.0.0.1:1/xml.jsp", auth="keys", keys_file=keys_file(self.folder, *MEMBERS),
            signing_key="k" * 32, log_level="error", history_start=0,
        )  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(app, "build_cache", build_cache)
            for name in ("build_upstream", "build_recordings"):  # they load certificates
                patch.setattr(app, name, lambda *_: SimpleNamespace(close=None))
            return app.create(values, CollectorRegistry(), lambda: self.world.now)

    def teardown(self) -> None:
        level1.UNPACKED = UNPACKED
        if hasattr(self, "loop"):
            for cache in self.caches:
                self.loop.run_until_complete(cache.close())
            self.disconnect()
            self.loop.close()

    def disconnect(self) -> None:
        """Close the connections."""

    @rule(seconds=st.one_of(st.floats(0.1, 40), st.floats(40, 9000)))
    def wait(self, seconds: float) -> None:
        self.world.now += seconds

    @rule(
        ago=st.integers(0, 30_000),
        late=st.sampled_from([0, 0, 0, 20, 600, 6000]),
        code=st.sampled_from(CODES),
        count=st.sampled_from([1, 1, 3, 30]),
    )
    def publish(self, ago: int, late: float, code: str, count: int) -> None:
        for number in range(count):
            self.world.publish(int(self.world.now) - ago - number, code, late)

    @rule(
        which=st.integers(0, 90),
        shift=st.sampled_from([0, 0, -3000, 3600, 30_000, 30_000]),
        kind=st.sampled_from(["edit", "edit", "edit", "delete", "spoil", "spoil the time"]),
    )
    def change(self, which: int, shift: int, kind: str) -> None:
        """Edit, move, delete or spoil a record; one that is spoiled may be mended."""
        if self.world.versions and (version := self.world.end(which)) is not None and kind != "delete":
            start = min(version.start + shift, int(self.world.now))  # never in the future
            self.world.edit(version, start, readable=kind == "edit", timed=kind != "spoil the time")

    @rule(code=st.sampled_from(CODES), back=st.sampled_from([True, True, True, False]))
    def lose(self, code: str, back: bool) -> None:
        """Delete the calls of a client, or restore the calls of the last deletion."""
        if back:
            self.world.restore(code)
        else:
            for index, one in enumerate(self.world.versions):
                if one.code == code:
                    self.world.end(index)

    @rule(failure=st.sampled_from((None, None, *FAILURES)), above=st.sampled_from([0, 0, 4000, 20_000]))
    def fail(self, failure: UpstreamError | None, above: int) -> None:
        self.world.failing = (failure, above) if failure else None

    @rule(
        ago=AGO,
        length=LENGTHS,
        choice=st.sampled_from(CHOICES),
        no_cache=st.sampled_from([False, False, False, True]),
        crowd=st.integers(1, 3),
        first=st.integers(0, 1),
    )
    def read(
        self, ago: int, length: int, choice: tuple[Member, tuple[str, ...]], no_cache: bool, crowd: int, first: int
    ) -> None:
        """Read lists of overlapping windows at the same time."""
        member, codes = choice
        starts = [int(self.world.now) - ago - shift for shift in range(0, crowd * 700, 700)]

        async def together() -> list[Reading | None]:
            return await asyncio.gather(*(
                self.listed(first + number, member, codes, {"start": start, "end": start + length}, no_cache=no_cache)
                for number, start in enumerate(starts)
            ))  # fmt: skip

        for start, reading in zip(starts, self.loop.run_until_complete(together()), strict=True):
            if reading is not None:
                self.check(reading, member, codes, start, start + length)
        self.note_failure()

    @rule(
        ago=AGO,
        length=LENGTHS,
        choice=st.sampled_from(CHOICES),
        replica=st.integers(0, 1),
        limit=st.sampled_from([1, 2, 7]),
        interval=st.sampled_from(INTERVALS),
        group=st.sampled_from([None, *GROUPS]),
        zone=st.sampled_from(ZONES),
        top=st.sampled_from([None, 2]),
    )
    def compare(
        self,
        ago: int,
        length: int,
        choice: tuple[Member, tuple[str, ...]],
        replica: int,
        limit: int,
        interval: str,
        group: str | None,
        zone: str,
        top: int | None = None,
    ) -> None:
        """Ask every endpoint about one window at one instant."""
        member, codes = choice
        start = int(self.world.now) - ago
        window = {"start": start, "end": start + length}
        self.loop.run_until_complete(self.compared(replica, member, codes, window, limit, interval, group, zone, top))
        self.note_failure()

    @rule(
        ago=AGO,
        length=LENGTHS,
        choice=st.sampled_from(CHOICES),
        replica=st.integers(0, 1),
        sort=st.sampled_from(["startTime", "-startTime"]),
    )
    def export(self, ago: int, length: int, choice: tuple[Member, tuple[str, ...]], replica: int, sort: str) -> None:
        """Stream a window that may be fetched meanwhile."""
        member, codes = choice
        start = int(self.world.now) - ago
        window = {"start": start, "end": start + length, "sort": sort}
        self.loop.run_until_complete(self.ndjson(replica, member, codes, window))
        self.note_failure()

    @rule(
        which=st.integers(0, 90),
        choice=st.sampled_from(CHOICES),
        shift=st.sampled_from([-9000, -300, 300, 60_000]),
        limit=st.sampled_from([1, 2, 7]),
        interval=st.sampled_from(INTERVALS),
        exported=st.booleans(),
    )
    def move(
        self, which: int, choice: tuple[Member, tuple[str, ...]], shift: int, limit: int, interval: str, exported: bool
    ) -> None:
        """Move a call of a window that is held, and read its new place alone: the cache holds it twice.

        An export between the two fetches the new place, if it is recent, after it has sent the old one.
        """
        self.compare(50_000, 70_000, choice, 0, limit, interval, None, "UTC")
        now = self.world.now
        shown = [place for place, one in enumerate(self.world.versions) if one.since <= now < one.until]
        if not shown or (version := self.world.end(shown[which % len(shown)])) is None:
            return
        start = min(version.start + shift, int(self.world.now) - 1)
        self.world.edit(version, start, readable=version.call is not None)
        self.world.now += 20
        if exported:
            self.export(50_000, 70_000, choice, 0, "startTime")
        self.read(int(self.world.now) - start + 60, 120, choice, no_cache=True, crowd=1, first=0)
        self.compare(50_000, 70_000, choice, 0, limit, interval, None, "UTC")

    async def compared(
        self, replica: int, member: Member, codes: tuple[str, ...], window: Row, limit: int, interval: str,
        group: str | None, zone: str, top: int | None,
    ) -> None:  # fmt: skip
        path, query = self.path(codes, "/calls/summary", window)
        if (await self.get(replica, member, path, query)) is None:  # reads the whole window
            return
        fetched = self.fetched()
        whole = await self.listed(replica, member, codes, window)
        if whole is None:
            return
        self.check(whole, member, codes, window["start"], window["end"])
        answers: list[tuple[str, Reading | None]] = [
            ("pages, newest first", await self.pages(replica, member, codes, window, limit, "-startTime")),
            ("pages, oldest first", await self.pages(replica, member, codes, window, limit, "startTime")),
            ("ndjson", await self.ndjson(replica, member, codes, window)),
        ]
        summary_query = query | {"interval": interval, "tz": zone, "answeredWithin": 3, "lookback": "1d"}
        summary_query |= ({"groupBy": group} | ({"top": top} if top else {})) if group else {}
        before = {"start": window["start"] - 86400, "end": window["start"]}
        earlier = await self.listed(replica, member, codes, before)
        if earlier is None:
            return
        summary = await self.get(replica, member, path, summary_query)
        rows = await self.csv(replica, member, codes, window)
        singles = [await self.single(replica, member, row, window) for row in whole.calls[:3]]
        clients, per_client = await self.per_client(replica, member, window) if codes == ("*",) else (None, {})
        if self.fetched() != fetched or whole.stale is not None or self.world.failing is not None:
            return  # something was fetched in between: the answers are of different instants
        assert summary is not None
        for name, reading in answers:
            assert reading is not None, name
            expected = whole.calls[::-1] if name.endswith("oldest first") else whole.calls
            assert reading.calls == expected, f"T9: {name}"
            assert reading.unreadable == whole.unreadable, f"T9: unreadable of {name}"
        assert rows == [(row["clientCode"], row["id"], row["startTime"], row["campaign"]) for row in whole.calls], "csv"
        assert singles == whole.calls[:3], "T9: single calls"
        self.check_summary(whole, earlier, summary, summary_query, personal="personal" in member.scopes)
        if clients is not None:
            assert clients == Counter(row["clientCode"] for row in whole.calls), "T9: /clients"
            for code, reading in per_client.items():
                if reading is not None:
                    assert reading.calls == [r for r in whole.calls if r["clientCode"] == code], f"T9: {code} and *"
            if None not in (readings := list(per_client.values())):
                assert sum(one.unreadable for one in readings if one) == whole.unreadable, "T9: unreadable of *"
        if "personal" in member.scopes:
            await self.compare_missed(replica, member, codes, window, limit)

    async def compare_missed(
        self, replica: int, member: Member, codes: tuple[str, ...], window: Row, limit: int
    ) -> None:
        """Compare the missed callers, reached or not, of all pages with the list of calls up to now."""
        until_now = window | {"end": max(window["end"], math.ceil(self.world.now))}
        whole = await self.listed(replica, member, codes, until_now)
        fetched = self.fetched()
        path, query = self.path(codes, "/calls/missed", window)
        missed = await self.paged(replica, member, path, query | {"limit": limit, "reached": "true"})
        if self.fetched() == fetched and whole is not None and whole.stale is None and self.world.failing is None:
            assert missed is not None
            assert missed.calls == missed_of(whole.calls, window), "T9: missed callers"

    def check_summary(self, whole: Reading, earlier: Reading, summary: Row, query: Row, *, personal: bool) -> None:
        """Count the calls of a list in the buckets and groups of a summary."""
        assert summary["meta"]["unreadable"] == whole.unreadable, "T9: unreadable of the summary"
        group_by = tuple(query["groupBy"].split(",")) if "groupBy" in query else ()
        until = datetime.fromisoformat(summary["meta"]["asOf"]).timestamp()
        plain = Plain(
            whole.calls, Window(query["start"], query["end"]), until, zone=ZoneInfo(query["tz"]),
            interval=query["interval"], group_by=group_by, earlier=earlier.calls,
        )  # fmt: skip
        rows, total = plain_summary(plain, top=query.get("top"), within=query["answeredWithin"])
        if not personal:  # it cannot count callers itself
            for row in (*rows, total, *summary["data"], summary["total"]):
                del row["newCallers"], row["uniqueCallers"]
        assert summary["data"] == rows, "T9: summary"
        assert summary["total"] == total, "T9: total"

    async def get(
        self, replica: int, member: Member, path: str, query: Row, *, no_cache: bool = False
    ) -> Row | None:  # fmt: skip
        """The JSON of an answer, None if the upstream fails or, for a single call, does not have it."""
        answer = await self.answer(replica, member, path, query, no_cache=no_cache)
        if answer is None or answer.status == 404:
            return None
        found: Row = answer.json
        life = answer.headers["cache-status"].rpartition("ttl=")[2].partition(";")[0]  # a detail may follow
        found["seconds_stale"] = -int(life) if found["meta"]["stale"] else None
        return found

    async def answer(
        self, replica: int, member: Member, path: str, query: Row, *, no_cache: bool = False
    ) -> asgi.Answer | None:  # fmt: skip
        now = self.world.now
        headers = member.headers | ({"Cache-Control": "no-cache"} if no_cache else {})
        sent = {
            name: datetime.fromtimestamp(value, UTC).isoformat() if name in {"start", "end"} else value
            for name, value in query.items()
        }
        try:
            answer = await asgi.get(self.apps[replica % len(self.apps)], path, sent, headers)
        except (UpstreamError, asgi.BrokenOff):  # an export that has begun breaks off
            answer = None
        if answer is None or answer.status in PAGE_STATUS:
            doubted = query.get("format") == "csv" and await self.is_stale(replica, member, path, query)
            assert self.world.failing is not None or now < self.healed + 2 or doubted, "no answer"
            return None
        if answer.status == 403:
            assert codes_denied(member, path, sent)
            return None
        assert answer.status in {200, 404}, answer
        return answer

    async def is_stale(self, replica: int, member: Member, path: str, query: Row) -> bool:
        """Whether NDJSON, unlike CSV, marks the same answer as stale."""
        answer = await self.answer(replica, member, path, query | {"format": "ndjson"})
        return answer is None or json.loads(answer.body.splitlines()[-1])["meta"]["stale"]

    @staticmethod
    def path(codes: tuple[str, ...], rest: str, window: Row) -> tuple[str, Row]:
        if len(codes) == 1 and codes != ("*",):
            return f"/clients/{codes[0]}{rest}", window
        return rest, window | {"client": list(codes)}

    async def listed(
        self, replica: int, member: Member, codes: tuple[str, ...], window: Row, *, no_cache: bool = False
    ) -> Reading | None:
        path, query = self.path(codes, "/calls", window)
        return await self.paged(replica, member, path, query | {"limit": 1000}, no_cache=no_cache)

    async def pages(
        self, replica: int, member: Member, codes: tuple[str, ...], window: Row, limit: int, sort: str
    ) -> Reading | None:
        path, query = self.path(codes, "/calls", window)
        return await self.paged(replica, member, path, query | {"limit": limit, "sort": sort})

    async def paged(
        self, replica: int, member: Member, path: str, query: Row, *, no_cache: bool = False
    ) -> Reading | None:
        """All pages of a list."""
        calls: list[Row] = []
        unreadable, stale = 0, None
        while True:
            found = await self.get(replica, member, path, query, no_cache=no_cache)
            if found is None:
                return None
            calls += found["data"]
            unreadable += found["meta"]["unreadable"]
            if found["seconds_stale"] is not None:
                stale = max(stale or 0, found["seconds_stale"])
            cursor = found["page"]["nextCursor"]
            if cursor is None:
                return Reading(calls, unreadable, stale)
            query = query | {"cursor": cursor}

    async def ndjson(self, replica: int, member: Member, codes: tuple[str, ...], window: Row) -> Reading | None:
        path, query = self.path(codes, "/calls", window)
        answer = await self.answer(replica, member, path, query | {"format": "ndjson"})
        if answer is None:
            return None
        *rows, last = map(json.loads, answer.body.splitlines())
        assert len({(row["clientCode"], row["id"]) for row in rows}) == len(rows), "T2: stream"
        return Reading(rows, last["meta"]["unreadable"], None)

    async def csv(
        self, replica: int, member: Member, codes: tuple[str, ...], window: Row
    ) -> list[tuple[str, ...]] | None:
        path, query = self.path(codes, "/calls", window)
        query = query | {"format": "csv", "fields": "clientCode,id,startTime,campaign"}
        answer = await self.answer(replica, member, path, query)
        return None if answer is None else [tuple(row) for row in csv.reader(io.StringIO(answer.body.decode()))][1:]

    async def single(self, replica: int, member: Member, row: Row, window: Row) -> Row | None:
        found = await self.get(replica, member, f"/clients/{row['clientCode']}/calls/{row['id']}", window)
        return None if found is None else found["data"]

    async def per_client(
        self, replica: int, member: Member, window: Row
    ) -> tuple[Counter[str] | None, dict[str, Reading | None]]:
        """The counts of `/clients`, and the list of each client."""
        found = await self.get(replica, member, "/clients", window)
        lists = {code: await self.listed(replica, member, (code,), window) for code in codes_of(member, ("*",))}
        counts = None if found is None else Counter({row["clientCode"]: row["calls"] for row in found["data"]})
        return counts, lists

    def fetched(self) -> tuple[float, ...]:
        """A number for each replica that changes when it fetches anything."""
        found = (metrics.shared_lookups.labels("found") for metrics in self.metrics)
        return self.world.posts, *(next(iter(one.collect())).samples[0].value for one in found)

    def note_failure(self) -> None:
        if self.world.failing is not None:
            self.healed = self.world.now

    def check(self, reading: Reading, member: Member, codes: tuple[str, ...], start: int, end: int) -> None:
        """Compare an answer with the upstream's calls at some instant that the staleness rule allows."""
        now = self.world.now
        end = min(end, math.ceil(now))
        keys = [(row["clientCode"], row["id"]) for row in reading.calls]
        assert len(keys) == len(set(keys)), "T2"
        answered = dict(zip(keys, reading.calls, strict=True))
        listed = codes_of(member, codes)
        for row in reading.calls:
            assert start <= second(row) < end, "misplaced"
            assert row["clientCode"] in listed, "another client's call"
            assert row["dtmf"] == ("1" if "personal" in member.scopes else None), "masking"
        versions = [
            version._replace(code=code)
            for code in listed
            for version in self.world.versions
            if version.code == (OWNER if code == ALIAS else code)
        ]
        known = {identity(version) for version in versions if version.since <= now and version.call is not None}
        assert not [row for row in reading.calls if identity_of(row) not in known], "made up"
        least, most = set[tuple[str, str]](), set[tuple[str, str]]()  # unreadable records
        for version in versions:
            if version.timed and not start <= version.start < end:
                continue
            oldest = self.oldest(version.start if version.timed else start, now, reading.stale)
            key = version.key
            shown_all_along = (
                version.since <= oldest and version.until > now and not self.moved(version, versions, oldest)
            )
            never_shown = version.until <= oldest or version.since > now
            if version.call is None:
                most |= set() if never_shown else {key}
                least |= {key} if shown_all_along and version.timed else set()
                continue
            shown = key in answered and identity_of(answered[key]) == identity(version)
            if shown_all_along:
                assert shown, "T1"
            if never_shown and shown:
                same = [one for one in versions if one is not version and identity(one) == identity(version)]
                assert same, "T5: an answer older than the rule allows"
        assert len(least) <= reading.unreadable <= len(most), "T3: unreadable records"

    @staticmethod
    def oldest(point: int, now: float, seconds_stale: float | None) -> float:
        """The oldest fetch that an answer may rest on for a point: f with now - f < life(f - p)."""
        oldest = now - RULE.minimum
        if now > point:
            oldest = min(oldest, max((now + RULE.ratio * point) / (1 + RULE.ratio), now - RULE.maximum))
        return oldest - (seconds_stale or 0) * 1.2 - 1

    @staticmethod
    def moved(version: Version, versions: Iterable[Version], since: float) -> bool:
        """Whether a record's start changed recently: the boundary of two extents may then hold either version."""
        same = [one for one in versions if one.key == version.key and one.until > since]
        return len({one.start for one in same}) > 1


def identity(version: Version) -> tuple[object, ...]:
    """What tells the versions of all calls apart."""
    return (*version.key, version.start, version.call and version.call.campaign)


def identity_of(row: Row) -> tuple[object, ...]:
    return row["clientCode"], row["id"], second(row), row["campaign"]


def codes_denied(member: Member, path: str, query: Row) -> bool:
    asked = query.get("client", [path.split("/")[2]] if path.startswith("/clients/") else ["*"])
    return not all(code == "*" or sees(member, code) for code in asked)


def missed_of(calls: list[Row], window: Row) -> list[Row]:
    """Count the missed callers of a window in a list of calls up to now, newest first."""
    rows: list[Row] = []
    for code, ani in dict.fromkeys((row["clientCode"], row["ani"]) for row in calls if row["ani"]):
        own = [row for row in calls if (row["clientCode"], row["ani"]) == (code, ani)]
        missed = [row for row in own if row["result"] in MISSED and window["start"] <= second(row) < window["end"]]
        if not missed:
            continue
        connected = [r["startTime"] for r in own if r["result"] == "connected" and second(r) >= second(missed[0])]
        rows.append({
            "ani": ani, "clientCode": code, "missedCalls": len(missed), "firstMissedAt": missed[-1]["startTime"],
            "reached": "connected" if connected else None, "reachedAt": connected[-1] if connected else None,
            "lastCall": missed[0],
        })  # fmt: skip
    rows.sort(key=lambda row: calls.index(row["lastCall"]))
    return sorted(rows, key=lambda row: row["reached"] is not None)


class SharedTruth(Truth):
    """The same with two replicas that share a server, which loses data, evicts, fails and restarts."""

    server: Server | Cluster

    def connect(self) -> list[RedisClient | None]:
        self.server.restart()
        self.server.client.flushall()

        def clock() -> float:
            return self.world.now

        self.connections = [
            RedisClient(self.server.url, Metrics(CollectorRegistry()), clock, math.inf, clock) for _ in range(2)
        ]
        return list(self.connections)

    @rule(what=st.sampled_from(["flush", "evict", "evict", "evict", "kill", "start", "start"]), which=st.integers(0, 9))
    def disturb(self, what: str, which: int) -> None:
        assert isinstance(self.server, Server)
        alive = self.server.process.poll() is None
        if what == "start" and not alive:
            self.server.start()
        elif what == "kill" and alive:
            self.server.kill()
        elif what == "flush" and alive:
            self.server.client.flushall()
        elif what == "evict" and alive and (keys := self.server.client.keys("*")):
            self.server.client.delete(sorted(keys)[which % len(keys)])

    def disconnect(self) -> None:
        for connection in self.connections:
            self.loop.run_until_complete(connection.close())


class ClusterTruth(SharedTruth):
    """The same with a cluster, whose nodes fail and restart one by one, and whose slots move."""

    @rule(what=st.sampled_from(["flush", "kill", "start", "move", "move"]), which=st.integers(0, 2))
    def disturb(self, what: str, which: int) -> None:
        assert isinstance(self.server, Cluster)
        chosen = self.server.servers[which]
        alive = all(server.process.poll() is None for server in self.server.servers)
        if what == "start" and not alive:
            self.server.restart()
        elif what == "kill" and alive:
            chosen.kill()
        elif what == "flush" and alive:
            chosen.client.flushall()
        elif what == "move" and alive and self.server.owner("a") is not chosen:
            self.server.move("a", chosen)


def sequences(machine: type[Truth], examples: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        machine.folder = Path(folder)
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=STEPS,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )


def test_a_call_that_was_edited_and_lost_at_one_instant_comes_back_once():
    world = World(1000.0, omits=False, shared_ids=False)
    world.publish(900, "a", late=0)
    version = world.end(0)
    assert version is not None
    world.edit(version, version.start)
    world.end(1)
    world.now += 1
    world.restore("a")
    assert [identity(one) for one in world.shown(world.now)] == [identity(world.versions[1])]


def test_any_sequence_of_events_gives_true_answers():
    sequences(Truth, EXAMPLES)


def test_any_sequence_of_events_gives_true_answers_on_two_replicas(server: Server):
    SharedTruth.server = server
    sequences(SharedTruth, max(1, EXAMPLES // 3))


def test_any_sequence_of_events_gives_true_answers_on_two_replicas_that_share_a_cluster():
    with closing(Cluster(valkey())) as ClusterTruth.server:
        sequences(ClusterTruth, max(1, EXAMPLES // 6))
