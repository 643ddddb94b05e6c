"""Translation of XML to calls and to NDJSON, compared with xmltodict.parse: speed, memory, blocking of the event loop.

Measured on the three reply layouts of `benchmarks.replies`. Ratios are medians over rounds in which the contenders take
turns. Times are CPU times.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import msgspec
import uvicorn
import xmltodict

from benchmarks.replies import HEAD, LAYOUTS, TAIL, client, document_call, field_call, reply
from benchmarks.support import free_port, parse_reply, reachable, running, wait_for
from gateway import app
from gateway.callbutton.reply import Reply, ReplyParser
from gateway.settings import Settings

PIECE = 65536  # bytes
ROUNDS = 5
CALLS = 2000  # in a round


def pieces(body: bytes) -> Iterator[bytes]:
    return (body[at : at + PIECE] for at in range(0, len(body), PIECE))


def calls_of(body: bytes) -> Reply:
    """Parse a reply as the gateway does. The field layouts have no statuses, so none are requested there."""
    return parse_reply(body, status=b"<ReviewedStatus>" in body[:PIECE])


def ndjson_of(body: bytes) -> bytes:
    """Parse a reply, and render its calls as NDJSON."""
    return b"".join(map(msgspec.json.Encoder().encode_lines, calls_of(body).calls.values()))


def seconds(work: Callable[[bytes], object], body: bytes) -> float:
    began = time.process_time()
    work(body)
    return time.process_time() - began


def speed() -> None:
    print("## Speed: microseconds per call, and the ratio to xmltodict.parse; targets 0.5 for calls, 0.7 for NDJSON\n")
    print(f"{'layout':>12} {'bytes':>6} {'xmltodict':>10} {'calls':>14} {'NDJSON':>14}")
    for layout in LAYOUTS:
        body = reply(layout, CALLS)
        rounds = [[seconds(work, body) for work in (xmltodict.parse, calls_of, ndjson_of)] for _ in range(ROUNDS)]
        alone, calls, lines = (statistics.median(column) / CALLS * 1e6 for column in zip(*rounds, strict=True))
        of_calls = statistics.median(ours / theirs for theirs, ours, _ in rounds)
        of_lines = statistics.median(ours / theirs for theirs, _, ours in rounds)
        first = f"{layout:>12} {len(body) // CALLS:>6} {alone:>10.1f}"
        print(f"{first} {calls:>8.1f} {of_calls:>5.2f} {lines:>8.1f} {of_lines:>5.2f}")


def memory(count: int = 100_000) -> None:
    """Measure peak memory while a reply arrives in pieces, including the answer, in a separate process."""
    print(f"\n## Memory: {count} calls, target 4 times the size of the JSON\n")
    for layout in ("document", "field"):
        script = f"from benchmarks.translate import measure_memory; measure_memory({layout!r}, {count})"
        output = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout
        peak, answer = map(int, output.split())
        print(f"{layout}: peak over idle {peak / 1e6:.0f} MB, JSON {answer / 1e6:.0f} MB: {peak / answer:.2f} times")


def streamed(layout: str, count: int) -> Iterator[bytes]:
    """Generate a reply of one client lazily, in blocks of 1000 calls."""
    draw = random.Random(1)
    calls = (document_call(index) if layout == "document" else field_call(index, draw) for index in range(count))
    start, end = client(100, "|").split("|")
    yield (HEAD + start).encode()
    while block := "".join(islice(calls, 1000)):
        yield block.encode()
    yield (end + TAIL).encode()


def measure_memory(layout: str, count: int) -> None:
    """Print the peak resident memory above idle, and the size of the answer, both in bytes."""
    ndjson_of(reply(layout, 1000))
    idle = peak_memory()
    parser = ReplyParser(status=layout == "document")
    for block in streamed(layout, count):
        for piece in pieces(block):
            parser.feed(piece)
    (calls,) = parser.close().calls.values()
    answer = msgspec.json.encode({"data": calls})
    print(peak_memory() - idle, len(answer))


def peak_memory() -> int:
    """The peak resident memory in bytes, from the kernel. getrusage would include the parent's."""
    status = Path("/proc/self/status").read_text("ascii")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


class Upstream:
    """A server that answers every request with one long reply, as fast as the client reads."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    async def __call__(self, _: object, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        """Send the reply."""
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/xml")]})
        for piece in pieces(self.body):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def serve_upstream(layout: str, count: int, port: int) -> None:
    """Serve the upstream. Runs in a separate process, so that it does not block the measured event loop."""
    uvicorn.run(Upstream(reply(layout, count)), port=port, log_level="critical", lifespan="off")


def event_loop(layout: str, count: int = 10_000) -> None:
    """Measure how long the event loop is blocked, and the latency of /healthz, while a long reply arrives."""
    port = free_port()
    script = f"from benchmarks.translate import serve_upstream; serve_upstream({layout!r}, {count}, {port})"
    with running([sys.executable, "-c", script], Path(os.devnull)):
        wait_for(lambda: reachable(port), "the upstream listens")
        rounds = [asyncio.run(_latencies(f"http://127.0.0.1:{port}/xml.jsp")) for _ in range(5)]
    idle, busy, held = zip(*rounds, strict=True)
    print(f"\n## Event loop: while a reply of {count} calls ({layout}) arrives, five runs; target 10 ms\n")
    median, worst = statistics.median(held) * 1e3, max(held) * 1e3
    print(f"longest block of the loop, in CPU time: median {median:.1f} ms, worst {worst:.1f} ms")
    for name, found in (("meanwhile", busy), ("idle", idle)):
        times = [one for times in found for one in times]
        print(f"/healthz {name}: median {statistics.median(times) * 1e3:.1f} ms, worst {max(times) * 1e3:.1f} ms")


async def _latencies(url: str) -> tuple[list[float], list[float], float]:
    application = app.create(Settings(upstream_url=url, auth="none", log_level="error"))
    window = {"start": "2026-06-01T00:00:00Z", "end": "2026-06-30T00:00:00Z", "include": "status", "sort": "startTime"}
    transport = httpx.ASGITransport(app=application)  # type: ignore[arg-type]
    held = 0.0

    async def watch() -> None:
        nonlocal held
        while True:
            before = time.thread_time()
            await asyncio.sleep(0.001)
            held = max(held, time.thread_time() - before)

    async with httpx.AsyncClient(transport=transport, base_url="http://gateway", timeout=60) as client:

        async def health() -> float:
            """Measure /healthz, including one turn of the loop, which a request over a socket also waits for."""
            before = time.perf_counter() + 0.001
            await asyncio.sleep(0.001)
            (await client.get("/healthz")).raise_for_status()
            return time.perf_counter() - before

        idle = [await health() for _ in range(100)]
        fetching = asyncio.create_task(client.get("/clients/8005550100/calls", params=window))
        watching = asyncio.create_task(watch())
        busy = []
        while not fetching.done():
            busy.append(await health())
        watching.cancel()
        assert len((await fetching).json()["data"]) == 100
    return idle, busy, held


def main() -> None:
    speed()
    memory()
    for layout in LAYOUTS:
        event_loop(layout)


if __name__ == "__main__":
    main()
