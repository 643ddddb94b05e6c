"""The fault matrix: upstream faults over real sockets, and the gateway's response to each.

A row states the answer to the consumer, whether calls were cached, the number of POSTs and the metric that changed. Its
test verifies this, and that reads are correct once the upstream recovers. `tests/faults.md` is this table
(`WRITE_FAULTS=1 pytest tests/callbutton/test_faults.py` writes it).
"""

from __future__ import annotations

import asyncio
import gzip
import os
import re
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from msgspec import Struct

from tests.support.behaviours import (
    CODE,
    Behaviour,
    Upstream,
    answers,
    by_code,
    call,
    client,
    document,
    drip,
    endless,
    failure,
    http,
    resets,
    sends,
)
from tests.support.paths import TESTS
from tests.support.processes import wait_for
from tests.support.stand import Make, Stand

DOCUMENT = TESTS / "faults.md"
OTHER = "8005550101"
ONE = f"/clients/{CODE}/calls"
BOTH = f"/calls?client={CODE}&client={OTHER}"
WINDOW = {"start": "2026-06-01T12:00:00Z", "end": "2026-06-01T13:00:00Z"}  # wall 07:00 to 08:00
SHORT = {"upstream_timeout": 0.5, "upstream_idle_timeout": 0.5, "upstream_deadline": 1.0}  # seconds
SLACK = 10.0  # seconds of delay on a busy machine; every other time-out in the settings is longer
BUDGET = 1024**2  # bytes of a reply
OK = "200"
MALFORMED, FAILED, UNAUTHORIZED = "502 upstream-malformed", "502 upstream-error", "502 upstream-unauthorized"
UNREACHABLE, TIMEOUT, REJECTED = "502 upstream-unreachable", "504 upstream-timeout", "422 upstream-rejected"
OUTCOMES = {
    OK: "ok",
    MALFORMED: "malformed",
    FAILED: "error",
    UNAUTHORIZED: "unauthorized",
    UNREACHABLE: "unreachable",
    TIMEOUT: "timeout",
    REJECTED: "rejected",
}


class Fault(Struct):
    """A row. `calls` are the ids in the answer; `kept` means that a repeated request needs no POST.

    `after` is the setting of the time-out that ends the request, if any.
    """

    behave: Behaviour | str  # or the URL of an upstream that this module does not serve
    answer: str
    calls: tuple[str, ...] = ()
    kept: bool = False
    metric: str = ""  # default: the counter of the outcome
    posts: int = 1
    path: str = ONE
    changes: dict[str, Any] = {}
    after: str = ""

    @property
    def moved(self) -> str:
        return self.metric or f'upstream_posts_total{{outcome="{OUTCOMES[self.answer]}"}}'


