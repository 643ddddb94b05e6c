"""What clients and dashboards cost: POSTs, data and memory, from the gateway's own freshness rule. For helm/README.md.

Assumptions:
- A dashboard shows one client's last 7 days, its window ends now, and it asks again every minute, a fifth sooner or
  later at random. It asks all day long: by night less is asked, so this is the worst hour.
- Dashboards spread over clients as popularity does (Zipf, exponent 1): few clients have very many, many one or none.
- Every need is a POST of its own. Clients that need the same window travel together, so it is an upper bound.
- Replicas share a level 2 and their flights. Without, each replica POSTs for itself what it serves.
- The Callbutton server answers a POST within half a second.
- Every client has 200 calls a day; a call takes what the simulator's calls take in memory.

A client's POSTs depend on how often it is read, not by whom: so each of some rates is simulated once, and the clients
of all dashboards are added up by their rates.
"""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_left

from benchmarks.cache import NOW, Upstream
from gateway.cache.extents import Extent, overlay
from gateway.cache.freshness import Rule, gaps
from gateway.cache.level1 import bytes_of
from gateway.callbutton.wait_queue import Waiters
from gateway.model import Window
from gateway.simulator.server import Options

DAY = 86400
WINDOW = 7 * DAY
EVERY = 60.0  # seconds between two reads of a dashboard
CALLS_PER_DAY = 200
RATES = [count / EVERY for count in (1, 2, 3, 5, 10, 30, 100)]  # reads of a client a second
HOURS = 3.0
SIZES = [(100, 300), (1_000, 5_000), (10_000, 100_000)]
MINIMA = (15, 60, 300)  # GATEWAY_FRESH_MIN, in seconds
POST_SECONDS = 0.5


def cost_of_client(reads: float, rule: Rule) -> tuple[float, float]:
    """POSTs a second of a client read so often, and what they ask for, in seconds of calls a second."""
    chance = random.Random(1)
    extents: list[Extent] = []
    posts = asked = 0.0
    warm, now, end = NOW + 3600.0, float(NOW), NOW + 3600 * (1 + HOURS)
    while now < end:
        window = Window(int(now) - WINDOW, int(now))
        held = [extent for extent in extents if extent.window.end > window.start]
        reach = held[-1].window.end if held and now - held[-1].sent < rule.minimum else 0
        wanted = Window(window.start, min(window.end, reach)) if reach else window
        for gap in gaps(held, wanted, now, rule, lambda window: window):
            held = overlay(held, Extent(gap, now))
            if now >= warm:
                posts, asked = posts + 1, asked + gap.end - gap.start
        extents = held
        now += chance.uniform(0.8, 1.2) / reads if reads <= 1 / EVERY else chance.expovariate(reads)
    return posts / (end - warm), asked / (end - warm)


def dashboards_of(clients: int, dashboards: int) -> list[int]:
    """How many dashboards each client has that has any."""
    chance = random.Random(1)
    weights = [1 / rank for rank in range(1, clients + 1)]
    found = [0] * clients
    for client in chance.choices(range(clients), weights, k=dashboards):
        found[client] += 1
    return [count for count in found if count]


async def bytes_of_a_call() -> int:
    """Measure the memory of one cached call, in bytes."""
    upstream = Upstream(Options(clients=1, calls_per_day=CALLS_PER_DAY))
    fetched = await upstream(["8005550100"], Window(NOW - DAY, NOW), status=False, now=NOW, demand=Waiters())
    calls = tuple(call for listed in fetched.calls.values() for call in listed)
    return bytes_of(calls) // len(calls)


def rows() -> list[str]:
    """The table, a line each."""
    call = asyncio.run(bytes_of_a_call())
    lines = [
        "| clients | dashboards | read | `freshMin` | responses/s | POSTs/s | POSTs per response | in flight "
        "| calls fetched/s | memory |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    spread = {size: dashboards_of(*size) for size in SIZES}
    for minimum in MINIMA:
        costs = [cost_of_client(rate, Rule(minimum)) for rate in RATES]
        for (clients, dashboards), counts in spread.items():
            posts = asked = 0.0
            for count in counts:
                nearest = min(bisect_left(RATES, count / EVERY), len(RATES) - 1)
                posts, asked = posts + costs[nearest][0], asked + costs[nearest][1]
            answers = dashboards / EVERY
            memory = len(counts) * CALLS_PER_DAY * WINDOW / DAY * call / 1024**2
            figures = [
                f"{clients:,}",
                f"{dashboards:,}",
                f"{len(counts):,}",
                f"{minimum} s",
                f"{answers:,.0f}",
                f"{posts:,.1f}",
                f"{posts / answers:.2f}",
                f"{posts * POST_SECONDS:,.0f}",
                f"{asked * CALLS_PER_DAY / DAY:,.0f}",
                f"{memory:,.0f} MiB",
            ]
            lines.append(f"| {' | '.join(figures)} |")
    return lines


if __name__ == "__main__":
    print("\n".join(rows()))
