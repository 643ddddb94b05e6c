"""The contract: committed as it is served, and sound by two validators."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from openapi_spec_validator import validate

from gateway.api.routes import document, document_yaml
from tests.conftest import Make
from tests.tools import need, tool

ROOT = Path(__file__).parent.parent
NODE = ROOT / "tests" / "node"


def test_the_committed_document_is_the_one_that_the_handlers_give():
    assert (ROOT / "openapi" / "openapi.yaml").read_text("utf-8") == document_yaml()


def test_the_document_is_served_as_it_is_committed(stand: Make):
    client = stand().client
    assert client.get("/openapi.yaml").text == document_yaml()
    assert client.get("/openapi.json").json() == document()


def test_openapi_spec_validator_finds_nothing():
    validate(document())


def test_redocly_finds_nothing_at_its_strictest():
    redocly = NODE / "node_modules" / ".bin" / "redocly"
    need(redocly.exists(), "npm ci in tests/node")
    command = [
        tool("node"),
        str(redocly),
        "lint",
        "--config",
        str(NODE / "redocly.yaml"),
        str(ROOT / "openapi" / "openapi.yaml"),
    ]
    environment = os.environ | {"REDOCLY_TELEMETRY": "off", "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
