"""docs/recipes.md: its queries on mirrored calls have the figures of summaries, and Datasette shows the calls."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from gateway.__main__ import main
from tests.support.connectors import connector
from tests.support.databases import Database
from tests.support.feed import CODE, START, listed
from tests.support.paths import ROOT
from tests.support.processes import answers, free_port, running, wait_for
from tests.support.stand import Make, Stand

PAGE = (ROOT / "docs" / "recipes.md").read_text("utf-8")
QUERIES = {found[1]: found[2] for found in re.finditer(r"```sql\n-- (.*?)\n(.*?)```", PAGE, re.DOTALL)}
Row = dict[str, Any]


@pytest.fixture
def gateway(stand: Make, database: Database) -> Stand:
    """A gateway whose calls are in the database."""
    one = stand()
    words = ["--client", CODE, "--start", START, "--gateway", str(one.client.base_url)]
    assert main(["mirror", database.url, *words]) == 0
    return one


def rows_of(database: Database, name: str, *replaced: tuple[str, str]) -> list[Row]:
    """The rows of the page's query with this comment."""
    text = QUERIES[name]
    for old, new in replaced:
        assert old in text
        text = text.replace(old, new)
    return [row for part in text.split(";") if part.strip() for row in database.query(part)]


def summary(gateway: Stand, **parameters: str) -> list[Row]:
    window = {"start": f"{START}T00:00:00Z"}
    rows: list[Row] = gateway.get(f"/clients/{CODE}/calls/summary", **window, **parameters).json()["data"]
    return rows


def counts(database: Database, name: str, columns: str, *replaced: tuple[str, str]) -> list[tuple[Any, ...]]:
    """Some columns of a query's rows. Numbers of PostgreSQL are compared as such, days as texts."""
    rows = rows_of(database, name, *replaced)
    return [tuple(str(row[one]) if one == "day" else row[one] for one in columns.split()) for row in rows]


def test_every_query_is_tested():
    text = Path(__file__).read_text("utf-8")
    assert [name for name in QUERIES if f'"{name}"' not in text] == []


