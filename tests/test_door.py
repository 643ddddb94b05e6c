"""Slow clients, crowds and those who hang up, over real sockets; and the end of a process under load."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from gateway.api import problems
from gateway.connections import Patience
from gateway.server import address_of, listen, make_server
from gateway.simulator.server import PATH, Options, create
from tests.conftest import Make
from tests.processes import children
from tests.test_command_line import COMMAND, ENVIRONMENT
from tests.tools import tool

WINDOW = "start=2026-11-01T05:00:00Z&end=2026-11-01T06:00:00Z"
Send = Callable[[dict[str, Any]], Awaitable[None]]


async def much(_: dict[str, Any], __: object, send: Send) -> None:
    """Answer with more than any socket buffers."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _number in range(400):
        await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def little(_: dict[str, Any], __: object, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


@contextmanager
def served(application: Any) -> Iterator[tuple[int, set[Any]]]:
    """Serve with our patience; gives the port, and the connections that are open."""
    opened = listen("127.0.0.1", 0)
    server = make_server(application, lifespan="off", problem=problems.bare_problem)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
    thread.start()
    port = opened.getsockname()[1]
    until(lambda: server.started)
    try:
        yield port, server.server_state.connections
    finally:
        server.should_exit = True
        thread.join(20)


def until(true: Callable[[], bool]) -> None:
    """Wait until something is true, for at most 20 s."""
    ends = time.monotonic() + 20
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.02)


def everything(opened: socket.socket) -> bytes:
    """Read up to the end."""
    opened.settimeout(20)
    parts = []
    while part := opened.recv(65536):
        parts.append(part)
    return b"".join(parts)


def problem_of(answer: bytes) -> tuple[int, str, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    problem = json.loads(body)
    assert b"application/problem+json" in head
    return int(head.split()[1]), problem["type"], problem["detail"]


SLOW = {
    "nothing at all": b"",
    "half a head": b"GET / HTTP/1.1\r\nHost: a\r\n",
    "half a body": b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc",
    "half of the next request": b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\n",
}


@pytest.mark.parametrize("sent", SLOW.values(), ids=SLOW)
def test_a_request_that_does_not_become_whole_ends_its_connection(sent: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Patience, "whole", 0.3)
    with served(little) as (port, connections), socket.create_connection(("127.0.0.1", port)) as opened:
        opened.sendall(sent)
        everything(opened)  # to the end, which is the server's
        until(lambda: not connections)


def drip(opened: socket.socket) -> None:
    for _ in range(1000):
        opened.sendall(b"G")
        time.sleep(0.02)


def test_a_head_that_is_dripped_is_not_more_patient(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Patience, "whole", 0.3)
    with served(little) as (port, connections), socket.create_connection(("127.0.0.1", port)) as opened:
        opened.sendall(b"GET / HTTP/1.1\r\nA: ")
        with pytest.raises(ConnectionError):
            drip(opened)
        until(lambda: not connections)


def test_who_does_not_take_in_the_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Patience, "write", 0.3)
    with served(much) as (port, connections), socket.create_connection(("127.0.0.1", port)) as opened:
        opened.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        until(lambda: len(connections) == 1)
        until(lambda: not connections)


def test_who_takes_it_in_is_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Patience, "write", 5)
    with served(much) as (port, _), socket.create_connection(("127.0.0.1", port)) as opened:
        opened.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert everything(opened).count(b"x") == 400 * 65536


ODD = {
    "a head that is too long": (b"GET /" + b"a" * 50_000 + b" HTTP/1.1\r\n\r\n", "The head of the request is longer"),
    "a header that is too long": (b"GET / HTTP/1.1\r\nA: " + b"a" * 50_000 + b"\r\n\r\n", "The head of the request"),
    "not HTTP": (b"EHLO\r\n\r\n", "Invalid HTTP request"),
}


@pytest.mark.parametrize(("sent", "said"), ODD.values(), ids=ODD)
def test_a_request_that_cannot_be_read_is_a_problem(sent: bytes, said: str):
    with served(little) as (port, _), socket.create_connection(("127.0.0.1", port)) as opened:
        opened.sendall(sent)
        status, kind, detail = problem_of(everything(opened))
    assert (status, kind) == (400, "/problems/invalid-parameter")
    assert detail.startswith(said)


def test_small_requests_one_after_the_other_in_one_piece_are_all_answered():
    with served(little) as (port, _), socket.create_connection(("127.0.0.1", port)) as opened:
        opened.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" * 3000 + b"GET / HTTP/1.0\r\n\r\n")
        assert everything(opened).count(b"HTTP/1.1 200") == 3001


