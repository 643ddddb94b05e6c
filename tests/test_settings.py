"""Settings are read once and validated strictly; each error is one line that names the variable."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from gateway.access import Rate
from gateway.extra_fields import ExtraField
from gateway.settings import OPTIONS, PAGE, TEXT, Settings, SettingsError, parse_settings, removed_settings, variable
from tests.support.paths import ROOT

URL = "https://callbutton.example/xml.jsp"
DURATIONS = [("250ms", 0.25), ("15s", 15), ("1.5m", 90), ("2h", 7200), ("7d", 604800)]
POSITIVE = ["upstream_timeout", "upstream_idle_timeout", "upstream_deadline", "request_deadline"]
GOOD: list[tuple[str, str, object]] = [
    ("upstream_url", URL, URL),
    ("upstream_proxy", "http://proxy.example:3128", "http://proxy.example:3128"),
    *((name, text, value) for name in [*POSITIVE, "fresh_max"] for text, value in DURATIONS[:2]),
    *(("upstream_max_span", text, value) for text, value in [("1s", 1), ("90500ms", 90), ("31d", 31 * 86400)]),
    *(("fresh_min", text, value) for text, value in [*DURATIONS, ("0s", 0)]),
    ("upstream_concurrency", "1", 1),
    ("request_concurrency", "50", 50),
    ("consumer_share", "0.25", 0.25),
    ("drain_delay", "0s", 0),
    ("upstream_batch", "1000", 1000),
    ("upstream_max_bytes", "64KiB", 65536),
    ("status_flag_element", "Flag_2.x-y", "Flag_2.x-y"),
    ("history_start", "1970-01-02", 86400),
    ("history_start", "1900-01-01", -2_208_988_800),
    ("fresh_ratio", "1", 1.0),
    ("fresh_status_ratio", "0.005", 0.005),
    ("stale_while_revalidate", "30s", 30),
    ("stale_if_error", "0s", 0),
    ("cache_bytes", "1GiB", 1024**3),
    ("cache_url", "rediss://user:p%40ss@redis.example:6380/1", "rediss://user:p%40ss@redis.example:6380/1"),
    ("cache_url", "valkey://[::1]", "valkey://[::1]"),
    ("cache_url", "valkeys://redis.example", "valkeys://redis.example"),
    ("cache_url", "redis+cluster://:a@b@a.example,b.example:6380", "redis+cluster://:a@b@a.example,b.example:6380"),
    ("cache_url", "valkeys+sentinel://a,[::1]:26380/calls/2", "valkeys+sentinel://a,[::1]:26380/calls/2"),
    ("auth", "none", "none"),
    ("keys_file", "/etc/gateway/keys.toml", "/etc/gateway/keys.toml"),
    ("oidc_issuer", "https://issuer.example/realm", "https://issuer.example/realm"),
    ("oidc_audience", "callbutton", "callbutton"),
    ("oidc_clients_claim", "https://claims.example/clients", "https://claims.example/clients"),
    ("oidc_scopes_claim", "scp", "scp"),
    ("oidc_name_claim", "client_id", "client_id"),
    ("oidc_rate", "600/minute", Rate(600, 60)),
    ("consumer_exports", "1", 1),
    ("streams", "20000", 20000),
    (
        "extra_fields",
        "CustomA:property, Address.Country:country!personal",
        (ExtraField("CustomA", "property", False), ExtraField("Address.Country", "country", True)),
    ),
    ("console", "off", "off"),
    ("upstream_null_end", "off", "off"),
    ("console_oidc_client_id", "console", "console"),
    ("extra_public", "Campaign.Note, @Source", frozenset({"Campaign.Note", "@Source"})),
    ("recording_url", "https://sound.example/{id}.mp3", "https://sound.example/{id}.mp3"),
    ("public_url", "https://api.example/calls/", "https://api.example/calls"),
    ("public_url", "/callbutton", "/callbutton"),
    (
        "cors_origins",
        "https://app.example, http://127.0.0.1:3000",
        frozenset({"https://app.example", "http://127.0.0.1:3000"}),
    ),
    ("cors_origins", "*", frozenset({"*"})),
    ("signing_key", "sixteen letters!", "sixteen letters!"),
    ("signing_key", "sixteen letters!, another sixteen!", "sixteen letters!, another sixteen!"),
    ("host", "::1", "::1"),
    ("port", "0", 0),
    ("tls_cert", "/etc/gateway/tls.crt", "/etc/gateway/tls.crt"),
    ("tls_key", "/etc/gateway/tls.key", "/etc/gateway/tls.key"),
    ("metrics_port", "9090", 9090),
    ("log_format", "console", "console"),
    ("log_level", "debug", "debug"),
]
FREE_TEXTS = {name for name, option in OPTIONS.items() if option.parser is TEXT}
BAD = [
    ("upstream_url", "callbutton.example"),
    ("upstream_url", "ftp://callbutton.example/"),
    ("upstream_url", "http://callbutton.example:99999/"),
    ("fresh_max", "99999999999999999999d"),
    ("upstream_proxy", "http://"),
    *((name, text) for name in [*POSITIVE, "fresh_max"] for text in ["0s", "15"]),
    *(("upstream_max_span", text) for text in ["0s", "1ms", "999ms", "15"]),
    ("fresh_min", "-1s"),
    ("upstream_max_bytes", "0.5B"),
    ("cache_bytes", "0MiB"),
    ("fresh_min", "15 parsecs"),
    ("upstream_concurrency", "0"),
    ("request_concurrency", "0"),
    ("consumer_share", "0"),
    ("consumer_share", "1.5"),
    ("drain_delay", "5"),
    ("upstream_batch", "1001"),
    ("upstream_max_bytes", "64MB"),
    ("status_flag_element", "<x>"),
    ("history_start", "2000-02-30"),
    ("history_start", "0001-01-01"),
    ("fresh_ratio", "0"),
    ("fresh_status_ratio", "1.1"),
    ("stale_while_revalidate", "yes"),
    ("stale_if_error", "-1h"),
    ("cache_bytes", "many"),
    ("cache_url", "http://redis.example"),
    ("cache_url", "redis://"),
    ("cache_url", "redis://redis.example/cache"),
    ("cache_url", "redis://:secret@redis.example:port"),
    ("cache_url", "redis://redis.example:65536"),
    ("cache_url", "redis://a.example,b.example"),
    ("cache_url", "redis://redis.example?sentinel_password=secret"),
    ("cache_url", "redis+cluster://redis.example/1"),
    ("cache_url", "redis+cluster://a.example,"),
    ("cache_url", "redis+sentinel://redis.example"),
    ("cache_url", "redis+sentinel://redis.example/calls/first"),
    ("cache_url", "redis+sentinel://redis.example/calls?timeout=1"),
    ("cache_url", "redis+master://redis.example"),
    ("auth", "password"),
    ("oidc_issuer", "issuer.example"),
    ("oidc_rate", "fast"),
    ("consumer_exports", "0"),
    ("streams", "0"),
    *(
        ("extra_fields", text)
        for text in (
            "CustomA",
            "CustomA:Property",
            "CustomA:my_property",
            ":property",
            "A:a,B:a",
            "A:a,A:b",
            "A:aB,B:ab",
            "A:a!secret",
        )
    ),
    ("console", "yes"),
    ("upstream_null_end", "null"),
    ("extra_public", "a,,b"),
    ("recording_url", "/r?id="),
    ("recording_url", "//{id}"),
    ("public_url", "api.example"),
    ("cors_origins", "https://app.example/page"),
    ("signing_key", "short"),
    ("signing_key", "sixteen letters!,short"),
    ("signing_key", "sixteen letters!,"),
    ("signing_key", ",".join(["sixteen letters!"] * 3)),
    ("port", "tcp://10.0.0.1:80"),
    ("port", "65536"),
    ("metrics_port", "0"),
    ("log_format", "xml"),
    ("log_level", "loud"),
]


def complaint(environment: dict[str, str]) -> str:
    with pytest.raises(SettingsError) as caught:
        parse_settings(environment)
    return str(caught.value)


def test_every_setting_has_its_cases():
    assert OPTIONS.keys() == {name for name, _, _ in GOOD}
    assert OPTIONS.keys() - FREE_TEXTS == {name for name, _ in BAD}


@pytest.mark.parametrize(("name", "text", "value"), GOOD, ids=[f"{name}={text}" for name, text, _ in GOOD])
def test_a_good_value_is_read(name: str, text: str, value: object):
    assert value == getattr(parse_settings({variable("fresh_min"): "0s", variable(name): text}), name)


@pytest.mark.parametrize(("name", "text"), BAD, ids=[f"{name}={text}" for name, text in BAD])
def test_a_bad_value_is_refused_in_one_line_that_names_the_variable_and_its_section(name: str, text: str):
    line = complaint({variable(name): text})
    assert [line] == line.splitlines()
    shown = "the value" if OPTIONS[name].secret or "@" in text else repr(text)
    section = f"{PAGE}#{variable(name).lower()}"
    assert line == f"{variable(name)}: {shown} is not {OPTIONS[name].parser.accepts}; see {section}"
    assert f"\n## {variable(name)}\n" in (ROOT / PAGE).read_text("utf-8")


def test_the_minimum_of_freshness_is_at_most_its_maximum():
    section = f"{PAGE}#gateway_fresh_min"
    line = complaint({variable("fresh_min"): "2h", variable("fresh_max"): "60m"})
    assert line == f"GATEWAY_FRESH_MIN is longer than GATEWAY_FRESH_MAX (3600 seconds): reduce it; see {section}"
    assert complaint({variable("fresh_max"): "14s"}).startswith("GATEWAY_FRESH_MIN is longer")  # than its default
    assert parse_settings({variable("fresh_min"): "1h", variable("fresh_max"): "60m"}).fresh_min == 3600


def test_a_line_break_in_a_bad_value_does_not_break_the_line():
    line = complaint({variable("auth"): "none\nof it"})
    assert [line] == line.splitlines()


@pytest.mark.parametrize(
    ("name", "text"),
    [("signing_key", "hunter2"), ("cache_url", "hunter2"), ("upstream_proxy", "socks5://user:hunter2@proxy.example")],
)
def test_a_secret_is_not_shown(name: str, text: str):
    assert "hunter2" not in complaint({variable(name): text})


def test_secrets_are_not_in_the_representation_of_settings():
    assert "hunter2" not in repr(Settings(signing_key="hunter2" * 3, cache_url="redis://:hunter2@redis.example"))


@pytest.mark.parametrize("name", ["GATEWAY_CACHE_SIZE", "GATEWAY_port", "GATEWAY_"])
def test_an_unknown_variable_is_refused(name: str):
    assert complaint({name: "1"}).startswith(f"{name} is not a setting")


def test_empty_variables_and_those_of_others_are_left_alone():
    settings = parse_settings({"GATEWAY_PORT": "", "PORT": "x", "PATH": "/bin"})
    assert settings.port == 8080


def test_a_setting_that_was_removed_is_accepted_with_a_warning():
    environment, removed = {"GATEWAY_COLOR": "red", "GATEWAY_PORT": "1"}, {"GATEWAY_COLOR": "remove the variable"}
    assert parse_settings(environment, removed).port == 1
    (warning,) = removed_settings(environment, removed)
    assert warning == "GATEWAY_COLOR was removed and has no effect: remove the variable"
    assert removed_settings({"GATEWAY_PORT": "1"}, removed) == []
    assert complaint({"GATEWAY_COLOR": "red"}).startswith("GATEWAY_COLOR is not a setting")


def test_settings_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        Settings().port = 1  # type: ignore[misc]


def test_two_processes_do_not_share_a_random_signing_key():
    assert parse_settings({}).signing_key != parse_settings({}).signing_key
