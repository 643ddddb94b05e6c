"""A fleet under load in real time: three replicas behind nginx, dashboards, streams, exports, and faults.

    python -m benchmarks.fleet [MINUTES [DASHBOARDS [STREAMS]]]

By default it takes 20 minutes after the caches are warm. 5,000 dashboards over 1,000 clients reload every 30 seconds,
which are 167 requests a second, beside streams of the change feed, exports and summaries. The first part is quiet.
Then every two minutes a replica is killed, or stopped as a rolling update does, and started again, and the upstream is
slow for 12 s; in the middle, the shared cache, a cluster of three primaries, fails over to the replica of one.

Every answer is compared with the simulator's calls, which are a pure function of client and time. An answer is wrong if
it has a call that does not exist or is not published, or lacks one that was published before the freshness rule allows
the answer to be older. Answers marked stale, problems and broken connections are counted apart.

It needs nginx, about 3 GiB of memory, and two cores without other load.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import httpcore
import msgspec
import uvicorn

from benchmarks.compose import answers, nginx
from benchmarks.scaling import cost_of_client, dashboards_of
from benchmarks.support import (
    add_replica,
    cluster_options,
    free_port,
    make_cluster,
    reachable,
    running,
    valkey,
    wait_for,
)
from gateway.cache.freshness import Rule
from gateway.simulator.calls import HOUR, calls_of_hour, client_code
from gateway.simulator.server import PATH, Options, Simulator

MINUTE, DAY = 60.0, 86400
CLIENTS, DASHBOARDS, EVERY = 1_000, 5_000, 30.0  # seconds between two reloads of a dashboard
CALLS_PER_DAY, HISTORY = 50, 10  # of a client; days
RULE = Rule(60)
STREAMS, EXPORTS_EVERY, SUMMARIES_EVERY = 50, 20.0, 1.0  # seconds
LATENCY, SLOW, SLOW_FOR = 0.2, 5.0, 12.0  # seconds of a POST, while the upstream is slow, and how long it is
FAULTS_EVERY = 2 * MINUTE
WARM_UP = 4 * MINUTE
PAGE = 50  # calls
SLACK = 3.0  # seconds between the clocks of programs and the start of a read
CONNECTIONS = 64  # besides those of streams
REPLICAS = 3
RATES = [count / EVERY for count in (1, 2, 3, 5, 10, 30, 100)]  # reads per second of a client
SETTINGS = {
    "GATEWAY_AUTH": "none",
    "GATEWAY_SIGNING_KEY": "k" * 32,
    "GATEWAY_LOG_FORMAT": "json",
    "GATEWAY_LOG_LEVEL": "error",
    "GATEWAY_FRESH_MIN": f"{RULE.minimum:.0f}s",
    "GATEWAY_CACHE_BYTES": "512MiB",
}


class Row(msgspec.Struct):
    """The fields of a call that are checked."""

    id: str
    start_time: datetime = msgspec.field(name="startTime")


class Meta(msgspec.Struct):
    """The field of `meta` that is checked."""

    stale: bool = False


class Page(msgspec.Struct):
    """A page of a list."""

    data: list[Row]
    meta: Meta


class Total(msgspec.Struct):
    """The calls of a summary."""

    calls: int


class Summary(msgspec.Struct):
    """A summary."""

    total: Total
    meta: Meta


_Answer = TypeVar("_Answer", Page, Summary)


class Published(NamedTuple):
    """A call of the simulator: its id, when it starts, and from when on replies have it, in seconds since 1970."""

    identity: str
    start: int
    at: int


@lru_cache(maxsize=400_000)
def published(code: str, hour: int) -> tuple[Published, ...]:
    """The calls of a client that start within an hour."""
    found = calls_of_hour(Options().seed, code, hour, CALLS_PER_DAY)
    return tuple(Published(call.identity, call.start, call.published) for call in found)


def calls_between(code: str, start: float, end: float) -> Iterator[Published]:
    """The calls of a client that start in a window, published or not."""
    for hour in range(int(start) // HOUR, -(-int(end) // HOUR) + 1):
        yield from (call for call in published(code, hour) if start <= call.start < end)


def must_have(call: Published, now: float) -> bool:
    """Whether an answer to a request sent at `now` must have a call, by the freshness rule."""
    return call.at <= now - RULE.life(call.start, now) - SLACK


def fault_of(code: str, found: dict[str, float], start: float, end: float, asked: float, *, stale: bool = False) -> str:
    """The first fault of an answer for a window; empty if it has none."""
    known = {call.identity: call for call in calls_between(code, start, end)}
    now = time.time()
    for identity, at in found.items():
        call = known.get(identity)
        if call is None or call.start != at:
            return f"{code}: {identity} at {at} does not exist"
        if call.at > now + SLACK:
            return f"{code}: {identity} is not published before {call.at}"
    missing = (
        [] if stale else [call for call in known.values() if must_have(call, asked) and call.identity not in found]
    )
    return f"{code}: {missing[0]} is missing" if missing else ""


def first_day(now: float) -> int:
    """The start of `range=last_7_days`, in UTC."""
    return (int(now) // DAY - 6) * DAY


@dataclass
class Program:
    """A program that listens on a port, and can be killed and started again."""

    command: Sequence[str]
    port: int
    log: Path
    settings: dict[str, str] = field(default_factory=dict)
    stack: ExitStack = field(default_factory=ExitStack)

    def start(self) -> None:
        """Start it, without waiting until it is ready."""
        self.process = self.stack.enter_context(running(self.command, self.log, **self.settings))

    def kill(self) -> None:
        """Kill it, as a loss of the machine does."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Stop it as a rolling update does, and wait until it has ended."""
        self.process.terminate()
        self.process.wait(5 * MINUTE)

    def memory(self) -> float:
        """Its proportional set size in MiB; 0 while it does not run."""
        try:
            text = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text("ascii")
        except OSError:
            return 0.0
        return int(text.split("Pss:")[1].split()[0]) / 1024


