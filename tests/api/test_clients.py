"""Clients generated from the OpenAPI document, with the commands and programs of openapi/README.md.

Each program reads all calls of two days page by page, a summary by day, an export as CSV, and a problem. Some copy the
calls of a month by the change feed.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
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
# What package managers would bring: an annotation of generated Java, the module of generated Go, and PHP's autoloader.
GENERATED = (
    "package javax.annotation; public @interface Generated { String[] value(); String date(); String comments(); }"
)
VALIDATOR = Path("/usr/share/gocode/src/gopkg.in/validator.v2")  # generated Go needs it for types of several kinds
GO_MODULE = """\
module example
require example.com/you/callbutton v0.0.0
replace example.com/you/callbutton => ./client
replace gopkg.in/validator.v2 => ./validator
"""
AUTOLOAD = """\
<?php
require 'GuzzleHttp/autoload.php';
spl_autoload_register(function ($name) {
    $path = __DIR__ . '/../lib/' . strtr(substr($name, strlen('Callbutton/')), '\\\\', '/') . '.php';
    return is_file($path) && require $path;
});
"""


class Program:
    """A program of the README in a folder: the section with this heading, which also has the command of its generator.

    `blocks` are the texts of the section by language.
    """

    def __init__(self, heading: str, folder: Path, address: str) -> None:
        section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
        self.blocks = dict(re.findall(r"```(\w+)\n(.*?)```", section, re.DOTALL))
        self.command = shlex.split(self.blocks.pop("sh").splitlines()[-1])
        self.folder = folder
        self.address = address
        (folder / "openapi.yaml").symlink_to(CONTRACT)

    def write(self, language: str, name: str) -> None:
        """Write a block to a file, with the address of the gateway and a key."""
        text = self.blocks[language].replace("http://127.0.0.1:8080", self.address).replace("YOUR-KEY", DASHBOARD.key)
        (self.folder / name).write_text(text, "utf-8")

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
        assert self.command[0] == "openapi-generator-cli"
        self.run(tool("java", "default-jre-headless"), "-jar", generator(), *self.command[1:], "-q")

    def run_typescript(self, main: str) -> str:
        """Generate the client with a program of tests/node, compile the program strictly, and run it."""
        binaries = NODE / "node_modules" / ".bin"
        need((binaries / self.command[1]).exists(), "npm ci in tests/node")
        (self.folder / "node_modules").symlink_to(NODE / "node_modules")
        (self.folder / "package.json").write_text('{"type": "module"}')
        assert self.command[0] == "npx"
        self.run(str(binaries / self.command[1]), *self.command[2:])
        strict = ["--strict", "--noUncheckedIndexedAccess", "--skipLibCheck", "--target", "es2022"]
        modern = ["--lib", "es2022,dom,dom.iterable", "--module", "nodenext", "--moduleResolution", "nodenext"]
        self.run(str(binaries / "tsc"), *strict, *modern, f"{main}.ts")
        return self.run(tool("node"), f"{main}.js")


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


def expect(program: Program, printed: str, *copied: str) -> None:
    """Check the output: about 400 calls on several pages, a summary of two buckets and an export of as many.

    `copied` is whether the change feed brought as many calls as it said, if the program follows it.

    The client has every operation of the document: generators leave out operations that they do not support.
    """
    calls, total, buckets, lines, problem, *complete = printed.lower().split()
    assert complete == list(copied)
    assert (total, buckets, int(lines) - 1, problem) == (calls, "2", int(calls), "/problems/invalid-parameter")
    assert 300 < int(calls) < 500
    sources = [
        path for path in program.folder.rglob("*") if path.suffix in (".go", ".java", ".php", ".py", ".rb", ".ts")
    ]
    text = "".join(path.stem + path.read_text("utf-8") for path in sources).replace("_", "").lower()
    operations = re.findall("operationId: (.*)", CONTRACT.read_text("utf-8"))
    assert [name for name in operations if name.lower() not in text] == []


def test_typescript_by_openapi_typescript_and_openapi_fetch(address: str, tmp_path: Path):
    program = Program("TypeScript, with openapi-typescript", tmp_path, address)
    program.write("ts", "main.ts")
    expect(program, program.run_typescript("main"), "true")


def test_typescript_by_hey_api_with_transformers(address: str, tmp_path: Path):
    program = Program("TypeScript, with hey-api", tmp_path, address)
    program.write("js", "openapi-ts.config.mjs")
    program.write("ts", "main.ts")
    expect(program, program.run_typescript("main"))
    assert "BigInt" not in (tmp_path / "client" / "transformers.gen.ts").read_text("utf-8")


def test_python_by_openapi_python_client(address: str, tmp_path: Path):
    program = Program("Python, with openapi-python-client", tmp_path, address)
    program.write("python", "main.py")
    assert "WARNING" not in program.run(*program.command)  # a warning names an operation that is left out
    expect(program, program.run(sys.executable, "main.py", PYTHONPATH=str(tmp_path / "callbutton-gateway-client")))


def test_python_by_openapi_generator(address: str, tmp_path: Path):
    program = Program("Python, with openapi-generator", tmp_path, address)
    program.write("python", "main.py")
    program.generate()
    expect(program, program.run(sys.executable, "main.py", PYTHONPATH=str(tmp_path / "client")), "true")


def test_java_by_openapi_generator(address: str, tmp_path: Path):
    program = Program("Java", tmp_path, address)
    javac = tool("javac", "default-jdk-headless")
    program.generate()
    sources = tmp_path / "client" / "src" / "main" / "java"
    (sources / "javax" / "annotation").mkdir(parents=True)
    (sources / "javax" / "annotation" / "Generated.java").write_text(GENERATED)
    program.write("java", str(sources / "Main.java"))
    files = [str(path) for path in sources.rglob("*.java")]
    program.run(javac, "-nowarn", "-d", "classes", "-cp", generator(), *files)  # the jar has Jackson, too
    expect(program, program.run(tool("java", "default-jre-headless"), "-cp", f"classes:{generator()}", "Main"), "true")


def test_go_by_openapi_generator(address: str, tmp_path: Path):
    program = Program("Go", tmp_path, address)
    go = tool("go", "golang-go")
    need(VALIDATOR.exists(), "golang-gopkg-validator.v2-dev")
    shutil.copytree(VALIDATOR, tmp_path / "validator")
    (tmp_path / "validator" / "go.mod").write_text("module gopkg.in/validator.v2\n")
    program.generate()
    program.write("go", "main.go")
    (tmp_path / "go.mod").write_text(GO_MODULE)
    assert re.search(r"^module (.*)$", (tmp_path / "client" / "go.mod").read_text(), re.MULTILINE)
    expect(program, program.run(go, "run", ".", GOFLAGS="-mod=mod", GOPROXY="off"), "true")


def test_php_by_openapi_generator(address: str, tmp_path: Path):
    program = Program("PHP", tmp_path, address)
    php = tool("php", "php-cli")
    need(Path("/usr/share/php/GuzzleHttp/autoload.php").exists(), "php-guzzlehttp-guzzle")
    program.generate()
    program.write("php", "main.php")
    (tmp_path / "client" / "vendor").mkdir()
    (tmp_path / "client" / "vendor" / "autoload.php").write_text(AUTOLOAD)
    expect(program, program.run(php, "main.php"))


def test_ruby_by_openapi_generator(address: str, tmp_path: Path):
    program = Program("Ruby", tmp_path, address)
    ruby = tool("ruby")
    need(subprocess.run([ruby, "-e", 'require "typhoeus"'], check=False).returncode == 0, "ruby-typhoeus")
    program.generate()
    program.write("ruby", "main.rb")
    expect(program, program.run(ruby, "-I", "client/lib", "main.rb"))
