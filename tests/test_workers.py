"""`serve --workers`: what several processes of one machine share, add up, survive and end with."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from gateway import tracing
from gateway.__main__ import main
from gateway.commands.serve import MOST_WORKERS, divide
from gateway.metrics import GAUGES, PREFIX, Metrics
from gateway.server import address_of, listen_together
from gateway.settings import Settings, SettingsError
from gateway.simulator.server import PATH, Options, Simulator, create
from gateway.workers import embedded
from gateway.workers.sums import Sums, parse_counted, render_counted
from tests.conftest import serving
from tests.processes import children, gateway, running, wait_for
from tests.test_command_line import ENVIRONMENT, run

CALLS = "/clients/8005550100/calls"
DAY = {"start": "2026-11-01T00:00:00Z", "end": "2026-11-02T00:00:00Z"}
REQUESTS = f'{PREFIX}_requests_total{{method="GET",route="/clients/{{code}}/calls",status="200"}}'


class Fleet:
    """Two workers and their supervisor, in front of a simulator."""

    def __init__(self, process: subprocess.Popen[bytes], address: str, simulator: Simulator, log: Path) -> None:
        self.process = process
        self.log = log
        self.address = address
        self.simulator = simulator

    def get(self, path: str, **parameters: str) -> httpx.Response:
        """Ask over a connection of its own."""
        return httpx.get(f"{self.address}{path}", params=parameters, timeout=30).raise_for_status()

    def herd(self, count: int, **parameters: str) -> list[httpx.Response]:
        """Ask the same many times at once."""
        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(lambda _: self.get(CALLS, **(DAY | parameters)), range(count)))

    def metrics(self) -> dict[str, float]:
        """The value of each sample, by name and labels as they are written."""
        lines = self.get("/metrics").text.splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}

    def workers(self) -> list[int]:
        """The processes of workers; their command line is the supervisor's."""
        return [pid for pid in children(self.process.pid) if command_of(pid) == command_of(self.process.pid)]

    def cache(self) -> list[int]:
        """The process of the cache that is theirs; empty while there is none."""
        return [pid for pid in children(self.process.pid) if pid not in self.workers()]


