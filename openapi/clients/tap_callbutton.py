"""A Singer tap of the Callbutton gateway in one file: the stream `calls`, by the change feed. It needs Python 3.11.

    python tap_callbutton.py --config config.json [--discover | --catalog catalog.json] [--state state.json]

`config.json` has `url`, and if needed `key`, `clients` (a list of codes; by default all), `start_date` (a date in UTC),
`status` (true includes the status of calls). The tap belongs to the contract of the same version (`CONTRACT`).

Singer has no deletions. A call that is gone is a record with `_sdc_deleted_at`. If the feed replaces a window, the
calls that are gone from it are known only for the last hours, whose calls are in the state. For an older window, all
calls are read again as a new version, which ends with ACTIVATE_VERSION.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

CONTRACT = "0.1.0"
PAGE_LIMIT = 10_000  # calls of a page; the most that a gateway reports at once
MAX_DAYS = 399  # before now at which a reading begins; the feed allows 400
ATTEMPTS = 6  # of a request, with pauses that begin with one second and double
TIMEOUT = 150  # seconds
BAD_REQUEST = 400
TRANSIENT = {429, 500, 502, 503, 504}  # HTTP statuses after which the same request may succeed
REMEMBERED = timedelta(hours=3)  # before the last reading; the calls of the present hour are often replaced
KEY = ["clientCode", "id"]
TEXT, TIME = {"type": ["string", "null"]}, {"type": ["string", "null"], "format": "date-time"}
NUMBER, OBJECT = {"type": ["integer", "null"]}, {"type": ["object", "null"]}
TYPES = {  # of the fields that are not texts, or never null
    "clientCode": {"type": "string"},
    "id": {"type": "string"},
    "startTime": TIME,
    "durationSeconds": NUMBER,
    "talkTimeSeconds": NUMBER,
    "hasRecording": {"type": ["boolean", "null"]},
    "address": OBJECT,
    "status": OBJECT,
    "extra": OBJECT,
}
Json = dict[str, Any]
Held = dict[tuple[str, str], str]  # the start time by client code and id


def main() -> None:
    """Write the catalog, or the messages of a sync, to standard output."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-c", "--config", type=_json_of, required=True)
    parser.add_argument("-s", "--state", type=_json_of, default={})
    parser.add_argument("--catalog", type=_json_of)
    parser.add_argument("-d", "--discover", action="store_true")
    given = parser.parse_args()
    if not str(given.config.get("url")).startswith(("http://", "https://")):
        parser.error("the configuration has no url that begins with http:// or https://")
    try:
        catalog = given.catalog or discover(given.config)
        for message in [catalog] if given.discover else sync(given.config, catalog, given.state):
            sys.stdout.write(f"{json.dumps(message)}\n")
    except HTTPError as error:
        sys.exit(f"tap_callbutton: the gateway answered {error.code}: {error.read(2000).decode(errors='replace')}")
    except OSError as error:
        sys.exit(f"tap_callbutton: {given.config['url']}: {error}")


def discover(config: Json) -> Json:
    """The catalog: one stream with the fields that the calls of this gateway have, promoted ones included."""
    fields = _get(config, "/openapi.json")["components"]["schemas"]["FeedCall"]["properties"]
    properties = {name: TYPES.get(name, TEXT) for name in fields} | {"_sdc_deleted_at": TIME}
    metadata = [{"breadcrumb": [], "metadata": {"selected": True, "table-key-properties": KEY}}]
    for name in properties:
        inclusion = "automatic" if name in (*KEY, "startTime", "_sdc_deleted_at") else "available"
        metadata.append({"breadcrumb": ["properties", name], "metadata": {"inclusion": inclusion}})
    stream = {"tap_stream_id": "calls", "stream": "calls", "key_properties": KEY, "metadata": metadata}
    return {"streams": [stream | {"schema": {"type": "object", "properties": properties}}]}


def sync(config: Json, catalog: Json, state: Json) -> Iterator[Json]:
    """The messages of a sync: what changed since the state, or all calls as a new version. Raises OSError."""
    (stream,) = catalog["streams"]
    left_out = {tuple(one["breadcrumb"]) for one in stream["metadata"] if one["metadata"].get("selected") is False}
    if () in left_out:
        return
    properties = stream["schema"]["properties"]
    fields = {name: type_ for name, type_ in properties.items() if ("properties", name) not in left_out}
    schema = {"type": "object", "properties": fields}
    yield {"type": "SCHEMA", "stream": "calls", "schema": schema, "key_properties": KEY}
    bookmark = state.get("bookmarks", {}).get("calls", {})
    messages = _changes(config, bookmark) if bookmark else None
    for message in _everything(config, bookmark) if messages is None else messages:
        if message["type"] == "RECORD":
            message["record"] = {name: message["record"].get(name) for name in fields}
        yield message


