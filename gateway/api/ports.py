"""Which port answers what, once the metrics have a port of their own: they are there alone, and nowhere else."""

from __future__ import annotations

from litestar.types import HTTPScope, Receive, Send

from gateway.api import problems
from gateway.api.negotiation import HTTPApp


class Ports:
    """An ASGI application around another."""

    def __init__(self, app: HTTPApp, metrics_port: int) -> None:
        self._app = app
        self._metrics_port = metrics_port

    async def __call__(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        at_metrics = (scope["server"] or ("", 0))[1] == self._metrics_port
        if at_metrics == (scope["path"] == "/metrics"):
            await self._app(scope, receive, send)
        else:
            await problems.send_problem(send, problems.NOT_FOUND, scope["path"], scope["state"]["request_id"])
