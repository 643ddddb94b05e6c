"""Signed values as URL-safe text: every client can read them, only this gateway can make them.

Rules:
- The kind (`cursor`, `recording`) is part of the signature, so a cursor is never accepted as a link.
- The signature is keyed BLAKE2b. It takes a fifth of the time of HMAC, and a page has 100 links.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from functools import lru_cache
from typing import Generic, TypeVar

import msgspec

SIGNATURE_SIZE = 16  # bytes; 128 bits, which cannot be guessed
_Value = TypeVar("_Value")


class Signer(Generic[_Value]):
    """Signs and verifies values of one type."""

    def __init__(self, kind: str, value_type: type[_Value]) -> None:
        self._kind = kind.encode()
        self._encode = msgspec.msgpack.Encoder().encode
        self._decoder = msgspec.msgpack.Decoder(value_type)

    def sign(self, value: _Value, key: bytes) -> str:
        """Render a value and its signature as text."""
        body = self._encode(value)
        return base64.urlsafe_b64encode(self._signature(body, key) + body).rstrip(b"=").decode("ascii")

    def verify(self, text: str, key: bytes) -> _Value:
        """Parse the result of `sign` with the same key. Raises ValueError for any other text."""
        raw = base64.urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
        signature, body = raw[:SIGNATURE_SIZE], raw[SIGNATURE_SIZE:]
        if not hmac.compare_digest(signature, self._signature(body, key)):
            raise ValueError("the signature is invalid")
        try:
            return self._decoder.decode(body)
        except msgspec.MsgspecError as error:
            raise ValueError("the value was signed by another version") from error

    def _signature(self, body: bytes, key: bytes) -> bytes:
        state = _initial_state(self._kind, key).copy()
        state.update(body)
        return state.digest()


@lru_cache(maxsize=16)
def _initial_state(kind: bytes, key: bytes) -> hashlib.blake2b:
    """The state of the hash before the body. BLAKE2b takes keys of at most 64 bytes, so the key is hashed first."""
    return hashlib.blake2b(key=hashlib.sha256(key).digest(), digest_size=SIGNATURE_SIZE, person=kind)
