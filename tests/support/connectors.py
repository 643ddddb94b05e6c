"""Programs that `make connectors` installs in a separate environment: dlt, a Singer target, Datasette."""

from __future__ import annotations

from pathlib import Path

from tests.support.paths import ROOT
from tests.support.tools import need

BIN = ROOT / ".venv-connectors" / "bin"
CLIENTS = ROOT / "openapi" / "clients"


def connector(name: str) -> Path:
    """Return the path of a program."""
    need((BIN / name).exists(), f"{name}, which make connectors installs")
    return BIN / name
