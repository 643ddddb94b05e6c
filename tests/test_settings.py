"""The settings: read once, strictly."""

import pytest

from gateway.__main__ import main
from gateway.settings import READERS, Settings, SettingsError, read_settings

GOOD = {
    "GATEWAY_UPSTREAM_TIMEOUT": ("2m", 120.0),
    "GATEWAY_CACHE_BYTES": ("64MiB", 64 * 1024**2),
    "GATEWAY_HISTORY_START": ("2009-01-01", 1230768000),
    "GATEWAY_FRESH_RATIO": ("0.25", 0.25),
    "GATEWAY_PORT": ("9000", 9000),
}
BAD = {
    "GATEWAY_UPSTREAM_URL": "ftp://x",
    "GATEWAY_UPSTREAM_TIMEOUT": "soon",
    "GATEWAY_UPSTREAM_DEADLINE": "0s",
    "GATEWAY_CACHE_BYTES": "lots",
    "GATEWAY_HISTORY_START": "2000",
    "GATEWAY_FRESH_RATIO": "0",
    "GATEWAY_PORT": "tcp://10.0.0.1:80",
    "GATEWAY_AUTH": "maybe",
    "GATEWAY_STATUS_FLAG_ELEMENT": "<x>",
    "GATEWAY_SIGNING_KEY": "short",
    "GATEWAY_NO_SUCH": "1",
}


def test_every_setting_has_a_reader():
    assert set(READERS) == set(Settings.__struct_fields__)


@pytest.mark.parametrize(("variable", "case"), GOOD.items(), ids=GOOD)
def test_a_good_value_is_read(variable: str, case: tuple[str, object]):
    assert getattr(read_settings({variable: case[0]}), variable.removeprefix("GATEWAY_").lower()) == case[1]


@pytest.mark.parametrize(("variable", "text"), BAD.items(), ids=BAD)
def test_a_bad_value_is_one_line_that_names_it(variable: str, text: str):
    with pytest.raises(SettingsError) as caught:
        read_settings({variable: text})
    assert variable in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_secret_is_not_shown():
    with pytest.raises(SettingsError) as caught:
        read_settings({"GATEWAY_SIGNING_KEY": "hunter2"})
    assert "hunter2" not in str(caught.value)


def test_a_bad_setting_stops_the_start(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("GATEWAY_UPSTREAM_URL", "http://127.0.0.1:9/xml.jsp")
    assert main(["serve"]) == 2  # access control is not built, so auth=none has to be said
    assert capsys.readouterr().err.startswith("callbutton-gateway: GATEWAY_AUTH")


def test_check_says_what_is_wrong_and_what_to_do(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("GATEWAY_UPSTREAM_URL", "http://127.0.0.1:9/xml.jsp")
    assert main(["check"]) == 1
    assert "What to do: check GATEWAY_UPSTREAM_URL" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["serve", "demo", "simulate", "check", "openapi"])
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert "example:" in capsys.readouterr().out
