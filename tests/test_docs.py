"""README.md and docs/ match the code: settings, metrics, parameters, problems, commands, the example."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from benchmarks import cache, serving
from docs import generate
from gateway.access import ANONYMOUS
from gateway.api import problems, query
from gateway.api.calendars import Calendar
from gateway.api.dimensions import DIMENSIONS
from gateway.api.summary_query import parse_summary_query
from gateway.api.summary_table import COLUMNS, Period, make_rows, render_csv
from gateway.cache.aggregates import AggregateSpec, Aggregator
from gateway.cache.extents import make_extent
from gateway.cli import COMMANDS
from gateway.cli.demo import demo_paths
from gateway.metrics import Metrics
from gateway.model import CallResult
from gateway.settings import OPTIONS, Settings, variable
from gateway.slices import finish
from tests.support.paths import ROOT
from tests.support.stand import Make
from tests.support.upstream import call

README = (ROOT / "README.md").read_text("utf-8")
API, PERFORMANCE = ((ROOT / "docs" / name).read_text("utf-8") for name in ("api.md", "performance.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]


def between(text: str, marker: str) -> str:
    """The part of a page between two markers."""
    return text.split(f"<!-- {marker} -->\n")[1].split(f"<!-- /{marker} -->")[0]


@pytest.mark.parametrize("file", generate.PAGES)
def test_a_page_that_is_made_from_the_code_is_up_to_date(file: str):
    assert generate.PAGES[file]() == (generate.DOCS / file).read_text("utf-8")


@pytest.mark.parametrize("name", OPTIONS)
def test_the_default_of_a_setting_on_its_page_is_the_default(name: str):
    default, option = getattr(Settings(), name), OPTIONS[name]
    if option.default == "random":
        assert default != getattr(Settings(), name)
    else:
        assert default == option.parser.parse(option.default) if option.default else not default


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_names_no_setting_and_no_series_that_does_not_exist(page: Path):
    text, registry = page.read_text("utf-8"), CollectorRegistry()
    Metrics(registry)
    exposed = {family.name + ("_total" if family.type == "counter" else "") for family in registry.collect()}
    assert set(map(variable, OPTIONS)) >= set(re.findall(r"GATEWAY_[A-Z_]*[A-Z]", text))
    assert exposed >= set(re.findall(r"callbutton_gateway_\w+", text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_link_to_a_file_leads_to_one(page: Path):
    links = re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_leads_to_no_other_host(page: Path):
    hosts = set(re.findall(r"https?://([\w.-]+)", page.read_text("utf-8")))
    assert hosts <= {"127.0.0.1", "callbutton.example", "gateways", "app.example"}


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


def test_every_parameter_is_in_the_table_and_nothing_else_is():
    firsts = re.findall(r"^\| (`.*?`) \|", between(API, "parameters"), re.MULTILINE)
    named = {name for first in firsts for name in re.findall(r"`(\w+)`", first)}
    assert {parameter.name for parameter in (query.CLIENT, *query.PARAMETERS)} == named


def test_every_problem_is_in_the_table_with_its_status_and_nothing_else_is():
    kinds = {*problems.PROBLEM_TYPES.values(), problems.NOT_FOUND, problems.NOT_ALLOWED, problems.INTERNAL}
    named = re.findall(r"^\| (\d{3}) \| `([a-z-]+)` \|", between(API, "problems"), re.MULTILINE)
    assert {(str(kind.status), kind.name) for kind in kinds} == set(named)


def test_every_command_is_in_the_readme_and_nothing_else_is():
    table = README.split("| command | does | exit codes |\n|---|---|---|\n")[1].split("\n\n")[0]
    assert list(COMMANDS) == re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)


def test_the_example_is_what_the_demo_answers(stand: Make):
    block = between(README, "example")
    shown = json.loads(block.split("```json\n")[1].split("```")[0])
    command = re.search(r"curl -H \"X-API-Key: \$KEY\" 'http://127.0.0.1:8080(.*)'", block)
    assert command is not None
    assert command[1] == demo_paths(datetime(2026, 11, 23, tzinfo=UTC))[0]
    answer = stand().client.get(command[1]).json()
    links = [call.pop("recordingUrl") for call in (*answer["data"], *shown["data"])]  # signed by a key, until an hour
    assert all(link.startswith("/recordings/") for link in links)
    assert answer["data"] == shown["data"]
    assert list(answer) == list(shown)
    assert list(answer["data"][0]) == list(shown["data"][0])
    # Values that depend on the time or on the key of a process.
    varying = {"asOf", "oldestFetch", "nextCursor"}
    for part in ("page", "meta"):
        assert list(answer[part]) == list(shown[part])
        assert [answer[part][name] for name in answer[part] if name not in varying] == [
            shown[part][name] for name in shown[part] if name not in varying
        ]
    assert answer["page"]["nextCursor"]


def test_the_cache_s_table_is_what_the_benchmark_writes():
    _, measured, _ = cache.table(PERFORMANCE)
    assert [case.name for case in cache.cases()] == list(measured)
    assert all(measured.values())
    assert cache.rewritten(PERFORMANCE, measured) == PERFORMANCE
    first = cache.cases()[0].name
    assert cache.table(cache.rewritten(PERFORMANCE, {first: "much"}))[1] == measured | {first: "much"}


def test_the_table_of_speed_is_what_the_benchmark_writes():
    figures = PERFORMANCE.split(serving.MARKERS[0])[1].split(serving.MARKERS[1])[0]
    rows = [line.strip("| ").split(" | ") for line in figures.splitlines() if line.startswith("|")][2:]
    assert [row[0] for row in rows] == [*serving.PEERS, *serving.OURS]
    assert rows[0][1:] == ["1.00", "1.00", "1.0"]
    assert all(float(cell) > 0 for row in rows for cell in row[1:])
    assert serving.rewritten(PERFORMANCE, figures) == PERFORMANCE
    assert serving.PLOT.read_text("utf-8").count("<rect") == len(rows) + 1


def test_the_transcript_of_paging_through_a_live_window_is_what_happens(stand: Make):
    gateway = stand()
    path, minutes = "/clients/8005550100/calls", 20
    asked: dict[str, Any] = {"range": "today", "limit": 40}
    lines = ["| at | asked | calls | of these hours | `meta.end` |", "|---|---|---|---|---|"]
    seen: list[str] = []
    there = gateway.get(path, range="today", limit=1000).json()["data"]
    end = ""
    while asked:
        body = gateway.get(path, **asked).json()
        calls, at = body["data"], datetime.fromtimestamp(gateway.clock.now, UTC)
        end = end or body["meta"]["end"]
        assert body["meta"]["end"] == end
        written = "range=today&limit=40" if "range" in asked else "cursor=…"
        hours = f"{calls[0]['startTime'][11:16]} back to {calls[-1]['startTime'][11:16]}"
        lines.append(f"| {at:%H:%M} | `{path}?{written}` | {len(calls)} | {hours} | {end} |")
        seen += [call["id"] for call in calls]
        asked = {"cursor": cursor} if (cursor := body["page"]["nextCursor"]) else {}
        gateway.clock.now += minutes * 60
    arrived = gateway.get(path, start=end, limit=1000).json()["data"]
    at = datetime.fromtimestamp(gateway.clock.now, UTC)
    lines.append(f"| {at:%H:%M} | `{path}?start={end}` | {len(arrived)} | arrived meanwhile | |")
    # A call that was published late may be included; every other call is returned exactly once.
    assert len(set(seen)) == len(seen)
    assert {call["id"] for call in there} <= set(seen)
    assert len(arrived) > 5
    assert between(API, "paging") == "\n".join(lines) + "\n"


def test_the_worked_example_of_reports_is_what_a_summary_counts():
    reports = (ROOT / "docs" / "reports.md").read_text("utf-8")
    midnight = int(datetime(2026, 11, 1, tzinfo=UTC).timestamp())
    calls = []
    for number, line in enumerate(between(reports, "calls").splitlines()[2:]):
        start, ani, result, duration, talk = (cell.strip(" `") for cell in line.strip("|").split("|"))
        hour, minute = map(int, start.split(":"))
        made = call(str(number), midnight + hour * 3600 + minute * 60)
        seconds = {"duration_seconds": int(duration), "talk_time_seconds": int(talk)}
        calls.append(replace(made, ani=ani, result=CallResult(result), **seconds))
    asked = b"start=2026-11-01T09:00:00Z&end=2026-11-01T11:00:00Z&answeredWithin=20"
    query = parse_summary_query(asked, "a", midnight + 86400, 0)
    calendar = Calendar(query.window, query.interval, query.zone)
    aggregator = Aggregator(AggregateSpec("", calendar.slots, None, list, math.inf))
    finish(aggregator.add([make_extent(query.window, 0, calls)]))
    period = Period(aggregator, calendar, finish(calendar.seconds(query.window.end)))
    rows, _ = finish(make_rows(query, period, None, ANONYMOUS))
    (figures,) = csv.DictReader(io.StringIO(finish(render_csv(rows, (), compared=False)).decode()))
    rows_of = [
        [cell.strip(" `") for cell in line.strip("|").split("|")]
        for line in between(reports, "figures").splitlines()[2:]
    ]
    assert {name: example for name, _, example in rows_of} == {name: figures[name] for name in COLUMNS}


def test_the_dimensions_of_reports_are_those_of_summaries():
    reports = (ROOT / "docs" / "reports.md").read_text("utf-8")
    table = reports.partition("| dimension | value | scope |")[2].partition("\n\n")[0]
    rows = [[re.findall(r"`(\w+)`", cell) for cell in line.split("|")[1:4]] for line in table.splitlines()[2:]]
    assert {name: (scopes or [None])[0] for names, _, scopes in rows for name in names} == {
        name: dimension.scope for name, dimension in DIMENSIONS.items()
    }
