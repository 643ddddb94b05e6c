"""The settings: one table, `Settings`, read once from the environment.

Rules:
- The variable of a setting is `GATEWAY_` and its name in capitals. Its section of docs/settings.md has that name.
- A value that cannot be used, or an unknown variable, stops the start with one line that names the variable and its
  section. Secrets are not shown, nor addresses with credentials.
- A setting that was removed is accepted for one version, with a warning.
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

PREFIX = "GATEWAY_"
PAGE = "docs/settings.md"
SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
BYTES = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
MIN_SECRET = 16  # characters; a random key of this length cannot be guessed
MAX_SHOWN = 80  # characters of a value in an error message, which is one line
# Removed settings and what to do instead; they are refused from the next version on.
REMOVED: Mapping[str, str] = {}

T = TypeVar("T")
U = TypeVar("U")


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return f"{PREFIX}{name.upper()}"


class SettingsError(ValueError):
    """A setting cannot be used. The text is one line, which ends with the section of the setting `name`."""

    def __init__(self, text: str, name: str = "") -> None:
        super().__init__(f"{text}; see {PAGE}#{variable(name).lower()}" if name else text)


@dataclass(frozen=True)
class Parser(Generic[T]):
    """From text to value. `parse` raises ValueError for anything but what `accepts` describes."""

    accepts: str
    parse: Callable[[str], T]


@dataclass(frozen=True)
class Option:
    """The entry of a setting in the table. `default` is text, as in the environment; empty for none."""

    meaning: str
    default: str
    parser: Parser[Any]
    secret: bool = False


def parse_quantity(text: str, units: Mapping[str, float]) -> float:
    """Parse a number with a unit, such as `15s`. Raises ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", text)
    if match is None or match[2] not in units:
        raise ValueError(text)
    return float(match[1]) * units[match[2]]


def parse_duration(text: str) -> float:
    """Parse a duration to seconds. Raises ValueError."""
    return parse_quantity(text, SECONDS)


def parse_positive_duration(text: str) -> float:
    """Parse a duration above zero to seconds. Raises ValueError."""
    if (seconds := parse_duration(text)) <= 0:
        raise ValueError(text)
    return seconds


def parse_size(text: str) -> int:
    """Parse a size to bytes. Raises ValueError."""
    return int(parse_quantity(text, BYTES))


def parse_fraction(text: str) -> float:
    """Parse a number above 0 and at most 1. Raises ValueError."""
    if re.fullmatch(r"\d+(\.\d+)?", text) is None or not 0 < float(text) <= 1:
        raise ValueError(text)
    return float(text)


def parse_date(text: str) -> int:
    """Parse a date to the seconds since 1970 at which it begins in UTC. Raises ValueError."""
    return int(datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp())


