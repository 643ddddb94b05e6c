"""Pages of the change feed as `mirror` reads them: NDJSON to calls, in the order of the columns of the table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import astuple

from gateway.cli.mirror_tables import ADDRESS, FIELDS, STATUS
from gateway.extra_fields import CAMEL_CASE

Row = tuple[Any, ...]
encode = msgspec.json.Encoder(order="sorted").encode


def _part(name: str, fields: dict[str, str]) -> Any:  # noqa: ANN401 - a type that is built at run time
    """A Struct with fields of any type, which takes a fraction of the memory of a dictionary."""
    return msgspec.defstruct(name, [(field, Any, None) for field in fields], rename=fields, gc=False)


CopiedAddress, CopiedStatus = _part("CopiedAddress", ADDRESS), _part("CopiedStatus", STATUS)
NO_ADDRESS, NO_STATUS = CopiedAddress(), CopiedStatus()
KNOWN = {*FIELDS.values(), "address", "status", "extra"}


class Item(Struct, rename="camel"):
    """An item of the feed. Its calls have the fields of the API in the order of the columns, promoted ones last."""

    op: str
    client_code: str = ""
    id: str = ""
    window: dict[str, str] = {}
    clients: Any = None
    calls: list[Any] = []
    call: Any = None


def item_decoder(promoted: Sequence[str] = ()) -> msgspec.json.Decoder[Item]:
    """A decoder of items whose calls have no fields but those of the API and these. It raises msgspec.MsgspecError."""
    call: Any = msgspec.defstruct(
        "CopiedCall",
        [
            *[(field, Any) for field in FIELDS],
            ("address", CopiedAddress | None),
            ("status", CopiedStatus | None),
            ("extra", dict[str, str]),
            *[(field, str | None, None) for field in promoted],
        ],
        rename=FIELDS,
        forbid_unknown_fields=True,
        gc=False,
    )
    fields: list[Any] = [("calls", list[call], []), ("call", call | None, None)]
    return msgspec.json.Decoder(msgspec.defstruct("Item", fields, bases=(Item,)))


def promoted_fields(line: bytes) -> list[str]:
    """The fields of an item's first call that the API does not define, which are promoted. Raises ValueError."""
    item = msgspec.json.decode(line, type=Item)
    found = [name for call in [item.call, *item.calls][:2] if call for name in call if name not in KNOWN]
    if wrong := [name for name in found if not CAMEL_CASE.fullmatch(name)]:
        raise ValueError(f"the gateway has fields that this program cannot store: {', '.join(wrong)}")
    return found


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


def row_of(call: Any) -> Row:  # noqa: ANN401 - a CopiedCall
    """The columns of a call."""
    values = astuple(call)
    address, status, extra, *promoted = values[len(FIELDS) :]
    nested = *astuple(address or NO_ADDRESS), *astuple(status or NO_STATUS), encode(extra).decode()
    return *values[: len(FIELDS)], *nested, *promoted
