"""Calls as JSON, NDJSON or CSV, rendered piece by piece. Pure: calls in, bytes out.

Rules:
- JSON is one object with `data` and `meta`, one call a line.
- NDJSON is one call a line. The last line is `{"meta": {…}}`; a text without it is incomplete.
- CSV is RFC 4180 with a header. Nested fields are columns with dotted names, null is empty, and `extra` is JSON in one
  column. In a time zone it begins with a byte order mark and has local times, as Excel reads them.
- A text that a spreadsheet would take for a formula is preceded by an apostrophe, also after a comma, semicolon, tab or
  line end, where a spreadsheet with another separator splits it. JSON escapes the sign instead.
- `fields` are names of columns, or `address` and `status` for all their fields. JSON and NDJSON add `REQUIRED_FIELDS`;
  CSV has only the requested columns, in the requested order.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from itertools import groupby
from operator import attrgetter
from typing import Any, Protocol
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Struct

from gateway.model import Call, CallerAddress, CallStatus

REQUIRED_FIELDS = ("id", "clientCode", "startTime")  # they identify a call and order a list
SIGNS = "=+@＝＋－＠-"  # noqa: RUF001 - spreadsheets accept full-width signs as well
FORMULA = re.compile(rf'([\s"]*)([{SIGNS}])')
INNER_FORMULA = re.compile(rf'([,;\t\r\n][\s"]*)([{SIGNS}])')  # after a place where another separator splits the cell
BEGINNINGS = frozenset(f'{SIGNS} "\t\r\n')  # of formulas, and of cells that Excel may trim
find_separator = re.compile("[,;\t\r\n]").search
BYTE_ORDER_MARK = "\ufeff".encode()
_encoder = msgspec.json.Encoder()


def _attributes(struct: type[Struct]) -> dict[str, str]:
    """The attribute of each JSON name of a Struct."""
    return {field.encode_name: field.name for field in msgspec.structs.fields(struct)}


NESTED: dict[str, type[Struct]] = {"address": CallerAddress, "status": CallStatus}
ATTRIBUTES = {name: _attributes(part) for name, part in NESTED.items()} | {"": _attributes(Call)}
COLUMNS = tuple(
    column
    for name in ATTRIBUTES[""]
    for column in ([f"{name}.{inner}" for inner in ATTRIBUTES[name]] if name in NESTED else [name])
)
FIELDS = (*COLUMNS, *NESTED)


class Projection:
    """Selects some fields of a call, for JSON. `names` are those of the fields, without dots."""

    def __init__(self, fields: Sequence[str]) -> None:
        selected: dict[str, list[str] | None] = dict.fromkeys(REQUIRED_FIELDS)
        for name in (name for name in ATTRIBUTES[""] if any(field.partition(".")[0] == name for field in fields)):
            inner = [field.partition(".")[2] for field in fields if field.startswith(f"{name}.")]
            selected[name] = inner if inner and name not in fields else None
        self._parts = [
            (name, ATTRIBUTES[""][name], [(field, ATTRIBUTES[name][field]) for field in inner or ()])
            for name, inner in selected.items()
        ]
        self.names = tuple(selected)

    def __call__(self, call: Call) -> dict[str, Any]:
        """The selected fields of a call, by their JSON names."""
        row = {}
        for name, outer, inner in self._parts:
            value = getattr(call, outer)
            if inner and value is not None:
                value = {field: getattr(value, attribute) for field, attribute in inner}
            row[name] = value
        return row


class Format(Protocol):
    """Renders calls: the concatenation of `begin`, any number of `rows`, and `end`."""

    def begin(self) -> bytes:
        """Render the text before the calls."""

    def rows(self, calls: Iterable[Call]) -> bytes:
        """Render some calls."""

    def end(self, meta: object) -> bytes:
        """Render the text after the calls."""


class Json:
    """One object. `begun` says that it already has calls, of an export that is resumed."""

    def __init__(self, fields: Sequence[str] = (), *, begun: bool = False) -> None:
        self._lines = Ndjson(fields)
        self._begun = begun

    def begin(self) -> bytes:
        """Render the start of the object."""
        return b'{"data":[\n'

    def rows(self, calls: Iterable[Call]) -> bytes:
        """Render one call a line."""
        lines = self._lines.rows(calls).rstrip(b"\n").replace(b"\n", b",\n")  # a newline inside a call is escaped
        before = b",\n" if lines and self._begun else b""
        self._begun = self._begun or bool(lines)
        return before + lines

    def end(self, meta: object) -> bytes:
        """Render `meta` and the end of the object."""
        return b'\n],"meta":' + _encoder.encode(meta) + b"}\n"


class Ndjson:
    """One call a line, then `meta`, unless the end of the connection or file alone is to show that it is complete."""

    def __init__(self, fields: Sequence[str] = (), *, meta: bool = True) -> None:
        self._project = Projection(fields) if fields else None
        self._meta = meta

    def begin(self) -> bytes:
        """Return no bytes: NDJSON has no header."""
        return b""

    def rows(self, calls: Iterable[Call]) -> bytes:
        """Render one call a line."""
        return _encoder.encode_lines([self._project(call) for call in calls] if self._project else list(calls))

    def end(self, meta: object) -> bytes:
        """Render the last line, which shows that the text is complete."""
        return _encoder.encode({"meta": meta}) + b"\n" if self._meta else b""


class Csv:
    """A header, then one record for each call. `zone` is the time zone of Excel's dialect."""

    def __init__(self, fields: Sequence[str] = (), *, zone: ZoneInfo | None = None) -> None:
        self._columns = _columns(fields)
        self._read = _reader(self._columns)
        self._zone = zone

    def begin(self) -> bytes:
        """Render the header."""
        return (BYTE_ORDER_MARK if self._zone else b"") + _records([self._columns])

    def rows(self, calls: Iterable[Call]) -> bytes:
        """Render one record for each call."""
        read, zone = self._read, self._zone
        return _records(
            [
                value
                if value is None
                or type(value) is int
                or (type(value) is str and value[:1] not in BEGINNINGS and not find_separator(value))
                else _cell(value, zone)
                for value in read(call)
            ]
            for call in calls
        )

    def end(self, meta: object) -> bytes:  # noqa: ARG002 - the interface of Format
        """Return no bytes. An incomplete text is recognized by its connection, which is closed early."""
        return b""


