"""NDJSON and CSV as read by programs and spreadsheets."""

import csv
import io
import json
import re
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.formats import COLUMNS, FIELDS, Csv, Ndjson, Projection, make_format
from gateway.model import Call, CallerAddress, CallResult, CallStatus, PhoneType, SalesStatus, StartTimeCertainty

ADDRESS = CallerAddress(
    first_name="Ada",
    middle_initial=None,
    last_name='Love"lace, Countess',
    street="1 Lake\nShore",
    secondary=None,
    city="Chicago",
    state="IL",
    zip="02134",
    zip4=None,
)
CALL = Call(
    id="0188",
    client_code="8005550100",
    start_time=datetime(2026, 11, 1, 6, 30, tzinfo=UTC),
    start_time_certainty=StartTimeCertainty.EXACT,
    campaign="4471",
    did="8005550100",
    ani="3125550100",
    other_data="=HYPERLINK(1)",
    phone_type=PhoneType.CELL,
    target="+13125550199",
    result=CallResult.NO_ANSWER,
    duration_seconds=63,
    talk_time_seconds=None,
    index_number="0042",
    dtmf="@1",
    recording_url=None,
    address=ADDRESS,
    status=CallStatus(reviewed=False, sales=SalesStatus.MADE_SALE, journal="-1+1"),
    extra={"Lead": "Núñez, a; b"},
)
BARE = msgspec.structs.replace(CALL, address=None, status=None, extra={}, other_data=None)


def read_csv(body: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(body.decode(), newline="")))


def test_ndjson_is_a_call_a_line_and_ends_with_meta():
    form = Ndjson()
    lines = (form.begin() + form.rows([CALL, BARE]) + form.end({"stale": False})).splitlines()
    assert [json.loads(line) for line in lines] == [
        json.loads(msgspec.json.encode(CALL)),
        json.loads(msgspec.json.encode(BARE)),
        {"meta": {"stale": False}},
    ]


def test_csv_has_flat_columns_and_leaves_strings_strings():
    form = Csv()
    first, second = read_csv(form.begin() + form.rows([CALL, BARE]))
    assert list(first) == list(COLUMNS)
    assert first["id"] == "0188"
    assert first["startTime"] == "2026-11-01T06:30:00Z"
    assert (first["phoneType"], first["result"], first["talkTimeSeconds"]) == ("cell", "no_answer", "")
    assert (first["address.lastName"], first["address.street"]) == ('Love"lace, Countess', "1 Lake\nShore")
    assert (first["status.reviewed"], first["status.sales"]) == ("false", "made_sale")
    assert json.loads(first["extra"]) == {"Lead": "Núñez, a; b"}
    assert {second[name] for name in COLUMNS if name.startswith(("address.", "status.", "extra"))} == {""}


def test_csv_lines_end_as_rfc_4180_says():
    form = Csv(["id", "clientCode"])
    assert form.begin() + form.rows([CALL]) + form.end({}) == b"id,clientCode\r\n0188,8005550100\r\n"


def test_no_cell_is_a_formula():
    (row,) = read_csv(Csv().begin() + Csv().rows([CALL]))
    assert (row["otherData"], row["target"], row["dtmf"]) == ("'=HYPERLINK(1)", "'+13125550199", "'@1")
    assert row["status.journal"] == "'-1+1"


FORMULAS = {
    "Smith;=HYPERLINK(1)": "Smith;'=HYPERLINK(1)",
    "Smith\t=HYPERLINK(1)": "Smith\t'=HYPERLINK(1)",
    "Smith, +1": "Smith, '+1",
    'Smith;"=1"': 'Smith;"\'=1"',
    "Lake\n@SUM(1)": "Lake\n'@SUM(1)",
    "a;＝1": "a;'＝1",
    "=1;-2": "'=1;'-2",
    "a-b; c=d": "a-b; c=d",
    "A. Smith, Jr.": "A. Smith, Jr.",
}


@pytest.mark.parametrize(("text", "expected"), FORMULAS.items())
def test_no_part_of_a_cell_is_a_formula_where_it_is_split(text: str, expected: str):
    form = Csv(["id", "otherData"])
    (row,) = read_csv(form.begin() + form.rows([msgspec.structs.replace(CALL, other_data=text)]))
    assert row["otherData"] == expected


RISKY_TEXT = st.text(st.sampled_from(" '\"=+-@＝;,\t\r\nab1"))


