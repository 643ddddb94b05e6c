"""Calls, and rows about calls, as JSON, NDJSON or CSV, rendered piece by piece. Pure: rows in, bytes out.

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
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import chain, groupby
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


NESTED: dict[str, type[Struct]] = {"address": CallerAddress, "status": CallStatus}
Columns = Mapping[str, str]  # the path of attributes of each column, by its dotted name


@lru_cache(maxsize=16)
def columns_of(row_type: type[Struct], call_type: type[Call] = Call) -> Columns:
    """The columns of a type of rows. `call_type` is the type of the calls in it."""
    columns = {}
    for field in msgspec.structs.fields(row_type):
        inner = (NESTED | {"lastCall": call_type}).get(field.encode_name)
        if inner is None:
            columns[field.encode_name] = field.name
        else:
            inside = columns_of(inner).items()
            columns |= {f"{field.encode_name}.{name}": f"{field.name}.{path}" for name, path in inside}
    return columns


def fields_of(columns: Columns) -> tuple[str, ...]:
    """The names that `fields` may have: the columns, and the names of nested Structs."""
    return tuple(dict.fromkeys([*columns, *(name.partition(".")[0] for name in columns)]))


COLUMNS = columns_of(Call)
FIELDS = fields_of(COLUMNS)


class Projection:
    """Selects some fields of a call, for JSON. `names` are those of the fields, without dots."""

    def __init__(self, fields: Sequence[str], columns: Columns = COLUMNS) -> None:
        wanted = {*REQUIRED_FIELDS, *fields}
        parts: dict[str, tuple[str, list[tuple[str, str]]]] = {}
        for column, path in columns.items():
            name, _, inner = column.partition(".")
            if name in wanted or column in wanted:
                part = parts.setdefault(name, (path.partition(".")[0], []))
                if name not in wanted:
                    part[1].append((inner, path.rpartition(".")[2]))
        self._parts = [(name, *part) for name, part in parts.items()]
        self.names = tuple(parts)

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
    """Renders rows, such as calls: the concatenation of `begin`, any number of `rows`, and `end`."""

    def begin(self) -> bytes:
        """Render the text before the rows."""

    def rows(self, rows: Iterable[Any]) -> bytes:
        """Render some rows."""

    def end(self, meta: object) -> bytes:
        """Render the text after the rows."""


class Json:
    """One object. `begun` says that it already has calls, of an export that is resumed."""

    def __init__(self, fields: Sequence[str] = (), *, begun: bool = False, columns: Columns = COLUMNS) -> None:
        self._lines = Ndjson(fields, columns=columns)
        self._begun = begun

    def begin(self) -> bytes:
        """Render the start of the object."""
        return b'{"data":[\n'

    def rows(self, rows: Iterable[Any]) -> bytes:
        """Render one row a line."""
        lines = self._lines.rows(rows).rstrip(b"\n").replace(b"\n", b",\n")  # a newline inside a call is escaped
        before = b",\n" if lines and self._begun else b""
        self._begun = self._begun or bool(lines)
        return before + lines

    def end(self, meta: object) -> bytes:
        """Render `meta` and the end of the object."""
        return b'\n],"meta":' + _encoder.encode(meta) + b"}\n"


class Ndjson:
    """One call a line, then `meta`, unless the end of the connection or file alone is to show that it is complete."""

    def __init__(self, fields: Sequence[str] = (), *, meta: bool = True, columns: Columns = COLUMNS) -> None:
        self._project = Projection(fields, columns) if fields else None
        self._meta = meta

    def begin(self) -> bytes:
        """Return no bytes: NDJSON has no header."""
        return b""

    def rows(self, rows: Iterable[Any]) -> bytes:
        """Render one row a line."""
        return _encoder.encode_lines([self._project(row) for row in rows] if self._project else list(rows))

    def end(self, meta: object) -> bytes:
        """Render the last line, which shows that the text is complete."""
        return _encoder.encode({"meta": meta}) + b"\n" if self._meta else b""


class Csv:
    """A header, then one record for each row. `zone` is the time zone of Excel's dialect."""

    def __init__(self, fields: Sequence[str] = (), *, zone: ZoneInfo | None = None, columns: Columns = COLUMNS) -> None:
        nested = {field: [name for name in columns if name.startswith(f"{field}.")] or [field] for field in fields}
        self._columns = list(dict.fromkeys(chain.from_iterable(nested.values()))) or list(columns)
        self._read = _reader([columns[name] for name in self._columns])
        self._zone = zone

    def begin(self) -> bytes:
        """Render the header."""
        return render_header(self._columns, self._zone)

    def rows(self, rows: Iterable[Any]) -> bytes:
        """Render one record for each row."""
        return render_records(map(self._read, rows), self._zone)

    def end(self, meta: object) -> bytes:  # noqa: ARG002 - the interface of Format
        """Return no bytes. An incomplete text is recognized by its connection, which is closed early."""
        return b""


FORMATS = ("json", "ndjson", "csv")


def make_format(
    name: str,
    fields: Sequence[str] = (),
    *,
    begun: bool = False,
    meta: bool = True,
    zone: ZoneInfo | None = None,
    columns: Columns = COLUMNS,
) -> Format:
    """Make the format of one of the names in FORMATS.

    `begun` says that rows have already been written, `meta` that NDJSON has a last line. `zone` makes CSV for Excel.
    """
    if name == "json":
        return Json(fields, begun=begun, columns=columns)
    if name == "ndjson":
        return Ndjson(fields, meta=meta, columns=columns)
    return Csv(fields, zone=zone, columns=columns)


def _reader(paths: Sequence[str]) -> Callable[[Any], list[Any]]:
    """A function that returns some values of a row. Adjacent ones of one Struct are read together, for speed."""
    runs: list[tuple[list[str], Callable[[Any], tuple[Any, ...]], tuple[None, ...]]] = []
    for part, run in groupby(paths, key=lambda path: path.rpartition(".")[0]):
        names = [path.rpartition(".")[2] for path in run]
        runs.append((part.split(".") if part else [], _all(names), (None,) * len(names)))

    def read(row: object) -> list[Any]:
        values: list[Any] = []
        for parts, take, nothing in runs:
            found = row
            for part in parts:
                found = found and getattr(found, part)
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


def render_header(columns: Sequence[str], zone: ZoneInfo | None = None) -> bytes:
    """Render the header of a CSV text. `zone` is the time zone of Excel's dialect."""
    return (BYTE_ORDER_MARK if zone else b"") + render_records([columns])


def render_records(records: Iterable[Sequence[object]], zone: ZoneInfo | None = None) -> bytes:
    """Render records as RFC 4180, with no cell that a spreadsheet takes for a formula."""
    text = io.StringIO()
    csv.writer(text).writerows(
        [
            value
            if value is None
            or type(value) is int
            or (type(value) is str and value[:1] not in BEGINNINGS and not find_separator(value))
            else _cell(value, zone)
            for value in record
        ]
        for record in records
    )
    return text.getvalue().encode()
