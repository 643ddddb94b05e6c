"""Metrics: label values that exist from the start, process metrics, and promtool's check of a scrape."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from gateway import metrics
from gateway.callbutton import client
from gateway.callbutton.wait_queue import DropReason
from gateway.metrics import PREFIX, Metrics, RequestMetrics
from gateway.model import StartTimeCertainty
from tests.support.tools import tool

GATEWAY = Path(metrics.__file__).parent


def scraped() -> str:
    registry = CollectorRegistry()
    Metrics(registry).requests.add("GET", "/calls", 200, 0.02, "dashboard")
    return generate_latest(registry).decode()


def test_request_metrics_are_a_counter_a_histogram_and_a_gauge():
    registry = CollectorRegistry()
    requests = RequestMetrics(registry)
    for seconds in (0.0005, 0.001, 0.02, 400.0):
        requests.add("GET", "/calls", 200, seconds)
    requests.in_flight = 3
    lines = generate_latest(registry).decode().splitlines()
    for line in (
        'callbutton_gateway_requests_total{method="GET",route="/calls",status="200"} 4.0',
        'callbutton_gateway_request_seconds_bucket{le="0.001",route="/calls"} 2.0',
        'callbutton_gateway_request_seconds_bucket{le="0.025",route="/calls"} 3.0',
        'callbutton_gateway_request_seconds_bucket{le="300.0",route="/calls"} 3.0',
        'callbutton_gateway_request_seconds_bucket{le="+Inf",route="/calls"} 4.0',
        'callbutton_gateway_request_seconds_count{route="/calls"} 4.0',
        'callbutton_gateway_request_seconds_sum{route="/calls"} 400.0215',
        "callbutton_gateway_requests_in_flight 3.0",
    ):
        assert line in lines


@pytest.mark.parametrize(
    ("known", "used"),
    [
        (metrics.OUTCOMES, {*client.OUTCOMES.values(), "ok", "cancelled"}),
        (metrics.DROP_REASONS, set(DropReason)),
        (metrics.CERTAINTIES, set(StartTimeCertainty) - {StartTimeCertainty.EXACT}),
    ],
    ids=["outcomes", "drop reasons", "certainties"],
)
def test_the_known_label_values_are_those_in_use(known: tuple[str, ...], used: set[str]):
    assert set(known) == used


@pytest.mark.parametrize(
    ("known", "pattern"),
    [
        (metrics.REPAIRS, r"repairs\[\"(\w+)\"\]"),
        (metrics.OPERATIONS, r"\.(?:run|_send)\(\s*\"(\w+)\", "),
        (
            metrics.ERRORS,
            r"shared_errors\.labels\(operation, \"(\w+)\"\)|kind = \"(\w+)\" if isinstance.* else \"(\w+)\"",
        ),
    ],
    ids=["repairs", "operations", "errors"],
)
def test_the_known_label_values_are_those_in_the_source(known: tuple[str, ...], pattern: str):
    text = "".join(path.read_text("utf-8") for path in GATEWAY.rglob("*.py"))
    assert set(known) == {word for match in re.finditer(pattern, text) for word in match.groups() if word}


@pytest.mark.parametrize(
    "series",
    [
        'upstream_posts_total{outcome="timeout"}',
        'upstream_dropped_total{reason="late"}',
        'ambiguous_times_total{certainty="assumed"}',
        'text_repairs_total{repair="unknown_charset"}',
        'cache_lookups_total{result="miss"}',
        'feed_changes_total{kind="replace"}',
        'feed_refreshes_total{outcome="failed"}',
        'cache_shared_lookups_total{result="unavailable"}',
        'cache_shared_errors_total{error="timeout",operation="spent"}',
        'rows_total{source="upstream"}',
        'refused_total{reason="unknown key"}',
        'issuer_fetches_total{outcome="failed"}',
    ],
)
def test_a_series_with_known_labels_begins_with_0(series: str):
    assert f"{PREFIX}_{series} 0.0" in scraped().splitlines()


def test_the_process_and_the_interpreter_have_their_series():
    names = set(re.findall(r"^# TYPE (\w+)", scraped(), re.MULTILINE))
    assert {"process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"} <= names
    assert {"python_info", "python_gc_collections_total"} <= names


def test_promtool_finds_nothing_in_a_scrape():
    command: list[str | Path] = [tool("promtool", "prometheus"), "check", "metrics"]
    done = subprocess.run(command, input=scraped(), capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
