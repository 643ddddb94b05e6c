"""The conformance report finds out each behaviour of a simulated server, with few POSTs and small windows."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import xmltodict
from msgspec import Struct

from gateway.app import build_extras
from gateway.callbutton.conformance.evidence import Evidence, parse_evidence
from gateway.callbutton.conformance.findings import TEXTS
from gateway.callbutton.conformance.inquiry import MAX_POSTS, Post
from gateway.callbutton.conformance.observations import OBSERVATIONS, observe
from gateway.callbutton.conformance.probes import PROBES
from gateway.cli.conformance_report import make_report, render_text
from gateway.settings import Settings, parse_settings
from gateway.simulator.calls import FIRST, LAST, STREETS
from gateway.simulator.faults import FAULTS
from gateway.simulator.request import BadRequest, Request
from gateway.simulator.server import PATH, Options, Simulator
from tests.support.stand import Clock, serving

Report = dict[str, Any]
DAY = timedelta(days=1)
CODE, OTHER, NOBODY = "8005550100", "8005550101", "NO-SUCH-CLIENT-0"
SHORT = {"upstream_timeout": 1.0, "upstream_idle_timeout": 1.0, "upstream_deadline": 2.0}  # seconds, for no reply


class Server(Simulator):
    """A simulator that keeps the bodies of POSTs, and may change replies."""

    def __init__(self, options: Options, clock: Clock, edit: Callable[[str], str]) -> None:
        super().__init__(options, clock)
        self.bodies: list[bytes] = []
        self.edit = edit

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def kept() -> Any:
            message = await receive()
            if message.get("body"):
                self.bodies.append(message["body"])
            return message

        await super().__call__(scope, kept, send)

    def _reply(self, request: Request, *arguments: Any) -> Iterator[str]:
        yield self.edit("".join(super()._reply(request, *arguments)))


def make(
    *faults: str,
    codes: tuple[str, ...] = (),
    watch: float = 0,
    settings: dict[str, Any] | None = None,
    edit: Callable[[str], str] = str,
    server: type[Server] | None = None,
    **options: Any,
) -> tuple[Report, Server, Clock]:
    """Make a report on a server. The clock moves on when the report sleeps."""
    clock = Clock()

    async def sleep(seconds: float) -> None:
        clock.now += seconds

    made = (server or Server)(Options(faults=faults, **{"clients": 3, "calls_per_day": 150, **options}), clock, edit)
    with serving(made) as port:
        upstream = Settings(upstream_url=f"http://user:secret@127.0.0.1:{port}{PATH}", **(settings or {}))
        return asyncio.run(make_report(upstream, codes, watch, clock, sleep)), made, clock


def report(*faults: str, **options: Any) -> Report:
    """A report that keeps to its bounds and has no personal data."""
    found, server, clock = make(*faults, **options)
    check_bounds(server, clock)
    assert len(server.bodies) == len(found["posts"])
    text = json.dumps(found, ensure_ascii=False)
    assert not re.search("312555|773555", text)  # callers and targets
    assert [name for name in (*FIRST, *LAST, *STREETS) if name in text] == []
    assert "secret" not in text
    return found


def check_bounds(server: Server, clock: Clock) -> None:
    """Check that there are few POSTs, and that only those for a client code that does not exist have null dates."""
    assert 0 < len(server.bodies) <= MAX_POSTS == 40
    now = datetime.fromtimestamp(clock.now, UTC).astimezone(ZoneInfo("America/Chicago")).replace(tzinfo=None)
    for body in server.bodies:
        service = xmltodict.parse(body, force_list=("ClientCode",))["Callbutton"]["CallbuttonService"]
        request = service["GetCallDetailsRequest"]
        start, end = (text and wall(text) for text in (request["StartDate"], request["EndDate"]))
        if start is None:
            assert (end, request["ClientCode"]) == (None, [NOBODY])
            assert NOBODY not in server.codes
        else:
            assert (end or now) - start <= DAY


def wall(text: str) -> datetime:
    return datetime.strptime(text, "%m/%d/%Y %H:%M:%S")  # noqa: DTZ007 - as on the wire


@cache
def usual() -> Report:
    return report()


def values(found: Report) -> dict[str, str | None]:
    return {one["name"]: one["value"] for one in found["findings"]}


def finding(found: Report, name: str) -> dict[str, Any]:
    return next(one for one in found["findings"] if one["name"] == name)


def changes(found: Report) -> dict[str, str | None]:
    """The findings that differ from those on the usual simulator."""
    before = values(usual())
    return {name: value for name, value in values(found).items() if value != before[name]}


USUAL: dict[str, str | None] = {
    "every-client": "answered",
    "span-per-post": "a-day",
    "codes-echoed": "as-asked",
    "status-flag": "as-set",
    "unknown-request-elements": "refused",
    "end-date": "inclusive",
    "start-date": "inclusive",
    "null-end-date": "now",
    "unknown-client": "listed",
    "unknown-client-in-batch": "harmless",
    "null-dates": "accepted",
    "codes-per-post": "all",
    "clients-together": "answered",
    "fold-order": "by-time",
    "reversed-dates": "refused",
    "late-calls": None,
    "response-element": "GetCallDetailsResponse",
    "failure-element": "GetCallDetailResponse",
    "element-names": "as-documented",
    "client-elements": "one-per-code",
    "empty-clients": "listed",
    "duplicates": "none",
    "order": "ascending",
    "padded-values": "present",
    "zip-codes": "short",
    "charset": "utf-8",
    "well-formed": "yes",
    "unknown-elements": "present",
    "unreadable-calls": "none",
    "unauthorized": "none",
    "failures": "none",
    "reply-time": "in-time",
}


class Row(Struct):
    """Faults and options of a simulator, the findings that differ from the usual ones, and the settings that follow."""

    faults: tuple[str, ...]
    found: dict[str, str | None]
    settings: tuple[str, ...] = ()
    options: dict[str, Any] = {}


def row(
    *faults: str, settings: tuple[str, ...] = (), options: dict[str, Any] | None = None, **found: str | None
) -> Row:
    return Row(faults, {name.replace("_", "-"): value for name, value in found.items()}, settings, options or {})


NO_CALLS = (
    "codes-echoed status-flag end-date start-date null-end-date unknown-client-in-batch codes-per-post fold-order "
    "element-names client-elements empty-clients duplicates order padded-values zip-codes charset unknown-elements "
    "unreadable-calls"
).split()
ROWS = [
    row(options={"plain": True}, padded_values="none", zip_codes="complete", unknown_elements="none"),
    row("always-status", status_flag="unasked"),
    row("ampersand", well_formed="repaired"),
    row("charset", charset="windows-1252", well_formed="repaired"),
    row("client-per-call", client_elements="one-per-call"),
    row("cut-codes=3", codes_per_post="fewer", settings=("GATEWAY_UPSTREAM_BATCH=3",)),
    row("cut-codes=1", codes_per_post="fewer", unknown_client_in_batch=None, clients_together=None,
        settings=("GATEWAY_UPSTREAM_BATCH=1",)),
    row("descending", order="descending"),
    row("disorder", order="none", fold_order="not-by-time"),
    row("duplicates", duplicates="present", client_elements="several"),
    row("echo", codes_echoed="otherwise", clients_together=None),
    row("error@8005550102", clients_together="some-refused"),
    row("exclusive-end", end_date="exclusive"),
    row("exclusive-start", start_date="exclusive"),
    row("flag-element=Status", status_flag="other-element", settings=("GATEWAY_STATUS_FLAG_ELEMENT=Status",)),
    row("flag-element=Status", "lenient", status_flag="other-element", unknown_request_elements="ignored",
        reversed_dates="answered", failure_element=None, settings=("GATEWAY_STATUS_FLAG_ELEMENT=Status",)),
    row("flag-element=Unheard", status_flag="not-found"),
    row("late", options={"watch": 7200.0}, late_calls="late"),
    row(options={"watch": 7200.0}, late_calls="prompt"),
    row("lenient", unknown_request_elements="ignored", reversed_dates="answered", failure_element=None),
    row("lower-case", element_names="otherwise"),
    row("max-codes=10", codes_per_post="fewer", settings=("GATEWAY_UPSTREAM_BATCH=10",)),
    row("max-codes=2", codes_per_post="fewer", settings=("GATEWAY_UPSTREAM_BATCH=2",)),
    row("max-codes=1", codes_per_post="fewer", unknown_client_in_batch=None, clients_together=None,
        settings=("GATEWAY_UPSTREAM_BATCH=1",)),
    row("max-hours=12", span_per_post="shorter", null_dates="refused", settings=("GATEWAY_UPSTREAM_MAX_SPAN=12h",)),
    row("max-hours=1", span_per_post="shorter", null_dates="refused", fold_order=None,
        settings=("GATEWAY_UPSTREAM_MAX_SPAN=1h",)),
    row("no-status", status_flag="not-found"),
    row("null-dates=empty", null_end_date="other", settings=("GATEWAY_UPSTREAM_NULL_END=off",)),
    row("null-dates=refused", null_end_date="refused", null_dates="refused",
        settings=("GATEWAY_UPSTREAM_NULL_END=off",)),
    row("omit-empty", empty_clients="left-out", unknown_client="left-out"),
    row("other-spelling", failure_element="GetCallDetailsResponse"),
    row("unauthorized@8005550102", clients_together="some-refused", unauthorized="some"),
    row("unknown-client=all", unknown_client="calls", null_dates=None),
    row("unknown-client=error", unknown_client="error", unknown_client_in_batch="spoils", null_dates=None),
    row("unknown-client=omitted", unknown_client="left-out"),
    row("unknown-client=unauthorized", unknown_client="unauthorized", unknown_client_in_batch="spoils", null_dates=None,
        unauthorized="some"),
    row("unknown-client=error", "other-spelling@NO-SUCH-CLIENT-0", unknown_client="error",
        unknown_client_in_batch="spoils", null_dates=None, failure_element="both"),
    row("unknown-client=error", "error@8005550101", unknown_client="error", unknown_client_in_batch=None,
        null_dates=None, codes_per_post=None, clients_together="some-refused"),
    row("unknown-client=error", "max-codes=2", unknown_client="error", unknown_client_in_batch="spoils",
        null_dates=None, codes_per_post=None, clients_together=None),  # of three codes, there is one group of three
    row("unknown-client=error", "max-codes=2", options={"clients": 5}, unknown_client="error",
        unknown_client_in_batch="spoils", null_dates=None, codes_per_post="fewer",
        settings=("GATEWAY_UPSTREAM_BATCH=2",)),
    row("unreadable", unreadable_calls="present"),
    row("wall-order", fold_order="not-by-time"),
    Row((), dict.fromkeys(NO_CALLS), options={"calls_per_day": 0}),
    row(options={"clients": 1}, clients_together=None, empty_clients=None),
    row(options={"history": 10}, fold_order=None),
    row(options={"codes": (OTHER,)}, every_client=None, clients_together=None, empty_clients=None),
    row(options={"codes": (CODE, OTHER)}, every_client=None),
    row(options={"settings": {"status_flag_element": "Journal"}}, status_flag="other-element",
        settings=("GATEWAY_STATUS_FLAG_ELEMENT=StatusFlag",)),
    row(options={"settings": {"upstream_max_bytes": 750_000}}, span_per_post="large-days",
        settings=("GATEWAY_UPSTREAM_MAX_SPAN=2d",)),
]  # fmt: skip
FATAL = {
    "date-error": "refused the request: Date range not valid",
    "doctype": "has a DOCTYPE",
    "drip": "did not finish its answer in time",
    "empty": "is empty",
    "error": "answered ERROR",
    "hang": "did not begin to answer in time",
    "html": "has a DOCTYPE",
    "http-500": "HTTP status 500",
    "http-503": "HTTP status 503",
    "other-form": "it sends 00/00/0000 00:00 PM",
    "reset": "is truncated",
    "truncate": "is not well-formed",
    "unauthorized": "username partner, address 127.0.0.1",
}
REPORTED = {"date-error", "error", "unauthorized"}
ELSEWHERE = {"latency", "unknown"}  # in tests of their own
RANDOM = ["error:0.3", "unauthorized:0.3", "http-500:0.4", "truncate:0.3", "reset:0.3"]


def test_the_findings_on_the_usual_simulator():
    assert values(usual()) == USUAL
    assert list(USUAL) == [*PROBES, "response-element", "failure-element", *OBSERVATIONS, *list(USUAL)[-3:]]


@pytest.mark.parametrize("one", ROWS, ids=lambda one: " ".join([*one.faults, *map(str, one.options)]))
def test_the_findings_change_as_the_server_does(one: Row):
    found = report(*one.faults, **one.options)
    assert changes(found) == one.found
    settings = [finding["setting"] for finding in found["findings"] if finding["setting"]]
    assert {setting for setting in settings if not setting.startswith("GATEWAY_EXTRA_FIELDS=")} == set(one.settings)
    build_extras(parse_settings(dict(setting.split("=", 1) for setting in settings)))  # each of them is valid


def test_every_switch_of_the_simulator_is_found_out():
    rows = {fault.partition("@")[0].partition("=")[0] for one in ROWS for fault in one.faults}
    assert rows | FATAL.keys() | ELSEWHERE == FAULTS.keys()


@pytest.mark.parametrize("fault", FATAL)
def test_a_server_that_does_not_answer_is_reported_after_two_posts(fault: str):
    found = report(fault, settings=SHORT if fault in ("hang", "drip") else {})
    assert FATAL[fault] in found["failure"]["error"]
    assert ("name client codes with --client" in found["failure"]["advice"]) == (fault in REPORTED)
    assert found["findings"] == []
    assert len(found["posts"]) <= 2
    assert f"what to do: {found['failure']['advice']}" in render_text(found)


@pytest.mark.parametrize("fault", RANDOM)
def test_random_failures_are_reported_and_nothing_is_concluded_from_them(fault: str):
    found = report(fault)
    assert values(found)["failures"] == "some"
    different = changes(found)
    assert {value for name, value in different.items() if name not in ("failures", "unauthorized")} <= {None}


def test_hours_that_are_never_answered_are_no_limit_of_hours():
    class Poisoned(Server):
        def _check(self, request: Request, faults: Mapping[str, str]) -> None:
            super()._check(request, faults)
            if request.start and request.start.hour <= 9 <= (request.end or request.start).hour:
                raise BadRequest("Date range not valid")

    found = finding(report(server=Poisoned), "span-per-post")
    assert (found["value"], found["setting"]) == (None, None)
    assert "it depends on the hours of a day" in found["text"]


def test_a_client_that_the_server_refuses_makes_no_finding_unknown():
    latest = finding(report(calls_per_day=1000, clients=2), "codes-echoed")["evidence"][-1].split()[-1]
    found = values(report(f"unauthorized@{latest}", calls_per_day=1000, clients=2))
    names = ("codes-echoed", "unknown-client-in-batch", "codes-per-post", "clients-together")
    assert [found[name] for name in names] == ["as-asked", "harmless", "all", "some-refused"]


def test_late_calls_are_unknown_if_only_the_first_post_is_answered():
    class Tiring(Server):
        def _check(self, request: Request, faults: Mapping[str, str]) -> None:
            super()._check(request, faults)
            if len(self.bodies) > 1:
                raise BadRequest("Date range not valid")

    text = finding(report(server=Tiring), "late-calls")["text"]
    assert text == "Unknown: no later POST for the time of POST 1 was answered."


def test_a_report_ends_after_forty_posts():
    found = report("flag-element=Unheard", "http-500:0.5", "max-codes=3", "unknown-client=error", watch=3600.0, seed=5)
    assert len(found["posts"]) == MAX_POSTS
    assert "the 40 POSTs of a report were used up" in json.dumps(found)


def test_unknown_elements_are_named_and_the_setting_makes_fields_of_them():
    before, found = finding(usual(), "unknown-elements"), finding(report("unknown"), "unknown-elements")
    more = ["Carrier.Lata", "Carrier.Name", "Whisper"]
    assert [name for name in more if name in before["text"]] == []
    assert [name for name in more if name in found["text"]] == more
    assert "Carrier.Lata:extraCarrierLata!personal" in found["setting"]


def test_the_time_of_replies_is_reported():
    assert min(post["seconds"] for post in report("latency=0.2")["posts"]) >= 0.2


@pytest.mark.parametrize(
    ("waited", "value", "setting"),
    [
        (15, "in-time", None),
        (15.1, "slow", "GATEWAY_UPSTREAM_TIMEOUT=60s"),
        (40, "slow", "GATEWAY_UPSTREAM_TIMEOUT=80s"),
    ],
)
def test_a_reply_that_takes_half_of_the_time_out_is_slow(waited: float, value: str, setting: str | None):
    post = Post(1, ("*",), None, None, None, sent=0, waited=waited, evidence=Evidence("", "OK"))
    (found,) = [one for one in observe([post], 30) if one.name == "reply-time"]
    assert (found.value, found.setting) == (value, setting)


def with_prefix(text: str) -> str:
    return re.sub(r"<(/?)(?=\w)", r"<\1c:", text).replace("<c:Callbutton ", "<c:Callbutton xmlns:c='urn:c' ")


EDITS: dict[str, tuple[Callable[[str], str], dict[str, str | None]]] = {
    "success in the other element": (
        lambda text: text.replace("GetCallDetailsResponse", "GetCallDetailResponse"),
        {"response-element": "GetCallDetailResponse"},
    ),
    "success in both elements": (
        lambda text: text if "<Call " in text else text.replace("GetCallDetailsResponse", "GetCallDetailResponse"),
        {"response-element": "both"},
    ),
    "another client": (
        lambda text: text.replace("</GetCall", "<Client><ClientCode>x</ClientCode></Client></GetCall"),
        {"codes-echoed": "with-others", "client-elements": "several"},  # twice, when it is asked
    ),
    "a prefix": (with_prefix, {}),
    "white space between elements": (lambda text: re.sub(r"(?<=>)(?=<)", "\n  ", text), {}),
    "ASCII": (lambda text: text.encode("ascii", "xmlcharrefreplace").decode(), {"charset": None}),
    "attributes": (
        lambda text: text.replace("<DID>", "<DID type='tollfree'>").replace("<Call ", "<Call Version='2' "),
        {},
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_other_forms_of_replies(name: str):
    edit, expected = EDITS[name]
    assert changes(report(edit=edit)) == expected


def test_attributes_are_unknown_elements():
    found = finding(report(edit=EDITS["attributes"][0], plain=True), "unknown-elements")
    assert "the document does not know: @Version, DID.@type." in found["text"]
    assert found["setting"] == "GATEWAY_EXTRA_FIELDS=@Version:extraVersion!personal"


def test_a_charset_that_is_announced_is_found():
    letters = "<Callbutton><CallbuttonService><GetCallDetailsResponse status='OK'><a>\u0141\xf3d\u017a</a>"
    body = f"{letters}</GetCallDetailsResponse></CallbuttonService></Callbutton>".encode("iso8859-2")
    post = Post(1, ("*",), None, None, None, sent=0, charset="ISO-8859-2", evidence=parse_evidence(body, "ISO-8859-2"))
    (found,) = [one for one in observe([post], 30) if one.name == "charset"]
    assert (found.value, found.text) == ("other", "Characters outside ASCII are iso8859-2. The gateway reads them.")


def test_every_value_of_a_finding_is_found_in_a_test():
    rows: list[dict[str, str | None]] = [{"failures": "some"}, {"reply-time": "slow"}, {"charset": "other"}]
    rows += [USUAL, *(one.found for one in ROWS), *(expected for _, expected in EDITS.values())]
    seen = {pair for found in rows for pair in found.items() if pair[1]}
    assert seen == {(name, value) for name, texts in TEXTS.items() for value in texts}
