"""Every process around a mirror is killed at random instants. After quiet the table equals the upstream each time.

The server edits, deletes and restores calls meanwhile. MIRROR_KILLS=200 runs that many kills for each database.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from gateway.simulator.server import PATH
from tests.support.changing_simulator import OPTIONS, ChangingSimulator, frozen_clock
from tests.support.databases import Database
from tests.support.processes import free_port, gateway, wait_for
from tests.support.servers import Postgres, postgres

KILLS = int(os.environ.get("MIRROR_KILLS", "4"))
LONGEST = 2.5  # seconds between two kills: starting, the first page, waiting
QUIET = 240  # seconds within which the copy has caught up, on a busy machine


class Process:
    """A program that is started again whenever it has ended."""

    def __init__(self, command: list[str | Path], log: Path, **variables: str) -> None:
        self._command, self._log = command, log
        plain = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
        self._environment = plain | variables
        self.process: subprocess.Popen[bytes] | None = None

    def keep_running(self) -> None:
        if self.process is None or self.process.poll() is not None:
            with self._log.open("ab") as log:
                self.process = subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log)

    def kill(self) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGKILL)
            self.process.wait()


class Server:
    """PostgreSQL, as one of the programs."""

    def __init__(self, server: Postgres) -> None:
        self._server = server

    def keep_running(self) -> None:
        if self._server.process.poll() is not None:
            self._server.start()

    def kill(self) -> None:
        self._server.kill()


@contextmanager
def programs(url: str, frozen: Path, start: str, folder: Path) -> Iterator[dict[str, Process | Server]]:
    """The simulator, the gateway and the mirror."""
    upstream, port = free_port(), free_port()
    variables = {
        "GATEWAY_UPSTREAM_URL": f"http://127.0.0.1:{upstream}{PATH}",
        "GATEWAY_AUTH": "none",
        "GATEWAY_PORT": str(port),
        "GATEWAY_SIGNING_KEY": "k" * 32,
        "GATEWAY_FRESH_MIN": "1s",
        "GATEWAY_FRESH_MAX": "1s",
        "GATEWAY_LOG_LEVEL": "warning",
    }
    simulator: list[str | Path] = [sys.executable, "-m", "tests.support.changing_simulator", str(upstream), frozen]
    mirror = gateway("mirror", url, "--follow", "--start", start, "--gateway", f"http://127.0.0.1:{port}")
    running: dict[str, Process | Server] = {
        "upstream": Process(simulator, folder / "upstream.log"),
        "gateway": Process(gateway("serve"), folder / "gateway.log", **variables),
        "mirror": Process(mirror, folder / "mirror.log"),
    }
    try:
        yield running
    finally:
        for program in running.values():
            program.kill()


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_after_kills_at_random_instants_the_table_equals_the_upstream(kind: str, tmp_path: Path):
    draw = random.Random(os.environ.get("MIRROR_SEED", "1"))
    frozen = tmp_path / "frozen"
    midnight = (datetime.now(UTC) - timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    oracle = ChangingSimulator(OPTIONS, lambda: frozen_clock(frozen))

    def copied() -> bool:
        for program in running.values():
            program.keep_running()
        with suppress(psycopg.Error, sqlite3.Error):  # the server starts, or there are no tables yet
            return database.edited() == expected
        return False

    with postgres() if kind == "postgresql" else nullcontext() as server:
        database = Database(tmp_path, server)
        with programs(database.url, frozen, f"{midnight:%Y-%m-%d}", tmp_path) as running:
            if server is not None:
                running["server"] = Server(server)
            for number in range(KILLS):
                for program in running.values():
                    program.keep_running()
                victims = list(running) if number else ["mirror"]
                time.sleep(draw.uniform(0, LONGEST))  # the instant of a kill, for which there is no condition
                victim = draw.choice(victims)
                running[victim].kill()
                frozen.write_text(str(time.time()), "ascii")
                expected = oracle.expected(midnight.timestamp())
                assert len(expected) > 100
                wait_for(copied, f"the table equals the upstream after kill {number} of the {victim}", QUIET)
                frozen.write_text("", "ascii")
