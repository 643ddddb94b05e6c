"""The query parameters: one table, used to read requests and to describe the API.

Rules: strict. An unknown or repeated parameter, or a value that cannot be read, is a fault that names it; all faults
are reported at once. What the values mean is read in `wanted`, `moments` and `filters`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from gateway.api.moments import RANGES
from gateway.errors import InvalidParameters, ParameterFault
from gateway.formats import FIELDS
from gateway.model import PhoneType, Result

CODE = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)
MOST_CLIENTS = 50
MOST_LIMIT = 1000
FORMATS = ("json", "ndjson", "csv")
INTERVALS = ("none", "hour", "day", "week", "month")
GROUPS = ("result", "campaign", "did", "phoneType", "client")


class Parameter(NamedTuple):
    """One parameter as the OpenAPI document shows it, and the kinds of routes that take it."""

    name: str
    description: str
    schema: Mapping[str, Any]
    routes: str  # of list, call, summary, clients
    example: Any = None


ALL = "list call summary clients"
FILTERED = "list summary"
START = "An RFC 3339 instant, or a date or a date-time without offset, read in `tz`."
TEXT = {"type": "string", "minLength": 1, "maxLength": 200}


def _one_of(names: Sequence[str], **more: str) -> dict[str, Any]:
    return {"type": "string", "enum": list(names), **more}


def _list_of(names: Sequence[str]) -> dict[str, Any]:
    one = "|".join(re.escape(name) for name in names)
    return {"type": "string", "pattern": f"^({one})(,({one}))*$"}


TABLE = (
    Parameter("start", f"{START} Included. Omitted: the beginning of history.", {"type": "string"}, ALL, "2026-11-01"),
    Parameter("end", f"{START} Excluded. Omitted: now.", {"type": "string"}, ALL, "2026-11-02T00:00:00Z"),
    Parameter(
        "range", "Days in `tz`, instead of `start` and `end`; those named `last` end today.", _one_of(list(RANGES)), ALL
    ),
    Parameter(
        "tz", "IANA time zone of dates without offset.", {"type": "string", "default": "UTC"}, ALL, "America/Chicago"
    ),
    Parameter("include", "`status` adds what people said of each call.", _one_of(["status"]), "list call"),
    Parameter(
        "result",
        "Calls with this result, or one of several, with commas.",
        _list_of([one.value for one in Result]),
        FILTERED,
        "busy,no_answer",
    ),
    Parameter("campaign", "Calls of this campaign.", TEXT, FILTERED, "4018"),
    Parameter("did", "Calls to this number.", TEXT, FILTERED, "8005550100"),
    Parameter("ani", "Calls from this number.", TEXT, FILTERED, "3125550161"),
    Parameter("target", "Calls that went on to this number.", TEXT, FILTERED, "7735550158"),
    Parameter(
        "phoneType",
        "Calls from this type of phone, or one of several, with commas.",
        _list_of([one.value for one in PhoneType]),
        FILTERED,
        "cell",
    ),
    Parameter("recorded", "Calls with a recording, or without.", _one_of(["true", "false"]), FILTERED),
    Parameter(
        "minDuration",
        "Calls of at least so many seconds.",
        {"type": "integer", "format": "int64", "minimum": 0, "maximum": 9999999},
        FILTERED,
        30,
    ),
    Parameter("sort", "The order.", _one_of(["startTime", "-startTime"], default="-startTime"), "list"),
    Parameter(
        "limit",
        "The most calls of a page. A page may be shorter; a null `nextCursor` alone is the end. Not for NDJSON, CSV.",
        {"type": "integer", "format": "int64", "minimum": 1, "maximum": MOST_LIMIT, "default": 100},
        "list",
    ),
    Parameter(
        "cursor",
        "`nextCursor` of the page before, alone or with the parameters that page was made from. Not for NDJSON, CSV.",
        {"type": "string"},
        "list",
    ),
    Parameter(
        "fields",
        "Fields of the calls, with commas, dots before names inside: `ani,address.city`. JSON and NDJSON have `id`, "
        "`clientCode` and `startTime` in any case; CSV has these columns in this order.",
        _list_of(FIELDS),
        "list call",
        "ani,result,address.city",
    ),
    Parameter(
        "format",
        "How the calls are written, whatever `Accept` says. NDJSON and CSV are the whole window, streamed.",
        _one_of(FORMATS),
        "list",
    ),
    Parameter(
        "interval",
        "The length of the buckets, which begin on the clock and calendar of `tz`; weeks on Monday.",
        _one_of(INTERVALS, default="none"),
        "summary",
        "day",
    ),
    Parameter("groupBy", "Figures of each group apart.", _one_of(GROUPS), "summary", "result"),
)
CLIENT = Parameter(
    "client",
    f"A client code, up to {MOST_CLIENTS} times; or `*` alone, for every client.",
    {
        "type": "array",
        "items": {"type": "string", "pattern": r"^(\*|[A-Za-z0-9_.-]{1,64})$"},
        "minItems": 1,
        "maxItems": MOST_CLIENTS,
    },
    FILTERED,
    ["8005550100", "8005550101"],
)

PATH = (
    Parameter(
        "code",
        "The client's code, often its toll-free number.",
        {"type": "string", "pattern": "^[A-Za-z0-9_.-]{1,64}$"},
        ALL,
        "8005550100",
    ),
    Parameter("call_id", "The call's `id`.", {"type": "string", "minLength": 1, "maxLength": 200}, "call", "498200007"),
)


def of_route(kind: str) -> tuple[Parameter, ...]:
    """Find the parameters of a kind of route, but for `client`."""
    return tuple(parameter for parameter in TABLE if kind in parameter.routes.split())


def read_query(query: bytes, kind: str, *, with_client: bool = False) -> dict[str, list[str]]:
    """Take a query string apart. Raises InvalidParameters for unknown and repeated parameters."""
    known = {parameter.name for parameter in of_route(kind)} | ({"client"} if with_client else set())
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
    given = values.get("client", ())
    codes = tuple(dict.fromkeys(given))
    detail = None
    if not codes:
        detail = "is required; client=* is every client"
    elif "*" in codes and len(codes) > 1:
        detail = "* stands alone"
    elif len(given) > MOST_CLIENTS:
        detail = f"is given more than {MOST_CLIENTS} times"
    elif codes != ("*",) and any(CODE.fullmatch(one) is None for one in codes):
        detail = "is not a client code: letters, digits, _ . -, up to 64"
    if detail:
        raise InvalidParameters([ParameterFault("client", detail)])
    return codes
