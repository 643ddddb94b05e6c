"""A line on standard error that shows the progress of a command; only on a terminal."""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta

BAR_WIDTH = 24  # characters
LINE_WIDTH = 80  # columns of a terminal that does not report its width


class Progress:
    """The line. An earlier process has completed the share `done` of the work, from 0 to 1, and `calls`."""

    def __init__(self, done: float = 0.0, calls: int = 0) -> None:
        self._first = done, calls
        self._began = time.monotonic()

    def show(self, done: float, calls: int, reached: str) -> None:
        """Show progress, speed and the time left, in the width of the terminal."""
        if not sys.stderr.isatty():
            return
        seconds = max(0.001, time.monotonic() - self._began)
        done = min(1.0, max(0.0, done))
        left = seconds * (1 - done) / max(1e-9, done - self._first[0])
        fields = [
            f"{done:4.0%}",
            f"up to {reached}",
            f"{calls:,} calls",
            f"{(calls - self._first[1]) / seconds:,.0f}/s",
            f"{timedelta(seconds=round(left))} left",
        ]
        width = _width()
        for least in (1, 2, 1, 0):  # the instant, the speed, the number of calls, the share; the time left remains
            if len("  ".join(fields)) > width:
                del fields[least]
        text = "  ".join(fields)
        bar = max(0, min(BAR_WIDTH, width - 1 - len(text)))
        self._draw(f"{'█' * int(done * bar):░<{bar}} {text}".lstrip()[: max(1, width)])

    def note(self, text: str) -> None:
        """Show a text in place of the bar."""
        if sys.stderr.isatty():
            self._draw(text[: _width()])

    def finish(self, calls: int) -> None:
        """Replace the line by the result."""
        self._draw(f"{calls:,} calls in {time.monotonic() - self._began:.1f} s\n")

    def clear(self) -> None:
        """Remove the line."""
        self._draw("")

    def _draw(self, text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _width() -> int:
    """The columns of the terminal, without the last one."""
    return (os.get_terminal_size(sys.stderr.fileno()).columns or LINE_WIDTH) - 1


def print_error(text: str) -> None:
    """Print an error message."""
    print(f"callbutton-gateway: {text}", file=sys.stderr)
