"""Slow, silent, malformed and too many clients, against `serve` as a process."""

from __future__ import annotations

import itertools
import json
import re
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.process.served import (
    ANSWERED,
    CODE,
    EXPORT,
    LATER,
    PAGE,
    REAL,
    Serve,
    Served,
    answer,
    closed_after,
    everything,
    request,
)
from tests.support.processes import wait_for
from tests.support.tools import tool


def problem_of(received: bytes) -> tuple[int, str]:
    """Return the status and type of a problem response."""
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head
    return int(head.split()[1]), json.loads(body)["type"]


def test_a_connection_on_which_nothing_is_sent_is_closed(gateway: Served):
    with gateway.connect() as client:
        assert closed_after(client, gateway.bounds.request) >= gateway.bounds.request * 0.9


@pytest.mark.parametrize(
    "sent",
    [b"GET /healthz HTTP/1.1\r\nHost: a\r\n", b"GET", request() + b"GET /healthz HTTP/1.1\r\n"],
    ids=["half a head", "half a line", "half of the next head"],
)
def test_a_head_that_does_not_become_whole_ends_its_connection(gateway: Served, sent: bytes):
    with gateway.connect() as client:
        client.sendall(sent)
        closed_after(client, gateway.bounds.request)


def test_half_a_body_is_not_waited_for(gateway: Served):
    with gateway.connect() as client:
        client.sendall(request("/healthz", "Content-Length: 100") + b"abc")
        closed_after(client, gateway.bounds.request)


def drip(client: socket.socket, data: bytes, pause: float) -> Callable[[], None]:
    """Return a function that sends the next byte of endlessly repeated data at each call."""
    letters = itertools.cycle(data)
    client.settimeout(pause)
    return lambda: client.sendall(bytes([next(letters)]))


def test_a_head_that_is_dripped_has_no_more_time(gateway: Served):
    with gateway.connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\nA: ")
        assert closed_after(client, gateway.bounds.request, drip(client, b"a", 0.05)) < gateway.bounds.request + 5


def test_line_ends_before_the_first_head_buy_no_time(gateway: Served):
    with gateway.connect() as client:
        assert closed_after(client, gateway.bounds.request, drip(client, b"\r\n", 0.05)) < gateway.bounds.request + 5


def test_an_idle_connection_is_closed_after_an_answer(gateway: Served):
    with gateway.connect() as client:
        client.sendall(request())
        assert answer(client).startswith(ANSWERED)
        assert closed_after(client, gateway.bounds.idle) >= gateway.bounds.idle * 0.9


@pytest.mark.parametrize("again", [False, True], ids=["once", "dripped"])
def test_line_ends_after_an_answer_keep_no_connection_open(gateway: Served, again: bool):
    with gateway.connect() as client:
        client.sendall(request())
        assert answer(client).startswith(ANSWERED)
        client.sendall(b"\r\n")
        closed_after(client, gateway.bounds.idle, drip(client, b"\r\n", 0.05) if again else lambda: None)


def test_a_body_that_comes_after_its_head_keeps_no_connection_open(gateway: Served):
    with gateway.connect() as client:
        client.sendall(request("/healthz", "Content-Length: 3"))
        client.sendall(b"abc")
        assert answer(client).startswith(ANSWERED)
        closed_after(client, gateway.bounds.idle)


@pytest.mark.parametrize("line", ["Content-Length: 100000", "Transfer-Encoding: chunked"])
def test_a_body_that_is_large_or_of_unknown_length_is_refused(gateway: Served, line: str):
    received = gateway.ask(request("/calls", line, method="POST") + b"5\r\nhello\r\n")
    assert problem_of(received) == (400, "/problems/invalid-parameter")


def test_a_request_with_a_body_is_answered_and_the_next_one_too(gateway: Served):
    received = gateway.ask(request("/calls", "Content-Length: 7", method="POST"), b"{a:1}\r\n", request(close=True))
    assert received.startswith(b"HTTP/1.1 405")
    assert received.count(ANSWERED) == 1


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def test_a_client_that_waits_to_be_told_to_continue_is_told_so_before_its_body(gateway: Served):
    head = request("/healthz", "Content-Length: 3", "expect: 100-Continue")
    with gateway.connect() as client:
        for _ in range(2):
            client.sendall(head)
            assert client.recv(len(CONTINUE)) == CONTINUE
            client.sendall(b"abc")
            assert answer(client).startswith(ANSWERED)
        client.sendall(head + b"abc")  # it does not wait
        assert answer(client).startswith(ANSWERED)
        client.sendall(request("/healthz", "Content-Length: 99999999", "Expect: 100-continue"))
        assert problem_of(everything(client)) == (400, "/problems/invalid-parameter")


