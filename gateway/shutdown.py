"""The state of the shutdown: set by the server, read by middleware, streams and shutdown hooks."""

from __future__ import annotations

import asyncio


class Shutdown:
    """Two events, which are set by signals and never cleared."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()  # the process is about to stop: streams end, readiness fails
        self.forced = asyncio.Event()  # it stops at once: nothing is waited for
