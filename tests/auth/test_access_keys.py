"""Access keys: the keys file, the look-up of a key's consumer, reloads at run time, and the commands."""

from __future__ import annotations

import logging
import os
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from gateway.__main__ import main
from gateway.access import Kind, Rate
from gateway.auth.access_keys import KeysError, fingerprint, new_key, parse_keys
from gateway.auth.key_file import KeyFile
from gateway.cli.keys import with_key
from gateway.logs import JsonFormatter
from gateway.metrics import Metrics
from tests.support.commands import run
from tests.support.consumers import Member, written

NOON = datetime(2027, 6, 30, 12, tzinfo=UTC).timestamp()
DAY = 86400
ENTRY = f'{{ sha256 = "{"a" * 64}" }}'
GOOD = f'[[consumer]]\nname = "a"\nclients = ["*"]\nscopes = ["calls"]\nkeys = [{ENTRY}]\n'


def test_the_documented_file_is_read():
    text = """
[[consumer]]
name = "dashboard"
clients = ["8005551212", "800777*"]          # exact, prefix, or "*"
scopes = ["calls", "personal"]               # calls, personal, status, recordings, refresh
rate = "600/minute"
keys = [{ sha256 = "<hex>", expires = 2027-06-30 }]
""".replace("<hex>", fingerprint("cbg_one"))
    consumer, _ = parse_keys(text).find("cbg_one", NOON)
    assert consumer is not None
    assert (consumer.key, consumer.label) == ((Kind.KEY, "dashboard"), "dashboard")
    assert consumer.clients == ("8005551212", "800777*")
    assert consumer.scopes == {"calls", "personal"}
    assert consumer.rate == Rate(600, 60)


@pytest.mark.parametrize(
    ("expires", "at", "reason"),
    [
        ("2027-06-30", NOON, ""),
        ("2027-06-30", NOON + DAY / 2 - 1, ""),
        ("2027-06-30", NOON + DAY / 2, "expired key"),
        ("2027-06-29", NOON, "expired key"),
        ("2027-06-30T12:00:01Z", NOON, ""),
        ("2027-06-30T12:00:00Z", NOON, "expired key"),
        ("2027-06-30T12:00:00+02:00", NOON, "expired key"),
        (None, NOON + 10**9, ""),
    ],
)
def test_a_key_works_until_the_end_of_its_last_day(expires: str | None, at: float, reason: str):
    member = Member("a", expires=expires)
    consumer, why = parse_keys(written(member)).find(member.key, at)
    assert (consumer is not None, why) == (not reason, reason)


def test_a_consumer_has_several_keys_and_each_is_its_own():
    keys = [new_key(), new_key()]
    entries = ", ".join(f'{{ sha256 = "{fingerprint(key)}" }}' for key in keys)
    ring = parse_keys(GOOD.replace(ENTRY, entries) + GOOD.replace('"a"', '"b"', 1))
    found = [ring.find(key, 0)[0] for key in keys]
    assert [consumer and consumer.name for consumer in found] == ["a", "a"]


@pytest.mark.parametrize("key", ["", "cbg_", fingerprint("x"), "a" * 64, "cbg_é"])
def test_what_is_no_key_is_nobodys(key: str):
    assert parse_keys(GOOD).find(key, 0) == (None, "unknown key")


def test_keys_have_256_random_bits():
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(re.fullmatch(r"cbg_[A-Za-z0-9_-]{43}", key) for key in keys)


BAD = {
    "nothing": ("", "there is no"),
    "not TOML": ("[[consumer", "Expected"),
    "nested without end": ("a = " + "[" * 100_000, ""),
    "an unknown field": (GOOD + 'role = "admin"\n', "role"),
    "an unknown table": (GOOD + "[other]\n", "other"),
    "a field that is missing": (GOOD.replace('scopes = ["calls"]\n', ""), "scopes"),
    "a scope that does not exist": (GOOD.replace('"calls"', '"calls", "admin"'), "scope 2"),
    "a pattern in the middle": (GOOD.replace('"*"', '"800*55"'), "client 1"),
    "two stars": (GOOD.replace('"*"', '"8**"'), "client 1"),
    "a name for a log": (GOOD.replace('"a"', '"a b"'), "consumer 1: the name"),
    "a rate": (GOOD + 'rate = "fast"\n', "rate is not"),
    "a hash that is none": (GOOD.replace("aaaa", "AAAA", 1), "sha256"),
    "a key in place of its hash": (GOOD.replace("a" * 64, "cbg_secret"), "sha256"),
    "a time without offset": (GOOD.replace(" }", ", expires = 2027-06-30T12:00:00 }"), "offset"),
    "a date in quotation marks": (GOOD.replace(" }", ', expires = "2027-06-30" }'), "expires is not a date"),
    "a consumer twice": (GOOD + GOOD.replace("a" * 64, "b" * 64), "consumer 2: another"),
    "a key twice": (GOOD + GOOD.replace('"a"', '"b"'), "consumer 2: one of its keys"),
}


