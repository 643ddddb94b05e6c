"""Requests, parsed strictly by the protocol document."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from xml.parsers.expat import ExpatError

import xmltodict

ENVELOPE = ["Callbutton", "CallbuttonService", "GetCallDetailsRequest"]
DATE_FORMAT = "%m/%d/%Y %H:%M:%S"
FLAG_ELEMENT = "StatusFlag"  # the document describes the flag and does not name its element
Elements = list[tuple[str, str | None]]


@dataclass(frozen=True)
class Request:
    """The body of a POST: client codes, the status flag of each, and Central wall times; None is a null date."""

    codes: tuple[str, ...]
    flags: tuple[bool, ...]
    start: datetime | None
    end: datetime | None


class BadRequest(Exception):  # noqa: N818 - named like the HTTP status
    """The request does not follow the protocol document; the text is the error message of the reply."""


def parse_elements(body: bytes) -> Elements:
    """Parse the names and texts in the request element. Raises BadRequest."""
    elements: Elements = []

    def take(path: list[tuple[str, Any]], item: Any) -> bool:  # noqa: ANN401 - xmltodict's types
        if [name for name, _ in path[:-1]] != ENVELOPE:
            raise BadRequest("Request not valid")
        elements.append((path[-1][0], item))
        return True

    try:
        xmltodict.parse(body, item_depth=4, item_callback=take)
    except ExpatError as error:
        raise BadRequest("Request is not valid XML") from error
    return elements


def codes_of(elements: Elements) -> list[str]:
    """The client codes of a request."""
    return [text for name, text in elements if name == "ClientCode" and text]


def parse_request(elements: Elements, flag_element: str = FLAG_ELEMENT, *, lenient: bool = False) -> Request:
    """Parse a request whose status flags are in elements of this name. Raises BadRequest.

    With `lenient`, unknown elements are ignored, and StartDate may be after EndDate.
    """
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
        elif not lenient or name in ("ClientCode", "StartDate", "EndDate", flag_element):
            raise BadRequest(f"Element {name} not valid here")
        previous = name
    if not codes:
        raise BadRequest("Client code missing")
    start, end = dates.get("StartDate"), dates.get("EndDate")
    if start is not None and end is not None and start >= end and not lenient:
        raise BadRequest("Date range not valid")
    return Request(tuple(codes), tuple(flags), start, end)


def _date(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return datetime.strptime(text, DATE_FORMAT)  # noqa: DTZ007 - Central wall time
    except ValueError as error:
        raise BadRequest("Date range not valid") from error
