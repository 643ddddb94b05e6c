"""The change feed: what polls, waiting consumers, streams and first copies cost, and what other ways to copy lose.

The gateway runs in a process of its own, on one core; consumers and the simulator on another. A change is told when its
last byte arrives. `--write` updates the tables in docs/changes.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from prometheus_client import CollectorRegistry

from benchmarks.support import free_port, reachable, running, serving, wait_for
from gateway.cache.feed import Telling
from gateway.cache.feed_reader import Clients
from gateway.cache.feed_state import FeedState, midnight, pack, unpack
from gateway.cache.fingerprints import View
from gateway.cache.freshness import Rule
from gateway.cache.reader import Cache, CacheSettings
from gateway.cache.watch import Feeds
from gateway.callbutton.client import Fetched
from gateway.callbutton.wait_queue import Waiters
from gateway.memory import Memory
from gateway.metrics import Metrics
from gateway.model import Call, CallResult, PhoneType, StartTimeCertainty, Window
from gateway.simulator.server import PATH, Options, create

NOW = 1_790_000_000
HOUR, DAY = 3600, 86400  # seconds
MONTH = 30 * DAY
QUIET = 7 * DAY  # after the month, so that every way has seen what it ever sees
CALLS_A_DAY = 200
CALL_BYTES = 1000  # of a call in a reply
MARKERS = "<!-- losses -->", "<!-- /losses -->"
PAGE = Path(__file__).parent.parent / "docs" / "changes.md"
CODE = "8005550100"
FEED = f"/clients/{CODE}/changes"
REFRESHES = 3  # that brought something, of which the slowest counts


class Gateway(NamedTuple):
    """A gateway in its own process, in front of a simulator. `landed` has the instant of the end of each reply."""

    port: int
    process: subprocess.Popen[bytes]
    landed: list[float]

    @property
    def client(self) -> httpx.Client:
        """A client with the gateway's address."""
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=600)

    def seconds(self) -> float:
        """The processor time of the gateway so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text("ascii").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident(self) -> int:
        """The resident memory of the gateway in bytes."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def gateway(options: Options, **settings: str) -> Iterator[Gateway]:
    """Run a gateway in front of a simulator."""
    landed: list[float] = []
    simulator = create(options)

    async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
        await simulator(scope, receive, send)
        landed.append(time.monotonic())

    port = free_port()
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        upstream = f"http://127.0.0.1:{stack.enter_context(serving(application))}{PATH}"
        variables = {
            "GATEWAY_UPSTREAM_URL": upstream,
            "GATEWAY_AUTH": "none",
            "GATEWAY_PORT": str(port),
            "GATEWAY_SIGNING_KEY": "k" * 32,
            "GATEWAY_REQUEST_CONCURRENCY": "10000",
            "GATEWAY_CONSUMER_SHARE": "1",
            "GATEWAY_LOG_LEVEL": "warning",
        }
        core = str(min(os.sched_getaffinity(0)))
        command = ["taskset", "-c", core, sys.executable, "-m", "gateway", "serve"]
        process = stack.enter_context(running(command, Path(folder) / "log", **(variables | settings)))
        wait_for(lambda: reachable(port), "the gateway listens")
        yield Gateway(port, process, landed)


def copied(one: Gateway, path: str, **parameters: str | int) -> tuple[str, int]:
    """Copy until up to date. Returns the token and the number of calls."""
    with one.client as client:
        page = client.get(path, params=parameters).json()["page"]
        while not page["upToDate"]:
            page = client.get(path, params={"since": page["next"]}).json()["page"]
    return page["next"], page["calls"]


def poll() -> str:
    """Poll 1,000 times, and return the processor time of a poll and its bytes."""
    with gateway(Options(calls_per_day=200)) as one, one.client as client:
        token, _ = copied(one, FEED)
        times, size = [], 0
        for _ in range(10):
            began = one.seconds()
            for _ in range(100):
                size = len(client.get(FEED, params={"since": token}).content)
            times.append((one.seconds() - began) / 100)
        client.get(FEED, params={"since": token})
    return f"{statistics.median(times) * 1e3:.1f} ms, {size:,} bytes"


