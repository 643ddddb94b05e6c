"""Programs run as child processes on ports of 127.0.0.1, and stopped at the end of the test."""

import asyncio
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from benchmarks.compose import answers
from benchmarks.support import DEADLINE, POLL_INTERVAL, free_port, reachable, running, wait_for

__all__ = ["answers", "free_port", "gateway", "reachable", "running", "wait_for", "wait_in_loop_for"]
T = TypeVar("T")


async def wait_in_loop_for(condition: Callable[[], T], what: str, seconds: float = DEADLINE) -> T:
    """Wait as `wait_for` does, while the event loop runs."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        await asyncio.sleep(POLL_INTERVAL)
    return value


def gateway(*arguments: str) -> list[str | Path]:
    """The command line of the gateway."""
    return [sys.executable, "-m", "gateway", *arguments]
