"""The state of the shutdown: set by the server, read by middleware, streams and shutdown hooks."""

from __future__ import annotations

import asyncio


class Shutdown:
    """Two events, which the server sets at a signal and never clears."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()  # the first signal: readiness fails, and streams end
        self.forced = asyncio.Event()  # the second signal: the process stops without waiting for requests or flights
