"""The settings: one frozen Struct, read once from the environment.

Rules: a variable is `GATEWAY_` and the field's name in capitals; a bad value, or a variable that is not known, stops
the start with one line that names it. Durations take `15s`, `10m`, `2h`, `7d`; sizes `64KiB`, `256MiB`, `1GiB`.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from gateway.access import Rate, parse_rate

PREFIX = "GATEWAY_"
SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
SECRETS = {"SIGNING_KEY", "CACHE_URL"}  # not shown
BYTES = {"B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}


class SettingsError(ValueError):
    """A setting cannot be used; the text is one line that names it."""


class Settings(Struct, frozen=True, kw_only=True):
    """Everything that can be set. Durations are in seconds, sizes in bytes, instants in seconds since 1970."""

    upstream_url: str = ""
    upstream_proxy: str | None = None
    upstream_timeout: float = 30
    upstream_idle_timeout: float = 15
    upstream_deadline: float = 300
    request_deadline: float = 60
    request_concurrency: int = 1000
    drain_delay: float = 5
    upstream_concurrency: int = 8
    upstream_max_span: float = 31 * 86400
    upstream_batch: int = 50
    upstream_max_bytes: int = 64 * 1024**2
    status_flag_element: str = "StatusFlag"
    history_start: int = 946684800
    fresh_min: float = 15
    fresh_ratio: float = 0.1
    fresh_max: float = 7 * 86400
    fresh_status_ratio: float = 0.01
    stale_while_revalidate: float = 0
    stale_if_error: float = 86400
    cache_bytes: int = 256 * 1024**2
    cache_url: str = ""
    auth: str = "keys"
    keys_file: str = ""
    oidc_issuer: str = ""
    oidc_audience: str = ""
    oidc_clients_claim: str = "clients"
    oidc_scopes_claim: str = "scope"
    oidc_name_claim: str = "azp"
    oidc_rate: Rate | None = None
    consumer_exports: int = 4
    extra_public: frozenset[str] = frozenset()
    recording_url: str = "/cb/main/jsp/mates/cBEventCallRecordingURL.jsp?id={id}"
    public_url: str = ""
    cors_origins: frozenset[str] = frozenset()
    signing_key: str = msgspec.field(default_factory=lambda: secrets.token_hex(32))
    host: str = "127.0.0.1"
    port: int = 8080
    metrics_port: int = 0
    tls_cert: str = ""
    tls_key: str = ""
    log_format: str = ""
    log_level: str = "info"


def quantity(units: Mapping[str, float], example: str) -> Callable[[str], float]:
    """A reader of numbers with a unit, such as `15s`."""

    def read(text: str) -> float:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", text)
        if match is None or match[2] not in units:
            raise ValueError(f"is not a number with one of the units {', '.join(units)}, such as {example}")
        return float(match[1]) * units[match[2]]

    return read


def whole(least: int, most: int) -> Callable[[str], int]:
    """A reader of whole numbers between two bounds, both included."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit() and least <= int(text) <= most):
            raise ValueError(f"is not a whole number from {least} to {most}")
        return int(text)

    return read


def choice(*names: str) -> Callable[[str], str]:
    """A reader of one of several words."""

    def read(text: str) -> str:
        if text not in names:
            raise ValueError(f"is not one of {', '.join(names)}")
        return text

    return read


def web_address(text: str) -> str:
    """Read an http or https address."""
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("is not an http:// or https:// address")
    return text


def cache_address(text: str) -> str:
    """Read the address of a Redis or Valkey server; it may hold a password, so that nothing of it is repeated."""
    if re.fullmatch(r"(rediss?|valkey)://([^/?#\s]*@)?(\[[0-9a-fA-F:]+\]|[^/?#@:\s]+)(:\d{1,5})?(/\d*)?", text) is None:
        raise ValueError("is not a redis://, rediss:// or valkey:// address such as redis://127.0.0.1:6379/0")
    return text


def recording_address(text: str) -> str:
    """Read where recordings are: an address, or a path at the upstream, with {id} in it."""
    if "{id}" not in text:
        raise ValueError("is not an address or a path with {id}, where the id of a call goes")
    return text if re.fullmatch(r"/[^/\\\s][^\s]*", text) else web_address(text)


def element_name(text: str) -> str:
    """Read the name of an XML element."""
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}", text) is None:
        raise ValueError("is not the name of an XML element")
    return text


