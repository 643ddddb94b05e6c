"""The systemd unit and the nginx configuration of docs/systemd: checked by systemd-analyze, and run together."""

from __future__ import annotations

import re
import subprocess
import sys
from configparser import RawConfigParser
from contextlib import ExitStack
from pathlib import Path

import httpx

from gateway.guard import Limits
from gateway.settings import parse_settings
from gateway.simulator.server import PATH, Options, create
from tests.support.compose import running_nginx
from tests.support.paths import ROOT
from tests.support.processes import answers, free_port, gateway, running, wait_for
from tests.support.servers import running as serving_cache
from tests.support.servers import valkey
from tests.support.stand import serving
from tests.support.tools import tool

FOLDER = ROOT / "docs" / "systemd"
UNIT = FOLDER / "callbutton-gateway@.service"
PROGRAM = "/opt/callbutton-gateway/bin/callbutton-gateway"
MAX_EXPOSURE = 2.5


def analyze(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze on the unit, with the program where it is here."""
    installed = tmp_path / UNIT.name
    here = Path(sys.executable).with_name("callbutton-gateway")
    installed.write_text(UNIT.read_text("utf-8").replace(PROGRAM, str(here)), "utf-8")
    command = [tool("systemd-analyze", "systemd"), *words, str(installed)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def variables(port: int) -> dict[str, str]:
    """Return the variables that the unit sets for a port."""
    words = [
        word
        for text in re.findall(r"^Environment=(.*)$", UNIT.read_text("utf-8"), re.MULTILINE)
        for word in text.split()
    ]
    return dict(word.replace("%i", str(port)).split("=", 1) for word in words)


def test_systemd_finds_nothing_in_the_unit(tmp_path: Path):
    done = analyze(tmp_path, "verify", "--man=no")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_unit_is_hardened(tmp_path: Path):
    done = analyze(tmp_path, "security", "--offline=true", "--no-pager")
    (level,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", done.stdout)
    assert float(level) <= MAX_EXPOSURE


def test_a_unit_may_end_after_its_longest_flight():
    parser = RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(UNIT.read_text("utf-8"))
    settings = parse_settings(variables(8081))
    longest = settings.drain_delay + Limits().shutdown_timeout + settings.upstream_deadline
    assert parser.getint("Service", "TimeoutStopSec") > longest
    assert parser["Service"]["ExecStart"] == f"{PROGRAM} serve"
    assert parser["Service"]["EnvironmentFile"] == "/etc/callbutton-gateway/env"


def test_two_units_behind_nginx_share_their_cache(tmp_path: Path):
    front, *ports = (free_port() for _ in range(3))
    keys = tmp_path / "keys.toml"
    made = subprocess.run(
        gateway("keys", "new", "one", "--client", "*", "--scope", "calls", "--file", str(keys)),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    key = made.stdout.split()[-1]
    with ExitStack() as stack:
        upstream = stack.enter_context(serving(create(Options(history=60))))
        cache = stack.enter_context(serving_cache(valkey()))
        for port in ports:
            settings = variables(port) | {
                "GATEWAY_KEYS_FILE": str(keys),
                "GATEWAY_UPSTREAM_URL": f"http://127.0.0.1:{upstream}{PATH}",
                "GATEWAY_CACHE_URL": cache.url,
                "GATEWAY_SIGNING_KEY": "k" * 32,
            }
            stack.enter_context(running(gateway("serve"), tmp_path / f"{port}.log", **settings))
        wait_for(lambda: all(answers(f"http://127.0.0.1:{port}/readyz") for port in ports), "both units", 120)
        text = (FOLDER / "nginx.conf").read_text("utf-8")
        for documented, port in zip(("listen 8080", "127.0.0.1:8081", "127.0.0.1:8082"), (front, *ports), strict=True):
            assert text.count(documented) == 1
            text = text.replace(documented, documented.replace(documented[-4:], str(port)))
        text = text.replace("listen ", "listen 127.0.0.1:")
        stack.enter_context(running_nginx(tmp_path, front, f"events {{}}\nhttp {{\n{text}\n}}\n"))
        address = f"http://127.0.0.1:{front}"
        window = {"start": "2026-11-01", "end": "2026-11-02"}
        for _ in range(4):
            page = httpx.get(
                f"{address}/clients/8005550100/calls", params=window, headers={"X-API-Key": key}, timeout=60
            )
            assert page.status_code == 200
        assert httpx.get(f"{address}/metrics", timeout=60).status_code == 404
        scrapes = [httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=60).text for port in ports]
        assert all('route="/clients/{code}/calls",status="200"' in scrape for scrape in scrapes)
        posts = re.findall(
            r'^callbutton_gateway_upstream_posts_total{outcome="ok"} (\S+)$', "".join(scrapes), re.MULTILINE
        )
        assert sorted(posts) == ["0.0", "1.0"]
