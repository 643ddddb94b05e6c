"""How much more two workers answer than one, side by side in one run. Needs `wrk`.

On two cores the load generator takes part of what it measures, and so does whatever else runs there. So each case says
what was answered, how many cores' worth of processor the gateways had for it (the workers' cache included), and what
a request cost of it. If two workers have a core each, the rate grows by twice the ratio of these costs: the estimate,
whose bar is 1.7. The heavier a request is, the less the generator takes, and the nearer the rates come to it. A loop
without any gateway, in one process and in two, says what the machine had to give. Medians are shown, and of the
rates also the round in which the two had most of the processor.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.serving import EXACT, MOVING, SIMULATOR, cpu_seconds, get
from tests.processes import answers, children, free_port, gateway, reachable, running, wait_for

ROUNDS, SECONDS, CONNECTIONS = 5, 4, 16
BAR = 1.7
SUMMARY = "/clients/8005550100/calls/summary?range=last_7_days&interval=day&groupBy=result"
LOOP = """\
import sys, time
end, turns = time.perf_counter() + float(sys.argv[1]), 0
while time.perf_counter() < end:
    turns += len({str(number): number for number in range(2000)}) // 2000
print(turns, time.process_time())
"""
ANEW = ("Cache-Control: max-age=60",)  # not as a repeat
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "an exact repeat": (EXACT, ()),
    "a page from the ledger": (MOVING, ANEW),
    "a summary of 7 days": (SUMMARY, ANEW),
}


class Measured(NamedTuple):
    """Requests a second, cores' worth of processor that the gateway had, microseconds of it a request."""

    rate: float
    cores: float
    cpu: float


Turn = tuple[Measured, Measured]  # one worker's, two workers'


@contextmanager
def serving(upstream: str, workers: int, folder: Path) -> Iterator[tuple[int, str]]:
    """Run a gateway; gives its process and address."""
    port = free_port()
    settings = {"UPSTREAM_URL": upstream, "AUTH": "none", "SIGNING_KEY": secrets.token_hex(16), "PORT": str(port)}
    settings |= {"LOG_FORMAT": "json", "DRAIN_DELAY": "0s", "FRESH_MIN": "10m"}
    named = {f"GATEWAY_{name}": text for name, text in settings.items()}
    log = folder / f"{workers}.log"
    with running(gateway("serve", "--workers", str(workers)), log, **named) as process:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/readyz"), "the gateway is ready")
        yield process.pid, f"http://127.0.0.1:{port}"


def processor(pid: int) -> float:
    """Seconds of processor that a gateway has had so far: its process group, and its cache, which has its own."""
    others = [child for child in children(pid) if os.getpgid(child) == child]
    return sum(map(cpu_seconds, [os.getpgid(pid), *others]))


def load(pid: int, url: str, headers: tuple[str, ...], seconds: int) -> Measured:
    options = [option for header in headers for option in ("-H", header)]
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "10s", *options, url]
    spent, began = processor(pid), time.perf_counter()
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    spent, took = processor(pid) - spent, time.perf_counter() - began
    if (bad := re.search(r"Non-2xx or 3xx responses: (\d+)|Socket errors: (.*)", text)) is not None:
        raise RuntimeError(f"{url}: {bad[0]}")
    rate, count = re.search(r"Requests/sec:\s+([\d.]+)", text), re.search(r"(\d+) requests in", text)
    assert rate
    assert count
    return Measured(float(rate[1]), spent / took, spent / int(count[1]) * 1e6)


def loop(processes: int, seconds: int) -> Measured:
    """Run a loop in so many processes at once."""
    command = [sys.executable, "-c", LOOP, str(seconds)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    told = [one.communicate()[0].split() for one in started]
    turns, spent = (sum(map(float, column)) for column in zip(*told, strict=True))
    return Measured(turns / seconds, spent / seconds, spent / turns * 1e6)


def medians(rows: list[Measured]) -> Measured:
    return Measured(*map(statistics.median, zip(*rows, strict=True)))


def measure(rounds: int, seconds: int) -> dict[str, list[Turn]]:
    """What one worker and two did, turn by turn."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = free_port()
        stack.enter_context(running(gateway("simulate", "--port", str(port)), folder / "simulator.log"))
        wait_for(lambda: reachable(port), "the simulator listens")
        both = [stack.enter_context(serving(SIMULATOR.format(port=port), number, folder)) for number in (1, 2)]
        found: dict[str, list[Turn]] = {}
        for name, (path, headers) in CASES.items():
            for pid, address in both:
                for _ in range(20):
                    get(address + path, headers)  # each over a connection of its own, so that both workers have it
                load(pid, address + path, headers, 1)
            found[name] = []
            for _ in range(rounds):
                one, two = (load(pid, address + path, headers, seconds) for pid, address in both)
                found[name].append((one, two))
                print(".", end="", flush=True, file=sys.stderr)
        found["a loop, no gateway"] = [(loop(1, seconds), loop(2, seconds)) for _ in range(rounds)]
        print(file=sys.stderr)
        return found


def grown(one: Measured, two: Measured) -> str:
    return f"{two.rate / one.rate:.2f} times ({two.cores:.2f} cores for {one.cores:.2f})"


def main() -> bool:
    """Print the figures as Markdown; returns whether each estimate is over the bar."""
    if not shutil.which("wrk"):
        print("workers are left out: no wrk here")
        return True
    print("| answered | one worker | two | rate | the best round | estimate with a core each |\n|" + "---|" * 6)
    good = True
    for name, turns in measure(ROUNDS, SECONDS).items():
        one, two = (medians(list(row)) for row in zip(*turns, strict=True))
        estimate = 2 * one.cpu / two.cpu
        good = good and estimate >= BAR
        shown = [f"{each.rate:.0f}/s, {each.cpu:.0f} µs each" for each in (one, two)]
        shown += [grown(one, two), grown(*max(turns, key=lambda turn: turn[1].cores)), f"{estimate:.2f} times"]
        print(f"| {name} | {' | '.join(shown)} |")
    return good


if __name__ == "__main__":
    sys.exit(not main())
