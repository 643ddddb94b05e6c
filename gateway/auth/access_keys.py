"""Access keys: what the keys file says, and whose key a key is. Pure.

Rules:
- The file holds SHA-256 of keys, never keys. A key has 256 random bits, so its hash needs no salt and no slowness.
- Whether a key is accepted depends on its hash alone: how long a look-up takes tells of hashes, which nobody can choose
  keys by.
- A date of expiry is the last day on which the key works, in UTC.
- What is wrong with a file is said by numbers: neither client codes nor a key put in the wrong place reach the log.
- The file is read as a whole or not at all: whatever is unknown, doubled or misspelt in it refuses all of it.
"""

from __future__ import annotations

import hashlib
import hmac
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
NO_DIGEST = bytes(32)  # compared with when a hash is not known


class KeysError(ValueError):
    """The keys file cannot be used; the text is one line that says where and why."""


class KeyEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """One key in the file."""

    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    expires: Any = None  # a date or a date-time: msgspec knows no union of the two

    def until(self) -> float | None:
        """The instant from which the key no longer works; None for never. Raises ValueError."""
        if self.expires is None:
            return None
        if isinstance(self.expires, datetime) and self.expires.tzinfo is not None:
            return self.expires.timestamp()
        if not isinstance(self.expires, date) or isinstance(self.expires, datetime):
            raise ValueError("expires is neither a date such as 2027-06-30 nor a time with an offset")
        midnight = datetime(self.expires.year, self.expires.month, self.expires.day, tzinfo=UTC)
        return (midnight + timedelta(days=1)).timestamp()


class ConsumerEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """One consumer in the file."""

    name: str
    clients: list[str]
    scopes: list[str]
    keys: list[KeyEntry]
    rate: str | None = None


class KeysDocument(Struct, frozen=True, forbid_unknown_fields=True):
    """The file."""

    consumer: list[ConsumerEntry] = []


class StoredKey(NamedTuple):
    """Whose key a hash is, and until when, in seconds since 1970."""

    digest: bytes
    consumer: Consumer | None
    until: float | None


UNKNOWN_KEY = StoredKey(NO_DIGEST, None, None)


class Keyring(Struct, frozen=True):
    """The keys of all consumers, by their hashes."""

    stored_keys: Mapping[bytes, StoredKey]
    consumers: Mapping[str, Consumer]  # by name
    entries: tuple[ConsumerEntry, ...]

    def find(self, key: str, now: float) -> tuple[Consumer | None, str]:
        """The consumer whose key this is, or None with the reason."""
        digest = hashlib.sha256(key.encode()).digest()
        holder = self.stored_keys.get(digest, UNKNOWN_KEY)
        if not hmac.compare_digest(digest, holder.digest) or holder.consumer is None:
            return None, "unknown key"
        if holder.until is not None and now >= holder.until:
            return None, "expired key"
        return holder.consumer, ""

    def consumer(self, name: str) -> Consumer | None:
        """The consumer of this name."""
        return self.consumers.get(name)


def new_key() -> str:
    """Make a key."""
    return PREFIX + secrets.token_urlsafe(32)


def fingerprint(key: str) -> str:
    """The hash of a key as the file has it."""
    return hashlib.sha256(key.encode()).hexdigest()


def parse_keys(text: str) -> Keyring:
    """Read a keys file. Raises KeysError."""
    try:
        document = msgspec.convert(tomllib.loads(text), KeysDocument)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, RecursionError) as error:
        raise KeysError(" ".join(str(error).split())) from error
    stored_keys: dict[bytes, StoredKey] = {}
    consumers: dict[str, Consumer] = {}
    for number, entry in enumerate(document.consumer, 1):
        try:
            consumer = _consumer(entry)
            if entry.name in consumers:
                raise ValueError("another has the same name")
            consumers[entry.name] = consumer
            for key in entry.keys:
                digest = bytes.fromhex(key.sha256)
                if digest in stored_keys:
                    raise ValueError("a key of it is there twice")
                stored_keys[digest] = StoredKey(digest, consumer, key.until())
        except ValueError as error:
            raise KeysError(f"consumer {number}: {error}") from error
    if not document.consumer:
        raise KeysError("there is no [[consumer]] in it")
    return Keyring(stored_keys, consumers, tuple(document.consumer))


def _consumer(entry: ConsumerEntry) -> Consumer:
    """Check a consumer of the file. Raises ValueError."""
    if NAME.fullmatch(entry.name) is None:
        raise ValueError("the name is not letters, digits, _ . -, up to 64")
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
        label=entry.name,
    )
