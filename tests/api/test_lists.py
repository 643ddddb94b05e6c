"""End-to-end tests of lists of calls, with a simulator as upstream and real sockets on both sides."""

import asyncio
import json
import logging
import re
from functools import partial
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest

from gateway.api.routes import document
from gateway.logs import JsonFormatter
from gateway.simulator.calls import calls_of_hour
from gateway.simulator.server import Options
from tests.support.lists import CALLS, FOLD, every_call
from tests.support.processes import wait_for, wait_in_loop_for
from tests.support.stand import Make, serving


@pytest.mark.parametrize("sort", ["startTime", "-startTime"])
@pytest.mark.parametrize("fault", [None, "descending", "duplicates", "unknown", "lower-case", "echo", "drip:0"])
def test_the_autumn_change_of_clocks_loses_and_doubles_nothing(stand: Make, sort: str, fault: str | None):
    gateway = stand(Options(faults=(fault,) if fault else ()))
    calls = every_call(gateway, CALLS, **FOLD, sort=sort, limit="7")
    first = 1793509200 // 3600  # 05:00Z
    made = [call for hour in range(first, first + 4) for call in calls_of_hour(1, "8005550100", hour, 200)]
    expected = sorted(call.identity for call in made)
    assert sorted(str(call["id"]) for call in calls) == expected
    times = [str(call["startTime"]) for call in calls]
    assert times == sorted(times, reverse=sort.startswith("-"))
    inside = {call["startTimeCertainty"] for call in calls if "T06" in str(call["startTime"])}
    assert inside == {"inferred"}


@pytest.mark.parametrize("fault", ["null-dates=refused", "null-dates=empty"])
def test_a_server_without_null_dates_is_asked_with_a_time(stand: Make, fault: str):
    usual, gateway = stand(), stand(Options(faults=(fault,)), upstream_null_end="off")
    today = {"start": "2026-11-18T06:00:00Z", "limit": "1000"}
    expected = usual.get(CALLS, **today).json()["data"]
    assert expected
    answer = gateway.get(CALLS, **today)
    assert (answer.status_code, answer.json()["data"]) == (200, expected)


def test_an_answer_has_the_documented_shape(stand: Make):
    answer = stand().get(CALLS, **FOLD, limit=1)
    body = answer.json()
    assert set(body) == {"data", "page", "meta"}
    assert set(body["data"][0]) == set(document()["components"]["schemas"]["Call"]["properties"])
    assert body["meta"] == {
        "start": "2026-11-01T05:00:00Z",
        "end": "2026-11-01T09:00:00Z",
        "asOf": "2026-11-18T11:06:40Z",
        "oldestFetch": "2026-11-18T11:06:40Z",
        "stale": False,
        "unreadable": 0,
    }
    assert answer.headers["cache-control"] == "private"
    assert answer.headers["cache-status"] == "callbutton-gateway; fwd=miss"
    assert answer.headers["x-request-id"]


def test_a_second_read_is_a_hit_and_costs_no_post(stand: Make):
    gateway = stand()
    gateway.get(CALLS, **FOLD)
    # The window ends 17 days ago: a tenth of that is its life.
    assert gateway.get(CALLS, **FOLD).headers["cache-status"] == "callbutton-gateway; hit; ttl=147640"
    assert gateway.simulator.posts == 1


def test_several_clients_and_all_clients_cost_one_post(stand: Make):
    gateway = stand()
    both = gateway.get("/calls", client=["8005550100", "8005550101"], limit=1000, **FOLD).json()
    assert {call["clientCode"] for call in both["data"]} == {"8005550100", "8005550101"}
    assert gateway.simulator.posts == 1
    everyone = gateway.get("/calls", client="*", limit=1000, **FOLD).json()
    assert len({call["clientCode"] for call in everyone["data"]}) == 5
    assert gateway.simulator.posts == 2


def test_status_is_there_when_asked_for_and_null_when_not(stand: Make):
    gateway = stand()
    asked = gateway.get(CALLS, **FOLD, include="status").json()["data"]
    assert all(call["status"]["journal"] for call in asked)
    assert all(call["status"] is None for call in gateway.get(CALLS, **FOLD).json()["data"])
    assert gateway.simulator.posts == 1  # the plain read rests on the extent with status
    gateway.simulator.misbehave("no-status")
    gateway.clock.now += 86400
    assert all(call["status"] is None for call in gateway.get(CALLS, **FOLD, include="status").json()["data"])