def test_more_connections_than_there_is_room_for_are_told_so_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Patience, "most", 3)
    with served(little) as (port, connections):
        held = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
        until(lambda: len(connections) == 3)
        with socket.create_connection(("127.0.0.1", port)) as opened:
            answer = everything(opened)
        assert problem_of(answer)[:2] == (503, "/problems/overloaded")
        assert b"retry-after: 1" in answer
        for opened in held:
            opened.close()
        until(lambda: not connections)
        assert httpx.get(f"http://127.0.0.1:{port}/").text == "ok"


def test_more_requests_than_there_is_room_for_are_told_so_at_once(stand: Make):
    gateway = stand(Options(latency=1.0), request_concurrency=2)
    paths = [f"/clients/800555010{number}/calls?{WINDOW}" for number in range(2)]
    with httpx.Client(base_url=gateway.client.base_url, timeout=30) as other:
        waiting = [threading.Thread(target=other.get, args=(path,)) for path in paths]
        for thread in waiting:
            thread.start()
        until(lambda: gateway.metric("requests_in_flight") == 3)  # and this one
        refused = gateway.get("/clients/8005550102/calls")
        assert (refused.status_code, refused.json()["type"]) == (503, "/problems/overloaded")
        assert refused.headers["retry-after"] == "1"
        assert gateway.get("/healthz").status_code == 200
        for thread in waiting:
            thread.join()
    assert gateway.client.get(paths[0]).status_code == 200


def test_a_query_that_is_too_long_is_a_problem(stand: Make):
    answer = stand().client.get("/calls?client=a&start=" + "1" * 20_000)
    assert (answer.status_code, answer.json()["type"]) == (400, "/problems/invalid-parameter")
    assert "longer than 16384 bytes" in answer.json()["detail"]


def test_who_hangs_up_is_not_waited_for_and_what_is_not_sent_is_dropped(stand: Make):
    gateway = stand(Options(latency=2.0), upstream_concurrency=1)
    host, port = gateway.client.base_url.host, gateway.client.base_url.port
    assert port
    opened = []
    for number, series in enumerate(("upstream_posts_in_flight", "upstream_queue_length")):
        opened.append(socket.create_connection((host, port)))
        query = f"/clients/800555010{number}/calls?start=2026-11-0{number + 1}"
        opened[number].sendall(f"GET {query} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        until(lambda series=series: gateway.metric(series) == 1)  # type: ignore[misc]
    for one in opened:
        one.close()
    until(lambda: gateway.metric("requests_in_flight") == 1)  # this one: nobody waits for a flight
    assert 'status="499"' in gateway.client.get("/metrics").text
    until(lambda: gateway.metric('upstream_dropped_total{reason="unwanted"}') == 1)
    assert gateway.simulator.posts == 1


def test_slowhttptest_does_not_keep_others_out(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Patience, "whole", 1.0)
    program = tool("slowhttptest")
    with served(little) as (port, connections):
        words = [program, "-H", "-c", "300", "-r", "300", "-i", "1", "-l", "5", "-p", "3", "-x", "24"]
        done = subprocess.run(
            [*words, "-u", f"http://127.0.0.1:{port}/"], capture_output=True, text=True, timeout=60, check=False
        )
        until(lambda: not connections)
    shown = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)
    assert re.findall(r"service available:\s+(\w+)", shown)
    assert "NO" not in re.findall(r"service available:\s+(\w+)", shown)


