"""Log lines: one for each request, as JSON or as text."""

import asyncio
import gc
import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from gateway.logs import AccessEntry, AccessLog, ConsoleFormatter, JsonFormatter, event_of
from tests.support.processes import wait_in_loop_for

ENTRY = AccessEntry(1_795_000_000.25, "abc", "GET", "/calls", 200, 0.0015)
FULL = ENTRY._replace(consumer='a"b\n', cache="hit", trace_id="4bf9")


@pytest.mark.parametrize(
    ("form", "entry", "expected"),
    [
        (
            "json",
            ENTRY,
            {
                "time": "2026-11-18T11:06:40.250Z",
                "level": "info",
                "logger": "gateway.access",
                "event": "request",
                "requestId": "abc",
                "method": "GET",
                "route": "/calls",
                "status": 200,
                "seconds": 0.0015,
            },
        ),
        ("console", ENTRY, "11:06:40 info    GET /calls 200 0.001500 requestId=abc"),
        (
            "json",
            FULL,
            {
                "time": "2026-11-18T11:06:40.250Z",
                "level": "info",
                "logger": "gateway.access",
                "event": "request",
                "requestId": "abc",
                "method": "GET",
                "route": "/calls",
                "status": 200,
                "seconds": 0.0015,
                "consumer": 'a"b\n',
                "cache": "hit",
                "traceId": "4bf9",
            },
        ),
        (
            "console",
            FULL,
            r"11:06:40 info    GET /calls 200 0.001500 requestId=abc consumer=a\"b\n cache=hit traceId=4bf9",
        ),
    ],
    ids=["json", "console", "json, every field", "console, every field"],
)
def test_a_request_is_one_line_that_appears_soon(form: str, entry: AccessEntry, expected: object):
    stream = io.StringIO()

    async def serve() -> None:
        AccessLog(form, "info", stream).write(entry)
        await wait_in_loop_for(stream.getvalue, "a line")

    asyncio.run(serve())
    (line,) = stream.getvalue().splitlines()
    assert (json.loads(line) if form == "json" else line) == expected


def fail(number: str) -> None:
    raise KeyError(number)


async def fail_later(number: str) -> None:
    fail(number)


async def forget_a_task() -> None:
    task = asyncio.create_task(fail_later("8005550100"))
    await asyncio.wait([task])
    del task
    gc.collect()


async def fail_in_a_callback() -> None:
    asyncio.get_running_loop().call_soon(fail, "8005550100")
    await asyncio.sleep(0)


@pytest.mark.parametrize("formatter", [JsonFormatter(), ConsoleFormatter()], ids=["json", "console"])
@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize(
    ("work", "event"),
    [(forget_a_task, "Task exception was never retrieved"), (fail_in_a_callback, "Exception in callback")],
)
def test_asyncio_s_own_lines_tell_the_type_of_an_exception_and_nothing_of_its_text(
    work: Callable[[], Coroutine[Any, Any, None]],
    event: str,
    run: Callable[[Coroutine[Any, Any, None]], None],
    formatter: logging.Formatter,
    monkeypatch: pytest.MonkeyPatch,
):
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    monkeypatch.setattr(logging.getLogger("asyncio"), "handlers", [handler])
    run(work())
    (line,) = stream.getvalue().splitlines()
    assert event in line
    assert "KeyError" in line
    assert "test_logs.py" in line
    assert "8005550100" not in line


@pytest.mark.parametrize(
    ("message", "event"),
    [
        ("Invalid HTTP request received.", "Invalid HTTP request received."),
        ("Failed to export span batch code: %s, reason: %s", "Failed to export span batch code"),
        ("no route to /clients/8005550100", "no route to"),
        ("8005550100 is not there", "message of a library"),
        ("lookup of 'Ada' failed", "lookup of"),
        ("Ada8005550100", "message of a library"),
    ],
)
def test_of_a_library_s_message_the_words_before_the_first_value_are_logged(message: str, event: str):
    record = logging.LogRecord("library.part", logging.ERROR, __file__, 1, message, (), None)
    assert event_of(record) == event


def test_a_level_above_info_has_no_line_for_each_request():
    stream = io.StringIO()

    async def serve() -> None:
        log = AccessLog("json", "warning", stream)
        log.write(ENTRY)
        log.flush()

    asyncio.run(serve())
    assert stream.getvalue() == ""


UNCAUGHT = """\
import threading, warnings, weakref
from gateway import logs
logs.configure("json", "info")

def fail(*_):
    raise KeyError("8005550100")

class Thing:
    __del__ = fail

Thing()
thread = threading.Thread(target=fail)
thread.start()
thread.join()
warnings.warn("8005550100")
logs.LOGGER.info("8005550100 %s %s", "one")
fail()
"""


def test_exceptions_that_nothing_catches_and_warnings_do_not_show_their_values():
    done = subprocess.run([sys.executable, "-c", UNCAUGHT], capture_output=True, text=True, timeout=60, check=False)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert (done.returncode, done.stdout) == (1, "")
    assert [line.get("error") for line in lines] == ["KeyError", "KeyError", None, "KeyError"]
    assert lines[2]["logger"] == "py.warnings"
    assert "8005550100" not in done.stderr
