"""Streams of the change feed in the world: proxies, browsers, slow and absent readers, credentials that end."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import httpx
import pytest

from gateway.api import changes
from tests.support.consumers import Member, keys_file, written
from tests.support.feed import CODE, FEED, START, Copy, events, listed
from tests.support.issuer import issuing
from tests.support.paths import NODE
from tests.support.processes import answers, free_port, running, wait_for
from tests.support.stand import NOW, Make, Stand
from tests.support.tools import need, tool

READER, OTHER = Member("reader"), Member("other")
EVENTS = {"Accept": "text/event-stream"}
LIVING = f"{FEED}?start=2026-11-18"


@contextmanager
def stream(gateway: Stand, path: str = LIVING, **headers: str) -> Iterator[httpx.Response]:
    """Open a stream."""
    with gateway.client.stream("GET", path, headers=EVENTS | headers, timeout=90) as response:
        yield response


def up_to_date(response: httpx.Response, stream_events: Iterator[tuple[str, str, str]] | None = None) -> str:
    """Read up to the next event `up-to-date`. Returns its id."""
    for identity, name, _ in stream_events or events(response):
        if name == "up-to-date":
            return identity
    raise AssertionError("the stream ended")


def test_a_comment_comes_while_nothing_changes(stand: Make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(changes, "HEARTBEAT", 0.05)
    with stream(stand()) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("retry: ")
        assert [line for line in (next(lines) for _ in range(40)) if line.startswith(":")]


def test_a_comment_comes_even_if_refreshes_without_changes_come_more_often(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(changes, "HEARTBEAT", 1)
    refreshed: Any = SimpleNamespace(snapshot=SimpleNamespace(end=0))
    answer: Any = SimpleNamespace(report=SimpleNamespace(state=SimpleNamespace(start=0, at=0), up_to_date=True, size=0))

    async def refresh(*_: object) -> Any:
        return await asyncio.sleep(0.001, refreshed)

    watch = SimpleNamespace(refreshed=refresh)
    watching = MagicMock()
    watching.return_value.__aenter__ = AsyncMock(return_value=watch)
    feed: Any = SimpleNamespace(
        feeds=SimpleNamespace(watching=watching, answer=AsyncMock(return_value=answer), metrics=MagicMock()),
        clients=None, view=None, limit=1, body=AsyncMock(return_value=b"event"),
    )  # fmt: skip

    async def first_three() -> list[bytes]:
        services: Any = SimpleNamespace(shutdown=SimpleNamespace(begun=asyncio.Event()))
        context: Any = SimpleNamespace(consumer=None, current=lambda: None)
        stream = changes._events(services, context, feed, answer)
        async with asyncio.timeout(60):
            return [await anext(stream) for _ in range(3)]

    assert asyncio.run(first_three())[1:] == [b"event", b":\n\n"]


@pytest.mark.parametrize("coding", ["zstd", "br", "gzip", "gzip, deflate, br, zstd"])
def test_events_are_not_compressed_and_other_formats_are(stand: Make, coding: str):
    gateway = stand()
    with stream(gateway, **{"Accept-Encoding": coding}) as response:
        assert "content-encoding" not in response.headers
        assert up_to_date(response)
    for accept in ("application/json", "application/x-ndjson"):
        answer = gateway.client.get(LIVING, headers={"Accept": accept, "Accept-Encoding": coding})
        assert answer.headers["content-encoding"] in coding


def test_a_head_request_for_a_stream_ends(stand: Make):
    answer = stand().client.head(LIVING, headers=EVENTS)
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-type"].startswith("text/event-stream")


def test_a_stream_does_not_keep_the_place_in_which_it_waited_for_the_upstream(stand: Make):
    gateway = stand(request_concurrency=1)
    with stream(gateway) as response:
        assert up_to_date(response)
        assert gateway.get(f"/clients/{CODE}/calls", start="2026-10-01", end="2026-10-02").status_code == 200


def test_a_consumer_has_a_hundred_streams_and_takes_none_from_others(stand: Make, tmp_path: Path):
    gateway = stand(auth="keys", keys_file=keys_file(tmp_path, READER, OTHER))
    url, request = gateway.client.base_url, f"GET {LIVING} HTTP/1.1\r\nHost: g\r\nAccept: text/event-stream\r\n"
    with ExitStack() as stack:
        opened = []
        for _ in range(100):
            connection = stack.enter_context(socket.create_connection((url.host, url.port or 0), timeout=60))
            connection.sendall(f"{request}X-API-Key: {READER.key}\r\n\r\n".encode())
            assert b" 200 " in connection.recv(100)
            opened.append(connection)
        with stream(gateway, **READER.headers) as refused:
            refused.read()
            assert (refused.status_code, refused.json()["type"]) == (429, "/problems/rate-limited")
            assert refused.headers["retry-after"] == "10"
        with stream(gateway, **OTHER.headers) as response:
            assert up_to_date(response)
        assert gateway.client.get(LIVING, headers=READER.headers).status_code == 200  # a poll that does not wait
        opened.pop().close()

        def status() -> int:
            with stream(gateway, **READER.headers) as response:
                return response.status_code

        wait_for(lambda: status() == 200, "the closed stream is no longer counted")


def ended(response: httpx.Response) -> bool:
    """Read to the end of the stream; an end that is not clean raises an error."""
    for _ in response.iter_lines():
        pass
    return True


def test_a_stream_ends_when_its_key_is_revoked_even_if_the_consumer_has_another(
    stand: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(changes, "HEARTBEAT", 0.05)
    path = keys_file(tmp_path, READER, OTHER)
    gateway = stand(auth="keys", keys_file=path)
    with stream(gateway, **READER.headers) as response:
        assert up_to_date(response, found := events(response))
        renewed = written(READER, OTHER).replace(written(READER).split('"')[-2], "0" * 64)
        Path(path).write_text(renewed, "utf-8")
        assert list(found) == []
    with stream(gateway, **READER.headers) as response:
        assert response.status_code == 401


def test_a_stream_ends_when_its_key_expires(stand: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(changes, "HEARTBEAT", 0.05)
    expires = datetime.fromtimestamp(NOW + 60, UTC).isoformat().replace("+00:00", "Z")
    gateway = stand(auth="keys", keys_file=keys_file(tmp_path, READER._replace(expires=expires)))
    with stream(gateway, **READER.headers) as response:
        assert up_to_date(response, found := events(response))
        gateway.clock.now += 61
        assert [name for _, name, _ in found if name not in ("upsert", "replace", "up-to-date")] == []


def test_a_stream_of_a_bearer_token_lasts_until_the_token_expires(stand: Make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(changes, "HEARTBEAT", 0.05)
    with issuing() as issuer:
        gateway = stand(auth="oidc", oidc_issuer=issuer.address, oidc_audience="callbutton")
        with stream(gateway, Authorization=f"Bearer {issuer.token(NOW)}") as response:
            lines = response.iter_lines()
            while next(lines) != "event: up-to-date":
                pass
            while next(lines) != ":":  # it lives
                pass
            gateway.clock.now += 3600
            for _ in lines:
                pass


def test_a_waiting_poll_tells_nothing_to_a_consumer_whose_rights_ended(stand: Make, tmp_path: Path):
    expires = datetime.fromtimestamp(NOW + 60, UTC).isoformat().replace("+00:00", "Z")
    gateway = stand(auth="keys", keys_file=keys_file(tmp_path, READER._replace(expires=expires)), fresh_min=1)
    gateway.client.headers.update(READER.headers)
    copy = Copy()
    copy.follow(gateway)
    url, since = gateway.client.base_url, f"{FEED}?wait=60&since={copy.token}"
    with socket.create_connection((url.host, url.port or 0), timeout=90) as waiting:
        waiting.sendall(
            f"GET {since} HTTP/1.1\r\nHost: g\r\nConnection: close\r\nX-API-Key: {READER.key}\r\n\r\n".encode()
        )
        wait_for(lambda: gateway.metric("requests_in_flight") >= 2, "the poll waits")
        gateway.clock.now += 7200
        answer = b"".join(iter(lambda: waiting.recv(65536), b""))
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["data"] == []


@contextmanager
def nginx(folder: Path, port: int) -> Iterator[str]:
    """Run nginx with its default buffering in front of a port. Yields its address."""
    front = free_port()
    paths = "\n".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"pid {folder}/nginx.pid;\nevents {{}}\nhttp {{\naccess_log off;\n{paths}\n"
        f"server {{\nlisten 127.0.0.1:{front};\nlocation / {{\n"
        f"proxy_pass http://127.0.0.1:{port};\nproxy_buffering on;\ngzip on;\ngzip_types *;\n}}}}}}\n"
    )
    command: list[str | Path] = [tool("nginx", "nginx-light"), "-p", folder, "-c", folder / "nginx.conf"]
    with running([*command, "-e", "stderr", "-g", "daemon off;"], folder / "nginx.log"):
        wait_for(lambda: answers(f"http://127.0.0.1:{front}/healthz"), "nginx listens")
        yield f"http://127.0.0.1:{front}"


def test_events_pass_a_proxy_that_buffers_at_once(stand: Make, tmp_path: Path):
    gateway, copy = stand(fresh_min=1), Copy()
    with (
        nginx(tmp_path, gateway.client.base_url.port or 0) as address,
        httpx.Client(base_url=address, timeout=60) as client,
        client.stream("GET", FEED, params={"start": START}, headers=EVENTS) as response,
    ):
        for _, name, data in events(response):
            item: dict[str, Any] = json.loads(data)
            if name != "up-to-date":
                copy.apply([item])
            elif gateway.clock.now > NOW:
                break
            else:
                gateway.clock.now += 7200  # the first events came through before this
    assert copy.calls == listed(gateway)


def test_a_browser_follows_a_stream_by_fetch_and_goes_on_from_the_last_event(stand: Make, tmp_path: Path):
    need((NODE / "node_modules" / "playwright-core").exists(), "npm ci in tests/node")
    gateway = stand(auth="keys", keys_file=keys_file(tmp_path, READER), fresh_min=1)
    gateway.client.headers.update(READER.headers)
    base = str(gateway.client.base_url).rstrip("/")
    command = [tool("node"), str(NODE / "stream.mjs"), tool("chromium"), base, READER.key, f"{FEED}?start={START}"]
    copy = Copy()
    seen: list[Any] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as browser:
        assert browser.stdin is not None
        assert browser.stdout is not None
        for line in browser.stdout:
            if line == "later\n":
                gateway.pass_time(7200)
                browser.stdin.write("\n")
                browser.stdin.flush()
            else:
                seen.append(json.loads(line))
        assert browser.wait(60) == 0
    names = [event["event"] for event in seen]
    assert names.count("up-to-date") == 3  # the copy, a change, and after the page was loaded again
    for event in seen:
        if event["event"] != "up-to-date":
            copy.apply([event["data"]])
    assert copy.calls == listed(gateway)
    last = [place for place, name in enumerate(names) if name == "up-to-date"]
    assert sum(len(event["data"].get("calls", [])) for event in seen[last[1] :]) < len(copy.calls) / 10