def test_dates_without_offset_are_read_in_the_zone(stand: Make):
    meta = stand().get(CALLS, start="2026-11-01", end="2026-11-02", tz="America/Chicago").json()["meta"]
    assert (meta["start"], meta["end"]) == ("2026-11-01T05:00:00Z", "2026-11-02T06:00:00Z")


BAD = {
    "an unknown parameter": ("since=1", "since"),
    "a repeated one": ("start=2026-01-01&start=2026-01-02", "start"),
    "no date": ("start=yesterday", "start"),
    "an impossible date": ("start=2026-02-30", "start"),
    "an epoch": ("start=1795000000", "start"),
    "start after end": ("start=2026-01-02&end=2026-01-01", "start"),
    "a limit of none": ("limit=0", "limit"),
    "a limit too large": ("limit=1001", "limit"),
    "a limit in letters": ("limit=1e2", "limit"),
    "a sort": ("sort=id", "sort"),
    "an include": ("include=journal", "include"),
    "a zone": ("tz=Mars/Olympus", "tz"),
    "a path as zone": ("tz=../../etc/passwd", "tz"),
    "a cursor": ("cursor=abc", "cursor"),
    "an unknown one without value": ("since=", "since"),
    "a date in brackets": ("start[]=2026-01-01", "start[]"),
}


def test_a_bad_parameter_is_named(stand: Make):
    gateway = stand()
    for query, parameter in BAD.values():
        answer = gateway.client.get(f"{CALLS}?{query}")
        assert (answer.status_code, answer.headers["content-type"]) == (400, "application/problem+json"), query
        problem = answer.json()
        assert problem["type"] == "/problems/invalid-parameter"
        assert parameter in [fault["parameter"] for fault in problem["errors"]], query
    assert gateway.client.get("/clients/a%20b/calls").json()["errors"][0]["parameter"] == "code"
    assert gateway.client.get("/calls").json()["errors"][0]["parameter"] == "client"
    assert gateway.client.get("/calls?client=*&client=a").status_code == 400
    assert gateway.client.get(f"{CALLS}?start=2026-11-01T00:00:00+02:00&limit=1").status_code == 200
    assert gateway.simulator.posts == 1


def test_a_cursor_comes_alone_or_with_its_parameters_and_is_not_forged(stand: Make):
    gateway = stand()
    cursor = gateway.get(CALLS, **FOLD, limit=3).json()["page"]["nextCursor"]
    alone = gateway.get(CALLS, cursor=cursor).json()
    assert gateway.get(CALLS, cursor=cursor, **FOLD, limit=3).json()["data"] == alone["data"]
    assert gateway.get(CALLS, cursor=cursor, limit=4).status_code == 400
    assert gateway.get("/clients/8005550101/calls", cursor=cursor).status_code == 400
    assert gateway.get(CALLS, cursor=cursor[:30] + ("y" if cursor[30] == "x" else "x") + cursor[31:]).status_code == 400


FAULTS = {
    "error": (502, "upstream-error"),
    "date-error": (422, "upstream-rejected"),
    "unauthorized": (502, "upstream-unauthorized"),
    "html": (502, "upstream-malformed"),
    "http-500": (502, "upstream-error"),
    "empty": (502, "upstream-malformed"),
    "truncate": (502, "upstream-malformed"),
    "reset": (502, "upstream-malformed"),
    "doctype": (502, "upstream-malformed"),
    "hang": (504, "upstream-timeout"),
    "drip": (504, "upstream-timeout"),
}


def test_each_fault_of_the_upstream_is_its_problem_and_nothing_is_kept_of_it(
    stand: Make, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.DEBUG, "gateway")
    gateway = stand(upstream_timeout=0.5, upstream_idle_timeout=0.5, upstream_deadline=1.0)
    for fault, (status, name) in FAULTS.items():
        gateway.simulator.misbehave(fault)
        gateway.pass_time(2)  # an error is remembered for a second
        answer = gateway.get(CALLS, **FOLD)
        assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{name}"), fault
        assert answer.headers["content-type"] == "application/problem+json"
    gateway.simulator.misbehave()

    def heal() -> httpx.Response | None:
        gateway.pass_time(2)
        answer = gateway.get(CALLS, **FOLD)
        return answer if answer.status_code == 200 else None

    healed = wait_for(heal, "an answer")
    assert healed is not None
    # Not a hit. It is partial if the machine was too busy for one attempt and half of that landed.
    assert healed.headers["cache-status"] in ("callbutton-gateway; fwd=miss", "callbutton-gateway; fwd=partial")
    lines = "\n".join(JsonFormatter().format(record) for record in caplog.records if record.name.startswith("gateway"))
    assert "upstream failed" in lines
    for secret in ("8005550100", "Lovelace", "312555", "Called back"):
        assert secret not in lines