def parse_url(text: str) -> str:
    """Check an http or https address. Raises ValueError."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(text)
    return text


def parse_recording_url(text: str) -> str:
    """Check an address, or a path at the upstream, with {id} in it. Raises ValueError."""
    if "{id}" not in text:
        raise ValueError(text)
    return text if re.fullmatch(r"/[^/\\\s][^\s]*", text) else parse_url(text)


def parse_public_url(text: str) -> str:
    """Parse a path or an address, and drop the slash at its end. Raises ValueError."""
    return (text if re.fullmatch(r"/[A-Za-z0-9._~/-]*", text) else parse_url(text)).rstrip("/")


def parse_origins(text: str) -> frozenset[str]:
    """Parse web origins, or `*`. Raises ValueError."""
    names = [name.strip() for name in text.split(",")]
    if any(name != "*" and re.fullmatch(r"https?://[A-Za-z0-9.\[\]:-]+", name) is None for name in names):
        raise ValueError(text)
    return frozenset(name.lower() for name in names)


def parse_element_names(text: str) -> frozenset[str]:
    """Parse names of elements as `extra` has them. Raises ValueError."""
    names = [name.strip() for name in text.split(",")]
    if any(re.fullmatch(r"@?[A-Za-z_][A-Za-z0-9_.@-]{0,127}", name) is None for name in names):
        raise ValueError(text)
    return frozenset(names)


def matching(accepts: str, pattern: str) -> Parser[str]:
    """A parser of text that matches a regular expression as a whole."""

    def parse_match(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise ValueError(text)
        return text

    return Parser(accepts, parse_match)


def whole_number(least: int, most: int) -> Parser[int]:
    """A parser of whole numbers between two bounds, both included."""

    def parse_whole(text: str) -> int:
        if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
            raise ValueError(text)
        return int(text)

    return Parser(f"a whole number from {least} to {most}", parse_whole)


def choice(*words: str) -> Parser[str]:
    """A parser of one of several words."""
    return matching(f"one of {', '.join(words)}", "|".join(map(re.escape, words)))


TEXT = Parser("text", str)
DURATION = Parser("a duration such as 250ms, 15s, 10m, 2h or 7d", parse_duration)
POSITIVE_DURATION = Parser("a duration above zero such as 250ms, 15s, 10m, 2h or 7d", parse_positive_duration)
SIZE = Parser("a size such as 64KiB, 256MiB or 1GiB", parse_size)
FRACTION = Parser("a number above 0 and at most 1", parse_fraction)
URL = Parser("an http:// or https:// address", parse_url)


def option(parser: Parser[T], default: str, meaning: str) -> T:
    """A setting with a default."""
    described = Option(meaning, default, parser)
    return field(default=parser.parse(default), metadata={"option": described})


def optional(parser: Parser[T], unset: U, meaning: str, *, secret: bool = False) -> T | U:
    """A setting without a default, which is `unset` in that case."""
    described = Option(meaning, "", parser, secret)
    return field(default=unset, repr=not secret, metadata={"option": described})


def generated(parser: Parser[str], meaning: str) -> str:
    """A secret that is random by default."""
    described = Option(meaning, "random", parser, secret=True)
    return field(default_factory=lambda: secrets.token_hex(32), repr=False, metadata={"option": described})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every setting. Durations are in seconds, sizes in bytes, instants in seconds since 1970."""

    upstream_url: str = optional(
        URL, "", "The address of the server's `xml.jsp`. Commands that reach the server need it."
    )
    upstream_proxy: str | None = optional(
        URL, None, "The proxy to the upstream, where the upstream allows a single address. It may hold credentials."
    )
    upstream_timeout: float = option(POSITIVE_DURATION, "30s", "Time to the first byte of the upstream's answer.")
    upstream_idle_timeout: float = option(POSITIVE_DURATION, "15s", "Time between bytes of the upstream's answer.")
    upstream_deadline: float = option(POSITIVE_DURATION, "5m", "Time for a whole POST.")
    request_deadline: float = option(
        POSITIVE_DURATION, "60s", "How long a consumer waits. The POST continues, and its answer is cached."
    )
    # A request in flight takes about 10 kB, and a socket.
    request_concurrency: int = option(
        whole_number(1, 100_000), "1000", "Requests in flight; more are answered with 503."
    )
    drain_delay: float = option(
        DURATION, "5s", "How long requests are accepted after SIGTERM, while `/readyz` answers 503."
    )
    # A server of 2009 has some hundred threads.
    upstream_concurrency: int = option(whole_number(1, 1000), "8", "POSTs in flight.")
    upstream_max_span: float = option(POSITIVE_DURATION, "31d", "The longest window of a POST.")
    # A POST with a thousand codes has some 60 kB.
    upstream_batch: int = option(whole_number(1, 1000), "50", "The most clients of a POST.")
    upstream_max_bytes: int = option(SIZE, "64MiB", "The largest reply, decompressed.")
    status_flag_element: str = option(
        matching("the name of an XML element", r"[A-Za-z_][A-Za-z0-9_.-]{0,63}"),
        "StatusFlag",
        "The element that asks for the status of calls. The protocol document does not name it.",
    )
    history_start: int = option(
        Parser("a date such as 2000-01-01", parse_date), "2000-01-01", "The beginning of history, in UTC."
    )
    fresh_min: float = option(DURATION, "15s", "The shortest time that an answer is fresh.")
    fresh_ratio: float = option(
        FRACTION, "0.1", "An answer is fresh for this part of the age that its calls had when they were fetched."
    )
    fresh_max: float = option(POSITIVE_DURATION, "7d", "The longest time that an answer is fresh.")
    fresh_status_ratio: float = option(FRACTION, "0.01", "`GATEWAY_FRESH_RATIO` for answers with status.")
    stale_while_revalidate: float = option(
        DURATION, "0s", "How long past freshness an answer is served while it is fetched again."
    )
    stale_if_error: float = option(
        DURATION, "24h", "How long past freshness an answer is served when the upstream fails."
    )
    cache_bytes: int = option(SIZE, "256MiB", "The size of the cache in memory.")
    cache_url: str = optional(
        matching(
            "a redis://, rediss:// or valkey:// address such as redis://127.0.0.1:6379/0",
            r"(rediss?|valkey)://([^/?#\s]*@)?(\[[0-9a-fA-F:]+\]|[^/?#@:\s]+)(:\d{1,5})?(/\d*)?",
        ),
        "",
        "A Redis or Valkey server that replicas share as a second level of the cache.",
        secret=True,
    )
    auth: str = option(
        choice("keys", "oidc", "keys+oidc", "none"),
        "keys",
        "How consumers authenticate. With `none` every consumer that reaches the gateway sees every client.",
    )
    keys_file: str = optional(TEXT, "", "The file of access keys. `GATEWAY_AUTH` with `keys` requires it.")
    oidc_issuer: str = optional(
        URL, "", "The issuer of bearer tokens, exactly as tokens name it. `GATEWAY_AUTH` with `oidc` requires it."
    )
    oidc_audience: str = optional(
        TEXT, "", "The audience that a token must name. `GATEWAY_AUTH` with `oidc` requires it."
    )
    oidc_clients_claim: str = option(TEXT, "clients", "The claim with client codes: a list, or words in a string.")
    oidc_scopes_claim: str = option(TEXT, "scope", "The claim with scopes. Unknown ones are ignored.")
    oidc_name_claim: str = option(
        TEXT, "azp", "The claim with the consumer's name; without it `client_id`, then `sub`."
    )
    oidc_rate: Rate | None = optional(
        Parser("a rate such as 600/minute, by second, minute, hour or day", parse_rate),
        None,
        "The rate limit of each consumer with a token.",
    )
    # Each export holds a POST's worth of calls in memory.
    consumer_exports: int = option(
        whole_number(1, 1000),
        "4",
        "Exports (NDJSON, CSV) that a consumer may have in progress; more are answered with 429.",
    )
    extra_public: frozenset[str] = optional(
        Parser("a list of names in `extra`, separated by commas", parse_element_names),
        frozenset(),
        "Elements in `extra` that are not personal data.",
    )
    recording_url: str = option(
        Parser("an address or a path with {id}, where the id of a call goes", parse_recording_url),
        "/cb/main/jsp/mates/cBEventCallRecordingURL.jsp?id={id}",
        "Where recordings are: a path at the upstream, or an address.",
    )
    public_url: str = optional(
        Parser("a path such as /callbutton, or an http:// or https:// address", parse_public_url),
        "",
        "The beginning of links in answers, for a gateway behind an ingress path.",
    )
    cors_origins: frozenset[str] = optional(
        Parser("a list of origins such as https://app.example, separated by commas, or *", parse_origins),
        frozenset(),
        "Origins whose pages may read answers.",
    )
    signing_key: str = generated(
        matching(f"text of at least {MIN_SECRET} characters", f"(?s:.{{{MIN_SECRET},}})"),
        "Signs cursors and links to recordings. Replicas must share it.",
    )
    host: str = option(TEXT, "127.0.0.1", "The address to listen on.")
    port: int = option(whole_number(0, 65535), "8080", "The port to listen on; 0 takes any that is not in use.")
    tls_cert: str = optional(TEXT, "", "The file with the TLS certificate and its chain, as PEM.")
    tls_key: str = optional(TEXT, "", "The file with the key of `GATEWAY_TLS_CERT`, as PEM.")
    metrics_port: int = optional(
        whole_number(1, 65535),
        0,
        "A second port for `/metrics` and the probes, without TLS. `GATEWAY_PORT` then serves no metrics.",
    )
    log_format: str = optional(
        choice("json", "console"), "", "The form of log lines; without it `console` on a terminal, else `json`."
    )
    log_level: str = option(choice("debug", "info", "warning", "error"), "info", "The least severe level in the log.")


