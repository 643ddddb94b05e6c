"""Requests to an ASGI application in process, without a socket."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NamedTuple
from urllib.parse import urlencode


class BrokenOff(Exception):  # noqa: N818 - an outcome that tests expect
    """The response ended before its last piece."""


class Answer(NamedTuple):
    """A response; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def get(app: Any, path: str, query: dict[str, Any], headers: dict[str, str]) -> Answer:
    """Send a GET request. Raises BrokenOff, or the application's exception once the response has begun."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": urlencode(query, doseq=True).encode(),
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
        "state": {},
    }
    received, finished = False, asyncio.Event()
    status, found, pieces = 0, dict[str, str](), list[bytes]()

    async def receive() -> dict[str, Any]:
        nonlocal received
        if received:  # the consumer stays connected until it has the whole answer
            await finished.wait()
            return {"type": "http.disconnect"}
        received = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
            found.update({name.decode().lower(): value.decode("latin-1") for name, value in message["headers"]})
        elif message["type"] == "http.response.body":
            pieces.append(message["body"])
            if not message.get("more_body"):
                finished.set()

    await app(scope, receive, send)
    if not finished.is_set():
        raise BrokenOff
    return Answer(status, found, b"".join(pieces))
