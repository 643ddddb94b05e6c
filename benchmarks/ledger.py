"""What the ledger costs the upstream and itself, against the simulator, counting at the upstream.

The simulator is called in process and answers by its own clock, which the benchmark moves; POSTs are those that
reached it. What a URL-keyed cache would fetch is the whole window, each time.
"""

from __future__ import annotations

import asyncio
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry

from gateway.callbutton import central, wire
from gateway.callbutton.queue import Demand
from gateway.callbutton.service import Fetched
from gateway.ledger.freshness import Rule
from gateway.ledger.pages import read_page
from gateway.ledger.reader import Ledger, LedgerSettings, Question
from gateway.metrics import Metrics
from gateway.model import Window
from gateway.simulator.server import PATH, Options, Simulator, create

NOW = 1_795_000_000
DAY = 86400
HOUR = 3600


class Upstream:
    """The simulator behind the gateway's own request and reply; counts POSTs and the seconds that they ask for."""

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
        demand: Demand,  # noqa: ARG002
    ) -> Fetched:
        """POST."""
        self.posts += 1
        self.asked += (min(window.end, int(now)) - window.start) * len(codes)
        body = wire.render_request(codes, central.edges(window, now), status=status)
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
        reply = wire.parse_reply(bytes(pieces), status=status)
        self.landed = time.perf_counter()
        return Fetched(sent, reply.calls, reply.unreadable, status_ignored=reply.status_ignored)


def make(upstream: Upstream, cache_bytes: int = 2**28) -> Ledger:
    settings = LedgerSettings(Rule(), Rule(ratio=0.01), max_span=31 * DAY, batch=50, cache_bytes=cache_bytes)
    return Ledger(upstream, settings, Metrics(CollectorRegistry()), lambda: upstream.now)


def row(name: str, measured: str, bar: str) -> None:
    print(f"| {name} | {measured} | {bar} |", flush=True)


async def dashboard(*, status: bool, hours: int = 24) -> None:
    upstream = Upstream(Options(calls_per_day=24))
    ledger, draw, reads = make(upstream), random.Random(1), 0
    while upstream.now < NOW + hours * HOUR:
        window = Window(int(upstream.now) - 30 * DAY, int(upstream.now) + 1)
        await ledger.read(Question(codes=("8005550100",), window=window, status=status))
        reads += 1
        upstream.now += 30 * (0.85 + 0.3 * draw.random())
    share = upstream.asked / (reads * 30 * DAY)
    kind = "with status" if status else "plain"
    bar = "2 %" if status else "1.2 POSTs, 0.5 %"
    row(f"30 days every 30 s for {hours} h, {kind}", f"{upstream.posts / reads:.2f} POSTs a read, {share:.2%}", bar)


async def herd(name: str, questions: Sequence[Question], bar: str) -> None:
    upstream = Upstream(Options(clients=50, calls_per_day=24), latency=0.2)
    ledger = make(upstream)
    waits: list[float] = []

    async def one(question: Question) -> None:
        await ledger.read(question)
        waits.append(time.perf_counter() - upstream.landed)

    await asyncio.gather(*map(one, questions))
    row(name, f"{upstream.posts} POSTs; answered {statistics.median(waits) * 1e3:.1f} ms after landing", bar)


async def hits() -> None:
    for days in (2, 700):
        upstream = Upstream(Options(calls_per_day=200))
        ledger = make(upstream, 2**31)
        await ledger.read(Question(codes=("8005550100",), window=Window(NOW - days * DAY, NOW)))
        question = Question(codes=("8005550100",), window=Window(NOW - DAY, NOW))
        times = []
        for _ in range(300):
            began = time.perf_counter()
            await read_page(ledger, question, upstream.now, newest_first=True, limit=100, after=None)
            times.append(time.perf_counter() - began)
        row(f"hit on a page of 100, ledger of {days} days", f"median {statistics.median(times) * 1e3:.2f} ms", "1 ms")


def memory(bound: int = 2**28) -> None:
    script = f"from benchmarks.ledger import fill; fill({bound})"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True).stdout
    asked, resident = map(int, out.split())
    measured = f"resident {resident / bound:.2f} times the bound after {asked / bound:.0f} times that was asked for"
    row(f"memory, {bound // 2**20} MiB allowed", measured, "1.5 times")


def fill(bound: int) -> None:
    """Print how many bytes of calls went through the ledger, and how many the process holds more than when idle."""

    async def run() -> int:
        upstream = Upstream(Options(clients=200, calls_per_day=2000))
        ledger, asked, day = make(upstream, bound), 0, 0
        while asked < 10 * bound:
            code = f"800555{100 + day % 200:04}"
            window = Window(NOW - (day // 200 + 1) * DAY, NOW - day // 200 * DAY)
            reading = await ledger.read(Question(codes=(code,), window=window))
            asked += len(reading.calls) * 1000
            day += 1
        return asked

    idle = resident()
    asked = asyncio.run(run())
    print(asked, resident() - idle)


def resident() -> int:
    """Bytes that the process holds now."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize()


def main() -> None:
    draw = random.Random(3)
    code = "8005550100"
    same = [Question(codes=(code,), window=Window(NOW - DAY, NOW))] * 1000
    starts = [Window(NOW - draw.randrange(2, 30) * HOUR, NOW - draw.randrange(HOUR)) for _ in range(100)]
    overlapping = [Question(codes=(code,), window=window) for window in starts]
    clients = [Question(codes=(f"800555{100 + n:04}",), window=Window(NOW - DAY, NOW)) for n in range(50)]
    print("| case | measured | bar |\n|---|---|---|")
    asyncio.run(herd("1,000 identical cold reads at once", same, "1 POST, 5 ms"))
    asyncio.run(herd("100 overlapping unequal windows of a client at once", overlapping, "3 POSTs, 5 ms"))
    asyncio.run(herd("50 clients, the same window, at once", clients, "3 POSTs, 5 ms"))
    asyncio.run(hits())
    asyncio.run(dashboard(status=False))
    asyncio.run(dashboard(status=True))
    memory()


if __name__ == "__main__":
    main()
