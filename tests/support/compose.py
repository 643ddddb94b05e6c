"""compose.yaml, and its services run by hand on ports of 127.0.0.1 with its own configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.support.paths import ROOT
from tests.support.processes import answers, running, wait_for
from tests.support.tools import tool

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
CONFIGS: dict[str, dict[str, str]] = COMPOSE["configs"]
PROMETHEUS: dict[str, Any] = yaml.safe_load(CONFIGS["prometheus"]["content"])


def environment(service: str) -> dict[str, str]:
    """Return the variables of a service, with the defaults of what compose replaces."""
    variables = COMPOSE["services"][service]["environment"]
    return {name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", text) for name, text in variables.items()}


@contextmanager
def nginx(folder: Path, front: int, ports: list[int]) -> Iterator[None]:
    """Run nginx on the port `front`, before replicas on these ports: addresses in place of host names."""
    servers = "\n".join(f"server 127.0.0.1:{port} max_fails=1 fail_timeout=2s;" for port in ports)
    text = CONFIGS["nginx"]["content"].replace("$$", "$")
    text, found = re.subn(r"server gateway:8080 resolve (.*);", servers, text)
    assert found == 1
    text, found = re.subn(r"listen 8080;", f"listen 127.0.0.1:{front};", text)
    assert found == 1
    with running_nginx(folder, front, re.sub(r"resolver .*;", "", text)):
        yield


@contextmanager
def running_nginx(folder: Path, front: int, text: str) -> Iterator[None]:
    """Run nginx with a configuration that listens on the port `front`, and its files in a writable folder."""
    paths = "\n".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    configuration = folder / "nginx.conf"
    configuration.write_text(f"pid {folder}/nginx.pid;\n" + text.replace("http {", f"http {{\n{paths}", 1), "utf-8")
    program = tool("nginx", "nginx-light")
    words: list[str | Path] = [program, "-p", folder, "-c", configuration, "-e", "stderr", "-g", "daemon off;"]
    with running(words, folder / "nginx.log"):
        wait_for(lambda: answers(f"http://127.0.0.1:{front}/readyz"), "nginx answers")
        yield


@contextmanager
def prometheus(folder: Path, own_port: int, ports: list[int]) -> Iterator[str]:
    """Run Prometheus for replicas whose metrics are on these ports. Yields its address."""
    program = tool("prometheus")
    (scraped,) = PROMETHEUS["scrape_configs"]
    targets = {"static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports]}]}  # in place of DNS
    configuration = PROMETHEUS | {
        "global": PROMETHEUS["global"] | {"scrape_interval": "1s"},
        "rule_files": [str(ROOT / CONFIGS["alerts"]["file"])],
        "scrape_configs": [{"job_name": scraped["job_name"]} | targets],
    }
    file = folder / "prometheus.yaml"
    file.write_text(yaml.safe_dump(configuration), "utf-8")
    words: list[str | Path] = [
        program,
        f"--config.file={file}",
        f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{own_port}",
    ]
    address = f"http://127.0.0.1:{own_port}"
    with running(words, folder / "prometheus.log"):
        wait_for(lambda: answers(f"{address}/-/ready"), "Prometheus is ready")
        yield address