def gateway(folder: Path, behind: int, cache: str) -> Program:
    """A replica of the gateway."""
    port = free_port()
    settings = SETTINGS | {
        "GATEWAY_UPSTREAM_URL": f"http://127.0.0.1:{behind}{PATH}",
        "GATEWAY_CACHE_URL": cache,
        "GATEWAY_PORT": str(port),
    }
    return Program((sys.executable, "-m", "gateway", "serve"), port, folder / f"gateway-{port}.log", settings)


def cache_node(folder: Path) -> Program:
    """A node of the shared cache, without persistence."""
    port = free_port()
    own = folder / f"valkey-{port}"
    own.mkdir()
    options = ("--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(own), *cluster_options())
    return Program((valkey(), *options, "--loglevel", "warning"), port, own / "log")


class Load:
    """The requests and their outcomes."""

    def __init__(self, address: str, dashboards: int, streams: int) -> None:
        self.address = address
        self.dashboards = dashboards
        self.streams = streams
        # Pools of one connection: a larger pool looks at all connections and requests for each request.
        self.connections: asyncio.LifoQueue[httpcore.AsyncConnectionPool] = asyncio.LifoQueue()
        for _ in range(CONNECTIONS):
            self.connections.put_nowait(httpcore.AsyncConnectionPool(max_connections=1))
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.hits: list[float] = []  # seconds of each answer from the cache
        self.copies: list[tuple[str, int, dict[str, float], list[float]]] = []

    async def run(self, ends: Callable[[], bool]) -> None:
        """Send requests until the end."""
        draw = random.Random(1)
        counts = sorted(dashboards_of(CLIENTS, self.dashboards), reverse=True)
        shown = [client_code(index) for index, count in enumerate(counts) for _ in range(count)]
        tasks = [asyncio.create_task(self.dashboard(code, draw.uniform(0, EVERY), ends)) for code in shown]
        tasks += [asyncio.create_task(self.stream(client_code(index), ends)) for index in range(self.streams)]
        tasks += [asyncio.create_task(self.repeat(EXPORTS_EVERY, self.export, ends))]
        tasks += [asyncio.create_task(self.repeat(SUMMARIES_EVERY, self.summary, ends))]
        await asyncio.gather(*tasks)

    async def dashboard(self, code: str, pause: float, ends: Callable[[], bool]) -> None:
        """Reload the page of a client."""
        while not ends():
            await asyncio.sleep(pause)
            await self.counted(self.page, code)
            pause = EVERY * random.uniform(0.8, 1.2)

    async def repeat(self, every: float, ask: Callable[[str], Any], ends: Callable[[], bool]) -> None:
        """Send a request about one of the clients that are read most, again and again."""
        while not ends():
            await asyncio.sleep(every)
            await self.counted(ask, client_code(random.randrange(100)))

    async def counted(self, ask: Callable[[str], Any], code: str) -> None:
        """Send a request, and count its outcome."""
        try:
            fault = await ask(code)
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
            self.outcomes[f"{type(error).__name__}"] += 1
            return
        if fault:
            self.wrong.append(fault)

    async def get(self, path: str, accept: str = "application/json") -> bytes | None:
        """The body of an answer; None for a problem."""
        timeout = dict.fromkeys(("connect", "read", "write", "pool"), MINUTE)
        connection = await self.connections.get()
        began = time.perf_counter()
        try:
            response = await connection.request(
                "GET", self.address + path, headers={"Accept": accept}, extensions={"timeout": timeout}
            )
        finally:
            self.connections.put_nowait(connection)
        if response.status != 200:
            self.outcomes[str(response.status)] += 1
            return None
        headers = {name.lower(): value for name, value in response.headers}
        if headers.get(b"cache-status", b"").startswith(b"callbutton-gateway; hit"):
            self.hits.append(time.perf_counter() - began)
            self.outcomes["hit"] += 1
        else:
            self.outcomes["not a hit"] += 1
        return response.content

    async def decoded(self, path: str, decoder: msgspec.json.Decoder[_Answer]) -> _Answer | None:
        """An answer in JSON; None for a problem."""
        body = await self.get(path)
        if body is None:
            return None
        answer = decoder.decode(body)
        self.outcomes["stale"] += answer.meta.stale
        return answer

    async def page(self, code: str) -> str:
        """The newest calls of the last 7 days."""
        asked = time.time()
        answer = await self.decoded(f"/clients/{code}/calls?range=last_7_days&sort=-startTime&limit={PAGE}", PAGES)
        if answer is None:
            return ""
        found = {row.id: row.start_time.timestamp() for row in answer.data}
        if len(found) != len(answer.data):
            return f"{code}: a call twice"
        start = first_day(asked) if len(found) < PAGE else min(found.values()) + 1
        rest = {identity: at for identity, at in found.items() if at >= start}
        return fault_of(code, rest, start, time.time() + 1, asked, stale=answer.meta.stale)

    async def summary(self, code: str) -> str:
        """The calls of the last 7 days by day."""
        asked = time.time()
        answer = await self.decoded(f"/clients/{code}/calls/summary?range=last_7_days&interval=day", SUMMARIES)
        if answer is None:
            return ""
        known = list(calls_between(code, first_day(asked), time.time()))
        least = 0 if answer.meta.stale else sum(must_have(call, asked) for call in known)
        most = sum(call.at <= time.time() + SLACK for call in known)
        return (
            "" if least <= answer.total.calls <= most else f"{code}: {answer.total.calls} calls, not {least} to {most}"
        )

    async def export(self, code: str) -> str:
        """All calls of the last 7 days as NDJSON."""
        asked = time.time()
        body = await self.get(f"/clients/{code}/calls?range=last_7_days", "application/x-ndjson")
        if body is None:
            return ""
        *lines, last = body.splitlines()
        end = json.loads(last)
        if "meta" not in end:
            self.outcomes["export cut off"] += 1
            return ""
        rows = [ROWS.decode(line) for line in lines]
        found = {row.id: row.start_time.timestamp() for row in rows}
        if len(found) != len(rows):
            return f"{code}: a call twice in an export"
        return fault_of(code, found, first_day(asked), time.time() + 1, asked, stale=end["meta"].get("stale", False))

    async def stream(self, code: str, ends: Callable[[], bool]) -> None:
        """Keep a copy of the calls since midnight by the change feed, over broken connections."""
        start = int(time.time()) // DAY * DAY
        copy: dict[str, float] = {}
        told = [0.0]  # when the copy was last up to date
        self.copies.append((code, start, copy, told))
        last_id = ""
        path = f"{self.address}/clients/{code}/changes?start={datetime.fromtimestamp(start, UTC):%Y-%m-%dT%H:%M:%SZ}"
        timeout = {"connect": MINUTE, "read": MINUTE, "write": MINUTE}
        while not ends():
            headers = [("Accept", "text/event-stream"), *([("Last-Event-ID", last_id)] if last_id else [])]
            try:
                async with (
                    httpcore.AsyncConnectionPool() as pool,
                    pool.stream("GET", path, headers=headers, extensions={"timeout": timeout}) as response,
                ):
                    if response.status != 200:
                        self.outcomes[f"stream {response.status}"] += 1
                        await asyncio.sleep(1)
                        continue
                    async for name, identity, data in events_of(response.aiter_stream()):
                        last_id = identity or last_id
                        if name == "up-to-date":
                            told[0] = time.time()
                        elif name:
                            self.outcomes["change told" if apply(json.loads(data), copy) else "told again"] += 1
                        if ends():
                            break
            except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException):
                self.outcomes["stream broken"] += 1
                await asyncio.sleep(0.5)

    def check_copies(self) -> None:
        """Compare the copies of the streams with the simulator's calls."""
        for code, start, copy, told in self.copies:
            if fault := fault_of(code, copy, start, time.time() + 1, told[0]):
                self.wrong.append(f"stream: {fault}")


