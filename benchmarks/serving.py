"""Throughput, CPU time and latency of hits, against reference servers: the server on one core, the load on another.

Each case is compared with the raw application in the same round. Noise from other workloads on the machine therefore
affects single rounds, but hardly the median of the ratios.

Needs `wrk`, `nginx` and `varnishd` (Debian: wrk nginx-light varnish). Cases whose program is not installed are skipped.
`--write` updates the table in docs/performance.md and draws `benchmarks/hits.svg`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks import plots
from benchmarks.support import free_port, reachable

FLOOR = "a raw ASGI application on uvicorn"
PEERS = (
    FLOOR,
    "a minimal FastAPI service",
    "nginx `proxy_cache` + raw application",
    "Varnish + raw application",
)
OURS = (
    "gateway, exact repeat",
    "gateway, moving window",
    "gateway, 304 Not Modified",
    "gateway, zstd compression",
)
BASELINE = "gateway (baseline), exact repeat"
PAGE, PLOT = Path(__file__).parent.parent / "docs" / "performance.md", Path(__file__).parent / "hits.svg"
MARKERS = "<!-- hits -->\n", "\n<!-- /hits -->"
OF_CONNECTION = ("date", "server", "transfer-encoding", "connection")  # headers that the server adds
ROUNDS = 9
SECONDS = 3
PAUSE = 0.3  # seconds; lets the previous server close its connections
CONNECTIONS = 32
LIMIT = 22  # calls: a page of about 14 kB
DAY = "start=2026-11-01T05:00:00Z"
EXACT = f"/clients/8005550100/calls?{DAY}&end=2026-11-02T05:00:00Z&limit={LIMIT}"
MOVING = f"/clients/8005550100/calls?{DAY}&limit={LIMIT}"
SIMULATOR = "http://127.0.0.1:{port}/cb/main/jsp/xml/xml.jsp"
NGINX = """\
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{ worker_connections 256; }}
http {{
  access_log {folder}/access.log;
  proxy_cache_path {folder}/cache keys_zone=calls:1m;
  proxy_temp_path {folder}/temp; client_body_temp_path {folder}/body; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream raw {{ server 127.0.0.1:{raw}; keepalive 8; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://raw; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_cache calls; proxy_cache_valid 200 1h; proxy_ignore_headers Cache-Control Vary;
    }}
  }}
}}
"""
VCL = """\
vcl 4.1;
backend default {{ .host = "127.0.0.1"; .port = "{raw}"; }}
sub vcl_recv {{ unset req.http.Authorization; unset req.http.X-API-Key; return (hash); }}
sub vcl_backend_response {{
  unset beresp.http.Cache-Control; unset beresp.http.Vary; set beresp.ttl = 1h; set beresp.uncacheable = false;
}}
"""


class Case(NamedTuple):
    """A server, its process group, and the request to send to it."""

    name: str
    group: int
    url: str
    headers: tuple[str, ...] = ()


class Measured(NamedTuple):
    """One round of load: requests per second, latency in milliseconds, and microseconds of server CPU time per request.

    Of these figures, CPU time is the least affected by other workloads on the machine.
    """

    rate: float
    p50: float
    p99: float
    cpu: float


def pinned(core: int, *command: str) -> list[str]:
    """Wrap a command so that it runs on one core."""
    cores = sorted(os.sched_getaffinity(0))
    return ["taskset", "-c", str(cores[core % len(cores)]), *command]


@contextmanager
def running(
    port: int, *command: str, log: Path, cwd: str = ".", **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server on the servers' core. Yield once it listens; terminate it on exit."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            pinned(0, *command),
            stdout=out,
            stderr=out,
            env={**os.environ, **environment},
            start_new_session=True,
            cwd=cwd,
        )
        try:
            while not reachable(port):
                if process.poll() is not None:
                    raise RuntimeError(f"{command} ended: {log.read_text()[-2000:]}")
                time.sleep(0.02)
            yield process
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(30)


def get(url: str, headers: tuple[str, ...] = ()) -> tuple[list[tuple[str, str]], bytes]:
    """Send one GET. Return the headers and the body."""
    asked = urllib.request.Request(url, headers=dict(line.split(": ", 1) for line in headers))
    with urllib.request.urlopen(asked, timeout=60) as answer:
        return [(name.lower(), value) for name, value in answer.getheaders()], answer.read()


def load(case: Case, seconds: int = SECONDS) -> Measured:
    """Load one case with wrk for some seconds."""
    options = [option for header in case.headers for option in ("-H", header)]
    command = pinned(
        1, "wrk", "--timeout", "20s", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency", *options, case.url
    )
    before = cpu_seconds(case.group)
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 60).stdout
    spent = cpu_seconds(case.group) - before
    if (bad := re.search(r"Non-2xx or 3xx responses: (\d+)|Socket errors: (.*)", text)) is not None:
        raise RuntimeError(f"{case.name}: {bad[0]}")
    rate, count = re.search(r"Requests/sec:\s+([\d.]+)", text), re.search(r"(\d+) requests in", text)
    assert rate
    assert count
    p50, p99 = (_milliseconds(text, share) for share in (50, 99))
    return Measured(float(rate[1]), p50, p99, spent / max(1, int(count[1])) * 1e6)


def cpu_seconds(group: int) -> float:
    """The CPU time used so far by a process group, in seconds."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            words = stat.read_text("ascii", "replace").rpartition(")")[2].split()
            if int(words[2]) == group:
                ticks += int(words[11]) + int(words[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _milliseconds(text: str, share: int) -> float:
    found = re.search(rf"{share}%\s+([\d.]+)(us|ms|s)", text)
    assert found
    return float(found[1]) * {"us": 0.001, "ms": 1, "s": 1000}[found[2]]


def gateway_environment(upstream: str, folder: Path) -> tuple[dict[str, str], str]:
    """The settings of a gateway with access keys, and the header with a valid key."""
    rights = [word for scope in ("calls", "personal", "status") for word in ("--scope", scope)]
    rate, file = ("--rate", "100000000/minute"), ("--file", str(folder / "keys.toml"))
    made = subprocess.run(
        [sys.executable, "-m", "gateway", "keys", "new", "dashboard", "--client", "*", *rights, *rate, *file],
        capture_output=True,
        text=True,
        check=True,
    )
    return {
        "GATEWAY_UPSTREAM_URL": upstream,
        "GATEWAY_KEYS_FILE": str(folder / "keys.toml"),
        "GATEWAY_SIGNING_KEY": secrets.token_hex(16),
        "GATEWAY_LOG_FORMAT": "json",
    }, f"X-API-Key: {made.stdout.strip()}"


def measure(cases: list[Case], rounds: int, seconds: int) -> dict[str, list[Measured]]:
    """Measure all cases in each round."""
    found: dict[str, list[Measured]] = {case.name: [] for case in cases}
    for case in cases:
        load(case, 1)
    for _ in range(rounds):
        for case in cases:
            time.sleep(PAUSE)
            found[case.name].append(load(case, seconds))
        print(".", end="", flush=True, file=sys.stderr)
    return found


def medians(rows: list[Measured], floor: list[Measured] | None = None) -> Measured:
    """Medians over the rounds: of each figure, or of its ratio to `floor` in the same round."""
    if floor is not None:
        rows = [Measured(*(a / b for a, b in zip(*pair, strict=True))) for pair in zip(rows, floor, strict=True)]
    return Measured(*map(statistics.median, zip(*rows, strict=True)))


def peers(stack: ExitStack, folder: Path, held: Path, upstream: str) -> list[Case]:
    """Start the reference servers."""
    cases = []

    def start(name: str, port: int, command: tuple[str, ...]) -> None:
        server = stack.enter_context(running(port, *command, log=folder / f"{port}.log"))
        cases.append(Case(name, server.pid, f"http://127.0.0.1:{port}{EXACT}"))

    def peer(kind: str, given: str) -> tuple[int, tuple[str, ...]]:
        port = free_port()
        return port, (sys.executable, "-m", "benchmarks.peers", kind, str(port), given)

    raw, command = peer("raw", str(held))
    start(PEERS[0], raw, command)
    start(PEERS[1], *peer("minimal", upstream))
    if nginx := shutil.which("nginx", path="/usr/sbin:/usr/bin"):
        port = free_port()
        (folder / "nginx.conf").write_text(NGINX.format(folder=folder, raw=raw, port=port))
        start(PEERS[2], port, (nginx, "-c", str(folder / "nginx.conf")))
    if varnish := shutil.which("varnishd", path="/usr/sbin:/usr/bin"):
        port = free_port()
        (folder / "cache.vcl").write_text(VCL.format(raw=raw))
        place = ("-f", str(folder / "cache.vcl"), "-n", str(folder / "v"))
        start(PEERS[3], port, (varnish, "-F", "-a", f"127.0.0.1:{port}", *place))
    return cases


def hits(rounds: int, seconds: int, baseline: Path | None) -> dict[str, list[Measured]]:
    """Measure hits. All servers run at the same time, but only one is under load."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        folder.chmod(0o755)
        simulator, port = free_port(), free_port()
        python = sys.executable
        stack.enter_context(
            running(simulator, python, "-m", "gateway", "simulate", "--port", str(simulator), log=folder / "sim.log")
        )
        upstream = SIMULATOR.format(port=simulator)
        environment, opened = gateway_environment(upstream, folder)
        command = (python, "-m", "gateway", "serve")
        gateway = stack.enter_context(
            running(port, *command, log=folder / "gateway.log", **environment | {"GATEWAY_PORT": str(port)})
        )
        base = f"http://127.0.0.1:{port}"
        get(base + EXACT, (opened,))
        headers, body = get(base + EXACT, (opened,))
        sent = [pair for pair in headers if pair[0] not in OF_CONNECTION]
        print(f"page: {len(body)} bytes", file=sys.stderr)
        held = folder / "held.json"
        held.write_text(json.dumps({"headers": sent, "body": body.decode()}))
        etag = dict(headers)["etag"]
        get(base + MOVING, (opened,))
        ours = [
            Case(OURS[0], gateway.pid, base + EXACT, (opened,)),
            Case(OURS[1], gateway.pid, base + MOVING, (opened,)),
            Case(OURS[2], gateway.pid, base + EXACT, (opened, f"If-None-Match: {etag}")),
            Case(OURS[3], gateway.pid, base + EXACT, (opened, "Accept-Encoding: zstd")),
        ]
        if baseline is not None:
            ours.append(of_baseline(stack, folder, baseline, environment, opened))
        others = peers(stack, folder, held, upstream)
        found = measure([others[0], *ours, *others[1:]], rounds, seconds)
        return {case.name: found[case.name] for case in [*others, *ours]}


def of_baseline(stack: ExitStack, folder: Path, checkout: Path, environment: dict[str, str], opened: str) -> Case:
    """Start the gateway of another checkout, in its own environment if it has one."""
    own, port = checkout / ".venv" / "bin" / "python", free_port()
    command = (str(own) if own.exists() else sys.executable, "-m", "gateway", "serve")
    settings = environment | {"GATEWAY_PORT": str(port), "PYTHONPATH": str(checkout)}
    server = stack.enter_context(running(port, *command, log=folder / "baseline.log", cwd=str(checkout), **settings))
    url = f"http://127.0.0.1:{port}{EXACT}"
    get(url, (opened,))
    return Case(BASELINE, server.pid, url, (opened,))


def table(ratios: dict[str, Measured]) -> str:
    """Format the ratios to the raw application as a Markdown table."""
    lines = ["| server | rate | CPU time | p99 |", "|---|---|---|---|"]
    lines += [f"| {name} | {one.rate:.2f} | {one.cpu:.2f} | {one.p99:.1f} |" for name, one in ratios.items()]
    return "\n".join(lines)


def rewritten(text: str, figures: str) -> str:
    """Replace the figures between the markers of the page."""
    before, _, rest = text.partition(MARKERS[0])
    _, _, after = rest.partition(MARKERS[1])
    return before + MARKERS[0] + figures + MARKERS[1] + after


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("--rounds", type=int, default=ROUNDS)
    reader.add_argument("--seconds", type=int, default=SECONDS)
    reader.add_argument("--write", action="store_true", help="update docs/performance.md and draw the plot")
    reader.add_argument(
        "--baseline", type=Path, metavar="DIR", help="another checkout to compare the exact repeat with"
    )
    given = reader.parse_args()
    ratios: dict[str, Measured] = {}
    if not shutil.which("wrk"):
        print("hits skipped: wrk is not installed")
    else:
        found = hits(given.rounds, given.seconds, given.baseline and given.baseline.resolve())
        print(file=sys.stderr)
        for name, one in {name: medians(rows) for name, rows in found.items()}.items():
            times = f"p50 {one.p50:6.2f} ms  p99 {one.p99:6.2f} ms  {one.cpu:5.0f} us CPU"
            print(f"{name:40} {one.rate:9.0f}/s  {times}")
        ratios = {name: medians(rows, found[FLOOR]) for name, rows in found.items()}
        print(table(ratios))
        if BASELINE in found:
            ratio = medians(found[OURS[0]], found[BASELINE])
            print(f"\nexact repeat relative to the baseline: rate {ratio.rate:.2f}, CPU time {ratio.cpu:.2f}")
    ratios.pop(BASELINE, None)
    if given.write and set(ratios) == {*PEERS, *OURS}:
        PAGE.write_text(rewritten(PAGE.read_text("utf-8"), table(ratios)), "utf-8")
        PLOT.write_text(plots.bars({name: one.rate for name, one in ratios.items()}), "utf-8")


if __name__ == "__main__":
    main()
