"""The server: an ASGI application that answers `xml.jsp`, and misbehaves on request.

StartDate and EndDate are inclusive and compared by wall time; a null EndDate means now.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address, ip_network
from typing import Any
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

from gateway.simulator.calls import (
    CENTRAL,
    HOUR,
    RECORDINGS,
    Element,
    SimulatedCall,
    calls_of_hour,
    client_code,
    part_of,
    wav,
)
from gateway.simulator.request import BadRequest, Request, parse_request

PATH = "/cb/main/jsp/xml/xml.jsp"
CHUNK_SIZE = 64 * 1024  # bytes; a large reply takes several sends, as from a real server
DRIP_INTERVAL = 0.05  # seconds between bytes; below any read timeout, so only a deadline ends the reply
MAX_REQUESTS = 1000  # requests kept for tests; bounds the memory of long runs
DAY = 86_400  # seconds
STATUS_ELEMENTS = frozenset({"ReviewedStatus", "SalesStatus", "Journal"})  # sent if the status flag is true
CDATA_ELEMENTS = frozenset({"CallerName"})  # whose text real servers do not escape
BOUNDS = {"clients": (1, 10_000), "calls_per_day": (0, 1_000_000), "history": (0, 36_500), "latency": (0, 86_400)}
RATE = re.compile(r"\d+(\.\d*)?|\.\d+", re.ASCII)
TAG_NAME = re.compile(r"</?\w+")
SECONDS = re.compile(r"(?<=\d)(:\d\d):\d\d *</StartTime>")
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
FAULTS = {
    "ampersand": "a bare & and references of HTML in values",
    "charset": "windows-1252 bytes, not announced in a header or declaration",
    "date-error": "ERROR about the date range",
    "descending": "newest calls first",
    "disorder": "calls in random order",
    "doctype": "a DOCTYPE before the root",
    "drip": "one byte at a time",
    "duplicates": "every Client element twice",
    "echo": "client codes echoed with an X in front",
    "empty": "200 without a body",
    "error": "ERROR: Connection time out",
    "hang": "no reply",
    "html": "200 with an HTML page",
    "http-500": "HTTP status 500",
    "http-503": "HTTP status 503",
    "lower-case": "element names in lower case",
    "no-status": "the status flag is ignored",
    "other-form": "StartTimes with AM or PM and without seconds",
    "omit-empty": "clients without calls are left out",
    "other-spelling": "failures in GetCallDetailsResponse instead of GetCallDetailResponse",
    "reset": "the connection is closed in the middle of the body",
    "truncate": "the body ends in the middle",
    "unauthorized": "UNAUTHORIZED",
    "unknown": "more unknown elements, one of them nested",
    "unreadable": "two more records a day, one without id and one without StartTime",
}


@dataclass(frozen=True)
class Options:
    """The behaviour of a simulator.

    `history` is in days, `latency` in seconds. A fault is `name[@client][:rate]`. By default replies have the
    unknown elements, padded values and short ZIP codes of real servers; `plain` keeps to the protocol document.
    """

    seed: int = 1
    clients: int = 5
    calls_per_day: int = 200
    history: float = 730
    latency: float = 0.0
    plain: bool = False
    allowed: tuple[str, ...] = ("127.0.0.1", "::1")
    faults: tuple[str, ...] = ()
    flag_element: str = "StatusFlag"

    def __post_init__(self) -> None:
        for name, (least, most) in BOUNDS.items():
            if not least <= (value := getattr(self, name)) <= most:
                raise ValueError(f"{value} is not a valid number for {name}: choose one from {least} to {most}")
        for fault in self.faults:
            name, colon, rate = fault.partition(":")
            if name.partition("@")[0] not in FAULTS:
                raise ValueError(f"{fault!r} is not a fault; choose from {', '.join(FAULTS)}")
            if colon and not (RATE.fullmatch(rate) and float(rate) <= 1):
                raise ValueError(f"the rate of {fault!r} is not a number from 0 to 1")
        for allowed in self.allowed:
            ip_network(allowed)

    def allows(self, address: str) -> bool:
        """Return whether the allow-list contains the address or a network around it."""
        return any(ip_address(address) in ip_network(allowed) for allowed in self.allowed)


class BrokenOff(Exception):  # noqa: N818 - an instruction to the HTTP server, which closes the connection
    """Raised to close the connection in the middle of a reply."""


@dataclass
class Simulator:
    """The ASGI application. `requests` are the latest valid requests, `posts` counts all POSTs."""

    options: Options
    clock: Callable[[], float] = time.time
    posts: int = 0
    requests: deque[Request] = field(default_factory=lambda: deque(maxlen=MAX_REQUESTS))

    def __post_init__(self) -> None:
        self._chance = random.Random(self.options.seed)

    def misbehave(self, *faults: str) -> None:
        """Replace the faults."""
        self.options = replace(self.options, faults=faults)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer a POST, or a GET of a recording."""
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        if scope["path"] == RECORDINGS and scope["method"] == "GET":
            await self._play(scope, send)
            return
        if scope["path"] != PATH or scope["method"] != "POST":
            await self._send(send, 404, b"text/html", [b"<html><body>Not Found</body></html>"])
            return
        self.posts += 1
        await asyncio.sleep(self.options.latency)
        address = (scope.get("client") or ("unknown", 0))[0]
        try:
            request = parse_request(body, self.options.flag_element)
        except BadRequest as error:
            await self._send(send, 200, b"text/xml", [self._failure("ERROR", str(error), address, set())])
            return
        self.requests.append(request)
        faults = self._faults(request.codes)
        if "hang" in faults:
            await receive()
        elif not self.options.allows(address) or "unauthorized" in faults:
            await self._send(send, 200, b"text/xml", [self._failure("UNAUTHORIZED", "Unknown host", address, faults)])
        elif "error" in faults:
            await self._send(send, 200, b"text/xml", [self._failure("ERROR", "Connection time out", address, faults)])
        elif "date-error" in faults:
            await self._send(send, 200, b"text/xml", [self._failure("ERROR", "Date range not valid", address, faults)])
        elif faults & {"html", "http-500", "http-503"}:
            status = 500 if "http-500" in faults else 503 if "http-503" in faults else 200
            await self._send(send, status, b"text/html", [b"<!DOCTYPE html><html><body>Error</body></html>"])
        elif "empty" in faults:
            await self._send(send, 200, b"text/xml", [b""])
        else:
            await self._answer(receive, send, request, address, faults)

    async def _play(self, scope: dict[str, Any], send: Send) -> None:
        """Send the recording of the call whose id is in the query, or the range of it that the request asks for."""
        identity = parse_qs(scope["query_string"].decode("latin-1")).get("id", [""])[0]
        body = wav(identity)
        part = part_of(body, dict(scope["headers"]).get(b"range", b""))
        first, after = part or (0, len(body))
        headers = [
            (b"content-type", b"audio/wav"),
            (b"accept-ranges", b"bytes"),
            (b"content-length", b"%d" % (after - first)),
        ]
        if part:
            headers.append((b"content-range", b"bytes %d-%d/%d" % (first, after - 1, len(body))))
        await send({"type": "http.response.start", "status": 206 if part else 200, "headers": headers})
        await send({"type": "http.response.body", "body": body[first:after], "more_body": False})

    def _faults(self, codes: Sequence[str]) -> set[str]:
        active = set()
        for fault in self.options.faults:
            named, _, rate = fault.partition(":")
            name, _, client = named.partition("@")
            if (not client or client in codes) and (not rate or self._chance.random() < float(rate)):
                active.add(name)
        return active

    async def _answer(self, receive: Receive, send: Send, request: Request, address: str, faults: set[str]) -> None:
        charset = "cp1252" if "charset" in faults else "utf-8"
        text = "".join(self._reply(request, address, faults))
        if "ampersand" in faults:
            text = text.replace("</CallerName>", "</CallerName><Company>R&D&nbsp;Caf&eacute;</Company>")
        if "other-form" in faults:
            text = SECONDS.sub(r"\1 PM</StartTime>", text)
        if "lower-case" in faults:
            text = TAG_NAME.sub(lambda tag: tag[0].lower(), text)
        if "doctype" in faults:
            text = text.replace("?>", '?><!DOCTYPE Callbutton SYSTEM "callbutton.dtd">', 1)
        body = text.encode(charset, "replace")
        if "truncate" in faults:
            body = body[: len(body) // 2]
        content_type = b"text/xml" if "charset" in faults else b"text/xml; charset=utf-8"
        if "drip" in faults:
            await self._drip(receive, send, content_type, body)
        else:
            pieces = [body[at : at + CHUNK_SIZE] for at in range(0, len(body), CHUNK_SIZE)]
            await self._send(send, 200, content_type, pieces, faults)

    async def _drip(self, receive: Receive, send: Send, content_type: bytes, body: bytes) -> None:
        """Send one byte at a time until the client disconnects."""
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", content_type)]})
        for at in range(len(body)):
            await send({"type": "http.response.body", "body": body[at : at + 1], "more_body": True})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(receive(), DRIP_INTERVAL)
                return
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send(
        self,
        send: Send,
        status: int,
        content_type: bytes,
        pieces: Sequence[bytes],
        faults: frozenset[str] | set[str] = frozenset(),
    ) -> None:
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", content_type)]})
        for piece in pieces:
            if "reset" in faults:
                await send({"type": "http.response.body", "body": piece[: len(piece) // 2], "more_body": True})
                raise BrokenOff
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _failure(self, status: str, message: str, address: str, faults: set[str]) -> bytes:
        element = "GetCallDetailsResponse" if "other-spelling" in faults else "GetCallDetailResponse"
        return (
            f"{self._head(address)}<{element} status={status!r}>{escape(message)}</{element}>"
            "</CallbuttonService></Callbutton>"
        ).encode()

    def _head(self, address: str) -> str:
        return (
            '<?xml version="1.0"?>\n<Callbutton version="B"><Username>partner</Username>'
            f"<Authentication>{escape(address)}</Authentication><CallbuttonService>"
        )

    def _reply(self, request: Request, address: str, faults: set[str]) -> Iterator[str]:
        yield self._head(address) + '<GetCallDetailsResponse status="OK">'
        flags = dict(zip(request.codes, request.flags, strict=True))
        everyone = [client_code(index) for index in range(self.options.clients)]
        for code in everyone if request.codes[0] == "*" else list(flags):
            calls = list(self._calls(code, request)) if code in everyone else []
            if "omit-empty" in faults and not calls:
                continue
            status = flags.get(code, flags.get("*", False)) and "no-status" not in faults
            records: list[tuple[float, str]] = [
                (call.start, _call_xml(call, status=status, unknown="unknown" in faults)) for call in calls
            ]
            if "unreadable" in faults:
                records = sorted([*records, *self._unreadable(request)])
            if "descending" in faults:
                records.reverse()
            if "disorder" in faults:
                random.Random(code).shuffle(records)
            listed = "".join(record for _, record in records)
            shown = ("X" if "echo" in faults else "") + escape(code)
            client = f"<Client><ClientCode>{shown}</ClientCode><CallDetails>{listed}</CallDetails></Client>"
            yield client * (2 if "duplicates" in faults else 1)
        yield "</GetCallDetailsResponse></CallbuttonService></Callbutton>\n"

    def _unreadable(self, request: Request) -> Iterator[tuple[float, str]]:
        """Two records of each day at 00:30:00: one without id, and one without StartTime."""
        now = datetime.fromtimestamp(self.clock(), UTC).astimezone(CENTRAL).replace(tzinfo=None)
        last = now if request.end is None else min(request.end, now)
        day = now - timedelta(days=self.options.history) if request.start is None else request.start
        wall = day.replace(hour=0, minute=30, second=0, microsecond=0)
        while wall <= last:
            if wall >= day:
                start = wall.replace(tzinfo=CENTRAL).timestamp()
                yield start, f"<Call><StartTime>{wall:%m/%d/%Y %H:%M:%S}</StartTime></Call>"
                yield start, f'<Call ID="x{wall:%Y%m%d}"><DID>1</DID></Call>'
            wall += timedelta(days=1)

    def _calls(self, code: str, request: Request) -> Iterator[SimulatedCall]:
        now, options = self.clock(), self.options
        first = now - options.history * DAY
        if request.start is not None:  # an hour earlier, as wall times repeat in autumn
            first = max(first, request.start.replace(tzinfo=CENTRAL).timestamp() - HOUR)
        last = now
        if request.end is not None:
            last = min(last, request.end.replace(tzinfo=CENTRAL, fold=1).timestamp() + HOUR)
        for hour in range(int(first // HOUR), int(last // HOUR) + 1):
            for call in calls_of_hour(options.seed, code, hour, options.calls_per_day, plain=options.plain):
                wall = datetime.fromtimestamp(call.start, UTC).astimezone(CENTRAL).replace(tzinfo=None)
                after_start = request.start is None or wall >= request.start
                before_end = request.end is None or wall <= request.end
                if after_start and before_end and call.published <= now:
                    yield call


def _call_xml(call: SimulatedCall, *, status: bool, unknown: bool) -> str:
    """Return the Call element, with the elements of the fault `unknown` at the end."""
    body = _elements_xml(call.elements)
    if call.address:
        body += f"<Address>{_elements_xml(call.address)}</Address>"
    body += _elements_xml(element for element in call.after_address if status or element[0] not in STATUS_ELEMENTS)
    if unknown:
        body += "<Whisper>hello</Whisper><Carrier><Name>Acme</Name><Lata>358</Lata></Carrier>"
    return f'<Call ID="{call.identity}">{body}</Call>'


def _elements_xml(elements: Iterable[Element]) -> str:
    return "".join(
        f"<{name}>{f'<![CDATA[{text}]]>' if name in CDATA_ELEMENTS else escape(text)}</{name}>"
        for name, text in elements
    )


def create(options: Options, clock: Callable[[], float] = time.time) -> Simulator:
    """Return a simulator."""
    return Simulator(options, clock)
