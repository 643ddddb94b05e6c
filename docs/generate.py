"""Write the pages that are made from the code, and the chart's table of values: `make docs`."""

from __future__ import annotations

import json
import re
from functools import reduce
from pathlib import Path

import yaml
from prometheus_client import CollectorRegistry

from gateway.metrics import PREFIX, Metrics
from gateway.settings import OPTIONS, variable

DOCS = Path(__file__).parent
HELM = DOCS.parent / "helm"
VALUES_HEAD = "| value | default | meaning |\n|---|---|---|\n"
VALUES_MARKERS = "<!-- values -->\n", "<!-- /values -->\n"
SETTINGS_HEAD = """\
<!-- Made from gateway/settings.py by `make docs`. -->
# Settings

Settings are environment variables. A value that cannot be used, or a `GATEWAY_` variable that is not on this page,
stops the start with exit code 2 and one line that names the variable.
"""
METRICS_HEAD = """\
<!-- Made from gateway/metrics.py by `make docs`. -->
# Metrics

Served at `/metrics`, or on `GATEWAY_METRICS_PORT` alone if that is set. No label has a value that consumers or the
upstream choose: routes are templates, outcomes are enums, consumers appear by their name in the keys file. Besides
these, the standard `process_*` and `python_*` series are exported. `helm/alerts.yaml` and `helm/dashboard.json` use
these series.

| series | type | labels | meaning |
|---|---|---|---|
"""


def settings() -> str:
    """The page of settings, a section each."""
    parts = [SETTINGS_HEAD]
    for name, option in OPTIONS.items():
        default = f"`{option.default}`" if option.default not in ("", "random") else option.default or "none"
        parts.append(f"## {variable(name)}\n\n{option.meaning}\n")
        parts.append(f"Default: {default}. Value: {option.parser.accepts}.\n")
    return "\n".join(parts)


def metrics() -> str:
    """The page of metrics, a row each."""
    registry = CollectorRegistry()
    made = Metrics(registry)
    made.requests.add("GET", "/calls", 200, 0.0, "dashboard")  # series with labels appear with their first value
    made.shared_seconds.labels("lookup")
    made.key_expiry.labels("dashboard")
    rows = []
    for family in registry.collect():
        if family.name.startswith(PREFIX):
            labels = {label: None for sample in family.samples for label in sample.labels if label != "le"}
            name = f"{family.name}_total" if family.type == "counter" else family.name
            named = ", ".join(f"`{label}`" for label in labels)
            rows.append(f"| `{name}` | {family.type} | {named} | {family.documentation} |\n")
    return METRICS_HEAD + "".join(rows)


def helm_readme() -> str:
    """README.md of the chart, with the table of values: each comment that begins with `--`, as for helm-docs."""
    text = (HELM / "values.yaml").read_text("utf-8")
    values, path, meaning, rows = yaml.safe_load(text), list[str](), "", ""
    for line in text.splitlines():
        if comment := re.match(r" *# (-- )?(.*)", line):
            meaning = comment[2] if comment[1] else f"{meaning} {comment[2]}" if meaning else ""
        elif key := re.match(r"( *)(\w+):", line):
            path[len(key[1]) // 2 :] = [key[2]]
            default = json.dumps(reduce(lambda part, name: part[name], path, values))
            rows += f"| `{'.'.join(path)}` | `{default}` | {meaning} |\n" if meaning else ""
            meaning = ""
    readme = (HELM / "README.md").read_text("utf-8")
    begin, end = VALUES_MARKERS
    return readme.split(begin)[0] + begin + VALUES_HEAD + rows + end + readme.split(end)[1]


PAGES = {"settings.md": settings, "metrics.md": metrics, "../helm/README.md": helm_readme}

if __name__ == "__main__":
    for file, page in PAGES.items():
        (DOCS / file).write_text(page(), "utf-8")
