"""The commands of README.md and docs/ work as documented, against a simulated server.

Every line of a `sh` block is run, or listed in `NOT_RUN` with the reason.
"""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.simulator.server import PATH, Options, create
from tests.support.paths import ROOT
from tests.support.processes import answers, free_port, wait_for
from tests.support.stand import serving
from tests.support.tools import tool

PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
UPSTREAM = "http://callbutton.example/cb/main/jsp/xml/xml.jsp"
GATEWAY = "http://127.0.0.1:8080"
# Commands that are not run here, by their first words, and where they are tested.
NOT_RUN = {
    "make": "the targets are checked to exist",
    "pip": "tests/connectors/requirements.in",
    "datasette": "tests/connectors/test_recipes.py",
    "docker": "tests/deploy/test_image.py builds and runs the image, test_compose.py the services",
    "podman": "the same",
    "sudo": "tests/deploy/test_systemd.py checks the unit, and runs it with nginx",
    "GATEWAY_PORT=8081": "tests/process/test_listening.py",
}


TIMED_OUT = 28  # the exit code of curl after `--max-time`


def commands(page: str) -> list[str]:
    """The commands of a page's `sh` blocks, without comments."""
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", (ROOT / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shown for line in lines if (shown := re.sub(r"\s+# .*", "", line))]


def run_and_stop(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    """Start `serve`, wait until it answers, then stop it."""
    port = free_port()
    with subprocess.Popen(command, cwd=folder, env=environment | {"GATEWAY_PORT": str(port)}) as process:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/readyz"), "the gateway is ready")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a shell in which the pages' commands work, with a simulated server."""
    binaries = Path(sys.executable).parent
    with serving(create(Options(history=60, calls_per_day=20))) as port:
        yield {
            "PATH": f"{binaries}:/usr/bin:/bin",
            "HOME": str(tmp_path),
            "GATEWAY_UPSTREAM_URL": f"http://127.0.0.1:{port}{PATH}",
            "GATEWAY_KEYS_FILE": "keys.toml",
            "GATEWAY_DRAIN_DELAY": "0s",
        }


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_the_commands_of_a_page_work(page: str, tmp_path: Path, environment: dict[str, str]):
    for command in commands(page):
        words = shlex.split(command)
        if words[0] == "make":
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
            assert words[1] in targets
        elif words[0] in NOT_RUN:
            continue
        elif words[0] == "export":
            assert set(re.findall(r"(\w+)=", command)) <= {"PATH", *environment}
        elif words == ["callbutton-gateway", "serve"]:
            run_and_stop(words, tmp_path, environment)
        elif words[0] == "curl":
            tool("curl")
            run_curl(command, tmp_path, environment)
        else:
            if "jq" in words and not shutil.which("jq"):
                command = command.partition("|")[0]
            assert words[0] == "callbutton-gateway", f"{command}: run it, or name it in NOT_RUN"
            subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, check=True, timeout=120)


def run_curl(command: str, folder: Path, environment: dict[str, str]) -> None:
    """Run a curl command against a gateway; it must answer 200. A stream (`-N`) is followed for a few seconds."""
    port = free_port()
    settings = environment | {"GATEWAY_PORT": str(port), "GATEWAY_AUTH": "none"}
    with subprocess.Popen(["callbutton-gateway", "serve"], cwd=folder, env=settings) as process:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/readyz"), "the gateway is ready")
        shown = command.replace(GATEWAY, f"http://127.0.0.1:{port}").replace("curl ", "curl --fail --silent ", 1)
        stream = " -N " in command
        shown = shown.replace("curl ", "curl --max-time 10 ", 1) if stream else shown
        try:
            variables = settings | {"KEY": "unused"}
            done = subprocess.run(["bash", "-c", shown], cwd=folder, env=variables, timeout=120, check=False)
            assert done.returncode == (TIMED_OUT if stream else 0)
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
