"""The database of `mirror`: its tables, and how pages of the change feed are applied to them.

Rules:
- SQL is written once, for SQLite and PostgreSQL; `DIALECTS` has the words in which they differ. Times are texts such as
  2026-11-01T08:49:51Z in SQLite, whose date functions read them, and TIMESTAMPTZ in PostgreSQL.
- A page and its token are written in one transaction. After a crash the copy goes on from the last complete page.
- Rows belong to the feed that brought them. Feeds of one database do not change each other's rows.
- One process at a time writes a database. The lock ends with the process, however it ends.
- `STEPS` are never edited: a change of the tables is another step.
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
from msgspec import Struct
from msgspec.structs import astuple

LOCK = 0x43414C4C  # the advisory lock of PostgreSQL: "CALL"; its second key is the schema
BUSY_TIMEOUT = 60  # seconds for which a writer of another program may hold a SQLite database
# Fields of a call in the feed, by the names of their columns, in the order of the table.
FIELDS = {
    "client_code": "clientCode",
    "id": "id",
    "start_time": "startTime",
    "start_time_certainty": "startTimeCertainty",
    "campaign": "campaign",
    "did": "did",
    "ani": "ani",
    "other_data": "otherData",
    "phone_type": "phoneType",
    "target": "target",
    "result": "result",
    "duration_seconds": "durationSeconds",
    "talk_time_seconds": "talkTimeSeconds",
    "index_number": "indexNumber",
    "dtmf": "dtmf",
    "has_recording": "hasRecording",
}
ADDRESS = {
    "address_first_name": "firstName",
    "address_middle_initial": "middleInitial",
    "address_last_name": "lastName",
    "address_street": "street",
    "address_secondary": "secondary",
    "address_city": "city",
    "address_state": "state",
    "address_zip": "zip",
    "address_zip4": "zip4",
}
STATUS = {"status_reviewed": "reviewed", "status_sales": "sales", "status_journal": "journal"}
COLUMNS = (*FIELDS, *ADDRESS, *STATUS, "extra")
STEPS = (
    """
    CREATE TABLE feed (
        id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, gateway TEXT NOT NULL, clients TEXT NOT NULL,
        status BOOLEAN NOT NULL, requested_start TEXT, start_time {time}, token TEXT, calls BIGINT, as_of {time},
        complete_through {time}, updated_at {time}, signing_key TEXT NOT NULL
    );
    CREATE TABLE calls (
        feed_id INTEGER NOT NULL REFERENCES feed, client_code TEXT NOT NULL, id TEXT NOT NULL,
        start_time {time} NOT NULL, start_time_certainty TEXT NOT NULL, campaign TEXT, did TEXT, ani TEXT,
        other_data TEXT, phone_type TEXT NOT NULL, target TEXT, result TEXT NOT NULL, duration_seconds INTEGER,
        talk_time_seconds INTEGER, index_number TEXT, dtmf TEXT, has_recording BOOLEAN NOT NULL,
        address_first_name TEXT, address_middle_initial TEXT, address_last_name TEXT, address_street TEXT,
        address_secondary TEXT, address_city TEXT, address_state TEXT, address_zip TEXT, address_zip4 TEXT,
        status_reviewed BOOLEAN, status_sales TEXT, status_journal TEXT, extra {json} NOT NULL,
        first_seen_at {time} NOT NULL, changed_at {time} NOT NULL, removed_at {time},
        PRIMARY KEY (feed_id, client_code, id)
    );
    CREATE INDEX calls_by_start_time ON calls (feed_id, start_time);
    CREATE VIEW calls_by_day AS
    SELECT feed_id, client_code, {day} AS day, COUNT(*) AS calls,
        SUM(CASE WHEN result = 'connected' THEN 1 ELSE 0 END) AS connected,
        SUM(CASE WHEN result IN ('busy', 'no_answer', 'abandoned') THEN 1 ELSE 0 END) AS missed,
        COUNT(DISTINCT ani) AS unique_callers, SUM(duration_seconds) AS duration_seconds,
        SUM(talk_time_seconds) AS talk_time_seconds
    FROM calls WHERE removed_at IS NULL GROUP BY feed_id, client_code, {day};
    CREATE VIEW missed_callers AS
    SELECT missed.feed_id, missed.client_code, missed.ani, COUNT(*) AS missed_calls,
        MIN(missed.start_time) AS first_missed_at, MAX(missed.start_time) AS last_missed_at
    FROM calls AS missed LEFT JOIN (
        SELECT feed_id, client_code, ani, MAX(start_time) AS reached_at FROM calls
        WHERE removed_at IS NULL AND (result = 'connected' OR status_sales IN ('called_back', 'made_sale'))
        GROUP BY feed_id, client_code, ani
    ) AS reached
    ON reached.feed_id = missed.feed_id AND reached.client_code = missed.client_code AND reached.ani = missed.ani
    WHERE missed.removed_at IS NULL AND missed.ani IS NOT NULL
        AND missed.result IN ('busy', 'no_answer', 'abandoned')
        AND (reached.reached_at IS NULL OR reached.reached_at < missed.start_time)
    GROUP BY missed.feed_id, missed.client_code, missed.ani
    """,
)
DIALECTS = {
    "sqlite": {
        "time": "TEXT",
        "json": "TEXT",
        "day": "substr(start_time, 1, 10)",
        "differs": "IS NOT",
    },
    "postgresql": {
        "time": "TIMESTAMPTZ",
        "json": "JSONB",
        "day": "CAST(start_time AT TIME ZONE 'UTC' AS DATE)",
        "differs": "IS DISTINCT FROM",
    },
}
UPSERT = f"""
    INSERT INTO calls (feed_id, {", ".join(COLUMNS)}, first_seen_at, changed_at)
    VALUES ({", ".join("?" * (len(COLUMNS) + 3))})
    ON CONFLICT (feed_id, client_code, id) DO UPDATE SET removed_at = NULL, changed_at = excluded.changed_at,
        {", ".join(f"{column} = excluded.{column}" for column in COLUMNS[2:])}
    WHERE calls.removed_at IS NOT NULL
        OR ({", ".join(f"calls.{column}" for column in COLUMNS[2:])}) {{differs}}
            ({", ".join(f"excluded.{column}" for column in COLUMNS[2:])})
