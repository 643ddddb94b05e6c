"""The change feed: the cost of polls, waiting consumers, streams and initial copies.

The gateway runs in its own process, on one core; consumers and the simulator run on the others. Delays are counted
from the end of the server's reply to the last byte at the last consumer, beside the processor time of the gateway
between the two, which a busy machine changes less.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import uvloop

from benchmarks.support import free_port, reachable, running, serving, wait_for
from benchmarks.world import DAY
from gateway.simulator.server import PATH, Options, create

CODE = "8005550100"
FEED = f"/clients/{CODE}/changes"
REFRESHES = 3  # that brought something, of which the slowest counts


class Gateway(NamedTuple):
    """A gateway in its own process, in front of a simulator.

    `landed` has the end of each reply, and the processor time of the gateway until then, in seconds.
    """

    port: int
    process: subprocess.Popen[bytes]
    landed: list[tuple[float, float]]

    @property
    def client(self) -> httpx.Client:
        """A client with the gateway's address."""
        return httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=600)

    def seconds(self) -> float:
        """The processor time of the gateway so far."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text("ascii").split()[0]) for task in tasks) / 1e9

    def resident(self, name: str = "VmRSS") -> float:
        """The resident memory of the gateway in MiB; of `VmHWM` the highest so far."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text("ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


@contextmanager
def gateway(options: Options, **settings: str) -> Iterator[Gateway]:
    """Run a gateway in front of a simulator."""
    landed: list[tuple[float, float]] = []
    started: list[Gateway] = []
    simulator = create(options)

    async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
        await simulator(scope, receive, send)
        landed.extend((time.monotonic(), one.seconds()) for one in started)

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
        started.append(Gateway(port, process, landed))
        yield started[0]


def days_ago(days: int) -> str:
    """The UTC date some days ago."""
    return time.strftime("%Y-%m-%d", time.gmtime(time.time() - days * DAY))


def copied(one: Gateway, path: str, **parameters: str | int) -> tuple[str, int]:
    """Copy until up to date. Returns the token and the number of calls."""
    with one.client as client:
        page = client.get(path, params=parameters).raise_for_status().json()["page"]
        del parameters["start"]
        while not page["upToDate"]:
            page = client.get(path, params=parameters | {"since": page["next"]}).raise_for_status().json()["page"]
    return page["next"], page["calls"]


def poll() -> str:
    """Poll 1,000 times, and return the processor time of a poll and its bytes."""
    with gateway(Options(calls_per_day=200)) as one, one.client as client:
        token, _ = copied(one, FEED, start=days_ago(30))
        times, size = [], 0
        for _ in range(10):
            began = one.seconds()
            for _ in range(100):
                size = len(client.get(FEED, params={"since": token}).content)
            times.append((one.seconds() - began) / 100)
        client.get(FEED, params={"since": token})
    return f"{statistics.median(times) * 1e3:.1f} ms, {size:,} bytes"


