"""The OpenAPI document is true: real answers of every operation have the documented status, headers and schema."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openapi_schema_validator import OAS31Validator, oas31_format_checker

from gateway.api import problems, summary_table
from gateway.api.routes import document
from gateway.simulator.server import Options
from tests.support.consumers import Member, keys_file
from tests.support.stand import Make, Stand

READER = Member("reader", scopes=("calls", "personal", "status", "recordings"))
MASKED = Member("masked", scopes=("calls",))
LIMITED = Member("limited", clients=("none",), rate="1/day")
LIST, LISTS = "/clients/{code}/calls", "/calls"
ONE, RECORDING = "/clients/{code}/calls/{call_id}", "/recordings/{token}"
SUMMARY, SUMMARIES = "/clients/{code}/calls/summary", "/calls/summary"
MISSED, ALL_MISSED = "/clients/{code}/calls/missed", "/calls/missed"
WINDOW = {"start": "2026-11-01", "end": "2026-11-03", "tz": "America/Chicago"}
SEVERAL = WINDOW | {"client": ["8005550100", "8005550101"]}
VALID: dict[str, dict[str, Any]] = {  # the parameters of an answer 200, by path
    LIST: WINDOW,
    LISTS: SEVERAL,
    ONE: {},
    SUMMARY: WINDOW | {"interval": "day"},
    SUMMARIES: SEVERAL | {"groupBy": "result"},
    MISSED: WINDOW | {"reached": "true"},
    ALL_MISSED: SEVERAL,
    "/clients": WINDOW,
    "/clients/{code}/changes": {"start": "2026-11-01"},
    "/changes": {"client": ["8005550100", "8005550101"], "start": "2026-11-01"},
    RECORDING: {},
    "/healthz": {},
    "/readyz": {},
}
ABOUT_CALLS = [path for path in VALID if path not in (RECORDING, "/healthz", "/readyz")]
STREAMS = ("application/x-ndjson", "text/csv")
DOCUMENT = document()


def closed(schema: Any) -> Any:
    """Return a copy of a schema that forbids additional properties."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {name: closed(item) for name, item in schema.items()} | (
        {"additionalProperties": False} if isinstance(schema.get("properties"), dict) else {}
    )


COMPONENTS = {"schemas": closed(DOCUMENT["components"]["schemas"])}


def resolved(value: dict[str, Any]) -> dict[str, Any]:
    """Return a part of the document, with a `$ref` resolved."""
    if "$ref" not in value:
        return value
    _, _, section, name = value["$ref"].split("/")
    found: dict[str, Any] = DOCUMENT["components"][section][name]
    return found


def faults(path: str, answer: httpx.Response) -> Iterator[str]:
    """Yield the differences between an answer and its description in the document."""
    described = DOCUMENT["paths"][path]["get"]["responses"].get(str(answer.status_code))
    if described is None:
        yield f"status {answer.status_code}"
        return
    response = resolved(described)
    headers = {name.lower(): resolved(header) for name, header in response.get("headers", {}).items()}
    for name in DOCUMENT["components"]["headers"]:
        if (text := answer.headers.get(name)) is not None:
            if name.lower() not in headers and not name.startswith(("X-", "RateLimit")):
                yield f"header {name}"
            elif headers.get(name.lower(), {}).get("schema", {}).get("type") == "integer" and not text.isdigit():
                yield f"header {name}: {text}"
    media_type = answer.headers.get("content-type", "").partition(";")[0]
    content = response["content"].get(media_type) or response["content"].get(f"{media_type.partition('/')[0]}/*")
    if content is None:
        yield f"media type {media_type}"
    elif media_type.endswith(("/json", "+json")):
        validator = OAS31Validator(content["schema"] | {"components": COMPONENTS}, format_checker=oas31_format_checker)
        yield from (f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(answer.json()))


def ask(gateway: Stand, path: str, member: Member | None = READER, **request: Any) -> httpx.Response:
    """Send a request to a path of the document, with a call and a recording that exist."""
    headers = (member.headers if member else {}) | request.pop("headers", {})
    parameters = request.pop("params", VALID[path])
    url = path
    if path in (ONE, RECORDING):
        page = gateway.client.get("/clients/8005550100/calls?limit=100", params=WINDOW, headers=READER.headers).json()
        call = next(call for call in page["data"] if call["recordingUrl"])
        url = url.replace("{call_id}", call["id"]).replace("/recordings/{token}", call["recordingUrl"])
        parameters = parameters | ({} if path == RECORDING else WINDOW)
    url = url.replace("{code}", request.pop("code", "8005550100"))
    return gateway.client.request(request.pop("method", "GET"), url, params=parameters, headers=headers, **request)


@pytest.fixture
def gateway(stand: Make, tmp_path: Path) -> Stand:
    options = Options(faults=("unknown", "unreadable"))
    return stand(options, auth="keys", keys_file=keys_file(tmp_path, READER, MASKED, LIMITED))


