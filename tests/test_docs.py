"""README.md says what the code does: settings, metrics, parameters, problems, commands, and the example's keys."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
from prometheus_client import CollectorRegistry

from gateway.__main__ import EXAMPLES
from gateway.api import params, problems
from gateway.api.calls import CallPage, Meta, PageLinks
from gateway.metrics import Metrics
from gateway.model import Call
from gateway.settings import PREFIX, READERS, Settings

README = (Path(__file__).parent.parent / "README.md").read_text("utf-8")


def rows(heading: str) -> list[list[str]]:
    """Read the cells of the first table under a heading."""
    section = README.split(f"\n{heading}\n", 1)[1]
    table = re.search(r"^\|.*\n\|[-|]+\n((?:\|.*\n)+)", section, re.MULTILINE)
    assert table is not None
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in table[1].splitlines()]


def keys(struct: type[msgspec.Struct]) -> set[str]:
    return {field.encode_name for field in msgspec.structs.fields(struct)}


def test_every_setting_is_in_the_table_with_its_default_and_nothing_else_is():
    default = Settings()
    written = {}
    for variable, text, _ in rows("## Settings"):
        name = variable.removeprefix(PREFIX).lower()
        unset = default.signing_key if text == "random" else getattr(default, name) or None
        written[name] = (unset if text in ("none", "random") else READERS[name](text)) or ""
    assert {name: getattr(default, name) or "" for name in READERS} == written
    assert [name for name, text in ((row[0], row[1]) for row in rows("## Settings")) if text == "none"] == [
        f"{PREFIX}{name.upper()}" for name in READERS if not getattr(default, name)
    ]


def test_the_readme_names_no_setting_that_does_not_exist():
    assert {f"{PREFIX}{name.upper()}" for name in READERS} == set(re.findall(r"GATEWAY_[A-Z_]*[A-Z]", README))


def test_every_series_is_in_the_readme_and_nothing_else_is():
    registry = CollectorRegistry()
    Metrics(registry)
    exposed = {family.name + ("_total" if family.type == "counter" else "") for family in registry.collect()}
    assert exposed == {row[0] for row in rows("## Metrics")}
    assert exposed == set(re.findall(r"callbutton_gateway_\w+", README))


def test_every_parameter_is_in_the_readme_and_nothing_else_is():
    section = README.split("Parameters of the two lists:")[1].split("\n\n")[1]
    named = set(re.findall(r"^\| `(\w+)`", section, re.MULTILINE))
    assert {parameter.name for parameter in (params.CLIENT, *params.TABLE)} == named


def test_every_problem_is_in_the_readme_with_its_status_and_nothing_else_is():
    kinds = {*problems.KINDS.values(), problems.NOT_FOUND, problems.NOT_ALLOWED, problems.INTERNAL}
    named = re.findall(r"^\| (\d{3}) \| `([a-z-]+)` \|", README, re.MULTILINE)
    assert {(str(kind.status), kind.name) for kind in kinds} == set(named)


def test_every_command_is_in_the_readme_and_nothing_else_is():
    assert list(EXAMPLES) == [row[0] for row in rows("## Try it")]


def test_the_example_is_json_with_the_documented_keys():
    block = README.split("<!-- example -->")[1].split("<!-- /example -->")[0]
    shown = json.loads(block.split("```json\n")[1].split("```")[0])
    assert keys(CallPage) == set(shown)
    assert keys(PageLinks) == set(shown["page"])
    assert keys(Meta) == set(shown["meta"])
    assert [keys(Call)] * max(1, len(shown["data"])) == [set(call) for call in shown["data"]]


def test_the_readme_leads_to_no_other_host():
    hosts = set(re.findall(r"https?://([^/:'\s]+)", README))
    assert {"127.0.0.1", "callbutton.example"} >= hosts
