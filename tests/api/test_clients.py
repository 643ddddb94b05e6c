"""Clients generated from the OpenAPI document, with the commands and programs of openapi/README.md.

Each program reads all calls of two days page by page, a summary by day, and a problem.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.consumers import Member, keys_file
from tests.support.paths import NODE, ROOT
from tests.support.stand import Make
from tests.support.tools import need, tool

README = (ROOT / "openapi" / "README.md").read_text("utf-8")
CONTRACT = ROOT / "openapi" / "openapi.yaml"
DASHBOARD = Member("dashboard")
# `javax.annotation.Generated` is what generated Java is marked with; Maven would bring it.
GENERATED = (
    "package javax.annotation; public @interface Generated { String[] value(); String date(); String comments(); }"
)
GO_MODULE = """\
module example
require example.com/you/callbutton v0.0.0
replace example.com/you/callbutton => ./client
"""


class Program:
    """A program of the README in a folder, with the command that generates its client."""

    def __init__(self, language: str, place: int, folder: Path, address: str) -> None:
        command, program = re.findall(
            rf"```sh\n((?:[^`]|`(?!``))*?)\n```\n\n```{language}\n(.*?)```", README, re.DOTALL
        )[place]
        self.command = shlex.split(command.splitlines()[-1].replace("openapi.yaml", str(CONTRACT)))
        self.text = program.replace("http://127.0.0.1:8080", address).replace("YOUR-KEY", DASHBOARD.key)
        self.folder = folder

    def run(self, *command: str, **variables: str) -> str:
        """Run a command in the folder and return its output."""
        environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"} | variables
        done = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=240, check=False
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    def generate(self) -> None:
        """Generate the client with openapi-generator."""
        self.run(tool("java", "default-jre-headless"), "-jar", generator(), *self.command[1:], "-q")


def generator() -> str:
    """The jar of openapi-generator."""
    found = importlib.util.find_spec("openapi_generator_cli")
    need(found is not None, "openapi-generator-cli: make clients-tools")
    assert found is not None
    assert found.origin is not None
    return str(Path(found.origin).parent / "openapi-generator.jar")


@pytest.fixture
def address(stand: Make, tmp_path: Path) -> str:
    return str(stand(auth="keys", keys_file=keys_file(tmp_path, DASHBOARD)).client.base_url).rstrip("/")


def expect(printed: str) -> None:
    """Check the output: about 400 calls on several pages, and a summary of two buckets with the same total."""
    calls, total, buckets, problem = printed.split()
    assert (calls, buckets, problem) == (total, "2", "/problems/invalid-parameter")
    assert 300 < int(calls) < 500


def test_typescript_by_openapi_typescript_and_openapi_fetch(address: str, tmp_path: Path):
    need((NODE / "node_modules" / "openapi-fetch").exists(), "npm ci in tests/node")
    program = Program("ts", 0, tmp_path, address)
    (tmp_path / "node_modules").symlink_to(NODE / "node_modules")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    (tmp_path / "main.ts").write_text(program.text)
    binaries = NODE / "node_modules" / ".bin"
    assert program.command[:2] == ["npx", "openapi-typescript"]
    program.run(str(binaries / "openapi-typescript"), *program.command[2:])
    strict = ["--strict", "--noUncheckedIndexedAccess", "--skipLibCheck"]
    modern = ["--target", "es2022", "--lib", "es2022,dom", "--module", "nodenext", "--moduleResolution", "nodenext"]
    program.run(str(binaries / "tsc"), *strict, *modern, "main.ts")
    expect(program.run(tool("node"), "main.js"))


def test_python_by_openapi_python_client(address: str, tmp_path: Path):
    program = Program("python", 0, tmp_path, address)
    program.run(*program.command)
    expect(program.run(sys.executable, "-c", program.text, PYTHONPATH=str(tmp_path / "callbutton-gateway-client")))


def test_python_by_openapi_generator(address: str, tmp_path: Path):
    program = Program("python", 1, tmp_path, address)
    program.generate()
    expect(program.run(sys.executable, "-c", program.text, PYTHONPATH=str(tmp_path / "client")))


def test_java_by_openapi_generator(address: str, tmp_path: Path):
    program = Program("java", 0, tmp_path, address)
    javac = tool("javac", "default-jdk-headless")
    program.generate()
    sources = tmp_path / "client" / "src" / "main" / "java"
    (sources / "javax" / "annotation").mkdir(parents=True)
    (sources / "javax" / "annotation" / "Generated.java").write_text(GENERATED)
    (sources / "Main.java").write_text(program.text)
    files = [str(path) for path in sources.rglob("*.java")]
    program.run(javac, "-nowarn", "-d", "classes", "-cp", generator(), *files)  # the jar has Jackson, too
    expect(program.run(tool("java", "default-jre-headless"), "-cp", f"classes:{generator()}", "Main"))


def test_go_by_openapi_generator(address: str, tmp_path: Path):
    program = Program("go", 0, tmp_path, address)
    go = tool("go", "golang-go")
    program.generate()
    (tmp_path / "main.go").write_text(program.text)
    (tmp_path / "go.mod").write_text(GO_MODULE)
    assert re.search(r"^module (.*)$", (tmp_path / "client" / "go.mod").read_text(), re.MULTILINE)
    expect(program.run(go, "run", ".", GOFLAGS="-mod=mod", GOPROXY="off"))