def test_calls_that_cannot_be_read_are_counted_in_the_answer(stand: Make):
    gateway = stand(Options(faults=("unreadable",)))
    assert gateway.get(CALLS, **FOLD).json()["meta"]["unreadable"] == 2
    assert gateway.metric("calls_unreadable_total") == 2


LISTED = ("8005550100", "Acme Plumbing", "+18005550102", "a/b", "Zoë", "x" * 65, "*", "acme-2")


async def upstream_of_odd_codes(scope: Any, receive: Any, send: Any) -> None:
    """A Callbutton server with two calls for each of LISTED, on 2026-11-01; under the first code, if one is asked."""
    if scope["type"] == "lifespan":
        return
    asked = re.findall("<ClientCode>(.*?)</ClientCode>", (await receive())["body"].decode())
    clients = "".join(
        f"<Client><ClientCode>{code}</ClientCode><CallDetails>"
        + "".join(
            f'<Call ID="{code}-{number}"><StartTime>11/01/2026 0{number}:30:00</StartTime></Call>' for number in (4, 5)
        )
        + "</CallDetails></Client>"
        for code in (LISTED if asked == ["*"] else LISTED[1:2] if asked == ["alias"] else asked)
    )
    body = (
        '<?xml version="1.0"?><Callbutton version="B"><CallbuttonService><GetCallDetailsResponse status="OK">'
        f"{clients}</GetCallDetailsResponse></CallbuttonService></Callbutton>"
    )
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/xml")]})
    await send({"type": "http.response.body", "body": body.encode(), "more_body": False})


def test_what_is_listed_can_be_asked_and_the_rest_is_counted(stand: Make):
    day = {"start": "2026-11-01", "end": "2026-11-02"}
    with serving(upstream_of_odd_codes) as port:
        gateway = stand(upstream_url=f"http://127.0.0.1:{port}/xml.jsp")
        listed = gateway.get("/clients", **day).json()
        assert [row["clientCode"] for row in listed["data"]] == ["8005550100", "acme-2"]
        every = gateway.get("/calls", client="*", **day).json()
        assert {call["clientCode"] for call in every["data"]} == {"8005550100", "acme-2"}
        summary = gateway.get("/calls/summary", client="*", groupBy="client", **day).json()
        assert {row["group"]["client"]: row["calls"] for row in summary["data"]} == {"8005550100": 2, "acme-2": 2}
        lines = gateway.get("/calls", client="*", format="ndjson", **day).text.splitlines()
        assert len(lines) == 5
        left_out = 2 * (len(LISTED) - 2)
        assert [answer["meta"]["unreadable"] for answer in (listed, every, summary)] == [left_out] * 3
        assert json.loads(lines[-1])["meta"]["unreadable"] >= left_out
        assert gateway.metric("calls_of_unnameable_clients_total") == left_out
        for row in listed["data"]:
            calls = gateway.get(f"/clients/{row['clientCode']}/calls", **day).json()["data"]
            assert len(calls) == row["calls"]
        echoed = gateway.get("/clients/alias/calls", **day).json()["data"]  # listed under its customer's name
        assert [(call["id"], call["clientCode"]) for call in echoed] == [
            ("Acme Plumbing-5", "alias"), ("Acme Plumbing-4", "alias"),
        ]  # fmt: skip


def test_a_charset_that_nobody_announced_is_repaired_and_counted(stand: Make):
    gateway = stand(Options(faults=("charset",), calls_per_day=2000))
    text = gateway.get(CALLS, **FOLD, limit=1000).text
    assert "Núñez" in text
    assert "\ufffd" not in text
    assert gateway.metric("text_repairs_total") > 0