"""  # noqa: S608 - of constants
DELETE = "DELETE FROM calls WHERE feed_id = ? AND client_code = ? AND id = ?"
MARK_REMOVED = (
    "UPDATE calls SET removed_at = ?, changed_at = ? "
    "WHERE feed_id = ? AND client_code = ? AND id = ? AND removed_at IS NULL"
)
IN_WINDOW = (
    "SELECT client_code, id FROM calls WHERE feed_id = ? AND start_time >= ? AND start_time < ? AND removed_at IS NULL"
)
Key = tuple[str, str]
Row = tuple[Any, ...]
_encode = msgspec.json.Encoder(order="sorted").encode


class DatabaseError(OSError):
    """The database cannot be used at present, or not by this process."""


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


class Page(NamedTuple):
    """A page of the feed: its items as lines of JSON, and its last line."""

    items: list[bytes]
    next: str
    up_to_date: bool
    calls: int | None
    start: str
    as_of: str
    complete_through: str | None


class Applied(NamedTuple):
    """The feed after a page, and what the page brought: calls told and removed, and the seconds of its windows."""

    feed: Feed
    told: int
    removed: int
    seconds: float
    exact: bool  # whether the copy has as many calls as it must


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
            text = "PostgreSQL needs the extra mirror: pip install 'callbutton-gateway[mirror]'"
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
            for item in map(parse_item, page.items):
                calls = item.calls if item.call is None else [item.call]
                gone: list[Key] = [(item.client_code, item.id)] if item.op == "remove" else []
                if item.op == "replace":
                    gone = self._unlisted(feed, item)
                    seconds += _seconds(item.window)
                self._remove(feed, gone, now)
                self._run_many(UPSERT, ((feed.id, *row_of(call), now, now) for call in calls))
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

    def different(self, feed: Feed, item: Item) -> set[Key]:
        """The calls of a replaced window that the copy does not have as the feed tells them. Raises DatabaseError."""
        with self._translated():
            columns = ", ".join(COLUMNS)
            statement = IN_WINDOW.replace("client_code, id", columns, 1)
            rows = self._run(statement, feed.id, item.window["start"], item.window["end"])
        held = {(row[0], row[1]): tuple(map(_comparable, row)) for row in rows}
        listed = {(row[0], row[1]): tuple(map(_comparable, row)) for row in map(row_of, item.calls)}
        return {key for key in held.keys() | listed.keys() if held.get(key) != listed.get(key)}

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
            raise DatabaseError(f"database: {text[0] if text else type(error).__name__}") from error


def parse_item(line: bytes) -> Item:
    """Parse an item of the feed. Raises msgspec.MsgspecError."""
    return _decoder.decode(line)


def row_of(call: Any) -> Row:  # noqa: ANN401 - a CopiedCall
    """The columns of a call."""
    *fields, address, status, extra = astuple(call)
    return *fields, *astuple(address or NO_ADDRESS), *astuple(status or NO_STATUS), _encode(extra).decode()


def _text(value: str | datetime) -> str:
    """A time as the feed writes it."""
    return value if isinstance(value, str) else value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _comparable(value: Any) -> Any:  # noqa: ANN401 - a column has one of many types
    """A column as `row_of` makes it: PostgreSQL returns times and JSON as objects, SQLite booleans as numbers."""
    if isinstance(value, datetime):
        return _text(value)
    return _encode(value).decode() if isinstance(value, dict) else value


def _seconds(window: dict[str, str]) -> float:
    start, end = (datetime.fromisoformat(window[edge]) for edge in ("start", "end"))
    return (end - start).total_seconds()


_decoder = msgspec.json.Decoder(Item)