PAGES = msgspec.json.Decoder(Page)
SUMMARIES = msgspec.json.Decoder(Summary)
ROWS = msgspec.json.Decoder(Row)


async def events_of(chunks: Any) -> AsyncIterator[tuple[str, str, str]]:  # noqa: ANN401 - httpcore does not type it
    """The name, id and data of each server-sent event."""
    rest = b""
    async for chunk in chunks:
        *events, rest = (rest + chunk).split(b"\n\n")
        for event in events:
            fields = dict(line.split(": ", 1) for line in event.decode().splitlines() if ": " in line)
            yield fields.get("event", ""), fields.get("id", ""), fields.get("data", "")


def apply(item: dict[str, Any], copy: dict[str, float]) -> bool:
    """Apply an item of the change feed of one client. Returns whether it changed the copy."""
    before = dict(copy)
    if item["op"] == "remove":
        copy.pop(item["id"], None)
    if item["op"] == "replace":
        start, end = (datetime.fromisoformat(item["window"][edge]).timestamp() for edge in ("start", "end"))
        for identity in [identity for identity, at in copy.items() if start <= at < end]:
            del copy[identity]
    for call in item.get("calls", [item["call"]] if "call" in item else []):
        copy[call["id"]] = datetime.fromisoformat(call["startTime"]).timestamp()
    return copy != before


