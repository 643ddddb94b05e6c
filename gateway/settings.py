"""The settings: one table, `Settings`, read once from the environment.

Rules:
- The environment variable of a setting is `GATEWAY_` and its name in capitals. docs/settings.md has a section for each.
- An invalid value or an unknown variable is a SettingsError: one line that names the variable and its section. It
  contains no secrets and no URLs with credentials.
- A removed setting is accepted for one version, with a warning.
- docs/settings.md is generated from the table: `make docs`.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from gateway.access import Rate, parse_rate
from gateway.extra_fields import ELEMENT, ExtraField, parse_extra_fields
from gateway.redis_nodes import parse_redis_url

PREFIX = "GATEWAY_"
PAGE = "docs/settings.md"
MAX_DURATION = 100 * 366 * 86400.0  # seconds
SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
EARLIEST_DATE = -2_208_988_800  # 1900-01-01, where the upstream's times begin
BYTES = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
MIN_SECRET = 16  # characters; a random key of this length cannot be guessed
SECRET = f"[^,]{{{MIN_SECRET},}}"
MAX_SHOWN = 80  # characters of a value in an error message, which is one line
# Removed settings, each with its replacement. The next version refuses them.
REMOVED: Mapping[str, str] = {}

T = TypeVar("T")
U = TypeVar("U")


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return f"{PREFIX}{name.upper()}"


class SettingsError(ValueError):
    """A setting is not valid. The text is one line; with the `name` of a setting it ends with a link to its section."""

    def __init__(self, text: str, name: str = "") -> None:
        super().__init__(f"{text}; see {PAGE}#{variable(name).lower()}" if name else text)


@dataclass(frozen=True)
class Parser(Generic[T]):
    """Parses a value. `accepts` describes valid texts; `parse` raises ValueError for all others."""

    accepts: str
    parse: Callable[[str], T]


@dataclass(frozen=True)
class Option:
    """The entry of a setting in the table. `default` is the text of its default value; empty if it has none."""

    meaning: str
    default: str
    parser: Parser[Any]
    secret: bool = False


def refined(accepts: str, parse: Callable[[str], T], condition: Callable[[T], object]) -> Parser[T]:
    """A parser of the values that meet a condition."""

    def parse_refined(text: str) -> T:
        if not condition(value := parse(text)):
            raise ValueError(text)
        return value

    return Parser(accepts, parse_refined)


def parse_quantity(text: str, units: Mapping[str, float]) -> float:
    """Parse a number with one of the units, such as `15s`. Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text)
    if match is None or match[2] not in units:
        raise ValueError(text)
    return float(match[1]) * units[match[2]]


def parse_date(text: str) -> int:
    """Parse a date to its first second in UTC, in seconds since 1970. Raises ValueError."""
    return int(datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp())


