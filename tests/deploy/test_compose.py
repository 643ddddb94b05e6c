"""compose.yaml: its settings, and its services run together with their own configuration.

No implementation of compose runs here, so each service is started by hand. Grafana is not run: its files are checked.
"""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import yaml

from gateway.guard import Limits
from gateway.settings import parse_settings
from gateway.simulator.server import PATH
from tests.support.compose import COMPOSE, CONFIGS, PROMETHEUS, environment, nginx, prometheus
from tests.support.dashboard import DASHBOARD, EXPRESSIONS
from tests.support.processes import answers, free_port, gateway, reachable, running, wait_for
from tests.support.servers import valkey

SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
REPLICAS: int = SERVICES["gateway"]["deploy"]["replicas"]


def provided(service: str, target: str) -> str:
    """Return the content of the only file of a service below a path."""
    (name,) = (entry["source"] for entry in SERVICES[service]["configs"] if entry["target"].startswith(target))
    return CONFIGS[name]["content"]


def test_the_services_answer_together_and_prometheus_has_what_the_dashboard_shows(tmp_path: Path):
    simulated, cache, front, own = (free_port() for _ in range(4))
    ports = [(free_port(), free_port()) for _ in range(REPLICAS)]
    given = environment("gateway")
    given["GATEWAY_UPSTREAM_URL"] = given["GATEWAY_UPSTREAM_URL"].replace("simulator:8081", f"127.0.0.1:{simulated}")
    given["GATEWAY_CACHE_URL"] = given["GATEWAY_CACHE_URL"].replace("valkey:6379", f"127.0.0.1:{cache}")
    replicas = [
        given | {"GATEWAY_PORT": str(port), "GATEWAY_METRICS_PORT": str(metrics), "GATEWAY_DRAIN_DELAY": "0s"}
        for port, metrics in ports
    ]
    program, *options = SERVICES["valkey"]["command"]
    assert program == "valkey-server"
    with ExitStack() as stack:

        def start(name: str, words: list[str | Path], **variables: str) -> None:
            stack.enter_context(running(words, tmp_path / f"{name}.log", str(tmp_path), **variables))

        start("simulator", gateway(*SERVICES["simulator"]["command"], "--port", str(simulated)))
        start("valkey", [valkey(), *options, "--port", str(cache)])
        wait_for(lambda: reachable(simulated) and reachable(cache), "simulator and cache listen", 120)
        for number, variables in enumerate(replicas):
            start(f"gateway-{number}", gateway("serve"), **variables)
        wait_for(lambda: all(answers(f"http://127.0.0.1:{port}/readyz") for port, _ in ports), "all replicas", 120)
        stack.enter_context(nginx(tmp_path, front, [port for port, _ in ports]))
        address = stack.enter_context(prometheus(tmp_path, own, [metrics for _, metrics in ports]))

        path = "/clients/8005550100/calls"
        window = {"start": "2026-09-01", "end": "2026-09-02"}
        pages = [httpx.get(f"http://127.0.0.1:{front}{path}", params=window, timeout=60) for _ in range(2 * REPLICAS)]
        assert {page.status_code for page in pages} == {200}
        assert pages[0].json()["data"]
        assert {page.headers["ETag"] for page in pages} == {pages[0].headers["ETag"]}

        def ask(query: str) -> list[dict[str, Any]]:
            answer = httpx.get(f"{address}/api/v1/query", params={"query": query}, timeout=60).json()
            assert answer["status"] == "success", (query, answer)
            result: list[dict[str, Any]] = answer["data"]["result"]
            return result

        wait_for(lambda: len(ask("callbutton_gateway_build_info")) == REPLICAS, "scrapes of all replicas", 120)
        wait_for(
            lambda: ask(f"sum(callbutton_gateway_requests_total) >= {len(pages)}"), "a scrape after the requests", 60
        )
        assert ask("sum(callbutton_gateway_upstream_posts_total)")[0]["value"][1] == "1"  # the cache is shared
        for _, expression in EXPRESSIONS:
            replaced = expression.replace("$__rate_interval", "1m").replace("$namespace", ".*").replace("$job", ".*")
            assert "$" not in replaced
            ask(replaced)
        (group,) = httpx.get(f"{address}/api/v1/rules", timeout=60).json()["data"]["groups"]
        assert {rule["health"] for rule in group["rules"]} <= {"ok", "unknown"}

        check = SERVICES["gateway"]["healthcheck"]["test"]
        assert check[:2] == ["CMD", "callbutton-gateway"]
        for variables in replicas:
            done = subprocess.run(gateway(*check[2:]), env=variables, capture_output=True, timeout=60, check=False)
            assert (done.returncode, done.stderr) == (0, b"")


def test_grafana_finds_its_data_source_and_the_dashboard():
    (source,) = yaml.safe_load(provided("grafana", "/etc/grafana/provisioning/datasources/"))["datasources"]
    address = urlsplit(source["url"])
    assert address.hostname in SERVICES
    assert SERVICES[address.hostname]["ports"][0].endswith(f":{address.port}")
    (variable,) = (made for made in DASHBOARD["templating"]["list"] if made["type"] == "datasource")
    assert (variable["query"], source["isDefault"]) == (source["type"], True)
    (provider,) = yaml.safe_load(provided("grafana", "/etc/grafana/provisioning/dashboards/"))["providers"]
    (target,) = (e["target"] for e in SERVICES["grafana"]["configs"] if CONFIGS[e["source"]].get("file"))
    assert CONFIGS["dashboard"]["file"] == "helm/dashboard.json"
    assert str(Path(target).parent) == provider["options"]["path"]
    assert SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"] == target


@pytest.mark.parametrize("service", SERVICES)
def test_files_of_services_exist(service: str):
    for entry in SERVICES[service].get("configs", []):
        made = CONFIGS[entry["source"]]
        assert "content" in made or Path(made["file"]).exists()


def test_compose_sets_what_the_gateway_reads_and_hardens_what_is_ours():
    services = SERVICES
    settings = parse_settings(environment("gateway"))
    assert urlsplit(settings.upstream_url)[1:3] == ("simulator:8081", PATH)
    assert settings.cache_url == "valkey://valkey:6379"
    assert settings.metrics_port == PROMETHEUS["scrape_configs"][0]["dns_sd_configs"][0]["port"]
    assert Path("helm/alerts.yaml") == Path(CONFIGS["alerts"]["file"])
    assert services["simulator"]["image"] == services["gateway"]["image"]
    grace = float(services["gateway"]["stop_grace_period"].removesuffix("s"))
    assert grace > settings.drain_delay + Limits().shutdown_timeout + settings.upstream_deadline
    for name in ("simulator", "gateway"):
        assert services[name]["read_only"]
        assert services[name]["cap_drop"] == ["ALL"]
    assert services["gateway"]["deploy"]["replicas"] == 3


@pytest.mark.parametrize("name", SERVICES)
def test_compose_opens_ports_to_this_machine_alone(name: str):
    for port in SERVICES[name].get("ports", []):
        assert port.startswith("127.0.0.1:")
