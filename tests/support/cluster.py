"""The subset of the Kubernetes API that Helm needs to install and upgrade. It stores objects and runs nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

KINDS = {
    "v1": {
        "services": "Service",
        "secrets": "Secret",
        "configmaps": "ConfigMap",
        "pods": "Pod",
        "serviceaccounts": "ServiceAccount",
        "namespaces": "Namespace",
    },
    "apps/v1": {"deployments": "Deployment"},
    "policy/v1": {"poddisruptionbudgets": "PodDisruptionBudget"},
    "networking.k8s.io/v1": {"networkpolicies": "NetworkPolicy", "ingresses": "Ingress"},
}
NAMESPACE = "/api/v1/namespaces/kube-system"
VERBS = ["create", "delete", "get", "list", "patch", "update"]
Object = dict[str, Any]


class Cluster:
    """Objects by their path."""

    def __init__(self) -> None:
        named = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-system"}}
        self.objects: dict[str, Object] = {NAMESPACE: named}

    def named(self, collection: str, name: str) -> Object:
        """Return an object of a collection such as `secrets`, in any namespace."""
        (found,) = (made for path, made in self.objects.items() if path.endswith(f"/{collection}/{name}"))
        return found

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: bytes) -> tuple[int, Object]:
        """Answer a request."""
        if method == "GET" and (found := self._discovery(path)) is not None:
            return 200, found
        sent: Object = json.loads(body) if body else {}
        if method == "POST":
            path = f"{path}/{sent['metadata']['name']}"
            self.objects[path] = sent
            return 201, sent
        plain = {name: kind for kinds in KINDS.values() for name, kind in kinds.items()}
        if method == "GET" and (kind := plain.get(path.rpartition("/")[2])):
            wanted = dict(part.split("=") for part in query.get("labelSelector", [""])[0].split(",") if part)
            items = [
                made
                for at, made in self.objects.items()
                if at.rpartition("/")[0] == path and wanted.items() <= made["metadata"].get("labels", {}).items()
            ]
            return 200, {"kind": f"{kind}List", "apiVersion": "v1", "metadata": {}, "items": items}
        if path not in self.objects:
            return 404, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
        if method in {"PUT", "PATCH"}:
            self.objects[path] = sent if method == "PUT" else _merged(self.objects[path], sent)
        elif method == "DELETE":
            return 200, self.objects.pop(path)
        return 200, self.objects[path]

    @staticmethod
    def _discovery(path: str) -> Object | None:
        if path == "/version":
            return {"major": "1", "minor": "30", "gitVersion": "v1.30.0"}
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            groups = [
                {"name": version.partition("/")[0], "versions": [{"groupVersion": version, "version": "v1"}]}
                for version in KINDS
                if "/" in version
            ]
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
        version = path.removeprefix("/apis/").removeprefix("/api/")
        if version not in KINDS:
            return None
        resources = [
            {"name": name, "singularName": "", "namespaced": name != "namespaces", "kind": kind, "verbs": VERBS}
            for name, kind in KINDS[version].items()
        ]
        return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}


def _merged(before: Object, patch: Object) -> Object:
    merged = {name: value for name, value in before.items() if patch.get(name, "") is not None}
    for name, value in patch.items():
        if value is not None:
            both = isinstance(value, dict) and isinstance(merged.get(name), dict)
            merged[name] = _merged(merged[name], value) if both else value
    return merged


@contextmanager
def cluster(folder: Path) -> Iterator[tuple[Cluster, Path]]:
    """Serve a cluster. Yields it and the path of its kubeconfig file."""
    kept = Cluster()

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, answer = kept.answer(self.command, parts.path, parse_qs(parts.query), body)
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815 - the names that http.server calls

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the name of the base
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    file = folder / "kubeconfig"
    named: Object = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": address}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "current-context": "c",
    }
    file.write_text(yaml.safe_dump(named), "utf-8")
    file.chmod(0o600)
    try:
        yield kept, file
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
