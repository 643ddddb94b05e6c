"""Alerts, runbook and dashboard: tested by promtool, and only with existing series; a scrape by a real Prometheus."""

import re
import subprocess
from pathlib import Path
from typing import Any

import httpx
import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry

from gateway.metrics import Metrics
from tests.support.compose import prometheus
from tests.support.dashboard import DASHBOARD, EXPRESSIONS, PANELS
from tests.support.paths import DATA, ROOT
from tests.support.processes import answers, free_port, gateway, running, wait_for
from tests.support.tools import tool

HELM = ROOT / "helm"
ALERTS = {
    rule["alert"]: rule for rule in yaml.safe_load((HELM / "alerts.yaml").read_text("utf-8"))["groups"][0]["rules"]
}
PLAYED = DATA / "alerts.yaml"


class WithoutAliases(yaml.SafeDumper):
    """A dumper that repeats shared values instead of writing aliases."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002 - prescribed by the base
        return True


def series() -> set[str]:
    """Return the names of all series that the gateway exposes."""
    registry = CollectorRegistry()
    Metrics(registry)
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_count", "_sum"], "gauge": [""]}
    return {family.name + suffix for family in registry.collect() for suffix in suffixes[family.type]}


def test_promtool_finds_nothing_in_the_rules():
    command: list[str | Path] = [
        tool("promtool", "prometheus"),
        "check",
        "rules",
        "--lint=all",
        "--lint-fatal",
        HELM / "alerts.yaml",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_alerts_fire_when_they_should_and_not_when_they_should_not(tmp_path: Path):
    played = yaml.safe_load(PLAYED.read_text("utf-8")) | {"rule_files": [str(HELM / "alerts.yaml")]}
    for case in (case for test in played["tests"] for case in test["alert_rule_test"]):
        rule = ALERTS[case["alertname"]]
        for alert in case["exp_alerts"]:
            alert["exp_labels"] = rule["labels"] | alert["exp_labels"]
            alert["exp_annotations"] = rule["annotations"] | alert["exp_annotations"]
    file = tmp_path / "played.yaml"
    file.write_text(yaml.dump(played, Dumper=WithoutAliases), "utf-8")
    command: list[str | Path] = [tool("promtool", "prometheus"), "test", "rules", file]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_played_firing_and_not_firing():
    cases = [case for test in yaml.safe_load(PLAYED.read_text("utf-8"))["tests"] for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == ALERTS.keys()
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == ALERTS.keys()


def test_every_alert_has_its_section_of_the_runbook():
    sections = re.findall(r"^## (\w+)$", (HELM / "runbook.md").read_text("utf-8"), re.MULTILINE)
    assert sections == list(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["annotations"]["runbook_url"] == f"helm/runbook.md#{name.lower()}"
        assert re.search(r"\{\{ \$(value|labels)|^There are no series", rule["annotations"]["description"])


def test_the_runbook_names_panels_that_exist():
    text = " ".join((HELM / "runbook.md").read_text("utf-8").split())
    named = {
        name
        for names in re.findall(r"[Pp]anels? (\*[^*]+\*(?:(?:,| and) \*[^*]+\*)*)", text)
        for name in re.findall(r"\*([^*]+)\*", names)
    }
    assert named
    assert named <= {panel["title"] for panel in DASHBOARD["panels"]}


@pytest.mark.parametrize(
    "expression",
    [*(rule["expr"] for rule in ALERTS.values()), *(expression for _, expression in EXPRESSIONS)],
    ids=[*ALERTS, *(title for title, _ in EXPRESSIONS)],
)
def test_expressions_parse_and_ask_for_series_that_exist(expression: str):
    promql_parser.parse(expression.replace("$__rate_interval", "5m"))
    named = set(re.findall(r"callbutton_gateway_\w+", expression))
    assert named
    assert named <= series()


def test_the_dashboard_begins_with_figures_and_has_rows():
    kinds = [panel["type"] for panel in DASHBOARD["panels"]]
    assert kinds[:9] == ["row", *["stat"] * 8]
    assert kinds.count("row") > 5
    for panel in PANELS:
        defaults = panel["fieldConfig"]["defaults"]
        assert panel["description"]
        assert defaults["unit"]
        if panel["type"] == "stat":
            assert len(defaults["thresholds"]["steps"]) > 1
        if "upstream_circuit_state" in panel["targets"][0]["expr"]:
            assert list(defaults["mappings"][0]["options"]) == ["0", "1", "2"]


def test_panels_lie_side_by_side():
    taken = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len(set(taken)) == len(taken)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in DASHBOARD["panels"])


def test_a_prometheus_scrapes_the_metrics_port_and_loads_the_rules(tmp_path: Path):
    port, metrics_port = free_port(), free_port()
    settings = {
        "GATEWAY_UPSTREAM_URL": "http://127.0.0.1:9/",
        "GATEWAY_AUTH": "none",
        "GATEWAY_PORT": str(port),
        "GATEWAY_METRICS_PORT": str(metrics_port),
    }
    with (
        running(gateway("serve"), tmp_path / "gateway.log", **settings),
        prometheus(tmp_path, free_port(), [metrics_port]) as address,
    ):

        def ask(query: str) -> list[dict[str, Any]]:
            answer = httpx.get(f"{address}/api/v1/query", params={"query": query}, timeout=60).json()
            found: list[dict[str, Any]] = answer["data"]["result"]
            return found

        wait_for(lambda: answers(f"http://127.0.0.1:{port}/readyz"), "the gateway", 120)
        wait_for(lambda: ask("callbutton_gateway_build_info == 1"), "a scrape", 120)
        (target,) = httpx.get(f"{address}/api/v1/targets", timeout=60).json()["data"]["activeTargets"]
        assert (target["health"], target["lastError"]) == ("up", "")
        (group,) = httpx.get(f"{address}/api/v1/rules", timeout=60).json()["data"]["groups"]
        assert [rule["name"] for rule in group["rules"]] == list(ALERTS)
        for path, at_main, at_metrics in [("/metrics", 404, 200), ("/readyz", 200, 200), ("/calls", 400, 404)]:
            assert httpx.get(f"http://127.0.0.1:{port}{path}", timeout=60).status_code == at_main
            assert httpx.get(f"http://127.0.0.1:{metrics_port}{path}", timeout=60).status_code == at_metrics
