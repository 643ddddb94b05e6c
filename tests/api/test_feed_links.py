"""Links to the change feed: addresses for `EventSource`, which cannot send headers."""

from __future__ import annotations

import json
import logging
import subprocess
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from subprocess import PIPE
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from gateway.api.changes import LINK_TYPE
from gateway.logs import JsonFormatter
from tests.support.consumers import Member, keys_file, written
from tests.support.feed import CODE, FEED, START, Copy, events, listed
from tests.support.issuer import issuing
from tests.support.paths import NODE
from tests.support.processes import wait_for
from tests.support.stand import NOW, Make, Stand, serving
from tests.support.tools import need, tool

OTHER = "8005550101"
READER = Member("reader", clients=(CODE, OTHER), scopes=("calls", "status"))
STRANGER = Member("stranger", scopes=("calls", "status"))
EVENTS = {"Accept": "text/event-stream"}


@pytest.fixture
def gateway(stand: Make, tmp_path: Path) -> Stand:
    return stand(auth="keys", keys_file=keys_file(tmp_path, READER, STRANGER))


def link(gateway: Stand, path: str = FEED, headers: dict[str, str] = READER.headers, **parameters: Any) -> str:
    """An address of a feed that needs no header."""
    response = gateway.client.get(path, params={"link": "true"} | parameters, headers=headers)
    assert response.status_code == 200, response.text
    url: str = response.json()["url"]
    return url


def first_events(gateway: Stand, url: str, last: str = "") -> tuple[str, list[dict[str, Any]]]:
    """Follow a stream until it is up to date. Returns its last id and its items."""
    items: list[dict[str, Any]] = []
    identity = ""
    with gateway.client.stream("GET", url, headers=EVENTS | ({"Last-Event-ID": last} if last else {})) as response:
        assert response.status_code == 200, response.read()
        for found, name, data in events(response):
            identity = found or identity
            if name == "up-to-date":
                return identity, items
            if name:
                items.append(json.loads(data))
    raise AssertionError("the stream ended")


def status(gateway: Stand, url: str, **headers: str) -> int:
    with gateway.client.stream("GET", url, headers=EVENTS | headers) as response:
        return response.status_code


def test_a_link_says_until_when_it_can_be_used(gateway: Stand):
    response = gateway.client.get(FEED, params={"link": "true"}, headers=READER.headers | EVENTS)
    assert response.headers["content-type"] == LINK_TYPE
    assert response.headers["cache-control"] == "private, no-store"
    body = response.json()
    assert body.keys() == {"url", "expiresAt"}
    assert datetime.fromisoformat(body["expiresAt"]) == datetime.fromtimestamp(NOW + 60, UTC)
    assert urlsplit(body["url"]).path == FEED
    head = gateway.client.head(FEED, params={"link": "true"}, headers=READER.headers)
    assert (head.status_code, head.content) == (200, b"")


def test_a_link_brings_the_feed_without_a_header(gateway: Stand):
    copy = Copy()
    _, items = first_events(gateway, link(gateway, start=START))
    copy.apply(items)
    gateway.client.headers["X-API-Key"] = READER.key
    assert copy.calls == listed(gateway) != {}


@pytest.mark.parametrize("parameters", [{"client": [CODE, OTHER], "include": "status"}, {"client": "*"}])
def test_a_link_of_several_clients_keeps_its_query(gateway: Stand, parameters: dict[str, Any]):
    url, copy = link(gateway, "/changes", start=START, limit=7, **parameters), Copy()
    copy.apply(first_events(gateway, url)[1])
    gateway.client.headers["X-API-Key"] = READER.key
    assert copy.calls == listed(gateway, "/calls", **parameters) != {}


def test_a_link_is_good_for_a_minute_and_then_with_a_token_of_its_feed(gateway: Stand):
    url = link(gateway)
    last, _ = first_events(gateway, url)
    gateway.clock.now += 59
    assert status(gateway, url) == 200
    gateway.clock.now += 1
    assert status(gateway, url) == 403
    for days in (0, 1, 10):
        gateway.clock.now += days * 86400
        last, _ = first_events(gateway, url, last)
        assert gateway.client.get(f"{url}&since={last}").status_code == 200
    theirs, _ = first_events(gateway, link(gateway, headers=STRANGER.headers))
    status_too, _ = first_events(gateway, link(gateway, include="status"))
    for wrong in (theirs, status_too, "nonsense", last[:-1]):
        assert status(gateway, url, **{"Last-Event-ID": wrong}) == 400
    assert status(gateway, url) == 403


def test_a_clock_that_is_set_back_does_not_make_a_link_last(gateway: Stand):
    url = link(gateway)
    gateway.clock.now -= 3600
    assert status(gateway, url) == 403


