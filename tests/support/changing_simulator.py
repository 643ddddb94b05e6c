"""A simulated Callbutton server whose calls are edited, deleted and restored, every few seconds, until it is frozen.

Its replies are a function of the time, so a server that was killed continues. As a program it takes a port
and a file; the text of the file, if there is one, is the instant at which the calls are frozen.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any
from zlib import crc32

import httpx

from gateway import app
from gateway.server import listen, make_server
from gateway.settings import Settings
from gateway.simulator.calls import SimulatedCall, client_code
from gateway.simulator.request import Request
from gateway.simulator.server import PATH, Options, Simulator
from tests.support.feed import START
from tests.support.stand import Clock, Stand, serving

OPTIONS = Options(clients=2, calls_per_day=300, history=3)
PERIOD = 4  # seconds between changes of a call


def changed(call: SimulatedCall, now: float, rarity: int) -> SimulatedCall | None:
    """A call as the server has it at an instant; None while it is deleted. A higher `rarity` changes fewer calls."""
    number, turn = crc32(call.identity.encode()), int(now) // PERIOD
    if number % (13 * rarity) == 0 and (turn + number) % 3 == 0:
        return None
    if number % (5 * rarity):
        return call
    return replace(call, elements=(*call.elements, ("Edited", str(turn))))


class ChangingSimulator(Simulator):
    """The server."""

    rarity = 1

    def _calls(self, code: str, request: Request, faults: Mapping[str, str]) -> Iterator[SimulatedCall]:
        now = self.clock()
        calls = super()._calls(code, request, faults)
        return (found for call in calls if (found := changed(call, now, self.rarity)))

    def expected(self, start: float) -> dict[tuple[str, str], str | None]:
        """Every call now that began at `start` or later, with the text that edits change."""
        everything = Request(("*",), (False,), None, None)
        return {
            (code, call.identity): dict(call.elements).get("Edited")
            for code in (client_code(index) for index in range(self.options.clients))
            for call in self._calls(code, everything, {})
            if call.start >= start
        }


class ChangingStand(Stand):
    """The server, and a gateway in front of it, which can be restarted."""

    def __init__(self, simulator: Simulator, clock: Clock, serve: Callable[[], httpx.Client]) -> None:
        super().__init__(simulator, serve(), clock)
        self._serve = serve

    @property
    def address(self) -> str:
        return str(self.client.base_url).rstrip("/")

    def restart(self) -> None:
        """Continue with another gateway, which has seen no change and so reports windows to replace."""
        self.client = self._serve()


@contextmanager
def changing(
    rarity: int = 1, **settings: Any
) -> Iterator[tuple[ChangingStand, Callable[[], dict[tuple[str, str], str | None]]]]:
    """A gateway in front of the server, and the calls that it has now from START on. Calls are fresh for a second."""
    clock = Clock()
    with ExitStack() as stack:
        simulator = ChangingSimulator(OPTIONS, clock)
        simulator.rarity = rarity
        upstream = f"http://127.0.0.1:{stack.enter_context(serving(simulator))}{PATH}"
        values: dict[str, Any] = {
            "upstream_url": upstream,
            "auth": "none",
            "signing_key": "k" * 32,
            "fresh_min": 1,
            "fresh_max": 1,
        }

        def serve() -> httpx.Client:
            port = stack.enter_context(serving(app.create(Settings(**values | settings), clock=clock)))
            return stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30))

        start = datetime.fromisoformat(f"{START}T00:00:00Z").timestamp()
        yield ChangingStand(simulator, clock, serve), lambda: simulator.expected(start)


def frozen_clock(file: Path) -> float:
    """The time, which stands still from the instant in a file on."""
    text = file.read_text("ascii") if file.exists() else ""
    return min(time.time(), float(text)) if text else time.time()


if __name__ == "__main__":
    with listen("127.0.0.1", int(sys.argv[1])) as listener:
        simulator = ChangingSimulator(OPTIONS, lambda: frozen_clock(Path(sys.argv[2])))
        make_server(simulator, lifespan="off").run(sockets=[listener])
