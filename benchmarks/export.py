"""Export a million calls from a running `serve`, then read filtered pages and summaries of 100,000 cached calls.

The upstream is a separate process, so that the gateway has a core to itself. It generates a call every 30 seconds in
the layout `document` of `benchmarks.replies`. Rates are given in wall time and in the gateway's CPU time. They are
compared with translation alone, which is measured just before and after, beside an equally busy upstream.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import httpx

from benchmarks import replies, translate
from gateway.server import listen, make_server

CENTRAL = ZoneInfo("America/Chicago")
SPACING = 30  # seconds between calls
END = 1_794_000_000 // SPACING * SPACING  # 2026-11-06
CODE = "8005550100"
BEFORE, AFTER = (replies.HEAD + replies.client(100, "|") + replies.TAIL).split("|")
EDGES = re.compile(rb"<(?:Start|End)Date>([^<]*)<")
MIB = 2**20
UPSTREAM = "from benchmarks.export import serve_upstream; serve_upstream()"


def instant_of(wall: bytes) -> int:
    return int(datetime.strptime(wall.decode(), "%m/%d/%Y %H:%M:%S").replace(tzinfo=CENTRAL).timestamp())


def calls_between(start: int, end: int) -> Iterator[str]:
    for at in range(-(-start // SPACING) * SPACING, min(end, END - 1) + 1, SPACING):
        number = at // SPACING
        yield replies.DOCUMENT_CALL.format(
            id=number,
            start=datetime.fromtimestamp(at, CENTRAL).strftime("%m/%d/%Y %H:%M:%S"),
            number=number % 20 + 100,
            ani=number * 7919 % 40_000,
            target=number % 100,
            duration=60 + number % 300,
            talk=50 + number % 300,
        )


async def upstream(_: object, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    """Answer one POST, and print when the reply was sent and how many seconds of calls it covers."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    edges = [instant_of(edge) for edge in EDGES.findall(body)]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/xml")]})
    await send({"type": "http.response.body", "body": BEFORE.encode(), "more_body": True})
    piece: list[str] = []
    for call in calls_between(*edges):
        piece.append(call)
        if len(piece) == 50:
            await send({"type": "http.response.body", "body": "".join(piece).encode(), "more_body": True})
            piece = []
    await send({"type": "http.response.body", "body": ("".join(piece) + AFTER).encode(), "more_body": False})
    print(time.time(), edges[1] - edges[0], flush=True)


def serve_upstream() -> None:
    listener = listen("127.0.0.1", 0)
    print(listener.getsockname()[1], flush=True)
    make_server(upstream, lifespan="off").run(sockets=[listener])


