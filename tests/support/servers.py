"""Real Redis and Valkey servers on free ports, which tests can kill and restart."""

import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from redis import Redis
from redis.exceptions import RedisError

from benchmarks.support import valkey
from tests.support.processes import wait_for
from tests.support.tools import tool

__all__ = ["Server", "redis", "running", "valkey"]


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
