"""The Grafana dashboard, its panels without rows, and their expressions with the panels' titles."""

import json
from typing import Any

from tests.support.paths import ROOT

DASHBOARD: dict[str, Any] = json.loads((ROOT / "helm" / "dashboard.json").read_text("utf-8"))
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
EXPRESSIONS: list[tuple[str, str]] = [
    (panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]
]
