"""Calls as text that streams: NDJSON and CSV. Pure: calls in, bytes out.

Rules:
- JSON is one object, `data` and `meta`, a call a line.
- NDJSON is a call a line, as the JSON lists show it. The last line is `{"meta": {…}}`: without it the text broke off.
- CSV is RFC 4180 with a header. Columns are flat and nested names dotted; null is empty; `extra` is JSON in one column.
- A text that a spreadsheet would take for a formula gets an apostrophe before it.
- `fields` are columns, or `address` and `status` whole. A call is always known by its `KEYS` in JSON and NDJSON; CSV
  has the columns asked for and no other, in that order.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from gateway.model import Address, Call, Status

KEYS = ("id", "clientCode", "startTime")
MARKS = frozenset("=+-@\t\r\n＝＋－＠")  # noqa: RUF001 - of a formula; spreadsheets know the full-width signs too
_encoder = msgspec.json.Encoder()


def _attributes(struct: type[Struct]) -> dict[str, str]:
    return {field.encode_name: field.name for field in msgspec.structs.fields(struct)}


PARTS: dict[str, type[Struct]] = {"address": Address, "status": Status}
ATTRIBUTES = {name: _attributes(part) for name, part in PARTS.items()} | {"": _attributes(Call)}
COLUMNS = tuple(
    column
    for name in ATTRIBUTES[""]
    for column in ([f"{name}.{inner}" for inner in ATTRIBUTES[name]] if name in PARTS else [name])
)
FIELDS = (*COLUMNS, *PARTS)


class Projection:
    """Of each call some fields only, as a mapping that is written as JSON."""

    def __init__(self, fields: Sequence[str]) -> None:
        wanted: dict[str, list[str] | None] = dict.fromkeys(KEYS)
        for name in (field for field in ATTRIBUTES[""] if any(one.split(".")[0] == field for one in fields)):
            inner = [one.partition(".")[2] for one in fields if one.startswith(f"{name}.")]
            wanted[name] = inner if inner and name not in fields else None
        self._parts = [
            (name, ATTRIBUTES[""][name], [(one, ATTRIBUTES[name][one]) for one in inner or ()])
            for name, inner in wanted.items()
        ]

    def __call__(self, call: Call) -> dict[str, Any]:
        """Take the fields of a call."""
        row = {}
        for name, outer, inner in self._parts:
            value = getattr(call, outer)
            if inner and value is not None:
                value = {one: getattr(value, attribute) for one, attribute in inner}
            row[name] = value
        return row


class Format(Protocol):
    """A way to write calls."""

    def begin(self) -> bytes:
        """Write what comes before the calls."""

    def rows(self, calls: Iterable[Call]) -> bytes:
        """Write some calls."""

    def end(self, meta: object) -> bytes:
        """Write what comes after the calls."""


class Json:
    """One object; `begun` when calls have been written before."""

    def __init__(self, fields: Sequence[str] = (), *, begun: bool = False) -> None:
        self._lines = Ndjson(fields)
        self._begun = begun

    def begin(self) -> bytes:
        """Open the object."""
        return b'{"data":[\n'

    def rows(self, calls: Iterable[Call]) -> bytes:
        """Write some calls, a line each."""
        lines = self._lines.rows(calls).rstrip(b"\n").replace(b"\n", b",\n")  # a newline inside a call is escaped
        before = b",\n" if lines and self._begun else b""
        self._begun = self._begun or bool(lines)
        return before + lines

    def end(self, meta: object) -> bytes:
        """Close the object."""
        return b'\n],"meta":' + _encoder.encode(meta) + b"}\n"


class Ndjson:
    """A call a line."""

    def __init__(self, fields: Sequence[str] = ()) -> None:
        self._project = Projection(fields) if fields else None

    def begin(self) -> bytes:
        """What comes before the calls: nothing."""
        return b""

    def rows(self, calls: Iterable[Call]) -> bytes:
        """Write some calls."""
        return _encoder.encode_lines([self._project(call) for call in calls] if self._project else list(calls))

    def end(self, meta: object) -> bytes:
        """Write the last line, which says that nothing is missing."""
        return _encoder.encode({"meta": meta}) + b"\n"


class Csv:
    """A header, then a call a record."""

    def __init__(self, fields: Sequence[str] = ()) -> None:
        self._columns = _columns(fields)
        self._read = _reader(self._columns)

    def begin(self) -> bytes:
        """Write the header."""
        return _records([self._columns])

    def rows(self, calls: Iterable[Call]) -> bytes:
        """Write some calls."""
        read = self._read
        return _records(
            [
                value
                if value is None or type(value) is int or (type(value) is str and value[:1] not in MARKS)
                else _cell(value)
                for value in read(call)
            ]
            for call in calls
        )

    def end(self, meta: object) -> bytes:  # noqa: ARG002 - what NDJSON takes
        """What comes after the calls: nothing. A text that broke off is known by its connection."""
        return b""


FORMATS = ("json", "ndjson", "csv")


def make_format(name: str, fields: Sequence[str] = (), *, begun: bool = False) -> Format:
    """Make one of `FORMATS`; `begun` when calls have been written before."""
    if name == "json":
        return Json(fields, begun=begun)
    return Ndjson(fields) if name == "ndjson" else Csv(fields)


def _columns(fields: Sequence[str]) -> list[str]:
    found: dict[str, None] = {}
    for field in fields or COLUMNS:
        found |= dict.fromkeys([f"{field}.{inner}" for inner in ATTRIBUTES[field]] if field in PARTS else [field])
    return list(found)


def _reader(columns: Sequence[str]) -> Callable[[Call], list[Any]]:
    """Make the function that reads the columns of a call: neighbours of one part are read at once."""
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
    take = attrgetter(*names)
    return take if len(names) > 1 else lambda value: (take(value),)


def _cell(value: Any) -> str | None:  # noqa: ANN401 - any value that a call has
    if not isinstance(value, str):  # an enum is a str
        if not value and isinstance(value, dict):
            return None
        value = _encoder.encode(value).decode().strip('"')
    return f"'{value}" if value[:1] in MARKS else value


def _records(records: Iterable[Sequence[object]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(records)
    return text.getvalue().encode()
