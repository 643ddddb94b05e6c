"""A client of the Callbutton gateway in one file: lists, the change feed, problems. It needs Python 3.11 and httpx.

It belongs to the contract of the same version (`CONTRACT`). Calls are dictionaries as the gateway sends them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, MutableMapping, Sequence
from typing import Any, Self

import httpx

CONTRACT = "0.1.0"
LONG_POLL = 60  # seconds for which the gateway waits for changes
MAX_PAUSE = 30.0  # seconds between repetitions
TRANSIENT = {429, 500, 502, 503, 504}  # HTTP statuses after which the same request may succeed
Call = dict[str, Any]
Copy = MutableMapping[tuple[str, str], Call]  # calls by clientCode and id


class Problem(Exception):  # noqa: N818 - the name of RFC 9457
    """An answer that is not a success (RFC 9457). `type` tells what happened, such as `/problems/rate-limited`."""

    def __init__(self, response: httpx.Response) -> None:
        body = response.json() if "json" in response.headers.get("content-type", "") else {}
        self.status = response.status_code
        self.type: str = body.get("type", "about:blank")
        self.title: str = body.get("title", response.reason_phrase)
        self.detail: str = body.get("detail") or ""
        self.hint: str = body.get("hint") or ""
        self.request_id: str = body.get("requestId") or ""
        self.errors: list[dict[str, str]] = body.get("errors") or []
        retry_after = response.headers.get("retry-after", "")
        self.retry_after = float(retry_after) if retry_after.isdecimal() else 0.0  # seconds
        super().__init__(f"{self.status} {self.title}: {self.detail}")

    @property
    def transient(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in TRANSIENT


class Client:
    """A connection to the gateway at an address. Parameters are those of the API, such as `start` and `result`."""

    def __init__(self, address: str, key: str = "") -> None:
        headers = {"X-API-Key": key} if key else {}
        self._http = httpx.AsyncClient(base_url=address, headers=headers, timeout=httpx.Timeout(30, read=150))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def get(self, path: str, **parameters: Any) -> dict[str, Any]:  # noqa: ANN401 - text, number or list
        """An answer in JSON. Raises Problem, httpx.TransportError."""
        response = await self._http.get(path, params=parameters)
        if response.status_code != httpx.codes.OK:
            raise Problem(response)
        body: dict[str, Any] = response.json()
        return body

    async def calls(self, clients: Sequence[str], **parameters: Any) -> AsyncIterator[Call]:  # noqa: ANN401
        """All calls of a list, page by page. Raises Problem, httpx.TransportError."""
        query = {"client": list(clients), "limit": 1000} | parameters
        while True:
            body = await self.get("/calls", **query)
            for call in body["data"]:
                yield call
            cursor = body["page"]["nextCursor"]
            if cursor is None:
                return
            query |= {"cursor": cursor}

    async def follow(
        self,
        copy: Copy,
        clients: Sequence[str],
        *,
        since: str | None = None,
        **parameters: Any,  # noqa: ANN401
    ) -> AsyncIterator[dict[str, Any]]:
        """Keep a copy equal to the gateway's calls. Yields `page` after each change; `next` is the token to keep.

        It never ends, and tries again after transient failures. With `upToDate` the copy is exact. `since` is the
        token that belongs to the copy; without it the copy begins again. Raises Problem.
        """
        start, waits, failures = parameters.pop("start", None), False, 0
        while True:
            place = {"since": since} if since else {"start": start} if start else {}
            wait = {"wait": LONG_POLL} if waits else {}
            try:
                body = await self.get("/changes", client=list(clients), **parameters, **place, **wait)
            except Problem as problem:
                if since and any(error.get("parameter") == "since" for error in problem.errors):
                    since = None  # the token is of another key: the next pages replace the copy
                    continue
                if not problem.transient:
                    raise
                failures += 1
                await asyncio.sleep(max(problem.retry_after, min(MAX_PAUSE, 2.0 ** (failures - 1))))
                continue
            except httpx.TransportError:
                failures += 1
                await asyncio.sleep(min(MAX_PAUSE, 2.0 ** (failures - 1)))
                continue
            apply(body["data"], copy)
            page = body["page"]
            failures, since, waits = 0, page["next"], page["upToDate"]
            if waits and page["calls"] != sum(call["startTime"] >= body["meta"]["start"] for call in copy.values()):
                since, waits = None, False
                continue
            yield page


def apply(items: Sequence[dict[str, Any]], copy: Copy) -> None:
    """Apply items of the change feed to a copy, in their order."""
    for item in items:
        if item["op"] == "remove":
            copy.pop((item["clientCode"], item["id"]), None)
        if item["op"] == "replace":
            start, end = item["window"]["start"], item["window"]["end"]
            for key in [key for key, call in copy.items() if start <= call["startTime"] < end]:
                del copy[key]
        for call in item.get("calls", [item["call"]] if "call" in item else []):
            copy[call["clientCode"], call["id"]] = call
