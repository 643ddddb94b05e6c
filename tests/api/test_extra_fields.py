"""Promoted extra fields are fields of the call everywhere: lists, exports, filters, masking, the feed, the contract."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from openapi_schema_validator import OAS31Validator, oas31_format_checker

from gateway.api.filters import Filters
from gateway.api.list_query import ListQuery, parse_list_query, render_cursor
from gateway.app import build_extras
from gateway.cache.extents import instant
from gateway.cache.scans import Position
from gateway.errors import InvalidParameters
from gateway.extra_fields import NO_EXTRAS, ExtraField, ExtraFields, parse_extra_fields
from gateway.settings import Settings, SettingsError
from gateway.simulator.server import Options
from tests.support.consumers import Member, keys_file
from tests.support.lists import CALLS, FOLD, every_call
from tests.support.stand import NOW, Make, Stand

TEXT = "CustomA:property,CallerName:callerName!personal"
FIELDS = parse_extra_fields(TEXT)
EXTRAS = ExtraFields(FIELDS)
BUSY = Options(calls_per_day=400)
FULL = Member("full", scopes=("calls", "personal", "status", "recordings"))
MASKED = Member("masked", scopes=("calls",))
KEY = (b"k" * 32,)
Row = dict[str, Any]


def gateway_of(stand: Make, tmp_path: Path, **settings: Any) -> Stand:
    settings = {"auth": "keys", "keys_file": keys_file(tmp_path, FULL, MASKED), "extra_fields": FIELDS} | settings
    return stand(BUSY, **settings)


def get(gateway: Stand, member: Member, path: str, **parameters: Any) -> Any:
    return gateway.client.get(path, params=parameters, headers=member.headers)


def test_a_field_has_the_text_of_its_element_which_stays_in_extra(stand: Make, tmp_path: Path):
    gateway = gateway_of(stand, tmp_path)
    calls = get(gateway, FULL, CALLS, **FOLD).json()["data"]
    assert calls
    for call in calls:
        assert (call["property"], call["callerName"]) == (call["extra"]["CustomA"], call["extra"]["CallerName"])
    assert get(gateway, FULL, f"{CALLS}/{calls[0]['id']}", **FOLD).json()["data"] == calls[0]
    *lines, _ = map(json.loads, get(gateway, FULL, CALLS, **FOLD, format="ndjson").text.splitlines())
    assert lines == calls
    table = csv.DictReader(io.StringIO(get(gateway, FULL, CALLS, **FOLD, format="csv").text))
    assert [(row["property"], row["callerName"]) for row in table] == [(c["property"], c["callerName"]) for c in calls]
    chosen = get(gateway, FULL, CALLS, **FOLD, fields="property,address.city").json()["data"]
    assert chosen[0].keys() == {"id", "clientCode", "startTime", "address", "property"}
    columns = get(gateway, FULL, CALLS, **FOLD, format="csv", fields="callerName,id").text.partition("\r")[0]
    assert columns == "callerName,id"
    for row in get(gateway, FULL, f"{CALLS}/missed", **FOLD, reached="true").json()["data"]:
        assert row["lastCall"]["property"] == row["lastCall"]["extra"]["CustomA"]


def test_a_filter_selects_the_calls_with_the_text(stand: Make, tmp_path: Path):
    gateway = gateway_of(stand, tmp_path, auth="none")
    week = {"start": "2026-10-28", "end": "2026-11-04"}
    calls: list[Row] = every_call(gateway, CALLS, **week, limit="1000")
    wanted = calls[0]["property"]
    expected = [call for call in calls if call["property"] == wanted]
    assert 1 < len(expected) < len(calls)
    for _ in range(2):  # the second time by the texts of extents
        assert every_call(gateway, CALLS, **week, property=wanted, limit="2") == expected
    assert every_call(gateway, CALLS, **week, property=wanted, callerName=expected[0]["callerName"])[0] == expected[0]
    assert every_call(gateway, CALLS, **week, property="none of them") == []
    summary = gateway.get(f"{CALLS}/summary", **week, property=wanted).json()
    assert summary["total"]["calls"] == len(expected)
    missed = every_call(gateway, f"{CALLS}/missed", **week, property=wanted, reached="true")
    results = {"busy", "no_answer", "abandoned"}
    assert len(missed) == len({call["ani"] for call in expected if call["result"] in results} - {None})


def test_summaries_group_by_the_text_of_an_element(stand: Make, tmp_path: Path):
    gateway = gateway_of(stand, tmp_path, auth="none")
    week = {"start": "2026-10-28", "end": "2026-11-04"}
    calls: list[Row] = every_call(gateway, CALLS, **week, limit="1000")
    counts: Counter[str | None] = Counter(call["property"] for call in calls)
    results: Counter[tuple[str | None, str]] = Counter((call["property"], call["result"]) for call in calls)
    callers = defaultdict[str | None, set[str]](set)
    for call in calls:
        callers[call["property"]] |= {call["ani"]} - {None}
    assert 3 < len(counts) < len(results) < len(calls)
    for _ in range(2):  # the second time from memoised aggregates
        rows = gateway.get(f"{CALLS}/summary", **week, groupBy="property").json()["data"]
        assert {row["group"]["property"]: row["calls"] for row in rows} == counts
        assert {row["group"]["property"]: row["uniqueCallers"] for row in rows} == {
            text: len(found) for text, found in callers.items()
        }
        rows = gateway.get(f"{CALLS}/summary", **week, groupBy="result,property").json()["data"]
        assert {(row["group"]["property"], row["group"]["result"]): row["calls"] for row in rows} == results
    *top, rest = gateway.get(f"{CALLS}/summary", **week, groupBy="property", top="2").json()["data"]
    assert [row["calls"] for row in top] == [count for _, count in counts.most_common(2)]
    assert (rest["rest"], rest["calls"]) == (True, len(calls) - sum(row["calls"] for row in top))
    table = gateway.get(f"{CALLS}/summary", **week, groupBy="property", format="csv").text
    cells = csv.DictReader(io.StringIO(table))
    assert {row["group.property"]: int(row["calls"]) for row in cells} == counts


def test_grouping_by_a_personal_field_needs_the_scope(stand: Make, tmp_path: Path):
    gateway = gateway_of(stand, tmp_path)
    path = f"{CALLS}/summary"
    assert get(gateway, MASKED, path, **FOLD, groupBy="callerName").status_code == 403
    assert get(gateway, MASKED, path, **FOLD, groupBy="result,callerName").status_code == 403
    full, masked = (get(gateway, member, path, **FOLD, groupBy="property").json() for member in (FULL, MASKED))
    assert [row["group"] for row in masked["data"]] == [row["group"] for row in full["data"]]
    names = Counter(call["callerName"] for call in get(gateway, FULL, CALLS, **FOLD).json()["data"])
    rows = get(gateway, FULL, path, **FOLD, groupBy="callerName").json()["data"]
    assert {row["group"]["callerName"]: row["calls"] for row in rows} == names
    assert stand(BUSY).client.get(path, params={**FOLD, "groupBy": "property"}).status_code == 400


def test_a_personal_field_is_masked_and_others_are_shown_to_all(stand: Make, tmp_path: Path):
    gateway = gateway_of(stand, tmp_path)
    full, masked = (get(gateway, member, CALLS, **FOLD).json()["data"] for member in (FULL, MASKED))
    assert [call["property"] for call in masked] == [call["property"] for call in full]
    assert {call["callerName"] for call in masked} == {None}
    assert all(call["extra"] == {"CustomA": call["property"]} for call in masked)
    texts = {call["callerName"] for call in full}
    exports = [get(gateway, MASKED, CALLS, **FOLD, format=form).text for form in ("csv", "ndjson")]
    assert not [text for text in texts for export in exports if text in export]
    wanted = full[0]["property"]
    for path in (CALLS, f"{CALLS}/summary"):
        assert get(gateway, MASKED, path, **FOLD, property=wanted).status_code == 200
        assert get(gateway, MASKED, path, **FOLD, callerName="x").status_code == 403
        assert get(gateway, FULL, path, **FOLD, callerName="x").status_code == 200


def test_the_feed_shows_the_fields_and_tells_all_again_when_they_change(stand: Make, tmp_path: Path):
    feed, start = "/clients/8005550100/changes", {"start": "2026-11-17"}
    plain = gateway_of(stand, tmp_path, extra_fields=(), signing_key="k" * 32)
    told = get(plain, FULL, feed, **start, limit=10_000).json()
    promoted = gateway_of(stand, tmp_path, signing_key="k" * 32)
    again = get(promoted, FULL, feed, since=told["page"]["next"], limit=10_000).json()
    calls = [call for item in again["data"] for call in item.get("calls", [])]
    assert len(calls) == again["page"]["calls"] == told["page"]["calls"] > 0
    assert all(call["property"] == call["extra"]["CustomA"] and call["callerName"] for call in calls)
    assert get(promoted, FULL, feed, since=again["page"]["next"]).json()["data"] == []
    masked = get(promoted, MASKED, feed, **start, limit=10_000).json()
    assert {call["callerName"] for item in masked["data"] for call in item["calls"]} == {None}


def test_the_contract_of_the_process_has_the_fields_and_answers_follow_it(stand: Make, tmp_path: Path):
    gateway = gateway_of(stand, tmp_path)
    document = gateway.client.get("/openapi.json").json()
    parameters = document["components"]["parameters"]
    names = {one["name"] for one in parameters.values()}
    assert {"property", "callerName"} <= names
    assert {"property", "callerName"} <= {*document["components"]["schemas"]["CallField"]["enum"]}
    assert {"property", "callerName"} <= {*document["components"]["schemas"]["SummaryGroup"]["enum"]}
    values = document["components"]["schemas"]["GroupValues"]["properties"]
    scopes = {name: "Requires the scope `personal`" in values[name]["description"] for name in values}
    assert (scopes["property"], scopes["callerName"], scopes["areaCode"]) == (False, True, True)
    answers = {
        "CallSummary": get(gateway, FULL, f"{CALLS}/summary", **FOLD, groupBy="property,callerName"),
        "CallPage": get(gateway, FULL, CALLS, **FOLD),
        "MissedPage": get(gateway, FULL, f"{CALLS}/missed", **FOLD),
        "Changes": get(gateway, FULL, "/clients/8005550100/changes", start="2026-11-17"),
    }
    for name, answer in answers.items():
        schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        validator = OAS31Validator(schema, format_checker=oas31_format_checker)
        assert [error.message for error in validator.iter_errors(answer.json())] == []
    for name in ("Call", "FeedCall"):
        schema = document["components"]["schemas"][name]
        assert {"property", "callerName"} <= {*schema["required"]} == schema["properties"].keys()
    other = stand(BUSY).client.get("/openapi.json").json()
    assert "property" not in other["components"]["schemas"]["Call"]["properties"]


def query_of(text: str, extras: ExtraFields) -> ListQuery:
    return parse_list_query(text.encode(), "8005550100", NOW, 0, KEY, "list", extras)


def test_cursors_outlive_a_change_of_the_setting():
    after = Position(instant(NOW), "1", "8005550100")
    cursor, _ = render_cursor(query_of("property=AX-1&limit=7", EXTRAS), after, KEY)
    for extras in (EXTRAS, NO_EXTRAS, ExtraFields((ExtraField("CustomB", "property", personal=True),))):
        query = query_of(f"cursor={cursor}", extras)
        assert (query.filters, query.after) == (Filters(extra=(("CustomA", "AX-1"),)), after)
    plain, _ = render_cursor(query_of("limit=7", NO_EXTRAS), after, KEY)
    assert query_of(f"cursor={plain}", EXTRAS).limit == 7
    fields, _ = render_cursor(query_of("fields=property", EXTRAS), after, KEY)
    assert query_of(f"cursor={fields}", EXTRAS).fields == ("property",)
    with pytest.raises(InvalidParameters, match="no longer has"):
        query_of(f"cursor={fields}", NO_EXTRAS)


def test_a_cursor_does_not_filter_by_an_element_that_has_become_personal(stand: Make, tmp_path: Path):
    before = gateway_of(stand, tmp_path, signing_key="k" * 32)
    wanted = get(before, FULL, CALLS, **FOLD).json()["data"][0]["property"]
    page = get(before, MASKED, CALLS, start="2026-10-28", end="2026-11-04", property=wanted, limit=1).json()["page"]
    after = gateway_of(
        stand, tmp_path, signing_key="k" * 32, extra_fields=parse_extra_fields("CustomA:property!personal")
    )
    assert get(before, MASKED, CALLS, cursor=page["nextCursor"]).status_code == 200
    assert get(after, MASKED, CALLS, cursor=page["nextCursor"]).status_code == 403
    assert get(after, FULL, CALLS, cursor=page["nextCursor"]).status_code == 200


REFUSED = {
    "a field": "CustomA:ani",
    "a field in another case": "CustomA:clientcode",
    "a nested field": "CustomA:address",
    "a parameter": "CustomA:limit",
    "a parameter of the feed": "CustomA:since",
    "a dimension of summaries": "CustomA:hourOfWeek",
    "a dimension in another case": "CustomA:areacode",
    "an element of the protocol": "Result:outcome",
    "a status": "Journal:notes",
    "the recording": "VoiceDirectory:recording",
}


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_a_name_that_is_taken_stops_the_start_in_one_line(text: str):
    with pytest.raises(SettingsError) as raised:
        build_extras(Settings(extra_fields=parse_extra_fields(text)))
    (line,) = str(raised.value).splitlines()
    assert line.startswith("GATEWAY_EXTRA_FIELDS: ")
    assert line.endswith("docs/settings.md#gateway_extra_fields")


def test_a_personal_field_is_not_public_as_well():
    with pytest.raises(SettingsError, match="CallerName is personal, but GATEWAY_EXTRA_PUBLIC names it"):
        build_extras(Settings(extra_fields=FIELDS, extra_public=frozenset({"CallerName"})))