def test_a_promised_body_that_does_not_come_keeps_no_connection_open(gateway: Served):
    with gateway.connect() as client:
        client.sendall(request("/healthz", "Content-Length: 3", "Expect: 100-continue"))
        closed_after(client, gateway.bounds.request)


@pytest.mark.parametrize("host", ["", "a", "a:", "a.example:8080", "127.0.0.1", "[::1]:80", "a%41_b~"])
def test_a_request_has_one_valid_host(gateway: Served, host: str):
    sent = f"GET /healthz HTTP/1.1\r\nhOSt:{host}\r\nConnection: close\r\n\r\n"
    assert gateway.ask(sent.encode()).startswith(ANSWERED)


@pytest.mark.parametrize(
    ("version", "lines"),
    [
        ("1.1", ()),
        ("1.1", ("Host: a", "Host: a")),
        ("1.1", ("Host: a", "Accept: */*", "HOST: b")),
        ("1.1", ("Host: a/b",)),
        ("1.1", ("Host: a b",)),
        ("1.1", ("Host: a, b",)),
        ("1.1", ("Host: u@a",)),
        ("1.1", ("Host: a:x",)),
        ("1.1", ("Hosts: a", "X-Host: a")),
        ("1.0", ("Host: a", "Host: b")),
    ],
)
def test_a_request_without_one_valid_host_is_refused(gateway: Served, version: str, lines: tuple[str, ...]):
    sent = "\r\n".join([f"GET /healthz HTTP/{version}", *lines, "", ""]).encode()
    for one in (sent, sent.replace(b"GET", b"HEAD"), sent[:-2] + b"Content-Length: 1\r\n\r\na"):
        assert problem_of(gateway.ask(one)) == (400, "/problems/invalid-parameter")


