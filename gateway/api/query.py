"""Query parameters: one table, by which requests are parsed and the API is described.

Rules:
- A request is parsed once, into a typed query. Nothing behind it sees the query string.
- Parsing is strict: an unknown or repeated parameter, or a value that cannot be parsed, is a fault that names the
  parameter. One error reports every fault.
- Filters apply to calls as the upstream sent them, before masking; `access` decides which filters a consumer may use.
- A cursor is the signed query of the next page, so it may come alone. Parameters beside it must be those of its query.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl
from zoneinfo import ZoneInfo

from msgspec import Struct
from msgspec.structs import replace

from gateway.api.signing import Signer
from gateway.api.time_ranges import RANGES, bucket_starts, parse_window, parse_zone
from gateway.cache.scans import Position
from gateway.errors import InvalidParameters, ParameterFault
from gateway.formats import FIELDS, FORMATS
from gateway.model import EVERY_CLIENT, Call, PhoneType, Result, Window

CODE_PATTERN = "[A-Za-z0-9_.-]{1,64}"
CODE = re.compile(CODE_PATTERN, re.ASCII)
MAX_CLIENTS = 50  # codes; as many as one POST asks for by default
MAX_LIMIT = 1000  # calls of a page; about 1 MB of JSON
MAX_TEXT = 200  # characters of a text to filter by
TEXT_FILTERS = ("campaign", "did", "ani", "target")
UTC = ZoneInfo("UTC")
INTERVALS = ("none", "hour", "day", "week", "month")
GROUPS: dict[str, Callable[[Call], str | None]] = {
    "result": lambda call: call.result.value,
    "campaign": attrgetter("campaign"),
    "did": attrgetter("did"),
    "phoneType": lambda call: call.phone_type.value,
    "client": attrgetter("client_code"),
}
_Member = TypeVar("_Member", bound=Enum)


class ValueType(NamedTuple):
    """A kind of value: its JSON schema, and its parser, which raises ValueError with the fault."""

    schema: Mapping[str, Any]
    parse: Callable[[str], Any] = str


class Parameter(NamedTuple):
    """One parameter, and the kinds of routes that take it: list, call, summary, clients."""

    name: str
    kind: ValueType
    routes: str
    description: str
    example: Any = None


def _choice(*names: str, **schema: str) -> ValueType:
    def parse(text: str) -> str:
        if text not in names:
            raise ValueError(f"is none of {', '.join(names)}")
        return text

    return ValueType({"type": "string", "enum": list(names), **schema}, parse)


def _list_schema(names: Sequence[str]) -> dict[str, str]:
    one = "|".join(re.escape(name) for name in names)
    return {"type": "string", "pattern": f"^({one})(,({one}))*$"}


def _members(kind: type[_Member]) -> ValueType:
    known = {member.value: member for member in kind}

    def parse(text: str) -> tuple[_Member, ...]:
        words = dict.fromkeys(text.split(","))
        if not words.keys() <= known.keys():
            raise ValueError(f"is none of {', '.join(known)}, nor several of them, separated by commas")
        return tuple(known[word] for word in words)

    return ValueType(_list_schema(list(known)), parse)


def _whole_number(least: int, most: int, **schema: int) -> ValueType:
    def parse(text: str) -> int:
        if re.fullmatch("[0-9]{1,10}", text) is None or not least <= int(text) <= most:
            raise ValueError(f"is not a whole number from {least} to {most}")
        return int(text)

    return ValueType({"type": "integer", "format": "int64", "minimum": least, "maximum": most, **schema}, parse)


def _parse_text(text: str) -> str:
    if not 0 < len(text) <= MAX_TEXT:
        raise ValueError(f"is empty or longer than {MAX_TEXT} characters")
    return text


def _parse_fields(text: str) -> tuple[str, ...]:
    fields = tuple(dict.fromkeys(text.split(",")))
    if unknown := [field[:64] for field in fields if field not in FIELDS]:
        raise ValueError(f"has no {', '.join(unknown[:5])}; there are {', '.join(FIELDS)}")
    return fields


INSTANT = ValueType({"type": "string"})  # parsed by `parse_window`, once the time zone is known
ZONE = ValueType({"type": "string", "default": "UTC"}, parse_zone)
TEXT = ValueType({"type": "string", "minLength": 1, "maxLength": MAX_TEXT}, _parse_text)
FIELD_LIST = ValueType(_list_schema(FIELDS), _parse_fields)
CODES = {"items": {"type": "string", "pattern": rf"^(\*|{CODE_PATTERN})$"}, "minItems": 1, "maxItems": MAX_CLIENTS}
ALL = "list call summary clients"
FILTERED = "list summary"
START = "An RFC 3339 instant, or a date or a date-time without offset, read in `tz`."
CLIENT_TEXT = f"A client code, up to {MAX_CLIENTS} times; or `*` alone, for every client."
RANGE_TEXT = "Days in `tz`, instead of `start` and `end`; those named `last` end today."
RESULT_TEXT = "Calls with one of these results, separated by commas."
PHONE_TEXT = "Calls from one of these types of phone, separated by commas."
LIMIT_TEXT = (
    "The most calls of a page. A page may be shorter; a null `nextCursor` alone is the end. Not for NDJSON, CSV."
)
CURSOR_TEXT = "`nextCursor` of the page before, alone or with the parameters of that page. Not for NDJSON, CSV."
FIELDS_TEXT = (
    "Fields of the calls, separated by commas, with dots before nested names: `ani,address.city`. JSON and NDJSON "
    "always have `id`, `clientCode` and `startTime`; CSV has these columns in this order."
)
INTERVAL_TEXT = "The length of the buckets, which begin on the clock and calendar of `tz`; weeks on Monday."
CLIENT = Parameter("client", ValueType({"type": "array"} | CODES), FILTERED, CLIENT_TEXT, ["8005550100", "8005550101"])
PARAMETERS = (
    Parameter("start", INSTANT, "list call", f"{START} Included. Omitted: the beginning of history.", "2026-11-01"),
    Parameter("start", INSTANT, "summary clients", f"{START} Included. Required without `range`.", "2026-11-01"),
    Parameter("end", INSTANT, ALL, f"{START} Excluded. Omitted: now.", "2026-11-02T00:00:00Z"),
    Parameter("range", _choice(*RANGES), ALL, RANGE_TEXT),
    Parameter("tz", ZONE, ALL, "IANA time zone of dates without offset.", "America/Chicago"),
    Parameter("include", _choice("status"), "list call", "`status` adds the status that people gave each call."),
    Parameter("result", _members(Result), FILTERED, RESULT_TEXT, "busy,no_answer"),
    Parameter("campaign", TEXT, FILTERED, "Calls of this campaign.", "4018"),
    Parameter("did", TEXT, FILTERED, "Calls to this number.", "8005550100"),
    Parameter("ani", TEXT, FILTERED, "Calls from this number.", "3125550161"),
    Parameter("target", TEXT, FILTERED, "Calls forwarded to this number.", "7735550158"),
    Parameter("phoneType", _members(PhoneType), FILTERED, PHONE_TEXT, "cell"),
    Parameter("recorded", _choice("true", "false"), FILTERED, "Calls with a recording, or without."),
    Parameter("minDuration", _whole_number(0, 9_999_999), FILTERED, "Calls of at least this many seconds.", 30),
    Parameter("sort", _choice("startTime", "-startTime", default="-startTime"), "list", "The order."),
    Parameter("limit", _whole_number(1, MAX_LIMIT, default=100), "list", LIMIT_TEXT),
    Parameter("cursor", ValueType({"type": "string"}), "list", CURSOR_TEXT),
    Parameter("fields", FIELD_LIST, "list call", FIELDS_TEXT, "ani,result,address.city"),
    Parameter("format", _choice(*FORMATS), "list", "Overrides `Accept`. NDJSON and CSV stream the whole window."),
    Parameter("interval", _choice(*INTERVALS, default="none"), "summary", INTERVAL_TEXT, "day"),
    Parameter("groupBy", _choice(*GROUPS), "summary", "Figures for each value of this field.", "result"),
)


def parameters_of(route: str) -> tuple[Parameter, ...]:
    """The query parameters of a kind of route, except `client`."""
    return tuple(parameter for parameter in PARAMETERS if route in parameter.routes.split())


class Filters(Struct, frozen=True, array_like=True):
    """The properties that calls must have; an empty or None value does not filter."""

    result: tuple[Result, ...] = ()
    phone_type: tuple[PhoneType, ...] = ()
    campaign: str | None = None
    did: str | None = None
    ani: str | None = None
    target: str | None = None
    recorded: bool | None = None
    min_duration: int | None = None

    @property
    def texts(self) -> dict[str, str]:
        """The texts that a call must have, by field name."""
        return {name: text for name in TEXT_FILTERS if (text := getattr(self, name)) is not None}

    def apply(self, calls: Sequence[Call]) -> Sequence[Call]:
        """The calls that have all of the properties."""
        if (results := self.result) and calls:
            calls = [call for call in calls if call.result in results]
        if (types := self.phone_type) and calls:
            calls = [call for call in calls if call.phone_type in types]
        for name, wanted in self.texts.items():
            read = _TEXT_OF[name]
            calls = [call for call in calls if read(call) == wanted]
        if (recorded := self.recorded) is not None:
            calls = [call for call in calls if (call.recording_url is not None) == recorded]
        if (least := self.min_duration) is not None:
            calls = [call for call in calls if (seconds := call.duration_seconds) is not None and seconds >= least]
        return calls


_TEXT_OF: dict[str, Callable[[Call], str | None]] = {name: attrgetter(name) for name in TEXT_FILTERS}
NO_FILTERS = Filters()


class ListQuery(Struct, frozen=True, array_like=True):
    """Calls in order, paged or as a whole; `after` is where the page begins, `given` the parameters as they came."""

    codes: tuple[str, ...]
    window: Window
    status: bool
    newest_first: bool
    limit: int
    filters: Filters
    fields: tuple[str, ...]
    format: str | None
    given: dict[str, list[str]]
    after: Position | None = None


class CallQuery(Struct, frozen=True):
    """One call, with an optional window to look in."""

    code: str
    window: Window | None
    status: bool
    fields: tuple[str, ...]


class SummaryQuery(Struct, frozen=True):
    """Figures of a window by bucket and group; the buckets begin at `starts`."""

    codes: tuple[str, ...]
    window: Window
    interval: str
    zone: str
    starts: tuple[int, ...]
    group_by: str | None
    filters: Filters


CURSORS = Signer("cursor", ListQuery)


def parse_list_query(
    query_string: bytes, code: str | None, now: float, history_start: int, signing_key: bytes
) -> ListQuery:
    """Parse the query of a list, of the client in the path or those of `client`. Raises InvalidParameters."""
    found = _Found(query_string, "list", with_client=code is None)
    if "cursor" in found.given:
        return _parse_cursor(found, code, signing_key)
    codes, window = found.codes(code), found.window(now, history_start)
    values = found.checked()
    return ListQuery(
        codes=codes,
        window=window,
        status="include" in values,
        newest_first=values.get("sort") != "startTime",
        limit=values.get("limit", 100),
        filters=_filters(values),
        fields=values.get("fields", ()),
        format=values.get("format"),
        given=found.given,
    )


def render_cursor(query: ListQuery, after: Position, signing_key: bytes) -> str:
    """The cursor of the page after a position."""
    return CURSORS.sign(replace(query, after=after), signing_key)


def parse_call_query(query_string: bytes, code: str, now: float, history_start: int) -> CallQuery:
    """Parse the query of one call of the client in the path. Raises InvalidParameters."""
    found = _Found(query_string, "call")
    found.codes(code)
    window = found.window(now, history_start)
    values = found.checked()
    hinted = not found.given.keys().isdisjoint(("start", "end", "range"))
    return CallQuery(code, window if hinted else None, "include" in values, values.get("fields", ()))


def parse_summary_query(query_string: bytes, code: str | None, now: float, history_start: int) -> SummaryQuery:
    """Parse the query of a summary, of the client in the path or those of `client`. Raises InvalidParameters."""
    found = _Found(query_string, "summary", with_client=code is None)
    codes, window = found.codes(code), found.window(now, history_start, bounded=True)
    values = found.checked()
    interval, zone = values.get("interval", "none"), found.zone
    starts = tuple(bucket_starts(window, interval, zone))
    return SummaryQuery(codes, window, interval, str(zone), starts, values.get("groupBy"), _filters(values))


def parse_clients_query(query_string: bytes, now: float, history_start: int) -> Window:
    """Parse the window in which clients had calls. Raises InvalidParameters."""
    found = _Found(query_string, "clients")
    window = found.window(now, history_start, bounded=True)
    found.checked()
    return window


class _Found:
    """The parameters of a request: as given, parsed one by one, and the faults found so far."""

    def __init__(self, query_string: bytes, route: str, *, with_client: bool = False) -> None:
        known = {parameter.name: parameter for parameter in parameters_of(route)}
        if with_client:
            known["client"] = CLIENT
        try:
            pairs = parse_qsl(query_string.decode("ascii"), keep_blank_values=True, errors="strict")
        except ValueError:
            raise InvalidParameters([ParameterFault("query", "the query string is not URL-encoded UTF-8")]) from None
        self.given: dict[str, list[str]] = {}
        self.values: dict[str, Any] = {}
        self.faults: list[ParameterFault] = []
        for name, text in pairs:
            self.given.setdefault(name, []).append(text)
        for name, texts in self.given.items():
            try:
                self.values[name] = _parse(known, name, texts)
            except ValueError as error:
                self.fault(name[:64], error)
        self.zone: ZoneInfo = self.values.get("tz", UTC)

    def fault(self, name: str, detail: object) -> None:
        """Add a fault."""
        self.faults.append(ParameterFault(name, str(detail)))

    def codes(self, code: str | None) -> tuple[str, ...]:
        """The client codes: the one in the path, else those of `client`."""
        try:
            return _parse_codes(self.given.get("client", ())) if code is None else (_parse_code(code),)
        except ValueError as error:
            self.fault("client" if code is None else "code", error)
            return ()

    def window(self, now: float, history_start: int, *, bounded: bool = False) -> Window:
        """The window. One that is `bounded` is read as a whole and must have a beginning."""
        if bounded and self.given.keys().isdisjoint(("start", "range")):
            self.fault("start", "is required, unless range is given: the whole window is read")
        return parse_window(self.values, self.zone, now, history_start, self.faults)

    def checked(self) -> dict[str, Any]:
        """The parsed values. Raises InvalidParameters with every fault."""
        if self.faults:
            raise InvalidParameters(self.faults)
        return self.values


def _parse(known: Mapping[str, Parameter], name: str, texts: list[str]) -> object:
    if name not in known:
        raise ValueError(f"is not a parameter here; there are {', '.join(sorted(known))}")
    if name == "client":
        return texts
    if len(texts) > 1:
        raise ValueError("is given more than once")
    return known[name].kind.parse(texts[0])


def _parse_code(text: str) -> str:
    if CODE.fullmatch(text) is None:
        raise ValueError("is not a client code: letters, digits, _ . -, up to 64")
    return text


def _parse_codes(texts: Sequence[str]) -> tuple[str, ...]:
    codes = tuple(dict.fromkeys(texts))
    if not codes:
        raise ValueError("is required; client=* is every client")
    if len(texts) > MAX_CLIENTS:
        raise ValueError(f"is given more than {MAX_CLIENTS} times")
    if EVERY_CLIENT not in codes:
        return tuple(map(_parse_code, codes))
    if len(codes) > 1:
        raise ValueError("cannot combine * with client codes")
    return codes


def _parse_cursor(found: _Found, code: str | None, signing_key: bytes) -> ListQuery:
    beside = {name: texts for name, texts in found.given.items() if name != "cursor"}
    codes = found.codes(code) if code is not None or "client" in beside else None
    cursor = found.checked()["cursor"]
    try:
        query = CURSORS.verify(cursor, signing_key)
        if (codes is not None and codes != query.codes) or (beside and beside != query.given):
            found.fault("cursor", "was made with other parameters; send it alone, or with the same")
    except ValueError:
        found.fault("cursor", "is not a cursor of this gateway; start again without it")
    found.checked()
    return query


def _filters(values: Mapping[str, Any]) -> Filters:
    return Filters(
        result=values.get("result", ()),
        phone_type=values.get("phoneType", ()),
        recorded=None if "recorded" not in values else values["recorded"] == "true",
        min_duration=values.get("minDuration"),
        **{name: values.get(name) for name in TEXT_FILTERS},
    )