GOOD = document(client(call("healed")) + client(call("healed"), OTHER))
SOUND = document(client(call()))
HEAD = http(SOUND)
XML_AT = HEAD.index(b"<?xml")
BILLION = "<!DOCTYPE a [<!ENTITY a 'ha'>" + "".join(
    f"<!ENTITY {name} '{10 * f'&{inner};'}'>" for inner, name in zip("abcdefgh", "bcdefghi", strict=True)
)
DEEP = 100_000
FAULTS = {
    "connection refused": Fault("refused", UNREACHABLE),
    "no route": Fault("http://255.255.255.255:9/", UNREACHABLE),
    "name not found": Fault("http://callbutton.invalid/", UNREACHABLE),
    "connection hangs": Fault("full", TIMEOUT, changes=SHORT, after="upstream_timeout"),
    "TLS fails": Fault("https", UNREACHABLE),
    "hangs before the headers": Fault(sends(30.0), TIMEOUT, changes=SHORT, after="upstream_timeout"),
    "headers dripped": Fault(drip(HEAD, 0.1), TIMEOUT, changes=SHORT, after="upstream_deadline"),
    "hangs in the middle": Fault(sends(HEAD[:-40], 30.0), TIMEOUT, changes=SHORT, after="upstream_idle_timeout"),
    "a byte every moment": Fault(
        sends(HEAD[:XML_AT], *[b" ", 0.2] * 100), TIMEOUT, changes=SHORT, after="upstream_deadline"
    ),
    "reset before the first byte": Fault(resets(), UNREACHABLE),
    "closed before the first byte": Fault(sends(close=True), UNREACHABLE),
    "reset in the middle": Fault(resets(HEAD[:-40]), MALFORMED),
    "Content-Length too long": Fault(sends(http(SOUND, length=9999), close=True), MALFORMED),
    "Content-Length too short": Fault(answers(SOUND, length=100), MALFORMED),
    "not HTTP": Fault(sends(b"220 mail.example ready\r\n", close=True), MALFORMED),
    "a header line that is not HTTP": Fault(
        sends(http(SOUND, headers="Set Cookie: JSESSIONID=1\r\n"), close=True), MALFORMED
    ),
    "200 with HTML": Fault(answers("<!DOCTYPE html><html><body>Login</body></html>"), MALFORMED),
    "200 without a body": Fault(answers(""), MALFORMED),
    "204": Fault(sends(b"HTTP/1.1 204 No Content\r\n\r\n"), FAILED),
    "301": Fault(answers("", status="301 Moved", headers="Location: /elsewhere\r\n"), FAILED),
    "400": Fault(answers(SOUND, status="400 Bad"), FAILED),
    "401": Fault(answers("", status="401 No"), UNAUTHORIZED),
    "403": Fault(answers("", status="403 No"), UNAUTHORIZED),
    "500": Fault(answers(SOUND, status="500 Error"), FAILED),
    "502": Fault(answers("", status="502 Bad"), FAILED),
    "503 with Retry-After": Fault(answers("", status="503 Busy", headers="Retry-After: 60\r\n"), FAILED),
    "ERROR": Fault(answers(failure("ERROR")), FAILED),
    "ERROR, the other spelling": Fault(answers(failure("ERROR", element="GetCallDetailsResponse")), FAILED),
    "ERROR about the dates": Fault(answers(failure("ERROR", "Date range not valid")), REJECTED),
    "ERROR: no calls found": Fault(answers(failure("ERROR", "No calls found for this period.")), OK, kept=True),
    "UNAUTHORIZED": Fault(answers(failure("UNAUTHORIZED")), UNAUTHORIZED),
    "UNAUTHORIZED, the other spelling": Fault(
        answers(failure("UNAUTHORIZED", element="GetCallDetailsResponse")), UNAUTHORIZED
    ),
    "a status that is unknown": Fault(answers(failure("MAYBE")), MALFORMED),
    "truncated": Fault(answers(SOUND[:-40]), MALFORMED),
    "junk after the document": Fault(answers(SOUND + "<!-- --><p>1</p>"), MALFORMED),
    "DOCTYPE, internal": Fault(answers(SOUND.replace("?>", "?><!DOCTYPE a [<!ENTITY b 'c'>]>")), MALFORMED),
    "DOCTYPE, external": Fault(answers(SOUND.replace("?>", "?><!DOCTYPE a SYSTEM 'http://127.0.0.1:9/a'>")), MALFORMED),
    "entity bomb": Fault(answers(SOUND.replace("?>", f"?>{BILLION}]>").replace(">5<", ">&i;<")), MALFORMED),
    "depth bomb, left open": Fault(answers(document(client(call(more="<a>" * DEEP)))), MALFORMED),
    "depth bomb, closed": Fault(answers(document(client(call(more="<a>" * DEEP + "</a>" * DEEP)))), MALFORMED),
    "depth bomb within a piece": Fault(answers(document(client(call(more="<a>" * 5000 + "</a>" * 5000)))), MALFORMED),
    "a million elements in a call": Fault(
        answers(document(client(call(more="<a/>" * 1_000_000)))), MALFORMED, changes={"upstream_max_bytes": 16 * BUDGET}
    ),
    "2 GB": Fault(endless(b"x" * 65536, 32768), MALFORMED),
    "gzip bomb of 2 GB": Fault(endless(b"x" * 1024**2, 2048, packed=True), MALFORMED),
    "gzip without Content-Encoding": Fault(sends(http(gzip.compress(SOUND.encode()))), MALFORMED),
    "wrong charset": Fault(
        sends(http(document(client(call(more="<OtherData>Ren\xe9</OtherData>"))).encode("cp1252"))),
        OK,
        calls=("1",),
        kept=True,
        metric='text_repairs_total{repair="windows_1252"}',
    ),
    "illegal characters": Fault(
        answers(document(client(call(more="<OtherData>a\x01b&#2;</OtherData>")))),
        OK,
        calls=("1",),
        kept=True,
        metric='text_repairs_total{repair="illegal_character"}',
    ),
    "a bare ampersand": Fault(
        answers(document(client(call(more="<OtherData>R&D</OtherData>")))),
        OK,
        calls=("1",),
        kept=True,
        metric='text_repairs_total{repair="bare_ampersand"}',
    ),
    "a reference of HTML": Fault(
        answers(document(client(call(more="<OtherData>Caf&eacute;</OtherData>")))),
        OK,
        calls=("1",),
        kept=True,
        metric='text_repairs_total{repair="html_reference"}',
    ),
    "NUL padding after the document": Fault(
        answers(SOUND + "\0" * 100),
        OK,
        calls=("1",),
        kept=True,
        metric='text_repairs_total{repair="illegal_character"}',
    ),
    "a blank line before the declaration": Fault(answers(f"\r\n{SOUND}"), OK, calls=("1",), kept=True),
    "a byte order mark": Fault(answers(f"\ufeff{SOUND}"), OK, calls=("1",), kept=True),
    "Content-Encoding: UTF-8": Fault(
        answers(SOUND, headers="Content-Encoding: UTF-8\r\n"), OK, calls=("1",), kept=True
    ),
    "a namespace prefix": Fault(
        answers(re.sub(r"<(/?)(?=\w)", r"<\1c:", SOUND).replace("<c:Callbutton ", "<c:Callbutton xmlns:c='urn:c' ")),
        OK,
        calls=("1",),
        kept=True,
    ),
    "tags in lower case": Fault(
        answers(re.sub(r"<[^?>]*>", lambda tag: tag[0].lower(), SOUND)), OK, calls=("1",), kept=True
    ),
    "a call without id": Fault(
        answers(document(client(call() + call().replace(' ID="1"', "")))),
        OK,
        calls=("1",),
        kept=True,
        metric="calls_unreadable_total",
    ),
    "a call without StartTime": Fault(
        answers(document(client(call() + '<Call ID="2"><Duration>1</Duration></Call>'))),
        OK,
        calls=("1",),
        kept=True,
        metric="calls_unreadable_total",
    ),
    "a call with an impossible StartTime": Fault(
        answers(document(client(call() + call("2", start="02/30/2026 25:00:00")))),
        OK,
        calls=("1",),
        kept=True,
        metric="calls_unreadable_total",
    ),
    "every StartTime in another form": Fault(
        answers(document(client(call(start="06/01/2026 07:30 AM") + call("2", start="06/01/2026 07:40 AM")))), MALFORMED
    ),
    "a negative duration": Fault(answers(document(client(call().replace(">5<", ">-5<")))), OK, calls=("1",), kept=True),
    "an id twice, with different content": Fault(
        answers(document(client(call("1", 10) + call("1", 20)))), OK, calls=("1",), kept=True
    ),
    "calls outside the window": Fault(
        answers(document(client(call() + call("2", start="06/01/2026 09:00:00")))), OK, calls=("1",), kept=True
    ),
    "calls out of order": Fault(
        answers(document(client(call("1", 20) + call("2", 40) + call("3", 10)))), OK, calls=("2", "1", "3"), kept=True
    ),
    "a client that was not asked for": Fault(
        answers(document(client(call()) + client(call("2"), OTHER) + client(call("3"), "8005559999"))),
        OK,
        calls=("2", "1"),
        kept=True,
        path=BOTH,
    ),
    "a client missing": Fault(by_code, OK, calls=(OTHER, CODE), kept=True, posts=2, path=BOTH),
}


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        yield server


