"""Structured log lines: JSON off a terminal, words on one.

Rules:
- No personal data. Our log calls give an event, which is a constant, and `extra={"fields": {…}}`; neither holds phone
  numbers, names, paths or text of the upstream.
- Of an exception the type and the places in the code are logged, never its text.
- Messages of libraries may hold values: asyncio's hold the text of exceptions and the arguments of callbacks. Only the
  words before the first value are logged.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, TextIO

import msgspec

from gateway import tracing

WORDS = re.compile(r"[A-Za-z ,.;_-]*(?!\w)")  # the beginning of a message, up to a digit, a quote, a bracket, a path


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """The fields of a log line."""
    line: dict[str, Any] = {
        "time": datetime.fromtimestamp(record.created, UTC),
        "level": record.levelname.lower(),
        "logger": record.name,
        "event": event_of(record),
        **getattr(record, "fields", {}),
    }
    if trace := tracing.trace_id():
        line["traceId"] = trace
    if record.exc_info and record.exc_info[0] is not None:
        frames = traceback.extract_tb(record.exc_info[2])
        line["error"] = record.exc_info[0].__name__
        line["at"] = [f"{frame.filename.rpartition('/')[2]}:{frame.lineno} {frame.name}" for frame in frames]
    return line


def event_of(record: logging.LogRecord) -> str:
    """The event of a log line: the message of our own loggers, the first words of any other."""
    if record.name.partition(".")[0] == "gateway":
        return record.getMessage()
    words = WORDS.match(str(record.msg))
    return (words[0].strip() if words else "") or "message of a library"


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


# end in seconds since 1970, request id, method, route, status, duration in seconds, trace id or nothing
AccessEntry = tuple[float, str, str, str, int, float, str]


class AccessLog:
    """A line for each request. Everything in it is ours: templates, enums and numbers, nothing that needs escaping.

    Requests are gathered for a tenth of a second, and their lines made and written together: at full speed, each by
    itself would cost more than its answer.
    """

    FLUSH_INTERVAL = 0.1  # seconds
    MAX_LINES = 500  # lines

    def __init__(self, form: str, level: str, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._words = is_console(form)
        self._off = logging.getLevelName(level.upper()) > logging.INFO
        self._gathered: list[AccessEntry] = []
        self._second, self._shown = 0, ""

    def write(
        self, now: float, request_id: str, method: str, route: str, status: int, seconds: float, trace: str = ""
    ) -> None:
        """Note a request that ended at `now`, seconds since 1970."""
        if self._off:
            return
        if not self._gathered:
            asyncio.get_running_loop().call_later(self.FLUSH_INTERVAL, self.flush)
        self._gathered.append((now, request_id, method, route, status, seconds, trace))
        if len(self._gathered) >= self.MAX_LINES:
            self.flush()

    def flush(self) -> None:
        """Write the gathered lines."""
        gathered, self._gathered = self._gathered, []
        if gathered:
            stream = self._stream or sys.stderr
            stream.write("".join(map(self._line, gathered)))
            stream.flush()

    def _line(self, access: AccessEntry) -> str:
        now, request_id, method, route, status, seconds, trace = access
        second = int(now)
        if second != self._second:
            form = "%H:%M:%S" if self._words else "%Y-%m-%dT%H:%M:%S"
            self._second, self._shown = second, datetime.fromtimestamp(second, UTC).strftime(form)
        if self._words:
            line = f"{self._shown} info    {method} {route} {status} {seconds:.6f} requestId={request_id}"
            return f"{line} traceId={trace}\n" if trace else f"{line}\n"
        line = (
            f'{{"time":"{self._shown}.{int((now - second) * 1000):03}Z","level":"info","logger":"gateway.access",'
            f'"event":"request","requestId":"{request_id}","method":"{method}","route":"{route}",'
            f'"status":{status},"seconds":{seconds:.6f}'
        )
        return f'{line},"traceId":"{trace}"}}\n' if trace else f"{line}}}\n"


def is_console(form: str) -> bool:
    """Whether lines are words: said so, or not said and read on a terminal."""
    return form == "console" or (not form and sys.stderr.isatty())


def configure(form: str, level: str) -> None:
    """Send all logs to standard error; `form` is json, console, or empty to choose by the terminal."""
    handler = logging.StreamHandler()
    handler.setFormatter(ConsoleFormatter() if is_console(form) else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("httpx", "httpcore"):  # they log addresses
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # it warns of each request that is not HTTP or has an Upgrade