def cells_split_at(body: bytes, separator: str) -> list[str]:
    """The cells that a spreadsheet with this separator makes of a text, by quotes as RFC 4180 has them."""
    return [cell for row in csv.reader(io.StringIO(body.decode(), newline=""), delimiter=separator) for cell in row]


@given(RISKY_TEXT, RISKY_TEXT)
def test_no_separator_makes_a_formula_of_any_text(first: str, second: str):
    call = msgspec.structs.replace(CALL, other_data=first, dtmf=second, extra={first: second})
    for fields in (["id", "otherData", "dtmf", "extra"], ["otherData", "id"], ["dtmf"]):
        form = Csv(fields)
        body = form.begin() + form.rows([call, call])
        for separator in (",", ";", "\t"):
            for cell in cells_split_at(body, separator):
                assert not cell.strip(' "').startswith(tuple("=+-@＝")), (separator, cell)
        for line in body.decode().splitlines():  # a program that ignores quotes
            for cell in re.split("[,;\t]", line):
                assert not cell.strip(' "').startswith(tuple("=+-@＝")), cell


@given(st.dictionaries(RISKY_TEXT, RISKY_TEXT))
def test_extra_stays_json_of_the_same_value(extra: dict[str, str]):
    form = Csv(["extra"])
    (row,) = read_csv(form.begin() + form.rows([msgspec.structs.replace(CALL, extra=extra)]))
    assert json.loads(row["extra"] or "{}") == extra


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back_from_csv_without_the_apostrophes(text: str):
    form = Csv(["id", "otherData", "dtmf"])
    (row,) = read_csv(form.begin() + form.rows([msgspec.structs.replace(CALL, other_data=text)]))
    assert row["otherData"].replace("'", "") == text.replace("'", "")
    assert not row["otherData"].startswith(tuple("=+-@\t\r\n＝＋－＠"))


ZONED = {
    "America/Chicago": "2026-11-01 01:30:00",
    "Asia/Kolkata": "2026-11-01 12:00:00",
    "UTC": "2026-11-01 06:30:00",
}


@pytest.mark.parametrize(("zone", "time"), ZONED.items(), ids=ZONED)
def test_the_dialect_of_excel_has_a_mark_and_local_times(zone: str, time: str):
    form = make_format("csv", ["id", "startTime"], zone=ZoneInfo(zone))
    body = form.begin() + form.rows([CALL]) + form.end({})
    assert body == f"\ufeffid,startTime\r\n0188,{time}\r\n".encode()


def test_ndjson_without_its_last_line_has_calls_alone():
    form = make_format("ndjson", ["id"], meta=False)
    assert len((form.begin() + form.rows([CALL]) + form.end({"stale": False})).splitlines()) == 1


FIELD_CASES = {
    "some": (["ani", "result"], ["id", "clientCode", "startTime", "ani", "result"]),
    "a part": (["address"], ["id", "clientCode", "startTime", "address"]),
    "keys": (["startTime"], ["id", "clientCode", "startTime"]),
}


@pytest.mark.parametrize(("fields", "expected"), FIELD_CASES.values(), ids=FIELD_CASES)
def test_fields_leave_the_keys(fields: list[str], expected: list[str]):
    assert list(Projection(fields)(CALL)) == expected
    assert json.loads(Ndjson(fields).rows([CALL])) == {
        name: value for name, value in json.loads(msgspec.json.encode(CALL)).items() if name in expected
    }


def test_dotted_fields_take_parts():
    fields = ["address.city", "address.zip", "status.sales"]
    assert json.loads(Ndjson(fields).rows([CALL]))["address"] == {"city": "Chicago", "zip": "02134"}
    assert json.loads(Ndjson(fields).rows([BARE]))["address"] is None
    assert list(read_csv(Csv(fields).begin() + Csv(fields).rows([CALL]))[0]) == fields


def test_every_field_can_be_a_column():
    for field in FIELDS:
        assert Csv([field]).rows([CALL])
        assert Ndjson([field]).rows([BARE])


@given(st.lists(st.integers(0, 3)), st.booleans())
def test_json_is_one_object_however_its_calls_come(batches: list[int], broken_off: bool):
    writer = make_format("json")
    text = writer.begin()
    for place, count in enumerate(batches):
        if broken_off and place == len(batches) // 2:
            writer = make_format("json", begun=any(batches[:place]))
        text += writer.rows([CALL] * count)
    document = json.loads(text + writer.end({"stale": False}))
    assert document == {"data": [json.loads(msgspec.json.encode(CALL))] * sum(batches), "meta": {"stale": False}}
