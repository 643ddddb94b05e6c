"""`mirror` into SQLite and PostgreSQL, against a gateway over a socket, and in one process."""

from __future__ import annotations

import re
import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.__main__ import main
from gateway.api.feed import FeedCall
from gateway.cli import mirror, mirror_database, mirror_tables
from gateway.cli.mirror_database import MirrorDatabase
from gateway.cli.mirror_feed import parse_page
from gateway.cli.mirror_tables import ADDRESS, FIELDS, STATUS
from gateway.extra_fields import parse_extra_fields
from gateway.model import CallerAddress, CallStatus
from gateway.simulator.server import PATH, Options, create
from tests.support.changing_simulator import PERIOD, changing
from tests.support.commands import COMMAND, ENVIRONMENT, on_terminal, run
from tests.support.consumers import Member, keys_file
from tests.support.databases import Database, Key
from tests.support.feed import START, listed
from tests.support.processes import running, wait_for
from tests.support.stand import Make, Stand, serving

Json = dict[str, Any]
LONG_AGO = "2001-01-01T00:00:00Z"


Copy = Callable[..., int]


@pytest.fixture
def copy(database: Database) -> Copy:
    """A function that runs `mirror` against a gateway, and returns its exit code."""

    def command(gateway: Stand, *words: str, start: str | None = START) -> int:
        options = ["--gateway", str(gateway.client.base_url), *(["--start", start] if start else []), *words]
        return main(["mirror", database.url, *options])

    return command


def as_row(call: Json) -> Json:
    """The columns of a call of the API."""
    nested = {"address": call.pop("address") or {}, "status": call.pop("status") or {}}
    row = {column(name): value for name, value in call.items()}
    for part, type_ in (("address", CallerAddress), ("status", CallStatus)):
        for field in msgspec.structs.fields(type_):
            row[f"{part}_{field.name}"] = nested[part].get(field.encode_name)
    return row


def column(name: str) -> str:
    return re.sub("[A-Z]", lambda found: f"_{found[0].lower()}", name)


@pytest.mark.parametrize("status", [False, True], ids=["without status", "with status"])
def test_the_table_equals_the_list_in_every_field(stand: Make, database: Database, copy: Copy, status: bool):
    gateway = stand()
    assert copy(gateway, *(["--status"] if status else [])) == 0
    calls = listed(gateway, "/calls", client="*", **({"include": "status"} if status else {}))
    assert len({key[0] for key in calls}) == 5
    rows = database.calls()
    own = {"feed_id", "first_seen_at", "changed_at", "removed_at"}
    assert {key: {name: row[name] for name in row.keys() - own} for key, row in rows.items()} == {
        key: as_row(call) for key, call in calls.items()
    }
    assert any(row["status_sales"] for row in rows.values()) is status
    assert any(row["address_zip"] == "02134" for row in rows.values())
    (feed,) = database.query("SELECT * FROM feed")
    assert (feed["calls"], feed["start_time"]) == (len(rows), f"{START}T00:00:00Z")
    assert feed["complete_through"] <= feed["as_of"]


def test_every_field_of_the_feed_has_a_column():
    fields = {field.encode_name for field in msgspec.structs.fields(FeedCall)}
    assert {*FIELDS.values(), "address", "status", "extra"} == fields
    assert list(ADDRESS.values()) == [field.encode_name for field in msgspec.structs.fields(CallerAddress)]
    assert list(STATUS.values()) == [field.encode_name for field in msgspec.structs.fields(CallStatus)]
    assert list(FIELDS) == list(map(column, FIELDS.values()))


@pytest.mark.parametrize("keep", [False, True], ids=["deleted", "kept"])
def test_late_edited_and_deleted_calls(database: Database, copy: Copy, keep: bool):
    with changing() as (gateway, expected):
        check_changes(gateway, expected, database, copy, keep=keep)


def check_changes(
    gateway: Stand, expected: Callable[[], dict[Key, str | None]], database: Database, copy: Copy, *, keep: bool
) -> None:
    words = ["--keep-removed"] if keep else []
    assert copy(gateway, *words) == 0
    for _ in range(3):
        before = database.calls()
        database.query(f"UPDATE calls SET changed_at = '{LONG_AGO}', first_seen_at = '{LONG_AGO}'")
        gateway.pass_time(PERIOD * 100 + PERIOD)
        assert copy(gateway, *words) == 0
        after = database.calls()
        shown = {key: row for key, row in after.items() if row["removed_at"] is None}
        assert {key: row["extra"].get("Edited") for key, row in shown.items()} == expected()
        touched = {key for key, row in after.items() if row["changed_at"] != LONG_AGO}
        assert touched == {
            key
            for key, row in after.items()
            if key not in before
            or row["extra"] != before[key]["extra"]
            or (row["removed_at"] is None) != (before[key]["removed_at"] is None)
        }
        assert {key for key, row in after.items() if row["first_seen_at"] != LONG_AGO} == after.keys() - before.keys()
        if keep:
            assert before.keys() <= after.keys()
            assert len(after) > len(shown)