def parse_url(text: str) -> str:
    """Check an http or https URL. Raises ValueError."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:  # `port` checks the range
        raise ValueError(text)
    return text


def parse_recording_url(text: str) -> str:
    """Check a URL, or a path at the upstream, that contains {id}. Raises ValueError."""
    if "{id}" not in text:
        raise ValueError(text)
    return text if re.fullmatch(r"/[^/\\\s][^\s]*", text) else parse_url(text)


def parse_public_url(text: str) -> str:
    """Parse a path or a URL, and remove a trailing slash. Raises ValueError."""
    return (text if re.fullmatch(r"/[A-Za-z0-9._~/-]*", text) else parse_url(text)).rstrip("/")


def matching(accepts: str, pattern: str) -> Parser[str]:
    """A parser of texts that match a regular expression completely."""
    return refined(accepts, str, re.compile(pattern).fullmatch)


def names(accepts: str, pattern: str) -> Parser[frozenset[str]]:
    """A parser of names that are separated by commas, each of which matches a regular expression."""

    def parse_names(text: str) -> frozenset[str]:
        return frozenset(map(str.strip, text.split(",")))

    return refined(accepts, parse_names, lambda found: all(map(re.compile(pattern).fullmatch, found)))


def whole_number(minimum: int, maximum: int) -> Parser[int]:
    """A parser of whole numbers from `minimum` to `maximum`."""
    digits = matching("", "[0-9]{1,18}")
    accepts = f"a whole number from {minimum} to {maximum}"
    return refined(accepts, lambda text: int(digits.parse(text)), lambda number: minimum <= number <= maximum)


def choice(*words: str) -> Parser[str]:
    """A parser that accepts these words only."""
    return matching(f"one of {', '.join(words)}", "|".join(map(re.escape, words)))


TEXT = Parser("text", str)
DURATION = refined(
    "a duration such as 250ms, 15s, 10m, 2h or 7d",
    lambda text: parse_quantity(text, SECONDS),
    lambda seconds: seconds <= MAX_DURATION,
)
POSITIVE_DURATION = refined(
    "a duration above zero such as 250ms, 15s, 10m, 2h or 7d", DURATION.parse, lambda seconds: seconds > 0
)
SPAN = refined(
    "a duration of at least 1s such as 2h or 31d",
    lambda text: DURATION.parse(text) // 1,
    lambda seconds: seconds >= 1,
)
SIZE = refined(
    "a size such as 64KiB, 256MiB or 1GiB", lambda text: int(parse_quantity(text, BYTES)), lambda size: size >= 1
)
FRACTION = refined(
    "a number above 0 and at most 1", lambda text: parse_quantity(text, {"": 1}), lambda number: 0 < number <= 1
)
DATE = refined("a date such as 2000-01-01", parse_date, lambda instant: instant >= EARLIEST_DATE)
URL = Parser("an http:// or https:// URL", parse_url)


def option(parser: Parser[T], default: str, meaning: str) -> T:
    """A setting with a default."""
    entry = Option(meaning, default, parser)
    return field(default=parser.parse(default), metadata={"option": entry})


def optional(parser: Parser[T], unset: U, meaning: str, *, secret: bool = False) -> T | U:
    """A setting without a default. Its value is `unset` if the variable is not set."""
    entry = Option(meaning, "", parser, secret)
    return field(default=unset, repr=not secret, metadata={"option": entry})


def generated(parser: Parser[str], meaning: str) -> str:
    """A secret whose default is random."""
    entry = Option(meaning, "random", parser, secret=True)
    return field(default_factory=lambda: secrets.token_hex(32), repr=False, metadata={"option": entry})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The values of all settings. Durations are in seconds, sizes in bytes, instants in seconds since 1970."""

    upstream_url: str = optional(
        URL, "", "The URL of the Callbutton server's `xml.jsp`. Every command that asks the server requires it."
    )
    upstream_proxy: str | None = optional(
        URL,
        None,
        "The HTTP proxy for requests to the upstream, for example because the upstream allows only the proxy's "
        "address. The URL may contain credentials.",
    )
    upstream_timeout: float = option(POSITIVE_DURATION, "30s", "The time until the first byte of the upstream's reply.")
    upstream_idle_timeout: float = option(POSITIVE_DURATION, "15s", "The time between bytes of the upstream's reply.")
    upstream_deadline: float = option(POSITIVE_DURATION, "5m", "The time for a complete POST.")
    request_deadline: float = option(
        POSITIVE_DURATION,
        "60s",
        "The time from a request to the first byte of its answer, else 504. POSTs in flight continue, and are cached.",
    )
    # A request in flight takes about 10 kB of memory and a socket.
    request_concurrency: int = option(
        whole_number(1, 100_000),
        "1000",
        "The limit of requests that wait for the upstream. Further ones are answered with 503; cached responses are "
        "always sent.",
    )
    consumer_share: float = option(
        FRACTION,
        "0.5",
        "The part of common resources that one consumer alone may hold: requests that wait for the upstream, "
        "exports, recordings, and bytes of responses that it has not read. Several consumers hold equal parts. A "
        "consumer that exceeds its part is answered with 429. Without authentication each client address is one.",
    )
    drain_delay: float = option(
        DURATION, "5s", "The time for which requests are accepted after SIGTERM, while `/readyz` answers 503."
    )
    # 1000: servers of 2009 have a few hundred threads.
    upstream_concurrency: int = option(whole_number(1, 1000), "8", "The limit of POSTs in flight.")
    upstream_max_span: float = option(SPAN, "31d", "The longest window that a POST asks for.")
    # 1000: such a POST has about 60 kB.
    upstream_batch: int = option(whole_number(1, 1000), "50", "The maximum number of clients in a POST.")
    upstream_max_bytes: int = option(SIZE, "64MiB", "The maximum size of a reply, decompressed.")
    status_flag_element: str = option(
        matching("the name of an XML element", r"[A-Za-z_][A-Za-z0-9_.-]{0,63}"),
        "StatusFlag",
        "The element of a request that asks for the status of calls. The protocol document does not name it.",
    )
    upstream_null_end: str = option(
        choice("on", "off"),
        "on",
        "Whether the EndDate of calls up to now is null. `off` sends the time, for a server on which null dates fail.",
    )
    history_start: int = option(
        DATE,
        "2000-01-01",
        "The date of the oldest calls, in UTC: the start of windows without `start`.",
    )
    fresh_min: float = option(DURATION, "15s", "The minimum time for which fetched calls are fresh.")
    fresh_ratio: float = option(
        FRACTION, "0.1", "Fetched calls are fresh for this fraction of the age that they had when they were fetched."
    )
    fresh_max: float = option(POSITIVE_DURATION, "7d", "The maximum time for which fetched calls are fresh.")
    fresh_status_ratio: float = option(FRACTION, "0.01", "`GATEWAY_FRESH_RATIO` for calls with status.")
    stale_while_revalidate: float = option(
        DURATION, "0s", "The time for which stale calls are served while they are fetched again."
    )
    stale_if_error: float = option(DURATION, "24h", "The time for which stale calls are served if the upstream fails.")
    cache_bytes: int = option(
        SIZE,
        "256MiB",
        "The size of all that is kept in memory: calls, figures, responses, and notes about clients.",
    )
    cache_url: str = optional(
        refined(
            "a URL such as redis://127.0.0.1:6379/0, redis+sentinel://host1,host2:26379/NAME or "
            "redis+cluster://host1:6379,host2:6379, with redis, rediss, valkey or valkeys",
            str,
            parse_redis_url,
        ),
        "",
        "The Redis or Valkey server that replicas share, its Sentinels, or nodes of its cluster: the second level of "
        "the cache, and rate limits. With TLS: `rediss` or `valkeys`. The user and the password come before the "
        "hosts (`user:password@`), those of Sentinels as the parameters `sentinel_username` and `sentinel_password`, "
        "the database comes last (`/0`).",
        secret=True,
    )
    auth: str = option(
        choice("keys", "oidc", "keys+oidc", "none"),
        "keys",
        "The credentials of consumers: access keys, OpenID Connect tokens, both, or none. With `none` every consumer "
        "that can reach the gateway sees every client.",
    )
    keys_file: str = optional(TEXT, "", "The file of access keys. `GATEWAY_AUTH` with `keys` requires it.")
    oidc_issuer: str = optional(
        URL, "", "The issuer of bearer tokens, exactly as in their claim `iss`. `GATEWAY_AUTH` with `oidc` requires it."
    )
    oidc_audience: str = optional(
        TEXT, "", "The audience that the claim `aud` must contain. `GATEWAY_AUTH` with `oidc` requires it."
    )
    oidc_clients_claim: str = option(
        TEXT, "clients", "The claim with the client codes: a list of strings, or a string of words."
    )
    oidc_scopes_claim: str = option(TEXT, "scope", "The claim with the scopes. Unknown scopes are ignored.")
    oidc_name_claim: str = option(
        TEXT, "azp", "The claim with the consumer's name. If a token lacks it, `client_id` is used, then `sub`."
    )
    oidc_rate: Rate | None = optional(
        Parser("a rate such as 600/minute, by second, minute, hour or day", parse_rate),
        None,
        "The rate limit of each consumer with a token. Rates of consumers with access keys are in the keys file.",
    )
    console: str = option(choice("on", "off"), "on", "Whether `/console` serves the web console, and `/` leads to it.")
    console_oidc_client_id: str = optional(
        TEXT,
        "",
        "The client id of the console at the issuer, with which people sign in (authorization code flow with PKCE). "
        "`GATEWAY_AUTH` with `oidc` is required, and the issuer must allow the address of `/console` as redirect URI.",
    )
    # An export holds the calls of a POST in memory.
    consumer_exports: int = option(
        whole_number(1, 1000),
        "4",
        "The limit of exports (NDJSON, CSV) in progress for each consumer. Further exports are answered with 429.",
    )
    streams: int = option(
        whole_number(1, 1_000_000),
        "10000",
        "The limit of streams of the change feed and of requests that wait for a change, of all consumers. One "
        "consumer has at most 100. Further ones are answered with 429 or 503.",
    )
    extra_public: frozenset[str] = optional(
        names("a list of names in `extra`, separated by commas", ELEMENT.pattern),
        frozenset(),
        "Elements in `extra` that are not personal data: consumers without the scope `personal` see them.",
    )
    extra_fields: tuple[ExtraField, ...] = optional(
        Parser("a list such as CustomA:property,CallerName:callerName!personal", parse_extra_fields),
        (),
        "Elements in `extra` that become fields of calls, with a camelCase name each: filters, CSV columns and groups "
        "(`groupBy`) as well. With `!personal` they require the scope `personal`. They stay in `extra` as well.",
    )
    recording_url: str = option(
        Parser("a URL or a path that contains {id}", parse_recording_url),
        "/cb/main/jsp/mates/cBEventCallRecordingURL.jsp?id={id}",
        "The URL of recordings, or their path at the upstream. `{id}` is replaced by the id of a call.",
    )
    public_url: str = optional(
        Parser("a path such as /callbutton, or an http:// or https:// URL", parse_public_url),
        "",
        "The prefix of links in responses, for a gateway behind an ingress path.",
    )
    cors_origins: frozenset[str] = optional(
        names(
            "a list of origins such as https://app.example, separated by commas, or *",
            r"\*|https?://[A-Za-z0-9.\[\]:-]+",
        ),
        frozenset(),
        "The web origins whose pages may read responses (CORS).",
    )
    signing_key: str = generated(
        matching(f"one or two keys of {MIN_SECRET} or more characters, separated by a comma", f"{SECRET}(,{SECRET})?"),
        "Signs cursors, links, tokens of the change feed and values in Redis, for all replicas alike. Of two, the "
        "first signs and both verify, except values in Redis. A key contains no comma.",
    )
    host: str = option(TEXT, "127.0.0.1", "The address to listen on.")
    port: int = option(whole_number(0, 65535), "8080", "The port to listen on; 0 selects a free port.")
    tls_cert: str = optional(TEXT, "", "The PEM file of the TLS certificate and its chain. Without it: plain HTTP.")
    tls_key: str = optional(TEXT, "", "The PEM file of the private key of `GATEWAY_TLS_CERT`.")
    metrics_port: int = optional(
        whole_number(1, 65535),
        0,
        "A second port, without TLS, for `/metrics` and the probes. `GATEWAY_PORT` then has no `/metrics`.",
    )
    log_format: str = optional(
        choice("json", "console"), "", "The format of log lines. By default `console` on a terminal, else `json`."
    )
    log_level: str = option(choice("debug", "info", "warning", "error"), "info", "The lowest level that is logged.")


