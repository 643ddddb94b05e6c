"""The server: an ASGI application that answers `xml.jsp`, and misbehaves on request.

Rules:
- StartDate and EndDate are inclusive and compared by wall time; a null EndDate means now.
- `/_simulator/faults` is the management endpoint. GET shows the faults as JSON, PUT replaces them, and PATCH merges
  into them. Only addresses of the allow-list may use it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
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
from gateway.simulator.faults import active, changed_faults, parse_fault, rates_of
from gateway.simulator.request import FLAG_ELEMENT, BadRequest, Request, codes_of, parse_elements, parse_request

PATH = "/cb/main/jsp/xml/xml.jsp"
FAULTS_PATH = "/_simulator/faults"
CHUNK_SIZE = 64 * 1024  # bytes; a large reply takes several sends, as from a real server
DRIP_INTERVAL = 0.05  # seconds between bytes; below any read timeout, so only a deadline ends the reply
MAX_CODES = 1_000_000  # in a POST, if no fault says less
MAX_REQUESTS = 1000  # requests kept for tests; bounds the memory of long runs
DAY = 86_400  # seconds
LONG = timedelta(days=31)  # replies of longer spans are rendered in a thread, so that others are not held up
STATUS_ELEMENTS = frozenset({"ReviewedStatus", "SalesStatus", "Journal"})  # sent if the status flag is true
CDATA_ELEMENTS = frozenset({"CallerName"})  # whose text real servers do not escape
BOUNDS = {"clients": (1, 10_000), "calls_per_day": (0, 1_000_000), "history": (0, 36_500), "latency": (0, 86_400)}
TAG_NAME = re.compile(r"</?\w+")
SECONDS = re.compile(r"(?<=\d)(:\d\d):\d\d *</StartTime>")
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class Options:
    """The behaviour of a simulator.

    `history` is in days, `latency` in seconds; `faults` are texts for `faults.parse_fault`. By default replies have
    the unknown elements, padded values and short ZIP codes of real servers; `plain` keeps to the protocol document.
    """

    seed: int = 1
    clients: int = 5
    calls_per_day: int = 200
    history: float = 730
    latency: float = 0.0
    plain: bool = False
    allowed: tuple[str, ...] = ("127.0.0.1", "::1")
    faults: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, (least, most) in BOUNDS.items():
            if not least <= (value := getattr(self, name)) <= most:
                raise ValueError(f"{value} is not a valid number for {name}: choose one from {least} to {most}")
        for fault in self.faults:
            parse_fault(fault)
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

    @property
    def codes(self) -> list[str]:
        """The codes of the clients that exist."""
        return [client_code(index) for index in range(self.options.clients)]

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
        address = (scope.get("client") or ("unknown", 0))[0]
        if scope["path"] == FAULTS_PATH:
            await self._manage(send, scope["method"], body, address)
            return
        if scope["path"] != PATH or scope["method"] != "POST":
            await self._send(send, 404, b"text/html", [b"<html><body>Not Found</body></html>"])
            return
        self.posts += 1
        await asyncio.sleep(self.options.latency)
        faults: dict[str, str] = {}
        try:
            elements = parse_elements(body)
            faults = active(self.options.faults, codes_of(elements), self._chance)
            await asyncio.sleep(float(faults.get("latency", 0)))
            request = parse_request(elements, faults.get("flag-element", FLAG_ELEMENT), lenient="lenient" in faults)
            self._check(request, faults)
        except BadRequest as error:
            await self._send(send, 200, b"text/xml", [self._failure("ERROR", str(error), address, faults)])
            return
        self.requests.append(request)
        unknown = faults.get("unknown-client") if self._unknown(request) else None
        if "hang" in faults:
            await receive()
        elif not self.options.allows(address) or "unauthorized" in faults or unknown == "unauthorized":
            await self._send(send, 200, b"text/xml", [self._failure("UNAUTHORIZED", "Unknown host", address, faults)])
        elif "error" in faults:
            await self._send(send, 200, b"text/xml", [self._failure("ERROR", "Connection time out", address, faults)])
        elif "date-error" in faults:
            await self._send(send, 200, b"text/xml", [self._failure("ERROR", "Date range not valid", address, faults)])
        elif unknown == "error":
            await self._send(send, 200, b"text/xml", [self._failure("ERROR", "Unknown client", address, faults)])
        elif faults.keys() & {"html", "http-500", "http-503"}:
            status = 500 if "http-500" in faults else 503 if "http-503" in faults else 200
            await self._send(send, status, b"text/html", [b"<!DOCTYPE html><html><body>Error</body></html>"])
        elif "empty" in faults:
            await self._send(send, 200, b"text/xml", [b""])
        else:
            await self._answer(receive, send, request, address, faults)

    async def _manage(self, send: Send, method: str, body: bytes, address: str) -> None:
        """Answer a request to the management endpoint."""
        status, headers = 200, [(b"content-type", b"application/json"), (b"allow", b"GET, PUT, PATCH")]
        try:
            if not self.options.allows(address):
                status = 403
                raise ValueError(f"the address {address} is not allowed")
            if method in ("PUT", "PATCH"):
                self.misbehave(*changed_faults(self.options.faults if method == "PATCH" else (), body))
            elif method != "GET":
                status = 405
                raise ValueError(f"{method} is not a method of this resource: use GET, PUT or PATCH")
            answer: dict[str, Any] = rates_of(self.options.faults)
        except ValueError as error:
            status, answer = max(status, 400), {"error": str(error)}
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode() + b"\n", "more_body": False})

    def _unknown(self, request: Request) -> set[str]:
        """The client codes of a request that do not exist."""
        return {*request.codes} - {"*", *self.codes}

    def _check(self, request: Request, faults: Mapping[str, str]) -> None:
        """Refuse a request that a fault forbids. Raises BadRequest."""
        if faults.get("null-dates") == "refused" and None in (request.start, request.end):
            raise BadRequest("Date range not valid")
        if len(request.codes) > int(faults.get("max-codes", MAX_CODES)):
            raise BadRequest("Too many client codes")
        start, end = request.start or datetime.min, request.end or self._wall(self.clock())  # noqa: DTZ901 - wall time
        if "max-hours" in faults and end - start > timedelta(hours=int(faults["max-hours"])):
            raise BadRequest("Date range not valid")

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

    async def _answer(
        self, receive: Receive, send: Send, request: Request, address: str, faults: Mapping[str, str]
    ) -> None:
        charset = "cp1252" if "charset" in faults else "utf-8"
        pieces_of_reply = self._reply(request, address, faults)
        is_long = request.start is None or self._wall(self.clock()) - request.start > LONG
        text = await asyncio.to_thread("".join, pieces_of_reply) if is_long else "".join(pieces_of_reply)
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
        faults: Collection[str] = (),
    ) -> None:
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", content_type)]})
        for piece in pieces:
            if "reset" in faults:
                await send({"type": "http.response.body", "body": piece[: len(piece) // 2], "more_body": True})
                raise BrokenOff
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _failure(self, status: str, message: str, address: str, faults: Mapping[str, str]) -> bytes:
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

    def _reply(self, request: Request, address: str, faults: Mapping[str, str]) -> Iterator[str]:
        yield self._head(address) + '<GetCallDetailsResponse status="OK">'
        flags = dict(zip(request.codes, request.flags, strict=True))
        everyone = request.codes[0] == "*" or (faults.get("unknown-client") == "all" and self._unknown(request))
        codes = self.codes if everyone else list(flags)[: int(faults.get("cut-codes", MAX_CODES))]
        for code in codes:
            exists = code in self.codes
            calls = list(self._calls(code, request, faults)) if exists else []
            if not calls and ("omit-empty" in faults or (not exists and faults.get("unknown-client") == "omitted")):
                continue
            asked = flags.get(code, flags.get("*", False)) or "always-status" in faults
            status = asked and "no-status" not in faults
            records: list[tuple[float, str]] = [
                (call.start, _call_xml(call, status=status, unknown="unknown" in faults)) for call in calls
            ]
            if "unreadable" in faults:
                records = sorted([*records, *self._unreadable(request)])
            if "wall-order" in faults:
                records.sort(key=lambda record: self._wall(record[0]))
            if "descending" in faults:
                records.reverse()
            if "disorder" in faults:
                random.Random(code).shuffle(records)
            shown = ("X" if "echo" in faults else "") + escape(code)
            listed = [record for _, record in records]
            for part in listed if "client-per-call" in faults and listed else ["".join(listed)]:
                client = f"<Client><ClientCode>{shown}</ClientCode><CallDetails>{part}</CallDetails></Client>"
                yield client * (2 if "duplicates" in faults else 1)
        yield "</GetCallDetailsResponse></CallbuttonService></Callbutton>\n"

    def _unreadable(self, request: Request) -> Iterator[tuple[float, str]]:
        """Two records of each day at 00:30:00: one without id, and one without StartTime."""
        now = self._wall(self.clock())
        last = now if request.end is None else min(request.end, now)
        day = now - timedelta(days=self.options.history) if request.start is None else request.start
        wall = day.replace(hour=0, minute=30, second=0, microsecond=0)
        while wall <= last:
            if wall >= day:
                start = wall.replace(tzinfo=CENTRAL).timestamp()
                yield start, f"<Call><StartTime>{wall:%m/%d/%Y %H:%M:%S}</StartTime></Call>"
                yield start, f'<Call ID="x{wall:%Y%m%d}"><DID>1</DID></Call>'
            wall += timedelta(days=1)

    def _calls(self, code: str, request: Request, faults: Mapping[str, str]) -> Iterator[SimulatedCall]:
        now, options = self.clock(), self.options
        if "null-dates" in faults and None in (request.start, request.end):
            return
        first = now - options.history * DAY
        if request.start is not None:  # an hour earlier, as wall times repeat in autumn
            first = max(first, request.start.replace(tzinfo=CENTRAL).timestamp() - HOUR)
        last = now
        if request.end is not None:
            last = min(last, request.end.replace(tzinfo=CENTRAL, fold=1).timestamp() + HOUR)
        published_by = now - (HOUR if "late" in faults else 0)
        for hour in range(int(first // HOUR), int(last // HOUR) + 1):
            for call in calls_of_hour(options.seed, code, hour, options.calls_per_day, plain=options.plain):
                wall = self._wall(call.start)
                after_start = request.start is None or wall > request.start
                before_end = request.end is None or wall < request.end
                if (
                    (after_start or (wall == request.start and "exclusive-start" not in faults))
                    and (before_end or (wall == request.end and "exclusive-end" not in faults))
                    and call.published <= published_by
                ):
                    yield call

    @staticmethod
    def _wall(instant: float) -> datetime:
        """The wall time of an instant."""
        return datetime.fromtimestamp(instant, UTC).astimezone(CENTRAL).replace(tzinfo=None)


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