def command_of(pid: int) -> bytes:
    """The command line of a process; empty if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""


def process_of(answer: httpx.Response) -> str:
    """Who answered: ids of requests begin alike in one process."""
    return answer.headers["x-request-id"][:16]


def cursor_of(answer: httpx.Response) -> str:
    cursor: str = answer.json()["page"]["nextCursor"]
    return cursor


@contextmanager
def two_workers(folder: Path, latency: float = 0.01, **settings: str) -> Iterator[Fleet]:
    log, simulator = folder / "gateway.log", create(Options(latency=latency), time.time)
    with serving(simulator) as upstream:
        variables = {"UPSTREAM_URL": f"http://127.0.0.1:{upstream}{PATH}", "AUTH": "none", "PORT": "0"}
        variables |= {"DRAIN_DELAY": "0s", "LOG_FORMAT": "json"} | settings
        named = {f"GATEWAY_{name}": text for name, text in variables.items()}
        with running(gateway("serve", "--workers", "2"), log, **named) as process:
            wait_for(lambda: '"serving"' in log.read_text("utf-8"), "the supervisor listens")
            line = next(line for line in log.read_text("utf-8").splitlines() if '"serving"' in line)
            yield Fleet(process, json.loads(line)["address"], simulator, log)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    with two_workers(tmp_path) as one:
        yield one


def test_both_workers_answer_and_their_metrics_are_sums_that_look_like_one_processes(fleet: Fleet):
    answers = fleet.herd(40)
    assert len(set(map(process_of, answers))) == 2
    assert len({answer.text.split('"page"')[0] for answer in answers}) == 1
    scrapes = [fleet.get("/metrics") for _ in range(20)]
    assert len(set(map(process_of, scrapes))) == 2
    for scrape in scrapes:
        assert f"{REQUESTS} 40.0\n" in scrape.text
        assert f'{PREFIX}_build_info{{version="0.1.0"}} 1.0\n' in scrape.text
        assert f"{PREFIX}_upstream_limit 8.0\n" in scrape.text
    registry = CollectorRegistry()
    Metrics(registry)
    assert comments(scrapes[0].text) == comments(generate_latest(registry).decode())


def comments(text: str) -> list[str]:
    """Help and type of each series that there is before anything is counted."""
    return [line for line in text.splitlines() if line.startswith("#") and "_created " not in line]


def test_a_herd_over_both_workers_costs_one_post(tmp_path: Path):
    with two_workers(tmp_path, latency=0.3) as fleet:
        costs = []
        for day in range(10, 15):
            before = fleet.simulator.posts
            answers = fleet.herd(30, start=f"2026-10-{day}", end=f"2026-10-{day + 1}")
            assert len(set(map(process_of, answers))) == 2
            costs.append(fleet.simulator.posts - before)
    assert statistics.median(costs) == 1  # a machine that stands still for 100 ms may lose one


def test_no_counter_goes_down_when_a_worker_is_killed_and_replaced(fleet: Fleet):
    fleet.herd(30)
    before = fleet.metrics()
    workers = fleet.workers()
    os.kill(workers[0], signal.SIGKILL)
    wait_for(lambda: len(set(fleet.workers()) - {workers[0]}) == 2, "another worker is there")
    answers = [fleet.get(CALLS, **DAY) for _ in range(30)]
    after = fleet.metrics()
    assert before[REQUESTS] == 30
    assert after[REQUESTS] == 60
    assert after[f'{PREFIX}_request_seconds_count{{route="/clients/{{code}}/calls"}}'] == 60
    assert len(set(map(process_of, answers))) == 2
    counters = re.compile(r"_(total|count|sum|bucket)\b")
    assert [name for name, value in before.items() if counters.search(name) and after[name] < value] == []
    fleet.process.terminate()
    assert fleet.process.wait(30) == 0


def test_a_place_where_workers_end_again_and_again_is_left_out_for_a_while(fleet: Fleet):
    wait_for(lambda: len(set(map(process_of, fleet.herd(20)))) == 2, "both serve")
    stays, goes = fleet.workers()
    os.kill(goes, signal.SIGKILL)
    wait_for(lambda: set(fleet.workers()) - {stays, goes}, "another worker")
    goes = next(iter(set(fleet.workers()) - {stays, goes}))
    os.kill(goes, signal.SIGKILL)
    wait_for(lambda: '"exitCode":-9,"pause":1.0' in fleet.log.read_text("utf-8"), "a pause begins")
    time.sleep(0.1)  # what waits at a place is lost when its pause begins
    fleet.herd(20)
    wait_for(lambda: len(set(map(process_of, fleet.herd(20)))) == 2, "both serve")


def test_a_worker_that_stands_still_keeps_nobody_from_the_sums(fleet: Fleet):
    fleet.herd(30)
    assert fleet.metrics()[REQUESTS] == 30
    os.kill(still := fleet.workers()[0], signal.SIGSTOP)
    try:
        for _ in range(30):
            try:
                text = httpx.get(f"{fleet.address}/metrics", timeout=5).text
            except httpx.TransportError:
                continue  # it was the one that stands still
            break
        assert f"{REQUESTS} 30.0\n" in text
    finally:
        os.kill(still, signal.SIGCONT)


def test_a_cursor_of_one_worker_is_good_at_the_other(fleet: Fleet):
    first = fleet.get(CALLS, limit="5", **DAY)
    pages = [fleet.get(CALLS, cursor=cursor_of(first)) for _ in range(30)]
    assert len(set(map(process_of, pages))) == 2
    assert len({page.text.split('"meta"')[0] for page in pages}) == 1


def test_losing_the_cache_of_the_workers_costs_no_answer_and_another_is_started(fleet: Fleet):
    cache = fleet.cache()
    os.kill(cache[0], signal.SIGKILL)
    fleet.herd(20)
    wait_for(lambda: fleet.cache() not in (cache, []), "another cache is there")
    fleet.herd(20, start="2026-10-01", end="2026-10-02")


def test_workers_and_their_cache_end_with_a_supervisor_that_is_killed(fleet: Fleet):
    processes = [*fleet.workers(), *fleet.cache()]
    wait_for(lambda: len(set(map(process_of, fleet.herd(20)))) == 2, "both serve")
    fleet.process.kill()
    fleet.process.wait()
    wait_for(lambda: not any(lives(pid) for pid in processes), "all have ended")


def lives(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_second_signal_does_not_wait(tmp_path: Path):
    with two_workers(tmp_path, DRAIN_DELAY="60s") as fleet:
        fleet.herd(10)
        fleet.process.terminate()
        wait_for(lambda: not_ready(fleet), "readiness ends")
        assert fleet.process.poll() is None
        fleet.process.terminate()
        assert fleet.process.wait(30) == 0


def not_ready(fleet: Fleet) -> bool:
    return httpx.get(f"{fleet.address}/readyz").status_code == 503


@pytest.mark.parametrize("number", ["0", "-1", "two", "1.5", str(MOST_WORKERS + 1)])
def test_a_bad_number_of_workers_ends_with_2_and_says_so(number: str):
    done = run("serve", "--workers", number)
    assert done.returncode == 2
    assert f"{number!r} is not a whole number from 1 to {MOST_WORKERS}" in done.stderr


SETTINGS = {"GATEWAY_UPSTREAM_URL": "http://127.0.0.1:1/", "GATEWAY_AUTH": "none", "GATEWAY_LOG_LEVEL": "error"}


def test_a_bad_setting_ends_with_2_and_one_line():
    done = run("serve", "--workers", "2", GATEWAY_UPSTREAM_URL="http://127.0.0.1:1/")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "GATEWAY_KEYS_FILE is not set" in done.stderr


def test_a_port_that_somebody_listens_on_ends_with_1_and_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run("serve", "--workers", "2", GATEWAY_PORT=str(taken.getsockname()[1]), **SETTINGS)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "ddress already in use" in done.stderr


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_of_other_workers_is_taken_too(workers: str):
    opened = listen_together("127.0.0.1", 0, 2)
    port = address_of(opened[0]).rpartition(":")[2]
    done = run("serve", "--workers", workers, GATEWAY_PORT=port, **SETTINGS)
    for one in opened:
        one.close()
    assert done.returncode == 1
    assert "ddress already in use" in done.stderr


def test_without_a_server_to_share_it_ends_with_2_and_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(embedded, "find_program", str)
    for name, text in SETTINGS.items():
        monkeypatch.setenv(name, text)
    assert main(["serve", "--workers", "2"]) == 2
    assert "set it, or install valkey-server" in capsys.readouterr().err


def test_tracing_that_is_not_installed_ends_with_2_before_any_worker_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(tracing, "find_spec", lambda _: None)
    for name, text in (SETTINGS | {tracing.ENDPOINTS[0]: "http://127.0.0.1:1"}).items():
        monkeypatch.setenv(name, text)
    assert main(["serve", "--workers", "2"]) == 2
    assert "tracing is not installed" in capsys.readouterr().err


def test_a_server_of_the_wheel_is_found_where_the_system_has_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    assert "valkey-server" in embedded.find_program()


def test_workers_that_cannot_start_end_the_supervisor_with_1():
    script = """\
