"""The Singer tap of openapi/clients, into PostgreSQL by a published target: the live rows equal the upstream."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from gateway import __version__
from gateway.extra_fields import parse_extra_fields
from tests.support.changing_simulator import PERIOD, changing
from tests.support.connectors import CLIENTS, connector
from tests.support.feed import START, listed
from tests.support.servers import Postgres
from tests.support.stand import Make

TAP = CLIENTS / "tap_callbutton.py"
Json = dict[str, Any]


class Tap:
    """The tap with a configuration and its last state, in a folder."""

    def __init__(self, folder: Path, **config: Any) -> None:
        self._folder = folder
        self.write("config", config)
        self.write("state", {})

    def write(self, name: str, content: Json) -> None:
        (self._folder / f"{name}.json").write_text(json.dumps(content), "utf-8")

    def output(self, *options: str) -> bytes:
        command: list[str | Path] = [sys.executable, TAP, "--config", "config.json", *options]
        done = subprocess.run(command, cwd=self._folder, capture_output=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr.decode()[-2000:]
        return done.stdout

    def sync(self, *options: str) -> list[Json]:
        """The messages of a sync from the last state on."""
        return [json.loads(line) for line in self.output("--state", "state.json", *options).splitlines()]


class Target:
    """The published target, which writes to PostgreSQL. It marks rows whose record or version is gone."""

    def __init__(self, folder: Path, server: Postgres) -> None:
        self._folder, self._server = folder, server
        place = {"host": "127.0.0.1", "port": server.port, "user": "postgres", "password": "-", "database": "postgres"}
        options = {"default_target_schema": "public", "add_record_metadata": True, "activate_version": True}
        (folder / "target.json").write_text(json.dumps(place | options), "utf-8")

    def load(self, messages: list[Json]) -> Json:
        """Load messages, and return the last state."""
        done = subprocess.run(
            [connector("target-postgres"), "--config", "target.json"],
            cwd=self._folder,
            input="".join(f"{json.dumps(message)}\n" for message in messages),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        state: Json = json.loads(done.stdout.splitlines()[-1])
        return state

    def live(self) -> dict[tuple[str, str], str | None]:
        """The rows that are not marked, with the text that edits change."""
        with psycopg.connect(self._server.url) as connection:
            rows = connection.execute(
                'SELECT "clientCode", id, extra FROM calls WHERE _sdc_deleted_at IS NULL'
            ).fetchall()
        return {(code, id_): extra.get("Edited") for code, id_, extra in rows}


def test_the_live_rows_equal_the_upstream_after_late_edited_and_deleted_calls(tmp_path: Path, postgresql: Postgres):
    with changing(rarity=12) as (gateway, expected):
        tap, target = Tap(tmp_path, url=gateway.address, start_date=START), Target(tmp_path, postgresql)
        full, gone = list[bool](), list[str]()
        for restart in (False, False, True, False):
            if restart:  # the new one has seen no change: it replaces windows, which needs a new version
                gateway.restart()
                tap.write("config", {"url": gateway.address, "start_date": START})
            messages = tap.sync()
            full.append(any(message["type"] == "ACTIVATE_VERSION" for message in messages))
            gone += [one["record"]["id"] for one in messages if one.get("record", {}).get("_sdc_deleted_at")]
            tap.write("state", target.load(messages))
            assert target.live() == expected()
            gateway.pass_time(100 * PERIOD + PERIOD)
        assert full == [True, False, True, False]
        assert gone


def test_a_record_has_the_fields_of_the_feed_and_promoted_ones(tmp_path: Path):
    fields = parse_extra_fields("CustomA:property")
    with changing(extra_fields=fields) as (gateway, _):
        tap = Tap(tmp_path, url=gateway.address, start_date=START, clients=["8005550100"], status=True)
        catalog = json.loads(tap.output("--discover"))
        schema, *messages = tap.sync()
        records = [message["record"] for message in messages if message["type"] == "RECORD"]
        assert schema["schema"] == catalog["streams"][0]["schema"]
        assert {(record.pop("_sdc_deleted_at"), *schema["key_properties"]) for record in records} == {
            (None, "clientCode", "id")
        }
        calls = listed(gateway, include="status")
        assert {(record["clientCode"], record["id"]): record for record in records} == calls != {}
        assert all("property" in call and call["status"] for call in calls.values())
        part = catalog["streams"][0]["metadata"]
        next(one for one in part if one["breadcrumb"] == ["properties", "ani"])["metadata"]["selected"] = False
        tap.write("catalog", catalog)
        shown = {key for one in tap.sync("--catalog", "catalog.json") for key in one.get("record", {})}
        assert shown == {*records[0], "_sdc_deleted_at"} - {"ani"}
        part[0]["metadata"]["selected"] = False
        tap.write("catalog", catalog)
        assert tap.sync("--catalog", "catalog.json") == []


def test_a_state_that_is_not_accepted_makes_a_new_version(stand: Make, tmp_path: Path):
    gateway = stand()
    tap = Tap(tmp_path, url=str(gateway.client.base_url), start_date=START)
    *_, activated, state = tap.sync()
    assert activated["type"] == "ACTIVATE_VERSION"
    bookmark = state["value"]["bookmarks"]["calls"]
    assert (bookmark["version"], bookmark["start"]) == (activated["version"], f"{START}T00:00:00Z")
    tap.write("state", state["value"])
    schema, again = tap.sync()
    assert (schema["type"], again["value"]["bookmarks"]["calls"]["version"]) == ("SCHEMA", activated["version"])
    tap.write("state", {"bookmarks": {"calls": bookmark | {"token": "of another key"}}})
    *_, renewed, _ = tap.sync()
    assert renewed["version"] > activated["version"]


@pytest.mark.parametrize(
    ("config", "code", "said"),
    [
        (None, 2, "No such file"),
        ("{", 2, "config.json: Expecting"),
        ("[]", 2, "config.json is not a JSON object"),
        ("{}", 2, "the configuration has no url"),
        ('{"url": "URL", "start_date": "soon"}', 1, "the gateway answered 400: {"),
        ('{"url": "gateway.example:8080"}', 2, "the configuration has no url that begins with http:// or https://"),
        ('{"url": "http://127.0.0.1:1"}', 1, "http://127.0.0.1:1: "),
    ],
    ids=["no file", "no JSON", "no object", "no url", "a problem", "no scheme", "no gateway"],
)
def test_a_configuration_that_cannot_be_used_ends_the_tap_with_a_line(
    stand: Make, tmp_path: Path, config: str | None, code: int, said: str
):
    if config is not None:
        text = config.replace("URL", str(stand().client.base_url))
        (tmp_path / "config.json").write_text(text, "utf-8")
    command: list[str | Path] = [sys.executable, TAP, "--config", "config.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.count('"RECORD"')) == (code, 0)
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_the_tap_belongs_to_this_version_of_the_contract():
    found = re.search(r'CONTRACT = "(.*)"', TAP.read_text("utf-8"))
    assert found is not None
    assert found[1] == __version__
