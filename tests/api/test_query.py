"""Queries are read once: empty values, defaults, lists in every form, and cursors that are small and encrypted."""

from __future__ import annotations

import base64
import json
import random
import zlib
from typing import Any
from urllib.parse import parse_qsl, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.list_query import MAX_CURSOR, ListQuery, parse_list_query, render_cursor
from gateway.api.query import PARAMETERS, parse_call_query
from gateway.api.summary_query import parse_summary_query
from gateway.cache.extents import instant
from gateway.cache.scans import Position
from gateway.callbutton.record import MAX_ID
from gateway.errors import InvalidParameters
from gateway.formats import FIELDS
from gateway.model import CallResult, PhoneType
from tests.support.lists import CALLS, FOLD
from tests.support.stand import NOW, Make

KEY = (b"k" * 32,)
AFTER = Position(instant(NOW), "188231", "8005550100")
DEFAULTS = {"tz": "UTC", "sort": "-startTime", "limit": "100"}


def parse(query: str, code: str | None = "8005550100", *, now: float = NOW) -> ListQuery:
    return parse_list_query(query.encode(), code, now, 0, KEY)


def faults_of(query: str, code: str | None = "8005550100") -> list[str]:
    with pytest.raises(InvalidParameters) as raised:
        parse(query, code)
    return [fault.parameter for fault in raised.value.faults]


NAMES = sorted({parameter.name for parameter in PARAMETERS if "list" in parameter.routes.split()})


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_value_is_as_good_as_absent(name: str):
    assert parse(f"{name}=") == parse(name) == parse(f"{name}=&{name}=") == parse("")


@pytest.mark.parametrize("name", ["tz", "sort", "limit"])
@pytest.mark.parametrize("path", ["", "format=csv", "format=ndjson", "range=today&minDuration=3"])
def test_a_default_is_as_good_as_absent(name: str, path: str):
    assert parse(f"{path}&{name}={DEFAULTS[name]}".lstrip("&")) == parse(path)


def test_defaults_of_summaries_and_single_calls_are_as_good_as_absent():
    day = b"start=2026-11-01&end=2026-11-02"
    plain = parse_summary_query(day, "1", NOW, 0)
    assert parse_summary_query(day + b"&interval=none&tz=UTC&groupBy=", "1", NOW, 0) == plain
    assert parse_call_query(b"start=&end=&range=&tz=UTC&fields=", "1", NOW, 0) == parse_call_query(b"", "1", NOW, 0)


LISTS = {
    "with a comma": "result=busy,no_answer&phoneType=cell,other&fields=ani,did",
    "in another order": "fields=ani,did&phoneType=other,cell&result=no_answer,busy",
    "repeated": "result=busy&result=no_answer&phoneType=cell&phoneType=other&fields=ani&fields=did",
    "both": "result=busy,no_answer&result=busy&phoneType=cell&phoneType=other,cell&fields=ani&fields=did,ani",
    "with brackets": "result[]=busy&result[]=no_answer&phoneType[]=cell,other&fields%5B%5D=ani&fields%5B%5D=did",
    "numbered": "result[0]=busy&result[1]=no_answer&phoneType[0]=cell&phoneType[1]=other&fields[0]=ani&fields[1]=did",
    "with empty elements": "result=,busy,&result=no_answer&result=&phoneType=cell,,other&fields=ani,did,",
}


@pytest.mark.parametrize("query", LISTS.values(), ids=LISTS)
def test_a_list_is_the_same_in_every_form(query: str):
    found = parse(query)
    assert found == parse(LISTS["with a comma"])
    assert found.filters.result == (CallResult.BUSY, CallResult.NO_ANSWER)
    assert found.filters.phone_type == (PhoneType.CELL, PhoneType.OTHER)
    assert found.fields == ("ani", "did")


@pytest.mark.parametrize(
    "query",
    ["client=a&client=b", "client[]=a&client[]=b", "client%5B%5D=a&client=b", "client[0]=a&client[1]=b&client="],
)
def test_clients_are_the_same_in_every_form(query: str):
    assert parse(query, None).codes == ("a", "b")


@pytest.mark.parametrize("query", ["client=", "client[]=", "", "client=&limit=3"])
def test_no_client_is_a_fault_of_the_client(query: str):
    assert faults_of(query, None) == ["client"]


BOOLEANS = {"true": True, "1": True, "True": True, "false": False, "0": False, "FALSE": False, "": None}


@pytest.mark.parametrize(("text", "value"), BOOLEANS.items(), ids=BOOLEANS)
def test_a_boolean_is_what_generated_clients_send(text: str, value: bool | None):
    assert parse(f"recorded={text}").filters.recorded is value


@pytest.mark.parametrize(
    "query", ["limit=3&limit=3", "tz=UTC&tz=UTC", "limit[]=3", "start[0]=2026-11-01", "recorded=2", "client=a", "x[]="]
)
def test_parsing_stays_strict(query: str):
    assert len(faults_of(query)) == 1