@pytest.mark.parametrize("line", ["CONNECT a:443", "OPTIONS *", "GET http://a/healthz", "GET //a/b", "TRACE /healthz"])
def test_unusual_requests_are_answered_without_a_traceback(gateway: Served, line: str):
    received = gateway.ask(f"{line} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    assert received.startswith(b"HTTP/1.1 ")
    assert "Traceback" not in gateway.log()
    assert "Exception" not in gateway.log()


def test_a_request_in_progress_is_not_an_idle_connection(serve: Serve, slow_upstream: str):
    gateway = serve(slow_upstream)  # slower than the short bounds are long
    with gateway.connect() as client:
        client.sendall(request(f"/clients/{CODE}/calls?start=2026-09-01&end=2026-09-01T01:00"))
        assert answer(client).startswith(ANSWERED)


@pytest.mark.parametrize("path", [PAGE, EXPORT], ids=["pages", "a stream"])
def test_a_client_that_does_not_read_is_disconnected(gateway: Served, path: str):
    with gateway.connect(buffer=4096) as client:
        client.sendall(request(path) * (20 if path == PAGE else 1))
        wait_for(lambda: gateway.connections() == 1, "connected")
        wait_for(lambda: not gateway.connections(), "disconnected", gateway.bounds.write + LATER)


def test_a_client_that_reads_slowly_gets_everything(gateway: Served):
    with gateway.connect(buffer=4096) as client:
        client.sendall(request(PAGE, close=True))
        received = b""
        for size in itertools.chain([1, 100], itertools.repeat(16384)):
            part = client.recv(size)
            if not part:
                break
            received += part
    head, _, body = received.partition(b"\r\n\r\n")
    assert len(json.loads(body)["data"]) == 1000
    assert b"content-length: %d\r\n" % len(body) in head


def test_a_client_that_closes_its_side_leaves_nothing_behind(gateway: Served):
    with gateway.connect() as client:
        client.sendall(request(PAGE))
        client.shutdown(socket.SHUT_WR)
        everything(client)
        wait_for(lambda: not gateway.connections(), "closed")


def test_pipelined_requests_are_answered_in_order(gateway: Served):
    paths = ["/healthz", "/nothing", "/readyz", PAGE, "/healthz"]
    received = gateway.ask(*map(request, paths), request("/healthz", close=True))
    statuses = [int(part.split()[0]) for part in received.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [200, 404, 200, 200, 200, 200]


def test_thousands_of_requests_in_one_piece_are_all_answered(gateway: Served):
    assert gateway.ask(request() * 3000, request(close=True)).count(ANSWERED) == 3001


def test_http_1_0_gets_no_chunks_and_its_connection_is_closed(gateway: Served):
    window = f"/clients/{CODE}/calls?start=2026-09-01&end=2026-09-01T02:00&format=ndjson"
    for path in ("/healthz", window):
        head, _, body = gateway.ask(request(path, version="1.0")).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.")
        assert b"transfer-encoding" not in head
        json.loads(body.splitlines()[-1])  # no size of a chunk after it


def test_http_1_0_behind_an_unfinished_response_ends_the_connection_after_it(gateway: Served):
    export = f"/clients/{CODE}/calls?start=2026-09-01&end=2026-09-08&format=ndjson"
    before = gateway.log().count('"level":"error"')
    received = gateway.ask(request(export), request(version="1.0"), request())
    head, _, body = received.partition(b"\r\n\r\n")
    assert (b"transfer-encoding: chunked" in head, body.endswith(b"0\r\n\r\n")) == (True, True)
    assert received.count(b"HTTP/1.1 ") == 1
    assert gateway.log().count('"level":"error"') == before


@pytest.mark.parametrize(
    "sent",
    [
        "GET /healthz?campaign=\u00e9 HTTP/1.1\r\nHost: a\r\n\r\n".encode(),
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n",
        b"HELLO /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
    ids=["raw UTF-8", "NUL in a header", "an unknown method"],
)
def test_invalid_http_is_a_problem(gateway: Served, sent: bytes):
    assert problem_of(gateway.ask(sent)) == (400, "/problems/invalid-parameter")


@pytest.mark.parametrize(
    "lines",
    [
        ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: a", "Sec-WebSocket-Version: 13"),
        ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"),
    ],
    ids=["WebSocket", "h2c"],
)
def test_an_offer_of_another_protocol_is_passed_over_without_a_log_line(gateway: Served, lines: tuple[str, ...]):
    before = gateway.log().count("pgrade")
    received = gateway.ask(request("/healthz", *lines), request("/healthz", close=True))
    assert received.count(ANSWERED) == 2
    assert gateway.log().count("pgrade") == before


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /" + b"a" * 50_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: " + b"a" * 50_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: " + b"a" * 50_000,
    ],
    ids=["a path", "a header", "no end"],
)
def test_a_head_that_is_too_large_is_a_problem(gateway: Served, sent: bytes):
    assert problem_of(gateway.ask(sent)) == (400, "/problems/invalid-parameter")


@pytest.mark.parametrize(
    "sent",
    [b"EHLO a\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/1.1\n\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
    ids=["SMTP", "TLS", "bare line ends", "HTTP/2"],
)
def test_what_is_not_http_is_refused_at_once_without_a_log_line(gateway: Served, sent: bytes):
    before = gateway.log().count("nvalid HTTP")
    assert gateway.ask(sent).startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert gateway.log().count("nvalid HTTP") == before


def test_what_follows_a_request_and_is_not_http_ends_the_connection(gateway: Served):
    received = gateway.ask(request(), b"EHLO a\r\n\r\n", request())
    assert received.count(b"HTTP/1.1 ") <= 2
    assert b"HTTP/1.1 400 " in received


@pytest.fixture
def full(serve: Serve) -> Iterator[tuple[Served, list[socket.socket]]]:
    """A gateway at its limit of connections."""
    gateway = serve(files=200, bounds=REAL)  # of which 100 are for connections
    with ExitStack() as stack:
        clients = [stack.enter_context(gateway.connect()) for _ in range(100)]
        for client in clients:
            client.sendall(request())
            assert answer(client).startswith(ANSWERED)
        yield gateway, clients


def test_one_connection_more_than_allowed_is_a_problem_at_once(full: tuple[Served, list[socket.socket]]):
    gateway, clients = full
    received = gateway.ask()
    assert problem_of(received) == (503, "/problems/overloaded")
    assert b"\r\nretry-after: 1\r\n" in received
    clients[0].close()
    wait_for(lambda: gateway.ask(request(close=True)).startswith(ANSWERED), "there is room again")


def test_a_request_that_is_broken_off_leaves_no_traceback(gateway: Served):
    for path in ("/healthz", "/metrics", PAGE, EXPORT):
        for _ in range(5):
            with gateway.connect() as client:
                client.sendall(request(path))
    assert gateway.ask(request(close=True)).startswith(ANSWERED)
    assert '"error"' not in gateway.log()


def test_slowhttptest_does_not_keep_others_out(gateway: Served):
    words = [tool("slowhttptest"), "-H", "-c", "300", "-r", "300", "-i", "1", "-l", "5", "-p", "3", "-x", "24"]
    done = subprocess.run(
        [*words, "-u", f"{gateway.address}/healthz"], capture_output=True, text=True, timeout=60, check=False
    )
    shown = re.findall(r"service available:\s+(\w+)", re.sub(r"\x1b\[[0-9;]*m", "", done.stdout))
    assert shown
    assert "NO" not in shown
    wait_for(lambda: not gateway.connections(), "all are closed")