OPTIONS: dict[str, Option] = {one.name: one.metadata["option"] for one in fields(Settings)}


def parse_settings(environment: Mapping[str, str], removed: Mapping[str, str] = REMOVED) -> Settings:
    """The settings of an environment. Raises SettingsError for the first that cannot be used."""
    values: dict[str, Any] = {}
    for key, text in environment.items():
        if not key.startswith(PREFIX) or not text or key in removed:
            continue
        name = key.removeprefix(PREFIX).lower()
        described = OPTIONS.get(name)
        if described is None or key != variable(name):
            raise SettingsError(f"{key} is not a setting of this version; see {PAGE}")
        try:
            values[name] = described.parser.parse(text.strip())
        except ValueError as error:
            shown = "the value" if described.secret or "@" in text else repr(text[:MAX_SHOWN])  # user:password@host
            raise SettingsError(f"{key}: {shown} is not {described.parser.accepts}", name) from error
    return Settings(**values)


def removed_settings(environment: Mapping[str, str], removed: Mapping[str, str] = REMOVED) -> list[str]:
    """A warning for each variable that is set, but was removed."""
    return [f"{key} was removed and has no effect: {removed[key]}" for key in environment if key in removed]


def parse_upstream_settings(environment: Mapping[str, str]) -> Settings:
    """The settings of a command that needs the upstream. Raises SettingsError."""
    settings = parse_settings(environment)
    if not settings.upstream_url:
        text = "GATEWAY_UPSTREAM_URL is not set: it is the address of the server's xml.jsp"
        raise SettingsError(text, "upstream_url")
    return settings
