"""End-to-end tests of filters, fields, ranges, streams, summaries, clients and single calls against the plain list."""

import csv
import io
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest

from gateway.api.dimensions import DIMENSIONS
from gateway.api.summary_table import SummaryFigures, SummaryRow, render_csv
from gateway.model import Window
from gateway.simulator.server import Options
from gateway.slices import finish
from tests.support.figures import Plain, plain_summary
from tests.support.lists import CALLS, FOLD, every_call
from tests.support.stand import Make, Stand

NDJSON = {"Accept": "application/x-ndjson"}
WEEK = {"start": "2026-10-28", "end": "2026-11-04", "tz": "America/Chicago"}
Test = Callable[[dict[str, Any]], bool]


def lines_of(answer: httpx.Response) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    *calls, last = map(json.loads, answer.text.splitlines())
    assert list(last) == ["meta"]
    return calls, last["meta"]


FILTERS: dict[str, tuple[dict[str, str], Test]] = {
    "result": ({"result": "busy"}, lambda call: call["result"] == "busy"),
    "results": ({"result": "busy,no_answer"}, lambda call: call["result"] in ("busy", "no_answer")),
    "campaign": ({"campaign": "4003"}, lambda call: call["campaign"] == "4003"),
    "did": ({"did": "8005550199"}, lambda call: call["did"] == "8005550199"),
    "ani": ({"ani": "3125550142"}, lambda call: call["ani"] == "3125550142"),
    "target": ({"target": "7735550123"}, lambda call: call["target"] == "7735550123"),
    "phone type": ({"phoneType": "cell"}, lambda call: call["phoneType"] == "cell"),
    "duration": ({"minDuration": "600"}, lambda call: call["durationSeconds"] >= 600),
    "two": (
        {"result": "connected", "minDuration": "300"},
        lambda call: call["result"] == "connected" and call["durationSeconds"] >= 300,
    ),
}


def test_filters_keep_what_fits_in_pages_and_streams(stand: Make):
    gateway = stand()
    every, _ = lines_of(gateway.client.get(CALLS, params=WEEK, headers=NDJSON))
    assert len(every) > 1000
    for name, (parameters, fits) in FILTERS.items():
        expected = [call for call in every if fits(call)]
        assert every_call(gateway, CALLS, **WEEK, **parameters, limit="50") == expected, name
        assert lines_of(gateway.get(CALLS, format="ndjson", **WEEK, **parameters))[0] == expected, name
    halves = [every_call(gateway, CALLS, **WEEK, recorded=word, limit="1000") for word in ("true", "false")]
    assert sorted(str(call["id"]) for half in halves for call in half) == sorted(str(call["id"]) for call in every)
    assert all(call["talkTimeSeconds"] for call in halves[0])


def test_fields_choose_what_comes(stand: Make):
    gateway = stand()
    whole = gateway.get(CALLS, **FOLD, limit=3).json()
    part = gateway.get(CALLS, **FOLD, limit=3, fields="ani,address.city,extra").json()
    for before, after in zip(whole["data"], part["data"], strict=True):
        assert list(after) == ["id", "clientCode", "startTime", "ani", "address", "extra"]
        city = before["address"] and {"city": before["address"]["city"]}
        assert (after["ani"], after["address"]) == (before["ani"], city)
    assert gateway.get(CALLS, cursor=part["page"]["nextCursor"]).json()["data"][0].keys() == part["data"][0].keys()
    text = gateway.get(CALLS, **FOLD, format="csv", fields="ani,id").text
    assert text.startswith("ani,id\r\n3125550")


RANGES = {
    "today": ("2026-11-18T06:00:00Z", "2026-11-18T11:06:40Z"),
    "yesterday": ("2026-11-17T06:00:00Z", "2026-11-18T06:00:00Z"),
    "last_7_days": ("2026-11-12T06:00:00Z", "2026-11-18T11:06:40Z"),
    "last_30_days": ("2026-10-20T05:00:00Z", "2026-11-18T11:06:40Z"),
    "this_month": ("2026-11-01T05:00:00Z", "2026-11-18T11:06:40Z"),
    "last_month": ("2026-10-01T05:00:00Z", "2026-11-01T05:00:00Z"),
    "this_year": ("2026-01-01T06:00:00Z", "2026-11-18T11:06:40Z"),
}


