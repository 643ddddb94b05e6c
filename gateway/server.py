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
) -> Server:
    """Make an HTTP server that logs nothing of its own but warnings.

    On SIGTERM it calls `stopping`, and goes on for `drain` seconds. `problem` gives the body of what it refuses itself.
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
    return Server(config, drain, stopping)
