"""Shutdown of `serve` as a process: every signal, with requests, streams and load in progress."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime

import httpx
import pytest

from tests.process.served import ANSWERED, CODE, EXPORT, LATER, PAGE, REAL, Serve, Served, answer, everything, request
from tests.support.processes import wait_for, wait_in_loop_for

SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
SLOW = f"/clients/{CODE}/calls?start=2026-09-01&end=2026-09-01T01:00"


def test_a_signal_ends_the_process_with_0_and_without_a_line(serve: Serve):
    for number in SIGNALS:
        gateway = serve()
        assert gateway.ask(request(close=True)).startswith(ANSWERED)
        gateway.stop(number)
        assert gateway.process.returncode == 0, number
        assert "rror" not in gateway.log()


OPEN = {
    "nothing sent": b"",
    "half a head": b"GET /healthz HTTP/1.1\r\nHost: a\r\n",
    "line ends": b"\r\n\r\n",
    "half a body": request("/healthz", "Content-Length: 100") + b"abc",
    "idle": request(),
}


def test_connections_without_a_request_do_not_hold_up_the_end(serve: Serve):
    gateway = serve()
    with ExitStack() as stack:
        for sent in OPEN.values():
            stack.enter_context(gateway.connect()).sendall(sent)
        wait_for(lambda: gateway.connections() == len(OPEN), "all are connected")
        assert gateway.stop(signal.SIGTERM) < 5
    assert gateway.process.returncode == 0


@contextmanager
def asked(gateway: Served, path: str = SLOW) -> Iterator[list[bytes]]:
    """Send a request in a thread. Yields a list that receives the answer."""
    received: list[bytes] = []
    thread = threading.Thread(target=lambda: received.append(gateway.ask(request(path, close=True))))
    thread.start()
    wait_for(lambda: gateway.connections() == 1, "connected")
    metrics = httpx.get(f"{gateway.address}/metrics", timeout=60)
    wait_for(lambda: "_upstream_posts_in_flight 1.0" in metrics_of(gateway), f"a POST is in flight: {metrics.text}")
    yield received
    thread.join(LATER)


def metrics_of(gateway: Served) -> str:
    return httpx.get(f"{gateway.address}/metrics", timeout=60).text


@pytest.mark.parametrize("number", SIGNALS, ids=[number.name for number in SIGNALS])
def test_a_request_in_progress_is_answered_after_a_signal(serve: Serve, slow_upstream: str, number: signal.Signals):
    gateway = serve(slow_upstream)
    with asked(gateway) as received:
        gateway.stop(number)
    assert received[0].startswith(ANSWERED)
    assert gateway.process.returncode == 0


def test_while_it_drains_readiness_fails_and_answers_close_their_connection(serve: Serve):
    gateway = serve(drain_delay="60s", bounds=REAL)
    with httpx.Client(base_url=gateway.address, timeout=60) as client, gateway.connect() as open_before:
        assert client.get("/readyz").status_code == 200
        gateway.process.send_signal(signal.SIGTERM)
        wait_for(lambda: client.get("/readyz").status_code == 503, "readiness fails")
        page = client.get(PAGE)
        assert (page.status_code, page.headers["connection"]) == (200, "close")
        open_before.sendall(request())
        assert b"\r\nconnection: close\r\n" in answer(open_before)
        assert open_before.recv(1) == b""
        assert client.get("/healthz").status_code == 200  # connections are still accepted
        assert gateway.process.poll() is None
        gateway.stop(signal.SIGTERM)  # a second signal does not wait
    assert gateway.process.returncode == 0


def test_sigint_does_not_wait_for_the_drain_delay(serve: Serve):
    gateway = serve(drain_delay="600s")
    gateway.stop(signal.SIGINT)
    assert gateway.process.returncode == 0


@pytest.mark.parametrize("number", SIGNALS, ids=[number.name for number in SIGNALS])
def test_a_second_signal_ends_at_once_what_is_in_progress(serve: Serve, number: signal.Signals):
    gateway = serve(drain_delay="600s")
    with gateway.connect(buffer=4096) as client:
        client.sendall(request(EXPORT))
        assert client.recv(100).startswith(ANSWERED)
        gateway.process.send_signal(signal.SIGTERM)
        wait_for(lambda: httpx.get(f"{gateway.address}/readyz", timeout=60).status_code == 503, "readiness fails")
        assert gateway.process.poll() is None
        gateway.stop(number)
    assert gateway.process.returncode == 0
    assert "Traceback" not in gateway.log()
    assert hooks_ran(gateway)


def hooks_ran(gateway: Served) -> bool:
    """The last shutdown hook flushes the access log, so every request must have a line."""
    return len(gateway.events("request")) > 0


def test_a_second_signal_does_not_wait_for_the_upstream(serve: Serve, silent_upstream: str):
    gateway = serve(silent_upstream)
    with asked(gateway):
        gateway.process.send_signal(signal.SIGTERM)
        wait_for(lambda: not accepts(gateway), "nothing new is accepted")
        assert gateway.stop(signal.SIGTERM) < LATER
    assert gateway.process.returncode == 0
    assert [event["status"] for event in gateway.events("request") if event["route"] != "/metrics"] == [499]


def accepts(gateway: Served) -> bool:
    try:
        gateway.connect().close()
    except OSError:
        return False
    return True


def test_streams_and_unread_answers_end_within_the_limit_and_hooks_run(serve: Serve):
    gateway = serve(consumer_exports="1000", request_concurrency="1000")
    with ExitStack() as stack:
        clients = [stack.enter_context(gateway.connect(buffer=4096)) for _ in range(110)]
        for client in clients[:100]:
            client.sendall(request(EXPORT))
        for client in clients[100:]:
            client.sendall(request(PAGE) * 20)
        for client in clients:
            assert client.recv(10) == ANSWERED[:10]
        reading = threading.Event()
        readers = [threading.Thread(target=read_slowly, args=(client, reading)) for client in clients[:100]]
        for reader in readers:
            reader.start()
        took = gateway.stop(signal.SIGTERM)
        reading.set()
        for reader in readers:
            reader.join()
    assert gateway.process.returncode == 0
    assert took < gateway.bounds.shutdown + LATER
    assert "Traceback" not in gateway.log()
    routes = [event["route"] for event in gateway.events("request")]
    assert len(routes) >= 110


def test_streams_of_changes_and_waiting_polls_end_cleanly_and_hooks_run(serve: Serve):
    gateway = serve(fresh_min="1h")
    feed = f"/clients/{CODE}/changes"
    page = httpx.get(f"{gateway.address}{feed}?limit=10000&start={datetime.now(UTC).date()}", timeout=60).json()["page"]
    assert page["upToDate"]
    token = page["next"]
    with ExitStack() as stack:
        streams = [stack.enter_context(gateway.connect()) for _ in range(100)]
        polls = [stack.enter_context(gateway.connect()) for _ in range(20)]
        for client in streams:
            client.sendall(request(f"{feed}?since={token}", "Accept: text/event-stream"))
        for client in polls:
            client.sendall(request(f"{feed}?since={token}&limit=10000&wait=60"))
        begun = [client.recv(65536) for client in streams]
        assert all(part.startswith(ANSWERED) for part in begun)
        wait_for(lambda: "_requests_in_flight 121.0" in metrics_of(gateway), "all of them wait")
        took = gateway.stop(signal.SIGTERM)
        assert all(everything(client).endswith(b"0\r\n\r\n") for client in streams)
        assert all(everything(client).startswith(ANSWERED) for client in polls)
    assert gateway.process.returncode == 0
    assert took < gateway.bounds.shutdown + LATER
    assert "Traceback" not in gateway.log()
    routes = [event["route"] for event in gateway.events("request")]
    assert routes.count("/clients/{code}/changes") == 121


def read_slowly(client: socket.socket, ended: threading.Event) -> None:
    """Read a little ten times a second, so that the connection stays alive and the answer does not end."""
    try:
        while not ended.wait(0.1) and client.recv(4096):
            pass
    except OSError:
        return


def test_sigterm_under_load_loses_no_request(serve: Serve):
    gateway = serve(drain_delay="2s", bounds=REAL)
    answers: list[int] = []

    async def load() -> None:
        sending = True

        async def consumer(number: int) -> None:
            async with httpx.AsyncClient(base_url=gateway.address, timeout=30) as client:
                turn = 0
                while sending:
                    turn += 1
                    start = f"2026-0{1 + number}-{1 + turn % 27:02}"
                    code = f"800555010{turn % 5}"
                    found = await client.get(f"/clients/{code}/calls?start={start}&end={start}T{turn % 23 + 1:02}:00")
                    answers.append(found.status_code)

        async def balancer() -> None:
            nonlocal sending
            async with httpx.AsyncClient(base_url=gateway.address, timeout=30) as client:
                while (await client.get("/readyz")).status_code == 200:  # noqa: ASYNC110 - as a balancer does
                    await asyncio.sleep(0.05)
            sending = False

        async def killer() -> None:
            await wait_in_loop_for(lambda: len(answers) >= 50, "fifty answers")
            gateway.process.send_signal(signal.SIGTERM)

        await asyncio.gather(balancer(), killer(), *map(consumer, range(8)))

    asyncio.run(load())
    gateway.process.wait(gateway.bounds.shutdown + LATER)
    assert gateway.process.returncode == 0
    assert len(answers) > 50
    assert set(answers) == {200}


def test_keep_alive_clients_that_go_on_asking_lose_no_request(serve: Serve):
    gateway = serve(drain_delay="1s", bounds=REAL)
    ended = threading.Event()
    lost: list[Exception] = []

    def ask() -> None:
        """Send requests over keep-alive connections until connecting fails."""
        while not ended.is_set():
            try:
                client = gateway.connect()
            except OSError:
                return
            with client:
                number, kept = 0, True
                while kept:
                    try:
                        client.sendall(request())
                        kept = b"\r\nconnection: close\r\n" not in answer(client)
                    except (OSError, AssertionError) as error:
                        if number:  # otherwise it was opened while the listener closed
                            lost.append(error)
                        return
                    number += 1

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(gateway.events("request")) > 100, "there is load")
    gateway.process.send_signal(signal.SIGTERM)
    gateway.process.wait(gateway.bounds.shutdown + LATER)
    ended.set()
    for thread in threads:
        thread.join()
    assert gateway.process.returncode == 0
    assert lost == []