def test_a_range_is_resolved_in_its_zone_and_the_answer_says_how(stand: Make):
    gateway = stand(Options(calls_per_day=1))
    for name, edges in RANGES.items():
        meta = gateway.get(CALLS, range=name, tz="America/Chicago", limit=1).json()["meta"]
        assert (meta["start"], meta["end"]) == edges, name


BAD = {
    "range with start": (f"{CALLS}?range=today&start=2026-11-01", "start"),
    "range with end": (f"{CALLS}?range=today&end=2026-11-01", "end"),
    "no range": (f"{CALLS}?range=tomorrow", "range"),
    "no result": (f"{CALLS}?result=lost", "result"),
    "a result of two that is none": (f"{CALLS}?result=busy,lost", "result"),
    "no type of phone": (f"{CALLS}?phoneType=fax", "phoneType"),
    "a filter that is too long": (f"{CALLS}?campaign={'x' * 201}", "campaign"),
    "no boolean": (f"{CALLS}?recorded=yes", "recorded"),
    "no number": (f"{CALLS}?minDuration=-1", "minDuration"),
    "no field": (f"{CALLS}?fields=id,name", "fields"),
    "no format": (f"{CALLS}?format=xml", "format"),
    "a limit of a stream": (f"{CALLS}?format=csv&limit=10", "limit"),
    "a limit of a stream beside its default": (f"{CALLS}?format=ndjson&limit=101&sort=-startTime", "limit"),
    "a dialect of JSON": (f"{CALLS}?dialect=excel", "dialect"),
    "a dialect of NDJSON": (f"{CALLS}?dialect=excel&format=ndjson", "dialect"),
    "no last line of CSV": (f"{CALLS}?meta=none&format=csv", "meta"),
    "a cursor of a stream": (f"{CALLS}?format=ndjson&cursor=x", "cursor"),
    "a list's parameter": (f"{CALLS}/summary?start=2026-11-01&limit=10", "limit"),
    "a summary's parameter": (f"{CALLS}?interval=day", "interval"),
    "a summary of all history": (f"{CALLS}/summary?interval=day", "start"),
    "no interval": (f"{CALLS}/summary?start=2026-11-01&interval=year", "interval"),
    "no group": (f"{CALLS}/summary?start=2026-11-01&groupBy=ani", "groupBy"),
    "three dimensions": (f"{CALLS}/summary?start=2026-11-01&groupBy=did,result&groupBy=state", "groupBy"),
    "the same dimension twice": (f"{CALLS}/summary?start=2026-11-01&groupBy=did,did", "groupBy"),
    "top 0": (f"{CALLS}/summary?start=2026-11-01&groupBy=did&top=0", "top"),
    "top of what": (f"{CALLS}/summary?start=2026-11-01&top=3", "top"),
    "lookback of what": (f"{CALLS}/summary?start=2026-11-01&lookback=30", "lookback"),
    "too long a lookback": (f"{CALLS}/summary?start=2026-11-01&lookback=401d", "lookback"),
    "compared without a start": (f"{CALLS}/summary?compare=previous", "start"),
    "compared with what": (f"{CALLS}/summary?start=2026-11-01&compare=week", "compare"),
    "answered before the call": (f"{CALLS}/summary?start=2026-11-01&answeredWithin=-1", "answeredWithin"),
    "a dialect of a summary as JSON": (f"{CALLS}/summary?start=2026-11-01&dialect=excel", "dialect"),
    "too many buckets": (f"{CALLS}/summary?start=2020-11-01&interval=hour", "interval"),
    "missed callers of all history": (f"{CALLS}/missed", "start"),
    "a result of missed callers": (f"{CALLS}/missed?range=today&result=busy", "result"),
    "no grace": (f"{CALLS}/missed?range=today&grace=-1", "grace"),
    "clients of all history": ("/clients", "start"),
    "clients by pages": ("/clients?range=today&limit=1", "limit"),
    "a summary without a client": ("/calls/summary?range=today", "client"),
    "one client too often": ("/calls?range=today" + "&client=*" * 51, "client"),
    "a zone for a call": (f"{CALLS}/1?tz=Mars", "tz"),
}


