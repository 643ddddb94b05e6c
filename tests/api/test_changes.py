"""End-to-end tests of the change feed, with a simulator as upstream and real sockets on both sides."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.consumers import Member, keys_file
from tests.support.feed import FEED, START, Copy, events, listed
from tests.support.processes import wait_for
from tests.support.stand import Make

Json = dict[str, Any]


@pytest.mark.parametrize("limit", [7, 1000])
def test_a_copy_equals_the_list(stand: Make, limit: int):
    gateway, copy = stand(), Copy()
    body = copy.follow(gateway, limit=limit)
    assert copy.calls == listed(gateway) != {}
    assert body["meta"]["start"] == "2026-11-16T00:00:00Z"
    assert len(body["page"]["next"]) <= 1536


def test_a_poll_that_brings_nothing_is_small_and_costs_no_post(stand: Make):
    gateway, copy = stand(), Copy()
    copy.follow(gateway)
    posts = gateway.simulator.posts
    response = gateway.get(FEED, since=copy.token)
    assert response.json()["data"] == []
    assert len(response.content) <= 2560
    assert gateway.simulator.posts == posts
    assert response.headers["cache-control"] == "private, no-store"


def test_new_calls_reach_the_copy(stand: Make):
    gateway, copy = stand(), Copy()
    copy.follow(gateway)
    before = dict(copy.calls)
    for _ in range(20):
        gateway.pass_time(600)
        copy.follow(gateway)
    assert copy.calls == listed(gateway)
    assert copy.calls.keys() > before.keys()


def test_one_new_call_is_an_upsert(stand: Make):
    gateway, copy = stand(), Copy()
    copy.follow(gateway)
    for _ in range(60):
        gateway.pass_time(60)
        body = gateway.get(FEED, since=copy.token).json()
        copy.apply(body["data"])
        copy.token = body["page"]["next"]
        if body["data"]:
            break
    assert {item["op"] for item in body["data"]} == {"upsert"}


def test_every_client_and_several(stand: Make):
    gateway = stand()
    for clients in (["*"], ["8005550100", "8005550101"]):
        copy = Copy()
        copy.follow(gateway, "/changes", client=clients)
        assert copy.calls == listed(gateway, "/calls", client=clients)
        assert len({key[0] for key in copy.calls}) > 1


def test_status_is_in_the_copy_if_it_was_asked_for(stand: Make):
    gateway, copy = stand(), Copy()
    copy.follow(gateway, include="status")
    assert copy.calls == listed(gateway, include="status")
    assert any(call["status"] for call in copy.calls.values())


def test_ndjson_has_an_item_a_line_and_ends_with_the_page(stand: Make):
    gateway = stand()
    response = gateway.get(FEED, start=START, format="ndjson", limit=10_000)
    assert response.headers["content-type"] == "application/x-ndjson"
    *items, last = [json.loads(line) for line in response.text.splitlines()]
    assert set(last) == {"page", "meta"}
    copy = Copy()
    copy.apply(items)
    assert len(copy.calls) == last["page"]["calls"]


@pytest.mark.parametrize(
    ("parameters", "parameter"),
    [
        ({"since": "nonsense"}, "since"),
        ({"limit": 0}, "limit"),
        ({"limit": 10_001}, "limit"),
        ({"wait": 61}, "wait"),
        ({"start": "2020-01-01"}, "start"),
        ({"start": "soon"}, "start"),
        ({"format": "csv"}, "format"),
        ({"cursor": "x"}, "cursor"),
    ],
)
def test_invalid_parameters_are_named(stand: Make, parameters: Json, parameter: str):
    response = stand().get(FEED, **parameters)
    assert response.status_code == 400
    assert [fault["parameter"] for fault in response.json()["errors"]] == [parameter]


def test_a_token_belongs_to_its_feed(stand: Make):
    gateway, copy = stand(), Copy()
    copy.follow(gateway)
    for path, others in (
        ("/clients/8005550101/changes", {}),
        (FEED, {"include": "status"}),
        (FEED, {"start": START}),
        ("/changes", {"client": "*"}),
    ):
        response = gateway.get(path, since=copy.token, **others)
        assert response.status_code == 400
        assert "since" in response.text


def test_a_failed_reading_is_a_problem_and_the_token_stays_good(stand: Make):
    gateway, copy = stand(), Copy()
    copy.follow(gateway)
    gateway.simulator.misbehave("error")
    gateway.pass_time(3600)
    response = gateway.get(FEED, since=copy.token)
    assert response.status_code in (502, 503)
    gateway.simulator.misbehave()
    gateway.pass_time(60)
    copy.follow(gateway)
    assert copy.calls == listed(gateway)


def test_consumers_see_their_own_view(stand: Make, tmp_path: Path):
    masked, other = Member("masked", scopes=("calls",)), Member("other")
    gateway = stand(auth="keys", keys_file=keys_file(tmp_path, masked, other))
    gateway.client.headers["X-API-Key"] = masked.key
    copy = Copy()
    copy.follow(gateway)
    assert copy.calls == listed(gateway)
    assert all(call["address"] is None for call in copy.calls.values())
    gateway.client.headers["X-API-Key"] = other.key
    assert gateway.get(FEED, since=copy.token).status_code == 400


def test_a_long_poll_returns_when_a_call_appears(stand: Make):
    gateway, copy = stand(fresh_min=1), Copy()
    copy.follow(gateway)
    answers: list[httpx.Response] = []
    waiting = threading.Thread(
        target=lambda: answers.append(gateway.client.get(FEED, params={"since": copy.token, "wait": 60}, timeout=90))
    )
    waiting.start()
    wait_for(lambda: gateway.metric("requests_in_flight") >= 2, "the poll waits")
    gateway.clock.now += 7200
    waiting.join(60)
    assert answers[0].json()["data"] != []
    copy.apply(answers[0].json()["data"])
    copy.token = answers[0].json()["page"]["next"]
    copy.follow(gateway)
    assert copy.calls == listed(gateway)


def test_a_stream_goes_on_from_its_last_event(stand: Make):
    gateway, copy, last = stand(fresh_min=1), Copy(), ""
    for _ in range(3):
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
        parameters = {} if last else {"start": START}
        with gateway.client.stream("GET", FEED, params=parameters, headers=headers, timeout=60) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            assert response.headers["x-accel-buffering"] == "no"
            for identity, name, data in events(response):
                last = identity or last
                if name in ("remove", "replace", "upsert"):
                    copy.apply([json.loads(data)])
                if name == "up-to-date":
                    assert json.loads(data)["page"]["calls"] == len(copy.calls)
                    break
        gateway.pass_time(3600)
    gateway.clock.now -= 3600
    assert copy.calls == listed(gateway)


def test_a_stream_brings_new_calls(stand: Make):
    gateway, copy = stand(fresh_min=1), Copy()
    copy.follow(gateway)
    headers = {"Accept": "text/event-stream"}
    with gateway.client.stream("GET", FEED, params={"since": copy.token}, headers=headers, timeout=60) as response:
        stream = events(response)
        assert next(stream)[1] == "up-to-date"
        gateway.clock.now += 7200
        for _, name, data in stream:
            if name == "up-to-date":
                break
            copy.apply([json.loads(data)])
    assert copy.calls == listed(gateway)


def test_metrics_tell_who_waits_what_was_told_and_how_far_behind_it_is(stand: Make):
    gateway, copy = stand(fresh_min=1), Copy()
    body = copy.follow(gateway, limit=10_000)
    assert body["page"]["upToDate"]
    assert gateway.metric('feed_changes_total{kind="replace"}') > 0
    assert gateway.metric("feed_seconds_behind") == gateway.metric("feed_streams") == 0
    headers = {"Accept": "text/event-stream"}
    with gateway.client.stream("GET", FEED, params={"since": copy.token}, headers=headers, timeout=60) as response:
        stream = events(response)  # it closes the response when it is dropped
        assert next(stream)[1] == "up-to-date"
        wait_for(lambda: gateway.metric('feed_refreshes_total{outcome="ok"}') > 0, "a refresh")
        assert gateway.metric("feed_streams") == 1
        gateway.simulator.misbehave("error")
        gateway.clock.now += 600
        wait_for(lambda: gateway.metric('feed_refreshes_total{outcome="failed"}') > 0, "a refresh that fails")
        assert gateway.metric("feed_seconds_behind") >= 600
        gateway.simulator.misbehave()
        gateway.clock.now += 600  # the circuit breaker lets POSTs through again
        wait_for(lambda: gateway.metric("feed_seconds_behind") < 60, "a refresh that succeeds")
    wait_for(lambda: gateway.metric("feed_streams") == 0, "the stream has ended")
    assert gateway.metric("feed_seconds_behind") == 0
