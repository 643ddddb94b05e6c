"""compose.yaml, and its services run by hand on ports of 127.0.0.1 with its own configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from benchmarks import compose
from benchmarks.compose import COMPOSE, CONFIGS
from tests.support.paths import ROOT
from tests.support.processes import answers, running, wait_for
from tests.support.tools import tool

__all__ = ["COMPOSE", "CONFIGS", "PROMETHEUS", "environment", "nginx", "prometheus", "running_nginx"]
PROMETHEUS: dict[str, Any] = yaml.safe_load(CONFIGS["prometheus"]["content"])


def environment(service: str) -> dict[str, str]:
    """Return the variables of a service, with the defaults of what compose replaces."""
    variables = COMPOSE["services"][service]["environment"]
    return {name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", text) for name, text in variables.items()}


@contextmanager
def nginx(folder: Path, front: int, ports: list[int]) -> Iterator[None]:
    """Run nginx on the port `front`, before replicas on these ports."""
    tool("nginx", "nginx-light")
    with compose.nginx(folder, front, ports):
        yield


@contextmanager
def running_nginx(folder: Path, front: int, text: str) -> Iterator[None]:
    """Run nginx with a configuration that listens on the port `front`."""
    tool("nginx", "nginx-light")
    with compose.running_nginx(folder, front, text):
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
        wait_for(lambda: answers(f"{address}/-/ready"), "Prometheus is ready", 120)
        yield address
