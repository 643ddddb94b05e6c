"""Programs as processes of their own, on ports of 127.0.0.1, stopped at the end."""

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import httpx

T = TypeVar("T")


def free_port() -> int:
    """Return a port that is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


DEADLINE = 30  # seconds; long for a busy machine
POLL_INTERVAL = 0.005  # seconds


def wait_for(condition: Callable[[], T], what: str, seconds: float = DEADLINE) -> T:
    """Wait until a condition holds and return its value. Fails after `seconds`."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(POLL_INTERVAL)
    return value


async def wait_in_loop_for(condition: Callable[[], T], what: str, seconds: float = DEADLINE) -> T:
    """Wait as `wait_for` does, while the event loop runs."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        await asyncio.sleep(POLL_INTERVAL)
    return value


def answers(url: str) -> bool:
    """Tell whether a page can be had."""
    try:
        return httpx.get(url, timeout=2).is_success
    except httpx.TransportError:
        return False


def reachable(port: int) -> bool:
    """Tell whether something listens on a port."""
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def running(
    command: Sequence[str | Path], log: Path, cwd: str | None = None, **variables: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program. Its output is appended to `log`."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=plain | variables, cwd=cwd)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def gateway(*arguments: str) -> list[str | Path]:
    """The command line of the gateway."""
    return [sys.executable, "-m", "gateway", *arguments]
