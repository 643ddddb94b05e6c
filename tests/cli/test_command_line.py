"""The command line as used by scripts: standard output, standard error and exit code."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from gateway import errors
from gateway.__main__ import main
from gateway.cli import COMMANDS, load
from gateway.cli.check import (
    ADVICE,
    OBSTACLES,
    PLAIN,
    REFUSAL_ADVICE,
    TRUNCATED,
    UP_TO_NOW,
    WITH_STATUS,
    advice_on,
    print_failure,
)
from gateway.cli.demo import demo_paths
from gateway.errors import Obstacle
from gateway.server import address_of, listen, make_server
from gateway.simulator.server import PATH, Options, create
from tests.support.commands import COMMAND, ENVIRONMENT, accept_interrupts, on_terminal, run
from tests.support.paths import ROOT
from tests.support.processes import free_port, wait_for
from tests.support.stand import serving
from tests.support.tools import tool


@contextmanager
def started(*words: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [*COMMAND, *words],
        env=ENVIRONMENT | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=accept_interrupts,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def lines_until(process: subprocess.Popen[str], pattern: str) -> str:
    """Read standard output until a line matches, and return all lines read. Fails if the output ends first."""
    assert process.stdout is not None
    text = ""
    for line in process.stdout:
        text += line
        if re.search(pattern, line):
            return text
    raise AssertionError(f"no line matches {pattern!r} in {text!r}")


@contextmanager
def simulated(*faults: str) -> Iterator[str]:
    """Run the simulator on a free port, in a thread."""
    options = Options(calls_per_day=2000, faults=faults)
    opened = listen("127.0.0.1", 0)
    server = make_server(create(options), lifespan="off")
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened]})
    thread.start()
    try:
        yield f"{address_of(opened)}{PATH}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def refused_port() -> Iterator[int]:
    """A port that is bound but not listening, so that connections are refused."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"example:\n  {load(command).EXAMPLE}" in capsys.readouterr().out


def test_help_lists_every_command_and_loads_no_server():
    script = """\
import sys
from gateway.__main__ import main
try:
    main(["--help"])
finally:
    assert not {"uvicorn", "litestar"} & sys.modules.keys()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(COMMANDS) == re.findall(r"^    (\w+) ", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("variables", "loaded"),
    [
        ({}, set()),
        ({"GATEWAY_CACHE_URL": "redis://127.0.0.1"}, {"redis", "cryptography"}),  # the driver loads it
        ({"GATEWAY_AUTH": "oidc", "GATEWAY_OIDC_ISSUER": "https://issuer.example", "GATEWAY_OIDC_AUDIENCE": "a"},
         {"cryptography", "jwt"}),
    ],
    ids=["nothing", "a shared cache", "tokens"],
)  # fmt: skip
def test_serve_loads_no_library_that_its_settings_do_not_ask_for(variables: dict[str, str], loaded: set[str]):
    script = """\
import os, sys
from gateway.__main__ import parser
from gateway import app, server
from gateway.settings import parse_settings
parser(["serve"])
server.make_server(app.create(parse_settings(os.environ)))
for name in ("redis", "jwt", "cryptography", "faker", "gateway.simulator"):
    if name in sys.modules:
        print(name)
