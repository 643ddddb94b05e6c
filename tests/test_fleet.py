"""Three replicas behind nginx, as compose.yaml has them, as processes: restarted and killed under load."""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from gateway.settings import PREFIX, READERS
from gateway.simulator.server import PATH
from tests.processes import answers, free_port, gateway, reachable, running, wait_for
from tests.servers import running as serving_cache
from tests.servers import valkey
from tests.tools import tool

COMPOSE: dict[str, Any] = yaml.safe_load((Path(__file__).parent.parent / "compose.yaml").read_text("utf-8"))
WINDOWS = [{"start": f"2026-11-{day:02}T00:00:00Z", "end": f"2026-11-{day + 1:02}T00:00:00Z"} for day in range(1, 20)]


class Replica:
    """A gateway that can be restarted on its port."""

    def __init__(self, upstream: int, shared: str, folder: Path) -> None:
        self.port = free_port()
        self._log = folder / f"gateway-{self.port}.log"
        settings = {"UPSTREAM_URL": f"http://127.0.0.1:{upstream}{PATH}", "AUTH": "none", "PORT": str(self.port)}
        settings |= {"SIGNING_KEY": "k" * 32, "LOG_FORMAT": "json", "CACHE_URL": shared}
        self._variables = {f"{PREFIX}{name}": text for name, text in settings.items()}
        self._stack = ExitStack()

    def start(self) -> None:
        self.process = self._stack.enter_context(running(gateway("serve"), self._log, **self._variables))
        wait_for(lambda: answers(f"http://127.0.0.1:{self.port}/readyz"), "the replica is ready")

    def restart(self) -> None:
        """Stop as Kubernetes does, and start anew."""
        self.process.terminate()
        assert self.process.wait(60) in (0, -15)
        self.start()

    def close(self) -> None:
        self._stack.close()


class Load:
    """Consumers that never pause; what they got, by status."""

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
                path = f"/clients/80055501{number % 5:02}/calls"
                try:
                    answer = client.get(path, params=WINDOWS[number % len(WINDOWS)])
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                else:
                    self.answers.append(answer.status_code)
                    if answer.status_code != 200:
                        self.failures.append(answer.text)
                time.sleep(0.01)

    def goes_on(self, more: int = 50) -> None:
        """Wait until so many more are answered."""
        enough = len(self.answers) + more
        wait_for(lambda: len(self.answers) >= enough or self.failures, f"{more} more answers")


@contextmanager
def fleet(folder: Path, shared: str) -> Iterator[tuple[str, list[Replica]]]:
    """Simulator, three replicas and nginx with the configuration of compose.yaml; gives nginx's address."""
    nginx = tool("nginx", "nginx-light")
    upstream, front = free_port(), free_port()
    with ExitStack() as stack:
        simulate = gateway("simulate", "--port", str(upstream), "--latency", "0.05")
        stack.enter_context(running(simulate, folder / "simulator.log"))
        wait_for(lambda: reachable(upstream), "the simulator listens")
        replicas = [Replica(upstream, shared, folder) for _ in range(3)]
        for replica in replicas:
            stack.callback(replica.close)
        with ThreadPoolExecutor() as pool:
            list(pool.map(Replica.start, replicas))
        configuration = folder / "nginx.conf"
        configuration.write_text(on_loopback(COMPOSE["configs"]["nginx"]["content"], folder, front, replicas))
        words: list[str | Path] = [nginx, "-p", folder, "-c", configuration, "-e", "stderr", "-g", "daemon off;"]
        stack.enter_context(running(words, folder / "nginx.log"))
        wait_for(lambda: answers(f"http://127.0.0.1:{front}/readyz"), "nginx answers")
        yield f"http://127.0.0.1:{front}", replicas


def on_loopback(text: str, folder: Path, front: int, replicas: list[Replica]) -> str:
    """The configuration of nginx with addresses in the place of names, and files where anyone may write."""
    servers = "\n".join(f"server 127.0.0.1:{one.port} max_fails=1 fail_timeout=2s;" for one in replicas)
    text, found = re.subn(r"server gateway:8080 resolve (.*);", servers, text.replace("$$", "$"))
    assert found == 1
    text, found = re.subn(r"listen 8080;", f"listen 127.0.0.1:{front};", text)
    assert found == 1
    text = re.sub(r"resolver .*;", "", text)
    paths = "\n".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"pid {folder}/nginx.pid;\n" + text.replace("http {", f"http {{\n{paths}", 1)


def test_no_request_fails_while_replicas_are_restarted_one_is_killed_and_their_cache_is_lost(
    tmp_path: Path,
):
    with (
        serving_cache(valkey()) as server,
        fleet(tmp_path, server.url) as (address, replicas),
        Load(address, consumers=8) as load,
    ):
        load.goes_on()
        for replica in replicas:
            replica.restart()
            load.goes_on()
        assert load.failures == []
        replicas[0].process.kill()
        replicas[0].process.wait(20)
        load.goes_on(200)
        replicas[0].start()
        load.goes_on()
        server.kill()
        load.goes_on(200)
        server.start()
        load.goes_on()
        assert load.failures == []
        assert set(load.answers) == {200}


def test_compose_names_settings_that_exist_and_hardens_what_is_ours():
    services = COMPOSE["services"]
    for name in services["gateway"]["environment"]:
        assert name.removeprefix(PREFIX).lower() in READERS
    for name in ("simulator", "gateway"):
        assert services[name]["read_only"]
        assert services[name]["cap_drop"] == ["ALL"]
    assert services["gateway"]["deploy"]["replicas"] == 3


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_compose_opens_ports_to_this_machine_alone(name: str):
    for port in COMPOSE["services"][name].get("ports", []):
        assert port.startswith("127.0.0.1:")
