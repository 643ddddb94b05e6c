"""Three replica processes behind nginx, as in compose.yaml, restarted and killed under load.

The upstream counts fetches by client, window and requesting replica:

- While the shared cache is up, the fleet fetches each window once, however often replicas are restarted.
- Windows that a killed replica was fetching are fetched once more, and so may be those it had not yet shared.
- While the shared cache is down, each replica fetches a window at most once. The cache comes back empty: replicas
  that do not hold an old window fetch it once more, and the fleet fetches each new window once again.
- No process fetches the same window twice.

The time-out of the shared cache is longer than 100 ms here, so that the tests pass on a busy machine.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from gateway.settings import PREFIX
from gateway.simulator.calls import CENTRAL
from gateway.simulator.request import parse_elements, parse_request
from gateway.simulator.server import PATH, Options, Simulator
from tests.support.compose import nginx
from tests.support.processes import answers, free_port, running, wait_for, wait_in_loop_for
from tests.support.servers import running as serving_cache
from tests.support.servers import valkey
from tests.support.stand import serving

NOON = datetime.now(UTC).replace(hour=18, minute=0, second=0, microsecond=0)
CLIENTS = 20
ASKED = 4  # times at once
SHARING = 5.0  # seconds; far more than a flight needs to land and be shared
PATIENT = """
import functools, sys
from gateway import redis_client
redis_client.RedisClient = functools.partial(redis_client.RedisClient, timeout=20, skew=20)
from gateway.__main__ import main
sys.exit(main(["serve"]))
"""


class Need(NamedTuple):
    """Six hours of a client, old enough to stay fresh for hours, and too far from other needs to be merged."""

    code: str
    start: datetime


def need(number: int) -> Need:
    """Return the need with this number."""
    return Need(f"80055501{number % CLIENTS:02}", NOON - timedelta(days=10 + number // CLIENTS))


class Fetch(NamedTuple):
    """One client of a received POST, with its time, the replica, and the number of that replica's restarts."""

    at: float
    replica: int
    life: int
    need: Need


