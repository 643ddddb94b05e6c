"""The dlt source of openapi/clients: its table in DuckDB equals the upstream, whatever happened between two runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gateway import __version__
from gateway.extra_fields import parse_extra_fields
from tests.support.changing_simulator import PERIOD, changing
from tests.support.connectors import CLIENTS, connector
from tests.support.feed import LIST, START, listed
from tests.support.paths import ROOT
from tests.support.stand import Make

README = (ROOT / "openapi" / "README.md").read_text("utf-8")
# Runs the pipeline for each line, `address name start`, and prints the calls. `sql …` runs a statement instead.
RUNNER = """
import json, sys
import dlt
from callbutton_dlt import callbutton

for line in sys.stdin:
    command, _, rest = line.strip().partition(" ")
    destination = dlt.destinations.duckdb("calls.duckdb")
    pipeline = dlt.pipeline("callbutton", destination=destination, dataset_name="callbutton")
    if command == "run":
        address, clients, start = rest.split()
        pipeline.run(callbutton(address, None, clients.split(","), start), loader_file_format="jsonl")
    statement = rest if command == "sql" else "SELECT client_code, id, extra FROM calls"
    with pipeline.sql_client() as client:
        rows = client.execute_sql(statement)
    print(json.dumps([[str(value) for value in row] for row in rows or ()]), flush=True)
"""
Edited = dict[tuple[str, str], str | None]


class Pipeline:
    """A process that runs the pipeline in a folder, where it has its state."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, line: str) -> list[list[str]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, self._process.communicate()[1][-3000:]
        rows: list[list[str]] = json.loads(answer)
        return rows

    def run(self, address: str, clients: str = "*", start: str = START) -> Edited:
        """Load what changed, and return the calls of the table with the text that edits change."""
        rows = self.ask(f"run {address} {clients} {start}")
        calls: Edited = {(code, id_): json.loads(extra).get("Edited") for code, id_, extra in rows}
        assert len(calls) == len(rows)
        return calls


def environment(folder: Path) -> dict[str, str]:
    """Variables with which dlt finds the source, keeps its files in a folder, and reports nothing about itself."""
    quiet = {"RUNTIME__DLTHUB_TELEMETRY": "false", "DLT_DATA_DIR": str(folder / "dlt"), "PYTHONDONTWRITEBYTECODE": "1"}
    return os.environ | quiet | {"PYTHONPATH": str(CLIENTS)}


@contextmanager
def pipeline(folder: Path) -> Iterator[Pipeline]:
    command: list[str | Path] = [connector("python"), "-c", RUNNER]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, cwd=folder, env=environment(folder), text=True, **pipes) as process:
        yield Pipeline(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0


def test_the_table_equals_the_upstream_after_late_edited_and_deleted_calls(tmp_path: Path):
    with changing() as (gateway, expected), pipeline(tmp_path) as one:
        before: Edited = {}
        for restart in (False, False, True, False):
            if restart:  # windows are replaced, where a call alone was changed or removed before
                gateway.restart()
            after = one.run(gateway.address)
            assert after == expected()
            assert before == {} or (before.keys() - after.keys() and after.keys() - before.keys())
            before = after
            gateway.pass_time(100 * PERIOD + PERIOD)
        one.ask("sql DELETE FROM calls WHERE id = (SELECT MIN(id) FROM calls)")
        assert one.run(gateway.address) == expected()


def test_a_load_that_was_not_completed_is_repaired(tmp_path: Path):
    with changing() as (gateway, _), pipeline(tmp_path) as one:
        one.run(gateway.address)
        right = one.ask("sql SELECT client_code, id, campaign FROM calls ORDER BY ALL")
        # A process was killed after the rows, before the token; the call has its earlier value again meanwhile.
        one.ask(
            "sql UPDATE calls SET campaign = 'later', _dlt_load_id = 'killed' WHERE id = (SELECT MIN(id) FROM calls)"
        )
        assert one.ask("sql SELECT client_code, id, campaign FROM calls ORDER BY ALL") != right
        one.run(gateway.address)
        assert one.ask("sql SELECT client_code, id, campaign FROM calls ORDER BY ALL") == right


def test_a_pipeline_whose_folder_was_lost_continues_from_the_token_in_the_destination(tmp_path: Path):
    with changing() as (gateway, expected):
        with pipeline(tmp_path) as one:
            one.run(gateway.address)
        shutil.rmtree(tmp_path / "dlt")
        gateway.pass_time(100 * PERIOD + PERIOD)
        with pipeline(tmp_path) as one:
            assert one.run(gateway.address) == expected()
            assert len(one.ask("sql SELECT DISTINCT _dlt_load_id FROM calls")) == 2


def test_texts_stay_texts_and_promoted_fields_are_columns(tmp_path: Path):
    fields = parse_extra_fields("CustomA:property,CallerName:callerName!personal")
    with changing(extra_fields=fields) as (gateway, _), pipeline(tmp_path) as one:
        one.run(gateway.address, "8005550100")
        where = "schema_name = 'callbutton' AND table_name = 'calls'"
        types = dict(one.ask(f"sql SELECT column_name, data_type FROM duckdb_columns() WHERE {where}"))
        assert {name: type_ for name, type_ in types.items() if type_ not in ("VARCHAR", "BOOLEAN", "JSON")} == {
            "start_time": "TIMESTAMP WITH TIME ZONE",
            "duration_seconds": "BIGINT",
            "talk_time_seconds": "BIGINT",
            "position": "BIGINT",
        }
        flags = {"has_recording", "status__reviewed", "removed"}
        assert {name for name, type_ in types.items() if type_ == "BOOLEAN"} == flags
        assert {name for name, type_ in types.items() if type_ == "JSON"} == {"extra"}
        rows = one.ask("sql SELECT id, property, caller_name, address__zip FROM calls")
        calls = {call["id"]: call for call in listed(gateway).values()}
        assert {row[0]: (row[1], row[2]) for row in rows} == {
            id_: (str(call["property"]), str(call["callerName"])) for id_, call in calls.items()
        }
        assert any(row[3].startswith("0") for row in rows)


def test_the_program_of_the_readme_works(stand: Make, tmp_path: Path):
    gateway = stand()
    program = re.search(r"```py\n(import dlt\n.*?)```", README, re.DOTALL)
    assert program is not None
    text = program[1].replace("http://127.0.0.1:8080", str(gateway.client.base_url).rstrip("/"))
    done = subprocess.run(
        [connector("python"), "-c", text],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    calls = listed(gateway, LIST)
    assert done.stdout.split() == [
        str(len(calls)),
        str(sum(call["result"] == "connected" for call in calls.values())),
    ], done.stderr


def test_the_source_belongs_to_this_version_of_the_contract():
    found = re.search(r'CONTRACT = "(.*)"', (CLIENTS / "callbutton_dlt.py").read_text("utf-8"))
    assert found is not None
    assert found[1] == __version__