def _changes(config: Json, bookmark: Json) -> list[Json] | None:
    """The messages of what changed since the token in a bookmark. None if only a new version can express it."""
    token, version, known_from = bookmark["token"], bookmark["version"], bookmark["recentFrom"]
    held: Held = {(code, id_): start for code, id_, start in bookmark["recent"]}
    messages: list[Json] = []
    while True:
        try:
            body = _get(config, "/changes", since=token)
        except HTTPError as error:
            if error.code == BAD_REQUEST:
                return None  # the token is of another access key, or of other clients
            raise
        if any(item["op"] == "replace" and item["window"]["start"] < known_from for item in body["data"]):
            return None
        messages += [message for item in body["data"] for message in _records(item, held, version)]
        token = body["page"]["next"]
        if body["page"]["upToDate"]:
            return [*messages, _state(body, version, held, known_from)]


def _everything(config: Json, bookmark: Json) -> Iterator[Json]:
    """The messages of a reading from the beginning. It has no state before its end, so it is never continued."""
    version = max(int(time.time()), bookmark.get("version", 0) + 1)
    start = bookmark.get("start") or config.get("start_date")
    earliest = f"{datetime.now(UTC) - timedelta(days=MAX_DAYS):%Y-%m-%d}"
    body = _get(config, "/changes", start=max(start, earliest) if start else None)
    held: Held = {}
    while True:
        for item in body["data"]:
            yield from _records(item, held, version)
        if body["page"]["upToDate"]:
            break
        body = _get(config, "/changes", since=body["page"]["next"])
    if body["page"]["calls"] != len(held):
        raise OSError(f"{len(held)} calls were read, and the gateway has {body['page']['calls']}: run it again")
    yield {"type": "ACTIVATE_VERSION", "stream": "calls", "version": version}
    yield _state(body, version, held, body["meta"]["start"])


def _records(item: Json, held: Held, version: int) -> Iterator[Json]:
    """The records of an item of the feed. Applies the item to the calls that are known."""
    told = item.get("calls", [item["call"]] if "call" in item else [])
    gone = [(item["clientCode"], item["id"], item["startTime"])] if item["op"] == "remove" else []
    if item["op"] == "replace":
        start, end, clients = item["window"]["start"], item["window"]["end"], item["clients"]
        listed = {(call["clientCode"], call["id"]) for call in told}
        inside = {key: began for key, began in held.items() if start <= began < end and key not in listed}
        gone = [(code, id_, began) for (code, id_), began in inside.items() if clients == "*" or code in clients]
    for code, id_, began in gone:
        held.pop((code, id_), None)
        now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
        record = {"clientCode": code, "id": id_, "startTime": began, "_sdc_deleted_at": now}
        yield {"type": "RECORD", "stream": "calls", "version": version, "record": record}
    for call in told:
        held[call["clientCode"], call["id"]] = call["startTime"]
        yield {"type": "RECORD", "stream": "calls", "version": version, "record": call}


def _state(body: Json, version: int, held: Held, known_from: str) -> Json:
    """The state after a page: its token, where the calls begin, and the recent calls."""
    remembered = datetime.fromisoformat(body["meta"]["asOf"]) - REMEMBERED
    known_from = max(known_from, f"{remembered:%Y-%m-%dT%H:%M:%SZ}")
    recent = [[*key, began] for key, began in held.items() if began >= known_from]
    bookmark = {"token": body["page"]["next"], "start": body["meta"]["start"], "version": version}
    return {
        "type": "STATE",
        "value": {"bookmarks": {"calls": bookmark | {"recentFrom": known_from, "recent": recent}}},
    }


def _get(config: Json, path: str, **place: str | None) -> Json:
    """A response in JSON; of the feed, a page. Transient failures are repeated. Raises HTTPError, URLError."""
    query = [("client", code) for code in config.get("clients", ["*"])] + [("limit", str(PAGE_LIMIT))]
    query += [("include", "status")] if config.get("status") else []
    query += [(name, value) for name, value in place.items() if value]
    address = config["url"].rstrip("/") + path + (f"?{urlencode(query)}" if path == "/changes" else "")
    request = Request(address, headers={"X-API-Key": config["key"]} if "key" in config else {})  # noqa: S310
    for attempt in range(ATTEMPTS):
        try:
            with urlopen(request, timeout=TIMEOUT) as response:  # noqa: S310 - the address of the configuration
                body: Json = json.load(response)
                return body
        except URLError as error:  # HTTPError is one of them
            ends = isinstance(error, HTTPError) and error.code not in TRANSIENT
            if ends or attempt == ATTEMPTS - 1:
                raise
            sys.stderr.write(f"tap_callbutton: {error}; it is tried again in {2**attempt} s\n")
            time.sleep(2**attempt)
    raise AssertionError


def _json_of(path: str) -> Json:
    """Read a file with a JSON object. Raises ArgumentTypeError."""
    try:
        content = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise argparse.ArgumentTypeError(f"{path} is not a JSON object")
    return content


if __name__ == "__main__":
    main()
