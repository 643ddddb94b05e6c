"""A request, read strictly after the protocol document."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from xml.parsers.expat import ExpatError

import xmltodict

ENVELOPE = ["Callbutton", "CallbuttonService", "GetCallDetailsRequest"]
DATE = "%m/%d/%Y %H:%M:%S"


@dataclass(frozen=True)
class Request:
    """What a POST asks: codes with their status flags, and wall times; None is null."""

    codes: tuple[str, ...]
    flags: tuple[bool, ...]
    start: datetime | None
    end: datetime | None


class BadRequest(Exception):  # noqa: N818 - what the server says of a request
    """The request is not what the protocol document describes; the text is the server's message."""


def read_request(body: bytes, flag_element: str) -> Request:
    """Read a request. Raises BadRequest."""
    elements: list[tuple[str, str | None]] = []

    def take(path: list[tuple[str, Any]], item: Any) -> bool:  # noqa: ANN401 - xmltodict's types
        if [name for name, _ in path[:-1]] != ENVELOPE:
            raise BadRequest("Request not valid")
        elements.append((path[-1][0], item))
        return True

    try:
        xmltodict.parse(body, item_depth=4, item_callback=take)
    except ExpatError as error:
        raise BadRequest("Request is not valid XML") from error
    codes: list[str] = []
    flags: list[bool] = []
    dates: dict[str, datetime | None] = {}
    previous = ""
    for name, text in elements:
        if name == "ClientCode" and not dates and text:
            codes.append(text)
            flags.append(False)
        elif name == flag_element and previous == "ClientCode" and text in ("true", "false"):
            flags[-1] = text == "true"
        elif name in ("StartDate", "EndDate") and codes and name not in dates and previous != "EndDate":
            dates[name] = _date(text)
        else:
            raise BadRequest(f"Element {name} not valid here")
        previous = name
    if not codes:
        raise BadRequest("Client code missing")
    start, end = dates.get("StartDate"), dates.get("EndDate")
    if start is not None and end is not None and start >= end:
        raise BadRequest("Date range not valid")
    return Request(tuple(codes), tuple(flags), start, end)


def _date(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return datetime.strptime(text, DATE)  # noqa: DTZ007 - wall time, as the server keeps it
    except ValueError as error:
        raise BadRequest("Date range not valid") from error
