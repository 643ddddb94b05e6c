"""Write the pages that are made from the code, and the chart's table of values: `make docs`."""

from __future__ import annotations

import json
import re
from functools import reduce
from pathlib import Path

import yaml
from prometheus_client import CollectorRegistry

from gateway.callbutton.conformance.findings import TEXTS
from gateway.metrics import PREFIX, Metrics
from gateway.settings import OPTIONS, variable
from gateway.simulator.faults import FAULTS, VALUES

DOCS = Path(__file__).parent
HELM = DOCS.parent / "helm"
VALUES_HEAD = "| value | default | meaning |\n|---|---|---|\n"
FINDINGS_HEAD = "| finding | value | meaning |\n|---|---|---|\n"
FAULTS_HEAD = "| fault | does |\n|---|---|\n"
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
    return filled((HELM / "README.md").read_text("utf-8"), "values", VALUES_HEAD + rows)


def conformance() -> str:
    """The page of the conformance report, with the tables of findings and of the simulator's faults."""
    findings = [
        f"| {f'`{name}`' if not place else ''} | `{value}` | {re.sub('{.*?}', '…', text)} |\n"
        for name, texts in TEXTS.items()
        for place, (value, text) in enumerate(texts.items())
    ]
    names = {name: f"{name}={VALUES[name][0]}".replace("|", r"\|") if name in VALUES else name for name in FAULTS}
    faults = [f"| `{names[name]}` | {text} |\n" for name, text in FAULTS.items()]
    page = (DOCS / "conformance.md").read_text("utf-8")
    page = filled(page, "findings", FINDINGS_HEAD + "".join(findings))
    return filled(page, "faults", FAULTS_HEAD + "".join(faults))


def filled(page: str, marker: str, table: str) -> str:
    """A page with a table between two markers."""
    begin, end = f"<!-- {marker} -->\n", f"<!-- /{marker} -->\n"
    return page.split(begin)[0] + begin + table + end + page.split(end)[1]


PAGES = {
    "settings.md": settings,
    "metrics.md": metrics,
    "conformance.md": conformance,
    "../helm/README.md": helm_readme,
}

if __name__ == "__main__":
    for file, page in PAGES.items():
        (DOCS / file).write_text(page(), "utf-8")