@pytest.fixture
def nowhere() -> Iterator[dict[str, str]]:
    """Addresses without an answer: a port that refuses connections, and one whose backlog is full."""
    with socket.socket() as bound, socket.socket() as full, socket.socket() as one, socket.socket() as two:
        bound.bind(("127.0.0.1", 0))
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for filling in (one, two):
            filling.setblocking(False)
            filling.connect_ex(full.getsockname())
        ports = {"refused": bound.getsockname()[1], "full": full.getsockname()[1]}
        yield {name: f"http://127.0.0.1:{port}/" for name, port in ports.items()}


def url_of(fault: Fault, upstream: Upstream, nowhere: dict[str, str]) -> str:
    if fault.behave == "https":
        return f"https://127.0.0.1:{upstream.port}/"
    if isinstance(fault.behave, str):
        return nowhere.get(fault.behave, fault.behave)
    return f"http://127.0.0.1:{upstream.port}/xml.jsp"


@pytest.mark.parametrize("name", FAULTS)
def test_the_fault_is_answered_kept_and_counted_as_the_table_says(
    name: str, stand: Make, upstream: Upstream, nowhere: dict[str, str]
):
    fault = FAULTS[name]
    settings = {"upstream_url": url_of(fault, upstream, nowhere), "upstream_max_bytes": BUDGET} | fault.changes
    gateway = stand(**settings)
    if not isinstance(fault.behave, str):
        upstream.behave = fault.behave
    upstream.posts = 0
    before = gateway.metric(fault.moved)
    path = f"{fault.path}{'&' if '?' in fault.path else '?'}" + "&".join(f"{k}={v}" for k, v in WINDOW.items())
    began = time.monotonic()
    answer = gateway.client.get(path)
    took = time.monotonic() - began
    body = answer.json()
    least = SHORT.get(fault.after, 0.0)
    assert least <= took < least + SLACK
    said = OK if answer.status_code == 200 else f"{answer.status_code} {body['type'].removeprefix('/problems/')}"
    assert said == fault.answer, body
    assert gateway.metric(fault.moved) > before, fault.moved
    assert tuple(one["id"] for one in body.get("data", ())) == fault.calls
    assert body.get("meta", {}).get("stale", False) is False
    if isinstance(fault.behave, str):
        return
    assert upstream.posts == fault.posts
    upstream.behave = answers(GOOD)

    def heal() -> httpx.Response | None:
        gateway.pass_time(2)  # errors are cached for a second
        answer = gateway.client.get(path)
        return answer if answer.status_code == 200 else None

    again = wait_for(heal, "an answer")
    assert again is not None
    expected = "callbutton-gateway; hit" if fault.kept else "callbutton-gateway; fwd=miss"
    assert again.headers["cache-status"].startswith(expected)
    ids = [one["id"] for one in again.json()["data"]]
    assert ids == (list(fault.calls) if fault.kept else ["healed"])


