"""Missed callers over HTTP: the list, its order, and the calls by which a caller was reached."""

from __future__ import annotations

import csv
import io
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from gateway.simulator.server import Options
from tests.support.consumers import Member, keys_file
from tests.support.lists import CALLS, every_call
from tests.support.stand import Make, Stand

MISSED = f"{CALLS}/missed"
DAY = {"start": "2026-11-17", "end": "2026-11-18", "tz": "America/Chicago"}  # the day before the clock's
TYPES = ("busy", "no_answer", "abandoned")
BUSY = Options(calls_per_day=250)  # each of 100 callers calls a few times
Row = dict[str, Any]


def plain(calls: list[Row], within: list[Row], *, status: bool = False) -> list[Row]:
    """The missed callers of `within` by a count over all `calls` up to now, both newest first."""
    rows = []
    for ani in dict.fromkeys(call["ani"] for call in within if call["ani"] and call["result"] in TYPES):
        missed = [call for call in within if call["ani"] == ani and call["result"] in TYPES]
        later = [call for call in calls if call["ani"] == ani and call["startTime"] >= missed[0]["startTime"]]
        connected = [call["startTime"] for call in later if call["result"] == "connected"]
        sales = {call["status"]["sales"] for call in later if status}
        by_status = next((one for one in ("made_sale", "called_back") if one in sales), None)
        rows.append({
            "ani": ani,
            "clientCode": missed[0]["clientCode"],
            "missedCalls": len(missed),
            "firstMissedAt": missed[-1]["startTime"],
            "reached": "connected" if connected else by_status,
            "reachedAt": connected[-1] if connected else None,
            "lastCall": missed[0],
        })  # fmt: skip
    return sorted(rows, key=lambda row: row["reached"] is not None)


def rows_of(gateway: Stand, path: str, **parameters: Any) -> list[Row]:
    """The rows of all pages."""
    rows: list[Row] = every_call(gateway, path, **parameters)
    return rows


def calls_of(gateway: Stand, **parameters: Any) -> list[Row]:
    return rows_of(gateway, CALLS, limit="1000", **parameters)


@pytest.mark.parametrize("include", [{}, {"include": "status"}], ids=["plain", "status"])
def test_the_list_is_what_counting_the_calls_gives(stand: Make, include: dict[str, str]):
    gateway = stand(BUSY)
    up_to_now = calls_of(gateway, start=DAY["start"], tz=DAY["tz"], **include)
    expected = plain(up_to_now, calls_of(gateway, **DAY, **include), status=bool(include))
    kinds = {row["reached"] for row in expected}
    assert kinds == ({None, "connected", "called_back", "made_sale"} if include else {None, "connected"})
    assert rows_of(gateway, MISSED, **DAY, **include, reached="true", limit="7") == expected
    unreached = [row for row in expected if row["reached"] is None]
    assert rows_of(gateway, MISSED, **DAY, **include, limit="7") == unreached
    assert gateway.get(MISSED, **DAY, **include, limit="1000").json()["data"] == unreached


def test_a_later_call_reaches_a_caller_up_to_now_and_a_call_before_does_not(stand: Make):
    gateway = stand(BUSY)
    rows = gateway.get(MISSED, **DAY, reached="true", limit=1000).json()["data"]
    assert any(row["reachedAt"] and row["reachedAt"] > "2026-11-18T06:00:00Z" for row in rows)  # after the window
    assert all(row["reachedAt"] is None or row["reachedAt"] >= row["lastCall"]["startTime"] for row in rows)


def test_filters_choose_missed_calls_and_any_call_reaches_the_caller(stand: Make):
    gateway = stand(BUSY)
    up_to_now = calls_of(gateway, start=DAY["start"], tz=DAY["tz"])
    campaign = up_to_now[0]["campaign"]
    expected = plain(up_to_now, calls_of(gateway, **DAY, campaign=campaign))
    assert rows_of(gateway, MISSED, **DAY, campaign=campaign, reached="true") == expected
    reached = next(row for row in expected if row["reached"])
    assert [row["ani"] for row in rows_of(gateway, MISSED, **DAY, ani=reached["ani"], reached="true")] == [
        reached["ani"]
    ]
    assert rows_of(gateway, MISSED, **DAY, ani=reached["ani"], campaign=campaign) == []


