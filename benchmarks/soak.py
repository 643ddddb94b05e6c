"""Soak test with mixed load and faults: memory, leaked tasks and descriptors, wrong answers, long slices of the loop.

`python -m benchmarks.soak 3600` runs for an hour (default 60 seconds). The faults change every four seconds. Answers
for past days are compared with the simulator's calls, which are a pure function of client and time. Prints figures, the
longest slices of the event loop over 10 ms with their stacks, and a plot of resident memory. A second argument names an
SVG file for the plot.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from benchmarks import plots
from benchmarks.loop_watch import LONGEST, LoopWatch
from benchmarks.resilience import gateway, simulated
from gateway.simulator.calls import calls_of_hour
from gateway.simulator.server import Options, Simulator, create

CLIENTS, WORKERS = 10, 20
PERIOD = 4.0  # seconds that a fault lasts
SHOWN = 10  # slices
POOL = 8  # idle connections to the upstream that may stay open
FAULTS: tuple[tuple[str, ...], ...] = (
    (),
    ("http-500:0.3", "reset:0.2"),
    (),
    ("hang:0.3", "truncate:0.2", "drip:0.1"),
    (),
    ("http-503",),
    (),
    ("disorder", "duplicates", "unknown", "omit-empty", "html:0.2", "error:0.2"),
    (),
    ("unauthorized",),
    (),
    ("charset", "descending", "empty:0.3", "doctype:0.2"),
)
SHORT = {
    "GATEWAY_UPSTREAM_TIMEOUT": "1s",
    "GATEWAY_UPSTREAM_IDLE_TIMEOUT": "1s",
    "GATEWAY_UPSTREAM_DEADLINE": "3s",
    "GATEWAY_REQUEST_DEADLINE": "5s",
    "GATEWAY_FRESH_MAX": "5s",
    "GATEWAY_CACHE_BYTES": "16MiB",
}
BARS = " ▁▂▃▄▅▆▇█"


def expected(code: str, day: datetime) -> set[str]:
    """The ids of the simulator's calls in the six hours from `day`."""
    first = int(day.timestamp()) // 3600
    return {call.identity for hour in range(first, first + 6) for call in calls_of_hour(1, code, hour, 200)}


async def consumer(client: httpx.AsyncClient, ends: float, seed: int, seen: Counter[str]) -> None:
    """Send requests and compare the answers. Occasionally disconnect early."""
    draw = random.Random(seed)
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    while time.monotonic() < ends:
        code = f"8005550{100 + draw.randrange(CLIENTS)}"
        day = today - timedelta(days=draw.randrange(2, 200), hours=-6 * draw.randrange(4))
        query = f"start={day:%Y-%m-%dT%H:%M:%SZ}&end={day + timedelta(hours=6):%Y-%m-%dT%H:%M:%SZ}&limit=1000"
        patience = 0.05 if draw.random() < 0.05 else 30.0
        try:
            answer = await client.get(f"/clients/{code}/calls?{query}", timeout=patience)
        except httpx.TimeoutException:
            seen["hung up"] += 1
            continue
        body: dict[str, Any] = answer.json()
        if answer.status_code == 200:
            right = {call["id"] for call in body["data"]} == expected(code, day)
            seen[("right" if right else "WRONG") + (", stale" if body["meta"]["stale"] else "")] += 1
        else:
            seen[body["type"].removeprefix("/problems/")] += 1