def ask(gateway: Stand, number: int, hours: int = 1) -> httpx.Response:
    """Request the calls of one client from a given hour on, so that requests do not share cached hours."""
    return gateway.get(f"/clients/80055502{number:02}/calls", start=f"2026-06-01T{hours:02}:00:00Z", end="2026-06-02")


def test_a_post_whose_connection_is_lost_before_the_first_byte_is_sent_once_more(stand: Make, upstream: Upstream):
    gateway = stand(upstream_url=f"http://127.0.0.1:{upstream.port}/xml.jsp")
    upstream.behave = answers(document(""))
    for number in range(9):
        assert ask(gateway, number).status_code == 200
    upstream.posts = 0

    async def once(body: bytes, writer: asyncio.StreamWriter) -> None:
        await (resets() if upstream.posts == 1 else answers(document("")))(body, writer)

    upstream.behave = once
    assert ask(gateway, 10).status_code == 200
    assert (upstream.posts, gateway.metric("upstream_retries_total")) == (2, 1)
    upstream.behave = resets()
    assert ask(gateway, 11).json()["type"] == "/problems/upstream-unreachable"
    assert (upstream.posts, gateway.metric("upstream_retries_total")) == (3, 1)  # retries: a tenth of POSTs at most


def test_after_failures_in_a_row_nothing_is_sent_until_a_probe_is_answered(stand: Make, upstream: Upstream):
    gateway = stand(upstream_url=f"http://127.0.0.1:{upstream.port}/xml.jsp", stale_if_error=3600.0)
    upstream.behave = answers(document(""))
    known = ask(gateway, 0)
    gateway.pass_time(40 * 86400)
    upstream.posts = 0
    upstream.behave = answers("", status="500 Error")
    for hours in range(8):  # four clients do not open it, however often they fail
        gateway.pass_time(2)
        for number in range(1, 5):
            assert ask(gateway, number, hours).status_code == 502
    assert upstream.posts >= 32
    assert gateway.metric("upstream_circuit_state") == 0
    assert ask(gateway, 5).status_code == 502
    posts = upstream.posts
    refused = ask(gateway, 6)
    assert upstream.posts == posts
    assert (refused.status_code, refused.json()["type"]) == (503, "/problems/upstream-circuit-open")
    assert int(refused.headers["retry-after"]) >= 1
    assert (gateway.metric("upstream_circuit_state"), gateway.metric("upstream_healthy")) == (2, 0)
    assert gateway.get("/readyz").status_code == 200
    gateway.clock.now -= 33 * 86400 - 600  # a little past freshness, which is seven days
    stale = ask(gateway, 0)
    assert (stale.status_code, stale.json()["meta"]["stale"]) == (200, True)
    assert stale.json()["data"] == known.json()["data"]
    upstream.behave = answers(document(""))
    wait_for(lambda: ask(gateway, 4).status_code == 200, "the circuit closes")
    assert (gateway.metric("upstream_circuit_state"), gateway.metric("upstream_healthy")) == (0, 1)