def test_feeds_of_one_database_do_not_change_each_other(stand: Make, database: Database, copy: Copy):
    one, other = stand(), stand(Options(seed=2))
    client = ["--client", "8005550100"]
    assert copy(one, *client) == 0
    first = database.calls()
    assert copy(other, *client, "--name", "other") == 0
    assert copy(one, "--client", "8005550101", "--client", "8005550102", "--name", "third", start="2026-11-17") == 0
    assert copy(other, *client, "--name", "other", "--restart") == 0
    assert database.calls() == first
    assert {(row["client_code"], row["feed_id"]) for row in database.query("SELECT * FROM calls_by_day")} == {
        ("8005550100", 1),
        ("8005550100", 2),
        ("8005550101", 3),
        ("8005550102", 3),
    }


def test_a_key_decides_what_is_copied(stand: Make, database: Database, copy: Copy, tmp_path: Path):
    member = Member("reports", clients=("8005550101",))
    gateway = stand(auth="keys", keys_file=str(keys_file(tmp_path, member)))
    key = tmp_path / "key.txt"
    key.write_text(f"{member.key}\n")
    assert copy(gateway) == 1
    assert copy(gateway, "--key-file", str(key)) == 0
    assert {code for code, _ in database.calls()} == {"8005550101"}


def test_a_page_is_applied_as_a_whole_or_not_at_all(stand: Make, database: Database, copy: Copy):
    gateway = stand()
    assert copy(gateway) == 0
    before = database.calls(), database.query("SELECT * FROM feed")
    body = gateway.get("/changes", client="*", start=START, format="ndjson", limit=50).content
    page = parse_page(body)
    page.items.append(b'{"op": "upsert", "call": {"id": "1", "clientCode": "8005550100"}}')
    page.items.insert(
        0, b'{"op": "remove", "clientCode": "8005550100", "id": "%s"}' % next(iter(before[0]))[1].encode()
    )
    opened = MirrorDatabase(database.url)
    opened.open()
    feed = opened.feed("calls", "", "*", status=False)
    with pytest.raises(msgspec.ValidationError):
        opened.apply(feed, page)
    opened.close()
    assert (database.calls(), database.query("SELECT * FROM feed")) == before


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM calls WHERE id = (SELECT MIN(id) FROM calls)",
        "INSERT INTO calls (feed_id, client_code, id, start_time, start_time_certainty, phone_type, result, "
        "has_recording, extra, first_seen_at, changed_at) SELECT feed_id, client_code, 'x', '2026-11-17T00:00:00Z', "
        "start_time_certainty, phone_type, result, has_recording, extra, first_seen_at, changed_at FROM calls "
        "WHERE id = (SELECT MIN(id) FROM calls)",
    ],
    ids=["a call is missing", "a call too many"],
)
def test_a_copy_with_another_number_of_calls_is_repaired(stand: Make, database: Database, copy: Copy, damage: str):
    gateway = stand(Options(calls_per_day=20))
    assert copy(gateway) == 0
    before = {key: row["extra"] for key, row in database.calls().items()}
    database.query(damage)
    assert {key: row["extra"] for key, row in database.calls().items()} != before
    assert copy(gateway) == 0
    assert {key: row["extra"] for key, row in database.calls().items()} == before


def test_verify_finds_a_call_that_differs_and_restart_repairs_it(
    stand: Make, database: Database, copy: Copy, capsys: pytest.CaptureFixture[str]
):
    gateway = stand()
    assert copy(gateway, "--verify", "--status") == 0
    assert capsys.readouterr().out == "verified: every call is equal to the gateway's\n"
    database.query("UPDATE calls SET ani = '1' WHERE id = (SELECT MIN(id) FROM calls)")
    number = len(database.query("SELECT * FROM calls WHERE ani = '1'"))
    assert copy(gateway, "--status") == 0
    assert copy(gateway, "--verify", "--status") == 1
    assert f"{number} calls differ from the gateway's; --restart repairs them\n" in capsys.readouterr().err
    assert copy(gateway, "--status", "--restart") == 0
    assert copy(gateway, "--verify", "--status") == 0


