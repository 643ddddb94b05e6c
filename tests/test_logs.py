"""Log lines: one for each request, readable by machines and people."""

import asyncio
import io
import json

import pytest

from gateway.logs import AccessLog
from tests.processes import wait_in_loop_for


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


def test_a_level_above_info_has_no_line_for_each_request():
    stream = io.StringIO()

    async def serve() -> None:
        log = AccessLog("json", "warning", stream)
        log.write(1_795_000_000.0, "abc", "GET", "/calls", 200, 0.0015)
        log.flush()

    asyncio.run(serve())
    assert stream.getvalue() == ""
