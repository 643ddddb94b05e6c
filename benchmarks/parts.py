"""Break down the time of a hit and of a miss by layer, in one process. Each figure includes the layers inside it.

The difference between two neighbouring figures is the cost of one layer. Hits are timed at the entry of each ASGI
layer, without a socket. Misses use an upstream in a separate process that returns 100 calls for each day. Figures are
medians and minima of CPU time.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import redirect_stderr
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import uvloop
import xmltodict
from prometheus_client import CollectorRegistry

from benchmarks.peers import POST
from benchmarks.serving import SIMULATOR, running
from benchmarks.support import free_port
from gateway import app
from gateway.api.middleware.request_context import RequestContext
from gateway.auth.access_keys import fingerprint, new_key
from gateway.cache.reader import Query
from gateway.callbutton.central_time import align_to_fold
from gateway.callbutton.reply import ReplyParser
from gateway.cli.keys import with_key
from gateway.metrics import Metrics
from gateway.model import Window
from gateway.settings import Settings

CODE = "8005550100"
FIRST = datetime(2025, 1, 1, 6, tzinfo=UTC)  # midnight in Central Time
DAYS, ROUNDS, TURNS = 150, 30, 500
Step = Callable[[Window], Awaitable[object]]


def query(window: Window, limit: int) -> bytes:
    edges = (datetime.fromtimestamp(edge, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") for edge in (window.start, window.end))
    return "start={}&end={}&limit={}".format(*edges, limit).encode()


def scope(asked: bytes, headers: list[tuple[bytes, bytes]]) -> dict[str, Any]:
    """Build the ASGI scope of a request."""
    path = f"/clients/{CODE}/calls"
    return {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": asked, "root_path": "", "headers": headers,
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": {},
    }  # fmt: skip


async def receive() -> dict[str, Any]:
    await asyncio.sleep(60)
    return {}


async def send(message: dict[str, Any]) -> None:
    assert message.get("status", 200) == 200, message


def day(number: int) -> Window:
    start = int((FIRST + timedelta(days=number)).timestamp())
    return Window(start, start + 16 * 3600)


async def hit(upstream: str, folder: Path) -> None:
    """Print the cost of an exact repeat of a page of 22 calls, from the outermost layer inwards."""
    key, path = new_key(), folder / "keys.toml"
    text = with_key("", "all", f'{{ sha256 = "{fingerprint(key)}" }}', ["*"], ["calls", "personal"], "90000000/second")
    path.write_text(text, "utf-8")
    edge: Any = app.create(Settings(upstream_url=upstream, keys_file=str(path), log_format="json"))
    headers, asked = [(b"host", b"127.0.0.1"), (b"x-api-key", key.encode())], query(day(0), 22)
    first = scope(asked, headers)
    await edge(first, receive, send)
    layers = [edge]
    while type(layers[-1]).__name__ != "ResponseCache":
        layers.append(layers[-1]._app)
    times: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for layer in layers:
            began = time.process_time()
            for _ in range(TURNS):
                made = scope(asked, headers)
                if layer is not edge:
                    made["state"] = {"context": RequestContext("0" * 26, dict(headers), 0)}
                    if layer is layers[-1]:
                        made["state"]["context"].consumer = first["state"]["context"].consumer
                await layer(made, receive, send)
            times.setdefault(type(layer).__name__, []).append((time.process_time() - began) / TURNS)
        await asyncio.sleep(0)
    show("an exact repeat of 22 calls, without the server", times, 1e6, "us")


async def miss(upstream: str) -> None:
    """Print the cost of a miss of 100 calls, from the network upwards."""
    settings = Settings(upstream_url=upstream, auth="none", log_level="error")
    metrics = Metrics(CollectorRegistry())
    service, behind = app.build_upstream(settings, metrics), app.build_upstream(settings, metrics)
    cache, gateway = app.build_cache(settings, behind, metrics), app.create(settings)
    loop = asyncio.get_running_loop()
    host, _, rest = upstream.removeprefix("http://").partition("/")
    reader, writer = await asyncio.open_connection(*host.split(":"))

    def body(window: Window) -> bytes:
        wall = datetime.fromtimestamp(window.end, UTC).strftime("%m/%d/%Y 00:00:00")
        return POST.format(code=CODE, start=wall, end=wall).encode()

    async def exchange(window: Window) -> bytes:
        asked = body(window)
        writer.write(
            b"POST /%b HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % (rest.encode(), len(asked)) + asked
        )
        await reader.readuntil(b"\r\n\r\n")
        pieces = b""
        while size := int(await reader.readline(), 16):
            pieces += (await reader.readexactly(size + 2))[:size]
        await reader.readline()
        return pieces

    async def post(window: Window) -> None:
        async with service.transport.post(body(window), loop.time() + 60) as answer:
            async for _ in answer.chunks:
                pass

    reply = await exchange(day(0))

    async def reference(_: Window) -> object:
        return xmltodict.parse(reply)

    async def stock(window: Window) -> None:
        (await client.post(upstream, content=body(window))).raise_for_status()

    async def parse(_: Window) -> object:
        parser = ReplyParser(status=False)
        parser.feed(reply)
        return parser.close()

    async def fetch(window: Window) -> object:
        return await service.fetch([CODE], align_to_fold(window), status=False, now=time.time())

    async def read(window: Window) -> object:
        return (await cache.read(Query(codes=(CODE,), window=window, deadline=loop.time() + 60))).calls

    async def answer(window: Window) -> None:
        await gateway(scope(query(window, 100), [(b"host", b"a")]), receive, send)  # type: ignore[arg-type]

    client = httpx.AsyncClient(timeout=60)
    steps: dict[str, Step] = {
        "xmltodict.parse, for comparison": reference,
        "a POST with stock httpx, for comparison": stock,
        "bytes over a socket": exchange,
        "the same with httpx and a flight's timeouts": post,
        "translation alone": parse,
        "a POST through the queue, with translation": fetch,
        "a read through the cache": read,
        "a response of the application": answer,
    }
    times: dict[str, list[float]] = {}
    for number in range(DAYS):
        for name, step in steps.items():
            began = time.process_time()
            await step(day(number))
            times.setdefault(name, []).append(time.process_time() - began)
    show("a miss of 100 calls, without the server", times, 1e3, "ms")


def show(title: str, times: dict[str, list[float]], unit: float, name: str) -> None:
    print(f"## {title}\n")
    for part, found in times.items():
        print(f"{part:48} {statistics.median(found) * unit:7.2f} {name}, at least {min(found) * unit:7.2f}")
    print()


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        command = (sys.executable, "-m", "benchmarks.peers", "upstream", str(port), "-")
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        with running(port, *command, log=folder / "upstream.log"):
            upstream = SIMULATOR.format(port=port)
            with (folder / "access.log").open("w") as log, redirect_stderr(log):
                uvloop.run(hit(upstream, folder))
            uvloop.run(miss(upstream))


if __name__ == "__main__":
    main()