LONG = ["".join(random.Random(number).choices("abcdefghijklmnopqrstuvwxyz0123456789", k=64)) for number in range(50)]
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=200)
QUERIES = st.fixed_dictionaries(
    {"client": st.lists(st.from_regex(r"[A-Za-z0-9_.-]{1,64}", fullmatch=True), min_size=1, max_size=50)},
    optional={
        "campaign": TEXT,
        "did": TEXT,
        "ani": TEXT,
        "target": TEXT,
        "result": st.lists(st.sampled_from([one.value for one in CallResult])),
        "fields": st.lists(st.sampled_from(FIELDS)).map(",".join),
        "sort": st.sampled_from(["startTime", "-startTime"]),
        "limit": st.integers(1, 1000),
        "recorded": st.sampled_from(["true", "false"]),
        "include": st.just("status"),
        "tz": st.sampled_from(["UTC", "America/Chicago"]),
        "range": st.sampled_from(["today", "last_month"]),
    },
)


@given(QUERIES, st.sampled_from(["", "format=json", "cursor=&start="]))
def test_a_cursor_of_any_query_is_small_and_gives_its_next_page(query: dict[str, Any], more: str):
    text = urlencode(query, doseq=True)
    page = parse(text, None)
    cursor, complete = render_cursor(page, AFTER, KEY)
    assert len(cursor) <= MAX_CURSOR
    assert render_cursor(page, AFTER, KEY)[0] == cursor  # deterministic
    beside = parse(f"{text}&{more}&cursor={cursor}", None, now=NOW + 3600)
    assert (beside.after, beside.window, beside.codes, beside.filters) == (AFTER, page.window, page.codes, page.filters)
    assert (beside.limit, beside.fields, beside.newest_first) == (page.limit, page.fields, page.newest_first)
    if complete:
        assert parse(f"cursor={cursor}", None, now=NOW + 3600) == beside
    else:
        assert faults_of(f"cursor={cursor}", None) == ["cursor"]
        assert faults_of(f"{text}&minDuration=7&cursor={cursor}", None) == ["cursor"]


def test_a_cursor_of_ordinary_parameters_is_complete_without_them():
    codes = urlencode({"client": [f"80055{number:05}" for number in random.Random(1).sample(range(100_000), 50)]}, True)
    query = f"{codes}&fields={','.join(FIELDS)}&ani=3125550100&result=busy&range=last_month&tz=America/Chicago"
    assert render_cursor(parse(query, None), AFTER, KEY)[1]


@pytest.mark.parametrize("character", ["1", "é", "語"])
def test_a_cursor_after_the_longest_id_is_small_even_with_long_parameters(character: str):
    longest = "".join(random.Random(1).choices([character, "0", chr(ord(character) + 1)], k=MAX_ID))
    query = urlencode({"client": LONG, "ani": "é" * 200}, doseq=True)
    assert len(render_cursor(parse(query, None), AFTER._replace(id=longest), KEY)[0]) <= MAX_CURSOR


def test_a_cursor_says_nothing_to_those_who_cannot_open_it():
    cursor, _ = render_cursor(parse("ani=3125550123&campaign=Ada"), AFTER, KEY)
    raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    for secret in (b"3125550123", b"8005550100", b"188231", b"Ada"):
        assert secret not in raw
    with pytest.raises(zlib.error):
        zlib.decompress(raw[16:])


BESIDE = {
    "nothing": "",
    "defaults": "tz=UTC&sort=-startTime&limit=100",
    "empty values": "start=&end=&range=&fields=&campaign=",
    "its format": "format=json",
    "its parameters": "limit=3&start=2026-11-01",
    "its parameters and defaults": "limit=3&start=2026-11-01&tz=UTC&sort=-startTime&format=json&ani=",
}
OTHERS = {
    "another limit": "limit=4&start=2026-11-01",
    "one parameter more": "limit=3&start=2026-11-01&ani=1",
    "one parameter less": "limit=3",
    "another start": "limit=3&start=2026-11-02",
    "another format": "format=csv",
    "another order": "sort=startTime",
}


@pytest.mark.parametrize("beside", BESIDE.values(), ids=BESIDE)
def test_a_cursor_goes_with_nothing_or_with_its_parameters(beside: str):
    cursor, _ = render_cursor(parse("limit=3&start=2026-11-01"), AFTER, KEY)
    assert parse(f"{beside}&cursor={cursor}".lstrip("&")).after == AFTER
    assert parse(f"cursor={cursor}&client=8005550100&{beside}", None).after == AFTER  # clients that require `client`


@pytest.mark.parametrize("beside", OTHERS.values(), ids=OTHERS)
def test_a_cursor_does_not_go_with_other_parameters(beside: str):
    cursor, _ = render_cursor(parse("limit=3&start=2026-11-01"), AFTER, KEY)
    assert faults_of(f"{beside}&cursor={cursor}") == ["cursor"]
    assert faults_of(f"client=8005550101&cursor={cursor}", None) == ["cursor"]
    assert faults_of(f"cursor={cursor}", "8005550101") == ["cursor"]