def test_queries_for_both_databases_count_as_summaries_do(gateway: Stand, database: Database):
    days = [
        (row["bucketStart"][:10], row["calls"], row["connected"], row["missed"])
        for row in summary(gateway, interval="day")
    ]
    name = "Metabase: calls by day, of one client or of all"
    columns = "day calls connected missed"
    assert counts(database, name, columns, ("[[AND client_code = {{client}}]]", "")) == days
    chosen = ("[[", ""), ("]]", ""), ("{{client}}", f"'{CODE}'")
    assert counts(database, name, columns, *chosen) == days
    assert counts(database, name, columns, *chosen[:2], ("{{client}}", "'another'")) == []
    campaigns = rows_of(database, "Campaigns, with the answer rate in per cent")
    assert {row["campaign"]: (row["calls"], row["connected"], float(row["answer_rate"])) for row in campaigns} == {
        row["group"]["campaign"]: (row["calls"], row["connected"], round(100 * row["answerRate"], 1))
        for row in summary(gateway, groupBy="campaign")
    }
    latest = rows_of(database, "The calls that changed last")
    assert len(latest) == 50
    assert {row["id"] for row in latest} <= {id_ for _, id_ in listed(gateway)}


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_queries_for_postgresql_count_as_summaries_do(gateway: Stand, database: Database):
    window = "'2026-11-16T00:00:00Z' AND '2026-11-19T00:00:00Z'"  # as Grafana writes it
    shown = "Grafana, PostgreSQL: calls by hour", "time calls connected"
    hours = counts(database, *shown, ("$__timeFilter(start_time)", f"start_time BETWEEN {window}"))
    assert hours == [
        (row["bucketStart"], row["calls"], row["connected"])
        for row in summary(gateway, interval="hour")
        if row["calls"]
    ]
    week = rows_of(database, "PostgreSQL: calls by hour of the week in Chicago's time, 1 is Monday")
    cells = {(int(row["day_of_week"]) - 1) * 24 + int(row["hour_of_day"]): row["calls"] for row in week}
    zone = "America/Chicago"
    assert cells == {
        row["group"]["hourOfWeek"]: row["calls"] for row in summary(gateway, groupBy="hourOfWeek", tz=zone)
    }
    waits = counts(database, "PostgreSQL: seconds that callers waited, by day (UTC)", "day p50 p90")
    assert waits == [
        (row["bucketStart"][:10], row["waitSeconds"]["p50"], row["waitSeconds"]["p90"])
        for row in summary(gateway, interval="day")
    ]
    talked = rows_of(database, "PostgreSQL: talk time by campaign in November, in Chicago's time")
    assert {row["campaign"]: row["talk_time_seconds"] for row in talked} == {
        row["group"]["campaign"]: row["talkTimeSeconds"]
        for row in summary(gateway, groupBy="campaign", result="connected")
    }
    (behind,) = rows_of(database, "Grafana, PostgreSQL: seconds that the oldest copy is behind")
    ((through,),) = [row.values() for row in database.query("SELECT complete_through FROM feed")]
    assert through
    assert behind["seconds"] is not None


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_the_role_for_reporting_tools_reads_no_token(gateway: Stand, database: Database):
    assert rows_of(database, "PostgreSQL: a role for reporting tools") == []
    with psycopg.connect(database.url.replace("postgres@", "reports@"), autocommit=True) as tool:
        assert tool.execute("SELECT COUNT(*) FROM calls").fetchone() == (len(listed(gateway)),)
        assert tool.execute("SELECT name, calls FROM feed").fetchall() == [("calls", len(listed(gateway)))]
        assert tool.execute("SELECT COUNT(*) FROM missed_callers CROSS JOIN calls_by_day").fetchone() != (0,)
        for statement in ("SELECT token FROM feed", "SELECT signing_key FROM feed", "DELETE FROM calls"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                tool.execute(statement)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_datasette_shows_the_calls_and_no_token(gateway: Stand, database: Database, tmp_path: Path):
    missed = rows_of(database, "SQLite: missed calls by day and hour in Chicago's winter time")
    calls = listed(gateway)
    results = {"busy", "no_answer", "abandoned"}
    assert sum(row["calls"] for row in missed) == sum(call["result"] in results for call in calls.values()) > 0
    metadata = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    command = re.search(r"^datasette (.*) --port 8001$", PAGE, re.MULTILINE)
    assert metadata is not None
    assert command is not None
    (tmp_path / "metadata.yaml").write_text(metadata[1], "utf-8")
    port = free_port()
    words = [connector("datasette"), *command[1].split(), "--port", str(port)]
    address = f"http://127.0.0.1:{port}"
    with (
        running(words, tmp_path / "log", cwd=str(tmp_path)),
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        wait_for(lambda: answers(f"{address}/-/versions.json"), "Datasette answers")
        page = client.get("/calls/calls.json", params={"_facet": "result", "_shape": "objects"}).json()
        facets = page["facet_results"]["result"]["results"]
        assert {one["value"]: one["count"] for one in facets} == {
            row["group"]["result"]: row["calls"] for row in summary(gateway, groupBy="result")
        }
        assert page["filtered_table_rows_count"] == len(calls)
        caller = next(call["ani"] for call in calls.values() if call["ani"])
        found = client.get(f"/calls/calls.json?ani={caller}&_shape=array").json()
        assert {row["id"] for row in found} == {call["id"] for call in calls.values() if call["ani"] == caller}
        days = client.get("/calls/days.json?_shape=array").json()
        assert [(row["day"], row["calls"]) for row in days] == [
            (row["bucketStart"][:10], row["calls"]) for row in summary(gateway, interval="day")
        ]
        assert client.get("/calls/call_back.json?_shape=array").json() == database.query(
            "SELECT * FROM missed_callers ORDER BY last_missed_at DESC"
        )
        for path in ("/calls/feed.json", "/calls/mirror_version.json", "/calls.json?sql=SELECT+token+FROM+feed"):
            assert client.get(path).status_code == 403
        assert client.get("/calls.db").status_code in (403, 404)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_file_for_reporting_tools_has_the_calls_alone(gateway: Stand, database: Database, tmp_path: Path):
    text = QUERIES["SQLite: a file with the calls alone"].replace("'reports.db'", f"'{tmp_path / 'reports.db'}'")
    for _ in range(2):
        with closing(sqlite3.connect(database.url.removeprefix("sqlite:///"), isolation_level=None)) as connection:
            connection.executescript(text)
    with closing(sqlite3.connect(tmp_path / "reports.db")) as reports:
        assert reports.execute("SELECT name FROM sqlite_master").fetchall() == [("calls",)]
        assert set(reports.execute("SELECT client_code, id FROM calls")) == listed(gateway).keys()
