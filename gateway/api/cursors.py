"""Cursors: where the next page begins, opaque, signed, and the same for the same page.

Rule: a cursor holds everything that its list was asked with, so it may come alone; whatever comes with it must be
what it was made from.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Struct

from gateway.api.signed import seal, unseal
from gateway.api.wanted import ListRequest
from gateway.errors import InvalidParameters, ParameterFault
from gateway.ledger.scans import Position

KIND = "cursor"


class Cursor(Struct, frozen=True, array_like=True):
    """A list and the place in it after which the next page begins."""

    request: ListRequest
    parameters: dict[str, list[str]]
    position: Position


_decoder = msgspec.msgpack.Decoder(Cursor)


def render_cursor(cursor: Cursor, key: bytes) -> str:
    """Write and sign a cursor."""
    return seal(KIND, msgspec.msgpack.encode(cursor), key)


def read_cursor(text: str, codes: tuple[str, ...] | None, values: Mapping[str, list[str]], key: bytes) -> Cursor:
    """Read a cursor that came with these codes (None: none were given) and parameters. Raises InvalidParameters."""
    try:
        cursor = _decoder.decode(unseal(KIND, text, key))
    except (ValueError, msgspec.MsgspecError):
        raise _fault("is not a cursor of this gateway; begin again without it") from None
    given = {name: found for name, found in values.items() if name != "cursor"}
    if (codes is not None and codes != cursor.request.codes) or (given and given != cursor.parameters):
        raise _fault("was made with other parameters; give it alone, or with the same")
    return cursor


def _fault(detail: str) -> InvalidParameters:
    return InvalidParameters([ParameterFault("cursor", detail)])