@given(st.text("abcXYZ019-_=+/! \u00e9", min_size=1))
def test_any_other_text_is_no_cursor(text: str):
    cursor, _ = render_cursor(parse("limit=3"), AFTER, KEY)
    for wrong in (text, cursor + text, text + cursor):
        assert faults_of(urlencode({"cursor": wrong})) == ["cursor"]


def test_a_flipped_bit_or_another_key_is_no_cursor():
    cursor, _ = render_cursor(parse("limit=3"), AFTER, KEY)
    raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    for place in range(len(raw)):
        flipped = raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]
        assert faults_of(f"cursor={base64.urlsafe_b64encode(flipped).rstrip(b'=').decode()}") == ["cursor"]
    with pytest.raises(InvalidParameters):
        parse_list_query(f"cursor={cursor}".encode(), "8005550100", NOW, 0, (b"another",))


def test_generated_clients_that_send_every_default_read_pages_and_exports(stand: Make):
    gateway = stand()
    first = gateway.get(CALLS, **FOLD, **DEFAULTS | {"limit": "3"}, cursor="", fields="").json()
    second = gateway.get(CALLS, cursor=first["page"]["nextCursor"], **DEFAULTS).json()
    assert second["data"] == gateway.get(CALLS, **FOLD, limit="6").json()["data"][3:]
    for form in ("csv", "ndjson"):
        assert gateway.get(CALLS, **FOLD, **DEFAULTS, format=form, cursor="").status_code == 200


def test_long_parameters_are_paged_with_them_and_have_no_link(stand: Make):
    gateway = stand()
    codes = ["8005550100", "8005550101", *LONG[2:]]
    asked = {"client": codes, **FOLD, "limit": 3}
    first = gateway.get("/calls", **asked)
    cursor = first.json()["page"]["nextCursor"]
    assert len(cursor) <= MAX_CURSOR
    assert "link" not in first.headers
    second = gateway.get("/calls", **asked, cursor=cursor).json()["data"]
    assert first.json()["data"] + second == gateway.get("/calls", **asked | {"limit": 6}).json()["data"]
    (fault,) = gateway.get("/calls", cursor=cursor).json()["errors"]
    assert (fault["parameter"], "send them with it" in fault["detail"]) == ("cursor", True)


def test_a_link_is_the_next_page(stand: Make):
    gateway = stand()
    first = gateway.get(CALLS, **FOLD, limit=3, ani="", tz="America/Chicago")
    link = first.headers["link"].partition(">")[0].removeprefix("<")
    assert dict(parse_qsl(link.partition("?")[2])) == {"cursor": first.json()["page"]["nextCursor"]}
    assert len(link) < 2048
    assert gateway.client.get(link).json()["data"] == gateway.get(CALLS, **FOLD, limit=6).json()["data"][3:]


EMPTY = {
    "since the end of the last answer": {"start": "2026-11-18T11:06:40Z"},
    "since the next second": {"start": "2026-11-18T11:06:41Z"},
    "in the future": {"start": "2030-01-01", "end": "2031-01-01"},
    "in the future without end": {"start": "2030-01-01"},
    "before history": {"start": "1900-01-01", "end": "1950-01-01"},
    "without length": {"start": "2026-11-01", "end": "2026-11-01"},
}


@pytest.mark.parametrize("window", EMPTY.values(), ids=EMPTY)
def test_a_window_without_calls_is_an_empty_answer_without_a_post(stand: Make, window: dict[str, str]):
    gateway = stand()
    page = gateway.get(CALLS, **window)
    assert (page.status_code, page.json()["data"], page.json()["page"]["nextCursor"]) == (200, [], None)
    assert page.json()["meta"]["start"] <= page.json()["meta"]["end"]
    assert gateway.get("/calls", **window, client="*").json()["data"] == []
    assert gateway.get("/clients", **window).json()["data"] == []
    assert gateway.get(f"{CALLS}/1", **window).status_code == 404
    for interval in ("none", "hour", "month"):
        if window["start"] > "2000" and "2031-01-01" not in window.values():
            summary = gateway.get(f"{CALLS}/summary", **window, interval=interval).json()
            assert (len(summary["data"]), summary["total"]["calls"]) == (1, 0)
    (line,) = gateway.get(CALLS, **window, format="ndjson").text.splitlines()
    assert list(json.loads(line)) == ["meta"]
    assert gateway.get(CALLS, **window, format="csv").text.count("\n") == 1
    assert gateway.simulator.posts == 0


def test_a_poll_from_the_end_of_the_last_answer_leaves_no_gap_and_repeats_nothing(stand: Make):
    gateway = stand()
    seen: list[str] = []
    end = start = "2026-11-18T11:00:00Z"
    for seconds in (0, 0.25, 0.5, 600, 0, 1, 7200):
        gateway.clock.now += seconds
        answer = gateway.get(CALLS, start=end, sort="startTime", limit=1000).json()
        assert answer["meta"]["start"] == end
        end = answer["meta"]["end"]
        seen += [call["id"] for call in answer["data"]]
    whole = gateway.get(CALLS, start=start, end=end, sort="startTime", limit=1000).json()["data"]
    assert len(set(seen)) == len(seen) > 5
    assert set(seen) <= {call["id"] for call in whole}
