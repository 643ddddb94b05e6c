"""Estimate POSTs, data and memory for a number of clients and dashboards, from the gateway's freshness rule.

The table is in helm/README.md.

Assumptions:
- A dashboard shows the last 7 days of one client and refreshes every minute, with 20 % random jitter. It does so all
  day. Real dashboards refresh less at night, so this is the peak hour.
- The number of dashboards per client follows a Zipf distribution with exponent 1: a few clients have very many
  dashboards, most have one or none.
- Every gap costs a separate POST. In fact, clients that need the same window share POSTs, so this is an upper bound.
- Replicas share a level 2 and their flights. Without a level 2, each replica sends its own POSTs.
- The Callbutton server answers a POST within half a second.
- Every client has 200 calls per day. An unpacked call takes what `level1` counts for the simulator's calls, a packed
  one the most that `benchmarks.memory` measures. Extents and days take what `level1` counts for them.
- The figures are those of a summary by day of each client, at most: callers who call again share their texts.

A client's POSTs depend only on its read rate, so each of a few rates is simulated once. The totals sum over the
clients, each rounded up to a simulated rate.
"""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_left

from benchmarks.cache import NOW, Upstream
from gateway.cache.aggregates import CALLER_BYTES, PART_BYTES
from gateway.cache.extents import Extent, by_day, overlay
from gateway.cache.freshness import Rule, gaps
from gateway.cache.level1 import DAY_BYTES, EXTENT_BYTES, bytes_of
from gateway.cache.packed_calls import BLOCK_BYTES, SEQUENCE_BYTES
from gateway.callbutton.wait_queue import Waiters
from gateway.model import Window
from gateway.simulator.server import Options

DAY = 86400
WINDOW = 7 * DAY
EVERY = 60.0  # seconds between two refreshes of a dashboard
CALLS_PER_DAY = 200
RATES = [count / EVERY for count in (1, 2, 3, 5, 10, 30, 100)]  # reads per second of a client
HOURS = 3.0
SIZES = [(100, 300), (1_000, 5_000), (10_000, 100_000)]
MINIMA = (15, 60, 300)  # GATEWAY_FRESH_MIN, in seconds
POST_SECONDS = 0.5
PACKED_BYTES = 110  # of a packed call: the most that benchmarks.memory measures
FIGURES_BYTES = 2 * PART_BYTES + CALLS_PER_DAY * (CALLER_BYTES + 42) + 2000  # of a day: its callers, and their waits


def cost_of_client(reads: float, rule: Rule, every: float = EVERY) -> tuple[float, float, int]:
    """The load of a client that is read `reads` times per second.

    A dashboard of it reloads every `every` seconds. Returns its POSTs per second, the seconds of calls fetched
    per second, and the extents held in the end.
    """
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
        now += chance.uniform(0.8, 1.2) / reads if reads <= 1 / every else chance.expovariate(reads)
    return posts / (end - warm), asked / (end - warm), sum(1 for extent in extents for _ in by_day(extent))


def dashboards_of(clients: int, dashboards: int) -> list[int]:
    """The number of dashboards of each client that has any."""
    chance = random.Random(1)
    weights = [1 / rank for rank in range(1, clients + 1)]
    found = [0] * clients
    for client in chance.choices(range(clients), weights, k=dashboards):
        found[client] += 1
    return [count for count in found if count]


async def bytes_of_a_call() -> int:
    """Measure the memory of one cached call, in bytes."""
    upstream = Upstream(Options(clients=1, calls_per_day=CALLS_PER_DAY))
    fetched = await upstream(["8005550100"], Window(NOW - DAY, NOW), status=False, now=NOW, waiters=Waiters())
    calls = tuple(call for listed in fetched.calls.values() for call in listed)
    return bytes_of(calls) // len(calls)


def rows() -> list[str]:
    """The lines of the Markdown table."""
    call = asyncio.run(bytes_of_a_call())
    lines = [
        "| clients | dashboards | read | `freshMin` | responses/s | POSTs/s | POSTs per response | in flight "
        "| calls fetched/s | unpacked | packed | figures |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    spread = {size: dashboards_of(*size) for size in SIZES}
    for minimum in MINIMA:
        costs = [cost_of_client(rate, Rule(minimum)) for rate in RATES]
        for (clients, dashboards), counts in spread.items():
            nearest = [min(bisect_left(RATES, count / EVERY), len(RATES) - 1) for count in counts]
            posts, asked, extents = (sum(column) for column in zip(*[costs[one] for one in nearest], strict=True))
            answers = dashboards / EVERY
            days = len(counts) * WINDOW // DAY
            besides = extents * EXTENT_BYTES + days * DAY_BYTES
            unpacked = days * CALLS_PER_DAY * call + besides
            packed = days * CALLS_PER_DAY * PACKED_BYTES + extents * (SEQUENCE_BYTES + BLOCK_BYTES) + besides
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
                f"{unpacked / 1024**2:,.0f} MiB",
                f"{packed / 1024**2:,.0f} MiB",
                f"{days * FIGURES_BYTES / 1024**2:,.0f} MiB",
            ]
            lines.append(f"| {' | '.join(figures)} |")
    return lines


if __name__ == "__main__":
    print("\n".join(rows()))