import sys
from gateway.server import listen_together
from gateway.workers.supervisor import Supervisor
sys.exit(Supervisor(lambda *_: 3, [[one] for one in listen_together("127.0.0.1", 0, 2)]).run())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "no worker can start" in done.stderr


def test_bounds_of_the_machine_and_the_upstream_are_divided():
    parts = divide(Settings(upstream_concurrency=8, request_concurrency=1000, cache_bytes=4000), 3, 1)
    assert [part.upstream_concurrency for part in parts] == [3, 3, 2]
    assert [part.request_concurrency for part in parts] == [333, 333, 333]
    assert [part.cache_bytes for part in parts] == [1000, 1000, 1000]
    assert len({part.signing_key for part in parts}) == 1
    with pytest.raises(SettingsError, match="GATEWAY_UPSTREAM_CONCURRENCY is 8"):
        divide(Settings(), 9, 0)


def counted(change: Callable[[Metrics], object]) -> bytes:
    """What a process has counted after a change."""
    registry = CollectorRegistry()
    change(Metrics(registry))
    return render_counted(registry)


def test_gauges_are_added_or_the_worst_and_those_of_the_dead_are_gone():
    def well(metrics: Metrics) -> None:
        metrics.queue.set(2)

    def ill(metrics: Metrics) -> None:
        metrics.queue.set(3)
        metrics.circuit.set(2)
        metrics.healthy.set(0)
        metrics.shared_up.set(0)
        metrics.keys_file_broken.set(1)

    sums = Sums()
    sums.bury(parse_counted(counted(ill)))
    text = sums.render([parse_counted(counted(well))]).decode()
    assert gauge(text, "upstream_queue_length", "upstream_healthy", "upstream_circuit_state") == [2, 1, 0]
    text = sums.render([parse_counted(counted(well)), parse_counted(counted(ill))]).decode()
    assert gauge(text, "upstream_queue_length", "upstream_healthy", "upstream_circuit_state") == [5, 0, 2]
    assert gauge(text, "cache_shared_up", "keys_file_broken") == [0, 1]