@pytest.mark.parametrize(("text", "named"), BAD.values(), ids=BAD)
def test_a_file_that_is_not_sound_is_refused_whole_in_one_line_without_secrets(text: str, named: str):
    with pytest.raises(KeysError) as caught:
        parse_keys(text)
    line = str(caught.value)
    assert named in line
    assert len(line.splitlines()) == 1
    assert "secret" not in line


def test_a_change_is_taken_over_and_a_broken_file_is_not(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "gateway")
    registry = CollectorRegistry()
    path = tmp_path / "keys.toml"
    one, two = Member("one"), Member("two")
    path.write_text(written(one), "utf-8")
    file = KeyFile(str(path), Metrics(registry))

    def known() -> list[bool]:
        return [file.keyring.find(member.key, 0)[0] is not None for member in (one, two)]

    def broken() -> float | None:
        return registry.get_sample_value("callbutton_gateway_keys_file_broken")

    assert (known(), broken()) == ([True, False], 0)
    file.reload()
    before = file.keyring
    path.write_text(written(one, two), "utf-8")
    file.reload()
    assert (known(), broken()) == ([True, True], 0)
    assert file.keyring is not before
    for content in (b"[[consumer]]\nname = 1", b"\xff\xfe", b""):
        path.write_bytes(content)
        file.reload()
        file.reload()
        assert (known(), broken()) == ([True, True], 1)
    path.unlink()
    file.reload()
    assert (known(), broken()) == ([True, True], 1)
    path.write_text(written(two), "utf-8")
    file.reload()
    assert (known(), broken()) == ([False, True], 0)
    lines = [JsonFormatter().format(record) for record in caplog.records if record.name.startswith("gateway")]
    assert sum("cannot be used" in line for line in lines) == 4  # logged once each, not at every check of the file
    assert not any("key-of" in line for line in lines)


def test_a_file_swapped_by_a_link_is_a_change(tmp_path: Path):
    """Kubernetes updates mounted files this way."""
    for name in ("one", "two"):
        (tmp_path / name).write_text(written(Member(name)), "utf-8")
    link = tmp_path / "keys.toml"
    link.symlink_to("one")
    file = KeyFile(str(link), Metrics(CollectorRegistry()))
    (tmp_path / "new").symlink_to("two")
    (tmp_path / "new").replace(link)
    file.reload()
    assert file.keyring.find(Member("two").key, 0)[0] is not None


def test_keys_new_prints_the_key_once_and_the_file_has_its_hash_alone(tmp_path: Path):
    path = tmp_path / "keys.toml"
    words = ("keys", "new", "dashboard", "--client", "800777*", "--scope", "calls", "--rate", "600/minute")
    made = run(*words, GATEWAY_KEYS_FILE=str(path))
    key = made.stdout.strip()
    assert made.returncode == 0, made.stderr
    assert re.fullmatch(r"cbg_[A-Za-z0-9_-]{43}", key)
    assert key not in path.read_text("utf-8") + made.stderr
    assert path.stat().st_mode & 0o777 == 0o600
    further = run("keys", "new", "dashboard", "--expires", "2096-02-29", "--file", str(path))
    assert further.returncode == 0, further.stderr
    ring = parse_keys(path.read_text("utf-8"))
    consumer, _ = ring.find(key, 0)
    assert consumer is not None
    assert consumer.clients == ("800777*",)
    assert ring.find(further.stdout.strip(), 0)[0] == consumer
    path.write_text(path.read_text("utf-8").replace("2096", "2020"), "utf-8")
    shown = run("keys", "list", "--file", str(path))
    assert shown.stdout.splitlines()[0] == "dashboard: clients 800777*; scopes calls, 600/minute"
    assert "expired 2020-03-01T00:00:00Z" in shown.stdout
    assert "does not expire" in shown.stdout
    assert os.listdir(tmp_path) == ["keys.toml"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["new", "a"], 2, "no keys file"),
        (["new", "a", "--file", "{}/k"], 2, "a is new: add at least one"),
        (["new", "a b", "--client", "*", "--scope", "calls", "--file", "{}/k"], 2, "the name is not"),
        (["new", "", "--client", "*", "--scope", "calls", "--file", "{}/k"], 2, "the name is not"),
        (["new", "a", "--client", 'x"', "--scope", "calls", "--file", "{}/k"], 2, "quotation marks"),
        (["new", "a", "--client", "*", "--scope", "all", "--file", "{}/k"], 2, "scope 1 is not"),
        (["list", "--file", "{}/k"], 1, "No such file"),
        (["new", "a", "--client", "*", "--scope", "calls", "--file", "{}/none/k"], 1, "k: the folder does not exist"),
        (
            ["new", "a", "--client", "a b", "--scope", "calls", "--file", "{}/k"],
            2,
            "--client, --scope or --rate is not",
        ),
        (["new", "a", "--expires", "tomorrow", "--file", "{}/k"], 2, "tomorrow is not a date such as 2027-06-30"),
        (
            ["new", "a", "--expires", "2020-01-01", "--file", "{}/k"],
            2,
            "2020-01-01 has passed: the key would never work",
        ),
    ],
    ids=[
        *("no file", "no rights", "bad name", "no name", "quotes", "bad scope", "nothing to list"),
        *("no folder", "bad client", "no date", "past date"),
    ],
)
def test_keys_that_cannot_be_made_leave_no_file(tmp_path: Path, words: list[str], code: int, said: str):
    done = run("keys", *(word.replace("{}", str(tmp_path)) for word in words))
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert os.listdir(tmp_path) == []


