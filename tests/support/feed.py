"""Consumers of the change feed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import httpx

from tests.support.stand import Stand

CODE = "8005550100"
FEED = f"/clients/{CODE}/changes"
LIST = f"/clients/{CODE}/calls"
START = "2026-11-16"
Json = dict[str, Any]


class Copy:
    """A consumer that only applies what it is told."""

    def __init__(self) -> None:
        self.calls: dict[tuple[str, str], Json] = {}
        self.token: str | None = None

    def apply(self, items: list[Json]) -> None:
        for item in items:
            if item["op"] == "remove":
                del self.calls[item["clientCode"], item["id"]]
            elif item["op"] == "upsert":
                self.calls[item["call"]["clientCode"], item["call"]["id"]] = item["call"]
            else:
                self.replace(item)

    def replace(self, item: Json) -> None:
        start, end = (datetime.fromisoformat(item["window"][edge]) for edge in ("start", "end"))
        for key, call in list(self.calls.items()):
            mine = item["clients"] == "*" or key[0] in item["clients"]
            if mine and start <= datetime.fromisoformat(call["startTime"]) < end:
                del self.calls[key]
        self.calls |= {(call["clientCode"], call["id"]): call for call in item["calls"]}

    def follow(self, gateway: Stand, path: str = FEED, **parameters: Any) -> Json:
        """Ask until the copy is up to date. Returns the last response."""
        if self.token is None:
            parameters = {"start": START} | parameters
        while True:
            since = {} if self.token is None else {"since": self.token}
            response = gateway.get(path, **parameters, **since)
            assert response.status_code == 200, response.text
            body: Json = response.json()
            parameters.pop("start", None)
            self.apply(body["data"])
            self.token = body["page"]["next"]
            if body["page"]["upToDate"]:
                assert body["page"]["calls"] == len(self.calls)
                return body


def listed(gateway: Stand, path: str = LIST, **parameters: Any) -> dict[tuple[str, str], Json]:
    """All calls of a list, as the feed shows them."""
    found: dict[tuple[str, str], Json] = {}
    cursor: Json = {}
    while True:
        body = gateway.get(path, start=START, limit=1000, **parameters, **cursor).json()
        for call in body["data"]:
            call["hasRecording"] = call.pop("recordingUrl") is not None
            found[call["clientCode"], call["id"]] = call
        if body["page"]["nextCursor"] is None:
            return found
        cursor = {"cursor": body["page"]["nextCursor"]}


def events(response: httpx.Response) -> Iterator[tuple[str, str, str]]:
    """The events of a stream: id, name and data."""
    found = {"id": "", "event": "", "data": ""}
    for line in response.iter_lines():
        if line:
            name, _, text = line.partition(": ")
            found[name] = text
        else:
            if found["event"] or found["id"]:
                yield found["id"], found["event"], found["data"]
            found = {"id": "", "event": "", "data": ""}