def test_parameters_that_are_unknown_or_do_not_go_together_are_named(stand: Make):
    gateway = stand()
    for name, (path, parameter) in BAD.items():
        answer = gateway.client.get(path)
        assert (answer.status_code, answer.json()["type"]) == (400, "/problems/invalid-parameter"), name
        assert parameter in [fault["parameter"] for fault in answer.json()["errors"]], name
    assert gateway.simulator.posts == 0


ACCEPTED = {
    "": "application/json",
    "*/*": "application/json",
    "application/json": "application/json",
    "application/x-ndjson": "application/x-ndjson",
    "application/jsonl": "application/x-ndjson",
    "text/csv": "text/csv; charset=utf-8; header=present",
    "text/*": "text/csv; charset=utf-8; header=present",
    "text/html,application/xhtml+xml,*/*;q=0.8": "application/json",
    "application/json;q=0.5, text/csv": "text/csv; charset=utf-8; header=present",
    "text/csv;q=0, */*": "application/json",
}


def test_accept_chooses_the_form_and_format_outranks_it(stand: Make):
    gateway = stand()
    for accept, media_type in ACCEPTED.items():
        assert gateway.client.get(CALLS, params=FOLD, headers={"Accept": accept}).headers["content-type"] == media_type
    both = gateway.client.get(CALLS, params=FOLD | {"format": "json"}, headers={"Accept": "text/csv"})
    assert both.headers["content-type"] == "application/json"
    for path in (CALLS, f"{CALLS}/1", f"{CALLS}/summary", "/clients"):
        refused = gateway.client.get(path, params={"start": "2026-11-01"}, headers={"Accept": "application/xml"})
        assert (refused.status_code, refused.json()["type"]) == (406, "/problems/not-acceptable")


@pytest.mark.parametrize("sort", ["startTime", "-startTime"])
def test_streams_hold_the_whole_window_in_order(stand: Make, sort: str):
    gateway = stand(Options(clients=2))
    parameters = WEEK | {"sort": sort, "client": "*"}
    listed = every_call(gateway, "/calls", **parameters, limit="1000")
    calls, meta = lines_of(gateway.get("/calls", **parameters, format="ndjson"))
    assert calls == listed
    assert (meta["start"], meta["end"]) == ("2026-10-28T05:00:00Z", "2026-11-04T06:00:00Z")
    assert (meta["stale"], meta["unreadable"]) == (False, 0)
    rows = list(csv.DictReader(io.StringIO(gateway.get("/calls", **parameters, format="csv").text, newline="")))
    assert [row["id"] for row in rows] == [call["id"] for call in listed]
    assert [row["address.city"] for row in rows] == [
        call["address"]["city"] if call["address"] else "" for call in calls
    ]


def test_the_dialect_of_excel_is_in_the_zone_of_the_query(stand: Make):
    gateway = stand()
    plain = gateway.get(CALLS, **FOLD, format="csv", fields="id,startTime").text.splitlines()
    body = gateway.get(
        CALLS, **FOLD, format="csv", fields="id,startTime", dialect="excel", tz="America/Chicago"
    ).content
    assert body.startswith(b"\xef\xbb\xbfid,startTime\r\n")
    lines = body.decode("utf-8-sig").splitlines()
    for line, local in zip(plain[1:], lines[1:], strict=True):
        time = datetime.fromisoformat(line.partition(",")[2]).astimezone(ZoneInfo("America/Chicago"))
        assert local == f"{line.partition(',')[0]},{time:%Y-%m-%d %H:%M:%S}"


