"""Reference servers for the benchmarks.

- `raw` sends a fixed response from memory, on stock uvicorn.
- `minimal` is FastAPI with httpx, xmltodict and a cache keyed by URL.
- `upstream` is a fast XML server that returns 100 calls of the requested day.

`benchmarks.serving` runs each in a separate process: `python -m benchmarks.peers raw PORT FILE`.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import uvicorn

from benchmarks.replies import reply

CENTRAL = ZoneInfo("America/Chicago")
TTL = 15.0  # seconds
POST = """<?xml version="1.0"?><Callbutton version="B"><CallbuttonService><GetCallDetailsRequest>
<ClientCode>{code}</ClientCode><StartDate>{start}</StartDate><EndDate>{end}</EndDate>
</GetCallDetailsRequest></CallbuttonService></Callbutton>"""
Send = Callable[[dict[str, Any]], Awaitable[None]]


def raw(held: dict[str, Any]) -> Callable[..., Awaitable[None]]:
    """Make an ASGI application that sends the same response to every request."""
    headers = [(name.encode(), value.encode()) for name, value in held["headers"]]
    start = {"type": "http.response.start", "status": 200, "headers": headers}
    body = {"type": "http.response.body", "body": held["body"].encode()}

    async def application(scope: dict[str, Any], receive: object, send: Send) -> None:  # noqa: ARG001 - ASGI
        await send(start)
        await send(body)

    return application


def minimal(upstream: str) -> Any:  # noqa: ANN401 - FastAPI is not typed as ASGI here
    """Make a gateway with the least code that works."""
    import httpx
    import xmltodict
    from fastapi import FastAPI

    app = FastAPI()
    client = httpx.AsyncClient(timeout=30)
    cache: dict[str, tuple[float, dict[str, Any]]] = {}

    def wall(text: str) -> str:
        return datetime.fromisoformat(text).astimezone(CENTRAL).strftime("%m/%d/%Y %H:%M:%S")

    @app.get("/clients/{code}/calls")
    async def calls(code: str, start: str, end: str | None = None, limit: int = 100) -> dict[str, Any]:
        key = f"{code}?{start}&{end}&{limit}"
        if key in cache and time.monotonic() - cache[key][0] < TTL:
            return cache[key][1]
        body = POST.format(code=code, start=wall(start), end=wall(end) if end else "")
        reply = await client.post(upstream, content=body, headers={"Content-Type": "text/xml"})
        parsed = xmltodict.parse(reply.text, force_list=("Client", "Call"))
        response = parsed["Callbutton"]["CallbuttonService"]["GetCallDetailsResponse"]
        found = [call for one in response["Client"] for call in (one["CallDetails"] or {}).get("Call", [])]
        for call in found:
            moment = datetime.strptime(call["StartTime"], "%m/%d/%Y %H:%M:%S").replace(tzinfo=CENTRAL)
            call["StartTime"] = moment.isoformat()
        answer = {"data": found[:limit]}
        cache[key] = time.monotonic(), answer
        return answer

    return app


def upstream() -> Callable[..., Awaitable[None]]:
    """Make an XML server that returns 100 calls for each day, in the layout `field`."""
    document = reply("field", 100).decode()
    template = re.sub(r"<StartTime>[^<]*", "<StartTime>DATE 12:34:56", document)
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/xml")]}

    async def application(scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Send) -> None:  # noqa: ARG001
        body = (await receive())["body"].decode()
        date = re.search(r"<EndDate>(\S+)", body)
        assert date
        await send(start)
        await send({"type": "http.response.body", "body": template.replace("DATE", date[1]).encode()})

    return application


def main() -> None:
    kind, port, given = sys.argv[1:4]
    match kind:
        case "raw":
            application = raw(json.loads(Path(given).read_text("utf-8")))
        case "upstream":
            application = upstream()
        case _:
            application = minimal(given)
    uvicorn.run(application, host="127.0.0.1", port=int(port), access_log=kind == "minimal", lifespan="off")


if __name__ == "__main__":
    main()
