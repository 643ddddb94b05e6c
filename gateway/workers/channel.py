"""What supervisor and worker tell each other, over a pair of sockets.

A message is a byte that says what it is, four bytes of length, and a body. Both ends see it when the other is gone.
"""

from __future__ import annotations

import asyncio
import socket
from enum import IntEnum


class Kind(IntEnum):
    """What a message says."""

    BEAT = 1  # worker: it lives, and what it has counted
    COUNTED = 2  # worker: the same, because it was asked
    SCRAPE = 3  # worker: the sums of all are wanted
    COLLECT = 4  # supervisor: tell what you have counted
    SUMS = 5  # supervisor: the sums, as text
    STOP = 6  # supervisor: behave as at this signal


class Channel:
    """One end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, end: socket.socket) -> Channel:
        """Take over a socket."""
        return cls(*await asyncio.open_connection(sock=end))

    def send(self, kind: Kind, body: bytes = b"") -> None:
        """Send a message; to one who is gone it is lost."""
        if not self._writer.is_closing():
            self._writer.write(bytes((kind,)) + len(body).to_bytes(4, "big") + body)

    async def receive(self) -> tuple[Kind, bytes]:
        """Wait for a message. Raises EOFError once the other end is gone."""
        try:
            head = await self._reader.readexactly(5)
            return Kind(head[0]), await self._reader.readexactly(int.from_bytes(head[1:], "big"))
        except ConnectionError as error:
            raise EOFError from error

    async def close(self) -> None:
        """Send what is left, and close."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except ConnectionError:
            return
