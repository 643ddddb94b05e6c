"""A miss of 100 calls and the start of the process: wall time, CPU time, memory.

A miss is compared with `xmltodict.parse` of the same reply in the same round. Its layout is `field`. The process starts
from compiled bytecode, as in the image. CPU times are comparable on a busy machine, wall times are not.

    python -m benchmarks.cold [ROUNDS]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import httpx
import xmltodict

from benchmarks.peers import POST
from benchmarks.serving import SIMULATOR, cpu_seconds, gateway_environment, get, running
from benchmarks.support import free_port

MISSES = 150  # in a round
TARGET_MISS = 2.5 / 4  # of the time that `xmltodict.parse` takes
TARGET_START, TARGET_RESIDENT = 0.7, 90  # seconds, MiB


class Miss(NamedTuple):
    """A miss of 100 calls, in milliseconds: medians, and for `cpu` the mean."""

    direct: float  # wall time of the reply, from the upstream
    through: float  # wall time of the response, from the gateway
    cpu: float  # CPU time of the gateway
    reference: float  # CPU time of `xmltodict.parse` of the reply


class Start(NamedTuple):
    """Wall and CPU seconds from the start to the first response, and MiB resident after `/openapi.json`."""

    wall: float
    cpu: float
    resident: float


def misses(count: int = MISSES) -> Miss:
    """Measure misses, each with the reply directly from the upstream and `xmltodict.parse` of it."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        behind, port = free_port(), free_port()
        command = (sys.executable, "-m", "benchmarks.peers", "upstream", str(behind), "-")
        stack.enter_context(running(behind, *command, log=folder / "up.log"))
        upstream = SIMULATOR.format(port=behind)
        environment, opened = gateway_environment(upstream, folder)
        settings = environment | {"GATEWAY_PORT": str(port)}
        serve = (sys.executable, "-m", "gateway", "serve")
        gateway = stack.enter_context(running(port, *serve, log=folder / "gateway.log", **settings))
        client = stack.enter_context(httpx.Client(headers=dict([opened.split(": ", 1)]), timeout=60))
        url = f"http://127.0.0.1:{port}/clients/8005550100/calls"
        client.get(f"http://127.0.0.1:{port}/healthz")
        before, rows = cpu_seconds(gateway.pid), []
        for day in range(count):
            noon = datetime(2025, 1, 1, 18, tzinfo=UTC) + timedelta(days=day)
            wall = noon.strftime("%m/%d/%Y 00:00:00")
            window = {"start": f"{noon:%Y-%m-%dT07:00:00Z}", "end": f"{noon:%Y-%m-%dT23:00:00Z}", "limit": "100"}
            began = time.perf_counter()
            reply = client.post(upstream, content=POST.format(code="8005550100", start=wall, end=wall))
            between = time.perf_counter()
            answer = client.get(url, params=window)
            ended = time.perf_counter()
            assert len(answer.raise_for_status().json()["data"]) == 100
            parsing = time.process_time()
            xmltodict.parse(reply.raise_for_status().content)
            rows.append((between - began, ended - between, time.process_time() - parsing))
        spent = (cpu_seconds(gateway.pid) - before) / count
        direct, through, reference = map(statistics.median, zip(*rows, strict=True))
        return Miss(direct * 1e3, through * 1e3, spent * 1e3, reference * 1e3)


def start(bytecode: Path) -> Start:
    """Start the gateway, with compiled bytecode in a folder, which the first start fills."""
    with tempfile.TemporaryDirectory() as name:
        environment, _ = gateway_environment("http://127.0.0.1:1/xml.jsp", Path(name))
        port = free_port()
        settings = environment | {
            "GATEWAY_PORT": str(port),
            "PYTHONPYCACHEPREFIX": str(bytecode),
            "PYTHONDONTWRITEBYTECODE": "",
        }
        began = time.perf_counter()
        with running(port, sys.executable, "-m", "gateway", "serve", log=Path(name) / "log", **settings) as process:
            get(f"http://127.0.0.1:{port}/healthz")
            wall, cpu = time.perf_counter() - began, cpu_seconds(process.pid)
            get(f"http://127.0.0.1:{port}/openapi.json")
            status = Path(f"/proc/{process.pid}/status").read_text("ascii")
            return Start(wall, cpu, int(status.split("VmRSS:")[1].split()[0]) / 1024)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    for _ in range(rounds):
        one = misses()
        print(
            f"A miss adds {one.through - one.direct:.1f} ms to the upstream's {one.direct:.1f} ms, and takes "
            f"{one.cpu:.1f} ms of CPU time. xmltodict.parse takes {one.reference:.1f} ms: "
            f"{one.cpu / one.reference:.2f} times that; target {TARGET_MISS:.2f}."
        )
    with tempfile.TemporaryDirectory() as bytecode:
        start(Path(bytecode))
        started = [start(Path(bytecode)) for _ in range(2 * rounds)]
    wall, cpu, resident = map(min, zip(*started, strict=True))
    print(f"The first response comes {wall:.2f} s after the start, of which {cpu:.2f} s are CPU time; target", end=" ")
    print(f"{TARGET_START} s. {resident:.0f} MiB are resident; target {TARGET_RESIDENT} MiB.")


if __name__ == "__main__":
    main()
