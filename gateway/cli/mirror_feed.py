"""Pages of the change feed as `mirror` reads them: NDJSON to calls, in the order of the columns of the table."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import astuple

from gateway.cli.mirror_tables import ADDRESS, FIELDS, STATUS

Row = tuple[Any, ...]
encode = msgspec.json.Encoder(order="sorted").encode


def _part(name: str, fields: dict[str, str]) -> Any:  # noqa: ANN401 - a type that is built at run time
    """A Struct with fields of any type, which takes a fraction of the memory of a dictionary."""
    return msgspec.defstruct(name, [(field, Any, None) for field in fields], rename=fields, gc=False)


CopiedAddress, CopiedStatus = _part("CopiedAddress", ADDRESS), _part("CopiedStatus", STATUS)
NO_ADDRESS, NO_STATUS = CopiedAddress(), CopiedStatus()
CopiedCall: Any = msgspec.defstruct(
    "CopiedCall",
    [
        *[(field, Any) for field in FIELDS],
        ("address", CopiedAddress | None),
        ("status", CopiedStatus | None),
        ("extra", dict[str, str]),
    ],
    rename=FIELDS,
    gc=False,
)


class Item(Struct, rename="camel"):
    """An item of the feed."""

    op: str
    client_code: str = ""
    id: str = ""
    window: dict[str, str] = {}
    clients: Any = None
    calls: list[CopiedCall] = []
    call: CopiedCall | None = None


class Page(NamedTuple):
    """A page of the feed: its items as lines of JSON, and its last line."""

    items: list[bytes]
    next: str
    up_to_date: bool
    calls: int | None
    start: str
    as_of: str
    complete_through: str | None


def parse_page(body: bytes) -> Page:
    """Parse a page in NDJSON. Raises ValueError if it is incomplete."""
    *items, last = body.splitlines() or [b""]
    try:
        end = msgspec.json.decode(last)
        page, meta = end["page"], end["meta"]
        up_to_date, complete_through = page["upToDate"], meta["completeThrough"]
        return Page(items, page["next"], up_to_date, page["calls"], meta["start"], meta["asOf"], complete_through)
    except (msgspec.MsgspecError, TypeError, KeyError) as error:
        raise ValueError("the page has no last line") from error


def parse_item(line: bytes) -> Item:
    """Parse an item of the feed. Raises msgspec.MsgspecError."""
    return _decoder.decode(line)


def row_of(call: Any) -> Row:  # noqa: ANN401 - a CopiedCall
    """The columns of a call."""
    *fields, address, status, extra = astuple(call)
    return *fields, *astuple(address or NO_ADDRESS), *astuple(status or NO_STATUS), encode(extra).decode()


_decoder = msgspec.json.Decoder(Item)