def resident(process: int) -> int:
    """The resident memory of a process in bytes."""
    status = Path(f"/proc/{process}/status").read_text("ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def descriptors(process: int) -> int:
    return len(list(Path(f"/proc/{process}/fd").iterdir()))


async def watch(simulator: Simulator, process: int, ends: float, samples: list[tuple[float, int]]) -> None:
    """Rotate the faults, and sample the resident memory."""
    began, turn = time.monotonic(), 0
    while (now := time.monotonic()) < ends:
        simulator.misbehave(*FAULTS[turn % len(FAULTS)])
        samples.append((now - began, resident(process)))
        turn += 1
        await asyncio.sleep(PERIOD)


def slope(samples: list[tuple[float, int]]) -> float:
    """Growth in bytes per ten minutes, fitted by least squares to the second half of the samples."""
    half = samples[len(samples) // 2 :]
    mean_x, mean_y = (sum(values) / len(half) for values in zip(*half, strict=True))
    spread = sum((x - mean_x) ** 2 for x, _ in half)
    return 600 * sum((x - mean_x) * (y - mean_y) for x, y in half) / spread if spread else 0.0


def plot(samples: list[tuple[float, int]], width: int = 60) -> str:
    values = [samples[index * len(samples) // width][1] for index in range(min(width, len(samples)))]
    low, high = min(values), max(values)
    return "".join(BARS[round((value - low) / max(1, high - low) * (len(BARS) - 1))] for value in values)


def drawn(samples: list[tuple[float, int]], wrong: int, requests: int) -> str:
    """Draw the resident memory over time as SVG. Uses about 300 samples."""
    thinned = samples[:: max(1, len(samples) // 300)]
    title = f"Resident memory under mixed load and faults: {requests} requests, {wrong} wrong answers"
    return plots.line([(second / 60, size / 2**20) for second, size in thinned], title, "minutes", "MiB")


async def soak(simulator: Simulator, address: str, process: int, seconds: float) -> tuple[bool, str]:
    """Run the test and print the figures. Return whether it passed, and the plot as SVG."""
    seen: Counter[str] = Counter()
    samples: list[tuple[float, int]] = []
    limits = httpx.Limits(max_connections=100, max_keepalive_connections=50)
    async with httpx.AsyncClient(base_url=address, timeout=60, limits=limits) as client:
        (await client.get("/healthz")).raise_for_status()
        before = descriptors(process), int((await client.get("/tasks")).text)
        ends = time.monotonic() + seconds
        consumers = [consumer(client, ends, number, seen) for number in range(WORKERS)]
        await asyncio.gather(watch(simulator, process, ends, samples), *consumers)
        simulator.misbehave()
    async with httpx.AsyncClient(base_url=address, timeout=60) as client:
        for _ in range(100):  # until flights finish and idle connections to the upstream close
            await asyncio.sleep(0.2)
            after = descriptors(process), int((await client.get("/tasks")).text)
            if after[0] <= before[0] + POOL and after[1] <= before[1]:
                break
        collection, *long = (await client.get("/slices")).json()
    wrong = sum(count for kind, count in seen.items() if kind.startswith("WRONG"))
    print(f"{sum(seen.values())} requests in {seconds:.0f} s, {wrong} wrong answers:")
    print(f"  {', '.join(f'{count} {kind}' for kind, count in seen.most_common())}")
    print(f"memory {samples[0][1] / 1e6:.1f} to {samples[-1][1] / 1e6:.1f} MB", end="")
    print(f", {slope(samples) / 1e6:+.2f} MB per ten minutes in the second half\n  {plot(samples)}")
    print(f"descriptors {before[0]} before, {after[0]} after; tasks {before[1]} before, {after[1]} after")
    print(f"{len(long)} slices of the event loop over {LONGEST * 1e3:.0f} ms", end="")
    print(f"; longest collection of garbage {collection * 1e3:.1f} ms")
    print("\n".join(long[:SHOWN]))
    well = not (wrong or long) and after[0] <= before[0] + POOL + 1 and after[1] <= before[1] + 1
    return well, drawn(samples, wrong, sum(seen.values()))


def serve() -> None:
    """Run the gateway on a watched loop, with two more paths.

    `/tasks` returns the number of asyncio tasks, `/slices` the long slices since the start, without its imports.
    """
    import os

    from gateway import app, logs
    from gateway.server import address_of, listen, make_server
    from gateway.settings import parse_upstream_settings

    settings = parse_upstream_settings(os.environ)
    logs.configure("json", "error")
    application = app.create(settings)
    watch = LoopWatch()

    async def with_figures(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
        if scope.get("path") == "/tasks":
            body = str(len(asyncio.all_tasks())).encode()
        elif scope.get("path") == "/slices":
            longest = sorted(watch.long, key=lambda one: one.seconds, reverse=True)
            body = json.dumps([watch.longest_collection, *map(str, longest)]).encode()
        else:
            await application(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    opened = listen(settings.host, settings.port)
    os.write(2, f'{{"address":"{address_of(opened)}"}}\n'.encode())
    with watch.watching(), asyncio.Runner(loop_factory=watch.make_loop) as runner:
        runner.run(make_server(with_figures, on_started=watch.long.clear).serve([opened]))


def main() -> int:
    """Run for the given number of seconds, and draw the plot to the given file."""
    if sys.argv[1:] == ["serve"]:
        serve()
        return 0
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    plotted = Path(sys.argv[2]) if len(sys.argv) > 2 else None
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # the simulator aborts responses on purpose
    simulator = create(Options(clients=CLIENTS))
    with simulated(simulator) as upstream, gateway(upstream, "benchmarks.soak", "serve", **SHORT) as (process, address):
        well, drawing = asyncio.run(soak(simulator, address, process.pid, seconds))
    if plotted:
        plotted.write_text(drawing, "utf-8")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