def model(seconds: float, dashboards: int) -> float:
    """The POSTs that the model of helm/README.md expects for the dashboards."""
    costs = [cost_of_client(rate, RULE, EVERY)[0] for rate in RATES]
    places = (bisect_left(RATES, count / EVERY) for count in dashboards_of(CLIENTS, dashboards))
    return seconds * sum(costs[min(place, len(costs) - 1)] for place in places)


def upstream(port: int) -> None:
    """Run the simulator. `GET /posts` counts the POSTs, `GET /latency/5` changes the delay of each."""
    simulator = Simulator(Options(clients=CLIENTS, calls_per_day=CALLS_PER_DAY, history=HISTORY, latency=LATENCY))

    async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:  # noqa: ANN401 - ASGI
        if scope["path"].startswith("/latency/"):
            simulator.options = replace(simulator.options, latency=float(scope["path"].split("/")[2]))
        if scope["method"] == "POST":
            await simulator(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(simulator.posts).encode()})

    uvicorn.run(application, host="127.0.0.1", port=port, access_log=False, lifespan="off", log_level="error")


class Sample(NamedTuple):
    """Figures of an instant: the seconds since the load began, the POSTs so far, and MiB of all replicas."""

    at: float
    posts: int
    memory: float


@dataclass
class Fleet:
    """The programs, and the times at which they are disturbed."""

    load: Load
    replicas: Sequence[Program]
    cache: Program  # the primary that has a replica
    upstream: str
    minutes: float
    samples: list[Sample] = field(default_factory=list)
    undisturbed: int = 0  # hits before the first fault

    async def run(self) -> None:
        """Warm up, measure, disturb, and check the copies at the end."""
        over = asyncio.Event()
        sampling = asyncio.create_task(self.sample(over.is_set))
        loading = asyncio.create_task(self.load.run(over.is_set))
        await asyncio.sleep(WARM_UP)
        self.load.hits.clear()
        self.began = len(self.samples)
        await asyncio.sleep(self.minutes * MINUTE / 4)
        self.undisturbed, self.first_fault = len(self.load.hits), len(self.samples)
        ends = time.monotonic() + self.minutes * MINUTE * 3 / 4
        turn = 0
        while time.monotonic() < ends:
            began = time.monotonic()
            await self.disturb(turn, last=time.monotonic() + 2 * FAULTS_EVERY > ends)
            turn += 1
            await asyncio.sleep(max(0, min(ends, began + FAULTS_EVERY) - time.monotonic()))
        self.ended = len(self.samples)
        await asyncio.sleep(2 * RULE.minimum)  # every stream refreshes once more
        self.load.check_copies()
        over.set()
        sampling.cancel()
        loading.cancel()
        await asyncio.gather(sampling, loading, return_exceptions=True)

    async def disturb(self, turn: int, *, last: bool) -> None:
        """Kill or stop a replica, slow the upstream down for a while, and in the third turn fail the cache over."""
        number = turn % len(self.replicas)
        replica = self.replicas[number]
        if turn % 2:
            await asyncio.to_thread(replica.stop)
        else:
            replica.kill()
        print(f"replica {number} {'stopped' if turn % 2 else 'killed'}", flush=True)
        await asyncio.to_thread(replica.start)
        if turn == 2:
            self.cache.kill()
            print("primary of the cache killed", flush=True)
        await asyncio.sleep(FAULTS_EVERY / 4)
        if turn == 2:
            await asyncio.to_thread(self.cache.start)
        if not last:
            await self.tell(f"/latency/{SLOW}")
            await asyncio.sleep(SLOW_FOR)
            await self.tell(f"/latency/{LATENCY}")

    async def tell(self, path: str) -> int:
        """Send a GET to the upstream. Returns the POSTs so far."""
        async with httpcore.AsyncConnectionPool() as pool:
            return int((await pool.request("GET", self.upstream + path)).content)

    async def sample(self, ends: Callable[[], bool]) -> None:
        """Take figures every 5 seconds, and print them every minute."""
        began = time.monotonic()
        while not ends():
            posts, memory = await self.tell("/posts"), sum(replica.memory() for replica in self.replicas)
            self.samples.append(Sample(time.monotonic() - began, posts, memory))
            if len(self.samples) % 12 == 1:
                outcomes = ", ".join(f"{count} {name}" for name, count in self.load.outcomes.most_common() if count)
                print(f"{self.samples[-1].at / MINUTE:4.1f} min, {posts} POSTs, {memory:.0f} MiB, ", end="")
                print(f"{len(self.load.wrong)} wrong; {outcomes}", flush=True)
            await asyncio.sleep(5)

    def report(self) -> str:
        """The figures, with their targets."""
        began, fault, ended = (self.samples[at - 1] for at in (self.began, self.first_fault, self.ended))
        quiet = (fault.posts - began.posts) / model(fault.at - began.at, self.load.dashboards)
        whole = (ended.posts - began.posts) / model(ended.at - began.at, self.load.dashboards)
        p99 = statistics.quantiles(self.load.hits[: self.undisturbed], n=100)[98]
        quarter = (ended.at - began.at) / 4
        third, fourth = (
            statistics.mean(one.memory for one in self.samples if since <= one.at - began.at - 0.1 < since + quarter)
            for since in (2 * quarter, 3 * quarter)
        )
        lines = [
            f"wrong answers: {len(self.load.wrong)} (0)",
            f"POSTs over the model's: {quiet:.2f} while undisturbed (0.85 to 1.15), {whole:.2f} overall (2)",
            f"p99 of hits while undisturbed: {p99 * 1e3:.0f} ms (250)",
            f"memory of the last quarter over that of the third: {fourth / third:.3f} (1.05), {fourth:.0f} MiB",
            f"outcomes: {dict(self.load.outcomes)}",
            *self.load.wrong[:10],
        ]
        return "\n".join(lines)