@contextmanager
def running(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def stand(cache_bytes: int) -> Iterator[tuple[httpx.Client, int, Any]]:
    """Run a gateway and its upstream. Yield a client, the gateway's process id and the upstream's output."""
    with running([sys.executable, "-c", UPSTREAM], {}) as behind:
        assert behind.stdout is not None
        with listen("127.0.0.1", 0) as free:
            port = str(free.getsockname()[1])
        settings = {
            "GATEWAY_UPSTREAM_URL": f"http://127.0.0.1:{behind.stdout.readline().strip()}/xml.jsp",
            "GATEWAY_AUTH": "none",
            "GATEWAY_PORT": port,
            "GATEWAY_CACHE_BYTES": f"{cache_bytes}B",
            "GATEWAY_LOG_LEVEL": "warning",
        }
        with (
            running([sys.executable, "-m", "gateway", "serve"], settings) as process,
            httpx.Client(
                base_url=f"http://127.0.0.1:{port}", timeout=120, headers={"Accept-Encoding": "identity"}
            ) as client,
        ):
            for _ in range(200):
                try:
                    client.get("/healthz")
                    break
                except httpx.ConnectError:
                    time.sleep(0.05)
            yield client, process.pid, behind.stdout


def peak(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text("ascii").split("VmHWM:")[1].split()[0]) * 1024


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def shown(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def row(name: str, measured: str, bar: str) -> None:
    print(f"| {name} | {measured} | {bar} |", flush=True)


def drain(port: int) -> None:
    """Read one long reply from the upstream on a port, and discard it."""
    edges = [datetime.fromtimestamp(at, CENTRAL).strftime("%m/%d/%Y %H:%M:%S") for at in (END - 10**7, END)]
    body = f"<StartDate>{edges[0]}</StartDate><EndDate>{edges[1]}</EndDate>"
    with httpx.stream("POST", f"http://127.0.0.1:{port}/", content=body, timeout=60) as answer:
        for _ in answer.iter_raw():
            pass


def translate_rate(count: int = 20_000) -> float:
    """Calls translated per second of CPU time, while another process is as busy as the upstream of an export."""
    body = replies.reply("document", count)
    with running([sys.executable, "-c", UPSTREAM], {}) as busy:
        assert busy.stdout is not None
        reading = f"from benchmarks.export import drain; drain({busy.stdout.readline()})"
        with running([sys.executable, "-c", reading], {}):
            time.sleep(1)
            began = time.process_time()
            for _ in range(3):
                translate.ndjson_of(body)
            return 3 * count / (time.process_time() - began)


def export(count: int) -> None:
    """Export `count` calls as NDJSON and as CSV."""
    for form in ("ndjson", "csv"):
        bars = [translate_rate()]
        with stand(32 * MIB) as (client, pid, printed):
            window = {"start": shown(END - count * SPACING), "end": shown(END), "include": "status", "format": form}
            used, began, lines, size, first = processor_seconds(pid), time.time(), 0, 0, 0.0
            with client.stream("GET", f"/clients/{CODE}/calls", params=window) as answer:
                for piece in answer.iter_raw():
                    first = first or time.time()
                    lines, size = lines + piece.count(b"\n"), size + len(piece)
            seconds, used = time.time() - began, processor_seconds(pid) - used
            landed, span = map(float, printed.readline().split())
            assert lines == count + 1, (lines, count)
            highest = peak(pid) / MIB
        bars.append(translate_rate())
        bar = statistics.mean(bars)
        name = f"{count:,} calls as {form}, {size / 1e6:.0f} MB"
        row(name, f"peak resident memory {highest:.0f} MiB", "200 MiB")
        row(
            f"first row as {form}",
            f"{first - landed:.2f} s after the reply to the first POST, which covers {span / 3600:.1f} h",
            "1 s, 24 h",
        )
        rates = f"{count / seconds:,.0f} calls/s, {count / used:,.0f} calls per CPU second"
        row(f"rate as {form}", f"{rates}: {count / used / bar:.2f} of translation alone ({bar:,.0f})", "0.70")


def held() -> None:
    """Time pages and summaries of 100,000 cached calls. Every request differs, so none hits the response cache."""
    with stand(1024 * MIB) as (client, pid, _):
        path, days = f"/clients/{CODE}/calls", 100_000 * SPACING
        window = {"start": shown(END - days), "end": shown(END)}
        client.get(f"{path}/summary", params=window)

        def timed(name: str, path: str, many: list[dict[str, str]]) -> None:
            times, used = [], processor_seconds(pid)
            for more in many:
                began = time.perf_counter()
                client.get(path, params=window | more).raise_for_status()
                times.append((time.perf_counter() - began) * 1e3)
            each = (processor_seconds(pid) - used) / len(many) * 1e3
            took = f"first {times[0]:.1f} ms, median {statistics.median(times):.1f} ms, CPU time {each:.1f} ms"
            row(f"{name}, 100,000 cached calls", took, "20 ms")

        limits = [{"limit": str(number)} for number in range(90, 120)]
        timed("page of connected calls", path, [{"result": "connected"} | more for more in limits])
        timed("page of calls from one rare number", path, [{"ani": "3120007919"} | more for more in limits])
        zones = ["America/Chicago", "Europe/Berlin", "Asia/Tokyo", "Europe/London", "Asia/Kolkata", "America/Denver"]
        unlike = [{"interval": "day", "tz": zone} for zone in zones]
        timed("summary by day, each in a new time zone", f"{path}/summary", unlike)
        again = [{"interval": "day", "tz": zones[0], "end": shown(END - number)} for number in range(1, 30)]
        timed("summary by day, moving window", f"{path}/summary", again)
        grouped = [{"interval": "day", "groupBy": "result", "end": shown(END - number)} for number in range(1, 30)]
        timed("the same by result", f"{path}/summary", grouped)


def main() -> None:
    print("| case | measured | target |\n|---|---|---|")
    held()
    export(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)


if __name__ == "__main__":
    main()
