"""The HTTP server around an application: its listening socket and uvicorn."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gateway.connections import Server


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket. Raises OSError, which names the address."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise OSError(error.errno, f"{host} port {port}: {os.strerror(error.errno or 0)}") from error


def listen_together(host: str, port: int, count: int) -> list[socket.socket]:
    """Open several listening sockets of one port, among which the kernel spreads connections. Raises OSError.

    The first is bound by itself, so that a port which somebody else has is refused, and shares from then on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened: list[socket.socket] = []
    try:
        for _ in range(count):
            one = socket.socket(family)
            opened.append(one)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if len(opened) == 1:
                one.bind((host, port))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if len(opened) > 1:
                one.bind(opened[0].getsockname())
        for one in opened:
            one.listen()
    except OSError as error:
        for one in opened:
            one.close()
        raise OSError(error.errno, f"{host} port {port}: {os.strerror(error.errno or 0)}") from error
    return opened


def address_of(opened: socket.socket) -> str:
    """Write the address of a listening socket as consumers use it."""
    host, port = opened.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_server(
    application: Any,  # noqa: ANN401 - either kind of ASGI
    *,
    lifespan: str = "on",
    drain: float = 0,
    stopping: Callable[[], None] = lambda: None,
    problem: Callable[[int, str], bytes] | None = None,
    signals: bool = True,
) -> Server:
    """Make an HTTP server that logs nothing of its own but warnings.

    On SIGTERM it calls `stopping`, and goes on for `drain` seconds. `problem` gives the body of what it refuses itself.
    Without `signals` it heeds none.
    """
    import uvicorn

    from gateway.connections import IDLE, Patience, Server

    class Connection(Patience):
        pass

    if problem is not None:
        Connection.problem = staticmethod(problem)
    config = uvicorn.Config(
        application,
        http=Connection,
        ws="none",
        lifespan=lifespan,  # type: ignore[arg-type]
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing here depends on whom a proxy says that it asks for
        timeout_keep_alive=IDLE,
    )
    return Server(config, drain, stopping, signals=signals)
