"""The structure of the package: import direction, the modules that may use each library, the size of modules."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.support.paths import ROOT, TESTS

PACKAGE = ROOT / "gateway"
MAX_LINES = 400
# A part may import parts with lower numbers. `simulator` is outside this order.
LAYERS = {
    "__main__": 8,
    "cli": 7,
    "app": 6,
    "api": 5,
    "cache": 4,
    "rate_sync": 4,
    "callbutton": 3,
    "auth": 3,
    "redis_client": 3,
    "redis_nodes": 1,
    "rates": 3,
    "metrics": 2,
    "logs": 2,
    "server": 3,
    "guard": 2,
    "shutdown": 0,
    "settings": 3,
    "formats": 2,
    "circuit_breaker": 0,
    "access": 2,
    "extra_fields": 1,
    "tracing": 1,
    "memory": 0,
    "model": 0,
    "slices": 0,
    "errors": 0,
    "": 0,  # gateway/__init__.py: the version
}
FILES = sorted(PACKAGE.rglob("*.py"))
TESTS_AND_BENCHMARKS = sorted(
    [*(ROOT / "benchmarks").glob("*.py"), *TESTS.glob("*.py"), *TESTS.glob("[!n]*/*.py")]
)  # not node/
IDS = [str(path.relative_to(PACKAGE)) for path in FILES]
REQUESTS = {"Client", "AsyncClient", "get", "post", "put", "head", "options", "request", "stream"}  # of httpx
OWNERS = {
    "litestar": {"api", "app"},
    "opentelemetry": {"tracing"},
    "httpx": {"callbutton", "auth", "cli"},
    "jwt": {"auth"},
    "cryptography": {"api", "auth"},
    "httpcore": {"callbutton"},
    "redis": {"redis_client", "redis_nodes"},
    "xmltodict": {"callbutton", "simulator"},
    "xml": {"callbutton", "simulator"},
}


def part_of(path: Path) -> str:
    """Return the part of the package that a file belongs to."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imports_of(path: Path) -> set[str]:
    """Return every module that a file imports, also within functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} line {node.lineno}: imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def parts_imported(path: Path) -> set[str]:
    """Return the parts of the package that a file imports."""
    ours = [name.split(".") for name in imports_of(path) if name.split(".")[0] == "gateway"]
    names = {words[1] if len(words) > 1 else "" for words in ours}
    return {name if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file() else "" for name in names}


# The only modules that read each header of a request, from its combined value. The response cache has some as its key.
HEADER_READERS = {
    b"accept": {"responses", "response_cache"},
    b"accept-encoding": {"compression", "response_cache"},
    b"access-control-request-method": {"cors"},
    b"authorization": {"authentication"},
    b"cache-control": {"responses", "response_cache", "compression"},  # compression: of the response
    b"if-none-match": {"response_cache"},
    b"if-range": {"recordings"},
    b"origin": {"cors"},
    b"pragma": {"response_cache"},
    b"range": {"recordings"},
    b"x-api-key": {"authentication"},
    b"x-request-id": {"request_context"},
}
# The only modules that touch the query as it came: to parse it, to measure it, or as a key.
QUERY_READERS = {
    "calls",
    "changes",
    "missed",
    "summaries",
    "recordings",
    "load_shedder",
    "response_cache",
    "authentication",
}


@pytest.mark.parametrize("path", sorted((PACKAGE / "api").rglob("*.py")), ids=lambda path: path.stem)
def test_headers_and_queries_are_read_in_one_place(path: Path):
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        match node:
            case ast.Subscript(value=ast.Name(id="scope"), slice=ast.Constant(value="headers")):
                assert path.stem == "request_context"
            case ast.Subscript(slice=ast.Constant(value="query_string")):
                assert path.stem in QUERY_READERS
            case ast.Attribute(value=ast.Name(id="request"), attr="headers" | "cookies" | "query_params"):
                raise AssertionError(f"line {node.lineno}: use the request context")
            case ast.Call(func=ast.Attribute(attr="header" | "get"), args=[ast.Constant(value=bytes(name)), *_]):
                assert path.stem in HEADER_READERS.get(name, {path.stem}), name


def test_every_part_has_its_place():
    assert {part_of(path) for path in FILES} == LAYERS.keys() | {"simulator"}


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_imports_go_downwards_only(path: Path):
    part = part_of(path)
    others = parts_imported(path) - {part}
    if part == "simulator":
        assert set() == others
    else:
        allowed = {name for name, layer in LAYERS.items() if layer < LAYERS[part]}
        assert set() == others - allowed - ({"simulator"} if part == "cli" else set())


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_settings_are_imported_by_app_and_commands_only(path: Path):
    assert "settings" not in parts_imported(path) or part_of(path) in ("app", "cli")


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_libraries_stay_where_they_belong(path: Path):
    roots = {name.split(".")[0] for name in imports_of(path)}
    assert set() == {root for root in roots & OWNERS.keys() if part_of(path) not in OWNERS[root]}


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_no_module_is_too_long_to_read(path: Path):
    assert len(path.read_text("utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize("path", TESTS_AND_BENCHMARKS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_test_is_imported_and_no_benchmark_imports_tests(path: Path):
    names = imports_of(path)
    assert [name for name in names if re.match(r"tests\.(\w+\.)*test_", name)] == []
    if path.is_relative_to(ROOT / "benchmarks"):
        assert [name for name in names if name.split(".")[0] == "tests"] == []


@pytest.mark.parametrize("path", TESTS_AND_BENCHMARKS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_request_of_a_test_has_the_default_timeout_of_httpx(path: Path):
    """It is 5 seconds, which a busy machine exceeds."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="httpx"), attr=name)) if name in REQUESTS:
                arguments = {keyword.arg for keyword in node.keywords}
                assert arguments & {"timeout", None}, f"line {node.lineno}"  # None: `**arguments`
