"""The web console, used in a real browser, and its headers."""

import gzip
import json
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from gateway import app
from gateway.access import SCOPES
from gateway.api import console
from gateway.settings import Settings, SettingsError
from gateway.simulator.server import PATH, Options, Simulator, create
from tests.support.consumers import Member, keys_file
from tests.support.issuer import issuing
from tests.support.paths import NODE, ROOT
from tests.support.stand import Make, serving
from tests.support.tools import need, tool

CALLS_PER_DAY = 20_000  # of a client: a call every 4 seconds
MAX_BYTES = 120_000  # of everything that the console loads, compressed


def test_the_console_can_be_switched_off(stand: Make):
    assert stand(console="off").client.get("/console").status_code == 404


def test_only_the_files_of_the_page_are_served(stand: Make):
    client = stand().client
    assert client.get("/console/console.js").status_code == client.get("/console/console.css").status_code == 200
    assert client.get("/console/index.html").status_code == client.get("/console/..%2f__init__.py").status_code == 404


def test_the_console_may_reach_this_gateway_alone(stand: Make):
    policy = stand().client.get("/console").headers["Content-Security-Policy"]
    assert "connect-src 'self';" in policy
    assert "unsafe" not in policy


def test_with_a_client_id_the_console_may_reach_the_issuer_too():
    settings = Settings(
        upstream_url="http://127.0.0.1:1/x",
        auth="oidc",
        oidc_issuer="https://id.example/realms/calls",
        oidc_audience="calls",
        console_oidc_client_id='con"sole',
        signing_key="k" * 32,
    )
    with serving(app.create(settings)) as port:
        page = httpx.get(f"http://127.0.0.1:{port}/console", timeout=60)
    assert "connect-src 'self' https://id.example;" in page.headers["Content-Security-Policy"]
    assert 'data-oidc-issuer="https://id.example/realms/calls" data-oidc-client-id="con&quot;sole"' in page.text


def test_a_client_id_without_an_issuer_stops_the_start():
    settings = Settings(
        upstream_url="http://127.0.0.1:1/x", auth="none", console_oidc_client_id="c", signing_key="k" * 32
    )
    with pytest.raises(SettingsError, match="GATEWAY_AUTH with `oidc`"):
        app.create(settings)


def test_the_console_is_small():
    loaded = ["index.html", "console.js", "console.css"]
    sizes = [len(gzip.compress((console.STATIC / name).read_bytes(), 9)) for name in loaded]
    assert sum(sizes) <= MAX_BYTES


def test_the_wheel_holds_the_built_page_alone(tmp_path: Path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60)
    (wheel,) = tmp_path.glob("*.whl")
    held = {
        name.removeprefix("gateway/api/console/") for name in zipfile.ZipFile(wheel).namelist() if "/console/" in name
    }
    assert held == {"__init__.py", *(f"static/{path.name}" for path in Path(str(console.STATIC)).iterdir())}


def test_the_built_page_is_that_of_the_sources(tmp_path: Path):
    folder = ROOT / "gateway" / "api" / "console"
    need((folder / "node_modules").exists(), "npm ci in gateway/api/console")
    built = {path.name: path.read_bytes() for path in (folder / "static").iterdir()}
    subprocess.run([tool("npm"), "run", "check"], cwd=folder, check=True, capture_output=True, timeout=300)
    command = [tool("node"), "build.mjs", str(tmp_path / "static")]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=120)
    assert {path.name: path.read_bytes() for path in (tmp_path / "static").iterdir()} == built


@pytest.fixture
def upstream() -> Iterator[tuple[Simulator, str]]:
    """A simulator on the real clock, so that calls arrive while a page is open."""
    simulator = create(Options(clients=2, calls_per_day=CALLS_PER_DAY, history=1.2), time.time)
    with serving(simulator) as port:
        yield simulator, f"http://127.0.0.1:{port}{PATH}"


def test_people_work_with_calls_in_a_browser(upstream: tuple[Simulator, str], tmp_path: Path):
    need((NODE / "node_modules" / "playwright-core").exists(), "npm ci in tests/node")
    simulator, url = upstream
    reader, locked = Member("reader", scopes=SCOPES), Member("locked", clients=("8005550101",), scopes=("calls",))
    settings = Settings(
        upstream_url=url, auth="keys", keys_file=keys_file(tmp_path, reader, locked), signing_key="k" * 32
    )
    with ExitStack() as stack:
        base = f"http://127.0.0.1:{stack.enter_context(serving(app.create(settings)))}"
        command = [
            tool("node"),
            str(NODE / "console.mjs"),
            tool("chromium"),
            base,
            reader.key,
            locked.key,
            str(tmp_path),
        ]
        process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        last = ""
        for line in process.stdout or ():
            if line.startswith("> "):
                simulator.misbehave(*(["http-503"] if line.strip() == "> down" else []))
            last = line
    assert process.returncode == 0
    seen = json.loads(last)
    assert set(seen["origins"]) == {base}
    assert seen["complaints"] == []
    assert {name: found for name, found in seen["violations"].items() if found} == {}
    assert {name: pixels for name, pixels in seen["overflow"].items() if pixels > 0} == {}
    assert "not accepted" in seen["rejected"]
    assert reader.key not in seen["address"]
    for name in ("calls", "missedFigure", "callers", "top"):
        shown, expected = seen[name]
        assert shown == expected, name
    assert "start=" in seen["zoomed"]
    assert seen["results"] == ["no answer"]
    assert "no answer" in seen["keptFilter"]
    assert seen["hours"].strip().startswith("Most: ")
    assert seen["downloaded"]
    assert seen["file"] == "calls-yesterday.csv"
    assert seen["duration"] > 0
    assert seen["recorded"]["target"] in seen["fields"]
    assert f"/clients/8005550101/calls/{seen['recorded']['id']}" in seen["curl"]
    assert seen["arrived"]
    assert seen["rowsInPage"] < 100
    assert seen["healed"]
    assert reader.key not in seen["stored"]
    assert "Not for this key" in seen["locked"]


def test_people_sign_in_with_the_issuer(upstream: tuple[Simulator, str]):
    need((NODE / "node_modules" / "playwright-core").exists(), "npm ci in tests/node")
    with issuing() as issuer:
        settings = Settings(
            upstream_url=upstream[1],
            auth="oidc",
            oidc_issuer=issuer.address,
            oidc_audience="callbutton",
            console_oidc_client_id="console",
            signing_key="k" * 32,
        )
        with serving(app.create(settings)) as port:
            base = f"http://127.0.0.1:{port}"
            command = [tool("node"), str(NODE / "console-sign-in.mjs"), tool("chromium"), base]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["complaints"] == []
    assert "client=8005550100" in seen["address"]  # the view before the sign-in
    assert "code=" not in seen["address"]
    assert seen["stored"] == ["callbutton-gateway:access-bearer"]
    assert "not completed" in seen["refused"]
