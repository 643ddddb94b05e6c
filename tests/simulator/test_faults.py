"""The simulator misbehaves on request: at start, at run time, for one client or at a rate."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree as ET

import httpx
import pytest

from gateway.simulator.faults import FAULTS, VALUES, parse_fault
from gateway.simulator.server import FAULTS_PATH, PATH, Options, Simulator, create
from tests.support.stand import NOW, serving

ONE, OTHER, NOBODY = "8005550100", "8005550101", "8009990000"
HOUR = "11/17/2026 12:00:00", "11/17/2026 13:00:00"
NIGHT = "11/01/2026 00:00:00", "11/01/2026 04:00:00"
EXAMPLES = {name: f"{name}={form.pattern.split('|')[0]}" for name, (_, form) in VALUES.items()} | {
    "latency": "latency=0.5",
    "flag-element": "flag-element=Status",
    **dict.fromkeys(("cut-codes", "max-codes", "max-hours"), ""),
}
EXAMPLES |= {name: f"{name}=2" for name, text in EXAMPLES.items() if not text}


def body(codes: list[str], start: str, end: str, flag: str) -> str:
    asked = "".join(f"<ClientCode>{code}</ClientCode>{f'<{flag}>true</{flag}>' if flag else ''}" for code in codes)
    return (
        '<?xml version="1.0"?><Callbutton version="B"><CallbuttonService><GetCallDetailsRequest>'
        f"{asked}<StartDate>{start}</StartDate><EndDate>{end}</EndDate>"
        "</GetCallDetailsRequest></CallbuttonService></Callbutton>"
    )


class Served:
    """A simulator over a socket."""

    def __init__(self, simulator: Simulator, client: httpx.Client) -> None:
        self.simulator = simulator
        self.client = client

    def post(self, codes: list[str], start: str = HOUR[0], end: str = HOUR[1], *, flag: str = "") -> ET.Element:
        """The response element of a POST."""
        answer = self.client.post(PATH, content=body(codes, start, end, flag))
        service = ET.fromstring(answer.text).find("CallbuttonService")
        assert service is not None
        return service[0]

    def starts(self, codes: list[str], *arguments: str, flag: str = "") -> list[str]:
        return [(one.text or "").strip() for one in self.post(codes, *arguments, flag=flag).iter("StartTime")]


@contextmanager
def served(*faults: str, **options: Any) -> Iterator[Served]:
    simulator = create(Options(calls_per_day=2000, faults=faults, **options), lambda: NOW)
    with serving(simulator) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        yield Served(simulator, client)


def test_every_fault_is_parsed_and_one_with_a_value_needs_it():
    assert EXAMPLES.keys() == VALUES.keys() <= FAULTS.keys()
    for name in FAULTS:
        fault = parse_fault(f"{EXAMPLES.get(name, name)}@{ONE}:0.5")
        assert (fault.name, fault.client, fault.rate) == (name, ONE, 0.5)
        assert bool(fault.value) == (name in VALUES)


@pytest.mark.parametrize(
    "text",
    ["", "nothing", "drip=1", "max-codes", "max-codes=0", "max-codes=x", "latency=", "null-dates=maybe", "drip:0.1:1",
     "flag-element=<a>", "drip:2", "drip:nan", "drip:-1", "drip:1e3", "drip@"],
)  # fmt: skip
def test_a_fault_that_cannot_be_read_is_refused(text: str):
    with pytest.raises(ValueError, match=r"fault|value|rate|form|client code"):
        parse_fault(text)


@pytest.mark.parametrize("edge", ["start", "end"])
def test_an_edge_of_a_window_is_inclusive_or_exclusive(edge: str):
    with served() as inclusive, served(f"exclusive-{edge}") as exclusive:
        second = inclusive.starts([ONE])[5]
        window = (second, HOUR[1]) if edge == "start" else (HOUR[0], second)
        assert second in inclusive.starts([ONE], *window)
        assert set(exclusive.starts([ONE], *window)) == set(inclusive.starts([ONE], *window)) - {second}


@pytest.mark.parametrize("dates", [("", ""), (HOUR[0], ""), ("", HOUR[1])], ids=["both", "end", "start"])
def test_null_dates_are_answered_refused_or_without_calls(dates: tuple[str, str]):
    with served(history=1) as served_:
        assert served_.starts([ONE], *dates)
        served_.simulator.misbehave("null-dates=empty")
        assert served_.starts([ONE], *dates) == []
        served_.simulator.misbehave("null-dates=refused")
        refused = served_.post([ONE], *dates)
        assert (refused.get("status"), refused.text) == ("ERROR", "Date range not valid")
        assert served_.starts([ONE])


def test_the_status_flag_has_another_element_and_the_usual_one_is_refused_or_ignored():
    with served("flag-element=Status") as served_:
        assert list(served_.post([ONE], flag="Status").iter("ReviewedStatus"))
        assert served_.post([ONE], flag="StatusFlag").get("status") == "ERROR"
        served_.simulator.misbehave("flag-element=Status", "lenient")
        ignored = served_.post([ONE], flag="StatusFlag")
        assert (ignored.get("status"), list(ignored.iter("ReviewedStatus"))) == ("OK", [])
        assert list(served_.post([ONE], flag="Status").iter("ReviewedStatus"))


def test_a_post_bears_a_number_of_codes_and_hours():
    with served("max-codes=2", "max-hours=1") as served_:
        assert served_.starts([ONE, OTHER])
        assert served_.post([ONE, OTHER, NOBODY]).text == "Too many client codes"
        assert served_.post([ONE], HOUR[0], "11/17/2026 13:00:01").text == "Date range not valid"
        served_.simulator.misbehave("cut-codes=1")
        assert [code.text for code in served_.post([ONE, OTHER]).iter("ClientCode")] == [ONE]


@pytest.mark.parametrize(
    ("fault", "status", "listed"),
    [
        ([], "OK", [ONE, NOBODY]),
        (["unknown-client=omitted"], "OK", [ONE]),
        (["unknown-client=error"], "ERROR", []),
        (["unknown-client=unauthorized"], "UNAUTHORIZED", []),
    ],
    ids=["listed", "omitted", "error", "unauthorized"],
)
def test_a_client_code_that_does_not_exist(fault: list[str], status: str, listed: list[str]):
    with served(*fault) as served_:
        response = served_.post([ONE, NOBODY])
        assert (response.get("status"), [code.text for code in response.iter("ClientCode")]) == (status, listed)
        assert served_.starts([ONE])
        assert served_.starts(["*"])


def test_each_call_has_a_client_element_and_the_calls_are_the_same():
    with served() as together, served("client-per-call") as apart:
        clients = apart.post([ONE, OTHER]).findall("Client")
        assert apart.starts([ONE, OTHER]) == together.starts([ONE, OTHER])
        assert len(clients) == len(apart.starts([ONE, OTHER])) > 100
        assert Counter(client.findtext("ClientCode") for client in clients).keys() == {ONE, OTHER}
        assert len(apart.post([NOBODY]).findall("Client")) == 1


def test_the_hours_of_an_autumn_night_are_apart_or_mixed():
    with served() as by_time, served("wall-order") as by_wall:
        apart, mixed = by_time.starts([ONE], *NIGHT), by_wall.starts([ONE], *NIGHT)
        assert mixed == sorted(apart)
        assert apart != mixed
        assert sum(one > other for one, other in pairwise(apart)) == 1


def test_late_calls_appear_an_hour_later():
    window = "11/18/2026 00:00:00", "11/18/2026 23:59:59"
    with served() as prompt, served("late") as late:
        now = NOW
        for one in (prompt, late):
            one.simulator.clock = lambda: now
        before = set(prompt.starts([ONE], *window))
        assert len(before - set(late.starts([ONE], *window))) > 50
        now += 3600
        assert set(late.starts([ONE], *window)) == before


def test_faults_are_shown_replaced_and_merged_while_the_simulator_runs():
    with served("drip:0.25", "max-codes=3", f"error@{OTHER}") as served_:
        client, shown = served_.client, {"drip": 0.25, "max-codes=3": 1, f"error@{OTHER}": 1}
        assert client.get(FAULTS_PATH).json() == shown
        merged = client.patch(
            FAULTS_PATH, json={"drip": None, f"error@{OTHER}": 0.5, "late": 1, "hang": None, "reset": 1e-7}
        ).json()
        assert (
            merged
            == {"reset": 1e-7, "max-codes=3": 1, f"error@{OTHER}": 0.5, "late": 1}
            == client.get(FAULTS_PATH).json()
        )
        assert client.put(FAULTS_PATH, json={f"unauthorized@{ONE}": 1}).json() == {f"unauthorized@{ONE}": 1}
        assert [served_.post([code]).get("status") for code in (ONE, OTHER)] == ["UNAUTHORIZED", "OK"]
        assert client.put(FAULTS_PATH, json={}).json() == {}
        assert served_.post([ONE]).get("status") == "OK"
        assert served_.simulator.posts == 3  # requests to the endpoint are no POSTs


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "is not JSON"),
        ("\ud800", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is not a JSON object"),
        ('{"nothing": 1}', "'nothing' is not a fault"),
        ('{"nothing": null}', "'nothing' is not a fault"),
        ('{"drip@": 1}', "'drip@' has no client code"),
        ('{"drip": 2}', "the rate of 'drip:2' is not a number from 0 to 1"),
        ('{"drip": NaN}', "the rate of 'drip:nan' is not a number from 0 to 1"),
        ('{"drip": true}', "the rate of 'drip' is not a number from 0 to 1, or null"),
        ('{"drip": "1"}', "the rate of 'drip' is not a number from 0 to 1, or null"),
        ('{"drip:0.5": 1}', "the rate of 'drip:0.5:1' is not"),
        ('{"max-codes": 1}', "does not have the form max-codes=NUMBER"),
    ],
)
@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_faults_that_cannot_be_read_are_a_400_and_change_nothing(method: str, text: str, reason: str):
    with served("late") as served_:
        content = text.encode("utf-8", "surrogatepass")
        answer = served_.client.request(method, FAULTS_PATH, content=content)
        assert (answer.status_code, list(answer.json())) == (400, ["error"])
        assert reason in answer.json()["error"]
        assert served_.simulator.options.faults == ("late",)


def test_other_methods_and_addresses_are_refused():
    with served() as served_:
        answer = served_.client.delete(FAULTS_PATH)
        assert (answer.status_code, answer.headers["Allow"]) == (405, "GET, PUT, PATCH")
    with served(allowed=("10.0.0.1",)) as served_:
        answer = served_.client.put(FAULTS_PATH, json={})
        assert (answer.status_code, json.loads(answer.text)["error"]) == (403, "the address 127.0.0.1 is not allowed")