def request_of(target: str, *headers: str) -> bytes:
    """A request without a body."""
    return "\r\n".join([f"GET {target} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


class Told:
    """The delay of the last consumer, and the processor time of the gateway until then, for each change in seconds."""

    def __init__(self, one: Gateway) -> None:
        self._gateway = one
        self.times: list[tuple[float, float]] = []

    def add(self, first: float, last: float) -> None:
        """Add a change that reached the first and the last of the consumers at these instants."""
        landed, spent = max(instant for instant in self._gateway.landed if instant[0] < first)
        self.times.append((last - landed, self._gateway.seconds() - spent))

    def __str__(self) -> str:
        last, spent = (statistics.median(times) * 1e3 for times in zip(*self.times, strict=True))
        return f"the last is told after {last:.0f} ms, {spent:.0f} ms of processor time"


async def waits(number: int) -> str:
    """Let consumers wait for changes, and time the last answer after the reply that brought the change."""
    with gateway(Options(calls_per_day=20_000, history=2)) as one:
        token, _ = await asyncio.to_thread(copied, one, FEED, start=days_ago(0))
        times = Told(one)
        posts: list[int] = []
        while len(posts) < REFRESHES:
            before = len(one.landed)
            told: list[tuple[float, str]] = []

            async def consumer(since: str, told: list[tuple[float, str]] = told) -> None:
                reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
                writer.write(request_of(f"{FEED}?since={since}&wait=60", "Connection: close"))
                body = (await reader.read()).partition(b"\r\n\r\n")[2]
                told.append((time.monotonic(), json.loads(body)["page"]["next"]))
                writer.close()

            await asyncio.gather(*[consumer(token) for _ in range(number)])
            last, token = max(told)
            posts.append(len(one.landed) - before)
            times.add(min(told)[0], last)
    return f"{max(posts)} POSTs for each change at most, {times}"


class Stream(asyncio.Protocol):
    """A consumer of a stream. `times` are the instants at which it was up to date."""

    MARK = b"event: up-to-date"

    def __init__(self) -> None:
        self.times: list[float] = []
        self._tail = b""  # of the last packet, in which an event may begin

    def data_received(self, data: bytes) -> None:
        """Note when an answer ends."""
        data = self._tail + data
        found = self.MARK in data
        if found:
            self.times.append(time.monotonic())
        self._tail = b"" if found else data[-len(self.MARK) :]


async def streams(number: int) -> str:
    """Open streams, and time the last event after the reply that brought it."""
    with gateway(Options(calls_per_day=20_000, history=2)) as one:
        token, _ = await asyncio.to_thread(copied, one, FEED, start=days_ago(0))
        idle = one.resident()
        request = request_of(f"{FEED}?since={token}", "Accept: text/event-stream")
        loop = asyncio.get_running_loop()
        opened: list[Stream] = []
        transports: list[asyncio.BaseTransport] = []

        async def all_told() -> None:
            while not all(stream.times for stream in opened):  # noqa: ASYNC110 - the load generator polls
                await asyncio.sleep(0.05)

        while len(opened) < number:
            for _ in range(min(50, number - len(opened))):
                connection = await loop.create_connection(Stream, "127.0.0.1", one.port)
                transports.append(connection[0])
                opened.append(connection[1])
                connection[0].write(request)
            await all_told()
        times = Told(one)
        while len(times.times) < REFRESHES:
            for stream in opened:
                stream.times.clear()
            await all_told()
            instants = [stream.times[0] for stream in opened]
            times.add(min(instants), max(instants))
        held = one.resident()
        for transport in transports:
            transport.close()
    return f"{held:.0f} MiB ({idle:.0f} MiB before), {times}"


def every() -> str:
    """Follow all clients by a stream, and count the events that each refresh brings."""
    settings = {"GATEWAY_CACHE_BYTES": "1GiB", "GATEWAY_UPSTREAM_MAX_SPAN": "1h", "GATEWAY_REQUEST_DEADLINE": "600s"}
    with gateway(Options(clients=1000, calls_per_day=200, history=2), **settings) as one, one.client as client:
        token, calls = copied(one, "/changes", client="*", start=days_ago(0), limit=10_000)
        told: Counter[str] = Counter()
        size, spent = 0, one.seconds()
        headers = {"Accept": "text/event-stream"}
        with client.stream("GET", "/changes", params={"client": "*", "since": token}, headers=headers) as answer:
            for line in answer.iter_lines():
                size += len(line) + 1
                told[line.removeprefix("event: ")] += line.startswith("event: ")
                if told["up-to-date"] > REFRESHES:
                    break
        events = ", ".join(f"{count} {name}" for name, count in told.most_common() if count)
        spent = (one.seconds() - spent) / told["up-to-date"]
        return (
            f"{events} and {size:,} bytes over {calls:,} calls, {spent:.2f} s of processor time each, "
            f"{one.resident():.0f} MiB"
        )


def copy() -> str:
    """Copy calls that are in the cache by an export and by the feed, and compare calls for each second of processor."""
    start = days_ago(3)
    with gateway(Options(calls_per_day=5000, history=5)) as one, one.client as client:
        rates: dict[str, list[float]] = {"export": [], "feed": []}
        for _ in range(1 + REFRESHES):
            spent = one.seconds()
            body = client.get(f"/clients/{CODE}/calls", params={"start": start, "format": "ndjson"}).content
            rates["export"].append((body.count(b"\n") - 1) / (one.seconds() - spent))
            before, spent = one.resident("VmHWM"), one.seconds()
            calls = copied(one, FEED, start=start, limit=10_000)[1]
            rates["feed"].append(calls / (one.seconds() - spent))
        export, feed = (statistics.median(found[1:]) for found in rates.values())
        peak = one.resident("VmHWM")
    return (
        f"{feed:,.0f} calls a second of {calls:,}, {feed / export:.2f} of the export, "
        f"{peak - before:.0f} MiB above {before:.0f} MiB"
    )


def run(measurement: Coroutine[None, None, str]) -> str:
    """Run a measurement on a fast event loop, so that the load generator does not limit it."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(measurement)


CASES: dict[str, tuple[str, Callable[[int], str]]] = {
    "poll": ("a poll that brings nothing (1 ms, 2,560 bytes)", lambda _: poll()),
    "waits": ("consumers that wait (1 POST, 250 ms for 1,000)", lambda number: run(waits(number))),
    "streams": ("streams (300 MiB and 500 ms for 5,000)", lambda number: run(streams(number))),
    "every": ("changes of 1,000 clients (no replace)", lambda _: every()),
    "copy": ("an initial copy (0.5 of the export)", lambda _: copy()),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the change feed.")
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], help="default: all")
    parser.add_argument("--number", type=int, default=1000, help="of consumers that wait, and of streams")
    options = parser.parse_args()
    for name in options.cases or CASES:
        title, case = CASES[name]
        print(f"{title}: {case(options.number)}", flush=True)


if __name__ == "__main__":
    main()
