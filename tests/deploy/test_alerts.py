"""Alerts, runbook and dashboard: tested by promtool, and only with existing series; a scrape by a real Prometheus."""

import json
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
from tests.support.paths import DATA, ROOT
from tests.support.processes import answers, free_port, gateway, running, wait_for
from tests.support.tools import tool

HELM = ROOT / "helm"
ALERTS = {
    rule["alert"]: rule for rule in yaml.safe_load((HELM / "alerts.yaml").read_text("utf-8"))["groups"][0]["rules"]
}
PLAYED = DATA / "alerts.yaml"
DASHBOARD: dict[str, Any] = json.loads((HELM / "dashboard.json").read_text("utf-8"))
EXPRESSIONS = [(panel["title"], target["expr"]) for panel in DASHBOARD["panels"] for target in panel["targets"]]


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


def test_alerts_fire_when_they_should_and_not_when_they_should_not():
    command: list[str | Path] = [tool("promtool", "prometheus"), "test", "rules", PLAYED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_played_firing_and_not_firing():
    cases = [case for test in yaml.safe_load(PLAYED.read_text("utf-8"))["tests"] for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == ALERTS.keys()
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == ALERTS.keys()


def test_every_alert_has_its_section_of_the_runbook():
    sections = re.findall(r"^## (\w+)$", (HELM / "runbook.md").read_text("utf-8"), re.MULTILINE)
    assert sections == list(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["annotations"]["runbook"] == f"helm/runbook.md#{name.lower()}"


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


def test_panels_lie_side_by_side():
    taken = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in DASHBOARD["panels"]]
    assert len(set(taken)) == len(taken)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in DASHBOARD["panels"])


def test_a_prometheus_scrapes_the_metrics_port_and_loads_the_rules(tmp_path: Path):
    prometheus = tool("prometheus")
    port, metrics_port, own_port = free_port(), free_port(), free_port()
    configuration = {
        "global": {"scrape_interval": "1s"},
        "rule_files": [str(HELM / "alerts.yaml")],
        "scrape_configs": [{"job_name": "g", "static_configs": [{"targets": [f"127.0.0.1:{metrics_port}"]}]}],
    }
    file = tmp_path / "prometheus.yaml"
    file.write_text(yaml.safe_dump(configuration), "utf-8")
    settings = {
        "GATEWAY_UPSTREAM_URL": "http://127.0.0.1:9/",
        "GATEWAY_AUTH": "none",
        "GATEWAY_PORT": str(port),
        "GATEWAY_METRICS_PORT": str(metrics_port),
    }
    address = f"http://127.0.0.1:{own_port}"
    command: list[str | Path] = [
        prometheus,
        f"--config.file={file}",
        f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{own_port}",
    ]

    def ask(query: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = httpx.get(f"{address}/api/v1/query", params={"query": query}).json()["data"][
            "result"
        ]
        return found

    with running(gateway("serve"), tmp_path / "gateway.log", **settings), running(command, tmp_path / "prometheus.log"):
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/readyz"), "the gateway")
        wait_for(lambda: answers(f"{address}/-/ready"), "Prometheus")
        wait_for(lambda: ask("callbutton_gateway_build_info == 1"), "a scrape")
        (target,) = httpx.get(f"{address}/api/v1/targets").json()["data"]["activeTargets"]
        assert (target["health"], target["lastError"]) == ("up", "")
        (group,) = httpx.get(f"{address}/api/v1/rules").json()["data"]["groups"]
        assert [rule["name"] for rule in group["rules"]] == list(ALERTS)
        for path, at_main, at_metrics in [("/metrics", 404, 200), ("/readyz", 200, 200), ("/calls", 400, 404)]:
            assert httpx.get(f"http://127.0.0.1:{port}{path}").status_code == at_main
            assert httpx.get(f"http://127.0.0.1:{metrics_port}{path}").status_code == at_metrics