def test_an_upstream_that_is_not_there_is_unreachable(stand: Make):
    answer = stand(upstream_url="http://127.0.0.1:9/xml.jsp").get(CALLS, **FOLD)
    assert (answer.status_code, answer.json()["type"]) == (502, "/problems/upstream-unreachable")


def test_a_consumer_waits_no_longer_than_its_deadline_and_the_flight_goes_on(stand: Make):
    gateway = stand(Options(latency=0.6), request_deadline=0.2)
    assert gateway.get(CALLS, **FOLD).status_code == 504
    assert gateway.metric("upstream_posts_in_flight") == 1
    wait_for(lambda: gateway.get(CALLS, **FOLD).status_code == 200, "the flight lands")
    assert gateway.simulator.posts == 1


@pytest.mark.parametrize(
    "path",
    [f"{CALLS}/summary", "/clients", CALLS, f"{CALLS}/no-such-call", f"{CALLS}?format=csv"],
    ids=["summary", "clients", "page", "call", "export"],
)
def test_the_deadline_bounds_the_whole_answer_whatever_number_of_spans_it_takes(stand: Make, path: str):
    gateway = stand(Options(latency=0.4), request_deadline=0.3 if "csv" in path else 0.6)
    window = {"start": "2026-01-01", "end": "2026-11-01"}
    url = httpx.URL(path).copy_merge_params(window | ({} if path != CALLS else {"ani": "0"}))
    answer = gateway.client.get(url)
    assert (answer.status_code, answer.json()["type"]) == (504, "/problems/upstream-timeout")


@pytest.mark.parametrize("form", ["csv", "ndjson"])
def test_an_export_begins_with_its_first_span_even_if_no_call_of_it_passes_the_filters(stand: Make, form: str):
    gateway = stand(upstream_timeout=1.0)
    first = {"start": "2026-10-31T00:00:00Z", "end": "2026-10-31T04:00:00Z"}
    gateway.get(CALLS, **first, limit="1000")
    gateway.simulator.misbehave("hang")  # all spans but the first, which is in the cache
    asked = {"start": first["start"], "end": "2026-11-10T00:00:00Z", "format": form, "ani": "0", "sort": "startTime"}
    with gateway.client.stream("GET", CALLS, params=asked) as answer:
        assert answer.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            answer.read()


def test_paths_and_methods_that_are_not_there_are_problems(stand: Make):
    gateway = stand()
    assert gateway.client.get("/nothing").json()["type"] == "/problems/not-found"
    answer = gateway.client.post(CALLS)
    assert (answer.status_code, answer.json()["type"]) == (405, "/problems/method-not-allowed")
    assert "GET" in answer.headers["allow"]


def test_labels_do_not_grow_with_what_consumers_send(stand: Make):
    gateway = stand()
    for number in range(5):
        gateway.client.get(f"/secret{number}")
        gateway.client.request(f"M{number}", "/calls")
    text = gateway.client.get("/metrics").text
    assert "secret" not in text
    assert set(re.findall(r'method="(\w+)"', text)) <= {"GET", "other"}