def test_a_stream_without_its_last_line_is_never_stale(stand: Make):
    gateway = stand()
    live = {"start": "2026-11-18T00:00:00Z", "end": "2026-11-18T11:00:00Z", "format": "ndjson"}
    whole = gateway.get(CALLS, **live).text.splitlines()
    assert gateway.get(CALLS, **live, meta="none").text.splitlines() == whole[:-1]
    gateway.simulator.misbehave("http-500")
    gateway.clock.now += 600
    assert gateway.get(CALLS, **live).status_code == 200
    assert gateway.get(CALLS, **live, meta="none").status_code == 502


def test_a_window_to_come_is_an_empty_stream(stand: Make):
    gateway = stand()
    calls, _ = lines_of(gateway.get(CALLS, start="2026-12-01", end="2026-12-02", format="ndjson"))
    assert calls == []
    assert gateway.get(CALLS, start="2026-12-01", end="2026-12-02", format="csv").text.startswith("id,clientCode,")
    assert gateway.simulator.posts == 0


@pytest.mark.parametrize("form", ["ndjson", "csv"])
def test_a_stream_that_fails_at_once_is_a_problem_and_later_breaks_off(stand: Make, form: str):
    gateway = stand(Options(faults=("error",)))
    assert gateway.get(CALLS, **WEEK, format=form).status_code == 502
    gateway = stand(stale_if_error=0)
    with gateway.client.stream("GET", CALLS, params=WEEK | {"format": form}) as answer:
        assert answer.status_code == 200
        pieces = answer.iter_text()
        text = next(pieces)
        gateway.simulator.misbehave("error")
        try:
            for piece in pieces:
                text += piece
        except httpx.RemoteProtocolError:
            pass
        else:
            raise AssertionError("a clean end")
    assert '{"meta"' not in text


def test_csv_is_never_stale_and_ndjson_says_that_it_is(stand: Make):
    gateway = stand()
    live = {"start": "2026-11-18T00:00:00Z", "end": "2026-11-18T11:00:00Z"}
    gateway.get(CALLS, **live, format="ndjson")
    gateway.simulator.misbehave("http-500")
    gateway.clock.now += 600
    assert lines_of(gateway.get(CALLS, **live, format="ndjson"))[1]["stale"] is True
    assert gateway.get(CALLS, **live, format="csv").status_code == 502


def check_summary(gateway: Stand, path: str, **parameters: str) -> dict[str, Any]:
    """Compare a summary with counts computed from the list of calls."""
    body: dict[str, Any] = gateway.get(path, **parameters).json()
    only = ("client", "result")
    filters = {name: parameters[name] for name in only if name in parameters} | {"include": "status"}
    zone = ZoneInfo(parameters["tz"])
    start, end = (datetime.fromisoformat(parameters[name]).replace(tzinfo=zone) for name in ("start", "end"))
    length = end - start
    group_by = tuple(filter(None, parameters.get("groupBy", "").split(",")))

    def listed(after: datetime, until: datetime) -> list[dict[str, Any]]:
        edges = {"start": after.isoformat(), "end": until.isoformat()}
        return lines_of(gateway.get(path.removesuffix("/summary"), **edges, **filters, format="ndjson"))[0]

    def plain(after: datetime, until: datetime) -> Plain:
        window = Window(int(after.timestamp()), int(until.timestamp()))
        earlier = listed(after - timedelta(days=2), after) if "lookback" in parameters else []
        interval = parameters.get("interval", "none")
        return Plain(
            listed(after, until), window, window.end, zone=zone, interval=interval, group_by=group_by, earlier=earlier
        )

    previous = plain(start - length, start) if "compare" in parameters else None
    number = {name: int(parameters[name]) for name in ("top", "answeredWithin") if name in parameters}
    rows, total = plain_summary(plain(start, end), previous, top=number.get("top"), within=number.get("answeredWithin"))
    assert body["data"] == rows
    assert body["total"] == total
    return body