FORMATS = ("json", "ndjson", "csv")


def make_format(
    name: str, fields: Sequence[str] = (), *, begun: bool = False, meta: bool = True, zone: ZoneInfo | None = None
) -> Format:
    """Make the format of one of the names in FORMATS.

    `begun` says that calls have already been written, `meta` that NDJSON has a last line. `zone` makes CSV for Excel.
    """
    if name == "json":
        return Json(fields, begun=begun)
    return Ndjson(fields, meta=meta) if name == "ndjson" else Csv(fields, zone=zone)


def _columns(fields: Sequence[str]) -> list[str]:
    found: dict[str, None] = {}
    for field in fields or COLUMNS:
        found |= dict.fromkeys([f"{field}.{inner}" for inner in ATTRIBUTES[field]] if field in NESTED else [field])
    return list(found)


def _reader(columns: Sequence[str]) -> Callable[[Call], list[Any]]:
    """A function that returns the columns of a call. Adjacent columns of one Struct are read together, for speed."""
    runs: list[tuple[str, Callable[[Any], tuple[Any, ...]], tuple[None, ...]]] = []
    for part, run in groupby(columns, key=lambda column: column.rpartition(".")[0]):
        names = [ATTRIBUTES[part][column.rpartition(".")[2]] for column in run]
        runs.append((ATTRIBUTES[""][part] if part else "", _all(names), (None,) * len(names)))

    def read(call: Call) -> list[Any]:
        values: list[Any] = []
        for part, take, nothing in runs:
            found = getattr(call, part) if part else call
            values += nothing if found is None else take(found)
        return values

    return read


def _all(names: Sequence[str]) -> Callable[[Any], tuple[Any, ...]]:
    """A function that returns some attributes as a tuple; attrgetter returns a bare value for a single name."""
    take = attrgetter(*names)
    return take if len(names) > 1 else lambda value: (take(value),)


def _cell(value: Any, zone: ZoneInfo | None) -> str | None:  # noqa: ANN401 - a field of a call has one of many types
    """Render a cell that is not None, an integer, or a text without anything that could begin a formula."""
    if isinstance(value, dict):
        text = _encoder.encode(value).decode() if value else ""
        return INNER_FORMULA.sub(lambda found: f"{found[1]}\\u{ord(found[2]):04x}", text)
    if type(value) is str:
        text = FORMULA.sub(r"\1'\2", value, 1) if FORMULA.match(value) else value
        text = INNER_FORMULA.sub(r"\1'\2", text)
        return f"'{text}" if text[:1] in ("\t", "\r", "\n") else text
    if isinstance(value, datetime) and zone is not None:
        return value.astimezone(zone).replace(tzinfo=None).isoformat(" ", "seconds")
    return _encoder.encode(value).decode().strip('"')


def _records(records: Iterable[Sequence[object]]) -> bytes:
    """Render records as RFC 4180."""
    text = io.StringIO()
    csv.writer(text).writerows(records)
    return text.getvalue().encode()
