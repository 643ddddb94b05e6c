"""A gateway in front of a simulator: real servers on free ports of 127.0.0.1."""

from collections.abc import Callable
from typing import Any

import httpx

from benchmarks.support import serving
from gateway.simulator.server import Simulator
from tests.support.processes import wait_for

__all__ = ["NOW", "Clock", "Make", "Stand", "serving"]
NOW = 1_795_000_000.0  # 2026-11-18


class Clock:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


class Stand:
    """A simulator and a gateway in front of it."""

    def __init__(self, simulator: Simulator, client: httpx.Client, clock: Clock) -> None:
        self.simulator = simulator
        self.client = client
        self.clock = clock

    def get(self, path: str, **parameters: Any) -> httpx.Response:
        return self.client.get(path, params=parameters)

    def metric(self, name: str) -> float:
        lines = self.client.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"callbutton_gateway_{name}"))

    def pass_time(self, seconds: float) -> None:
        """Wait until every flight has landed, then advance the clock: cached data ages from its landing."""
        wait_for(
            lambda: self.metric("upstream_posts_in_flight") + self.metric("upstream_queue_length") == 0,
            "every POST is answered",
        )
        self.metric("build_info")  # the POST may have ended just now; the flight lands one iteration of the loop later
        self.clock.now += seconds


Make = Callable[..., Stand]