def test_a_token_that_is_not_accepted_makes_the_feed_begin_again(database: Database, copy: Copy, stand: Make):
    gateway = stand()
    assert copy(gateway) == 0
    before = database.calls()
    database.query("UPDATE feed SET token = 'of another key'")
    assert copy(gateway) == 0
    assert database.calls() == before
    assert database.query("SELECT token FROM feed") != [{"token": "of another key"}]


def test_another_start_makes_the_feed_begin_again(database: Database, copy: Copy, stand: Make):
    gateway = stand()
    assert copy(gateway, start="2026-11-17") == 0
    later = database.calls().keys()
    assert copy(gateway, start=None) == 0
    assert database.calls().keys() == later
    assert copy(gateway, start=START) == 0
    assert database.calls().keys() > later
    (feed,) = database.query("SELECT * FROM feed")
    assert (feed["requested_start"], feed["start_time"]) == (START, f"{START}T00:00:00Z")


def test_the_views_count_as_the_summaries_do(stand: Make, database: Database, copy: Copy):
    gateway = stand()
    assert copy(gateway, "--client", "8005550100") == 0
    summary = gateway.get("/clients/8005550100/calls/summary", start=START, interval="day").json()["data"]
    names = {"calls": "calls", "connected": "connected", "unique_callers": "uniqueCallers"}
    names |= {"duration_seconds": "durationSeconds", "talk_time_seconds": "talkTimeSeconds"}
    days = database.query("SELECT * FROM calls_by_day ORDER BY day")
    assert [str(day["day"]) for day in days] == [row["bucketStart"][:10] for row in summary]
    assert [{name: day[name] for name in names} for day in days] == [
        {name: row[other] for name, other in names.items()} for row in summary
    ]
    calls = sorted(listed(gateway).values(), key=lambda call: (call["startTime"], call["result"] == "connected"))
    lost = Counter(call["startTime"][:10] for call in calls if call["result"] in ("busy", "no_answer", "abandoned"))
    assert {str(day["day"]): day["missed"] for day in days} == lost
    missed: Counter[str] = Counter()
    for call in calls:
        if call["ani"] and call["result"] == "connected":
            del missed[call["ani"]]
        elif call["ani"] and call["result"] != "other":
            missed[call["ani"]] += 1
    callers = database.query("SELECT * FROM missed_callers")
    assert {row["ani"]: row["missed_calls"] for row in callers} == missed != {}