def test_a_link_begins_at_a_token_and_does_not_contain_it(gateway: Stand):
    gateway.client.headers["X-API-Key"] = READER.key
    copy = Copy()
    copy.follow(gateway)
    url = link(gateway, since=copy.token)
    del gateway.client.headers["X-API-Key"]
    assert "since" not in dict(parse_qsl(urlsplit(url).query))
    last, items = first_events(gateway, url)
    assert items == []
    gateway.clock.now += 60
    assert status(gateway, url) == 403
    assert status(gateway, url, **{"Last-Event-ID": last}) == 200


def test_a_link_opens_its_feed_alone(gateway: Stand):
    access = dict(parse_qsl(urlsplit(link(gateway)).query))["access"]
    both = dict(parse_qsl(urlsplit(link(gateway, "/changes", client=CODE)).query))["access"]

    def answer(path: str, **parameters: str) -> int:
        return gateway.get(path, access=parameters.pop("access", access), **parameters).status_code

    assert (answer(FEED), answer("/changes", client=CODE, access=both)) == (200, 200)
    assert answer(FEED, include="status") == 403
    assert answer(f"/clients/{OTHER}/changes") == 403
    assert answer("/changes", client=CODE) == 403
    assert answer(FEED, access=both) == 403
    assert answer("/changes", client=OTHER, access=both) == 403
    assert answer(FEED, link="true") == 400
    for path in (f"/clients/{CODE}/calls", "/clients", f"/clients/{CODE}/changes/", f"/clients/{CODE}//changes", "/x"):
        assert answer(path) in (401, 404), path


def test_a_forged_link_and_other_signed_values_are_refused(gateway: Stand):
    access = dict(parse_qsl(urlsplit(link(gateway)).query))["access"]
    token, _ = first_events(gateway, link(gateway))
    changed = access[:-1] + ("A" if access[-1] != "A" else "B")
    for bad in (changed, access[:30], "x", token, "é"):
        refused = gateway.get(FEED, access=bad)
        assert (refused.status_code, "`link=true`" in refused.json()["hint"]) == (403, True)
    for empty in ({}, {"access": ""}):
        assert gateway.get(FEED, **empty).status_code == 401
    assert gateway.get(FEED, access=[access, access]).status_code == 400
    assert gateway.client.get(f"{FEED}?xaccess={access}").status_code == 401
    both = gateway.client.get(FEED, params={"access": access}, headers=READER.headers)
    assert (both.status_code, both.json()["detail"]) == (401, "The request has more than one credential.")


def test_a_link_has_the_present_rights_of_its_consumer(stand: Make, tmp_path: Path):
    path = Path(keys_file(tmp_path, READER))
    gateway = stand(auth="keys", keys_file=str(path), fresh_min=1)
    url = link(gateway)
    last, _ = first_events(gateway, url)

    def become(*members: Member, expected: int) -> None:
        path.write_text(written(*members) if members else written(STRANGER), "utf-8")
        wait_for(lambda: status(gateway, url) == expected, "the keys file is read again")

    for refused in ([READER._replace(clients=(OTHER,))], [READER._replace(scopes=())], []):
        become(*refused, expected=403)
        assert status(gateway, url, **{"Last-Event-ID": last}) == 403
        become(READER, expected=200)  # and the link and its token are good again
        assert status(gateway, url, **{"Last-Event-ID": last}) == 200
    path.write_text(written(READER).replace("keys = [", "keys = [] #"), "utf-8")  # the consumer stays, its key goes
    wait_for(lambda: status(gateway, url) == 403, "the keys file is read again")
    become(READER._replace(expires="2026-11-18"), expected=200)
    gateway.clock.now += 86400
    assert status(gateway, url, **{"Last-Event-ID": last}) == 403


def test_a_stream_of_a_link_ends_with_the_rights(stand: Make, tmp_path: Path):
    path = Path(keys_file(tmp_path, READER))
    gateway = stand(auth="keys", keys_file=str(path), fresh_min=1)
    with gateway.client.stream("GET", link(gateway), headers=EVENTS, timeout=60) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("retry")
        path.write_text(written(STRANGER), "utf-8")
        for _ in lines:  # ends with the stream
            gateway.clock.now += 60


def test_a_link_counts_against_the_rate_and_the_streams_of_its_consumer(stand: Make, tmp_path: Path):
    limited = READER._replace(rate="5/hour")
    gateway = stand(auth="keys", keys_file=keys_file(tmp_path, limited, STRANGER))
    url = link(gateway)
    for left in (3, 2, 1, 0):
        response = gateway.client.get(url)
        assert response.headers["ratelimit"].split(";")[1] == f"r={left}"
    assert gateway.client.get(url).status_code == 429
    assert gateway.client.get(FEED, headers=limited.headers).status_code == 429
    assert gateway.client.get(FEED, headers=STRANGER.headers).status_code == 200
    gateway.clock.now += 3600
    assert gateway.client.get(url).status_code == 403
    assert gateway.client.get(FEED, headers=limited.headers).headers["ratelimit"].split(";")[1] == "r=4"  # cost nothing


