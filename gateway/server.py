"""The HTTP server: stock uvicorn behind `gateway.guard`, its listening socket, and its shutdown.

Rules of the shutdown:
- SIGTERM and SIGHUP set `Shutdown.begun` at once: readiness fails, and responses have `Connection: close`. The server
  continues to accept requests during the drain delay. Then requests in progress have `Limits.shutdown_timeout` to end.
  SIGINT, which comes from a terminal, has no drain delay.
- A second signal closes all connections at once.
- The application's shutdown hooks run in both cases, and the exit code is 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from gateway.guard import Guard, Limits
from gateway.shutdown import Shutdown

BACKSTOP = 2  # seconds for requests to end after the guard has closed their connections
SIGNALS = {signal.SIGTERM: True, signal.SIGHUP: True, signal.SIGINT: False}  # the value: with a drain delay


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket. Raises OSError with the address in its text, ValueError."""
    if port not in range(65536):
        raise ValueError(f"{port} is not a port: choose one from 0 to 65535")
    host = host.removeprefix("[").removesuffix("]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]
        if error.errno == errno.EADDRINUSE:
            reason += ": choose another port"
        raise OSError(error.errno, f"{host} port {port}: {reason}") from error


def address_of(listener: socket.socket, scheme: str = "http") -> str:
    """The URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def tls_context(certificate: str, key: str) -> ssl.SSLContext:
    """The TLS context of two PEM files, for TLS 1.2 and later. Raises OSError (ssl.SSLError is a subclass)."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key, password="")  # an encrypted key fails, instead of asking at the terminal
    return context


class Server(uvicorn.Server):
    """uvicorn's server with the shutdown of this module. `signals` says whether it handles signals."""

    def __init__(
        self,
        config: uvicorn.Config,
        guard: type[Guard],
        drain: float,
        shutdown: Shutdown,
        on_started: Callable[[], None],
        *,
        signals: bool,
    ) -> None:
        super().__init__(config)
        self._on_started = on_started
        self._guard = guard
        self._drain = drain
        self._shutdown = shutdown
        self._signals = signals

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals while serving. uvicorn would raise them again afterwards, which changes the exit code."""
        if self._signals and threading.current_thread() is threading.main_thread():
            loop = asyncio.get_running_loop()
            for number, drains in SIGNALS.items():
                loop.add_signal_handler(number, self.stop, self._drain if drains else 0)
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then call `on_started`: from now on connections are accepted and signals are handled."""
        await super().startup(sockets)
        self._on_started()

    def stop(self, drain: float = 0) -> None:
        """Stop after `drain` seconds. A second call stops at once."""
        if self._shutdown.begun.is_set():
            self._shutdown.forced.set()
            self._close(0)
            return
        self._shutdown.begun.set()
        asyncio.get_running_loop().call_later(drain, self._close, self._guard.limits.shutdown_timeout)

    def _close(self, timeout: float) -> None:
        """Refuse new connections, and disconnect the remaining clients after `timeout` seconds."""
        self.should_exit = True
        asyncio.get_running_loop().call_later(timeout, self._disconnect)

    def _disconnect(self) -> None:
        for connection in list(self._guard.open):
            connection.abort()


def make_server(
    application: Any,  # noqa: ANN401 - ASGI 2 or 3
    *,
    lifespan: str = "on",
    drain: float = 0,
    shutdown: Shutdown | None = None,
    problem: Callable[[int, str], bytes] | None = None,
    limits: Limits | None = None,
    tls: ssl.SSLContext | None = None,
    on_started: Callable[[], None] = lambda: None,
    signals: bool = True,
) -> Server:
    """Make an HTTP server. `shutdown` tells the application that it stops; `problem` renders errors of the guard."""
    limits = limits or Limits()

    class Connection(Guard):
        pass

    Connection.limits, Connection.open = limits, set()
    Connection.problem = staticmethod(problem or (lambda _, detail: detail.encode()))
    config = uvicorn.Config(
        application,
        http=Connection,
        ws="none",
        lifespan=lifespan,  # type: ignore[arg-type]
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # the gateway does not use the address of consumers
        timeout_keep_alive=math.ceil(limits.idle_timeout),
        timeout_graceful_shutdown=math.ceil(limits.shutdown_timeout) + BACKSTOP,
        ssl_context_factory=None if tls is None else lambda *_: tls,
    )
    return Server(config, Connection, drain, shutdown or Shutdown(), on_started, signals=signals)


async def serve_with(server: Server, listener: socket.socket, others: dict[Server, socket.socket]) -> None:
    """Serve until a signal. `others`, such as the server of the metrics port, stop last, so that probes still work."""
    tasks = [asyncio.create_task(other.serve([other_listener])) for other, other_listener in others.items()]
    try:
        await server.serve([listener])
    finally:
        for other in others:
            other.should_exit = True
        await asyncio.gather(*tasks)
