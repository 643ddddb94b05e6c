"""Count the POSTs that a failing upstream receives, at 200 requests per second, half of which a stale answer can serve.

Before that, compare misses of other clients while three readers wait for a client that the upstream never answers. The
gateway runs in a separate process, the simulator in this one. Prints the figures of each fault.
"""

from __future__ import annotations

import asyncio
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from datetime import UTC, datetime, timedelta

import httpx

from gateway.server import address_of, listen, make_server
from gateway.simulator.server import PATH, Options, Simulator, create

RATE = 200  # requests a second
CLIENTS = 20
FAILING, HEALED = 6.0, 8.0  # seconds
SILENT, SILENT_READERS = "8005550100", 3
READERS, MISSES = 4, 100  # of the other clients at a time, and in each of five turns
SETTINGS = {
    "GATEWAY_AUTH": "none",
    "GATEWAY_PORT": "0",
    "GATEWAY_SIGNING_KEY": "k" * 32,
    "GATEWAY_FRESH_MIN": "1s",
    "GATEWAY_DRAIN_DELAY": "0s",
    "GATEWAY_LOG_FORMAT": "json",
}


@contextmanager
def simulated(simulator: Simulator) -> Iterator[str]:
    """Serve the simulator and yield its URL."""
    opened = listen("127.0.0.1", 0)
    server = make_server(simulator, lifespan="off")
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
    thread.start()
    try:
        yield f"{address_of(opened)}{PATH}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def gateway(upstream: str, *command: str, **more: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a gateway and yield the process and its address."""
    clean = {name: text for name, text in os.environ.items() if not name.startswith("GATEWAY_")}
    environment = clean | SETTINGS | {"GATEWAY_UPSTREAM_URL": upstream} | more
    words = [sys.executable, "-m", *(command or ("gateway", "serve"))]
    process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    for line in process.stderr:
        if found := re.search(r'"address":"([^"]+)"', line):
            break
    else:
        raise RuntimeError("the gateway did not start")
    drained = threading.Thread(target=process.stderr.read)
    drained.start()
    try:
        yield process, found[1]
    finally:
        process.terminate()
        process.wait(60)
        drained.join()


