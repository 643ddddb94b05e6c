"""The walls of the house stand."""

import ast
from pathlib import Path

import pytest

GATEWAY = Path(__file__).parent.parent / "gateway"
ORDER = ["__main__", "app", "api", "ledger", "callbutton", "logs", "metrics", "settings", "model", "errors"]
MODULES = sorted(GATEWAY.rglob("*.py"))
ONLY_IN = {"litestar": {"api"}, "httpx": {"callbutton"}, "xmltodict": {"callbutton", "simulator"}}


def imported(module: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(module.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(GATEWAY)))
def test_imports_go_downwards_only(module: Path):
    part = module.relative_to(GATEWAY).parts[0].removesuffix(".py")
    for name in imported(module):
        first, *rest = name.split(".")
        if first in ONLY_IN:
            assert part in ONLY_IN[first]
        if first == "gateway" and rest[0] in ORDER and part != "__init__":
            assert part != "simulator"
            assert ORDER.index(part) <= ORDER.index(rest[0])
            assert rest[0] != "settings" or part in ("app", "__main__")
        if first == "gateway" and rest[0] == "simulator":
            assert part in ("simulator", "__main__")
    assert len(module.read_text("utf-8").splitlines()) <= 450
