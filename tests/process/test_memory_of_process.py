"""The memory of a gateway process stays within its bound, whatever consumers send.

HOSTILE_KEYS sets how many distinct keys of each kind are sent; 100,000 take an hour.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from pathlib import Path

import httpx

from gateway.simulator.server import PATH, Options, create
from tests.process.served import REAL, Served, served
from tests.support.stand import serving

KEYS = int(os.environ.get("HOSTILE_KEYS", "100"))
CACHE_BYTES = 16 * 2**20
CALLS = "/clients/8005550100/calls"
HOUR = "start=2026-09-01T00:00:00Z&end=2026-09-01T01:00:00Z"
ZONES = ("UTC", "America/Chicago", "Asia/Kolkata", "Australia/Lord_Howe", "Pacific/Chatham", "Asia/Kathmandu")
GROUPS = ("result", "campaign", "did", "phoneType", "client")
WORKERS = 8  # connections that send at the same time
Request = tuple[str, dict[str, str]]  # path and headers


def summary(number: int) -> Request:
    """A summary with a distinct zone, grouping and filter, of up to 25 days."""
    day = f"start=2026-09-01T00:00:00Z&end=2026-09-{2 + number % 24:02}T00:00:00Z"
    kind = f"tz={ZONES[number % 6]}&groupBy={GROUPS[number % 5]}&minDuration={number}&interval=day"
    return f"{CALLS}/summary?{day}&{kind}", {}


KINDS: dict[str, Callable[[int], Request]] = {
    "Accept": lambda n: (f"{CALLS}?{HOUR}&limit=1", {"accept": f"application/json, text/x{n}, {'a' * 6000}"}),
    "Origin": lambda n: (f"{CALLS}?{HOUR}&limit=1", {"origin": f"https://{n}.example", "user-agent": "u" * 6000}),
    "queries": lambda n: (f"{CALLS}?{HOUR}&ani={n}&did={'5' * 200}", {}),
    "summaries": summary,
    "codes": lambda n: (f"/clients/{n:064}/calls?{HOUR}", {}),
    "windows": lambda n: (
        f"{CALLS}?start=2026-09-02T00:00:00Z&end=2026-09-02T{n // 3600 % 24:02}:{n // 60 % 60:02}:{n % 60:02}Z",
        {},
    ),
    "cursors": lambda n: (f"{CALLS}?cursor={base64.urlsafe_b64encode(str(n).encode() * 40).decode().rstrip('=')}", {}),
    "unknown calls": lambda n: (f"{CALLS}/{n}?{HOUR}", {}),
}


def resident(process: int) -> int:
    """The resident memory of a process in bytes."""
    status = Path(f"/proc/{process}/status").read_text("ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def send(gateway: Served, kind: Callable[[int], Request]) -> int:
    """Send the requests of a kind. Returns the largest resident memory, in bytes."""
    numbers = iter(range(KEYS))

    def work(_: int) -> int:
        largest = 0
        with closing(HTTPConnection(httpx.URL(gateway.address).netloc.decode(), timeout=120)) as connection:
            for number in numbers:
                path, headers = kind(number)
                connection.request("GET", path, headers=headers)
                answer = connection.getresponse()
                body = answer.read()
                assert answer.status in (200, 400, 404, 503), body
                if number % 100 == 0:
                    largest = max(largest, resident(gateway.process.pid))
        return largest

    with ThreadPoolExecutor(WORKERS) as pool:
        largest = max(pool.map(work, range(WORKERS)))
    return max(largest, resident(gateway.process.pid))


def test_hostile_keys_of_every_kind_leave_the_memory_within_its_bound(tmp_path: Path):
    with ExitStack() as stack:
        upstream = f"http://127.0.0.1:{stack.enter_context(serving(create(Options(calls_per_day=50))))}{PATH}"
        gateway = stack.enter_context(served(upstream, tmp_path, bounds=REAL, cache_bytes=f"{CACHE_BYTES}B"))
        for name, kind in KINDS.items():
            largest = send(gateway, kind)
            print(f"{name}: {largest / 2**20:.0f} MiB")  # noqa: T201 - for the full run, with -s
            assert largest < 1.5 * CACHE_BYTES + 100 * 2**20, name
