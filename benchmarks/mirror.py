"""`mirror`: the time and the memory of a first copy into SQLite and PostgreSQL.

The gateway runs in its own process and has read the calls before: the figures include the gateway's feed, but not the
simulator. PostgreSQL is left out without a URL of an empty database.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx

from benchmarks.support import free_port, reachable, running, serving, wait_for
from gateway.simulator.server import PATH, Options, create

DAYS = 100  # of calls
CLIENTS = 5
CACHE = "6GiB"  # of the gateway: it holds all calls


def copied(url: str, address: str, start: str) -> str:
    """Copy, and return the time and the memory."""
    began = time.monotonic()
    command = [sys.executable, "-m", "gateway", "mirror", url, "--gateway", address, "--start", start]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        memory = 0
        while process.poll() is None:
            status = Path(f"/proc/{process.pid}/status").read_text("ascii")
            found = re.search(r"VmHWM:\s+(\d+) kB", status)
            memory = max(memory, int(found[1]) if found else 0)
            time.sleep(0.1)
        assert process.stderr is not None
        assert process.returncode == 0, process.stderr.read()
    return f"{time.monotonic() - began:.0f} s, {memory / 1024:.0f} MiB"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("calls", type=int, nargs="?", default=1_000_000)
    arguments.add_argument("--postgresql", metavar="URL", help="an empty database")
    given = arguments.parse_args()
    options = Options(clients=CLIENTS, calls_per_day=given.calls // DAYS // CLIENTS, plain=True, history=DAYS + 1)
    start = f"{datetime.now(UTC) - timedelta(days=DAYS):%Y-%m-%d}"
    port = free_port()
    with serving(create(options)) as upstream, tempfile.TemporaryDirectory() as folder:
        variables = {
            "GATEWAY_UPSTREAM_URL": f"http://127.0.0.1:{upstream}{PATH}",
            "GATEWAY_AUTH": "none",
            "GATEWAY_PORT": str(port),
            "GATEWAY_SIGNING_KEY": "k" * 32,
            "GATEWAY_CACHE_BYTES": CACHE,
            "GATEWAY_REQUEST_DEADLINE": "1h",
            "GATEWAY_UPSTREAM_TIMEOUT": "10m",  # the simulator computes every call
            "GATEWAY_UPSTREAM_DEADLINE": "1h",
            "GATEWAY_LOG_LEVEL": "warning",
        }
        address = f"http://127.0.0.1:{port}"
        with running([sys.executable, "-m", "gateway", "serve"], Path(folder) / "log", **variables):
            wait_for(lambda: reachable(port), "the gateway listens")
            began = time.monotonic()
            page = httpx.get(
                f"{address}/changes", params={"client": "*", "start": start, "limit": 1}, timeout=3600
            ).json()
            assert "page" in page, page
            print(f"the gateway reads about {given.calls:,} calls in {time.monotonic() - began:.0f} s")
            print("SQLite:", copied(f"sqlite:///{folder}/calls.db", address, start), flush=True)
            if given.postgresql:
                print("PostgreSQL:", copied(given.postgresql, address, start), flush=True)


if __name__ == "__main__":
    main()