def test_a_second_mirror_of_the_database_is_refused_until_the_first_is_killed(
    stand: Make, database: Database, copy: Copy, capsys: pytest.CaptureFixture[str]
):
    gateway = stand()
    words = [*COMMAND, "mirror", database.url, "--follow", "--start", START, "--gateway", str(gateway.client.base_url)]
    assert copy(gateway) == 0  # the tables exist
    with subprocess.Popen(words, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as first:
        wait_for(lambda: gateway.metric("feed_waiting"), "the first mirror waits for changes", 120)
        assert copy(gateway) == 1
        assert "is being written by another mirror" in capsys.readouterr().err
        first.kill()
        first.communicate()
    wait_for(lambda: copy(gateway) == 0, "the database is free")


def test_a_signal_ends_a_mirror_that_follows_with_0(stand: Make, database: Database):
    gateway = stand()
    words = [*COMMAND, "mirror", database.url, "--follow", "--start", START, "--gateway", str(gateway.client.base_url)]
    for number in (signal.SIGTERM, signal.SIGINT):
        with subprocess.Popen(words, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
            wait_for(lambda: gateway.metric("feed_waiting"), "it waits for changes", 120)
            process.send_signal(number)
            _, said = process.communicate(timeout=60)
        assert (process.returncode, "Traceback" in said) == (0, False)
        wait_for(lambda: not gateway.metric("feed_waiting"), "the gateway has noticed", 120)


def test_an_idle_mirror_that_follows_costs_one_post_a_refresh(stand: Make, tmp_path: Path):
    gateway = stand(Options(clients=1, calls_per_day=2), fresh_min=1)  # no call begins or ends meanwhile
    words = [*COMMAND, "mirror", f"sqlite:///{tmp_path}/calls.db", "--follow", "--start", START]

    def refresh(seconds: int) -> None:
        """Wait for two refreshes after the clock has moved: the first one may have begun before."""
        done = gateway.metric('feed_refreshes_total{outcome="ok"}')
        gateway.clock.now += seconds
        wait_for(lambda: gateway.metric('feed_refreshes_total{outcome="ok"}') >= done + 2, "two refreshes")

    with running([*words, "--gateway", str(gateway.client.base_url)], tmp_path / "log"):
        wait_for(lambda: gateway.metric("feed_waiting"), "it waits for changes", 120)
        posts = gateway.simulator.posts
        refresh(0)
        assert gateway.simulator.posts == posts  # all that it read is fresh
        for number in range(1, 6):
            refresh(2)  # the newest points become stale
            assert gateway.simulator.posts == posts + number
        assert gateway.metric("feed_waiting") == 1


def test_a_mirror_that_is_interrupted_before_it_is_up_to_date_ends_with_130(stand: Make, tmp_path: Path):
    gateway = stand()
    gateway.simulator.misbehave("hang")
    words = [*COMMAND, "mirror", f"sqlite:///{tmp_path}/calls.db", "--gateway", str(gateway.client.base_url)]
    with subprocess.Popen(words, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        wait_for(lambda: gateway.simulator.posts, "the upstream is asked", 120)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 130


def test_without_a_gateway_it_reads_the_upstream_itself_and_goes_on_where_it_was(database: Database):
    simulator = create(Options(calls_per_day=50))
    with serving(simulator) as port:
        variables = {"GATEWAY_UPSTREAM_URL": f"http://127.0.0.1:{port}{PATH}"}
        variables["GATEWAY_EXTRA_FIELDS"] = "CustomA:property"
        words = ["mirror", database.url, "--client", "8005550100"]
        first = run(*words, **variables)
        calls = database.calls()
        second = run(*words, **variables)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert 1000 < len(calls) < 1600
    assert all(row["extra_property"] == row["extra"]["CustomA"] for row in calls.values())
    assert f'"told":{len(calls)},' in first.stderr
    told = re.findall(r'"told":(\d+)', second.stderr)
    assert sum(map(int, told)) <= 100  # what arrived meanwhile; not everything again
    assert "begins again" not in second.stderr


def test_a_failure_that_lasts_ends_the_command_with_its_reason(
    stand: Make, copy: Copy, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(mirror, "MAX_FAILURES", 2)
    gateway = stand()
    gateway.simulator.misbehave("unauthorized")
    assert copy(gateway) == 1
    assert "HTTP status 502: " in capsys.readouterr().err
    gateway.simulator.misbehave()
    gateway.pass_time(60)  # the circuit breaker closes
    assert copy(gateway) == 0


@pytest.mark.parametrize("words", [["--start", "soon"], ["--client", "x y"]], ids=" ".join)
def test_an_option_that_the_gateway_refuses_ends_with_2(
    stand: Make, tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
):
    gateway = ["--gateway", str(stand().client.base_url)]
    assert main(["mirror", f"sqlite:///{tmp_path / 'calls.db'}", *gateway, *words]) == 2
    assert capsys.readouterr().err.startswith(f"callbutton-gateway: {words[0]}: is not a ")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["mysql://x/y"], 2, "mysql:// is not the URL of a database that mirror knows"),
        (["calls.db"], 2, "is not the URL of a database"),
        (["sqlite://"], 2, "is not the URL of a database"),
        (["sqlite:////nowhere/calls.db"], 1, "database /nowhere/calls.db: unable to open database file"),
        (["postgresql://x@127.0.0.1:1/x"], 1, "database: "),
        (["sqlite:///calls.db", "--key-file", "key"], 2, "add --gateway"),
        (["sqlite:///calls.db", "--gateway", "http://127.0.0.1:1", "--key-file", "key"], 2, "key: No such file"),
        (["sqlite:///calls.db", "--gateway", "127.0.0.1"], 2, "is not the URL of a gateway"),
        (["sqlite:///calls.db", "--gateway", "http://127.0.0.1:1"], 1, "http://127.0.0.1:1: no connection: check"),
        (["sqlite:///calls.db"], 2, "GATEWAY_UPSTREAM_URL is not set"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_bad_command_ends_with_one_line(
    words: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mirror, "MAX_FAILURES", 1)
    if code == 1:
        monkeypatch.setenv("GATEWAY_UPSTREAM_URL", "http://127.0.0.1:1/xml.jsp")
    assert main(["mirror", *words]) == code
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert said in err


@pytest.mark.parametrize("words", [["--client", "8005550101"], ["--status"]], ids=["clients", "status"])
def test_a_feed_keeps_its_clients_and_status(
    stand: Make, copy: Copy, words: list[str], capsys: pytest.CaptureFixture[str]
):
    gateway = stand()
    assert copy(gateway) == 0
    assert copy(gateway, *words) == 2
    assert "the feed calls has the clients * without status: use --name" in capsys.readouterr().err


def test_a_feed_goes_on_at_another_address_only_with_restart(
    stand: Make, database: Database, copy: Copy, capsys: pytest.CaptureFixture[str]
):
    one, other = stand(), stand(Options(seed=2))
    assert copy(one) == 0
    before = database.calls()
    assert copy(other) == 2
    assert "use --name for another feed in this database, or --restart" in capsys.readouterr().err
    assert database.calls() == before
    assert copy(other, "--restart") == 0
    assert database.calls().keys() == listed(other, "/calls", client="*").keys() != before.keys()


def test_tables_are_migrated_and_newer_ones_refused(
    stand: Make, database: Database, copy: Copy, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    gateway = stand()
    assert copy(gateway) == 0
    before = database.calls()
    step = "ALTER TABLE feed ADD COLUMN note TEXT; UPDATE feed SET note = 'migrated'"
    with monkeypatch.context() as patched:
        patched.setattr(mirror_database, "STEPS", (*mirror_tables.STEPS, step))
        assert copy(gateway) == 0
        assert copy(gateway) == 0
    assert database.query("SELECT note FROM feed") == [{"note": "migrated"}]
    assert copy(gateway) == 2
    assert "the tables are of version 2, and this program knows 1" in capsys.readouterr().err
    assert database.calls() == before


def test_promoted_fields_are_columns_and_a_change_of_the_set_loses_nothing(
    stand: Make, database: Database, copy: Copy, capsys: pytest.CaptureFixture[str]
):
    def promoted(fields: str, *words: str) -> dict[Key, Json]:
        gateway = stand(extra_fields=parse_extra_fields(fields) if fields else ())
        if told:  # the same gateway with another setting, which in this test has another port
            database.query(f"UPDATE feed SET gateway = '{gateway.client.base_url}'")
        assert copy(gateway, *words) == 0
        told.update(listed(gateway, "/calls", client="*"))
        return database.calls()

    told: dict[Key, Json] = {}
    plain = promoted("")
    assert not [name for name in next(iter(plain.values())) if name.startswith("extra_")]
    one = promoted("CustomA:property")
    assert {key: row["extra_property"] for key, row in one.items()} == {
        key: call["property"] for key, call in told.items()
    }
    two = promoted("CustomA:property,CallerName:callerName!personal", "--verify")
    assert "verified" in capsys.readouterr().out
    assert {key: (row["extra_property"], row["extra_caller_name"]) for key, row in two.items()} == {
        key: (call["property"], call["callerName"]) for key, call in told.items()
    }
    assert any(row["extra_property"] for row in two.values())
    other = promoted("CallerName:callerName")
    assert {key: row["extra_caller_name"] for key, row in other.items()} == {
        key: row["extra_caller_name"] for key, row in two.items()
    }
    assert {row["extra_property"] for row in other.values()} == {None}
    assert {key: row["extra"] for key, row in other.items()} == {key: row["extra"] for key, row in plain.items()}


def test_copies_of_gateways_with_other_promoted_fields_share_the_table(stand: Make, database: Database, copy: Copy):
    one, other = (stand(extra_fields=parse_extra_fields(f"CustomA:{name}")) for name in ("property", "site"))
    client = ["--client", "8005550100"]
    for _ in range(2):
        assert copy(one, *client) == 0
        assert copy(other, *client, "--name", "other") == 0
    first, second = database.calls(1), database.calls(2)
    assert {row["extra_site"] for row in first.values()} == {row["extra_property"] for row in second.values()} == {None}
    assert {key: row["extra_property"] for key, row in first.items()} == {
        key: row["extra_site"] for key, row in second.items()
    }
    assert {row["extra_site"] for row in second.values()} != {None}


def test_a_field_whose_name_is_no_column_is_refused(stand: Make, database: Database, copy: Copy):
    assert copy(stand()) == 0
    opened = MirrorDatabase(database.url)
    opened.open()
    feed = opened.feed("calls", "", "*", status=False)
    end = b'{"page":{"next":"x","upToDate":false,"calls":null},"meta":{"start":"","asOf":"","completeThrough":null}}'
    with pytest.raises(ValueError, match="cannot store: x TEXT"):
        opened.apply(feed, parse_page(b'{"op":"upsert","call":{"x TEXT; DROP TABLE calls":"1"}}\n' + end))
    opened.close()


def test_a_terminal_sees_the_progress(stand: Make, tmp_path: Path):
    gateway = stand()
    words = [f"sqlite:///{tmp_path}/calls.db", "--start", START, "--gateway", str(gateway.client.base_url)]
    code, shown = on_terminal("mirror", *words)
    calls = len(listed(gateway, "/calls", client="*"))
    assert code == 0, shown
    assert "█ 100%  up to " in shown
    assert f"{calls:,} calls in " in shown
