"""Which port answers what, once the metrics have a port of their own: they are there alone, and nowhere else."""

from __future__ import annotations

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send

from gateway.api import problems


class Ports:
    """An ASGI application around another."""

    def __init__(self, app: ASGIApp, metrics_port: int) -> None:
        self._app = app
        self._metrics_port = metrics_port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == ScopeType.HTTP:
            at_metrics = (scope["server"] or ("", 0))[1] == self._metrics_port
            if at_metrics != (scope["path"] == "/metrics"):
                await problems.send_problem(send, problems.NOT_FOUND, scope["path"], scope["state"]["request_id"])
                return
        await self._app(scope, receive, send)
