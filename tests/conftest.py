"""Real servers on free ports of 127.0.0.1."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
from hypothesis import settings as hypothesis_settings

from gateway import app
from gateway.guard import Limits
from gateway.server import listen, make_server
from gateway.settings import Settings
from gateway.simulator.server import PATH, Options, Simulator, create
from tests.processes import wait_for

hypothesis_settings.register_profile("any machine", deadline=None)  # no test depends on speed
hypothesis_settings.load_profile("any machine")

NOW = 1_795_000_000.0  # 2026-11-18


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@contextmanager
def serving(application: Any) -> Iterator[int]:
    """Serve an ASGI application; gives its port."""
    with listen("127.0.0.1", 0) as listener:
        behind = isinstance(application, Simulator)  # which may sleep longer than a test waits for its end
        limits = Limits(shutdown_timeout=1, request_size=1024**2) if behind else None
        server = make_server(application, lifespan="off" if behind else "on", limits=limits)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        wait_for(lambda: server.started, "the server has started")
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(20)


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
        """Move the clock, once every flight has landed: what lands is remembered from then on."""
        wait_for(
            lambda: self.metric("upstream_posts_in_flight") + self.metric("upstream_queue_length") == 0,
            "every POST is answered",
        )
        self.metric("build_info")  # its POST may be over just now: a turn of the loop later the flight has landed
        self.clock.now += seconds


Make = Callable[..., Stand]


@pytest.fixture
def stand() -> Iterator[Make]:
    """Make stands; settings as keywords."""
    with ExitStack() as stack:

        def make(options: Options | None = None, **changes: Any) -> Stand:
            clock = Clock()
            simulator = create(options or Options(), clock)
            upstream = f"http://127.0.0.1:{stack.enter_context(serving(simulator))}{PATH}"
            settings = Settings(**({"upstream_url": upstream, "auth": "none", "signing_key": "k" * 32} | changes))
            port = stack.enter_context(serving(app.create(settings, clock=clock)))
            client = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30))
            return Stand(simulator, client, clock)

        yield make