class Upstream:
    """A simulator with one proxy for each replica, so that every POST is attributed to its replica."""

    def __init__(self, replicas: int) -> None:
        self.lives = [0] * replicas
        self.fetches: list[Fetch] = []
        self.posts = 0
        self.held: list[Need] = []
        self._simulator = Simulator(Options(clients=CLIENTS, calls_per_day=480, latency=0.05))
        self._stopped = [threading.Event() for _ in range(replicas)]

    def hold(self, replica: int) -> None:
        """Stop answering a replica; `held` lists its unanswered needs."""
        self._stopped[replica].set()

    def let_go(self, replica: int) -> None:
        """Resume answering a replica."""
        self._stopped[replica].clear()

    def way(self, replica: int) -> Any:
        """Return the ASGI application that one replica reaches."""

        async def application(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                return
            message = await receive()
            while message.get("more_body"):
                message["body"] += (more := await receive())["body"]
                message["more_body"] = more.get("more_body")
            needs = self._note(replica, message["body"])
            if self._stopped[replica].is_set():
                self.held += needs
            await wait_in_loop_for(lambda: not self._stopped[replica].is_set(), "the replica is answered again", 600)

            async def again() -> Any:
                return message

            await self._simulator(scope, again, send)

        return application

    def _note(self, replica: int, body: bytes) -> list[Need]:
        request = parse_request(parse_elements(body))
        assert request.start is not None
        start = request.start + timedelta(seconds=1)  # a POST asks for a second more on each side
        noon = start.replace(tzinfo=CENTRAL).astimezone(UTC)
        needs = [Need(code, noon) for code in request.codes]
        self.posts += 1
        self.fetches += [Fetch(time.monotonic(), replica, self.lives[replica], one) for one in needs]
        return needs


class Replica:
    """A gateway that can be restarted on its port."""

    def __init__(self, number: int, upstream: Upstream, way: int, shared: str, folder: Path) -> None:
        self.port = free_port()
        self._number = number
        self._upstream = upstream
        self._log = folder / f"gateway-{self.port}.log"
        settings = {"UPSTREAM_URL": f"http://callbutton.invalid{PATH}", "UPSTREAM_PROXY": f"http://127.0.0.1:{way}"}
        settings |= {"AUTH": "none", "PORT": str(self.port), "SIGNING_KEY": "k" * 32}
        settings |= {"LOG_FORMAT": "json", "CACHE_URL": shared}
        self._variables = {f"{PREFIX}{name}": text for name, text in settings.items()}
        self._stack = ExitStack()

    def start(self) -> None:
        self._upstream.lives[self._number] += 1
        command: list[str | Path] = [sys.executable, "-c", PATIENT]
        self.process = self._stack.enter_context(running(command, self._log, **self._variables))
        wait_for(lambda: answers(f"http://127.0.0.1:{self.port}/readyz"), "the replica is ready")

    def restart(self) -> None:
        """Stop as Kubernetes does, then start again."""
        self.process.terminate()
        assert self.process.wait(60) in (0, -15)
        self.start()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(20)

    def shares(self) -> bool:
        """Return whether the replica uses the shared cache."""
        lines = httpx.get(f"http://127.0.0.1:{self.port}/metrics", timeout=20).text.splitlines()
        return "callbutton_gateway_cache_shared_up 1.0" in lines

    def close(self) -> None:
        self._stack.close()


class Load:
    """Consumers that send requests continuously: new needs from several at once, and sometimes old ones."""

    def __init__(self, address: str, consumers: int) -> None:
        self._address = address
        self._over = threading.Event()
        self._numbers = itertools.count()
        self.answers: list[int] = []
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._ask) for _ in range(consumers)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        with httpx.Client(base_url=self._address, timeout=60) as client:
            while not self._over.is_set():
                number = next(self._numbers)
                newest = number // (2 * ASKED)
                code, start = need(newest if number % 2 else newest * 3 // 5)
                window = {
                    "start": f"{start:%Y-%m-%dT%H:%M:%SZ}",
                    "end": f"{start + timedelta(hours=6):%Y-%m-%dT%H:%M:%SZ}",
                }
                try:
                    answer = client.get(f"/clients/{code}/calls", params=window)
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                else:
                    self.answers.append(answer.status_code)
                    if answer.status_code != 200:
                        self.failures.append(answer.text)
                self._over.wait(0.01)  # seconds: the pace of one consumer

    def ahead(self) -> int:
        """Return the number of a need that has not been requested yet."""
        return next(self._numbers) // (2 * ASKED) + 1

    def goes_on(self, more: int = 50) -> None:
        """Wait until `more` further requests have been answered."""
        enough = len(self.answers) + more
        wait_for(lambda: len(self.answers) >= enough, f"{more} more answers")


@contextmanager
def fleet(folder: Path, shared: str, upstream: Upstream) -> Iterator[tuple[str, list[Replica]]]:
    """Run three replicas and nginx with the configuration of compose.yaml. Yields the address of nginx."""
    front = free_port()
    with ExitStack() as stack:
        ways = [stack.enter_context(serving(upstream.way(number))) for number in range(3)]
        replicas = [Replica(number, upstream, way, shared, folder) for number, way in enumerate(ways)]
        for replica in replicas:
            stack.callback(replica.close)
        with ThreadPoolExecutor() as pool:
            list(pool.map(Replica.start, replicas))
        stack.enter_context(nginx(folder, front, [one.port for one in replicas]))
        yield f"http://127.0.0.1:{front}", replicas


def repeated(fetches: Sequence[Fetch]) -> dict[Need, list[Fetch]]:
    """Return the needs that were fetched more than once."""
    by_need: dict[Need, list[Fetch]] = defaultdict(list)
    for fetch in fetches:
        by_need[fetch.need].append(fetch)
    return {need: found for need, found in by_need.items() if len(found) > 1}


def test_no_request_fails_and_the_upstream_is_asked_once_while_replicas_come_and_go_and_their_cache_is_lost(
    tmp_path: Path,
):
    upstream = Upstream(3)
    with (
        serving_cache(valkey()) as server,
        fleet(tmp_path, server.url, upstream) as (address, replicas),
        Load(address, consumers=8) as load,
    ):
        load.goes_on()
        for replica in replicas:
            replica.restart()
            load.goes_on()
        assert load.failures == []
        assert repeated(upstream.fetches) == {}
        print(f"rolling restart: {len(load.answers)} answers, {len(upstream.fetches)} needs, {upstream.posts} POSTs")

        upstream.hold(0)
        wait_for(lambda: upstream.held, "the replica to be killed has a flight in progress")
        life, killed = upstream.lives[0], time.monotonic()
        replicas[0].kill()
        held = set(upstream.held)
        upstream.let_go(0)
        wait_for(lambda: held <= repeated(upstream.fetches).keys(), "others fetch the needs of the killed replica")
        load.goes_on(200)
        replicas[0].start()
        load.goes_on()
        # nginx cannot retry a request whose answer was cut off in the middle.
        assert len(load.failures) <= 8
        assert all("RemoteProtocolError" in failure for failure in load.failures)
        cut_off = len(load.failures)
        again = repeated(upstream.fetches)
        for first, *others in again.values():
            assert (first.replica, first.life) == (0, life)
            assert first.at > killed - SHARING
            assert len(others) == 1
        print(f"kill: {cut_off} answers cut off, {len(held)} flights in progress, {len(again)} fetched once more")

        server.kill()
        load.goes_on(200)
        server.start()
        wait_for(lambda: all(replica.shares() for replica in replicas), "the shared cache is asked again", 60)
        since = load.ahead()
        load.goes_on(200)
        print(f"loss of the cache: {len(repeated(upstream.fetches)) - len(again)} fetched by more than one replica")
        assert len(load.failures) == cut_off
        assert set(load.answers) == {200}
    counted = Counter((fetch.replica, fetch.life, fetch.need) for fetch in upstream.fetches)
    assert set(counted.values()) == {1}
    fresh = {need(number) for number in range(since, load.ahead())}
    assert not fresh & repeated(upstream.fetches).keys()
