"""Upstream load, latency and memory of the cache, measured against the simulator.

The simulator runs in process on a clock that the benchmark advances. POSTs are counted at the simulator. The reference
is a cache keyed by URL, which would fetch the whole window each time. `--write` updates the table in
docs/performance.md.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry

from benchmarks.support import (
    cluster_options,
    free_port,
    make_cluster,
    parse_reply,
    reachable,
    running,
    valkey,
    wait_for,
)
from gateway.cache.freshness import Rule
from gateway.cache.reader import Cache, CacheSettings, Query
from gateway.cache.scans import read_page
from gateway.callbutton import central_time
from gateway.callbutton.client import Fetched, render_request
from gateway.callbutton.wait_queue import Waiters
from gateway.metrics import Metrics
from gateway.model import Window
from gateway.redis_client import RedisClient
from gateway.simulator.server import PATH, Options, Simulator, create

NOW = 1_795_000_000
DAY = 86400
HOUR = 3600
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
MARKERS = "<!-- cache -->", "<!-- /cache -->"


class Case(NamedTuple):
    """A row of the table: its title, the target (an upper bound) and the measurement."""

    name: str
    bar: str
    measure: Callable[[], Coroutine[Any, Any, str]]


class Upstream:
    """The simulator behind the gateway's own requests and replies. Counts POSTs and the seconds of calls requested."""

    def __init__(self, options: Options, latency: float = 0) -> None:
        self.now = float(NOW)
        self.simulator: Simulator = create(options, lambda: self.now)
        self.latency = latency
        self.posts = 0
        self.asked = 0
        self.landed = 0.0

    async def __call__(
        self,
        codes: Sequence[str],
        window: Window,
        *,
        status: bool,
        now: float,
        waiters: Waiters,  # noqa: ARG002
    ) -> Fetched:
        """Send one POST to the simulator."""
        self.posts += 1
        self.asked += (min(window.end, int(now)) - window.start) * len(codes)
        body = render_request(codes, central_time.wall_range(window, now), status=status)
        sent, pieces = self.now, bytearray()

        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, object]) -> None:
            piece = message.get("body", b"")
            assert isinstance(piece, bytes)
            pieces.extend(piece)

        if self.latency:
            await asyncio.sleep(self.latency)
        scope = {"type": "http", "path": PATH, "method": "POST", "client": ("127.0.0.1", 1)}
        await self.simulator(scope, receive, send)
        reply = parse_reply(bytes(pieces), status=status)
        self.landed = time.perf_counter()
        return Fetched(sent, reply.calls, reply.unreadable, status_ignored=reply.status_ignored)


def make(upstream: Upstream, cache_bytes: int = 2**28, shared: RedisClient | None = None) -> Cache:
    settings = CacheSettings(Rule(), Rule(ratio=0.01), max_span=31 * DAY, batch=50, cache_bytes=cache_bytes)
    return Cache(upstream, settings, Metrics(CollectorRegistry()), lambda: upstream.now, shared)


async def dashboard(*, status: bool, hours: int = 24) -> str:
    upstream = Upstream(Options(calls_per_day=24))
    cache, draw, reads = make(upstream), random.Random(1), 0
    while upstream.now < NOW + hours * HOUR:
        window = Window(int(upstream.now) - 30 * DAY, int(upstream.now) + 1)
        await cache.read(Query(codes=("8005550100",), window=window, status=status))
        reads += 1
        upstream.now += 30 * (0.85 + 0.3 * draw.random())
    share = upstream.asked / (reads * 30 * DAY)
    return f"{upstream.posts / reads:.2f} POSTs per read; {share:.2%} of the data that a cache keyed by URL fetches"