OPTIONS: dict[str, Option] = {setting.name: setting.metadata["option"] for setting in fields(Settings)}


def parse_settings(environment: Mapping[str, str], removed: Mapping[str, str] = REMOVED) -> Settings:
    """Parse the settings in an environment. Raises SettingsError for the first that is not valid."""
    values: dict[str, Any] = {}
    for key, text in environment.items():
        if not key.startswith(PREFIX) or not text or key in removed:
            continue
        name = key.removeprefix(PREFIX).lower()
        entry = OPTIONS.get(name)
        if entry is None or key != variable(name):
            raise SettingsError(f"{key} is not a setting of this version; see {PAGE}")
        try:
            values[name] = entry.parser.parse(text.strip())
        except ValueError as error:
            shown = "the value" if entry.secret or "@" in text else repr(text[:MAX_SHOWN])  # user:password@host
            raise SettingsError(f"{key}: {shown} is not {entry.parser.accepts}", name) from error
    settings = Settings(**values)
    if settings.fresh_min > settings.fresh_max:
        text = f"GATEWAY_FRESH_MIN is longer than GATEWAY_FRESH_MAX ({settings.fresh_max:g} seconds): reduce it"
        raise SettingsError(text, "fresh_min")
    return settings


def removed_settings(environment: Mapping[str, str], removed: Mapping[str, str] = REMOVED) -> list[str]:
    """A warning for each removed setting in the environment."""
    return [f"{key} was removed and has no effect: {removed[key]}" for key in environment if key in removed]


def parse_upstream_settings(environment: Mapping[str, str]) -> Settings:
    """Parse the settings for a command that needs the upstream. Raises SettingsError."""
    settings = parse_settings(environment)
    if not settings.upstream_url:
        text = "GATEWAY_UPSTREAM_URL is not set: set it to the URL of the Callbutton server's xml.jsp"
        raise SettingsError(text, "upstream_url")
    return settings