def element_names(text: str) -> frozenset[str]:
    """Read names of elements as `extra` has them, separated by commas."""
    names = [name.strip() for name in text.split(",")]
    if any(re.fullmatch(r"@?[A-Za-z_][A-Za-z0-9_.@-]{0,127}", name) is None for name in names):
        raise ValueError("is not a list of names in extra, separated by commas")
    return frozenset(names)


def public_address(text: str) -> str:
    """Read what goes before the links that are handed out: a path, or an address with or without one."""
    return (text if re.fullmatch(r"/[A-Za-z0-9._~/-]*", text) else web_address(text)).rstrip("/")


def origins(text: str) -> frozenset[str]:
    """Read origins, separated by commas, or `*` for every origin."""
    names = [name.strip() for name in text.split(",")]
    if any(name != "*" and re.fullmatch(r"https?://[A-Za-z0-9.\[\]:-]+", name) is None for name in names):
        raise ValueError("is not a list of origins such as https://app.example, separated by commas, nor *")
    return frozenset(name.lower() for name in names)


def history_date(text: str) -> int:
    """Read a date as the instant, in UTC, at which it begins."""
    try:
        return int(datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp())
    except ValueError:
        raise ValueError("is not a date such as 2000-01-01") from None


def fraction(text: str) -> float:
    """Read a number above 0 and at most 1."""
    if re.fullmatch(r"\d+(\.\d+)?", text) is None or not 0 < float(text) <= 1:
        raise ValueError("is not a number above 0 and at most 1")
    return float(text)


def secret(text: str) -> str:
    """Read a key of at least 16 characters."""
    if len(text) < 16:
        raise ValueError("is shorter than 16 characters")
    return text


duration = quantity(SECONDS, "15s")


def positive_duration(text: str) -> float:
    """Read a duration above zero."""
    if (seconds := duration(text)) <= 0:
        raise ValueError("is not above zero")
    return seconds


def size(text: str) -> int:
    """Read a number of bytes."""
    return int(quantity(BYTES, "256MiB")(text))


READERS: dict[str, Callable[[str], Any]] = {
    "upstream_url": web_address,
    "upstream_proxy": web_address,
    "upstream_timeout": positive_duration,
    "upstream_idle_timeout": positive_duration,
    "upstream_deadline": positive_duration,
    "request_deadline": positive_duration,
    "request_concurrency": whole(1, 100_000),
    "drain_delay": duration,
    "upstream_concurrency": whole(1, 1000),
    "upstream_max_span": positive_duration,
    "upstream_batch": whole(1, 1000),
    "upstream_max_bytes": size,
    "status_flag_element": element_name,
    "history_start": history_date,
    "fresh_min": duration,
    "fresh_ratio": fraction,
    "fresh_max": positive_duration,
    "fresh_status_ratio": fraction,
    "stale_while_revalidate": duration,
    "stale_if_error": duration,
    "cache_bytes": size,
    "cache_url": cache_address,
    "auth": choice("keys", "oidc", "keys+oidc", "none"),
    "keys_file": str,
    "oidc_issuer": web_address,
    "oidc_audience": str,
    "oidc_clients_claim": str,
    "oidc_scopes_claim": str,
    "oidc_name_claim": str,
    "oidc_rate": parse_rate,
    "consumer_exports": whole(1, 1000),
    "extra_public": element_names,
    "recording_url": recording_address,
    "public_url": public_address,
    "cors_origins": origins,
    "signing_key": secret,
    "host": str,
    "port": whole(0, 65535),
    "metrics_port": whole(1, 65535),
    "tls_cert": str,
    "tls_key": str,
    "log_format": choice("json", "console"),
    "log_level": choice("debug", "info", "warning", "error"),
}


def read_settings(environment: Mapping[str, str]) -> Settings:
    """The settings of an environment. Raises SettingsError with one line that names what cannot be used."""
    values = {}
    for variable, text in environment.items():
        if not variable.startswith(PREFIX) or not text:
            continue
        read = READERS.get(variable.removeprefix(PREFIX).lower())
        if read is None or variable != variable.upper():
            raise SettingsError(f"{variable} is not a setting of this version; see the table of settings in README.md")
        try:
            values[variable.removeprefix(PREFIX).lower()] = read(text.strip())
        except ValueError as error:
            shown = "" if variable.removeprefix(PREFIX) in SECRETS else f": {text[:80]!r}"
            raise SettingsError(f"{variable} {error}{shown}") from error
    return Settings(**values)
