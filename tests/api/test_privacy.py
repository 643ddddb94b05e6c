"""The logs of a full run contain no personal data."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest

from gateway.simulator.server import PATH
from tests.support.processes import answers, free_port, gateway, reachable, running, wait_for

WINDOW = {"start": "2026-11-01T00:00:00Z", "end": "2026-11-02T00:00:00Z", "include": "status", "limit": "1000"}
TELLING = {"reviewed", "unreviewed", "connected", "busy", "normal", "cell", "payphone", "exact", "none"}  # our enums


def test_a_full_run_logs_no_number_name_or_address_that_the_server_produced(tmp_path: Path):
    faults = ("unknown@8005550100", "unreadable@8005550101", "error@8005550103", "truncate@8005550104")
    options = [word for fault in faults for word in ("--fault", fault)]
    produced: set[str] = set()
    log = tmp_path / "log"
    port, upstream = free_port(), free_port()
    settings = {
        "GATEWAY_UPSTREAM_URL": f"http://127.0.0.1:{upstream}{PATH}",
        "GATEWAY_AUTH": "none",
        "GATEWAY_PORT": str(port),
        "GATEWAY_LOG_FORMAT": "json",
        "GATEWAY_LOG_LEVEL": "debug",
    }
    with (
        running(gateway("simulate", "--port", str(upstream), *options), tmp_path / "simulator.log"),
        running(gateway("serve"), log, **settings),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/readyz"), "the gateway is ready")
        wait_for(lambda: reachable(upstream), "the simulator listens")
        codes = [f"800555{number:04}" for number in range(100, 105)]
        statuses = set()
        for code in codes:
            answer = client.get(f"/clients/{code}/calls", params=WINDOW)
            statuses.add(answer.status_code)
            produced |= {code, *values(answer.json().get("data"))}
        for query in ("client=8005550100&client=8005550101", "client=*", "client=8005550100&ani=3125550100"):
            produced |= values(client.get(f"/calls?{query}&{urlencode(WINDOW)}").json().get("data"))
        for path in (f"/clients/{codes[0]}", f"/{codes[0]}?ani=3125550100", f"/clients/{codes[1]}!/calls"):
            statuses.add(client.get(path).status_code)
        assert statuses & {502, 503}
        assert 404 in statuses
        personal = {value for value in produced if len(value) > 2 and value.lower() not in TELLING}
        assert len(personal) > 500
        assert {"Ada", "Chicago", "8005550100", "Main St"} <= {*personal, *(value[-7:] for value in personal)}
    written = lines(log)
    assert {"request", "upstream failed", "reply needed care"} <= {line["event"] for line in written}
    text = "\n".join(telling(line) for line in written)
    assert [value for value in personal if re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text)] == []


def values(part: Any) -> set[str]:
    """Return every string of a JSON value that comes from the upstream, without the fields that the gateway adds."""
    match part:
        case str():
            return {part}
        case list():
            return {value for item in part for value in values(item)}
        case dict():
            return {value for name, item in part.items() if name != "startTime" for value in values(item)}
    return set()


def lines(log: Path) -> list[dict[str, Any]]:
    """Parse the log. Raises an error if a line is not JSON."""
    return [json.loads(line) for line in log.read_text("utf-8").splitlines()]


def telling(line: dict[str, Any]) -> str:
    """Return a log line as text, without random values and measurements."""
    return json.dumps(
        {name: value for name, value in line.items() if name not in ("time", "seconds", "requestId", "bytes")},
        ensure_ascii=False,
    )


@pytest.mark.parametrize("value", ["8005550100", "O'Neill & Sons", "12 Main St"])
def test_the_search_finds_what_a_line_tells(value: str):
    text = telling({"event": f"for {value}", "requestId": "abc"})
    assert re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text)
