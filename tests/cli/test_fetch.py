"""`fetch` as used by scripts: the file, the remains of an incomplete one, and the exit code."""

from __future__ import annotations

import csv
import gzip
import json
import os
import pty
import resource
import signal
import subprocess
import sys
import termios
import time
import zlib
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pyarrow.parquet
import pytest
from msgspec.structs import replace

from gateway.__main__ import main, parser
from gateway.cli.fetch import format_of, parse_arguments
from gateway.cli.partial_file import Checkpoint, PartialFile
from gateway.cli.progress import Progress
from gateway.extra_fields import ExtraField
from gateway.formats import COLUMNS
from gateway.settings import Settings
from gateway.simulator.calls import calls_of_hour, client_code
from gateway.simulator.server import PATH, Options, Simulator, create
from tests.support.commands import COMMAND, ENVIRONMENT, accept_interrupts, on_terminal, run
from tests.support.consumers import Member, keys_file
from tests.support.feed import LIST
from tests.support.processes import wait_for
from tests.support.stand import NOW, Clock, Make, Stand, serving

# A week that includes the end of daylight saving time.
WINDOW = ["--start", "2026-10-29", "--end", "2026-11-05", "--tz", "America/Chicago"]
HOURS = range(*(int(datetime(2026, *day, tzinfo=UTC).timestamp()) // 3600 for day in ((10, 29, 5), (11, 5, 6))))
START_OF_WEEK, END_OF_WEEK = "2026-10-29T05:00:00Z", "2026-11-05T06:00:00Z"
CODE = client_code(0)


class Upstream:
    """A simulator on a port, and `fetch` against it."""

    def __init__(self, simulator: Simulator, port: int) -> None:
        self.simulator = simulator
        self.variables = {"GATEWAY_UPSTREAM_URL": f"http://127.0.0.1:{port}{PATH}"}

    def fetch(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return run("fetch", *words, **(self.variables | more))

    def ids(self, code: str = CODE) -> list[str]:
        """The ids of a client's calls in the week, oldest first."""
        options = self.simulator.options
        return [
            call.identity for hour in HOURS for call in calls_of_hour(options.seed, code, hour, options.calls_per_day)
        ]


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    simulator = create(Options(calls_per_day=400), Clock())
    with serving(simulator) as port:
        yield Upstream(simulator, port)


def test_ndjson_goes_to_standard_output_whole_and_in_order(upstream: Upstream):
    done = upstream.fetch(CODE, *WINDOW)
    assert (done.returncode, done.stderr) == (0, "")
    *calls, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert [call["id"] for call in calls] == upstream.ids()
    assert [call["startTime"] for call in calls] == sorted(call["startTime"] for call in calls)
    assert {"start", "end", "asOf", "oldestFetch", "stale", "unreadable"} == last["meta"].keys()
    assert (last["meta"]["start"], last["meta"]["end"]) == ("2026-10-29T05:00:00Z", "2026-11-05T06:00:00Z")


@pytest.mark.parametrize("ending", ["json", "ndjson", "csv"])
def test_a_file_has_the_format_of_its_name(upstream: Upstream, tmp_path: Path, ending: str):
    target = tmp_path / f"calls.{ending}"
    done = upstream.fetch(CODE, *WINDOW, "--status", "-o", str(target))
    text = target.read_text("utf-8")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == [target]
    if ending == "csv":
        rows = list(csv.DictReader(text.splitlines(keepends=True)))
        assert list(rows[0]) == list(COLUMNS)
        assert [row["id"] for row in rows] == upstream.ids()
        assert rows[0]["status.sales"]
    else:
        calls = json.loads(text)["data"] if ending == "json" else list(map(json.loads, text.splitlines()))
        assert [call["id"] for call in calls] == upstream.ids()
        assert calls[0]["status"]["sales"]


@pytest.mark.parametrize(
    "name", ["calls.csv.gz", "CALLS.CSV.GZ", "calls.jsonl.gz", "calls.json.gz", "calls.gz", ".csv.gz"]
)
def test_a_file_whose_name_ends_in_gz_is_compressed(upstream: Upstream, tmp_path: Path, name: str):
    plain = name[:-3].replace("calls", "plain")
    words = [CODE, *WINDOW, "-o"]
    packed, target = tmp_path / name, tmp_path / ("plain.ndjson" if plain == "plain" else plain)
    for path in (packed, target):
        done = upstream.fetch(*words, str(path))
        assert (done.returncode, done.stderr) == (0, "")
    expected = target.read_bytes().splitlines()
    unpacked = gzip.decompress(packed.read_bytes()).splitlines()
    assert unpacked[:-1] == expected[:-1]  # the last line has the time of the export
    assert packed.stat().st_size < target.stat().st_size / 4
    inflate = zlib.decompressobj(31)
    inflate.decompress(packed.read_bytes())
    assert (inflate.eof, inflate.unused_data) == (True, b"")  # one member, as some readers stop after the first
    assert {path.name for path in tmp_path.iterdir()} == {packed.name, target.name}


def test_a_compressed_file_is_resumed_from_its_checkpoint(tmp_path: Path):
    first = Checkpoint({"clients": CODE}, (0, 100), 0)
    target = tmp_path / "calls.csv.gz"
    written = [f"line {number}\n".encode() * 50 for number in range(6)]
    for number, data in enumerate(written):
        partial = PartialFile(target, first, restart=False)
        assert (partial.checkpoint.reached, partial.checkpoint.calls) == (number * 10, number)
        partial.write(data)
        partial.save(replace(partial.checkpoint, reached=number * 10 + 10, calls=number + 1))
        partial.write(b"data after the checkpoint")
        partial.close()
    partial = PartialFile(target, first, restart=False)
    partial.finish()
    inflate = zlib.decompressobj(31)
    assert inflate.decompress(target.read_bytes()) == b"".join(written)
    assert (inflate.eof, inflate.unused_data, list(tmp_path.iterdir())) == (True, b"", [target])


def test_a_file_that_was_begun_again_and_killed_is_not_resumed_from_its_old_checkpoint(tmp_path: Path):
    first = Checkpoint({"clients": CODE}, (0, 100), 0)
    target = tmp_path / "calls.csv"
    with closing(PartialFile(target, first, restart=False)) as partial:
        partial.write(b"old\n")
        partial.save(replace(first, reached=50, calls=1))
    killed = PartialFile(target, first, restart=True)
    killed.write(b"other calls since\n" * 10_000)
    killed._file.close()
    with closing(PartialFile(target, first, restart=False)) as partial:
        assert partial.checkpoint == first
        assert target.with_name("calls.csv.part").stat().st_size == 0


def test_several_clients_or_all_and_some_fields(upstream: Upstream):
    two = upstream.fetch(CODE, "--client", client_code(1), *WINDOW, "--format", "csv", "--fields", "id,clientCode")
    every = upstream.fetch("*", *WINDOW, "--format", "csv", "--fields", "id")
    assert (two.returncode, every.returncode) == (0, 0)
    assert two.stdout.splitlines()[0] == "id,clientCode"
    assert sorted(two.stdout.split()[1:]) == sorted(
        f"{one},{c}" for c in map(client_code, (0, 1)) for one in upstream.ids(c)
    )
    assert sorted(every.stdout.split()[1:]) == sorted(
        one for c in map(client_code, range(5)) for one in upstream.ids(c)
    )


def test_all_asks_once_with_null_dates():
    simulator = create(Options(calls_per_day=20, history=30), Clock())
    with serving(simulator) as port:
        upstream = Upstream(simulator, port)
        done = upstream.fetch(CODE, "--all", "--format", "json")
        dated = upstream.fetch(CODE, "--start", "2026-10-01", "--format", "json")
    (request,) = [one for one in simulator.requests if one.start is None]
    assert (request.codes, request.end) == ((CODE,), None)
    everything = json.loads(done.stdout)
    assert everything["data"] == json.loads(dated.stdout)["data"]
    assert everything["meta"]["start"] is None
    assert 500 < len(everything["data"]) < 700


def test_a_refused_export_of_everything_is_to_be_asked_for_by_time(upstream: Upstream):
    upstream.simulator.misbehave("null-dates=refused")
    done = upstream.fetch(CODE, "--all")
    assert (done.returncode, done.stdout) == (1, "")
    assert "what to do: use --start in place of --all;" in done.stderr


def test_a_gateway_that_wants_a_key_is_given_a_file(stand: Make, tmp_path: Path):
    gateway = stand(auth="keys", keys_file=keys_file(tmp_path, Member("reader")))
    done = run("fetch", CODE, "--gateway", str(gateway.client.base_url))
    assert (done.returncode, done.stdout) == (1, "")
    assert "--key-file" in done.stderr


def test_all_calls_of_several_clients_are_theirs_however_their_codes_are_echoed():
    simulator = create(Options(calls_per_day=20, history=3, faults=(f"echo@{CODE}",)), Clock())
    codes = [CODE, client_code(1)]
    with serving(simulator) as port:
        upstream = Upstream(simulator, port)
        done = upstream.fetch(*codes, "--all", "--format", "json")
        each = [json.loads(upstream.fetch(code, "--all", "--format", "json").stdout)["data"] for code in codes]
    found = json.loads(done.stdout)["data"]
    assert {call["clientCode"] for call in found} == set(codes)
    assert found == sorted(each[0] + each[1], key=lambda call: (call["startTime"], call["id"]))


def test_an_interrupted_export_goes_on_where_it_stopped(upstream: Upstream, tmp_path: Path):
    target, whole = tmp_path / "calls.json", tmp_path / "whole.json"
    state = tmp_path / "calls.json.part.json"
    words = [*COMMAND, "fetch", CODE, *WINDOW, "-o", str(target)]
    with subprocess.Popen(
        words,
        env=ENVIRONMENT | upstream.variables,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=accept_interrupts,
    ) as process:
        wait_for(lambda: state.exists() or process.poll() is not None, "a first span")
        assert process.poll() is None, "it ended before it could be interrupted"
        upstream.simulator.misbehave("hang")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert said.endswith("interrupted; run the same command again to resume\n")
    assert {path.name for path in tmp_path.iterdir()} == {"calls.json.part", "calls.json.part.json"}
    reached = json.loads(state.read_bytes())
    assert 0 < reached["calls"] < len(upstream.ids())

    other = upstream.fetch(CODE, *WINDOW, "--status", "-o", str(target))
    assert (other.returncode, "is of another export" in other.stderr) == (2, True)

    upstream.simulator.misbehave()
    upstream.simulator.requests.clear()
    with (tmp_path / "calls.json.part").open("ab") as part:
        part.write(b"what was written after the mark")
    assert upstream.fetch(CODE, *WINDOW, "-o", str(target)).returncode == 0
    asked_from = [request.start for request in upstream.simulator.requests]
    assert upstream.fetch(CODE, *WINDOW, "-o", str(whole)).returncode == 0
    assert upstream.simulator.requests[len(asked_from)].start not in asked_from  # that of the week's beginning
    assert {path.name for path in tmp_path.iterdir()} == {"calls.json", "whole.json"}
    resumed, at_once = (json.loads(path.read_bytes()) for path in (target, whole))
    assert resumed["data"] == at_once["data"]
    assert [call["id"] for call in resumed["data"]] == upstream.ids()


def test_what_the_upstream_refuses_leaves_no_file_that_looks_whole(upstream: Upstream, tmp_path: Path):
    upstream.simulator.misbehave("unauthorized")
    done = upstream.fetch(CODE, *WINDOW, "-o", str(tmp_path / "calls.csv"))
    piped = upstream.fetch(CODE, *WINDOW)
    assert (done.returncode, list(tmp_path.iterdir())) == (1, [])
    assert done.stderr.endswith("; run the same command again\n")  # there is nothing to resume
    assert "what to do: ask Callbutton to allow that address" in done.stderr
    assert (piped.returncode, piped.stdout) == (1, "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "CODE: is required; '*' selects every client"),
        (["a b"], "is not a client code"),
        ([CODE, "--start", "yesterday"], "start: is not a date"),
        ([CODE, "--start", "2026-11-02", "--end", "2026-11-01"], "start: is after `end`"),
        ([CODE, "--tz", "Mars"], "tz: is not an IANA time zone"),
        ([CODE, "--all", "--start", "2026-11-01"], "leave dates and --gateway out"),
        ([CODE, "--all", "--gateway", "http://127.0.0.1:1"], "leave dates and --gateway out"),
        ([CODE, "--range", "soon"], "range: is not one of"),
        ([CODE, "--filter", "result"], "--filter result is not NAME=VALUE; the names are result, phoneType"),
        ([CODE, "--filter", "limit=1"], "--filter limit=1 is not NAME=VALUE"),
        ([CODE, "--filter", "result=lost"], "result: has unknown values lost"),
        ([CODE, "--format", "parquet"], "without further compression: use -o calls.parquet"),
        ([CODE, "-o", "x.parquet.gz"], "without further compression: use -o calls.parquet"),
        ([CODE, "--key-file", "key"], "add --gateway"),
        ([CODE, "--fields", "id,name"], "name is not a field"),
        ([CODE, "-o", __file__], "exists already; use --overwrite to replace it"),
        ([CODE, "-o", "x.xml"], "x.xml: .xml is no format of an export; use .json, .ndjson, .jsonl, .csv, .parquet"),
        ([CODE, "-o", "x.csv.zip"], "x.csv.zip: .zip is no format"),
        ([CODE, "-o", "x.xlsx.gz"], "x.xlsx.gz: .xlsx is no format"),
        ([CODE, "-o", ".xml"], ".xml: .xml is no format"),
        ([CODE, "-o", "/dev/null", "--overwrite", "--format", "csv"], "/dev/null is not a file; use -o -"),
        ([CODE, "-o", "/", "--overwrite"], "/ is not a file"),
    ],
    ids=[
        "no code",
        "bad code",
        "bad date",
        "backwards",
        "bad zone",
        "all with dates",
        "all of a gateway",
        "bad range",
        "filter without a value",
        "no filter",
        "bad filter",
        "Parquet on standard output",
        "Parquet compressed twice",
        "key without gateway",
        "bad field",
        "file is there",
        "another format",
        "another compression",
        "another format, compressed",
        "another format without a name",
        "a device",
        "a folder",
    ],
)
def test_a_bad_command_ends_with_2_and_one_line(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("GATEWAY_UPSTREAM_URL", "http://127.0.0.1:1/xml.jsp")
    code = main(["fetch", *words])
    out, err = capsys.readouterr()
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert said in err


def test_a_format_that_is_given_wins_over_the_ending_of_the_file():
    assert [format_of(Path(name)) for name in ("-", "x", "x.CSV", "x.jsonl.gz", "x.2026.csv")] == [
        "ndjson",
        "ndjson",
        "csv",
        "ndjson",
        "csv",
    ]
    words = parser(["fetch"]).parse_args(["fetch", CODE, "--format", "csv", "-o", "x.xml"])
    assert parse_arguments(words, Settings(), NOW).parameters["format"] == "csv"


def test_a_hyphen_is_standard_output(upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    done = upstream.fetch(CODE, *WINDOW, "--format", "csv", "--fields", "id", "-o", "-")
    assert (done.returncode, done.stdout.split()[1:], list(tmp_path.iterdir())) == (0, upstream.ids(), [])


@pytest.mark.parametrize("name", ["nowhere/x.csv", "file/x.csv"])
def test_a_path_that_cannot_be_written_is_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("GATEWAY_UPSTREAM_URL", "http://127.0.0.1:1/xml.jsp")
    (tmp_path / "file").touch()
    code = main(["fetch", CODE, "-o", str(tmp_path / name)])
    out, err = capsys.readouterr()
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert err.startswith(f"callbutton-gateway: {tmp_path / name}: ")


def limit_files() -> None:
    """Let writes fail after 50,000 bytes, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))


def test_a_disk_that_is_full_is_named(upstream: Upstream, tmp_path: Path):
    target = tmp_path / "calls.csv"
    words = [*COMMAND, "fetch", CODE, *WINDOW, "-o", str(target)]
    done = subprocess.run(
        words,
        env=ENVIRONMENT | upstream.variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=limit_files,
    )
    assert (done.returncode, done.stderr) == (1, f"callbutton-gateway: {target}: File too large\n")


@pytest.mark.parametrize("columns", [1, 5, 12, 20, 40, 67, 79, 80, 81, 200])
def test_the_progress_fits_the_terminal_and_shows_speed_and_time_left(columns: int, monkeypatch: pytest.MonkeyPatch):
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, columns))
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with os.fdopen(follower, "w") as terminal, monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", terminal)
        progress = Progress(0.4, 4000)  # resumed after 40 % of the window
        now[0] += 60
        progress.show(0.7, 64_000, "1970-03-12 00:00Z")
        shown = os.read(leader, 4096).decode().removeprefix("\r\x1b[K")
    os.close(leader)
    assert len(shown) < max(2, columns)
    fields = {0: "", 20: "0:01:00 left", 40: "70%", 67: "64,000 calls", 79: "1,000/s", 80: "up to 1970-03-12 00:00Z"}
    for least, text in fields.items():
        assert columns < least or text in shown
    assert columns < 200 or f"{'█' * 16}{'░' * 8}  70%" in shown


def test_a_reader_who_has_enough_ends_it_quietly(upstream: Upstream):
    words = [*COMMAND, "fetch", CODE, *WINDOW]
    environment = ENVIRONMENT | upstream.variables
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (1, b"")


def test_a_terminal_sees_how_far_it_has_come(upstream: Upstream, tmp_path: Path):
    code, shown = on_terminal("fetch", CODE, *WINDOW, "-o", str(tmp_path / "calls.csv"), **upstream.variables)
    assert code == 0
    assert "█ 100%  up to 2026-11-05 06:00Z" in shown
    assert f"{len(upstream.ids()):,} calls in " in shown


def test_two_processes_do_not_write_the_same_file(tmp_path: Path):
    first = Checkpoint({"clients": CODE}, (0, 10), 0)
    one = PartialFile(tmp_path / "calls.csv", first, restart=False)
    with pytest.raises(OSError, match="is being written by another process"):
        PartialFile(tmp_path / "calls.csv", first, restart=False)
    one.close()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def gateway(stand: Make) -> Stand:
    """A gateway with many calls."""
    return stand(Options(calls_per_day=400))


def test_an_export_through_a_gateway_is_the_same(gateway: Stand, upstream: Upstream):
    words = [CODE, "--client", client_code(1), *WINDOW, "--status"]
    through = run("fetch", *words, "--gateway", str(gateway.client.base_url))
    alone = upstream.fetch(*words)
    assert (through.returncode, through.stderr) == (0, "")
    ours, theirs = ([json.loads(line) for line in done.stdout.splitlines()] for done in (through, alone))
    for call in (*ours[:-1], *theirs[:-1]):
        call["recordingUrl"] = call["recordingUrl"] is not None
    assert ours[:-1] == theirs[:-1]
    assert len(ours) > 5000
    assert (ours[-1]["meta"]["start"], ours[-1]["meta"]["end"]) == ("2026-10-29T05:00:00Z", "2026-11-05T06:00:00Z")


def test_an_export_through_a_gateway_is_resumed_from_its_checkpoint(gateway: Stand, tmp_path: Path):
    target, state = tmp_path / "calls.json", tmp_path / "calls.json.part.json"
    words = [CODE, *WINDOW, "-o", str(target), "--gateway", str(gateway.client.base_url)]
    with subprocess.Popen([*COMMAND, "fetch", *words], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: state.exists() or process.poll() is not None, "a first span")
        gateway.simulator.misbehave("error")
        process.kill()
        process.communicate()
    reached = json.loads(state.read_bytes())["calls"]
    gateway.simulator.misbehave()
    gateway.pass_time(60)
    done = run("fetch", *words)
    assert (done.returncode, done.stderr) == (0, "")
    calls = json.loads(target.read_bytes())["data"]
    whole = [
        json.loads(line)
        for line in gateway.get(
            LIST, start=START_OF_WEEK, end=END_OF_WEEK, format="ndjson", sort="startTime", meta="none"
        ).text.splitlines()
    ]
    assert [call["id"] for call in calls] == [call["id"] for call in whole]
    assert 0 < reached <= len(calls)


@pytest.mark.parametrize("way", ["through a gateway", "alone"])
def test_a_filter_and_a_range_choose_calls(gateway: Stand, upstream: Upstream, way: str):
    words = [CODE, *WINDOW, "--filter", "result=busy,no_answer", "--filter", "minDuration=20", "--format", "ndjson"]
    words += ["--gateway", str(gateway.client.base_url)] if way == "through a gateway" else []
    done = upstream.fetch(*words)
    assert (done.returncode, done.stderr) == (0, "")
    *calls, _ = [json.loads(line) for line in done.stdout.splitlines()]
    listed = gateway.get(LIST, start=START_OF_WEEK, end=END_OF_WEEK, format="ndjson", sort="startTime").text
    everything = [json.loads(line) for line in listed.splitlines()][:-1]
    assert [call["id"] for call in calls] == [
        call["id"] for call in everything if call["result"] in ("busy", "no_answer") and call["durationSeconds"] >= 20
    ]
    assert 50 < len(calls) < len(everything) / 2


def test_a_range_is_of_the_time_zone():
    given = parser(["fetch"]).parse_args(["fetch", CODE, "--range", "yesterday", "--tz", "America/Chicago"])
    zone = ZoneInfo("America/Chicago")
    today = datetime.combine(datetime.fromtimestamp(NOW, zone), datetime.min.time(), zone)
    window = int((today - timedelta(days=1)).timestamp()), int(today.timestamp())
    assert parse_arguments(given, Settings(), NOW).window == window


def test_stale_calls_of_a_gateway_are_no_export(gateway: Stand, tmp_path: Path):
    words = ["fetch", CODE, *WINDOW, "--gateway", str(gateway.client.base_url), "-o", str(tmp_path / "calls.csv")]
    assert run(*words).returncode == 0
    (tmp_path / "calls.csv").unlink()
    gateway.simulator.misbehave("http-500")
    gateway.clock.now += 8 * 86400 - 3600 * 12
    done = run(*words)
    assert (done.returncode, list(tmp_path.glob("*.csv"))) == (1, [])
    assert "export failed: " in done.stderr


@pytest.mark.parametrize("fields", [(), ("id", "address.zip", "extra")], ids=["every field", "some fields"])
def test_parquet_has_types_and_every_call(upstream: Upstream, tmp_path: Path, fields: tuple[str, ...]):
    target = tmp_path / "calls.parquet"
    done = upstream.fetch(CODE, *WINDOW, "--status", "--fields", ",".join(fields), "-o", str(target))
    assert (done.returncode, done.stderr, list(tmp_path.iterdir())) == (0, "", [target])
    table = pyarrow.parquet.read_table(target)
    types = {field.name: str(field.type) for field in table.schema}
    lines = upstream.fetch(CODE, *WINDOW, "--status", "--fields", ",".join(fields)).stdout.splitlines()[:-1]
    calls = [json.loads(line) for line in lines]
    assert list(types) == list(calls[0])
    rows = table.to_pylist()
    for row in rows:
        row["startTime"] = row["startTime"].strftime("%Y-%m-%dT%H:%M:%SZ")
        row["extra"] = dict(row["extra"])
    assert rows == calls
    assert (types["startTime"], types["id"]) == ("timestamp[us, tz=UTC]", "string")
    assert types["address"] == ("struct<zip: string>" if fields else types["address"])
    if not fields:
        assert (types["durationSeconds"], types["talkTimeSeconds"]) == ("int32", "int32")
        assert types["status"] == "struct<reviewed: bool, sales: string, journal: string>"


def test_parquet_is_not_resumed(upstream: Upstream, tmp_path: Path):
    target = tmp_path / "calls.parquet"
    upstream.simulator.misbehave("http-500")
    done = upstream.fetch(CODE, *WINDOW, "-o", str(target))
    assert (done.returncode, list(tmp_path.iterdir())) == (1, [])
    assert "the output is incomplete" in done.stderr


def test_promoted_extra_fields_are_columns_and_a_resumed_export_has_the_same(upstream: Upstream, tmp_path: Path):
    promoted = {"GATEWAY_EXTRA_FIELDS": "CustomA:property,CallerName:callerName!personal"}
    rows = list(csv.DictReader(upstream.fetch(CODE, *WINDOW, "--format", "csv", **promoted).stdout.splitlines()))
    assert [row["property"] for row in rows] == [json.loads(row["extra"])["CustomA"] for row in rows]
    assert list(rows[0]) == [*COLUMNS, "property", "callerName"]
    chosen = upstream.fetch(CODE, *WINDOW, "--format", "csv", "--fields", "id,callerName", **promoted).stdout
    assert chosen.partition("\n")[0].strip() == "id,callerName"
    file = tmp_path / "calls.csv"
    arguments = parser().parse_args(["fetch", CODE, *WINDOW, "--output", str(file)])
    plain, extra = (
        parse_arguments(arguments, Settings(extra_fields=fields), NOW)
        for fields in ((), (ExtraField("CustomA", "property", personal=False),))
    )
    with closing(PartialFile(file, plain, restart=False)) as partial:
        partial.write(b"id\r\n")
        partial.save(replace(plain, reached=plain.reached + 1))
    with pytest.raises(ValueError, match="is of another export"):
        PartialFile(file, extra, restart=False)


def test_an_export_is_not_resumed_with_the_calls_of_another_upstream(tmp_path: Path):
    file = tmp_path / "calls.csv"
    arguments = parser().parse_args(["fetch", CODE, *WINDOW, "--output", str(file)])
    one, again, other = (
        parse_arguments(arguments, Settings(upstream_url=f"http://{address}/xml.jsp"), NOW)
        for address in ("192.0.2.1", "user:secret@192.0.2.1", "192.0.2.2")
    )
    with closing(PartialFile(file, one, restart=False)) as partial:
        partial.write(b"id\r\n")
        partial.save(replace(one, reached=one.reached + 1))
    with closing(PartialFile(file, again, restart=False)) as partial:
        assert partial.checkpoint.reached == one.reached + 1
    with pytest.raises(ValueError, match="is of another export"):
        PartialFile(file, other, restart=False)
