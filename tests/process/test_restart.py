"""Tokens of the change feed, cursors and links stay valid across a restart."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.simulator.server import PATH, Options, create
from tests.process.served import REAL, served
from tests.support.feed import CODE
from tests.support.stand import serving

FEED = f"/clients/{CODE}/changes"


def asked(address: str, path: str, **parameters: Any) -> httpx.Response:
    return httpx.get(address + path, params=parameters, timeout=60)


@pytest.fixture(scope="module")
def few_calls() -> Iterator[str]:
    """The address of a simulator with few calls."""
    with serving(create(Options(calls_per_day=20))) as port:
        yield f"http://127.0.0.1:{port}{PATH}"


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGKILL])
def test_what_was_signed_is_good_after_a_restart_with_the_same_key(
    few_calls: str, tmp_path: Path, stop: signal.Signals
):
    folders = [tmp_path / name for name in ("first", "second", "third")]
    for folder in folders:
        folder.mkdir()
    with served(few_calls, folders[0], bounds=REAL) as first:
        page = asked(first.address, FEED, limit=10_000).json()["page"]
        cursor = asked(first.address, f"/clients/{CODE}/calls", limit=1, end="2026-11-01").json()["page"]["nextCursor"]
        link = asked(first.address, FEED, link="true").json()["url"]
        first.stop(stop)
    with served(few_calls, folders[1], bounds=REAL) as second:
        body = asked(second.address, FEED, since=page["next"], limit=10_000).json()
        assert sum(len(item["calls"]) for item in body["data"] if item["op"] == "replace") < page["calls"]
        assert body["page"]["upToDate"]
        assert asked(second.address, f"/clients/{CODE}/calls", cursor=cursor).status_code == 200
        assert asked(second.address, f"{link}&since={body['page']['next']}").status_code == 200
    with served(few_calls, folders[2], bounds=REAL, signing_key="n" * 32) as third:
        refused = asked(third.address, FEED, since=page["next"])
        assert (refused.status_code, refused.json()["errors"][0]["parameter"]) == (400, "since")
