"""Memory of the calls that the cache holds, packed and not, and the cost of reading packed days.

Each row is a separate process that reads 30 days through a cache, a day at a time. Its upstream sends replies in one
of the layouts of `benchmarks.replies`, which are parsed as the gateway does, with ids in order of time and random
callers. The growth of resident memory is divided by the calls. Then a page and a summary by day are read: the least CPU
time of several runs. "Unpacked" counts the blocks of calls that the warm summaries unpack.
"""

from __future__ import annotations

import asyncio
import gc
import random
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from typing import Any

from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from benchmarks import replies
from benchmarks.cache import resident
from benchmarks.reports import DAY, MIDNIGHT, NOW, RUNS, Timer, summarize
from benchmarks.translate import calls_of
from gateway.cache import level1, packed_calls
from gateway.cache.freshness import Rule
from gateway.cache.reader import Cache, CacheSettings, Query
from gateway.cache.scans import read_page
from gateway.callbutton.client import Fetched
from gateway.callbutton.wait_queue import Waiters
from gateway.metrics import Metrics
from gateway.model import Call, Window

CALLS = 60_000  # at least, of as many clients as that takes
SIZES = (200, 3333)  # calls of a client a day; 3333 are 100,000 in 30 days
MONTH = Window(MIDNIGHT, NOW)
DAYS = [Window(start, start + DAY) for start in range(MONTH.start, MONTH.end, DAY)]
PAGE = 100


class Upstream:
    """Replies of one layout, with a number of calls a day."""

    def __init__(self, layout: str, per_day: int) -> None:
        self._layout = layout
        self._per_day = per_day
        self._chance = random.Random(1)

    async def __call__(
        self,
        codes: Sequence[str],
        window: Window,
        *,
        status: bool,  # noqa: ARG002
        now: float,  # noqa: ARG002
        waiters: Waiters,  # noqa: ARG002
    ) -> Fetched:
        """Reply to a POST for one client."""
        return Fetched(NOW, {codes[0]: self._calls(codes[0], window)}, {}, status_ignored=False)

    def _calls(self, code: str, window: Window) -> list[Call]:
        reply = calls_of(replies.reply(self._layout, self._per_day, seed=window.start))
        calls = [call for listed in reply.calls.values() for call in listed]
        return [
            replace(
                call,
                id=str(window.start * 10 + place),
                client_code=code,
                start_time=datetime.fromtimestamp(window.start + place * DAY // self._per_day, UTC),
                ani=call.ani and str(3_120_000_000 + self._chance.randrange(40_000)),
            )
            for place, call in enumerate(calls)
        ]


def least(work: Callable[[], Coroutine[Any, Any, object]], runner: asyncio.Runner) -> float:
    """The least CPU milliseconds of several runs, after a first one."""
    times = []
    for _ in range(RUNS + 1):
        began = time.thread_time()
        runner.run(work())
        times.append(time.thread_time() - began)
    return min(times[1:]) * 1e3


def measure(layout: str, per_day: int, *, packed: bool) -> None:
    """Print a row of the table."""
    level1.UNPACKED = 0 if packed else 1
    rules = CacheSettings(Rule(), Rule(ratio=0.01), max_span=31 * DAY, batch=50, cache_bytes=2**40)
    clients = [f"800555{number:04}" for number in range(-(-CALLS // (per_day * len(DAYS))))]
    cache = Cache(Upstream(layout, per_day), rules, Metrics(CollectorRegistry()), lambda: NOW)

    async def fill() -> None:
        for code in clients:
            for day in DAYS:
                await cache.read(Query(codes=(code,), window=day))

    async def page() -> None:
        await read_page(cache, month, NOW, newest_first=True, limit=PAGE, after=None)

    async def summary() -> None:
        summarize((await cache.read(month)).extents, Timer(), "day", (), "")

    month = Query(codes=(clients[0],), window=MONTH)
    calls_of(replies.reply(layout, per_day))
    gc.collect()
    idle = resident()
    with asyncio.Runner() as runner:
        runner.run(fill())
        gc.collect()
        held = (resident() - idle) / (len(clients) * len(DAYS) * per_day)
        times = least(page, runner)
        runner.run(summary())
        before = sum(packed_calls.unpacked.cache_info()[:2])
        warm = least(summary, runner)
        blocks = sum(packed_calls.unpacked.cache_info()[:2]) - before
    print(f"| {layout}, {per_day:,} a day | {packed} | {held:.0f} | {times:.2f} ms | {warm:.2f} ms | {blocks} |")


def main() -> None:
    print(
        "| calls | packed | bytes a call | page of 100 | warm summary by day | unpacked |\n|---|---|---|---|---|---|",
        flush=True,
    )
    for layout in replies.LAYOUTS:
        for per_day in SIZES:
            for packed in (False, True):
                script = f"from benchmarks.memory import measure; measure({layout!r}, {per_day}, packed={packed})"
                subprocess.run([sys.executable, "-c", script], check=True)


if __name__ == "__main__":
    main()
