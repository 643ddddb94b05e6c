"""A worker's side: it serves, tells what it counts, and stops when the supervisor says so, or is gone."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from gateway.workers.channel import Channel, Kind
from gateway.workers.sums import render_counted

if TYPE_CHECKING:
    from gateway.connections import Server

BEAT = 1.0  # seconds
PATIENCE = 10.0  # seconds to wait for the sums


class Worker:
    """One worker, at its end of the pair of sockets; `registry` has what it counts."""

    def __init__(self, end: socket.socket) -> None:
        self.registry = CollectorRegistry()
        self._end = end
        self._scrapes: deque[asyncio.Future[bytes]] = deque()

    async def scrape(self) -> bytes:
        """The series of all workers, for Prometheus. Raises TimeoutError."""
        sums: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._scrapes.append(sums)
        self._channel.send(Kind.SCRAPE)
        async with asyncio.timeout(PATIENCE):
            return await sums

    def serve(self, server: Server, sockets: Sequence[socket.socket]) -> None:
        """Serve until told to stop."""
        with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
            runner.run(self._serve(server, sockets))

    async def _serve(self, server: Server, sockets: Sequence[socket.socket]) -> None:
        self._channel = await Channel.open(self._end)
        beating = asyncio.create_task(self._beat(server))
        heeding = asyncio.create_task(self._heed(server))
        try:
            await server.serve(sockets=list(sockets))
        finally:
            for task in (beating, heeding):
                task.cancel()
            self._tell(Kind.COUNTED)
            await self._channel.close()

    async def _beat(self, server: Server) -> None:
        while not server.started:  # noqa: ASYNC110 - uvicorn does not tell
            await asyncio.sleep(0.02)
        while True:
            self._tell(Kind.BEAT)
            await asyncio.sleep(BEAT)

    async def _heed(self, server: Server) -> None:
        while True:
            try:
                kind, body = await self._channel.receive()
            except EOFError:
                server.handle_exit(signal.SIGTERM, None)
                return
            if kind is Kind.COLLECT:
                self._tell(Kind.COUNTED)
            elif kind is Kind.SUMS:
                if not (sums := self._scrapes.popleft()).done():
                    sums.set_result(body)
            elif kind is Kind.STOP:
                server.handle_exit(body[0], None)

    def _tell(self, kind: Kind) -> None:
        self._channel.send(kind, render_counted(self.registry))
