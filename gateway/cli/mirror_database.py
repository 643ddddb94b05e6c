"""The database of `mirror`: its tables, and how pages of the change feed are applied to them.

Rules:
- A page and its token are written in one transaction. After a crash the copy continues after the last page.
- Rows belong to the feed that brought them. Feeds of one database do not change each other's rows.
- One process at a time writes a database. The lock ends with the process, however it ends.
- `mirror_tables` has the SQL, and `mirror_feed` parses the pages.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from gateway.cli.mirror_feed import Item, Page, Row, encode, item_decoder, promoted_fields, row_of
from gateway.cli.mirror_tables import (
    ADD_COLUMN,
    COLUMNS,
    DELETE,
    DIALECTS,
    IN_WINDOW,
    MARK_REMOVED,
    PROMOTED,
    STEPS,
    column_of,
    upsert,
)

LOCK = 0x43414C4C  # the advisory lock of PostgreSQL: "CALL"; its second key is the schema
BUSY_TIMEOUT = 60  # seconds for which a writer of another program may hold a SQLite database
Key = tuple[str, str]


class DatabaseError(OSError):
    """The database cannot be used at present, or not by this process."""


class Feed(NamedTuple):
    """A row of the table `feed`. `clients` are codes separated by commas; `start` is where the copy begins."""

    id: int
    name: str
    gateway: str  # its address, or that of the upstream if the gateway is in the process of the mirror
    clients: str
    status: bool
    requested_start: str | None
    start: str | None
    token: str | None
    signing_key: str  # of the gateway in the process, so that its tokens outlive it


class Applied(NamedTuple):
    """The feed after a page, the calls that the page told and removed, and the seconds of its windows."""

    feed: Feed
    told: int
    removed: int
    seconds: float
    exact: bool  # whether the copy has as many calls as it must


class MirrorDatabase:
    """The database at a URL. `keep_removed` marks calls instead of deleting them. Raises ValueError for another URL."""

    def __init__(self, url: str, *, keep_removed: bool = False) -> None:
        scheme, _, self._rest = url.partition("://")
        self._keep_removed = keep_removed
        self._held: list[Any] = []  # connections, of which one may be a lock
        self._errors: tuple[type[Exception], ...] = ()
        if scheme == "sqlite" and self._rest.strip("/"):
            self._dialect = "sqlite"
        elif scheme in ("postgresql", "postgres", "postgresql+psycopg"):
            self._dialect = "postgresql"
        else:
            known = "use sqlite:///FILE or postgresql://USER@HOST/NAME"
            raise ValueError(f"{scheme}:// is not the URL of a database that mirror knows: {known}")
        self._words = DIALECTS[self._dialect]

    def open(self) -> None:
        """Connect, lock the database for this process, and bring its tables to the present version.

        Raises ValueError for tables of a newer version, DatabaseError.
        """
        try:
            if self._dialect == "sqlite":
                self._open_sqlite(Path(self._rest.removeprefix("/")))
            else:
                self._open_postgresql(f"postgresql://{self._rest}")
            with self._translated():
                self._migrate()
                self._use([])
        except BaseException:
            self.close()
            raise

    def _open_sqlite(self, path: Path) -> None:
        self._errors, self._mark, self._begin = (sqlite3.Error,), "?", "BEGIN IMMEDIATE"
        with self._translated():
            lock = sqlite3.connect(f"{path}.lock", timeout=0, isolation_level=None, check_same_thread=False)
            self._held.append(lock)
            try:
                lock.execute("BEGIN EXCLUSIVE")  # held until the process ends
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                    raise
                raise DatabaseError(f"{path} is being written by another mirror") from error
            self._connection: Any = sqlite3.connect(
                path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
            )
            self._held.append(self._connection)
            self._run("PRAGMA journal_mode = WAL")  # readers do not wait for the mirror, nor it for them
            self._run("PRAGMA synchronous = NORMAL")

    def _open_postgresql(self, url: str) -> None:
        try:
            import psycopg
        except ImportError:
            text = "PostgreSQL needs the extra mirror: run pip install '.[mirror]' in the folder of the source"
            raise ValueError(text) from None
        self._errors, self._mark, self._begin = (psycopg.Error,), "%s", "BEGIN"
        with self._translated():
            self._connection = psycopg.connect(url, autocommit=True, application_name="callbutton-gateway mirror")
            self._held.append(self._connection)
            self._run("SET TIME ZONE 'UTC'")
            ((locked,),) = self._run("SELECT pg_try_advisory_lock(?, hashtext(current_schema()))", LOCK)
            if not locked:
                raise DatabaseError("the database is being written by another mirror")

    def close(self) -> None:
        """Close the database, and give up its lock. It can be opened again."""
        while self._held:
            with suppress(*self._errors):
                self._held.pop().close()

    def feed(self, name: str, gateway: str, clients: str, *, status: bool) -> Feed:
        """The feed of a name, which is added if it does not exist. Raises ValueError for one of other clients."""
        with self._translated():
            if not (found := self._feeds(name)):
                self._run(
                    "INSERT INTO feed (id, name, gateway, clients, status, signing_key) "
                    "SELECT COALESCE(MAX(id), 0) + 1, ?, ?, ?, ?, ? FROM feed",
                    *(name, gateway, clients, status, secrets.token_hex(32)),
                )
                found = self._feeds(name)
        (feed,) = found
        if (feed.clients, feed.status) != (clients, status):
            kept = f"{feed.clients} {'with' if feed.status else 'without'} status"
            raise ValueError(f"the feed {name} has the clients {kept}: use --name for another feed in this database")
        return feed

    def _feeds(self, name: str) -> list[Feed]:
        columns = "id, name, gateway, clients, status, requested_start, start_time, token, signing_key"
        rows = self._run(f"SELECT {columns} FROM feed WHERE name = ?", name)  # noqa: S608 - of constants
        return [Feed(*row)._replace(status=bool(row[4]), start=row[6] and _text(row[6])) for row in rows]

    def restart(self, feed: Feed, gateway: str, start: str | None) -> Feed:
        """Let the feed begin again, at a gateway and from a start. Its calls stay. Raises DatabaseError."""
        with self._translated():
            statement = "UPDATE feed SET token = NULL, gateway = ?, requested_start = ? WHERE id = ?"
            self._run(statement, gateway, start, feed.id)
        return feed._replace(token=None, gateway=gateway, requested_start=start)

    def apply(self, feed: Feed, page: Page) -> Applied:
        """Apply a page of the feed, and store its token. Raises DatabaseError."""
        now = _text(datetime.now(UTC))
        told = removed = 0
        seconds = 0.0
        with self._translated(), self._transaction():
            for item in map(self._parsed, page.items):
                calls = item.calls if item.call is None else [item.call]
                gone: list[Key] = [(item.client_code, item.id)] if item.op == "remove" else []
                if item.op == "replace":
                    gone = self._unlisted(feed, item)
                    seconds += _seconds(item.window)
                self._remove(feed, gone, now)
                self._run_many(self._upsert, ((feed.id, *row_of(call), now, now) for call in calls))
                told, removed = told + len(calls), removed + len(gone)
            exact = not page.up_to_date or page.calls == self._count(feed, page.start)
            token = page.next if exact else None
            self._run(
                "UPDATE feed SET token = ?, start_time = ?, as_of = ?, complete_through = ?, calls = ?, updated_at = ? "
                "WHERE id = ?",
                *(token, page.start, page.as_of, page.complete_through, page.calls, now, feed.id),
            )
        return Applied(feed._replace(token=token, start=page.start), told, removed, seconds, exact)

    def _count(self, feed: Feed, start: str) -> int:
        counted = "SELECT COUNT(*) FROM calls WHERE feed_id = ? AND start_time >= ? AND removed_at IS NULL"
        ((count,),) = self._run(counted, feed.id, start)
        return int(count)

    def _unlisted(self, feed: Feed, item: Item) -> list[Key]:
        """The calls of a replaced window that the feed no longer has there."""
        listed = {(call.client_code, call.id) for call in item.calls}
        held = self._run(IN_WINDOW, feed.id, item.window["start"], item.window["end"])
        return [key for key in held if key not in listed and (item.clients == "*" or key[0] in item.clients)]

    def _remove(self, feed: Feed, keys: Sequence[Key], now: str) -> None:
        if self._keep_removed:
            self._run_many(MARK_REMOVED, [(now, now, feed.id, *key) for key in keys])
        else:
            self._run_many(DELETE, [(feed.id, *key) for key in keys])

    def different(self, feed: Feed, page: Page) -> set[Key]:
        """The calls of replaced windows that the copy does not have as the feed tells them. Raises DatabaseError."""
        found: set[Key] = set()
        with self._translated():
            for item in map(self._parsed, page.items):
                if item.op == "replace":
                    statement = IN_WINDOW.replace("client_code, id", ", ".join([*COLUMNS, *self._columns]), 1)
                    rows = self._run(statement, feed.id, item.window["start"], item.window["end"])
                    held = {(row[0], row[1]): tuple(map(_comparable, row)) for row in rows}
                    told = {(row[0], row[1]): tuple(map(_comparable, row)) for row in map(row_of, item.calls)}
                    found |= {key for key in held.keys() | told.keys() if held.get(key) != told.get(key)}
        return found

    def _parsed(self, line: bytes) -> Item:
        """An item of the feed. The table gets the columns that its calls need. Raises ValueError."""
        try:
            return self._decoder.decode(line)
        except msgspec.ValidationError:
            if not (new := set(promoted_fields(line)) - set(self._promoted)):
                raise
            self._use([*self._promoted, *sorted(new)])
            return self._decoder.decode(line)

    def _use(self, promoted: Sequence[str]) -> None:
        """Read and write these promoted fields, in columns that are added if they do not exist."""
        self._promoted, self._columns = promoted, [column_of(field) for field in promoted]
        self._decoder = item_decoder(promoted)
        names = [column[0] for column in self._connection.execute("SELECT * FROM calls WHERE 1 = 0").description]
        there = {name for name in names if name.startswith(PROMOTED)}
        for column in self._columns:
            if column not in there:
                self._run(ADD_COLUMN.format(column=column))
        self._upsert = upsert(self._columns, there - set(self._columns))

    def _migrate(self) -> None:
        """Bring the tables to the present version. Raises ValueError if they are of a newer one."""
        self._run("CREATE TABLE IF NOT EXISTS mirror_version (version INTEGER NOT NULL)")
        version = sum(version for (version,) in self._run("SELECT version FROM mirror_version"))
        if version > len(STEPS):
            text = f"the tables are of version {version}, and this program knows {len(STEPS)}"
            raise ValueError(f"{text}: use the callbutton-gateway that wrote them, or a newer one")
        for number, step in enumerate(STEPS[version:], version + 1):
            with self._transaction():
                for statement in step.format(**self._words).split(";"):
                    self._run(statement)
                self._run("DELETE FROM mirror_version")
                self._run("INSERT INTO mirror_version (version) VALUES (?)", number)

    def _run(self, statement: str, *parameters: object) -> list[Row]:
        """Run a statement, and return its rows."""
        cursor = self._connection.execute(statement.replace("?", self._mark), parameters)
        return list(cursor.fetchall()) if cursor.description else []

    def _run_many(self, statement: str, rows: Iterable[Row]) -> None:
        self._connection.cursor().executemany(statement.format(**self._words).replace("?", self._mark), rows)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._run(self._begin)
        try:
            yield
            self._run("COMMIT")
        except BaseException:
            with suppress(*self._errors):  # the connection may be lost
                self._run("ROLLBACK")
            raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Translate the errors of the drivers."""
        try:
            yield
        except self._errors as error:
            text = str(error).strip().splitlines()
            place = f" {self._rest.removeprefix('/')}" if self._dialect == "sqlite" else ""  # a URL may have a password
            raise DatabaseError(f"database{place}: {text[0] if text else type(error).__name__}") from error


def _text(value: str | datetime) -> str:
    """A time as the feed writes it."""
    return value if isinstance(value, str) else value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _comparable(value: Any) -> Any:  # noqa: ANN401 - a column has one of many types
    """A column as `row_of` makes it: PostgreSQL returns times and JSON as objects, SQLite booleans as numbers."""
    if isinstance(value, datetime):
        return _text(value)
    return encode(value).decode() if isinstance(value, dict) else value


def _seconds(window: dict[str, str]) -> float:
    start, end = (datetime.fromisoformat(window[edge]) for edge in ("start", "end"))
    return (end - start).total_seconds()
