"""Log lines: one for each request, readable by machines and people."""

import asyncio
import io
import json

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from gateway.logs import AccessLog
from gateway.metrics import RequestTally
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


def test_the_tally_is_a_counter_a_histogram_and_a_gauge():
    registry = CollectorRegistry()
    tally = RequestTally(registry)
    for seconds in (0.0005, 0.001, 0.02, 400.0):
        tally.add("GET", "/calls", 200, seconds)
    tally.under_way = 3
    lines = generate_latest(registry).decode().splitlines()
    for line in (
        'callbutton_gateway_requests_total{method="GET",route="/calls",status="200"} 4.0',
        'callbutton_gateway_request_seconds_bucket{le="0.001",route="/calls"} 2.0',
        'callbutton_gateway_request_seconds_bucket{le="0.025",route="/calls"} 3.0',
        'callbutton_gateway_request_seconds_bucket{le="300.0",route="/calls"} 3.0',
        'callbutton_gateway_request_seconds_bucket{le="+Inf",route="/calls"} 4.0',
        'callbutton_gateway_request_seconds_count{route="/calls"} 4.0',
        'callbutton_gateway_request_seconds_sum{route="/calls"} 400.0215',
        "callbutton_gateway_requests_in_flight 3.0",
    ):
        assert line in lines
