"""A line on the terminal that says how far an export has come. Off a terminal it is silent."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime

WIDTH = 24  # characters of the bar


class Progress:
    """The way through a window, in seconds since 1970."""

    def __init__(self, start: int, end: int) -> None:
        self._start = start
        self._end = end
        self._began = time.monotonic()
        self._shown = sys.stderr.isatty()

    def show(self, upto: int, calls: int) -> None:
        """Draw the line anew."""
        if self._shown:
            done = min(1.0, max(0.0, (upto - self._start) / max(1, self._end - self._start)))
            bar = "█" * int(done * WIDTH) + "░" * (WIDTH - int(done * WIDTH))
            day = datetime.fromtimestamp(upto, UTC)
            print(
                f"\r\x1b[K{bar} {done:4.0%}  up to {day:%Y-%m-%d %H:%M}Z  {calls:,} calls",
                end="",
                file=sys.stderr,
                flush=True,
            )

    def end(self, calls: int) -> None:
        """Replace the line by what was done."""
        if self._shown:
            seconds = time.monotonic() - self._began
            print(f"\r\x1b[K{calls:,} calls in {seconds:.1f} s", file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Take the line away."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
