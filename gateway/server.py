"""The HTTP server: stock uvicorn behind `gateway.guard`, its listening socket, and how it stops.

Rules for stopping:
- At SIGTERM or SIGHUP the application learns of it at once (`Shutdown`): readiness fails, and answers carry
  `Connection: close`. Requests are still answered for the drain delay; then the server accepts nothing, and requests in
  progress have `Limits.shutdown_timeout` to end. SIGINT has no drain delay: it comes from a terminal.
- A second signal ends everything at once.
- The application's shutdown hooks run in each case, and the exit code is 0.
"""

from __future__ import annotations

import asyncio
import contextlib
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

BACKSTOP = 2  # seconds after the guard has closed every connection, for requests to notice
SIGNALS = {signal.SIGTERM: True, signal.SIGHUP: True, signal.SIGINT: False}  # whether there is a drain delay


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket. Raises OSError, which names the address."""
    host = host.removeprefix("[").removesuffix("]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = str(error.strerror).partition(" (while")[0]
        raise OSError(error.errno, f"{host} port {port}: {reason}") from error


def address_of(opened: socket.socket, scheme: str = "http") -> str:
    """The address of a listening socket, as consumers write it."""
    host, port = opened.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def tls_context(certificate: str, key: str) -> ssl.SSLContext:
    """The TLS context of two PEM files, for TLS 1.2 and later. Raises OSError, of which ssl.SSLError is one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    return context


class Server(uvicorn.Server):
    """uvicorn's server, which stops as this module says. Without `signals` it handles none."""

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
        """Handle signals while serving. uvicorn would raise them again at its end: the exit code would not be 0."""
        if self._signals and threading.current_thread() is threading.main_thread():
            loop = asyncio.get_running_loop()
            for number, drains in SIGNALS.items():
                loop.add_signal_handler(number, self.stop, self._drain if drains else 0)
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then call `on_started`: connections are accepted, and signals handled."""
        await super().startup(sockets)
        self._on_started()

    def stop(self, drain: float = 0) -> None:
        """Stop after `drain` seconds; at once, if it was called before."""
        if self._shutdown.begun.is_set():
            self._shutdown.forced.set()
            self._end(0)
            return
        self._shutdown.begun.set()
        asyncio.get_running_loop().call_later(drain, self._end, self._guard.limits.shutdown_timeout)

    def _end(self, timeout: float) -> None:
        """Accept nothing more, and disconnect the remaining clients after `timeout` seconds."""
        self.should_exit = True
        asyncio.get_running_loop().call_later(timeout, self._disconnect)

    def _disconnect(self) -> None:
        for connection in list(self._guard.open):
            connection.abort()


def make_server(
    application: Any,  # noqa: ANN401 - either kind of ASGI
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
    """Make an HTTP server that logs errors alone.

    The application learns from `shutdown` that the server stops. `problem` renders the body of a refusal by the guard.
    """
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
        proxy_headers=False,  # nothing here depends on the address of a consumer
        timeout_keep_alive=math.ceil(limits.idle_timeout),
        timeout_graceful_shutdown=math.ceil(limits.shutdown_timeout) + BACKSTOP,
        ssl_context_factory=None if tls is None else lambda *_: tls,
    )
    return Server(config, Connection, drain, shutdown or Shutdown(), on_started, signals=signals)


async def serve_with(server: Server, listener: socket.socket, others: dict[Server, socket.socket]) -> None:
    """Serve until told to stop; `others`, such as the server of the metrics port, end after that."""
    beside = [asyncio.create_task(other.serve([opened])) for other, opened in others.items()]
    try:
        await server.serve([listener])
    finally:
        for other in others:
            other.should_exit = True
        await asyncio.gather(*beside)
