"""Empty databases for `mirror`, SQLite and PostgreSQL, and their rows."""

from __future__ import annotations

import itertools
import json
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg

from tests.support.servers import Postgres

Key = tuple[str, str]
_numbers = itertools.count()


class Database:
    """An empty database, of which `url` is the address."""

    def __init__(self, folder: Path, server: Postgres | None) -> None:
        self._path, self._server = folder / "calls.db", server
        self.url = f"sqlite:///{self._path}"
        if server is not None:
            name = f"calls{next(_numbers)}"
            self.url = server.url
            self.query(f"CREATE DATABASE {name}")
            self.url = f"{server.url.removesuffix('postgres')}{name}"

    def query(self, statement: str) -> list[dict[str, Any]]:
        """Run a statement, and return its rows by column; times and JSON as the feed writes them."""
        if self._server is None:
            with closing(sqlite3.connect(self._path, isolation_level=None)) as connection:
                cursor = connection.execute(statement)
                rows: list[Any] = cursor.fetchall()
                names = [column[0] for column in cursor.description or ()]
        else:
            with psycopg.connect(self.url, autocommit=True) as server:
                found = server.execute(statement)
                rows = found.fetchall() if found.description else []
                names = [column.name for column in found.description or ()]
        return [dict(zip(names, map(as_in_the_feed, row), strict=True)) for row in rows]

    def calls(self, feed: int = 1) -> dict[Key, dict[str, Any]]:
        """The calls of a feed, by client code and id."""
        rows = self.query(f"SELECT * FROM calls WHERE feed_id = {feed}")
        for row in rows:
            row["extra"] = json.loads(row["extra"]) if isinstance(row["extra"], str) else row["extra"]
        return {(row["client_code"], row["id"]): row for row in rows}

    def edited(self) -> dict[Key, str | None]:
        """Every call, with the text that the changing simulator changes."""
        return {key: row["extra"].get("Edited") for key, row in self.calls().items()}


def as_in_the_feed(value: Any) -> Any:
    """A time of PostgreSQL as a text; other values as they are."""
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if isinstance(value, datetime) else value