class Answered(Counter[str]):
    """Responses by kind, with their durations in seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, list[float]] = {}

    def add(self, kind: str, seconds: float) -> None:
        """Count one response."""
        self[kind] += 1
        self.seconds.setdefault(kind, []).append(seconds)


def paths(number: int, begun: datetime) -> str:
    """Path number `number`: odd ones are in the cache, even ones are not."""
    code = f"8005550{100 + number % CLIENTS}"
    if number % 2:
        start, end = begun - timedelta(hours=1), begun - timedelta(seconds=5)
        return f"/clients/{code}/calls?start={start:%Y-%m-%dT%H:%M:%SZ}&end={end:%Y-%m-%dT%H:%M:%SZ}&limit=10"
    day = begun - timedelta(days=2 + number // CLIENTS, hours=number % 7)
    return f"/clients/{code}/calls?start={day:%Y-%m-%dT%H:%M:%SZ}&end={day + timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}"


async def load(client: httpx.AsyncClient, first: int, seconds: float, begun: datetime) -> Answered:
    """Send RATE requests per second, and count the responses."""
    answered = Answered()

    async def one(number: int) -> None:
        at = time.perf_counter()
        answer = await client.get(paths(number, begun))
        body = answer.json()
        if answer.status_code == 200:
            kind = "stale" if body["meta"]["stale"] else "fresh"
        else:
            kind = body["type"].removeprefix("/problems/")
        answered.add(kind, time.perf_counter() - at)

    began, tasks = time.perf_counter(), []
    for number in range(int(RATE * seconds)):
        await asyncio.sleep(max(0.0, began + number / RATE - time.perf_counter()))
        tasks.append(asyncio.create_task(one(first + number)))
    await asyncio.gather(*tasks)
    return answered


async def sample(client: httpx.AsyncClient, name: str) -> float:
    text = (await client.get("/metrics")).text
    lines = [line for line in text.splitlines() if line.startswith(f"callbutton_gateway_{name}")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


async def state_change(client: httpx.AsyncClient, simulator: Simulator, wanted: float) -> tuple[int, float, float]:
    """Wait for a state of the breaker. Return the POSTs and flights so far, and the seconds it took."""
    began = time.perf_counter()
    while await sample(client, "upstream_circuit_state") != wanted:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    return simulator.posts, await sample(client, "batch_codes_count"), time.perf_counter() - began


def shown(answered: Answered) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in answered.most_common())


def quantiles(seconds: list[float]) -> str:
    cut = statistics.quantiles(seconds, n=100)
    return f"{1000 * cut[49]:.1f} / {1000 * cut[98]:.1f} ms"


async def measure(simulator: Simulator, address: str, fault: str) -> None:
    """Print the figures of each phase of one fault."""
    limits = httpx.Limits(max_connections=400, max_keepalive_connections=400)
    async with httpx.AsyncClient(base_url=address, timeout=60, limits=limits) as client:
        begun = datetime.now(UTC)
        for number in range(1, 2 * CLIENTS, 2):
            (await client.get(paths(number, begun))).raise_for_status()
        well = await load(client, 10_000, 3, begun)
        await asyncio.sleep(2)
        simulator.misbehave(fault)
        posts, flights = simulator.posts, await sample(client, "batch_codes_count")
        opening = asyncio.create_task(state_change(client, simulator, 2))
        failing = await load(client, 20_000, FAILING, begun)
        opened_posts, opened_flights, opened_seconds = await opening
        after = simulator.posts - opened_posts
        simulator.misbehave()
        healed_posts = simulator.posts
        closing = asyncio.create_task(state_change(client, simulator, 0))
        healed = await load(client, 30_000, HEALED, begun)
        _, _, closed_seconds = await closing
        retries = await sample(client, "upstream_retries_total")
    until = f"{opened_posts - posts} POSTs for {opened_flights - flights:.0f} flights, {opened_seconds:.2f} s"
    print(f"\n{fault}, {RATE} requests per second for {FAILING:.0f} s")
    print(f"  until the breaker opens   {until}, {retries:.0f} retries in all")
    print(f"  while it is open          {after} POSTs in {FAILING - opened_seconds:.1f} s")
    print(f"  responses                 {shown(failing)}")
    print(f"  stale, p50 / p99          {quantiles(failing.seconds['stale'])}")
    print(f"  healthy, p50 / p99        {quantiles(well.seconds['fresh'])}")
    print(f"  closed after recovery     {closed_seconds:.2f} s; then {shown(healed)}")
    print(f"  POSTs after recovery      {simulator.posts - healed_posts}")


async def misses(client: httpx.AsyncClient, turn: int) -> Answered:
    """Read windows of the other clients that are not in the cache, some at a time."""
    answered, numbers = Answered(), iter(range(MISSES))

    async def read() -> None:
        for number in numbers:
            code = f"8005550{101 + number % (CLIENTS - 1)}"
            start = datetime.now(UTC) - timedelta(days=10 + 20 * turn + number // (CLIENTS - 1))
            began = time.perf_counter()
            window = f"start={start:%Y-%m-%dT%H:00:00Z}&end={start + timedelta(hours=1):%Y-%m-%dT%H:00:00Z}"
            answer = await client.get(f"/clients/{code}/calls?{window}")
            kind = "answered" if answer.status_code == 200 else answer.json()["type"].removeprefix("/problems/")
            answered.add(kind, time.perf_counter() - began)

    await asyncio.gather(*(read() for _ in range(READERS)))
    return answered


async def measure_fairness(address: str, other: str) -> None:
    """Print how long misses take at a gateway with readers of a silent client, and at one without them, in turns."""
    medians: dict[str, list[float]] = {address: [], other: []}
    refused = 0
    async with AsyncExitStack() as stack:
        client, control = [
            await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=None)) for url in (address, other)
        ]

        async def wait(reader: int) -> None:
            for day in range(1, 28):
                await client.get(f"/clients/{SILENT}/calls?start=2026-0{reader + 1}-{day:02}&end=2026-0{reader + 1}-28")

        waiting = [asyncio.create_task(wait(reader)) for reader in range(SILENT_READERS)]
        for turn in range(5):
            for url, session in ((address, client), (other, control)):
                answered = await misses(session, turn)
                if turn:  # the first warms up
                    medians[url].append(statistics.median(answered.seconds["answered"]))
                refused += MISSES - answered["answered"]
        posts = await sample(client, "upstream_posts_in_flight")
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    beside, alone = (statistics.median(medians[url]) for url in (address, other))
    print(f"{SILENT_READERS} readers of a client that is never answered ({posts:.0f} POSTs), {READERS} of others")
    print(f"  misses of others, p50     {1000 * alone:.1f} ms without them, {1000 * beside:.1f} ms with them")
    print(f"  ratio, refused            {beside / alone:.2f}, {refused} of {10 * MISSES}")


def main() -> None:
    """Compare clients, then run every fault."""
    simulator = create(Options(clients=CLIENTS, faults=(f"hang@{SILENT}",)))
    with simulated(simulator) as upstream, gateway(upstream) as (_, address), gateway(upstream) as (_, other):
        asyncio.run(measure_fairness(address, other))
    for fault in ("http-503", "http-500", "hang"):
        simulator = create(Options(clients=CLIENTS))
        more = {"GATEWAY_UPSTREAM_TIMEOUT": "1s"} if fault == "hang" else {}
        with simulated(simulator) as upstream, gateway(upstream, **more) as (_, address):
            asyncio.run(measure(simulator, address, fault))


if __name__ == "__main__":
    main()
