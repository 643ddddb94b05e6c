"""Signed values as URL-safe text, and links to recordings and feeds. Clients can read them, and cannot make them.

Rules:
- The kind (`recording`) is part of the signature, so no other signed value is accepted as a link of that kind.
- The signature is keyed BLAKE2b. It takes a fifth of the time of HMAC, and a page has 100 links.
- A link to a recording is also the credential, because an `<audio>` element cannot send headers. It names client, call
  and consumer, and expires at the end of the next clock hour, so that responses with links change only once an hour.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Generic, TypeVar

import msgspec
from msgspec import Struct

from gateway.access import Consumer, Kind
from gateway.errors import Forbidden
from gateway.model import Call

HOUR = 3600  # seconds
CONNECT_TIME = 60  # seconds in which a link to a feed can be used without a token of the feed
MAX_SKEW = 60  # seconds between the clocks of replicas
SIGNATURE_SIZE = 16  # bytes; 128 bits, which cannot be guessed
SigningKeys = tuple[bytes, ...]  # the first signs, all verify
_Value = TypeVar("_Value")


class Signer(Generic[_Value]):
    """Signs and verifies values of one type."""

    def __init__(self, kind: str, value_type: type[_Value]) -> None:
        self._kind = kind.encode()
        self._encode = msgspec.msgpack.Encoder().encode
        self._decoder = msgspec.msgpack.Decoder(value_type)

    def sign(self, value: _Value, keys: SigningKeys) -> str:
        """Render a value and its signature as text."""
        body = self._encode(value)
        return _render(self._signature(body, keys[0]) + body)

    def verify(self, text: str, keys: SigningKeys) -> _Value:
        """Parse the result of `sign` with one of the keys. Raises ValueError for any other text."""
        raw = base64.urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
        signature, body = raw[:SIGNATURE_SIZE], raw[SIGNATURE_SIZE:]
        known = any(hmac.compare_digest(signature, self._signature(body, key)) for key in keys)
        if not known or _render(raw) != text:
            raise ValueError("the signature is invalid")
        try:
            return self._decoder.decode(body)
        except msgspec.MsgspecError as error:
            raise ValueError("the value was signed by another version") from error

    def _signature(self, body: bytes, key: bytes) -> bytes:
        state = _initial_state(self._kind, key).copy()
        state.update(body)
        return state.digest()


def _render(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


@lru_cache(maxsize=16)
def _initial_state(kind: bytes, key: bytes) -> hashlib.blake2b:
    """The state of the hash before the body. BLAKE2b takes keys of at most 64 bytes, so the key is hashed first."""
    return hashlib.blake2b(key=hashlib.sha256(key).digest(), digest_size=SIGNATURE_SIZE, person=kind)


class RecordingLink(Struct, frozen=True, array_like=True):
    """The right of a consumer to hear one call. `start` (of the call) and `expires` are in seconds since 1970."""

    code: str
    call_id: str
    start: int
    kind: Kind
    consumer: str
    expires: int


LINKS = Signer("recording", RecordingLink)


def link_renderer(consumer: Consumer, now: float, keys: SigningKeys, base: str) -> Callable[[Call], str | None]:
    """A function that renders the link to the recording of a call; None if the call has no recording."""
    expires = (int(now) // HOUR + 2) * HOUR
    path, (kind, name), sign = f"{base}/recordings/", consumer.key, LINKS.sign

    def render(call: Call) -> str | None:
        if call.recording_url is None:
            return None
        start = int(call.start_time.timestamp())
        return path + sign(RecordingLink(call.client_code, call.id, start, kind, name, expires), keys)

    return render


def parse_link(token: str, now: float, keys: SigningKeys) -> RecordingLink:
    """Verify and parse the token of a link. Raises Forbidden."""
    try:
        link = LINKS.verify(token, keys)
    except ValueError:
        raise Forbidden("this recording link is invalid", "link") from None
    if not 0 < link.expires - now <= 2 * HOUR + MAX_SKEW:  # past, or made before the clock was set back
        raise Forbidden("this recording link has expired", "expired link")
    return link


class FeedToken(Struct, frozen=True, array_like=True):
    """The content of a token of the change feed: hashes of the feed and of the view, and the packed state."""

    feed: bytes
    view: bytes
    state: bytes


class FeedLink(Struct, frozen=True, array_like=True):
    """The right of a consumer to follow a feed from a state. `feed` is a hash of consumer, path, clients and status.

    `expires` is the end of the time to connect. A link that was made with a bearer token has the token's `clients` and
    `scopes`, and ends with it, at `rights_end`; both times are in seconds since 1970. `since` has no signature of its
    own: a signed token could be taken out of an expired link and sent beside it, which would make the link valid again.
    """

    kind: Kind
    consumer: str
    feed: bytes
    expires: int
    since: FeedToken | None = None
    rights_end: float = math.inf
    clients: tuple[str, ...] = ()
    scopes: tuple[str, ...] = ()


TOKENS = Signer("changes", FeedToken)
FEED_LINKS = Signer("feed", FeedLink)
