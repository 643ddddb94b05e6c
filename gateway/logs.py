"""Structured log lines: readable text on a terminal, JSON otherwise.

Rules:
- No personal data. Our log calls have a constant message, the event, and `extra={"fields": {…}}`. Neither contains
  phone numbers, names, paths or text of the upstream.
- The type of an exception and its places in the code are logged, never its text.
- Exceptions that nothing caught are logged in the same way, and so are Python's warnings.
- Messages of libraries may contain values: those of asyncio contain the text of exceptions and the arguments of
  callbacks. Only the words before the first value are logged.
"""

from __future__ import annotations

import asyncio
import logging
import re
import sys
import threading
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, NamedTuple, TextIO

import msgspec

from gateway import tracing

LOGGER = logging.getLogger("gateway")
WORDS = re.compile(r"[A-Za-z ,.;_-]*(?!\w)")  # the start of a message, up to a digit, quote, bracket or path


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
    """The event of a log line: the message of our own loggers, the first words of other messages."""
    if record.name.partition(".")[0] == "gateway":
        return record.getMessage()
    words = WORDS.match(str(record.msg))
    return (words[0].strip() if words else "") or "message of a library"


class JsonFormatter(logging.Formatter):
    """Formats a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return msgspec.json.encode(fields_of(record)).decode()


class ConsoleFormatter(logging.Formatter):
    """Formats a record as readable text."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = fields_of(record)
        time, level, _, event = (line.pop(name) for name in ("time", "level", "logger", "event"))
        rest = " ".join(f"{name}={value}" for name, value in line.items())
        return f"{time:%H:%M:%S} {level:7} {event} {rest}".rstrip()


class AccessEntry(NamedTuple):
    """A request that ended at `time`, in seconds since 1970. Fields that do not apply are empty."""

    time: float
    request_id: str
    method: str
    route: str  # a template
    status: int
    seconds: float
    consumer: str = ""  # its name
    cache: str = ""  # of `Cache-Status`: hit, stale, partial or miss
    trace_id: str = ""


class AccessLog:
    """One line for each request.

    The fields are route templates, enums and numbers, so only the name of a consumer needs escaping. Lines are buffered
    and written together, as at full speed writing each of them would take longer than a cached response.
    """

    FLUSH_INTERVAL = 0.1  # seconds; the delay of a line
    MAX_LINES = 500  # lines; bounds the buffer

    def __init__(self, form: str, level: str, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._console = is_console(form)
        self._off = logging.getLevelName(level.upper()) > logging.INFO
        self._buffer: list[AccessEntry] = []
        self._second, self._shown = 0, ""

    def write(self, entry: AccessEntry) -> None:
        """Add a request."""
        if self._off:
            return
        if not self._buffer:
            asyncio.get_running_loop().call_later(self.FLUSH_INTERVAL, self.flush)
        self._buffer.append(entry)
        if len(self._buffer) >= self.MAX_LINES:
            self.flush()

    def flush(self) -> None:
        """Write the buffered lines."""
        entries, self._buffer = self._buffer, []
        if entries:
            stream = self._stream or sys.stderr
            stream.write("".join(map(self._line, entries)))
            stream.flush()

    def _line(self, entry: AccessEntry) -> str:
        now, request_id, method, route, status, seconds, consumer, cache, trace = entry
        second = int(now)
        if second != self._second:
            form = "%H:%M:%S" if self._console else "%Y-%m-%dT%H:%M:%S"
            self._second, self._shown = second, datetime.fromtimestamp(second, UTC).strftime(form)
        consumer = msgspec.json.encode(consumer).decode()
        if self._console:
            line = f"{self._shown} info    {method} {route} {status} {seconds:.6f} requestId={request_id}"
            others = {"consumer": consumer.strip('"'), "cache": cache, "traceId": trace}
            return line + "".join(f" {name}={text}" for name, text in others.items() if text) + "\n"
        return (
            f'{{"time":"{self._shown}.{int((now - second) * 1000):03}Z","level":"info","logger":"gateway.access",'
            f'"event":"request","requestId":"{request_id}","method":"{method}","route":"{route}",'
            f'"status":{status},"seconds":{seconds:.6f}'
            + (f',"consumer":{consumer}' if len(consumer) > 2 else "")
            + (f',"cache":"{cache}"' if cache else "")
            + (f',"traceId":"{trace}"' if trace else "")
            + "}\n"
        )


def is_console(form: str) -> bool:
    """Whether log lines are text: GATEWAY_LOG_FORMAT is `console`, or empty and standard error is a terminal."""
    return form == "console" or (not form and sys.stderr.isatty())


def log_exception(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    """Log an exception that nothing caught."""
    if error is not None:
        LOGGER.error("exception was not caught", exc_info=(kind, error, trace))


def configure(form: str, level: str) -> None:
    """Send all logs to standard error. `form` is `json`, `console`, or empty for `console` on a terminal."""
    handler = logging.StreamHandler()
    handler.setFormatter(ConsoleFormatter() if is_console(form) else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(capture=True)
    sys.excepthook = log_exception
    sys.unraisablehook = lambda hook: log_exception(hook.exc_type, hook.exc_value, hook.exc_traceback)
    threading.excepthook = lambda hook: log_exception(hook.exc_type, hook.exc_value, hook.exc_traceback)
    logging.raiseExceptions = False  # a line that cannot be formatted would be printed with its values
    for noisy in ("httpx", "httpcore"):  # they log URLs
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.getLogger("uvicorn").setLevel(logging.ERROR)  # its warnings: invalid requests, Upgrade
