"""Log lines: one for each request, as JSON or as text."""

import asyncio
import gc
import io
import json
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from gateway.logs import AccessLog, ConsoleFormatter, JsonFormatter, event_of
from tests.support.processes import wait_in_loop_for


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (
            "json",
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
        ("console", "11:06:40 info    GET /calls 200 0.001500 requestId=abc"),
    ],
)
def test_a_request_is_one_line_that_appears_soon(form: str, expected: object):
    stream = io.StringIO()

    async def serve() -> None:
        AccessLog(form, "info", stream).write(1_795_000_000.25, "abc", "GET", "/calls", 200, 0.0015)
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
        log.write(1_795_000_000.0, "abc", "GET", "/calls", 200, 0.0015)
        log.flush()

    asyncio.run(serve())
    assert stream.getvalue() == ""