@pytest.mark.parametrize("interval", ["none", "hour", "day", "week", "month"])
def test_a_summary_is_what_counting_the_list_gives(stand: Make, interval: str):
    gateway = stand(Options(calls_per_day=40))
    body = check_summary(gateway, f"{CALLS}/summary", **WEEK, interval=interval)
    assert check_summary(gateway, f"{CALLS}/summary", **WEEK, interval=interval) == body
    assert len(body["data"]) == {"none": 1, "hour": 169, "day": 7, "week": 2, "month": 2}[interval]


@pytest.mark.parametrize("group", DIMENSIONS)
def test_groups_are_counted_apart(stand: Make, group: str):
    gateway = stand(Options(calls_per_day=40, clients=3))
    check_summary(gateway, "/calls/summary", **WEEK, client="*", groupBy=group, interval="day")
    check_summary(gateway, "/calls/summary", **WEEK, client="*", groupBy=group, result="busy")


FIGURES = {
    "two dimensions": {"groupBy": "result,hourOfDay"},
    "the clock first": {"groupBy": "dayOfWeek,did", "interval": "day"},
    "two of the clock": {"groupBy": "dayOfWeek,hourOfDay"},
    "the busiest": {"groupBy": "target", "top": "2", "interval": "day"},
    "the busiest pairs": {"groupBy": "phoneType,hourOfWeek", "top": "5"},
    "compared": {"groupBy": "campaign", "top": "1", "compare": "previous", "interval": "day"},
    "waiting": {"answeredWithin": "12", "interval": "day"},
    "a lookback": {"lookback": "2d", "groupBy": "result", "interval": "day", "compare": "previous"},
}


@pytest.mark.parametrize("parameters", FIGURES.values(), ids=FIGURES)
def test_every_kind_of_figure_is_what_counting_the_list_gives(stand: Make, parameters: dict[str, str]):
    gateway = stand(Options(calls_per_day=60, clients=2))
    body = check_summary(gateway, "/calls/summary", **WEEK, client="*", **parameters)
    assert body["total"]["calls"] > 200


def test_a_summary_as_ndjson_and_as_csv_has_the_rows_of_its_json(stand: Make):
    gateway = stand(Options(calls_per_day=40))
    asked = {**WEEK, "groupBy": "did,hourOfDay", "compare": "previous", "interval": "week"}
    body = gateway.get(f"{CALLS}/summary", **asked).json()
    text = gateway.get(f"{CALLS}/summary", **asked, format="ndjson")
    *rows, last = map(json.loads, text.text.splitlines())
    assert rows == body["data"]
    assert (last["total"], last["meta"].keys()) == (body["total"], body["meta"].keys())
    table = gateway.get(f"{CALLS}/summary", **asked, format="csv")
    assert table.headers["content-disposition"] == 'attachment; filename="summary.csv"'
    for row, cells in zip(body["data"], csv.DictReader(io.StringIO(table.text)), strict=True):
        flat = {f"group.{name}": value for name, value in row.pop("group").items()}
        for prefix, figures in (("", row), ("previous.", row.pop("previous") or dict.fromkeys(body["total"]))):
            waits = figures.pop("waitSeconds") or dict.fromkeys(("mean", "p50", "p90"))
            figures.pop("previous", None)
            flat |= {f"{prefix}{name}": value for name, value in figures.items()}
            flat |= {f"{prefix}waitSeconds.{name}": value for name, value in waits.items()}
        assert cells == {name: "" if value is None else json.dumps(value).strip('"') for name, value in flat.items()}
    local = gateway.get(f"{CALLS}/summary", **asked, format="csv", dialect="excel").content
    assert local.decode("utf-8-sig").splitlines()[1].startswith("2026-10-26 00:00:00,")
    assert gateway.client.get(f"{CALLS}/summary", params=asked, headers={"Accept": "text/csv"}).text == table.text