def gauge(text: str, *names: str) -> list[float]:
    return [float(re.findall(rf"^{PREFIX}_{name} (\S+)$", text, re.MULTILINE)[0]) for name in names]


def test_counters_are_those_of_the_dead_too_and_began_with_the_first():
    sums = Sums()
    for number in (1, 2):
        sums.bury(parse_counted(counted(lambda metrics: metrics.posts.labels("ok").inc(number))))  # noqa: B023
    one = parse_counted(counted(lambda metrics: metrics.posts.labels("ok").inc(4)))
    two = parse_counted(counted(lambda metrics: metrics.posts.labels("late").inc(8)))
    text = sums.render([one, two]).decode()
    counts = re.findall(r'upstream_posts_total\{outcome="(\w+)"\} (\S+)', text)
    assert sorted(count for count in counts if count[1] != "0.0") == [
        ("late", "8.0"),
        ("ok", "7.0"),
    ]
    began = [float(found) for found in re.findall(r'upstream_posts_created\{outcome="ok"\} (\S+)', text)]
    assert began[0] < time.time()
    assert len(began) == 1


def test_every_gauge_has_a_rule():
    registry = CollectorRegistry()
    Metrics(registry)
    gauges = {metric.name for metric in registry.collect() if metric.type == "gauge" and metric.name.startswith(PREFIX)}
    added = "requests_in_flight upstream_posts_in_flight upstream_queue_length upstream_limit cache_bytes".split()
    assert gauges == GAUGES.keys() | {f"{PREFIX}_{name}" for name in added}


def test_connections_are_spread_over_sockets_of_one_port():
    opened = listen_together("127.0.0.1", 0, 2)
    clients = [socket.create_connection(opened[0].getsockname()) for _ in range(64)]
    found: Counter[int] = Counter()
    for number, one in enumerate(opened):
        one.setblocking(False)
        while True:
            try:
                one.accept()[0].close()
            except BlockingIOError:
                break
            found[number] += 1
    for closing in (*clients, *opened):
        closing.close()
    assert found.total() == 64
    assert min(found.values()) > 10


def test_lines_of_several_processes_stay_whole():
    script = "from gateway.logs import WholeLines; o = WholeLines(); [o.write((N + '\\n') * 2000) for _ in range(20)]"
    reading, writing = os.pipe()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script.replace("N", repr(letter * 99))], stderr=writing, env=ENVIRONMENT
        )
        for letter in "ab"
    ]
    os.close(writing)
    with os.fdopen(reading, encoding="ascii") as lines:
        assert Counter(lines) == {f"{'a' * 99}\n": 40_000, f"{'b' * 99}\n": 40_000}
    assert [process.wait() for process in processes] == [0, 0]
