"""No module uses a private name of a library, one that begins with an underscore.

A module may use the private names that it defines; tests and benchmarks may use those of `gateway`. A name is ours if a
class or module defines it: the check does not notice a library that has the same name.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

FILES = sorted(path for part in ("gateway", "tests", "benchmarks") for path in (ROOT / part).rglob("*.py"))
IDS = [str(path.relative_to(ROOT)) for path in FILES]
PRIVATE = re.compile(r"_(?!_)\w+|__\w*(?<!__)")
# Documented API of `collections.namedtuple`: the underscore keeps these names apart from those of fields.
NAMED_TUPLE = {"_asdict", "_field_defaults", "_fields", "_make", "_replace"}


def definitions(tree: ast.AST) -> Iterator[str]:
    """The names that a module defines: functions, classes, variables, attributes of `self`."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store()):
                yield name
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                yield name


def uses(tree: ast.AST) -> Iterator[str]:
    """The names that a module uses: attributes, by `getattr` too, and imports."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name):
                yield name
            case ast.Call(func=ast.Name(id="getattr" | "setattr" | "hasattr"), args=[_, ast.Constant(str(name)), *_]):
                yield name
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                yield from [word for alias in names for word in alias.name.split(".")]
        if isinstance(node, ast.ImportFrom):
            yield from (node.module or "").split(".")


def private(names: Iterator[str]) -> set[str]:
    """Return the private names among `names`."""
    return {name for name in names if PRIVATE.fullmatch(name)} - NAMED_TUPLE


def parsed(path: Path) -> ast.AST:
    return ast.parse(path.read_text("utf-8"))


OURS = {name for path in FILES if path.is_relative_to(ROOT / "gateway") for name in private(definitions(parsed(path)))}


def foreign(path: Path) -> set[str]:
    """The private names that a file uses and may not."""
    tree = parsed(path)
    own = private(definitions(tree))
    return private(uses(tree)) - (own if path.is_relative_to(ROOT / "gateway") else own | OURS)


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_a_module_uses_no_private_name_of_another(path: Path):
    assert set() == foreign(path)


@pytest.mark.parametrize(
    "text",
    [
        "import httpx\nhttpx.AsyncClient()._transport",
        "import httpx\nself.transport._pool._network_backend = None",
        "from httpx._config import Limits",
        "from uvicorn import _types",
        "import httpcore._async.connection",
        "class Ours(Theirs):\n    def act(self):\n        return self._theirs",
        "getattr(loop, '_ready')",
        "client.__secret",
    ],
)
def test_the_check_finds_a_private_name(text: str):
    tree = ast.parse(text)
    assert private(uses(tree)) - private(definitions(tree))


@pytest.mark.parametrize("text", ["value._asdict()", "class A:\n    def _f(self): self._f()", "import json"])
def test_the_check_allows_what_is_public_or_ours(text: str):
    tree = ast.parse(text)
    assert not private(uses(tree)) - private(definitions(tree))