@contextmanager
def level2(nodes: int = 1) -> Iterator[str]:
    """Run a Valkey server, or a cluster of several, and yield its URL."""
    ports = [free_port() for _ in range(nodes)]
    with ExitStack() as stack:
        for port in ports:
            folder = stack.enter_context(TemporaryDirectory())
            command = [valkey(), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", folder]
            command += cluster_options() if nodes > 1 else []
            stack.enter_context(running(command, Path(os.devnull)))
        wait_for(lambda: all(map(reachable, ports)), "the servers answer")
        if nodes > 1:
            make_cluster(ports)
        yield f"redis{'+cluster' if nodes > 1 else ''}://127.0.0.1:{ports[0]}"


async def found(codes: Sequence[str], rounds: int = 100) -> str:
    """Time reads from level 2 with an empty level 1: of a cluster of three and of one server, in turns."""
    upstream, metrics = Upstream(Options(clients=50, calls_per_day=24)), Metrics(CollectorRegistry())
    question = Query(codes=tuple(codes), window=Window(NOW - DAY, NOW))
    with level2(3) as cluster, level2() as server:
        connections = [  # patient: the machine may be busy
            RedisClient(url, metrics, lambda: upstream.now, math.inf, timeout=10) for url in (cluster, server)
        ]
        times: list[list[float]] = [[] for _ in connections]
        for turn in range(1 + rounds):
            for one, shared in list(zip(times, connections, strict=True))[:: 1 if turn % 2 else -1]:
                cache, posts, began = make(upstream, shared=shared), upstream.posts, time.perf_counter()
                await cache.read(question)
                if upstream.posts == posts:
                    one.append(time.perf_counter() - began)
                elif turn:
                    raise RuntimeError("level 2 has lost an extent")
                await cache.close()
        for shared in connections:
            await shared.close()
    ours, other = (statistics.median(one) * 1e3 for one in times)
    return f"{ours:.1f} ms, {ours / other:.2f} times those of one server"


async def herd(questions: Sequence[Query], replicas: int = 1, nodes: int = 1) -> str:
    """Send the same concurrent reads to each replica. Count POSTs and time the answers after the last reply."""
    upstream = Upstream(Options(clients=50, calls_per_day=24), latency=0.2)
    waits: list[float] = []

    async def one(cache: Cache, question: Query) -> None:
        await cache.read(question)
        waits.append(time.perf_counter() - upstream.landed)

    with ExitStack() as stack:
        url = stack.enter_context(level2(nodes)) if replicas > 1 else ""

        def connect() -> RedisClient | None:
            return RedisClient(url, Metrics(CollectorRegistry()), lambda: upstream.now, skew=math.inf) if url else None

        connections = [connect() for _ in range(replicas)]
        caches = [make(upstream, shared=connection) for connection in connections]
        await asyncio.gather(*(one(cache, question) for question in questions for cache in caches))
        for cache, connection in zip(caches, connections, strict=True):
            await cache.close()
            if connection is not None:
                await connection.close()
    count = f"{upstream.posts} POST{'s' * (upstream.posts > 1)}"
    return f"{count}; answered {statistics.median(waits) * 1e3:.1f} ms after the last reply"


async def hit(days: int) -> str:
    upstream = Upstream(Options(calls_per_day=200))
    cache = make(upstream, 2**31)
    await cache.read(Query(codes=("8005550100",), window=Window(NOW - days * DAY, NOW)))
    question = Query(codes=("8005550100",), window=Window(NOW - DAY, NOW))
    times = []
    for _ in range(300):
        began = time.perf_counter()
        await read_page(cache, question, upstream.now, newest_first=True, limit=100, after=None)
        times.append(time.perf_counter() - began)
    return f"{statistics.median(times) * 1e3:.2f} ms"


async def memory(bound: int = 2**28) -> str:
    script = f"from benchmarks.cache import fill; fill({bound})"
    out = await asyncio.to_thread(subprocess.check_output, [sys.executable, "-c", script], text=True)
    _, held = map(int, out.split())
    return f"{held / bound:.2f} times the limit"


def fill(bound: int) -> None:
    """Print the bytes of calls read through the cache, and the growth of resident memory in bytes."""

    async def run() -> int:
        upstream = Upstream(Options(clients=200, calls_per_day=2000))
        cache, asked, day = make(upstream, bound), 0, 0
        while asked < 10 * bound:
            code = f"800555{100 + day % 200:04}"
            window = Window(NOW - (day // 200 + 1) * DAY, NOW - day // 200 * DAY)
            reading = await cache.read(Query(codes=(code,), window=window))
            asked += len(reading.calls) * 1000
            day += 1
        return asked

    idle = resident()
    asked = asyncio.run(run())
    print(asked, resident() - idle)


def resident() -> int:
    """The process's resident memory in bytes."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize()


def cases() -> list[Case]:
    draw = random.Random(3)
    code = "8005550100"
    same = [Query(codes=(code,), window=Window(NOW - DAY, NOW))] * 1000
    starts = [Window(NOW - draw.randrange(2, 30) * HOUR, NOW - draw.randrange(HOUR)) for _ in range(100)]
    overlapping = [Query(codes=(code,), window=window) for window in starts]
    clients = [Query(codes=(f"800555{100 + n:04}",), window=Window(NOW - DAY, NOW)) for n in range(50)]
    return [
        Case("a 30-day dashboard, refreshed every 30 s for 24 h", "1.2 POSTs, 0.5 %", lambda: dashboard(status=False)),
        Case("the same, with status", "2 %", lambda: dashboard(status=True)),
        Case("1,000 identical concurrent cold reads", "1 POST, 5 ms", lambda: herd(same)),
        Case("100 concurrent reads of overlapping windows of one client", "3 POSTs, 5 ms", lambda: herd(overlapping)),
        Case("concurrent reads of the same window of 50 clients", "3 POSTs, 5 ms", lambda: herd(clients)),
        Case("1,000 identical concurrent cold reads on each of two replicas", "2 POSTs", lambda: herd(same, 2)),
        Case("100 reads of overlapping windows on each of two replicas", "4 POSTs", lambda: herd(overlapping, 2)),
        Case("reads of the same window of 50 clients on each of two replicas", "4 POSTs", lambda: herd(clients, 2)),
        Case("the same, with a cluster of three servers", "4 POSTs", lambda: herd(clients, 2, 3)),
        Case("a day of one client from level 2 on a cluster of three servers", "1.5 times", lambda: found([code])),
        Case("the same of 50 clients", "1.5 times", lambda: found([one.codes[0] for one in clients])),
        Case("the same of every client", "1.5 times", lambda: found(["*"])),
        Case("a fresh page of 100 calls, 2 days cached", "1 ms", lambda: hit(2)),
        Case("the same, 700 days cached", "1 ms", lambda: hit(700)),
        Case("memory with a limit of 256 MiB, after reading ten times as much", "1.5 times", memory),
    ]


def table(text: str) -> tuple[str, dict[str, str], str]:
    """Split the page into the text before the table, the figures by case, and the text after."""
    before, rest = text.split(MARKERS[0], 1)
    rows, after = rest.split(MARKERS[1], 1)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in rows.strip().splitlines()]
    return before, dict(cells[2:]), after


def rewritten(text: str, measured: Mapping[str, str]) -> str:
    """Return the page with new figures. Cases that were not measured keep their old figures."""
    before, had, after = table(text)
    rows = {case.name: measured.get(case.name, had.get(case.name, "")) for case in cases()}
    lines = ["| case | measured |", "|---|---|", *(f"| {name} | {cell} |" for name, cell in rows.items())]
    return "\n".join([f"{before}{MARKERS[0]}", *lines, f"{MARKERS[1]}{after}"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the cache.")
    parser.add_argument("words", nargs="*", help="run only the cases whose name contains one of these words")
    parser.add_argument("--write", action="store_true", help="write the figures to docs/performance.md")
    options = parser.parse_args()
    measured = {}
    print("| case | measured | target |\n|---|---|---|")
    for case in cases():
        if not options.words or any(word in case.name for word in options.words):
            measured[case.name] = asyncio.run(case.measure())
            print(f"| {case.name} | {measured[case.name]} | {case.bar} |", flush=True)
    if options.write:
        PAGE.write_text(rewritten(PAGE.read_text("utf-8"), measured), "utf-8")


if __name__ == "__main__":
    main()
