"""Slow clients, overload, disconnecting clients, and shutdown under load, over real sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.api.middleware.request_context import source_of
from gateway.simulator.server import Options
from tests.support.consumers import Member, keys_file
from tests.support.processes import wait_for
from tests.support.stand import Make, Stand

WINDOW = "start=2026-11-01T05:00:00Z&end=2026-11-01T06:00:00Z"
Send = Callable[[dict[str, Any]], Awaitable[None]]


CACHED = f"/clients/8005550109/calls?{WINDOW}"


def waiting_path(number: int) -> str:
    """A window that no other request asks for."""
    return f"/clients/8005550100/calls?start=2026-10-{number // 20 + 1:02}T{number % 20:02}:00&end=2026-10-30"


class Crowd:
    """Requests that wait for the upstream, each on its own connection, until the block ends."""

    def __init__(self, gateway: Stand, address: str = "127.0.0.1", headers: str = "") -> None:
        self._gateway, self._address, self._headers = gateway, address, headers
        self.sockets: list[socket.socket] = []

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self.sockets:
            one.close()

    def send(self, path: str) -> socket.socket:
        url = self._gateway.client.base_url
        one = socket.create_connection((url.host, url.port or 0), 30, source_address=(self._address, 0))
        one.sendall(f"GET {path} HTTP/1.1\r\nHost: a\r\n{self._headers}\r\n".encode())
        self.sockets.append(one)
        return one

    def wait_until_full(self) -> int:
        """Send requests until one is refused. Returns how many wait."""
        before = self._gateway.metric('refused_total{reason="requests"}')
        while self._gateway.metric('refused_total{reason="requests"}') == before:
            self.send(waiting_path(len(self.sockets)))
            wait_for(self._is_settled, "it waits or is refused")
        assert self.sockets[-1].recv(12) == b"HTTP/1.1 429"
        return len(self.sockets) - 1

    def _is_settled(self) -> bool:
        refused = self._gateway.metric('refused_total{reason="requests"}')
        return self._gateway.metric("requests_in_flight") - 1 + refused >= len(self.sockets)


@pytest.fixture
def crowded(stand: Make, tmp_path: Path) -> Stand:
    """A gateway with 20 places, in front of a server that does not answer, with one window in the cache."""
    many, few = Member("many", scopes=("calls", "recordings")), Member("few", scopes=("calls", "recordings"))
    gateway = stand(
        auth="keys", keys_file=keys_file(tmp_path, many, few), request_concurrency=20, upstream_concurrency=100
    )
    for member in (many, few):
        gateway.client.get(CACHED, headers=member.headers).raise_for_status()
    gateway.simulator.misbehave("hang@8005550100")
    return gateway


def test_one_consumer_that_waits_leaves_places_to_others_and_everybody_is_answered_from_the_cache(crowded: Stand):
    with Crowd(crowded, headers=f"X-API-Key: {Member('many').key}\r\n") as many:
        assert many.wait_until_full() == 11  # half of 20, and one
        for member in (Member("many"), Member("few")):
            for query in ("", "&limit=7", "&sort=startTime", "&result=busy"):
                for form in ("json", "ndjson", "csv"):
                    limit = "" if form != "json" else query
                    cached = crowded.client.get(f"{CACHED}{limit}&format={form}", headers=member.headers)
                    assert cached.status_code == 200, (member, query, form)
        other = crowded.client.get("/clients/8005550108/calls?start=2026-11-02", headers=Member("few").headers)
        assert other.status_code == 200
        refused = crowded.client.get(waiting_path(99), headers=Member("many").headers)
        assert (refused.status_code, refused.json()["type"]) == (429, "/problems/rate-limited")
        assert "requests in progress" in refused.json()["detail"]
        assert refused.headers["retry-after"] == "1"


def test_without_authentication_each_address_is_a_consumer(stand: Make):
    gateway = stand(request_concurrency=20, upstream_concurrency=100)
    gateway.client.get(CACHED).raise_for_status()
    gateway.simulator.misbehave("hang@8005550100")
    with Crowd(gateway, "127.0.0.2") as one, Crowd(gateway, "127.0.0.3") as other:
        assert one.wait_until_full() == 11
        assert other.wait_until_full() == 5  # half of the free places, and one
        assert gateway.client.get(CACHED).status_code == 200
        assert gateway.client.get("/clients/8005550108/calls?start=2026-11-02").status_code == 200


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:0:1:a::1", "2001:db8:0:1::"),
        ("2001:db8:0:1:b::2%eth0", "2001:db8:0:1::"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("/run/socket", "/run/socket"),
        ("", ""),
    ],
)
def test_the_network_of_a_client_is_an_address_or_64_bits(address: str, source: str):
    assert source_of(address) == source


def test_more_requests_than_there_is_room_for_are_told_so_at_once(stand: Make):
    gateway = stand(Options(latency=1.0), request_concurrency=2)
    paths = [f"/clients/800555010{number}/calls?{WINDOW}" for number in range(2)]
    with httpx.Client(base_url=gateway.client.base_url, timeout=30) as other:
        waiting = [threading.Thread(target=other.get, args=(path,)) for path in paths]
        for thread in waiting:
            thread.start()
        wait_for(lambda: gateway.metric("requests_in_flight") == 3, "both are in flight")  # and this one
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
        wait_for(lambda series=series: gateway.metric(series) == 1, "the request is there")  # type: ignore[misc]
    for one in opened:
        one.close()
    wait_for(lambda: gateway.metric("requests_in_flight") == 1, "both are gone")  # only this metrics request remains
    assert 'status="499"' in gateway.client.get("/metrics").text
    wait_for(lambda: gateway.metric('upstream_dropped_total{reason="unwanted"}') == 1, "the unwanted fetch is dropped")
    assert gateway.simulator.posts == 1