@contextmanager
def process(upstream: str, drain: str, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `serve` on a free port; gives the process and its address."""
    variables = {
        "GATEWAY_UPSTREAM_URL": upstream,
        "GATEWAY_DRAIN_DELAY": drain,
        "GATEWAY_AUTH": "none",
        "GATEWAY_PORT": "0",
        "GATEWAY_SIGNING_KEY": "k" * 32,
        "GATEWAY_LOG_FORMAT": "json",
    }
    started = subprocess.Popen(
        [*COMMAND, "serve", *options], env=ENVIRONMENT | variables, stderr=subprocess.PIPE, text=True
    )
    with started:
        try:
            assert started.stderr is not None
            for line in started.stderr:
                if json.loads(line)["event"] == "serving":
                    break
            address = json.loads(line)["address"]
            drained = threading.Thread(target=started.stderr.read)
            drained.start()
            yield started, address
        finally:
            started.kill()
            drained.join()


@contextmanager
def simulated(latency: float) -> Iterator[str]:
    opened = listen("127.0.0.1", 0)
    server = make_server(create(Options(latency=latency)), lifespan="off")
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
    thread.start()
    try:
        yield f"{address_of(opened)}{PATH}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.parametrize(
    ("options", "everybody"),
    [((), False), (("--workers", "2"), False), (("--workers", "2"), True)],
    ids=["one process", "two workers", "two workers, a signal to each process"],
)
def test_sigterm_under_load_loses_no_request_and_ends_with_0(options: tuple[str, ...], everybody: bool):
    answers: list[int] = []

    async def load(address: str, serving: subprocess.Popen[str]) -> None:
        sending = True

        async def consumer(number: int) -> None:
            async with httpx.AsyncClient(base_url=address, timeout=30) as client:
                turn = 0
                while sending:
                    turn += 1
                    start = f"2026-0{1 + number}-{1 + turn % 27:02}"
                    code = f"800555010{turn % 5}"
                    answer = await client.get(f"/clients/{code}/calls?start={start}&end={start}T{turn % 23 + 1:02}:00")
                    answers.append(answer.status_code)

        async def balancer() -> None:
            nonlocal sending
            async with httpx.AsyncClient(base_url=address, timeout=30) as client:
                while (await client.get("/readyz")).status_code == 200:  # noqa: ASYNC110 - as a balancer does
                    await asyncio.sleep(0.05)
            sending = False

        async def killer() -> None:
            while len(answers) < 50:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            for pid in children(serving.pid) if everybody else ():
                os.kill(pid, signal.SIGTERM)
            serving.send_signal(signal.SIGTERM)

        await asyncio.gather(balancer(), killer(), *map(consumer, range(8)))

    with simulated(0.1) as upstream, process(upstream, "2s", *options) as (serving, address):
        asyncio.run(load(address, serving))
        assert serving.wait(30) == 0
    assert len(answers) > 50
    assert set(answers) == {200}


def test_a_request_under_way_is_answered_after_sigterm_without_any_delay():
    with simulated(1.0) as upstream, process(upstream, drain="0s") as (serving, address):
        answer: list[httpx.Response] = []
        asked = threading.Thread(
            target=lambda: answer.append(httpx.get(f"{address}/calls?client=*&{WINDOW}", timeout=30))
        )
        asked.start()
        until(lambda: "callbutton_gateway_upstream_posts_in_flight 1.0" in httpx.get(f"{address}/metrics").text)
        serving.send_signal(signal.SIGTERM)
        asked.join()
        assert answer[0].status_code == 200
        assert serving.wait(30) == 0


async def by_path(scope: dict[str, Any], __: object, send: Send) -> None:
    """Answer with the status that the path says; with a header that none may have if it says so."""
    status, _, bad = scope["path"][1:].partition("/")
    headers = [(b"x-more", b"a\r\nx-smuggled: b" if bad else b"a")]
    body = b"" if status == "304" else b"ok"
    await send({"type": "http.response.start", "status": int(status), "headers": [*headers, *length(body)]})
    await send({"type": "http.response.body", "body": body})


def length(body: bytes) -> list[tuple[bytes, bytes]]:
    return [(b"content-length", b"%d" % len(body))] if body else []


@pytest.mark.parametrize(
    ("asked", "head", "body"),
    [
        ("GET /200", b"HTTP/1.1 200 OK\r\n", b"ok"),
        ("HEAD /200", b"HTTP/1.1 200 OK\r\n", b""),
        ("GET /404", b"HTTP/1.1 404 Not Found\r\n", b"ok"),
        ("GET /304", b"HTTP/1.1 304 Not Modified\r\n", b""),
        ("GET /200/bad", b"HTTP/1.1 500 Internal Server Error\r\n", b"Internal Server Error"),
    ],
)
def test_an_answer_in_one_piece_is_as_its_parts_would_be(asked: str, head: bytes, body: bytes):
    with served(by_path) as (port, _), socket.create_connection(("127.0.0.1", port)) as opened:
        opened.sendall(f"{asked} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
        opened.sendall(b"GET /200 HTTP/1.0\r\n\r\n")  # which ends the connection
        answers = everything(opened)
    first, _, rest = answers.partition(b"\r\n\r\n")
    assert first.startswith(head)
    assert (b"x-more: a" in first) != (b" 500 " in first)
    assert b"x-smuggled" not in answers
    assert (b"content-length: %d" % len(body or b"ok") in first) == (b" 304 " not in first)
    assert rest.removeprefix(body).startswith(b"HTTP/1.1 200 OK\r\n") or b"connection: close" in first