"""
    settings = {"GATEWAY_UPSTREAM_URL": "http://127.0.0.1:9/xml.jsp", "GATEWAY_AUTH": "none"} | variables
    plain = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    done = subprocess.run(
        [sys.executable, "-c", script], env=plain | settings, capture_output=True, text=True, timeout=60, check=True
    )
    assert set(done.stdout.split()) == loaded


NO_HOST = {"GATEWAY_UPSTREAM_URL": "http://127.0.0.1:1/", "GATEWAY_UPSTREAM_PROXY": "http://a..é/"}


@pytest.mark.parametrize(
    ("command", "variables", "named"),
    [
        ("serve", {}, "GATEWAY_UPSTREAM_URL is not set"),
        ("serve", {"GATEWAY_UPSTREAM_URL": "http://127.0.0.1:1/"}, "GATEWAY_KEYS_FILE is not set"),
        (
            "serve",
            {"GATEWAY_PORT": "tcp://10.0.0.1:80"},
            "is not a whole number from 0 to 65535; see docs/settings.md#gateway_port",
        ),
        ("check", {}, "GATEWAY_UPSTREAM_URL is not set"),
        ("check", {"GATEWAY_UPSTREAM_URL": "callbutton"}, "GATEWAY_UPSTREAM_URL: 'callbutton' is not"),
        ("check", {"GATEWAY_UPSTREAM_URL": "http://a..é/"}, "the address of the upstream cannot be used"),
        ("serve", NO_HOST | {"GATEWAY_AUTH": "none"}, "the address of the proxy cannot be used"),
    ],
    ids=[
        "serve without address",
        "serve without auth",
        "serve in Kubernetes",
        "check without address",
        "check bad",
        "check no host",
        "serve no proxy",
    ],
)
def test_bad_settings_end_with_2_and_one_line(command: str, variables: dict[str, str], named: str):
    done = run(command, **variables)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert named in done.stderr


def test_serve_on_a_taken_port_ends_with_1_and_one_line_after_the_log():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = str(taken.getsockname()[1])
        done = run("serve", GATEWAY_UPSTREAM_URL="http://127.0.0.1:1/", GATEWAY_AUTH="none", GATEWAY_PORT=number)
    *logged, last = done.stderr.splitlines()
    assert done.returncode == 1
    assert "ddress already in use" in last
    assert [json.loads(line)["level"] for line in logged] == ["warning", "warning"]
    assert "every consumer that can reach this address sees every client" in logged[0]
    assert "GATEWAY_SIGNING_KEY is not set: cursors, tokens of the change feed, links" in logged[1]


def test_check_of_a_refused_port_ends_with_1_and_plain_words(refused_port: int):
    done = run("check", GATEWAY_UPSTREAM_URL=f"http://127.0.0.1:{refused_port}/xml.jsp")
    assert (done.returncode, done.stderr) == (1, "")
    assert "does not work: calls without status: no connection" in done.stdout
    assert f"what to do: {OBSTACLES[Obstacle.REFUSED]}" in done.stdout


@pytest.mark.parametrize(
    ("address", "advice"),
    [
        ("http://callbutton.invalid/", OBSTACLES[Obstacle.NAME]),
        ("http://255.255.255.255:9/", ADVICE[errors.UpstreamUnreachable]),
        ("https", OBSTACLES[Obstacle.TLS]),
    ],
    ids=["name", "route", "TLS"],
)
def test_check_tells_what_is_in_the_way(address: str, advice: str):
    with simulated() as plain:
        done = run("check", GATEWAY_UPSTREAM_URL=plain.replace("http:", "https:") if address == "https" else address)
    assert (done.returncode, done.stderr) == (1, "")
    assert f"what to do: {advice}" in done.stdout


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        ([], 0, "works: calls with status"),
        (["no-status"], 0, "set GATEWAY_STATUS_FLAG_ELEMENT"),
        (
            ["flag-element=Status"],
            1,
            f"calls with status: the Callbutton server answered ERROR\nwhat to do: {REFUSAL_ADVICE[WITH_STATUS]}",
        ),
        (["unauthorized"], 1, "the server reports: username partner, address 127.0.0.1"),
        (["date-error"], 1, ADVICE[errors.UpstreamRejected]),
        (["error"], 1, ADVICE[errors.UpstreamFailed]),
        (["html"], 1, ADVICE[errors.UpstreamMalformed]),
        (["other-form"], 1, "ask Callbutton to send StartTime as MM/DD/YYYY HH:MM:SS, not as 00/00/0000 00:00 PM"),
        (["ampersand"], 0, "works: calls with status"),
        (["null-dates=refused"], 1, f"Date range not valid\nwhat to do: {REFUSAL_ADVICE[UP_TO_NOW]}"),
        (["reset"], 1, TRUNCATED),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_check_says_what_the_upstream_does(fault: list[str], code: int, said: str):
    with simulated(*fault) as address:
        done = run("check", GATEWAY_UPSTREAM_URL=address)
    assert (code, "") == (done.returncode, done.stderr)
    assert said in done.stdout


def test_every_upstream_error_has_its_own_advice(capsys: pytest.CaptureFixture[str]):
    assert set(errors.UpstreamError.__subclasses__()) == set(ADVICE)
    assert advice_on(errors.Overloaded("too much waits", 5)) == ADVICE[errors.NotSent]
    print_failure(errors.UpstreamTimeout("no answer within 30 s", answering=False), PLAIN)
    assert f"no answer within 30 s\nwhat to do: {ADVICE[errors.UpstreamTimeout]}\n" in capsys.readouterr().out


def test_the_demo_answers_its_first_command_and_ends_cleanly():
    with started("demo", "--port", "0", "--simulator-port", "0") as demo:
        text = lines_until(demo, "Ctrl-C")
        commands = re.findall(r"curl -H 'X-API-Key: (cbg_.*)' '(.*)'", text)
        assert len(commands) == 3
        assert f"API reference: {commands[0][1].partition('/clients')[0]}/docs" in text
        assert re.search(rf"simulated Callbutton server:\nhttp://127\.0\.0\.1:[1-9]\d+{PATH}\n", text)
        key, address = commands[0]
        request = urllib.request.Request(address, headers={"X-API-Key": key})
        with urllib.request.urlopen(request, timeout=20) as answer:
            page = json.load(answer)
        demo.send_signal(signal.SIGINT)
        _, logged = demo.communicate(timeout=20)
    assert page["data"]
    assert demo.returncode == 0
    assert [json.loads(line)["event"] for line in logged.splitlines()] == ["request"]
    assert key not in logged


def test_the_demo_takes_port_and_cors_origins_from_the_environment():
    port, origin = free_port(), "https://app.example"
    variables = {"GATEWAY_PORT": str(port), "GATEWAY_CORS_ORIGINS": origin, "GATEWAY_LOG_FORMAT": "console"}
    with started("demo", "--simulator-port", "0", **variables) as demo:
        lines_until(demo, "Ctrl-C")
        request = urllib.request.Request(f"http://127.0.0.1:{port}/healthz", headers={"Origin": origin})
        with urllib.request.urlopen(request, timeout=20) as answer:
            assert answer.headers["Access-Control-Allow-Origin"] == origin
        demo.send_signal(signal.SIGINT)
        _, logged = demo.communicate(timeout=20)
    assert "/healthz" in logged
    assert not logged.startswith("{")


def test_the_port_option_of_the_demo_wins_over_the_environment():
    taken = str(free_port())
    with started("demo", "--port", "0", "--simulator-port", "0", GATEWAY_PORT=taken) as demo:
        assert f":{taken}" not in lines_until(demo, "Ctrl-C")


@pytest.mark.parametrize(
    ("today", "start"),
    [
        (datetime(2026, 11, 23, tzinfo=UTC), "2026-11-01T05:00:00Z"),
        (datetime(2026, 11, 1, 8, tzinfo=UTC), "2025-11-02T05:00:00Z"),
        (datetime(2025, 1, 1, tzinfo=UTC), "2024-11-03T05:00:00Z"),
    ],
    ids=["after", "in the night itself", "in the next year"],
)
def test_the_demo_begins_with_the_last_autumn_night(today: datetime, start: str):
    assert f"start={start}" in demo_paths(today)[0]


def test_openapi_prints_the_same_document_twice():
    written, as_json = run("openapi"), run("openapi", "--json")
    assert (written.returncode, as_json.returncode) == (0, 0)
    assert yaml.safe_load(written.stdout) == json.loads(as_json.stdout)


@pytest.mark.parametrize("command", ["simulate", "demo"])
def test_a_port_that_is_none_ends_with_2_and_one_line(command: str, capsys: pytest.CaptureFixture[str]):
    port = "--port" if command == "simulate" else "--simulator-port"
    code = main([command, port, "99999"])
    assert (code, capsys.readouterr()) == (
        2,
        ("", "callbutton-gateway: 99999 is not a port: choose one from 0 to 65535\n"),
    )


@pytest.mark.parametrize(
    "words",
    [
        ["--clients", "-1"],
        ["--clients", "0"],
        ["--calls-per-day", "-5"],
        ["--history", "-1"],
        ["--history", "nan"],
        ["--latency", "-0.1"],
        ["--latency", "inf"],
        ["--fault", "error:2"],
        ["--fault", "error:nan"],
        ["--fault", "error:"],
        ["--fault", "error:half"],
        ["--fault", "nothing"],
        ["--allow", "everybody"],
        ["--port", "-1"],
    ],
    ids=" ".join,
)
def test_an_option_that_the_simulator_cannot_use_ends_with_2_and_one_line(
    words: list[str], capsys: pytest.CaptureFixture[str]
):
    code = main(["simulate", "--port", "0", *words])
    out, err = capsys.readouterr()
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert words[1].partition(":")[0] in err


def test_help_says_where_the_command_is(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert ".venv/bin/callbutton-gateway" in capsys.readouterr().out


def test_a_simulator_on_a_taken_port_ends_with_1_and_one_line(capsys: pytest.CaptureFixture[str]):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code = main(["simulate", "--port", str(port)])
    assert (code, capsys.readouterr()) == (
        1,
        (
            "",
            f"callbutton-gateway: 127.0.0.1 port {port}: Address already in use: choose another port\n",
        ),
    )


def test_a_file_that_is_missing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "keys.toml"
    code = main(["keys", "list", "--file", str(path)])
    assert (code, capsys.readouterr()) == (1, ("", f"callbutton-gateway: {path}: No such file or directory\n"))


def test_advice_on_a_path_that_the_server_does_not_have():
    assert "path of GATEWAY_UPSTREAM_URL" in advice_on(errors.UpstreamFailed("HTTP status 404", status=404))


def test_make_help_lists_every_target_and_is_the_default():
    done = subprocess.run(["make", "-C", str(ROOT), "--no-print-directory"], capture_output=True, text=True, check=True)
    listed = re.findall(r"^  (\S+)  +\S", done.stdout, re.MULTILINE)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert listed == targets


def test_check_makes_a_report_for_people_and_for_programs(tmp_path: Path):
    file = tmp_path / "report.json"
    with simulated("flag-element=Status") as address:
        text = run("check", "--report", "--json", str(file), GATEWAY_UPSTREAM_URL=address)
        alone = run("check", "--report", "--client", "8005550101", "--json", "-", GATEWAY_UPSTREAM_URL=address)
    assert (text.returncode, text.stderr, alone.returncode, alone.stderr) == (0, "", 0, "")
    written, printed = json.loads(file.read_text("utf-8")), json.loads(alone.stdout)
    for report in (written, printed):
        settings = [one["setting"] for one in report["findings"] if one["name"] == "status-flag"]
        assert settings == ["GATEWAY_STATUS_FLAG_ELEMENT=Status"]
        assert report["failure"] is None
    assert {code for post in written["posts"] for code in post["clientCodes"]} >= {"*", "8005550101"}
    assert printed["posts"][0]["clientCodes"] == ["8005550101"]
    assert text.stdout.startswith(f"{address}: {len(written['posts'])} POSTs, ")
    for one in written["findings"]:
        assert f"{one['name']}: {one['value'] or 'unknown'}\n  {one['text']}\n" in text.stdout
    assert "\nGATEWAY_STATUS_FLAG_ELEMENT=Status\n" in text.stdout.partition("Settings that follow:")[2]


def test_a_report_on_a_server_that_does_not_answer_ends_with_1_and_advice(refused_port: int):
    address = f"http://127.0.0.1:{refused_port}/xml.jsp"
    text = run("check", "--report", GATEWAY_UPSTREAM_URL=address)
    alone = run("check", "--report", "--json", "-", GATEWAY_UPSTREAM_URL=address)
    assert (text.returncode, text.stderr, alone.returncode, alone.stderr) == (1, "", 1, "")
    assert f"what to do: {OBSTACLES[Obstacle.REFUSED]}" in text.stdout
    assert json.loads(alone.stdout)["failure"]["advice"] == OBSTACLES[Obstacle.REFUSED]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--json", "-"], "add --report"),
        (["--client", "8005550100"], "add --report"),
        (["--watch", "1h"], "add --report"),
        (["--report", "--watch", "soon"], "--watch 'soon' is not a duration such as 10m or 1h, at most 22h"),
        (["--report", "--watch", "23h"], "--watch '23h' is not a duration"),
        (["--report", "--client", "a b"], "'a b' is not a client code: letters, digits"),
        (["--report", "--client", ""], "'' is not a client code"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_an_option_that_the_report_cannot_use_ends_with_2_and_one_line(words: list[str], named: str):
    done = run("check", *words, GATEWAY_UPSTREAM_URL="http://127.0.0.1:9/xml.jsp")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert named in done.stderr


def test_a_report_that_cannot_be_written_ends_with_1_before_the_first_post(tmp_path: Path):
    simulator = create(Options())
    with serving(simulator) as port:
        address = f"http://127.0.0.1:{port}{PATH}"
        done = run("check", "--report", "--json", str(tmp_path / "none" / "a.json"), GATEWAY_UPSTREAM_URL=address)
    assert (simulator.posts, done.returncode, done.stdout, len(done.stderr.splitlines())) == (0, 1, "", 1)
    assert "No such file or directory" in done.stderr


@pytest.mark.parametrize("before", [None, "an older report"])
def test_a_report_that_is_interrupted_ends_with_130_and_leaves_its_file_as_it_was(tmp_path: Path, before: str | None):
    simulator, file = create(Options(faults=("hang",))), tmp_path / "report.json"
    if before:
        file.write_text(before)
    with serving(simulator) as port:
        address = f"http://127.0.0.1:{port}{PATH}"
        with started("check", "--report", "--json", str(file), GATEWAY_UPSTREAM_URL=address) as report:
            wait_for(lambda: simulator.posts, "the first POST is sent")
            report.send_signal(signal.SIGINT)
            out, err = report.communicate(timeout=60)
    assert (report.returncode, out, err) == (130, "", "callbutton-gateway: interrupted: there is no report\n")
    assert (file.read_text() if file.exists() else None) == before


def test_a_check_that_is_interrupted_ends_with_130():
    simulator = create(Options(faults=("hang",)))
    with serving(simulator) as port, started("check", GATEWAY_UPSTREAM_URL=f"http://127.0.0.1:{port}{PATH}") as check:
        wait_for(lambda: simulator.posts, "the first POST is sent")
        check.send_signal(signal.SIGINT)
        check.communicate(timeout=60)
    assert check.returncode == 130


def test_an_interrupt_ends_the_watch_and_there_is_a_report(tmp_path: Path):
    file = tmp_path / "report.json"
    with simulated() as address:
        words = ["check", "--report", "--watch", "20h", "--json", str(file)]
        code, _ = on_terminal(*words, interrupt_at="watching for late calls", GATEWAY_UPSTREAM_URL=address)
    assert code == 0
    found = {one["name"]: one["value"] for one in json.loads(file.read_text("utf-8"))["findings"]}
    assert (found["end-date"], found["late-calls"], found["order"]) == ("inclusive", None, "ascending")


def test_the_report_shows_its_progress_on_a_terminal():
    with simulated() as address:
        code, shown = on_terminal("check", "--report", GATEWAY_UPSTREAM_URL=address)
    assert code == 0
    assert "POST 1 of at most 40: reachable" in shown
    assert re.search(r"POST \d+ of at most 40: fold-order", shown)
    assert shown.endswith("\r\x1b[K")


def test_faults_of_a_simulator_change_by_the_command_in_its_help(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["simulate", "--help"])
    tool("curl")
    command = next(line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("curl"))
    with simulated("error@8005550101") as address:
        local = command.replace("http://127.0.0.1:8081", address.removesuffix(PATH))
        done = subprocess.run(["bash", "-c", local], capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout) == {"drip": 0.5}