def table() -> str:
    rows = [
        "# Responses of the gateway to upstream faults",
        "",
        "Generated by `tests/callbutton/test_faults.py`, which tests every row over real sockets: the answer if",
        "the cache is empty, when it is sent, whether calls were cached, the number of POSTs, and the metric that",
        "changes.",
        "Once the upstream recovers, the next read is complete.",
        "",
        "| fault | answer | after | kept | POSTs | metric that changes |",
        "|---|---|---|---|---|---|",
    ]
    for name, fault in FAULTS.items():
        metric = fault.moved.replace("{", "` `").replace("}", "")
        kept, posts = "yes" if fault.kept else "nothing", 0 if isinstance(fault.behave, str) else fault.posts
        shown = f"{fault.answer}, {len(fault.calls)} calls" if fault.answer == OK else fault.answer
        after = f"`GATEWAY_{fault.after.upper()}`" if fault.after else "at once"
        rows.append(f"| {name} | {shown} | {after} | {kept} | {posts} | `{metric}` |")
    return "\n".join(rows) + "\n"


def test_the_table_in_the_documents_is_this_one():
    if os.environ.get("WRITE_FAULTS"):
        DOCUMENT.write_text(table(), "utf-8")
    assert DOCUMENT.read_text("utf-8") == table()