def test_a_group_is_no_formula_of_a_spreadsheet():
    figures: dict[str, Any] = dict.fromkeys(SummaryFigures.__struct_fields__, 1) | {"wait_seconds": None}
    row = SummaryRow(bucket_start=datetime.now(UTC), group={"campaign": "=1+1"}, rest=False, previous=None, **figures)
    text = finish(render_csv([row], ["campaign"], compared=False)).decode()
    assert next(csv.DictReader(io.StringIO(text)))["group.campaign"] == "'=1+1"


def test_empty_buckets_are_there_and_days_have_their_hours(stand: Make):
    gateway = stand(Options(calls_per_day=0))
    days = gateway.get(f"{CALLS}/summary", **WEEK, interval="day").json()["data"]
    assert [row["bucketStart"][5:13] for row in days] == [
        "10-28T05", "10-29T05", "10-30T05", "10-31T05", "11-01T05", "11-02T06", "11-03T06",
    ]  # fmt: skip
    assert {row["calls"] for row in days} == {0}
    grouped = gateway.get(f"{CALLS}/summary", **WEEK, interval="day", groupBy="result").json()["data"]
    assert [(row["group"], row["rest"], row["calls"], row["waitSeconds"]) for row in grouped] == [
        (None, False, 0, None)
    ] * 7
    assert [row["hours"] for row in days] == [24, 24, 24, 24, 25, 24, 24]


def test_clients_are_those_that_had_calls(stand: Make):
    gateway = stand(Options(clients=3, calls_per_day=50))
    body = gateway.get("/clients", **WEEK).json()
    assert [row["clientCode"] for row in body["data"]] == ["8005550100", "8005550101", "8005550102"]
    for row in body["data"]:
        path = f"/clients/{row['clientCode']}/calls"
        assert row["calls"] == len(every_call(gateway, path, **WEEK, limit="1000"))
    assert gateway.get("/clients", start="2026-12-01", end="2026-12-02").json()["data"] == []


def test_one_call_is_found_in_the_cache_in_a_window_or_lately(stand: Make):
    gateway = stand()
    (old,) = gateway.get(CALLS, **FOLD, limit=1, sort="startTime").json()["data"]
    posts = gateway.simulator.posts
    found = gateway.get(f"{CALLS}/{old['id']}")
    assert (found.json()["data"], gateway.simulator.posts) == (old, posts)
    assert gateway.get(f"{CALLS}/{old['id']}", fields="ani").json()["data"].keys() == {
        "id", "clientCode", "startTime", "ani",
    }  # fmt: skip
    fresh = stand()
    assert fresh.get(f"{CALLS}/{old['id']}", **FOLD).json()["data"] == old
    assert fresh.get(f"{CALLS}/{old['id']}", start="2026-11-10", end="2026-11-11").status_code == 404
    assert stand().get(f"{CALLS}/{old['id']}").json()["data"] == old  # within 31 days
    missing = fresh.get(f"{CALLS}/nothing")
    assert (missing.status_code, missing.json()["type"]) == (404, "/problems/not-found")
    assert found.headers["etag"]
    again = gateway.client.get(f"{CALLS}/{old['id']}", headers={"If-None-Match": found.headers["etag"]})
    assert again.status_code == 304


def test_a_call_that_is_not_there_costs_few_posts_however_long_the_window(stand: Make):
    gateway = stand(Options(calls_per_day=1, history=60))
    assert gateway.get(f"{CALLS}/nothing", start="2000-01-01").status_code == 404
    assert gateway.simulator.posts <= 16  # spans of a day, two days, four days and so on reach 26 years with the 14th


def test_one_call_is_as_fresh_as_any_answer(stand: Make):
    gateway = stand()
    (call,) = gateway.get(CALLS, **FOLD, limit=1).json()["data"]
    gateway.clock.now += 30 * 86400
    posts = gateway.simulator.posts
    answer = gateway.get(f"{CALLS}/{call['id']}").json()
    assert answer["data"].pop("recordingUrl") != call.pop("recordingUrl")  # a link is of its hour
    assert (answer["data"], gateway.simulator.posts) == (call, posts + 1)
    assert answer["meta"]["asOf"].startswith("2026-12-18")
