"""The tables of `mirror`, and the statements that change them, for SQLite and PostgreSQL.

Rules:
- SQL is written once. `DIALECTS` has the words in which the two differ. Times are texts such as 2026-11-01T08:49:51Z in
  SQLite, whose date functions read them, and TIMESTAMPTZ in PostgreSQL.
- `STEPS` are never edited: a change of the tables is another step.
- A promoted field is a column `extra_…`. It is added when the first call with the field arrives, and never dropped: it
  is NULL in calls that arrive without the field, whose text is then in `extra` alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

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
PROMOTED = "extra_"  # the beginning of the columns of promoted fields
MAX_NAME = 63  # bytes of a name in PostgreSQL
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
ADD_COLUMN = "ALTER TABLE calls ADD COLUMN {column} TEXT"
DELETE = "DELETE FROM calls WHERE feed_id = ? AND client_code = ? AND id = ?"
MARK_REMOVED = (
    "UPDATE calls SET removed_at = ?, changed_at = ? "
    "WHERE feed_id = ? AND client_code = ? AND id = ? AND removed_at IS NULL"
)
IN_WINDOW = (
    "SELECT client_code, id FROM calls WHERE feed_id = ? AND start_time >= ? AND start_time < ? AND removed_at IS NULL"
)


def column_of(field: str) -> str:
    """The column of a promoted field, such as `extra_caller_name` of `callerName`."""
    return (PROMOTED + re.sub("[A-Z]", lambda found: f"_{found[0].lower()}", field))[:MAX_NAME]


def upsert(promoted: Sequence[str] = (), others: Iterable[str] = ()) -> str:
    """Insert a call, or update it if it differs: its columns, those of promoted fields, and NULL in `others`."""
    told, nulls = [*COLUMNS, *promoted], sorted(others)
    columns = [*told, "first_seen_at", "changed_at", *nulls]
    values = ["?"] * (len(told) + 2) + ["NULL"] * len(nulls)
    compared = [*told[2:], *nulls]
    return f"""
        INSERT INTO calls (feed_id, {", ".join(columns)}) VALUES (?, {", ".join(values)})
        ON CONFLICT (feed_id, client_code, id) DO UPDATE SET removed_at = NULL, changed_at = excluded.changed_at,
            {", ".join(f"{column} = excluded.{column}" for column in compared)}
        WHERE calls.removed_at IS NOT NULL
            OR ({", ".join(f"calls.{column}" for column in compared)}) {{differs}}
                ({", ".join(f"excluded.{column}" for column in compared)})
    """  # noqa: S608 - of constants, and of fields whose names are checked