def test_grace_leaves_recent_missed_calls_out(stand: Make):
    gateway = stand(BUSY)
    start = {"start": "2026-11-18T00:00:00Z"}
    calls = calls_of(gateway, **start)
    for grace in (600, 3600):
        now = int(gateway.clock.now)
        answer = gateway.get(MISSED, **start, grace=grace, reached="true", limit=1000).json()
        early = [call for call in calls if seconds(call["startTime"]) <= now - grace]
        assert answer["data"] == plain(calls, early)
        assert seconds(answer["meta"]["end"]) == now - grace + 1
    assert gateway.get(MISSED, start="2026-11-18T11:00:00Z", grace=86400).json()["data"] == []


def seconds(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp())


def test_csv_and_ndjson_have_the_rows_of_all_pages(stand: Make):
    gateway = stand(BUSY)
    expected = rows_of(gateway, MISSED, **DAY, reached="true")
    *rows, last = map(json.loads, gateway.get(MISSED, **DAY, reached="true", format="ndjson").text.splitlines())
    assert (rows, list(last)) == (expected, ["meta"])
    answer = gateway.get(MISSED, **DAY, reached="true", format="csv")
    assert answer.headers["content-disposition"] == 'attachment; filename="missed.csv"'
    table = list(csv.DictReader(io.StringIO(answer.text)))
    assert [(row["ani"], row["missedCalls"], row["reachedAt"], row["lastCall.id"]) for row in table] == [
        (row["ani"], str(row["missedCalls"]), row["reachedAt"] or "", row["lastCall"]["id"]) for row in expected
    ]
    assert {"lastCall.address.city", "lastCall.extra", "reached"} <= table[0].keys()
    excel = gateway.get(MISSED, **DAY, format="csv", dialect="excel")
    assert next(csv.DictReader(io.StringIO(excel.text)))["firstMissedAt"].startswith("2026-11-17 ")


def test_several_clients_have_rows_of_their_own(stand: Make):
    gateway = stand(Options(clients=3, calls_per_day=100))
    own = [row for code in range(3) for row in rows_of(gateway, f"/clients/800555010{code}/calls/missed", **DAY)]
    every = rows_of(gateway, "/calls/missed", **DAY, client="*", limit="5")
    assert sorted(every, key=str) == sorted(own, key=str)
    starts = [row["lastCall"]["startTime"] for row in every]
    assert starts == sorted(starts, reverse=True)


def test_an_entity_tag_lasts_until_the_list_changes(stand: Make):
    gateway = stand(BUSY)
    first = gateway.get(MISSED, **DAY)
    headers = {"If-None-Match": first.headers["etag"]}
    gateway.clock.now += 2
    again = gateway.client.get(MISSED, params=DAY, headers=headers)
    assert (again.status_code, again.content) == (304, b"")
    changed = gateway.client.get(MISSED, params=DAY | {"limit": "3"}, headers=headers)
    assert changed.status_code == 200
    assert changed.headers["link"].startswith(f"<{MISSED}?cursor=")


def test_a_cursor_belongs_to_its_path(stand: Make):
    gateway = stand(BUSY)
    for path, other in ((CALLS, MISSED), (MISSED, CALLS)):
        cursor = gateway.get(path, **DAY, limit=3).json()["page"]["nextCursor"]
        assert gateway.get(path, cursor=cursor).status_code == 200
        (fault,) = gateway.get(other, cursor=cursor).json()["errors"]
        assert (fault["parameter"], "another path" in fault["detail"]) == ("cursor", True)
    cursor = gateway.get(MISSED, **DAY, limit=3, reached="true").json()["page"]["nextCursor"]
    assert gateway.get(MISSED, **DAY, limit=3, reached="true", cursor=cursor).status_code == 200
    assert gateway.get(MISSED, **DAY, limit=3, cursor=cursor).status_code == 400


def test_the_list_needs_the_scope_personal(stand: Make, tmp_path: Path):
    full, masked = Member("full", scopes=("calls", "personal")), Member("masked", scopes=("calls", "status"))
    gateway = stand(BUSY, auth="keys", keys_file=keys_file(tmp_path, full, masked))
    assert gateway.client.get(MISSED, params=DAY, headers=full.headers).status_code == 200
    assert gateway.client.get(MISSED, params=DAY, headers=masked.headers).status_code == 403
    assert gateway.client.get(MISSED, params=DAY | {"include": "status"}, headers=full.headers).status_code == 403
