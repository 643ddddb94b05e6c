"""Real Redis, Valkey and PostgreSQL servers on free ports, which tests can kill and restart."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg
from redis import Redis
from redis.cluster import RedisCluster
from redis.exceptions import RedisError

from benchmarks.support import add_replica, cluster_options, free_port, knows_all, make_cluster, valkey
from gateway.redis_nodes import hash_tag
from tests.support.certificates import Certificate
from tests.support.processes import wait_for
from tests.support.tools import need, tool

__all__ = ["Cluster", "Postgres", "Sentinel", "Server", "postgres", "redis", "running", "valkey"]


class Server:
    """A server without persistence."""

    def __init__(self, program: str, *options: str, password: str | None = None) -> None:
        self.port = free_port()
        self._folder = tempfile.mkdtemp()
        self._command = [program, *options, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self._folder]
        self._command += ["--loglevel", "warning"]
        if "--sentinel" not in options:
            self._command += ["--save", ""]
        if password:
            self._command += ["--requirepass", password, "--masterauth", password]
        self.url = f"redis://127.0.0.1:{self.port}"
        self.client = Redis(port=self.port, password=password)
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(self._answers, "the server answers")

    def restart(self) -> None:
        """Start it if it was killed."""
        if self.process.poll() is not None:
            self.start()

    def _answers(self) -> bool:
        try:
            self.client.ping()
        except (RedisError, OSError):
            assert self.process.poll() is None
            return False
        return True

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Stop the process, so that it keeps its connections and answers nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.client.close()
        self.kill()
        shutil.rmtree(self._folder)


class Cluster:
    """A cluster of three primaries, perhaps with TLS beside plain ports. If there is a replica, it is of the first."""

    def __init__(self, program: str, *options: str, replica: bool = False, tls: Certificate | None = None) -> None:
        if tls is not None:
            options = "--tls-cert-file", str(tls.cert), "--tls-key-file", str(tls.key), "--tls-auth-clients", "no"
            options += "--tls-ca-cert-file", str(tls.cert), "--tls-cluster", "yes"
        public = [free_port() for _ in range(3)] if tls else []
        self.servers = [
            Server(program, *cluster_options(), *options, *(["--tls-port", str(public[place])] if tls else []))
            for place in range(3)
        ]
        make_cluster(self.ports)
        if replica:
            server = Server(program, *cluster_options(), *options)
            add_replica(self.ports, server.port)
            self.servers.append(server)
        hosts = ",".join(f"127.0.0.1:{port}" for port in public or self.ports)
        self.url = f"redis{'s' if tls else ''}+cluster://{hosts}"
        self.client: Any = RedisCluster(host="127.0.0.1", port=self.servers[0].port)

    @property
    def ports(self) -> list[int]:
        return [server.port for server in self.servers]

    def is_whole(self) -> bool:
        """Return whether all nodes know all others, and owners of all slots."""
        return all(knows_all(server.client, len(self.servers)) for server in self.servers)

    def owner(self, code: str) -> Server:
        """The primary that has the keys of a client."""
        return self.servers[self.ports.index(int(self.client.get_node_from_key(hash_tag(code)).port))]

    def move(self, code: str, target: Server, *, finish: bool = True) -> None:
        """Move the slot of a client to another primary, or only its keys, so that the owner answers with ASK."""
        source, slot = self.owner(code), self.client.keyslot(hash_tag(code))
        names = [server.client.cluster("MYID").decode() for server in (source, target)]
        target.client.cluster("SETSLOT", slot, "IMPORTING", names[0])
        source.client.cluster("SETSLOT", slot, "MIGRATING", names[1])
        while keys := source.client.cluster("GETKEYSINSLOT", slot, 10):
            source.client.migrate("127.0.0.1", target.port, keys, 0, 5000)
        if finish:
            self.finish_move(code, target)

    def finish_move(self, code: str, target: Server) -> None:
        slot, name = self.client.keyslot(hash_tag(code)), target.client.cluster("MYID").decode()
        for server in (target, *(server for server in self.servers if server is not target)):
            server.client.cluster("SETSLOT", slot, "NODE", name)
        self.client.nodes_manager.initialize()

    def kill(self) -> None:
        for server in self.servers:
            server.kill()

    def restart(self) -> None:
        """Start the nodes that were killed, and wait until all know all."""
        for server in self.servers:
            server.restart()
        wait_for(self.is_whole, "the cluster is whole")

    def close(self) -> None:
        self.client.close()
        for server in self.servers:
            server.close()


class Sentinel(Server):
    """A Sentinel that watches a primary by the name `calls`, and makes its replica the primary when it is down."""

    def __init__(self, program: str, primary: Server, password: str) -> None:
        with tempfile.NamedTemporaryFile("w", suffix=".conf", delete=False) as config:
            config.write(f"sentinel monitor calls 127.0.0.1 {primary.port} 1\nsentinel auth-pass calls {password}\n")
            config.write("sentinel down-after-milliseconds calls 500\nsentinel failover-timeout calls 2000\n")
        super().__init__(program, config.name, "--sentinel", password=password)


@contextmanager
def running(program: str, *options: str, password: str | None = None) -> Iterator[Server]:
    """Run a server."""
    server = Server(program, *options, password=password)
    try:
        yield server
    finally:
        server.close()


def redis() -> str:
    """The path of Debian's Redis server."""
    return tool("redis-server")


class Postgres:
    """A PostgreSQL server with an empty data folder. It does not run as root, so it may need another user."""

    def __init__(self) -> None:
        folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
        need(bool(folders), "postgres, from the Debian package postgresql")
        self._programs = folders[-1]
        self._user = "nobody" if os.getuid() == 0 else None
        self._folder = Path(tempfile.mkdtemp())
        if self._user:
            shutil.chown(self._folder, self._user)
        self.port = free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"
        options = ["-D", str(self._folder / "data"), "-U", "postgres", "-A", "trust", "-E", "UTF8"]
        subprocess.run(
            [self._programs / "initdb", *options], user=self._user, cwd="/", check=True, stdout=subprocess.DEVNULL
        )
        self.start()

    def start(self) -> None:
        data = str(self._folder / "data")
        options = ["-D", data, "-h", "127.0.0.1", "-p", str(self.port), "-k", "", "-c", "fsync=off"]
        self.process = subprocess.Popen(
            [self._programs / "postgres", *options],
            user=self._user,
            cwd="/",
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(self._answers, "PostgreSQL answers", 60)

    def _answers(self) -> bool:
        if self.process.poll() is not None:  # after a kill, its last children may hold the data folder for a moment
            self.start()
        try:
            psycopg.connect(self.url, connect_timeout=5).close()
        except psycopg.OperationalError:
            return False
        return True

    def kill(self) -> None:
        """Kill the server and its children, as a loss of power does."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self._folder)


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Run a PostgreSQL server."""
    server = Postgres()
    try:
        yield server
    finally:
        server.close()