def test_a_further_key_leaves_comments_and_order_as_they_were():
    second = GOOD.replace('name = "a"', 'name = "b"  # b').replace("a" * 64, "b" * 64)
    text = f"# ours\n{GOOD}# next\n{second}"
    changed = with_key(text, "b", '{ sha256 = "' + "c" * 64 + '" }', [], [], None)
    assert changed.replace('{ sha256 = "' + "c" * 64 + '" }, ', "") == text
    assert [len(entry.keys) for entry in parse_keys(changed).entries] == [1, 2]
    emptied = with_key(GOOD.replace(ENTRY, ""), "a", ENTRY, [], [], None)
    assert emptied == GOOD


@pytest.mark.parametrize(
    "text",
    [
        'consumer = [{ name = "a", clients = ["*"], scopes = ["calls"], keys = [] }]\n',
        f'[[consumer]]\nname = "a"\nclients = ["*"]\nscopes = ["calls"]\n[[consumer.keys]]\nsha256 = "{"a" * 64}"\n',
    ],
    ids=["inline", "tables"],
)
def test_a_file_of_another_layout_is_not_changed_but_said(text: str):
    with pytest.raises(ValueError, match="by hand"):
        with_key(text, "a", ENTRY.replace("aaaa", "cccc"), [], [], None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[[consumer]\n", "Expected"),
        (b"consumer = 1\n", "Expected `array`"),
        (b"\xff", "codec can't decode"),
        (b"[[consumer]]\nname = 'a b'\nclients = []\nscopes = []\nkeys = []\n", "consumer 1: the name is not"),
    ],
    ids=["not TOML", "another document", "not UTF-8", "a bad name"],
)
@pytest.mark.parametrize("action", [["list"], ["new", "b", "--client", "*", "--scope", "calls"]], ids=["list", "new"])
def test_a_keys_file_that_is_not_valid_is_named_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, said: str, action: list[str]
):
    path = tmp_path / "keys.toml"
    path.write_bytes(content)
    code = main(["keys", *action, "--file", str(path)])
    out, err = capsys.readouterr()
    assert (code, out, len(err.splitlines()), path.read_bytes()) == (2, "", 1, content)
    assert err.startswith(f"callbutton-gateway: {path}: ")
    assert said in err


@pytest.mark.parametrize("before", ["", "\n", "# the keys of production\n"])
def test_a_key_can_be_added_to_a_file_without_consumers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], before: str
):
    path = tmp_path / "keys.toml"
    path.write_text(before, "utf-8")
    assert main(["keys", "new", "a", "--client", "*", "--scope", "calls", "--file", str(path)]) == 0
    assert parse_keys(path.read_text("utf-8")).find(capsys.readouterr().out.strip(), 0)[0] is not None
    assert path.read_text("utf-8").startswith(before.strip())


def test_the_expiry_of_each_consumer_s_last_key_is_a_metric(tmp_path: Path):
    registry = CollectorRegistry()
    path = tmp_path / "keys.toml"

    def consumer(name: str, *expiries: str) -> str:
        keys = [f'{{sha256 = "{fingerprint(f"{name}{at}")}"{at}}}' for at in expiries]
        return f'[[consumer]]\nname = "{name}"\nclients = []\nscopes = []\nkeys = [{", ".join(keys)}]\n'

    def expiries() -> dict[str, float]:
        samples = [sample for family in registry.collect() for sample in family.samples]
        return {s.labels["consumer"]: s.value for s in samples if s.name.endswith("key_expiry_timestamp_seconds")}

    ending = consumer("a", ", expires = 2027-06-29", ", expires = 2027-06-30")
    path.write_text(ending + consumer("b", "", ", expires = 2027-06-30") + consumer("c"), "utf-8")
    file = KeyFile(str(path), Metrics(registry))
    assert expiries() == {"a": datetime(2027, 7, 1, tzinfo=UTC).timestamp()}
    path.write_text(consumer("b", ""), "utf-8")
    file.reload()
    assert expiries() == {}