def test_a_request_id_is_taken_over_if_it_is_sound(stand: Make):
    gateway = stand()
    assert gateway.client.get("/healthz", headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert gateway.client.get("/healthz", headers={"X-Request-Id": "a b"}).headers["x-request-id"] != "a b"
    assert gateway.client.get("/readyz").json() == {"status": "ok"}


def test_a_bug_is_a_problem_with_its_request_id_and_its_text_stays_inside(
    stand: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    async def crash(*_: object) -> None:
        raise RuntimeError("8005550100 of Ada Lovelace")

    gateway = stand()
    monkeypatch.setattr("gateway.api.calls.list_response", crash)
    answer = gateway.get(CALLS, **FOLD)
    problem = answer.json()
    assert (answer.status_code, problem["type"]) == (500, "/problems/internal-error")
    assert problem["requestId"] == answer.headers["x-request-id"]
    lines = [JsonFormatter().format(record) for record in caplog.records if record.name.startswith("gateway")]
    (crashed,) = [line for line in lines if "request crashed" in line]
    assert '"error":"RuntimeError"' in crashed
    assert problem["requestId"] in crashed
    assert "Lovelace" not in answer.text + crashed


def test_an_answer_that_has_not_changed_is_not_sent_again(stand: Make):
    gateway = stand()
    unlinked = FOLD | {"recorded": "false"}  # links to recordings change with the hour
    first = gateway.get(CALLS, **unlinked)
    gateway.clock.now += 7 * 86400
    unchanged = gateway.client.get(CALLS, params=unlinked, headers={"If-None-Match": f'"x", {first.headers["etag"]}'})
    assert (unchanged.status_code, unchanged.content, gateway.simulator.posts) == (304, b"", 2)
    assert unchanged.headers["etag"] == first.headers["etag"]
    assert unchanged.headers["age"] == "0"
    assert gateway.get(CALLS, **unlinked, limit=5).headers["etag"] != first.headers["etag"]


def test_no_cache_asks_the_upstream_anew(stand: Make):
    gateway = stand()
    gateway.get(CALLS, **FOLD)
    gateway.clock.now += 5
    anew = gateway.client.get(CALLS, params=FOLD, headers={"Cache-Control": "no-cache"})
    assert (anew.headers["cache-status"], gateway.simulator.posts) == ("callbutton-gateway; fwd=partial", 2)
    gateway.simulator.misbehave("error")
    gateway.clock.now += 5
    assert gateway.client.get(CALLS, params=FOLD, headers={"Cache-Control": "no-cache"}).status_code == 502


def test_a_stale_answer_says_so_and_what_was_never_fetched_is_never_stale(stand: Make):
    gateway = stand(Options(), stale_if_error=3600.0)
    live = {"start": "2026-11-18T00:00:00Z", "end": "2026-11-18T11:00:00Z"}
    fresh = gateway.get(CALLS, **live)
    gateway.simulator.misbehave("http-500")
    gateway.clock.now += 600
    stale = gateway.get(CALLS, **live)
    assert stale.json()["data"] == fresh.json()["data"]
    assert (stale.status_code, stale.json()["meta"]["stale"], stale.headers["age"]) == (200, True, "600")
    assert stale.headers["cache-status"] == "callbutton-gateway; hit; ttl=-560"
    assert gateway.metric("stale_seconds_count") == 1
    assert gateway.get(CALLS, **live | {"start": "2026-11-17T23:00:00Z"}).status_code == 502
    gateway.clock.now += 3600
    assert gateway.get(CALLS, **live).status_code == 502


def test_stale_while_revalidating_answers_at_once_and_fetches_meanwhile(stand: Make):
    gateway = stand(stale_while_revalidate=600.0)
    live = {"start": "2026-11-18T00:00:00Z", "end": "2026-11-18T11:00:00Z"}
    gateway.get(CALLS, **live)
    gateway.clock.now += 120
    assert gateway.get(CALLS, **live).json()["meta"]["stale"] is True
    wait_for(lambda: not gateway.get(CALLS, **live).json()["meta"]["stale"], "an answer that is not stale")
    assert gateway.get(CALLS, **live).headers["cache-status"].startswith("callbutton-gateway; hit; ttl=")
    assert gateway.simulator.posts == 2


def test_ten_thousand_consumers_who_leave_cost_one_post_and_leave_every_connection_usable(stand: Make):
    gateway = stand(Options(latency=1.0), upstream_concurrency=2)
    query = f"{CALLS}?{urlencode(FOLD)}"
    host, port = gateway.client.base_url.host, gateway.client.base_url.port
    assert port

    async def come() -> asyncio.StreamWriter:
        _, writer = await asyncio.open_connection(host, port)
        writer.write(f"GET {query} HTTP/1.1\r\nHost: gateway\r\n\r\n".encode())
        await writer.drain()
        return writer

    def have_begun(consumers: int) -> bool:
        ended = gateway.metric('requests_total{method="GET",route="/clients/{code}/calls"')
        return ended + gateway.metric("requests_in_flight") - 1 >= consumers  # without the request for the metric

    async def crowd() -> None:
        for consumers in range(100, 10_001, 100):
            writers = await asyncio.gather(*(come() for _ in range(100)))
            await wait_in_loop_for(partial(have_begun, consumers), "every request has begun")
            for writer in writers:
                writer.transport.abort()

    asyncio.run(crowd())
    assert gateway.simulator.posts <= 2  # the first, and another if all this took longer than the first
    gateway.simulator.misbehave()
    for number in range(4):  # more than there are connections
        assert gateway.get(f"/clients/800555010{number}/calls", **FOLD).status_code == 200
    assert gateway.metric("upstream_posts_in_flight") == 0
