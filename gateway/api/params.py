"""The query parameters of the call lists: one table, used to read requests and to describe the API.

Rules: strict. An unknown or repeated parameter, or a value that cannot be read, is a fault that names it; all faults
are reported at once. Dates and date-times without offset are read in `tz`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import parse_qsl
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from msgspec import Struct

from gateway.errors import InvalidParameters, ParameterFault
from gateway.model import Window

CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
MOMENT = re.compile(
    r"(\d{4}-\d{2}-\d{2})(?:[Tt ](\d{2}:\d{2}(?::\d{2})?)(\.\d{1,9})?([Zz]|[+ -]\d{2}:\d{2})?)?", re.ASCII
)
MOST_CLIENTS = 50
MOST_LIMIT = 1000
EARLIEST, LATEST = datetime(1900, 1, 2, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)


class Parameter(NamedTuple):
    """One parameter as the OpenAPI document shows it."""

    name: str
    description: str
    schema: Mapping[str, Any]
    example: Any = None


START = "An RFC 3339 instant, or a date or a date-time without offset, read in `tz`."
TABLE = (
    Parameter("start", f"{START} Included. Omitted: the beginning of history.", {"type": "string"}, "2026-11-01"),
    Parameter("end", f"{START} Excluded. Omitted: now.", {"type": "string"}, "2026-11-02T00:00:00Z"),
    Parameter("tz", "IANA time zone of dates without offset.", {"type": "string", "default": "UTC"}, "America/Chicago"),
    Parameter("include", "`status` adds what people said of each call.", {"type": "string", "enum": ["status"]}),
    Parameter("sort", "The order.", {"type": "string", "enum": ["startTime", "-startTime"], "default": "-startTime"}),
    Parameter(
        "limit",
        "The most calls of a page. A page may be shorter; a null `nextCursor` alone is the end.",
        {"type": "integer", "minimum": 1, "maximum": MOST_LIMIT, "default": 100},
    ),
    Parameter(
        "cursor",
        "`nextCursor` of the page before, alone or with the parameters that page was made from.",
        {"type": "string"},
    ),
)
CLIENT = Parameter(
    "client",
    f"A client code, up to {MOST_CLIENTS} times; or `*` alone, for every client.",
    {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MOST_CLIENTS},
    ["8005550100", "8005550101"],
)


class ListRequest(Struct, frozen=True):
    """What a consumer asks of a call list."""

    codes: tuple[str, ...]
    window: Window
    status: bool
    newest_first: bool
    limit: int


def read_query(query: bytes, *, with_client: bool) -> dict[str, list[str]]:
    """Take a query string apart. Raises InvalidParameters for unknown and repeated parameters."""
    known = {parameter.name for parameter in TABLE} | ({"client"} if with_client else set())
    values: dict[str, list[str]] = {}
    faults = []
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict")
    except ValueError:
        raise InvalidParameters([ParameterFault("query", "the query string is not URL-encoded UTF-8")]) from None
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    for name, found in values.items():
        if name not in known:
            faults.append(ParameterFault(name[:64], f"is not a parameter here; there are {', '.join(sorted(known))}"))
        elif len(found) > 1 and name != "client":
            faults.append(ParameterFault(name, "is given more than once"))
    if faults:
        raise InvalidParameters(faults)
    return values


def read_codes(code: str | None, values: Mapping[str, list[str]]) -> tuple[str, ...]:
    """Read the client codes of a path or of `client`. Raises InvalidParameters."""
    if code is not None:
        if CODE.fullmatch(code) is None:
            raise InvalidParameters([ParameterFault("code", "is not a client code: letters, digits, _ . -, up to 64")])
        return (code,)
    codes = tuple(dict.fromkeys(values.get("client", ())))
    detail = None
    if not codes:
        detail = "is required; client=* is every client"
    elif "*" in codes and len(codes) > 1:
        detail = "* stands alone"
    elif len(codes) > MOST_CLIENTS:
        detail = f"is given more than {MOST_CLIENTS} times"
    elif codes != ("*",) and any(CODE.fullmatch(one) is None for one in codes):
        detail = "is not a client code: letters, digits, _ . -, up to 64"
    if detail:
        raise InvalidParameters([ParameterFault("client", detail)])
    return codes


def read_list(codes: tuple[str, ...], values: Mapping[str, list[str]], now: float, history_start: int) -> ListRequest:
    """Read all but the cursor. Raises InvalidParameters with every fault."""
    faults: list[ParameterFault] = []
    single = {name: found[0] for name, found in values.items()}
    zone = UTC if (name := single.get("tz", "UTC")) == "UTC" else _zone(name, faults)
    start = max(history_start, _moment("start", single.get("start"), zone, faults, default=history_start))
    end = _moment("end", single.get("end"), zone, faults, default=math.ceil(now))
    if single.get("include", "status") != "status":
        faults.append(ParameterFault("include", "is not status, the only thing that can be included"))
    sort = single.get("sort", "-startTime")
    if sort not in ("startTime", "-startTime"):
        faults.append(ParameterFault("sort", "is neither startTime nor -startTime"))
    limit = single.get("limit", "100")
    if re.fullmatch(r"[1-9][0-9]{0,3}", limit) is None or not 1 <= int(limit) <= MOST_LIMIT:
        faults.append(ParameterFault("limit", f"is not a whole number from 1 to {MOST_LIMIT}"))
    if not faults and start >= end:
        faults.append(ParameterFault("start", "is not before end"))
    if faults:
        raise InvalidParameters(faults)
    return ListRequest(codes, Window(start, end), "include" in single, sort == "-startTime", int(limit))


def _zone(name: str, faults: list[ParameterFault]) -> Any:  # noqa: ANN401 - a tzinfo of either kind
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        faults.append(ParameterFault("tz", "is not an IANA time zone such as America/Chicago"))
        return UTC


def _moment(name: str, text: str | None, zone: Any, faults: list[ParameterFault], default: int) -> int:  # noqa: ANN401
    """Read a moment as whole seconds since 1970; a fraction rounds outwards."""
    if text is None:
        return default
    match = MOMENT.fullmatch(text)
    if match is not None:
        date, clock, fraction, offset = match.groups()
        # A plus sign that was not encoded arrives as a space.
        marked = "+00:00" if offset in ("Z", "z") else (offset or "").replace(" ", "+")
        try:
            moment = datetime.fromisoformat(f"{date}T{clock or '00:00'}{marked}")
            moment = moment if marked else moment.replace(tzinfo=zone)
            if EARLIEST <= moment.astimezone(UTC) <= LATEST:
                return int(moment.timestamp()) + (name == "end" and bool((fraction or "").strip(".0")))
        except (ValueError, OverflowError):
            pass
    faults.append(ParameterFault(name, "is not a date (2026-11-01) or an instant (2026-11-01T06:30:00Z)"))
    return default