def main() -> None:
    """Run the fleet, and print the report."""
    if sys.argv[1:2] == ["upstream"]:
        upstream(int(sys.argv[2]))
        return
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 20.0
    dashboards = int(sys.argv[2]) if len(sys.argv) > 2 else DASHBOARDS
    streams = int(sys.argv[3]) if len(sys.argv) > 3 else STREAMS
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        behind, front = free_port(), free_port()
        command = (sys.executable, "-m", "benchmarks.fleet", "upstream", str(behind))
        stack.enter_context(running(command, folder / "upstream.log"))
        nodes = [cache_node(folder) for _ in range(4)]
        ports = [node.port for node in nodes]
        address = "valkey+cluster://" + ",".join(f"127.0.0.1:{port}" for port in ports)
        replicas = [gateway(folder, behind, address) for _ in range(REPLICAS)]
        for program in (*nodes, *replicas):
            stack.callback(program.stack.close)
            program.start()
        wait_for(lambda: all(map(reachable, ports)), "the nodes of the cache answer")
        make_cluster(ports[:3])
        add_replica(ports[:3], ports[3])
        ready = [f"http://127.0.0.1:{replica.port}/readyz" for replica in replicas]
        wait_for(lambda: all(map(answers, ready)), "the replicas are ready")
        stack.enter_context(nginx(folder, front, [replica.port for replica in replicas]))
        load = Load(f"http://127.0.0.1:{front}", dashboards, streams)
        fleet = Fleet(load, replicas, nodes[0], f"http://127.0.0.1:{behind}", minutes)
        asyncio.run(fleet.run())
        print(fleet.report())


if __name__ == "__main__":
    main()
