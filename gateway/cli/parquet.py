"""Calls as Parquet, with pyarrow (the extra `parquet`): times in UTC, numbers, `address` and `status` as structs."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from datetime import datetime
from types import UnionType
from typing import Any, get_args, get_type_hints

import msgspec

from gateway.formats import NESTED, Projection, columns_of
from gateway.model import Call

ROW_GROUP = 50_000  # calls; a few MiB when compressed


class Parquet:
    """A format, as `formats.Format`. Raises ValueError if pyarrow is not installed."""

    def __init__(self, fields: Sequence[str], call_type: type[Call]) -> None:
        try:
            import pyarrow as pa
            from pyarrow.parquet import ParquetWriter
        except ImportError:
            text = "Parquet needs the extra parquet: run pip install '.[parquet]' in the folder of the source"
            raise ValueError(text) from None
        self._arrow = pa
        columns = columns_of(call_type)
        self._project = Projection(fields or tuple(columns), columns)
        self._schema = pa.schema(_schema_fields(pa, self._project.names, fields, call_type))
        self._sink = io.BytesIO()
        self._writer = ParquetWriter(self._sink, self._schema)
        self._rows: list[dict[str, Any]] = []

    def begin(self) -> bytes:
        """Return the bytes before the calls."""
        return self._taken()

    def rows(self, calls: Iterable[Call]) -> bytes:
        """Add calls, and return the bytes of the row groups that they complete."""
        for call in calls:
            row = msgspec.to_builtins(self._project(call), builtin_types=(datetime,))
            if "extra" in row:
                row["extra"] = list(row["extra"].items())
            self._rows.append(row)
        return self._row_group() if len(self._rows) >= ROW_GROUP else b""

    def end(self, meta: object) -> bytes:  # noqa: ARG002 - the interface of Format
        """Return the remaining bytes, with the index of the file."""
        rest = self._row_group()
        self._writer.close()
        return rest + self._taken()

    def _row_group(self) -> bytes:
        if self._rows:
            self._writer.write_table(self._arrow.Table.from_pylist(self._rows, self._schema))
            self._rows.clear()
        return self._taken()

    def _taken(self) -> bytes:
        """Take the bytes that were written. The writer counts its own position."""
        data = self._sink.getvalue()
        self._sink.seek(0)
        self._sink.truncate()
        return data


def _schema_fields(
    arrow: Any,  # noqa: ANN401 - a module without types
    names: Sequence[str],
    fields: Sequence[str],
    call_type: type[Call],
) -> list[Any]:
    """The columns of some names, with the types of calls; a struct has the chosen `fields` of it, or else all."""
    hints = get_type_hints(call_type)
    columns = []
    for field in msgspec.structs.fields(call_type):
        name = field.encode_name
        if name not in names:
            continue
        if name in NESTED:
            members = [
                (inner.encode_name, _arrow_type(arrow, _kind(get_type_hints(NESTED[name])[inner.name])))
                for inner in msgspec.structs.fields(NESTED[name])
                if not fields or name in fields or f"{name}.{inner.encode_name}" in fields
            ]
            columns.append(arrow.field(name, arrow.struct(members)))
        else:
            columns.append(arrow.field(name, _arrow_type(arrow, _kind(hints[field.name]))))
    return columns


def _kind(hint: Any) -> Any:  # noqa: ANN401 - a type
    """A type without None."""
    return next(part for part in get_args(hint) if part is not type(None)) if isinstance(hint, UnionType) else hint


def _arrow_type(arrow: Any, kind: Any) -> Any:  # noqa: ANN401 - a module without types
    if kind is datetime:
        return arrow.timestamp("us", tz="UTC")
    if kind in (int, bool):
        return arrow.int32() if kind is int else arrow.bool_()
    return (
        arrow.string()
        if isinstance(kind, type) and issubclass(kind, str)
        else arrow.map_(arrow.string(), arrow.string())
    )
