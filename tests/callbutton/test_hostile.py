"""Attacks found by a security review: raw sockets, framing, injection, hostile data from upstream and consumers."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from gateway.simulator.server import Options
from tests.support.consumers import Member, keys_file
from tests.support.stand import Make, Stand

CALLS = "/clients/8005550100/calls"
WINDOW = "start=2026-11-01T05:00:00Z&end=2026-11-01T06:00:00Z"
FOLD = {"start": "2026-11-01T05:00:00Z", "end": "2026-11-01T09:00:00Z"}
MEMBER = Member("one", scopes=("calls", "personal"))
KEY = f"X-API-Key: {MEMBER.key}\r\n"
GOOD = f"GET {CALLS}?{WINDOW} HTTP/1.1\r\nHost: gateway\r\n{KEY}\r\n"
BARE = f"GET {CALLS}?{WINDOW} HTTP/1.1\r\nHost: gateway\r\n\r\n"
LAST = "GET /healthz HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n"


@pytest.fixture
def gateway(stand: Make, tmp_path: Path) -> Stand:
    return stand(auth="keys", keys_file=keys_file(tmp_path, MEMBER))


def exchange(gateway: Stand, text: str) -> str:
    """Send bytes, and read until the gateway closes."""
    url = gateway.client.base_url
    with socket.create_connection((url.host, url.port or 0), timeout=10) as connection:
        connection.sendall(text.encode("latin-1"))
        received = b""
        while piece := connection.recv(65536):
            received += piece
    return received.decode("latin-1")


def statuses(text: str) -> list[str]:
    return re.findall(r"HTTP/1\.1 (\d{3})", text)


def test_a_connection_has_no_memory_of_who_asked_before(gateway: Stand):
    assert statuses(exchange(gateway, GOOD + BARE + LAST)) == ["200", "401", "200"]


BODY = f"0\r\n\r\n{GOOD}"
FRAMING = {
    "length and chunks": f"POST /calls HTTP/1.1\r\nHost: g\r\nContent-Length: {len(BODY)}\r\n"
    f"Transfer-Encoding: chunked\r\n\r\n{BODY}",
    "two lengths": f"POST /calls HTTP/1.1\r\nHost: g\r\nContent-Length: 0\r\nContent-Length: {len(GOOD)}\r\n\r\n{GOOD}",
    "a length with a sign": f"POST /calls HTTP/1.1\r\nHost: g\r\nContent-Length: +{len(GOOD)}\r\n\r\n{GOOD}",
    "chunked twice, once misspelt": f"POST /calls HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: xchunked\r\n\r\n{BODY}",
    "a space before the colon": f"GET {CALLS} HTTP/1.1\r\nHost: g\r\nX-API-Key : {MEMBER.key}\r\n\r\n",
    "a folded header": f"GET {CALLS} HTTP/1.1\r\nHost: g\r\nX-A: b\r\n {KEY}\r\n",
    "a NUL in a header": f"GET {CALLS} HTTP/1.1\r\nHost: g\r\nX-A: a\0b\r\n\r\n",
    "a bare CR": f"GET {CALLS} HTTP/1.1\r\nHost: g\r\nX-A: a\r{KEY}\r\n",
}


def test_framing_that_two_servers_might_read_differently_lets_nothing_through(gateway: Stand):
    for name, text in FRAMING.items():
        assert "200" not in statuses(exchange(gateway, text)), name


def test_nothing_that_is_asked_splits_a_header_or_is_repeated_in_one(gateway: Stand):
    for path in ("/x%0d%0aX-Evil:%201", f"{CALLS}?start=%0d%0aX-Evil:%201", f"{CALLS}?cursor=%0d%0aX-Evil:1"):
        for key in (KEY, "", "X-API-Key: cbg_%0d%0aX-Evil: 1\r\n"):
            request = (
                f"GET {path} HTTP/1.1\r\nHost: g\r\nX-Request-Id: a%0d%0aX-Evil:1\r\nConnection: close\r\n{key}\r\n"
            )
            head = exchange(gateway, request).partition("\r\n\r\n")[0]
            assert "evil" not in head.lower().replace("x-request-id", ""), path
            assert statuses(head)[0] in ("400", "401", "404"), path


CODES = ["<x>", "a&b", "a]]>", "%3C/ClientCode%3E", "a%00", "a'", 'a"', "%26lt;", "a;b", "é"]


def test_no_code_reaches_the_upstreams_xml_but_letters_digits_and_three_signs(gateway: Stand):
    for code in CODES:
        for path in (f"/clients/{code}/calls", f"/calls?client={code}"):
            assert gateway.client.get(path, headers=MEMBER.headers).status_code in (400, 404), path
    assert gateway.simulator.posts == 0


@pytest.mark.parametrize("fault", ["error", "html", "http-500", "truncate", "doctype", "unauthorized", "date-error"])
def test_what_the_upstream_says_stays_inside(stand: Make, tmp_path: Path, fault: str):
    gateway = stand(Options(faults=(fault,)), auth="keys", keys_file=keys_file(tmp_path, MEMBER))
    answer = gateway.client.get(CALLS, params=FOLD, headers=MEMBER.headers)
    assert answer.status_code >= 400
    for secret in ("<", "Lovelace", "312555", "partner", "127.0.0.1", "Traceback", "xml.jsp"):
        assert secret not in answer.text, secret
    assert "127.0.0.1" not in str(answer.headers)


def test_no_answer_names_the_server_or_the_key(gateway: Stand):
    for path in (CALLS, "/nothing", "/calls", "/metrics", "/openapi.json", "/clients/x/calls"):
        answer = gateway.client.get(path, params=FOLD, headers=MEMBER.headers)
        assert MEMBER.key not in answer.text + str(answer.headers)
    assert MEMBER.key not in gateway.client.get("/metrics").text
