"""A dlt source of the Callbutton gateway in one file: the table `calls`, which the change feed keeps exact.

It needs Python 3.11, dlt, and a destination that answers SQL. It belongs to the contract of the same version
(`CONTRACT`). A dataset belongs to one feed: the same access key, clients and `status` at each run.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import dlt
from dlt.destinations.exceptions import DatabaseUndefinedRelation
from dlt.sources.helpers import requests

CONTRACT = "0.1.0"
PAGE_LIMIT = 10_000  # calls of a page; the most that a gateway reports at once
MAX_DAYS = 399  # before now at which a copy begins again; the feed allows 400
TEXTS = (
    "id clientCode startTimeCertainty campaign did ani otherData phoneType target result indexNumber dtmf "
    "address__firstName address__middleInitial address__lastName address__street address__secondary address__city "
    "address__state address__zip address__zip4 status__sales status__journal"
)
COLUMNS: dict[str, Any] = {
    **{name: {"data_type": "text"} for name in TEXTS.split()},
    "startTime": {"data_type": "timestamp", "timezone": True},
    "durationSeconds": {"data_type": "bigint"},
    "talkTimeSeconds": {"data_type": "bigint"},
    "hasRecording": {"data_type": "bool"},
    "status__reviewed": {"data_type": "bool"},
    "extra": {"data_type": "json"},
    "removed": {"data_type": "bool", "hard_delete": True},  # true only in rows on their way to the destination
    "position": {"data_type": "bigint", "dedup_sort": "desc"},  # of a run's versions of a call, the last one counts
}
Row = dict[str, Any]
Held = dict[tuple[str, str], str]  # the start time by client code and id


@dlt.source(name="callbutton")
def callbutton(
    address: str = dlt.config.value,
    key: str | None = dlt.secrets.value,
    clients: Sequence[str] = ("*",),
    start: str | None = None,
    status: bool = False,
) -> Any:  # noqa: ANN401 - the decorator returns a source
    """The calls of these clients from `start` (a date in UTC, by default 30 days ago) on, as the table `calls`."""
    dlt.current.source_schema().remove_type_detection("iso_timestamp")  # a text that looks like a time stays a text
    return calls(address, key, clients, start, status)


@dlt.resource(name="calls", primary_key=("clientCode", "id"), write_disposition="merge", columns=COLUMNS)
def calls(
    address: str, key: str | None, clients: Sequence[str], start: str | None, status: bool
) -> Iterator[list[Row]]:
    """The rows to write and to delete, until the copy is up to date. Raises requests.HTTPError.

    The token is in the state of the resource, which dlt loads with the rows.
    """
    state, positions, begun_again = dlt.current.resource_state(), itertools.count(), False
    held, complete = _held_calls()
    if not complete:
        state.pop("token", None)  # rows are newer than the token, which was not loaded
    while True:
        query = {"client": list(clients), "limit": PAGE_LIMIT, "include": "status" if status else None}
        query |= {"since": state["token"]} if "token" in state else {"start": _clamped(state.get("start", start))}
        headers = {"X-API-Key": key} if key else {}
        try:
            body = requests.get(f"{address.rstrip('/')}/changes", params=query, headers=headers).json()
        except requests.HTTPError as error:
            if "token" in state and _refuses_token(error.response):
                del state["token"]  # it is of another access key, or of other clients
                continue
            raise
        page, state["start"] = body["page"], body["meta"]["start"]
        state["token"] = page["next"]
        rows = itertools.chain.from_iterable(_rows(item, held) for item in body["data"])
        yield [row | {"position": next(positions)} for row in rows]
        if not page["upToDate"]:
            continue
        if page["calls"] == sum(began >= state["start"] for began in held.values()):
            return
        if begun_again:
            raise ValueError(f"the table does not have the {page['calls']} calls that it must have")
        begun_again = True
        del state["token"]


def _rows(item: Row, held: Held) -> Iterator[Row]:
    """The rows of an item of the feed. Applies the item to the calls that the table has."""
    told = item.get("calls", [item["call"]] if "call" in item else [])
    gone = [(item["clientCode"], item["id"])] if item["op"] == "remove" else []
    if item["op"] == "replace":
        window, clients = item["window"], item["clients"]
        listed = {(call["clientCode"], call["id"]) for call in told}
        gone = [
            key
            for key, began in held.items()
            if window["start"] <= began < window["end"] and key not in listed and (clients == "*" or key[0] in clients)
        ]
    for key in gone:
        if began := held.pop(key, None):
            yield {"clientCode": key[0], "id": key[1], "startTime": began, "removed": True}
    for call in told:
        held[call["clientCode"], call["id"]] = call["startTime"]
        yield call


def _held_calls() -> tuple[Held, bool]:
    """The calls that the table has, and whether each is of a load that was completed."""
    try:
        with dlt.current.pipeline().sql_client() as client:
            loaded = "_dlt_load_id IN (SELECT load_id FROM _dlt_loads WHERE status = 0)"
            rows = client.execute_sql(f"SELECT client_code, id, start_time, {loaded} FROM calls")  # noqa: S608
    except DatabaseUndefinedRelation:  # before the first load
        return {}, True
    return {(row[0], row[1]): _text(row[2]) for row in rows or ()}, all(row[3] for row in rows or ())


def _text(time: datetime) -> str:
    """A time of the destination as the feed writes it."""
    return (time.astimezone(UTC) if time.tzinfo else time).strftime("%Y-%m-%dT%H:%M:%SZ")


def _clamped(start: str | None) -> str | None:
    """A start that the feed still accepts."""
    return start and max(start, f"{datetime.now(UTC) - timedelta(days=MAX_DAYS):%Y-%m-%d}")


def _refuses_token(response: requests.Response) -> bool:
    problem = response.json() if "json" in response.headers.get("Content-Type", "") else {}
    return any(error["parameter"] == "since" for error in problem.get("errors", []))
