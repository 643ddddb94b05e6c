"""Extents as bytes and back: compact msgpack, records without the names of their fields. Pure.

Rule: `LAYOUT` names the version, and changes with the fields of a call. What cannot be read, or is not what it says,
is None; it is never an error.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from types import GenericAlias
from typing import Any, get_type_hints

import msgspec

from gateway.ledger.extents import Extent, make_extent, make_extent_of_all
from gateway.model import EVERY_CLIENT, Address, Call, Status, Window

VERSION = 1


def _values(kind: type, **others: object) -> GenericAlias:
    """The values of a Struct, in order, as the type of a tuple."""
    return GenericAlias(tuple, tuple((get_type_hints(kind) | others).values()))


_ADDRESS = _values(Address)
_STATUS = _values(Status)
_CALL = _values(Call, address=_ADDRESS | None, status=_STATUS | None)
_FIELDS = [(name, str(hint)) for kind in (Call, Address, Status) for name, hint in get_type_hints(kind).items()]
LAYOUT = f"{VERSION}.{hashlib.sha256(repr(_FIELDS).encode()).hexdigest()[:8]}"

_encoder = msgspec.msgpack.Encoder()
_EXTENT: Any = tuple[bool, int, int, float, int, GenericAlias(dict, (str, GenericAlias(tuple, (_CALL, ...))))]  # type: ignore[misc]
_decoder = msgspec.msgpack.Decoder(_EXTENT)


def pack(code: str, extent: Extent, *, status: bool) -> bytes:
    """Turn an extent of a client, or of every client, into bytes."""
    by_code = {code: extent.calls} if extent.listed is None else extent.listed
    calls = {code: [_row(call) for call in found] for code, found in by_code.items()}
    window = extent.window
    return _encoder.encode((status, window.start, window.end, extent.sent, extent.unreadable, calls))


def unpack(code: str, value: bytes) -> tuple[bool, Extent] | None:
    """Read an extent of a client, and whether it is with status."""
    try:
        status, start, end, sent, unreadable, rows = _decoder.decode(value)
        if not (0 <= start < end and 0 <= sent < math.inf) or (code != EVERY_CLIENT and rows.keys() != {code}):
            return None
        window = Window(start, end)
        calls = {owner: [_call(row) for row in found] for owner, found in rows.items()}
        if code == EVERY_CLIENT:
            return status, make_extent_of_all(window, sent, calls, unreadable)
        return status, make_extent(window, sent, calls[code], unreadable)
    except (msgspec.DecodeError, ValueError, OverflowError, OSError):  # instants that are none are any of three
        return None


def _row(call: Call) -> list[Any]:
    row = list(msgspec.structs.astuple(call))
    for place in (_ADDRESS_AT, _STATUS_AT):
        if row[place] is not None:
            row[place] = msgspec.structs.astuple(row[place])
    return row


def _call(row: Sequence[Any]) -> Call:
    values = dict(zip(Call.__struct_fields__, row, strict=True))
    if values["address"] is not None:
        values["address"] = Address(**dict(zip(Address.__struct_fields__, values["address"], strict=True)))
    if values["status"] is not None:
        values["status"] = Status(**dict(zip(Status.__struct_fields__, values["status"], strict=True)))
    return Call(**values)


_ADDRESS_AT = Call.__struct_fields__.index("address")
_STATUS_AT = Call.__struct_fields__.index("status")
