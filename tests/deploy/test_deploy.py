"""The Dockerfile and the Helm chart are valid and use only existing settings."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
from typing import Any

import pytest
import yaml
from helm_python import Chart, lint
from helm_python.errors import HelmError

from benchmarks import scaling
from gateway import __version__
from gateway.access import SCOPES
from gateway.auth.access_keys import parse_keys
from gateway.guard import Limits
from gateway.settings import OPTIONS, PREFIX, parse_settings, variable
from gateway.simulator.server import PATH
from tests.support.charts import CHART, EVERYTHING, GENERATED, MATRIX, UPSTREAM, with_helm4
from tests.support.paths import ROOT

SIMULATED: dict[str, Any] = GENERATED | {"simulator": {"enabled": True}}
SECRETS = {"signing-key": "s" * 32, "cache-url": "redis://127.0.0.1/0", "headers": "x=y", "password": "p4"}
CASES = pytest.mark.parametrize("values", MATRIX.values(), ids=MATRIX)


def one(values: dict[str, Any], kind: str, name: str = "gateway") -> dict[str, Any]:
    (found,) = (made for made in with_helm4(values) if (made["kind"], made["metadata"]["name"]) == (kind, name))
    return found


def pod_of(values: dict[str, Any], name: str = "gateway") -> dict[str, Any]:
    pod: dict[str, Any] = one(values, "Deployment", name)["spec"]["template"]["spec"]
    return pod


def environment(values: dict[str, Any]) -> dict[str, str]:
    """Return the variables of the container, with $(NAME) replaced as Kubernetes does."""
    (container,) = pod_of(values)["containers"]
    found: dict[str, str] = {}
    for entry in container["env"]:
        text = entry.get("value") or SECRETS[entry["valueFrom"]["secretKeyRef"]["key"]]
        found[entry["name"]] = re.sub(r"\$\((\w+)\)", lambda name: found[name[1]], text)
    return found


def pods(manifests: list[dict[str, Any]]) -> list[tuple[dict[str, str], dict[str, Any]]]:
    """Return the labels and spec of each pod."""
    templates = [made["spec"]["template"] for made in manifests if made["kind"] == "Deployment"]
    templates += [made for made in manifests if made["kind"] == "Pod"]
    return [(template["metadata"]["labels"], template["spec"]) for template in templates]


def secret(values: dict[str, Any], name: str) -> dict[str, str]:
    return {key: base64.b64decode(text).decode() for key, text in one(values, "Secret", name)["data"].items()}


def test_hadolint_finds_nothing_in_the_dockerfile():
    hadolint = shutil.which("hadolint", path=str(shutil.which(sys.executable)).rpartition("/")[0])
    assert hadolint
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_dockerfile_copies_what_exists_and_names_settings_that_exist():
    text = (ROOT / "Dockerfile").read_text("utf-8")
    for sources in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE):
        assert all((ROOT / source).exists() for source in sources.split())
    assert set(map(variable, OPTIONS)) >= set(re.findall(r"GATEWAY_\w+", text))
    assert re.search(r"^USER \d+:\d+$", text, re.MULTILINE)


def test_helm_lint_finds_nothing_but_a_missing_icon():
    report = lint(CHART, UPSTREAM, strict=True)
    assert [message["error"] for message in report["messages"]] == ["icon is recommended"]
    assert report["errors"] == []


def test_chart_and_image_have_the_version_of_the_package():
    assert yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))["appVersion"] == __version__
    assert pod_of(UPSTREAM)["containers"][0]["image"] == f"callbutton-gateway:{__version__}"


def test_the_chart_offers_every_setting_and_nothing_that_is_none():
    schema = json.loads((CHART / "values.schema.json").read_text("utf-8"))
    offered = {re.sub("([A-Z])", r"_\1", name).lower() for name in schema["properties"]["settings"]["properties"]}
    given = environment(MATRIX["simulator"] | {"tls": {"existingSecret": "ours"}})
    made = {name.removeprefix(PREFIX).lower() for name in given if name.startswith(PREFIX)}
    assert offered.isdisjoint(made)
    assert offered | made == OPTIONS.keys()


@pytest.mark.parametrize("name", ["a shared cache", "secrets of yours"])
def test_the_way_to_a_shared_cache_is_open(name: str):
    assert environment(MATRIX[name])["GATEWAY_CACHE_URL"].startswith("redis://")
    egress = one(MATRIX[name], "NetworkPolicy")["spec"]["egress"]
    assert {"ports": [{"port": 6379, "protocol": "TCP"}]} in egress


@CASES
def test_the_gateway_can_read_what_the_chart_sets(values: dict[str, Any]):
    settings = parse_settings(environment(values))
    assert settings.upstream_url == values.get("upstream", {}).get("url", f"http://gateway-simulator:8081{PATH}")
    assert (settings.auth, settings.signing_key) == (values.get("auth", "keys"), "s" * 32)


def test_settings_reach_the_gateway():
    settings = parse_settings(environment(EVERYTHING))
    assert (settings.upstream_proxy, settings.fresh_ratio) == ("http://proxy.example:3128", 0.05)


def test_spans_go_where_the_chart_is_told_and_a_secret_may_hold_the_token():
    found = environment(EVERYTHING)
    assert found["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector.example:4318"
    assert found["OTEL_EXPORTER_OTLP_HEADERS"] == SECRETS["headers"]
    assert not [name for name in environment(UPSTREAM) if name.startswith("OTEL_")]


@CASES
def test_a_pod_may_end_after_its_longest_flight(values: dict[str, Any]):
    settings = parse_settings(environment(values))
    longest = (
        values.get("preStopSeconds", 0) + settings.drain_delay + Limits().shutdown_timeout + settings.upstream_deadline
    )
    assert pod_of(values)["terminationGracePeriodSeconds"] > longest


@CASES
def test_selectors_meet_the_pods_they_are_for_and_no_others(values: dict[str, Any]):
    made = with_helm4(values)
    labels = [labels for labels, _ in pods(made)]
    for manifest in made:
        spec = manifest.get("spec") or {}
        if manifest["kind"] in {"Service", "Deployment", "PodDisruptionBudget", "NetworkPolicy"}:
            selector = spec.get("podSelector") or spec["selector"]
            wanted = selector.get("matchLabels", selector).items()
            component = manifest["metadata"]["labels"]["app.kubernetes.io/component"]
            met = [label["app.kubernetes.io/component"] for label in labels if wanted <= label.items()]
            assert met == [component], manifest["metadata"]["name"]


@CASES
def test_ports_named_are_ports_of_the_pods(values: dict[str, Any]):
    made = with_helm4(values)
    for manifest in made:
        if manifest["kind"] == "Service":
            (pod,) = (pod for labels, pod in pods(made) if manifest["spec"]["selector"].items() <= labels.items())
            names = {port["name"] for container in pod["containers"] for port in container["ports"]}
            assert {port["targetPort"] for port in manifest["spec"]["ports"]} <= names
    numbers = {port["name"]: port["containerPort"] for port in pod_of(values)["containers"][0]["ports"]}
    settings = parse_settings(environment(values))
    assert numbers == {"http": settings.port, "metrics": settings.metrics_port}


@CASES
def test_every_pod_has_restricted_security(values: dict[str, Any]):
    for _, pod in pods(with_helm4(values)):
        assert (pod["automountServiceAccountToken"], pod["enableServiceLinks"]) == (False, False)
        assert pod["securityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]


def test_the_monitor_finds_the_metrics_service_alone():
    services = [made for made in with_helm4(EVERYTHING) if made["kind"] == "Service"]
    wanted = one(EVERYTHING, "ServiceMonitor")["spec"]["selector"]["matchLabels"].items()
    met = [made["metadata"]["name"] for made in services if wanted <= made["metadata"]["labels"].items()]
    assert met == ["gateway-metrics"]


@pytest.mark.parametrize(
    ("values", "egress"),
    [
        (UPSTREAM, [(80, ["0.0.0.0/0", "::/0"])]),
        (EVERYTHING, [(3128, ["198.51.100.7/32"]), (6380, []), (4318, [])]),
        (GENERATED | {"upstream": {"url": "https://callbutton.example/x"}}, [(443, ["0.0.0.0/0", "::/0"])]),
        (GENERATED | {"upstream": {"url": "http://[2001:db8::7]:8443/x"}}, [(8443, ["0.0.0.0/0", "::/0"])]),
        (MATRIX["simulator"], [(8081, ["simulator"]), (6379, ["valkey"])]),
        (MATRIX["tokens"], [(80, ["0.0.0.0/0", "::/0"]), (443, ["0.0.0.0/0", "::/0"])]),
        (
            UPSTREAM | {"settings": {"recordingUrl": "https://media.example:8443/{id}"}},
            [(80, ["0.0.0.0/0", "::/0"]), (8443, ["0.0.0.0/0", "::/0"])],
        ),
        (UPSTREAM | {"settings": {"recordingUrl": "/other?id={id}"}}, [(80, ["0.0.0.0/0", "::/0"])]),
        (
            UPSTREAM
            | {
                "settings": {"recordingUrl": "https://media.example/{id}", "upstreamProxy": "http://proxy.example:3128"}
            },
            [(3128, ["0.0.0.0/0", "::/0"])],
        ),
    ],
    ids=[
        "http",
        "proxy",
        "https",
        "port",
        "simulator",
        "issuer",
        "recordings elsewhere",
        "recordings there",
        "recordings by proxy",
    ],
)
def test_the_gateway_may_reach_names_and_the_upstream_and_nothing_else(
    values: dict[str, Any], egress: list[tuple[int, list[str]]]
):
    names, *others = one(values, "NetworkPolicy")["spec"]["egress"]
    assert names == {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}
    reached = []
    for rule in others:
        peers = [
            peer["ipBlock"]["cidr"]
            if "ipBlock" in peer
            else peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"]
            for peer in rule.get("to", [])
        ]
        reached += [(port["port"], peers) for port in rule["ports"]]
    assert reached == egress


def test_without_keys_one_is_generated_that_the_gateway_accepts():
    generated = secret(UPSTREAM, "gateway-keys")
    consumer, _ = parse_keys(generated["keys.toml"]).find(generated["key"], 0)
    assert consumer is not None
    assert (consumer.clients, consumer.scopes) == (("*",), frozenset(SCOPES))
    assert generated["key"] != secret(UPSTREAM | {"replicas": 3}, "gateway-keys")["key"]
    assert hashlib.sha256(generated["key"].encode()).hexdigest() in generated["keys.toml"]


def test_a_signing_key_is_generated_that_is_long_enough():
    assert re.fullmatch("[A-Za-z0-9]{48}", secret(UPSTREAM, "gateway-signing-key")["signing-key"])


def test_the_gateway_knows_the_password_of_the_valkey_server():
    assert re.fullmatch("[A-Za-z0-9]{32}", secret(MATRIX["simulator"], "gateway-valkey")["password"])
    assert environment(MATRIX["simulator"])["GATEWAY_CACHE_URL"] == "redis://:p4@gateway-valkey:6379/0"
    for name, variable_name in (("gateway", "VALKEY_PASSWORD"), ("gateway-valkey", "PASSWORD")):
        (container,) = pod_of(MATRIX["simulator"], name)["containers"]
        (reference,) = (entry["valueFrom"] for entry in container["env"] if entry["name"] == variable_name)
        assert reference == {"secretKeyRef": {"name": "gateway-valkey", "key": "password"}}


def test_the_address_of_a_cache_of_yours_is_a_secret():
    assert secret(EVERYTHING, "gateway-cache") == {"cache-url": EVERYTHING["cache"]["url"]}


def test_additional_consumers_are_beside_the_generated_key():
    values = UPSTREAM | {"keys": {"additional": EVERYTHING["keys"]["file"]}}
    generated = secret(values, "gateway-keys")
    keyring = parse_keys(generated["keys.toml"])
    assert list(keyring.consumers) == ["first", "a"]
    assert keyring.find(generated["key"], 0)[0] == keyring.consumers["first"]


def test_nothing_is_generated_without_a_cluster_unless_it_is_allowed():
    with pytest.raises(HelmError, match=r"set signingKey\.existingSecret, or allowGenerated=true"):
        with_helm4(UPSTREAM | {"allowGenerated": False})
    given: dict[str, Any] = UPSTREAM | {"allowGenerated": False, "signingKey": {"existingSecret": "ours"}}
    with pytest.raises(HelmError, match=r"set keys\.existingSecret or keys\.file, or allowGenerated=true"):
        with_helm4(given)
    given |= {"keys": {"file": EVERYTHING["keys"]["file"]}, "valkey": {"enabled": True}}
    with pytest.raises(HelmError, match=r"set valkey\.existingSecret, or allowGenerated=true"):
        with_helm4(given)
    assert with_helm4(given | {"valkey": {"enabled": True, "existingSecret": "ours"}})


def test_keys_given_are_the_keys():
    assert secret(EVERYTHING, "gateway-keys") == {"keys.toml": EVERYTHING["keys"]["file"]}


def test_secrets_of_yours_are_used_and_none_is_made():
    values = MATRIX["secrets of yours"]
    assert not [made for made in with_helm4(values) if made["kind"] == "Secret"]
    pod = pod_of(values)
    assert [volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume] == ["our-keys"]
    named = [entry["valueFrom"] for entry in pod["containers"][0]["env"] if "valueFrom" in entry]
    assert named == [
        {"secretKeyRef": {"name": "our-signing-key", "key": "signing-key"}},
        {"secretKeyRef": {"name": "our-cache", "key": "cache-url"}},
    ]


def test_notes_tell_how_to_read_the_generated_key():
    notes = Chart.load(CHART).render(SIMULATED, name="gateway", namespace="callbutton")
    (text,) = (text for name, text in notes.items() if name.endswith("NOTES.txt"))
    assert "kubectl -n callbutton get secret gateway-keys -o jsonpath='{.data.key}' | base64 -d" in text


@pytest.mark.parametrize(
    "values",
    [
        GENERATED,
        GENERATED | {"upstream": {"url": ""}},
        GENERATED | {"upstream": {"url": "callbutton.example/xml.jsp"}},
        UPSTREAM | {"replica": 2},
        UPSTREAM | {"auth": "basic"},
        UPSTREAM | {"replicas": 0},
        UPSTREAM | {"settings": {"freshMinimum": "15s"}},
        UPSTREAM | {"settings": {"freshMin": "15 minutes"}},
        UPSTREAM | {"metrics": {"port": 8080}},
        UPSTREAM | {"auth": "keys+oidc"},
        UPSTREAM | {"ingress": {"enabled": True}},
        UPSTREAM | {"httpRoute": {"enabled": True}},
        UPSTREAM | {"autoscaling": {"enabled": True, "cpuPercent": 0}},
        UPSTREAM | {"extraEnv": [{"name": "GATEWAY_PORT", "value": "1"}]},
        UPSTREAM | SIMULATED,
        UPSTREAM | {"keys": {"file": "[[consumer]]", "existingSecret": "ours"}},
        UPSTREAM | {"keys": {"additional": "[[consumer]]", "existingSecret": "ours"}},
        UPSTREAM | {"valkey": {"enabled": True}, "cache": {"url": "redis://redis.example"}},
        UPSTREAM | {"cache": {"url": "redis://redis.example", "existingSecret": "ours"}},
        UPSTREAM | {"autoscaling": {"enabled": True, "min": 5, "max": 2}},
    ],
    ids=[
        "no upstream",
        "empty upstream",
        "no scheme",
        "unknown value",
        "unknown auth",
        "no replicas",
        "unknown setting",
        "bad duration",
        "one port for both",
        "tokens without an issuer",
        "ingress without hosts",
        "route without gateways",
        "scaling by nothing",
        "a setting in the wrong place",
        "calls made up and real",
        "keys twice",
        "keys beside a secret of yours",
        "caches twice",
        "a cache's address twice",
        "fewer at most than at least",
    ],
)
def test_values_that_cannot_work_are_refused(values: dict[str, Any]):
    with pytest.raises(HelmError):
        with_helm4(values)


def test_the_table_of_sizes_is_what_the_simulation_says():
    text = (CHART / "README.md").read_text("utf-8")
    sizes = text.split("## Sizing")[1]
    assert [line for line in sizes.splitlines() if line.startswith("|")] == scaling.rows()


def test_the_chart_s_readme_names_values_and_files_that_exist():
    text = (CHART / "README.md").read_text("utf-8")
    schema = json.loads((CHART / "values.schema.json").read_text("utf-8"))
    for path in re.findall(
        r"`((?:upstream|simulator|settings|keys|signingKey|metrics|autoscaling|cache|valkey)\.(?!toml)[\w.]+)", text
    ):
        part = schema
        for name in path.split("."):
            part = schema["definitions"].get(part.get("$ref", "").rpartition("/")[2], part)["properties"][name]
    for name in re.findall(r"`(\w+\.(?:yaml|json|md))`", text):
        assert (CHART / name).exists()
