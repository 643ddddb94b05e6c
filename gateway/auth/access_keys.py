"""Access keys: the keys file, and the verification of a key. Pure.

Rules:
- The file contains SHA-256 hashes of keys, not keys. A key has 256 random bits, so a fast hash without salt is safe.
- A key is looked up by its hash. The duration of the lookup can reveal hashes only, from which a key cannot be derived.
- A date of expiry is the last day on which the key works, in UTC.
- Errors name consumers, clients and scopes by number: the log must not contain a client code, or a key that was pasted
  in the wrong place.
- A file with an unknown, duplicate or misspelt entry is rejected completely.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import secrets
import tomllib
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta, Struct

from gateway.access import CLIENT_PATTERN, SCOPES, Consumer, parse_rate

PREFIX = "cbg_"
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
NO_DIGEST = bytes(32)  # takes part in the comparison for an unknown key


class KeysError(ValueError):
    """The keys file is not valid. The text is one line that says where and why."""


class KeyEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """A key in the file."""

    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    expires: Any = None  # a date or a date-time; msgspec does not support a union of both

    def expiry(self) -> float | None:
        """The time at which the key expires, in seconds since 1970; None for never. Raises ValueError."""
        if self.expires is None:
            return None
        if isinstance(self.expires, datetime) and self.expires.tzinfo is not None:
            return self.expires.timestamp()
        if not isinstance(self.expires, date) or isinstance(self.expires, datetime):
            raise ValueError("expires is not a date such as 2027-06-30, nor a time with an offset")
        midnight = datetime(self.expires.year, self.expires.month, self.expires.day, tzinfo=UTC)
        return (midnight + timedelta(days=1)).timestamp()


class ConsumerEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """A consumer in the file."""

    name: str
    clients: list[str]
    scopes: list[str]
    keys: list[KeyEntry]
    rate: str | None = None


class KeysDocument(Struct, frozen=True, forbid_unknown_fields=True):
    """The file."""

    consumer: list[ConsumerEntry] = []


class StoredKey(NamedTuple):
    """The hash of a key, its consumer, and the time at which it expires, in seconds since 1970."""

    digest: bytes
    consumer: Consumer | None
    expiry: float | None


UNKNOWN_KEY = StoredKey(NO_DIGEST, None, None)


class Keyring(Struct, frozen=True):
    """The keys by their hashes, and the consumers by name. `entries` are the consumers as they are in the file.

    `ends` has the time at which the last key of a consumer expires; none for a consumer without keys.
    """

    stored_keys: Mapping[bytes, StoredKey]
    consumers: Mapping[str, Consumer]
    ends: Mapping[str, float]
    entries: tuple[ConsumerEntry, ...]

    def find(self, key: str, now: float) -> tuple[Consumer | None, str]:
        """The consumer of a key, or None and the reason."""
        digest = hashlib.sha256(key.encode()).digest()
        stored = self.stored_keys.get(digest, UNKNOWN_KEY)
        if not hmac.compare_digest(digest, stored.digest) or stored.consumer is None:
            return None, "unknown key"
        if stored.expiry is not None and now >= stored.expiry:
            return None, "expired key"
        return stored.consumer, ""

    def current(self, name: str, now: float) -> Consumer | None:
        """The consumer of a name, if one of its keys works."""
        return self.consumers.get(name) if now < self.ends.get(name, 0) else None


def new_key() -> str:
    """Make a random key."""
    return PREFIX + secrets.token_urlsafe(32)


def fingerprint(key: str) -> str:
    """The hash of a key, as in the file."""
    return hashlib.sha256(key.encode()).hexdigest()


def parse_keys(content: str | bytes) -> Keyring:
    """Parse a keys file. Raises KeysError."""
    try:
        text = content if isinstance(content, str) else content.decode()
        document = msgspec.convert(tomllib.loads(text), KeysDocument)
    except UnicodeDecodeError as error:
        raise KeysError("is not UTF-8") from error
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, RecursionError) as error:
        raise KeysError(" ".join(str(error).split())) from error
    stored_keys: dict[bytes, StoredKey] = {}
    consumers: dict[str, Consumer] = {}
    ends: dict[str, float] = {}
    for number, entry in enumerate(document.consumer, 1):
        try:
            consumer = _consumer(entry)
            if entry.name in consumers:
                raise ValueError("another consumer has the same name")
            consumers[entry.name] = consumer
            for key in entry.keys:
                digest = bytes.fromhex(key.sha256)
                if digest in stored_keys:
                    raise ValueError("one of its keys is in the file twice")
                stored_keys[digest] = stored = StoredKey(digest, consumer, key.expiry())
                end = math.inf if stored.expiry is None else stored.expiry
                ends[entry.name] = max(end, ends.get(entry.name, end))
        except ValueError as error:
            raise KeysError(f"consumer {number}: {error}") from error
    if not document.consumer:
        raise KeysError("there is no [[consumer]] in it: `callbutton-gateway keys new` adds one")
    return Keyring(stored_keys, consumers, ends, tuple(document.consumer))


def _consumer(entry: ConsumerEntry) -> Consumer:
    """Validate a consumer of the file. Raises ValueError."""
    if NAME.fullmatch(entry.name) is None:
        raise ValueError("the name is not 1 to 64 letters, digits, underscores, full stops or hyphens")
    for number, pattern in enumerate(entry.clients, 1):
        if CLIENT_PATTERN.fullmatch(pattern) is None:
            raise ValueError(f"client {number} is not a code, a prefix such as 800777*, or *")
    for number, scope in enumerate(entry.scopes, 1):
        if scope not in SCOPES:
            raise ValueError(f"scope {number} is not one of {', '.join(SCOPES)}")
    try:
        rate = None if entry.rate is None else parse_rate(entry.rate)
    except ValueError as error:
        raise ValueError(f"rate {error}") from error
    return Consumer(
        name=entry.name,
        clients=tuple(dict.fromkeys(entry.clients)),
        scopes=frozenset(entry.scopes),
        rate=rate,
    )
