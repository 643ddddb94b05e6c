"""Structured log lines: JSON off a terminal, words on one.

Rule: no personal data. Log calls hand over an event and `extra={"fields": {…}}`; nobody puts numbers, names, paths or
what the upstream said into either. Of an exception the type and the places in the code are logged, not its text.
"""

from __future__ import annotations

import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any

import msgspec


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """Collect what a log line says."""
    line: dict[str, Any] = {
        "time": datetime.fromtimestamp(record.created, UTC),
        "level": record.levelname.lower(),
        "logger": record.name,
        "event": record.getMessage(),
        **getattr(record, "fields", {}),
    }
    if record.exc_info and record.exc_info[0] is not None:
        frames = traceback.extract_tb(record.exc_info[2])
        line["error"] = record.exc_info[0].__name__
        line["at"] = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames]
    return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a line."""
        return msgspec.json.encode(fields_of(record)).decode()


class ConsoleFormatter(logging.Formatter):
    """Words, for people."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a line."""
        line = fields_of(record)
        time, level, _, event = (line.pop(name) for name in ("time", "level", "logger", "event"))
        rest = " ".join(f"{name}={value}" for name, value in line.items())
        return f"{time:%H:%M:%S} {level:7} {event} {rest}".rstrip()


def configure(form: str, level: str) -> None:
    """Send all logs to standard error; `form` is json, console, or empty to choose by the terminal."""
    handler = logging.StreamHandler()
    words = form == "console" or (not form and sys.stderr.isatty())
    handler.setFormatter(ConsoleFormatter() if words else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("httpx", "httpcore", "uvicorn"):  # they log addresses
        logging.getLogger(noisy).setLevel(logging.WARNING)
