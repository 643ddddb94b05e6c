"""The Dockerfile and the Helm chart: sound, and speaking of settings that exist."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm_python import Chart, lint
from helm_python.errors import HelmError

from gateway import __version__
from gateway.settings import PREFIX, READERS, read_settings

ROOT = Path(__file__).parent.parent
CHART = ROOT / "helm"
VALUES = {"upstream": {"url": "http://callbutton.example/xml.jsp"}}


def render(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    manifests = Chart.load(CHART).render(values, name="gateway", namespace="default")
    documents = [document for text in manifests.values() for document in yaml.safe_load_all(text) if document]
    return {document["kind"]: document for document in documents}


def test_hadolint_finds_nothing_in_the_dockerfile():
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert hadolint
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_dockerfile_copies_what_exists_and_names_settings_that_exist():
    text = (ROOT / "Dockerfile").read_text("utf-8")
    for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE):
        assert all((ROOT / source).exists() for source in sources.split())
    assert {f"{PREFIX}{name.upper()}" for name in READERS} >= set(re.findall(r"GATEWAY_\w+", text))
    assert re.search(r"^USER \d+:\d+$", text, re.MULTILINE)


def test_helm_lint_finds_nothing_but_a_missing_icon():
    report = lint(CHART, VALUES, strict=True)
    assert [message["error"] for message in report["messages"]] == ["icon is recommended"]
    assert report["errors"] == []


def test_the_chart_has_the_version_of_the_package():
    assert yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))["appVersion"] == __version__


def test_the_chart_sets_what_the_gateway_reads():
    pod = render(VALUES)["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    settings = read_settings({entry["name"]: entry["value"] for entry in container["env"]})
    assert (settings.upstream_url, settings.auth) == (VALUES["upstream"]["url"], "none")
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_the_service_finds_the_pods():
    made = render(VALUES)
    labels = made["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert made["Service"]["spec"]["selector"].items() <= labels.items()
    (port,) = made["Service"]["spec"]["ports"]
    (container,) = made["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert port["targetPort"] in {named["name"] for named in container["ports"]}


@pytest.mark.parametrize(
    "values",
    [{}, {"upstream": {"url": ""}}, VALUES | {"replica": 2}, VALUES | {"auth": "keys"}, VALUES | {"replicas": 0}],
    ids=["no upstream", "empty upstream", "unknown value", "auth not built", "no replicas"],
)
def test_values_that_cannot_work_are_refused(values: dict[str, Any]):
    with pytest.raises(HelmError):
        render(values)
