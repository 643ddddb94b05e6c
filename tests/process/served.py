"""`serve` as a process, and misbehaving clients."""

from __future__ import annotations

import json
import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tests.support.processes import running, wait_for

CODE = "8005550100"
ANSWERED = b"HTTP/1.1 200 OK\r\n"
PAGE = f"/clients/{CODE}/calls?start=2026-09-01&end=2026-09-02&limit=1000"  # half a megabyte
EXPORT = f"/clients/{CODE}/calls?start=2026-08-01&end=2026-09-01&format=ndjson"  # thirty megabytes
LISTENING = "0A"  # a state of /proc/net/tcp
LATER = 120  # seconds that a test waits beyond a bound, for a busy machine


class Bounds(NamedTuple):
    """The bounds of a server, in seconds."""

    request: float
    idle: float
    write: float
    shutdown: float


SHORT = Bounds(request=0.5, idle=1.0, write=1.0, shutdown=2.0)
REAL = Bounds(request=10, idle=75, write=30, shutdown=60)


class Served:
    """A running gateway process."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, bounds: Bounds) -> None:
        self.process = process
        self.bounds = bounds
        self._log = log
        wait_for(lambda: self.events("serving") or process.poll() is not None, "the gateway listens")
        assert process.poll() is None, self.log()
        self.address: str = self.events("serving")[0]["address"]

    def log(self) -> str:
        return self._log.read_text("utf-8")

    def events(self, name: str) -> list[dict[str, Any]]:
        """The lines of the log with this event."""
        lines = [line for line in self.log().splitlines(keepends=True) if line.endswith("\n") and line.startswith("{")]
        return [event for event in map(json.loads, lines) if event["event"] == name]

    def connect(self, *, buffer: int = 0, source: str = "") -> socket.socket:
        """Connect, from the address `source`; `buffer` bounds the receive buffer, in bytes."""
        parts = urlsplit(self.address)
        client = socket.socket(socket.AF_INET6 if ":" in (parts.hostname or "") else socket.AF_INET)
        client.settimeout(LATER)
        if buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        if source:
            client.bind((source, 0))
        try:
            client.connect((parts.hostname, parts.port))
        except OSError:
            client.close()
            raise
        return client

    def ask(self, *requests: bytes) -> bytes:
        """Send data and return everything received until the server closes."""
        with self.connect() as client:
            client.sendall(b"".join(requests))
            return everything(client)

    def connections(self) -> int:
        """Return the number of open client connections of the process."""
        port = f":{urlsplit(self.address).port:04X}"
        rows = [
            line.split()
            for name in ("tcp", "tcp6")
            for line in Path(f"/proc/net/{name}").read_text("ascii").splitlines()
        ]
        return sum(row[1].endswith(port) and row[3] != LISTENING and row[9] != "0" for row in rows)

    def stop(self, signal: int) -> float:
        """Send a signal and wait for the process to exit. Returns the seconds this took."""
        began = time.monotonic()
        self.process.send_signal(signal)
        self.process.wait(self.bounds.shutdown + LATER)
        return time.monotonic() - began


def request(
    path: str = "/healthz", *lines: str, close: bool = False, method: str = "GET", version: str = "1.1"
) -> bytes:
    """Return a request without a body."""
    headers = ["Host: gateway", *lines, *(["Connection: close"] if close else [])]
    return "\r\n".join([f"{method} {path} HTTP/{version}", *headers, "", ""]).encode()


def everything(client: socket.socket) -> bytes:
    """Read until the server closes or resets the connection."""
    parts = []
    with suppress(ConnectionResetError):
        while part := client.recv(65536):
            parts.append(part)
    return b"".join(parts)


def answer(client: socket.socket) -> bytes:
    """Read one answer with a Content-Length."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = client.recv(65536)
        assert part, data
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    found = re.search(rb"content-length: (\d+)", head)
    assert found, head
    while len(body) < int(found[1]):
        body += client.recv(65536)
    return head + b"\r\n\r\n" + body


def closed_after(client: socket.socket, bound: float, meanwhile: Callable[[], object] = lambda: None) -> float:
    """Wait until the server closes; returns how many seconds that took. Fails far beyond the bound."""
    began = time.monotonic()
    client.settimeout(0.05)
    while time.monotonic() - began < bound + LATER:
        try:
            meanwhile()
            if not client.recv(65536):
                return time.monotonic() - began
        except TimeoutError:
            continue
        except ConnectionError:
            return time.monotonic() - began
    raise AssertionError(f"open after {bound + LATER} s")


@contextmanager
def served(
    upstream: str, folder: Path, checkout: str = "", bounds: Bounds = SHORT, files: int = 0, **settings: str
) -> Iterator[Served]:
    """Run `serve` with these bounds, or that of another checkout with its own; `files` bounds its file descriptors."""
    log = folder / "gateway.log"
    variables = {"UPSTREAM_URL": upstream, "AUTH": "none", "PORT": "0", "LOG_FORMAT": "json", "DRAIN_DELAY": "0s"}
    variables |= {"SIGNING_KEY": "k" * 32} | {name.upper(): text for name, text in settings.items()}
    if checkout:
        bounds = REAL
        command = [f"{checkout}/.venv/bin/python", "-m", "gateway", "serve"]
    elif bounds == REAL:
        command = [sys.executable, "-m", "gateway", "serve"]
    else:
        limits = {f"{name}_timeout": value for name, value in bounds._asdict().items()}
        command = [sys.executable, "-m", "tests.process.short_limits", json.dumps(limits)]
    if files:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        command = ["prlimit", f"--nofile={files}:{hard}", *command]
    with running(
        command, log, cwd=checkout or None, **{f"GATEWAY_{name}": text for name, text in variables.items()}
    ) as process:
        yield Served(process, log, bounds)


Serve = Callable[..., Served]