def test_streams_of_links_and_of_keys_are_those_of_one_consumer(
    stand: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("gateway.app.CONSUMER_STREAMS", 4)
    gateway = stand(auth="keys", keys_file=keys_file(tmp_path, READER, STRANGER))
    url = link(gateway)
    with ExitStack() as stack:
        for address, headers in [(url, {}), (FEED, READER.headers)] * 2:
            stream = stack.enter_context(gateway.client.stream("GET", address, headers=EVENTS | headers))
            assert stream.status_code == 200
        assert status(gateway, url) == 429
        assert status(gateway, FEED, **STRANGER.headers) == 200


def test_a_page_of_a_configured_origin_may_follow_a_link(stand: Make, tmp_path: Path):
    page = "https://app.example"
    gateway = stand(auth="keys", keys_file=keys_file(tmp_path, READER), cors_origins=frozenset({page}))
    url = link(gateway)
    for headers, expected in (({}, 200), ({"Last-Event-ID": "nonsense"}, 400)):
        with gateway.client.stream("GET", url, headers=EVENTS | {"Origin": page} | headers) as response:
            assert (response.status_code, response.headers["access-control-allow-origin"]) == (expected, page)
    asked = {"Origin": page, "Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "last-event-id"}
    preflight = gateway.client.options(url, headers=asked)
    assert "last-event-id" in preflight.headers["access-control-allow-headers"].lower()


def test_links_are_not_logged(gateway: Stand, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    url = link(gateway)
    access = dict(parse_qsl(urlsplit(url).query))["access"]
    assert [gateway.client.get(one).status_code for one in (url, f"{url}x", f"{url}&limit=x")] == [200, 403, 400]
    gateway.clock.now += 60
    refused = gateway.client.get(url)
    assert refused.status_code == 403
    assert access[:20] not in refused.text
    lines = [JsonFormatter().format(record) for record in caplog.records if record.name.startswith("gateway")]
    assert any("/clients/{code}/changes" in line for line in lines)
    assert not [line for line in lines if access[:20] in line or "access=" in line]


def test_the_prefix_of_links_is_that_of_recordings(stand: Make):
    gateway = stand(public_url="/callbutton")
    url = link(gateway, headers={})
    assert url.startswith(f"/callbutton{FEED}?")
    assert gateway.client.get(url.removeprefix("/callbutton")).status_code == 200  # without authentication too
    assert gateway.client.get(url.removeprefix("/callbutton") + "x").status_code == 403


def test_a_link_of_a_bearer_token_has_its_rights_and_ends_with_it(stand: Make):
    with issuing() as issuer:
        gateway = stand(auth="oidc", oidc_issuer=issuer.address, oidc_audience="callbutton", fresh_min=1)
        token = {"Authorization": f"Bearer {issuer.token(NOW)}"}
        url = link(gateway, headers=token)
        last, items = first_events(gateway, url)
        assert items
        assert gateway.client.get("/changes", params={"client": OTHER}, headers=token).status_code == 403
        every = link(gateway, "/changes", headers=token, client="*")
        assert {call["clientCode"] for item in first_events(gateway, every)[1] for call in item["calls"]} == {CODE}
        gateway.clock.now += 120
        assert status(gateway, url, **{"Last-Event-ID": last}) == 200
        with gateway.client.stream("GET", url, headers=EVENTS | {"Last-Event-ID": last}, timeout=60) as response:
            for line in response.iter_lines():  # ends with the stream
                gateway.clock.now += 300 if line.startswith("event: up-to-date") else 0
        assert status(gateway, url, **{"Last-Event-ID": last}) == 403


async def blank_page(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """An ASGI application with an empty page."""
    if scope["type"] == "lifespan":
        while (message := await receive())["type"] != "lifespan.shutdown":
            await send({"type": message["type"] + ".complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/html")]})
    await send({"type": "http.response.body", "body": b"<!doctype html><title>A page</title>"})


def test_an_event_source_of_another_origin_reconnects_for_longer_than_its_link(stand: Make, tmp_path: Path):
    need((NODE / "node_modules" / "playwright-core").exists(), "npm ci in tests/node")
    path = Path(keys_file(tmp_path, READER))
    with serving(blank_page) as port, ExitStack() as stack:
        page = f"http://127.0.0.1:{port}"
        gateway = stand(auth="keys", keys_file=str(path), cors_origins=frozenset({page}), fresh_min=1)
        address = str(gateway.client.base_url).rstrip("/")
        command = [tool("node"), str(NODE / "eventsource.mjs"), tool("chromium"), page, address, FEED, READER.key]
        browser = stack.enter_context(subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True))
        stack.callback(browser.communicate)  # closes its input, at which it ends
        lines = (json.loads(line) for line in browser.stdout or ())
        first = next(lines)
        assert first["opened"] == 1
        assert first["replaced"] == first["calls"] > 0
        gateway.clock.now += 3600
        path.write_text(written(READER._replace(rate="100/second")), "utf-8")  # changed rights end the stream
        again = next(line for line in lines if line.get("opened") != 1)
        assert again["opened"] == 2
        assert again["replaced"] < first["calls"]
