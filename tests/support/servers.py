"""Real Redis, Valkey and PostgreSQL servers on free ports, which tests can kill and restart."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
from redis import Redis
from redis.exceptions import RedisError

from benchmarks.support import free_port, valkey
from tests.support.processes import wait_for
from tests.support.tools import need, tool

__all__ = ["Postgres", "Server", "postgres", "redis", "running", "valkey"]


class Server:
    """A server without persistence."""

    def __init__(self, program: str, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._folder = tempfile.mkdtemp()
        self._command = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", self._folder]
        self._command += ["--loglevel", "warning", *options]
        self.url = f"redis://127.0.0.1:{self.port}"
        self.client = Redis(port=self.port)
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(self._answers, "the server answers")

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

    def close(self) -> None:
        self.client.close()
        self.kill()
        shutil.rmtree(self._folder)


@contextmanager
def running(program: str, *options: str) -> Iterator[Server]:
    """Run a server."""
    server = Server(program, *options)
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
