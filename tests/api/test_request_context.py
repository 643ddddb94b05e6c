"""The outermost middleware: pieces of large bodies, and the access log."""

import asyncio
import gc
import json
from pathlib import Path
from typing import Any

import pytest

from gateway import app
from gateway.api.middleware.request_context import CHUNK_SIZE, send_in_chunks
from gateway.cli.gateway_client import lifespan
from gateway.settings import Settings
from gateway.simulator import server as simulator
from tests.support import asgi
from tests.support.consumers import Member, keys_file
from tests.support.loops import settle
from tests.support.processes import wait_for
from tests.support.stand import Make, serving


@pytest.mark.parametrize("more_body", [False, True])
def test_a_large_body_is_sent_in_pieces_one_after_the_other(more_body: bool):
    sent: list[Any] = []
    taken = asyncio.Event()

    async def send(message: Any) -> None:
        sent.append(message)
        await taken.wait()

    async def run() -> None:
        body = bytes(range(256)) * 1000
        sending = asyncio.create_task(
            send_in_chunks({"type": "http.response.body", "body": body, "more_body": more_body}, send)
        )
        await settle()
        assert len(sent) == 1  # the client has not taken the first
        taken.set()
        await sending
        assert b"".join(message["body"] for message in sent) == body

    asyncio.run(run())
    assert [len(message["body"]) for message in sent] == [CHUNK_SIZE, CHUNK_SIZE, CHUNK_SIZE, 256_000 % CHUNK_SIZE]
    assert [message["more_body"] for message in sent] == [True, True, True, more_body]


def test_the_access_log_has_consumer_cache_status_and_route_of_every_request(
    stand: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    reader, limited = Member("reader", clients=("8005550100",)), Member("limited", rate="1/hour")
    gateway = stand(
        auth="keys", keys_file=keys_file(tmp_path, reader, limited), log_format="json", stale_if_error=99 * 86400.0
    )
    calls, missing = "/clients/8005550100/calls", "/clients/8005550100/calls/x"
    day = {"start": "2026-11-01", "end": "2026-11-02"}
    expected = []

    def ask(path: str, member: Member | None, status: int, route: str, cache: str | None, **query: str) -> None:
        answer = gateway.client.get(path, params=query, headers=member.headers if member else {})
        assert answer.status_code == status, answer.text
        expected.append((route, status, member and member.name, cache))

    listed, single, unmatched = "/clients/{code}/calls", "/clients/{code}/calls/{call_id}", "unmatched"
    ask(calls, reader, 200, listed, "miss", **day)
    ask(calls, reader, 200, listed, "hit", **day)  # from the response cache
    ask(calls, reader, 200, listed, "hit", **day, limit="1")  # from the cache of calls
    ask(missing, reader, 404, single, None, **day)
    ask("/clients/8005550101/calls", reader, 403, listed, None, **day)
    ask(calls, reader, 400, listed, None, sort="x")
    ask(calls, limited, 200, listed, "hit", **day)
    ask(calls, limited, 429, listed, None, **day)
    ask(calls, None, 401, listed, None)
    ask("/docs", None, 200, "/docs", None)
    ask("/nothing/8005550100", reader, 404, unmatched, None)
    gateway.pass_time(40 * 86400)
    gateway.simulator.misbehave("error")
    ask(calls, reader, 200, listed, "stale", **day)
    written: list[dict[str, Any]] = []

    def all_lines() -> bool:
        written.extend(json.loads(line) for line in capsys.readouterr().err.splitlines())
        return len(logged()) >= len(expected)

    def logged() -> list[tuple[str, int, str | None, str | None]]:
        requests = [line for line in written if line["event"] == "request" and line["route"] != "/metrics"]
        return [(line["route"], line["status"], line.get("consumer"), line.get("cache")) for line in requests]

    wait_for(all_lines, "all lines")
    assert logged() == expected
    assert "8005550100" not in str([line for line in written if line["event"] == "request"])


def test_a_cached_response_leaves_nothing_for_the_garbage_collector():
    """A collection would interrupt other requests, and hold the loop longer the more is cached."""
    with serving(simulator.create(simulator.Options())) as port:
        application = app.create(Settings(upstream_url=f"http://127.0.0.1:{port}{simulator.PATH}", auth="none"))
        day = {"start": "2026-11-01", "end": "2026-11-02"}

        async def garbage(requests: int) -> int:
            gc.collect()
            for _ in range(requests):
                answer = await asgi.get(application, "/clients/8005550100/calls", day, {})
                assert "; hit; " in answer.headers["cache-status"]
            return gc.collect()

        async def run() -> list[int]:
            async with lifespan(application):
                await asgi.get(application, "/clients/8005550100/calls", day, {})
                await garbage(10)  # the first use of a code path may leave some
                gc.disable()
                try:
                    return [await garbage(1), await garbage(101)]
                finally:
                    gc.enable()

        once, often = asyncio.run(run())
    assert often - once < 100