async def connected(one: Gateway, target: str, *headers: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send a request, and return its connection after the head of the response."""
    reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
    writer.write("\r\n".join([f"GET {target} HTTP/1.1", "Host: x", *headers, "", ""]).encode())
    return reader, writer


async def waits(number: int) -> str:
    """Let consumers wait for changes, and time the last answer after the reply that brought the change."""
    with gateway(Options(calls_per_day=20_000, history=2)) as one:
        token, _ = await asyncio.to_thread(copied, one, FEED, start=time.strftime("%Y-%m-%d", time.gmtime()))
        times: list[float] = []
        posts: list[int] = []
        while len(times) < REFRESHES:
            before = len(one.landed)
            told: list[tuple[float, str]] = []

            async def consumer(since: str, told: list[tuple[float, str]] = told) -> None:
                reader, writer = await connected(one, f"{FEED}?since={since}&wait=60", "Connection: close")
                body = (await reader.read()).partition(b"\r\n\r\n")[2]
                assert b'"page"' in body, body
                told.append((time.monotonic(), json.loads(body)["page"]["next"]))
                writer.close()

            await asyncio.gather(*[consumer(token) for _ in range(number)])
            last, token = max(told)
            landed = [instant for instant in one.landed if instant < min(told)[0]]
            posts.append(len(one.landed) - before)
            times.append(last - landed[-1])
    return (
        f"{max(posts)} POSTs for each refresh at most, the last is told after {statistics.median(times) * 1e3:.0f} ms"
    )


async def streams(number: int) -> str:
    """Open streams, and time the last event after the reply that brought it."""
    with gateway(Options(calls_per_day=20_000, history=2)) as one:
        start = time.strftime("%Y-%m-%d", time.gmtime())
        token, _ = await asyncio.to_thread(copied, one, FEED, start=start)
        idle = one.resident()
        told: list[list[float]] = [[] for _ in range(number)]

        async def consumer(place: int) -> None:
            reader, writer = await connected(one, f"{FEED}?since={token}", "Accept: text/event-stream")
            async for line in reader:
                if line.startswith(b"event: up-to-date"):
                    told[place].append(time.monotonic())
            writer.close()

        tasks = []
        for place in range(number):
            tasks.append(asyncio.create_task(consumer(place)))
            if place % 50 == 49:
                while not all(told[: place - 100]):  # noqa: ASYNC110 - the load generator polls
                    await asyncio.sleep(0.01)
        while not all(told):  # noqa: ASYNC110 - the load generator polls
            await asyncio.sleep(0.1)
        times: list[float] = []
        while len(times) < REFRESHES:
            began, had = time.monotonic(), [len(one) for one in told]
            while not all(len(one) > before for one, before in zip(told, had, strict=True)):  # noqa: ASYNC110 - the load generator polls
                await asyncio.sleep(0.1)
            last = max(one[before] for one, before in zip(told, had, strict=True))
            first = min(one[before] for one, before in zip(told, had, strict=True))
            times.append(last - max(instant for instant in one.landed if instant < first))
            print("  told after", times[-1], time.monotonic() - began, file=sys.stderr)
        held = one.resident()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return f"{held / 2**20:.0f} MiB ({idle / 2**20:.0f} MiB before), the last is told after {max(times) * 1e3:.0f} ms"


def call(identity: str, start: int, campaign: str | None = None) -> Call:
    """A call of the client `a`."""
    return Call(
        id=identity,
        client_code="a",
        start_time=datetime.fromtimestamp(start, UTC),
        start_time_certainty=StartTimeCertainty.EXACT,
        campaign=campaign,
        did=None,
        ani=None,
        other_data=None,
        phone_type=PhoneType.NORMAL,
        target=None,
        result=CallResult.CONNECTED,
        duration_seconds=1,
        talk_time_seconds=None,
        index_number=None,
        dtmf=None,
        recording_url=None,
        address=None,
        status=None,
        extra={},
    )


class World:
    """An upstream with a month of calls, of which some are published late, edited or deleted afterwards."""

    def __init__(self, seed: int = 7) -> None:
        self.now: float = NOW
        self.posts = 0
        draw = random.Random(seed)
        starts = sorted(draw.randrange(NOW, NOW + MONTH) for _ in range(30 * CALLS_A_DAY))
        self.events: list[tuple[float, int, Call | None]] = []  # when, which call, and its version from then on
        for place, start in enumerate(starts):
            late = draw.expovariate(1 / (6 * HOUR)) if draw.random() < 0.02 else draw.randrange(10, 900)
            self.events.append((start + late, place, call(str(place), start)))
            if draw.random() < 0.1:
                later = start + late + draw.expovariate(1 / (2 * DAY))
                self.events.append((later, place, call(str(place), start, campaign="edited")))
            if draw.random() < 0.005:
                self.events.append((start + late + draw.expovariate(1 / (5 * DAY)), place, None))
        self.events = sorted([event for event in self.events if event[0] <= NOW + MONTH], key=lambda event: event[:2])
        self.current: dict[int, Call] = {}
        self.sent = 0

    def advance(self, now: float) -> None:
        """Let everything happen up to an instant."""
        self.now = now
        while self.events and self.events[0][0] <= now:
            _, place, version = self.events.pop(0)
            if version is None:
                self.current.pop(place, None)
            else:
                self.current[place] = version

    async def __call__(
        self,
        codes: Sequence[str],  # noqa: ARG002
        window: Window,
        *,
        status: bool,  # noqa: ARG002
        now: float,
        waiters: Waiters,  # noqa: ARG002
    ) -> Fetched:
        """Reply with one second more on each side, and count."""
        self.posts += 1
        end = self.now if window.end >= now else window.end + 1
        current = [one for _, one in sorted(self.current.items())]
        calls = [one for one in current if window.start - 1 <= one.start_time.timestamp() <= end]
        self.sent += CALL_BYTES * len(calls)
        await asyncio.sleep(0)
        return Fetched(self.now, {"a": calls}, {}, status_ignored=False)


Copy = dict[str, Call]


async def losses(copying: Callable[[World], Awaitable[Copy]]) -> list[str]:
    """Copy a month in one way, and compare the copy with the truth a week after its end."""
    world = World()
    copy = await copying(world)
    truth = {one.id: one for one in world.current.values()}
    lost = len(truth.keys() - copy.keys())
    edits = sum(copy[identity] != one for identity, one in truth.items() if identity in copy)
    kept = len(copy.keys() - truth.keys())
    return [f"{lost:,}", f"{edits:,}", f"{kept:,}", f"{world.posts:,}", f"{world.sent / 2**20:.1f} MiB"]


async def ask(world: World, window: Window) -> list[Call]:
    """One POST."""
    fetched = await world(["a"], window, status=False, now=world.now, waiters=Waiters())
    return [one for one in fetched.calls["a"] if window.start <= one.start_time.timestamp() < window.end]


async def by_cursor(world: World) -> Copy:
    """Each hour, fetch what starts since a minute before the last fetch."""
    copy: Copy = {}
    for hour in range(1, (MONTH + QUIET) // HOUR + 1):
        world.advance(NOW + hour * HOUR)
        window = Window(NOW + (hour - 1) * HOUR - 60, NOW + hour * HOUR)
        copy |= {one.id: one for one in await ask(world, window)}
    return copy


async def by_nightly_read(world: World) -> Copy:
    """Each night, replace the last 15 days."""
    copy: Copy = {}
    for day in range(1, (MONTH + QUIET) // DAY + 1):
        world.advance(NOW + day * DAY)
        since = NOW + (day - 15) * DAY
        copy = {key: one for key, one in copy.items() if one.start_time.timestamp() < since}
        copy |= {one.id: one for one in await ask(world, Window(since, NOW + day * DAY))}
    return copy


async def by_feed(world: World) -> Copy:
    """Each hour, apply what the feed tells."""
    metrics = Metrics(CollectorRegistry())
    rules = CacheSettings(plain=Rule(), with_status=Rule(ratio=0.01), max_span=31 * DAY, batch=50, cache_bytes=2**28)
    feeds = Feeds(Cache(world, rules, metrics, lambda: world.now), Memory(), lambda: world.now, 600, metrics)
    view = View("all", list, lambda one: one)
    copy: Copy = {}
    state: FeedState | int = midnight(NOW)
    for hour in range(1, (MONTH + QUIET) // HOUR + 1):
        world.advance(NOW + hour * HOUR)
        told = None
        while told is None or not told.up_to_date:
            told = (await feeds.answer(Clients(("a",), status=False), state, view, 1000)).telling
            state = unpack(pack(told.state))
            apply(copy, told)
    return copy


def apply(copy: Copy, told: Telling) -> None:
    """Apply what a feed tells."""
    for remove in told.removes:
        copy.pop(remove.call.id, None)
    for part in told.replaces:
        for key in [
            key for key, one in copy.items() if part.window.start <= one.start_time.timestamp() < part.window.end
        ]:
            del copy[key]
        copy |= {one.id: one for one in part.calls}
    copy |= {upsert.call.id: upsert.call for upsert in told.upserts}


WAYS = {
    "a cursor on the start time, hourly, with a minute's overlap": by_cursor,
    "a nightly read of the last 15 days": by_nightly_read,
    "the change feed, hourly": by_feed,
}


def table(rows: Mapping[str, Sequence[str]]) -> str:
    """The table of losses."""
    head = ["way", "calls lost", "edits missed", "deletions kept", "POSTs", "bytes of calls"]
    lines = [head, ["---"] * len(head), *([name, *cells] for name, cells in rows.items())]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def rewritten(text: str, rows: Mapping[str, Sequence[str]]) -> str:
    """The page with a new table of losses."""
    before, rest = text.split(MARKERS[0], 1)
    return f"{before}{MARKERS[0]}\n{table(rows)}\n{MARKERS[1]}{rest.split(MARKERS[1], 1)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the change feed.")
    parser.add_argument("cases", nargs="*", choices=[[], "poll", "waits", "streams", "losses"], help="default: all")
    parser.add_argument("--number", type=int, default=1000, help="of consumers that wait, and of streams")
    parser.add_argument("--write", action="store_true", help="write the table of losses to docs/changes.md")
    options = parser.parse_args()
    cases = options.cases or ["poll", "waits", "streams", "losses"]
    if "poll" in cases:
        print("a poll that brings nothing (1 ms, 2,560 bytes):", poll(), flush=True)
    if "waits" in cases:
        waited = asyncio.run(waits(options.number))
        print(f"{options.number:,} consumers that wait (1 POST, 250 ms):", waited, flush=True)
    if "streams" in cases:
        streamed = asyncio.run(streams(options.number))
        print(f"{options.number:,} streams (300 MiB and 500 ms for 5,000):", streamed, flush=True)
    if "losses" in cases:
        rows = {name: asyncio.run(losses(way)) for name, way in WAYS.items()}
        print(table(rows))
        if options.write:
            PAGE.write_text(rewritten(PAGE.read_text("utf-8"), rows), "utf-8")


if __name__ == "__main__":
    main()