def test_every_path_of_the_document_is_tried_here():
    assert VALID.keys() == DOCUMENT["paths"].keys()


@pytest.mark.parametrize("path", VALID)
def test_a_success_is_as_documented(path: str, gateway: Stand):
    for member in (READER, MASKED) if path not in (MISSED, ALL_MISSED) else (READER,):
        answer = ask(gateway, path, member)
        assert (answer.status_code, list(faults(path, answer))) == (200, [])


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "status": (LIST, {"include": "status"}),
    "limit": (LIST, {"limit": 1}),
    "empty window": (LIST, {"start": "2026-11-01T00:00:00Z", "end": "2026-11-01T00:00:01Z"}),
    "words": (LISTS, {"result": "busy,no_answer", "phoneType": "cell"}),
    "repeated words": (LISTS, {"result": ["busy", "no_answer"], "phoneType": ["cell", "other"]}),
    "recorded": (LISTS, {"recorded": "true", "minDuration": 30}),
    "every field": (LIST, {"fields": ",".join(DOCUMENT["components"]["schemas"]["Call"]["required"])}),
    "ndjson": (LIST, {"format": "ndjson"}),
    "csv": (LIST, {"format": "csv"}),
    "one call with its status": (ONE, {"include": "status"}),
    "empty summary": (SUMMARY, {"ani": "1"}),
    "missed callers with status": (ALL_MISSED, {"include": "status", "reached": "true"}),
    "missed callers as csv": (MISSED, {"format": "csv"}),
    "groups": (SUMMARIES, {"groupBy": "campaign", "interval": "hour"}),
    "two dimensions": (SUMMARIES, {"groupBy": "state,hourOfWeek", "interval": "day"}),
    "sales": (SUMMARIES, {"groupBy": "sales,areaCode", "answeredWithin": 20, "lookback": "1d"}),
    "top groups, compared": (SUMMARIES, {"groupBy": "target", "top": 3, "compare": "previous", "interval": "day"}),
    "summary as ndjson": (SUMMARIES, {"groupBy": "dayOfWeek,result", "format": "ndjson"}),
    "summary as csv": (SUMMARIES, {"groupBy": "did", "format": "csv", "dialect": "excel"}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_give_what_is_documented(variant: str, gateway: Stand):
    path, parameters = VARIANTS[variant]
    answer = ask(gateway, path, params=VALID[path] | parameters)
    assert (answer.status_code, list(faults(path, answer))) == (200, [])


@pytest.mark.parametrize("path", [LIST, "/calls", "/clients/{code}/changes", "/changes"])
def test_every_format_is_documented(path: str, gateway: Stand):
    """A stream of events has no end, so only its head is asked for."""
    given = [ask(gateway, path, params=VALID[path] | {"format": form}) for form in ("json", "ndjson")]
    given += [ask(gateway, path, method="HEAD", headers={"Accept": kind}) for kind in ("text/csv", "text/event-stream")]
    good = [answer for answer in given if answer.status_code == 200]
    assert len(good) == 3
    assert [fault for answer in good for fault in faults(path, answer)] == []


def test_a_stream_has_calls_of_the_schema_and_the_meta_of_the_schema(gateway: Stand):
    lines = [json.loads(line) for line in ask(gateway, LIST, params=WINDOW | {"format": "ndjson"}).text.splitlines()]
    assert len(lines) > 100
    for name, values in ("Call", lines[:-1]), ("AnswerMeta", [lines[-1]["meta"]]):
        schema = {"$ref": f"#/components/schemas/{name}", "components": COMPONENTS}
        validator = OAS31Validator(schema, format_checker=oas31_format_checker)
        assert [error.message for value in values for error in validator.iter_errors(value)] == []


def test_repeated_words_and_words_with_commas_are_the_same(gateway: Stand):
    def ids(**parameters: Any) -> list[str]:
        return [call["id"] for call in ask(gateway, LIST, params=WINDOW | parameters).json()["data"]]

    assert ids(result=["busy", "no_answer"]) == ids(result="busy,no_answer") != ids(result="busy")
    assert ask(gateway, LIST, params=WINDOW | {"result": ["busy", "soon"]}).status_code == 400
    assert ask(gateway, LIST, params=WINDOW | {"campaign": ["1", "2"]}).status_code == 400


@pytest.mark.parametrize(("digit", "word"), [("1", "true"), ("0", "false")])
def test_a_flag_may_be_a_digit_as_generated_php_sends_it(digit: str, word: str, gateway: Stand):
    pages = [ask(gateway, LIST, params=WINDOW | {"recorded": text}).json()["data"] for text in (digit, word)]
    assert pages[0] == pages[1] != []
    assert {call["recordingUrl"] is not None for call in pages[0]} == {word == "true"}
    assert ask(gateway, LIST, params=WINDOW | {"recorded": digit * 2}).status_code == 400


def test_with_fields_a_call_has_those_and_the_required_ones(gateway: Stand):
    (call,) = ask(gateway, LIST, params=WINDOW | {"fields": "address.city,result", "limit": 1}).json()["data"]
    assert call.keys() == {"id", "clientCode", "startTime", "address", "result"}
    assert "`fields`" in DOCUMENT["components"]["schemas"]["Call"]["description"]


def test_a_part_of_a_recording_is_as_documented(gateway: Stand):
    answer = ask(gateway, RECORDING, headers={"Range": "bytes=0-9"})
    assert (answer.status_code, len(answer.content), list(faults(RECORDING, answer))) == (206, 10, [])


@pytest.mark.parametrize("path", VALID)
def test_refusals_are_as_documented(path: str, gateway: Stand):
    wanted = {405: ask(gateway, path, method="POST")}
    if path not in ("/healthz", "/readyz"):
        wanted[400] = ask(gateway, path, params=VALID[path] | {"no_such_parameter": "1"})
    if path in ABOUT_CALLS:
        wanted |= {401: ask(gateway, path, None), 406: ask(gateway, path, headers={"Accept": "image/png"})}
        wanted[429] = [ask(gateway, path, LIMITED) for _ in range(2)][1]
    for status, answer in wanted.items():
        assert (answer.status_code, list(faults(path, answer))) == (status, [])
        assert ("errors" in answer.json()) == (status == 400)


def test_what_may_not_be_seen_or_does_not_exist_is_as_documented(stand: Make, tmp_path: Path):
    confined = Member("confined", clients=("8005550101",))
    gateway = stand(auth="keys", keys_file=keys_file(tmp_path, READER, confined))
    for path in (LIST, LISTS, ONE, SUMMARY, SUMMARIES, MISSED, ALL_MISSED):
        answer = ask(gateway, path, confined)
        assert (answer.status_code, list(faults(path, answer))) == (403, [])
    missing = gateway.client.get("/clients/8005550100/calls/none", params=WINDOW, headers=READER.headers)
    assert (missing.status_code, list(faults(ONE, missing))) == (404, [])


UPSTREAM = {"date-error": 422, "unauthorized": 502, "error": 502, "html": 502, "truncate": 502, "hang": 504}


@pytest.mark.parametrize("fault", UPSTREAM)
def test_failures_of_the_upstream_are_as_documented(fault: str, stand: Make):
    short = {"upstream_timeout": 0.5, "upstream_idle_timeout": 0.5, "upstream_deadline": 1.0}
    gateway = stand(**(short if fault == "hang" else {}))
    gateway.simulator.misbehave(fault)
    for path in (LIST, SUMMARY, "/clients/{code}/calls/{call_id}"):
        url = path.replace("{code}", "8005550100").replace("{call_id}", "1")
        answer = gateway.client.get(url, params=WINDOW)
        assert (answer.status_code, list(faults(path, answer))) == (UPSTREAM[fault], [])
        gateway.pass_time(2)  # an error is remembered for a second


def test_too_many_requests_at_once_are_refused_as_documented(stand: Make):
    gateway = stand(request_concurrency=0)
    for path in (LISTS, SUMMARIES, "/clients"):
        answer = gateway.client.get(path, params=VALID[path])
        assert (answer.status_code, answer.json()["type"]) == (503, f"/problems/{problems.OVERLOADED.name}")
        assert list(faults(path, answer)) == []


def test_a_sum_that_is_no_int32_is_refused(stand: Make, monkeypatch: pytest.MonkeyPatch):
    gateway = stand()
    total = gateway.client.get(SUMMARIES, params=SEVERAL).json()["total"]
    largest = max(total["durationSeconds"], total["talkTimeSeconds"])
    assert DOCUMENT["components"]["schemas"]["SummaryTotals"]["properties"]["calls"]["maximum"] == summary_table.MAX_SUM
    for group, limit, status in (("did", largest, 200), ("client", largest - 1, 400)):
        monkeypatch.setattr(summary_table, "MAX_SUM", limit)
        answer = gateway.client.get(SUMMARIES, params=SEVERAL | {"groupBy": group})
        assert (answer.status_code, list(faults(SUMMARIES, answer))) == (status, [])


def test_the_check_finds_what_is_wrong():
    """The check above is no formality: it finds a status, header, media type or field that is not documented."""
    body = {
        "type": "/problems/x",
        "title": "",
        "status": 400,
        "detail": "",
        "hint": "",
        "instance": "",
        "requestId": "",
    }
    kind = {"content-type": problems.MEDIA_TYPE}
    assert list(faults(LISTS, httpx.Response(400, json=body, headers=kind))) == []
    assert list(faults(LISTS, httpx.Response(418, json=body, headers=kind))) == ["status 418"]
    assert list(faults(LISTS, httpx.Response(400, json=body, headers=kind | {"Age": "1"}))) == ["header Age"]
    assert list(faults(LISTS, httpx.Response(400, text="", headers={"content-type": "a/b"}))) == ["media type a/b"]
    assert len(list(faults(LISTS, httpx.Response(400, json=body | {"errors": None, "more": 1}, headers=kind)))) == 2
