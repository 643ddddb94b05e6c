"""The memory of `serve` as a process while clients do not read."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.process.served import CODE, REAL, Serve, Served, request
from tests.support.processes import wait_for

MIB = 1024**2
CACHE = 64 * MIB
BOUND = 1.5 * CACHE + 100 * MIB
PATIENT = dict.fromkeys(  # no answer is late, however slow the machine is: a 504 would be a request that starves
    ("request_deadline", "upstream_timeout", "upstream_idle_timeout", "upstream_deadline"), "20m"
)
CACHED = f"/clients/{CODE}/calls?start=2026-09-01&end=2026-09-01T01:00"
CHANGES = f"/clients/{CODE}/changes?start={datetime.now(UTC) - timedelta(days=5):%Y-%m-%d}"  # of 5,000 calls
UNREAD: dict[str, Any] = {
    "exports": (f"/clients/{CODE}/calls?start=2026-08-01&end=2026-09-01&format=ndjson", 600),  # of 30 MB
    "lists": (f"/clients/{CODE}/calls?start=2026-09-01&end=2026-10-01", 450),
    "changes": (CHANGES, 450),
    "streams": (CHANGES, 450, "Accept: text/event-stream"),
}


def resident(gateway: Served) -> int:
    """The resident memory of the process in bytes."""
    lines = Path(f"/proc/{gateway.process.pid}/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


@contextmanager
def unread(gateway: Served, path: str, count: int, *lines: str) -> Iterator[list[socket.socket]]:
    """Send requests from as many addresses as there are requests, and read nothing."""
    with ExitStack() as stack:
        clients = []
        for number in range(count):
            client = stack.enter_context(
                gateway.connect(buffer=2048, source=f"127.0.{1 + number // 250}.{number % 250}")
            )
            client.sendall(request(path if "format" in path else f"{path}&limit={1000 - number}", *lines))
            clients.append(client)
        yield clients


@pytest.mark.parametrize("kind", UNREAD)
def test_what_is_not_read_is_bounded_and_others_are_answered(serve: Serve, kind: str):
    gateway = serve(cache_bytes="64MiB", consumer_exports="1000", bounds=REAL, **PATIENT)
    path, count, *lines = UNREAD[kind]
    peak = resident(gateway)
    with httpx.Client(base_url=gateway.address, timeout=600) as other, ExitStack() as stack:
        assert [other.get(path).status_code for path in (CHANGES, CACHED)] == [200, 200]
        reads = itertools.count(1)
        waiting = set(stack.enter_context(unread(gateway, path, count, *lines)))

        def all_begun() -> bool:
            nonlocal peak
            peak = max(peak, resident(gateway))
            assert peak < BOUND, f"{peak / MIB:.0f} MiB"
            assert other.get(f"{CACHED}&limit={next(reads) % 1000 + 1}").status_code == 200
            for client in list(itertools.islice(waiting, 20)):
                client.setblocking(False)
                try:
                    assert client.recv(12) in (b"", *(b"HTTP/1.1 %d" % status for status in (200, 429, 503)))
                    waiting.remove(client)
                except BlockingIOError:
                    break
            return not waiting

        wait_for(all_begun, "every request is answered or refused", 600)
        assert other.get("/healthz").status_code == 200
        assert other.get(f"{CHANGES}&limit=1").status_code == 200
    assert peak < BOUND
