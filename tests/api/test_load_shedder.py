"""Slow clients, overload, disconnecting clients, and shutdown under load, over real sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import httpx

from gateway.simulator.server import Options
from tests.support.processes import wait_for
from tests.support.stand import Make

WINDOW = "start=2026-11-01T05:00:00Z&end=2026-11-01T06:00:00Z"
Send = Callable[[dict[str, Any]], Awaitable[None]]


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
