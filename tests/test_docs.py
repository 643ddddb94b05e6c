"""README says what is there."""

import re
from pathlib import Path

from prometheus_client import CollectorRegistry

from gateway.metrics import Metrics
from gateway.settings import READERS

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")


def test_every_setting_is_in_the_table_and_nothing_else():
    assert set(re.findall(r"^\| `GATEWAY_(\w+)`", README, re.MULTILINE)) == {name.upper() for name in READERS}


def test_every_metric_is_in_the_table_and_nothing_else():
    registry = CollectorRegistry()
    Metrics(registry)
    names = {f"{metric.name}{'_total' if metric.type == 'counter' else ''}" for metric in registry.collect()}
    assert set(re.findall(r"^\| `(callbutton_gateway_\w+)`", README, re.MULTILINE)) == names
