"""The examples of docs/data-tools.md: pandas, polars, DuckDB, LibreOffice, and the panels for Grafana."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import COMMAND
from tests.support.connectors import connector
from tests.support.paths import ROOT
from tests.support.stand import Make, Stand
from tests.support.tools import tool

PAGE = (ROOT / "docs" / "data-tools.md").read_text("utf-8")
DASHBOARD = json.loads((ROOT / "docs" / "grafana-reports.json").read_text("utf-8"))
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
WEEK = {"client": "*", "range": "last_7_days", "tz": "America/Chicago"}
LAST_7_DAYS = ["--start", "2026-11-12", "--end", "2026-11-18T05:06:40"]  # at the gateway's clock; fetch reads its own
CODES = [f"80055501{number:02}" for number in range(5)]


def example(heading: str, language: str = "python") -> str:
    """A code block of a section of the page."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    match = re.search(rf"^```{language}\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    assert match
    return match[1]


def run_python(code: str, gateway: Stand, folder: Path, more: str = "") -> list[str]:
    """Run an example with the tools' Python, and return its last lines."""
    variables = {"GATEWAY": str(gateway.client.base_url).rstrip("/"), "KEY": "none", "COLUMNS": "200"}
    command = [str(connector("python")), "-c", f"{code}\n{more}"]
    done = subprocess.run(command, cwd=folder, env=os.environ | variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def counted(lines: list[str], mark: str = "counted") -> dict[str, int]:
    """Of the lines that begin with a mark, the numbers at the end by the words between."""
    words = [found for line in lines if len(found := line.split()) > 1]
    return {" ".join(between): int(number) for first, *between, number in words if first == mark}


def summary(gateway: Stand, **parameters: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = gateway.get("/calls/summary", **(WEEK | parameters)).raise_for_status().json()["data"]
    return rows


def by_day_and_result(gateway: Stand) -> dict[str, int]:
    """Calls by local day and result, as summaries count them."""
    rows = summary(gateway, interval="day", groupBy="result")
    return {f"{row['bucketStart'][:10]} {row['group']['result']}": row["calls"] for row in rows if row["calls"]}


def fetch(gateway: Stand, folder: Path, name: str) -> None:
    address = str(gateway.client.base_url)
    words = ["fetch", "*", "--gateway", address, *LAST_7_DAYS, "--tz", "America/Chicago", "-o", name]
    (folder / "key.txt").write_text("none", "utf-8")
    subprocess.run([*COMMAND, *words, "--key-file", "key.txt"], cwd=folder, check=True, capture_output=True)


def test_pandas_counts_as_summaries_do(stand: Make, tmp_path: Path):
    gateway = stand()
    more = """
for (day, result), count in calls.groupby([calls["startTime"].dt.date, "result"]).size().items():
    print("counted", day, result, count)
assert calls["address.zip"].dropna().str.fullmatch("[0-9A-Z]{4,6}").all()
"""
    assert counted(run_python(example("pandas"), gateway, tmp_path, more)) == by_day_and_result(gateway)


def test_polars_counts_as_summaries_do(stand: Make, tmp_path: Path):
    gateway = stand()
    fetch(gateway, tmp_path, "week.parquet")
    more = """
for day, result, count in calls.group_by(day, "result").len("calls").rows():
    print("counted", day, result, count)
"""
    assert counted(run_python(example("polars"), gateway, tmp_path, more)) == by_day_and_result(gateway)


def test_duckdb_counts_as_summaries_do(stand: Make, tmp_path: Path):
    gateway = stand()
    fetch(gateway, tmp_path, "week.parquet")
    fetch(gateway, tmp_path, "week.ndjson.gz")
    code = example("DuckDB").replace("current_date - 7", "DATE '2000-01-01'")  # the gateway's clock is not today's
    more = """
for name in ("week.parquet", "week.ndjson.gz"):
    for row in duckdb.sql(answer_rates.replace("week.parquet", name)).fetchall():
        print(name, row[0], f"{row[2]:.3f}", row[1])
"""
    lines = run_python(code, gateway, tmp_path, more)
    rows = summary(gateway, groupBy="campaign")
    rates = {f"{row['group']['campaign']} {row['answerRate']:.3f}": row["calls"] for row in rows}
    for name in ("week.parquet", "week.ndjson.gz"):
        assert counted(lines, name) == rates


def test_libreoffice_reads_times_as_dates_and_codes_as_text(stand: Make, tmp_path: Path):
    gateway = stand()
    query = re.search(r"\?(client=\S+)'", example("LibreOffice", "sh"))
    assert query
    answer = gateway.client.get(f"/calls?{query[1]}")
    (tmp_path / "calls.csv").write_bytes(answer.content)
    words = next(line for line in PAGE.splitlines() if line.startswith("soffice ")).split()
    words[0] = tool("soffice", "libreoffice-calc-nogui")
    words[words.index("xlsx")] = "ods"
    filter_option = next(word for word in words if word.startswith("--infilter="))
    words[words.index(filter_option)] = filter_option.replace("'", "")
    subprocess.run([*words, f"-env:UserInstallation=file://{tmp_path}/profile"], cwd=tmp_path, check=True)
    with zipfile.ZipFile(tmp_path / "calls.ods") as archive:
        content = archive.read("content.xml").decode()
    rows = list(csv.reader(io.StringIO(answer.content.decode("utf-8-sig"))))[1:]
    times = re.findall(r'office:date-value="([^"]*)"', content)
    assert times == [row[0].replace(" ", "T") for row in rows]
    texts = re.findall(r'office:value-type="string"[^>]*><text:p>([^<]*)', content)
    assert [text for text in texts if text in CODES] == [row[1] for row in rows]
    assert "<text:p>02134</text:p>" in content


def filled(text: str, variables: dict[str, str]) -> str:
    """A text of the dashboard, as Grafana sends it."""
    done = re.sub(r"\$\{([\w:]+)\}", lambda match: variables[match[1]], text)
    assert "$" not in done
    return done


def at(row: object, selector: str) -> object:
    """The value at a dotted path."""
    for name in selector.split("."):
        assert isinstance(row, dict), selector
        assert name in row, selector
        row = row[name]
        if row is None:
            return None
    return row


@pytest.mark.parametrize("panel", PANELS, ids=[panel["title"] for panel in PANELS])
def test_a_panel_of_the_dashboard_finds_its_columns(panel: dict[str, Any], stand: Make):
    gateway = stand()
    (target,) = panel["targets"]
    variables = {one["name"]: one["query"] for one in DASHBOARD["templating"]["list"]}
    variables |= {"__from:date:iso": "2026-11-11T10:20:30.123Z", "__to:date:iso": "2026-11-18T10:20:30.456Z"}
    parameters = {one["key"]: filled(one["value"], variables) for one in target["url_options"]["params"]}
    body = gateway.get(target["url"], **parameters).raise_for_status().json()
    found: Any = at(body, target["root_selector"])
    rows: Sequence[Any] = found if isinstance(found, list) else [found]
    assert rows
    for column in target["columns"]:
        values = [at(row, column["selector"]) for row in rows]
        assert any(value is not None for value in values), column
        number = column["type"] == "number"
        assert all(value is None or isinstance(value, int | float if number else str | int) for value in values), column
