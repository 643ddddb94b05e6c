"""Query parameters: one table, which parses requests and describes the API.

Rules:
- A query string is parsed once, to a typed query. Handlers see only the typed query.
- Parsing is strict: an unknown or repeated parameter, or an invalid value, is a fault. One error reports all faults.
- Filters apply to calls before masking. `access` decides which filters a consumer may use.
- A cursor is the signed query of the next page, so it is complete without other parameters. If others are sent with
  it, they must be equal to those of its query.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple
from urllib.parse import parse_qsl
from zoneinfo import ZoneInfo

from msgspec import Struct
from msgspec.structs import replace

from gateway.api.signing import Signer
from gateway.api.time_ranges import RANGES, bucket_starts, parse_window, parse_zone
from gateway.cache.scans import Position
from gateway.errors import InvalidParameters, ParameterFault
from gateway.formats import FIELDS, FORMATS
from gateway.model import EVERY_CLIENT, Call, CallResult, PhoneType, Window

CODE_PATTERN = "[A-Za-z0-9_.-]{1,64}"
CODE = re.compile(CODE_PATTERN, re.ASCII)
MAX_CLIENTS = 50  # codes in a query; as many as one POST takes by default (GATEWAY_UPSTREAM_BATCH)
MAX_LIMIT = 1000  # calls on a page; about 1 MB of JSON
MAX_TEXT = 200  # characters of a text filter; telephone numbers and campaign ids have under 20
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


class ValueType(NamedTuple):
    """A type of value: its JSON schema, and its parser, which raises ValueError with the fault.

    The schema has no `default`: generated clients would send it. The `title` of an enum is the name of its component.
    """

    schema: Mapping[str, Any]
    parse: Callable[[str], Any] = str


class Parameter(NamedTuple):
    """One parameter. `routes` are the kinds of routes that take it: list, call, summary, clients."""

    name: str
    kind: ValueType
    routes: str
    description: str
    example: Any = None


def _choice(title: str, *names: str, **extensions: list[str]) -> ValueType:
    def parse(text: str) -> str:
        if text not in names:
            raise ValueError(f"is not one of {', '.join(names)}")
        return text

    return ValueType({"title": title, "type": "string", "enum": list(names), **extensions}, parse)


def _words(title: str, known: Mapping[str, Any]) -> ValueType:
    """A list of known words. Its value has the meaning of each word once."""

    def parse(text: str) -> tuple[Any, ...]:
        words = dict.fromkeys(text.split(","))
        if unknown := [word[:64] for word in words if word not in known]:
            raise ValueError(f"has unknown values {', '.join(unknown[:5])}; the values are {', '.join(known)}")
        return tuple(known[word] for word in words)

    return ValueType({"type": "array", "items": _choice(title, *known).schema, "minItems": 1}, parse)


def _whole_number(minimum: int, maximum: int) -> ValueType:
    def parse(text: str) -> int:
        if re.fullmatch("[0-9]{1,10}", text) is None or not minimum <= int(text) <= maximum:
            raise ValueError(f"is not a whole number from {minimum} to {maximum}")
        return int(text)

    return ValueType({"type": "integer", "format": "int32", "minimum": minimum, "maximum": maximum}, parse)


def _parse_text(text: str) -> str:
    if not 0 < len(text) <= MAX_TEXT:
        raise ValueError(f"is empty or longer than {MAX_TEXT} characters")
    return text


INSTANT = ValueType({"type": "string"})  # parsed by `parse_window`, once the time zone is known
ZONE = ValueType({"type": "string"}, parse_zone)
TEXT = ValueType({"type": "string", "minLength": 1, "maxLength": MAX_TEXT}, _parse_text)
FLAG = ValueType({"type": "boolean"}, _choice("", "true", "false", "1", "0").parse)  # generated PHP sends 1 and 0
FIELD_LIST = _words("CallField", {field: field for field in FIELDS})
RESULTS = _words("CallResult", {one.value: one for one in CallResult})
PHONE_TYPES = _words("PhoneType", {one.value: one for one in PhoneType})
SORT = _choice("SortOrder", "startTime", "-startTime", **{"x-enum-varnames": ["OLDEST_FIRST", "NEWEST_FIRST"]})
CODES = {"items": {"type": "string", "pattern": rf"^(\*|{CODE_PATTERN})$"}, "minItems": 1, "maxItems": MAX_CLIENTS}
ALL = "list call summary clients"
FILTERED = "list summary"
START_DEFAULT = "Default: the beginning of history; summaries and `/clients` require it without `range`."
START = "An RFC 3339 instant, or a date or date-time without offset in the time zone `tz`."
CLIENT_TEXT = f"A client code, up to {MAX_CLIENTS} times, or `*` for every client."
RANGE_TEXT = "Days in the time zone `tz`, instead of `start` and `end`. `last_7_days` and `last_30_days` include today."
RESULT_TEXT = "Only calls with one of these results, separated by commas."
PHONE_TEXT = "Only calls from one of these types of phone, separated by commas."
LIMIT_TEXT = (
    "The maximum number of calls on a page. Default: 100. A page may have fewer: only a null `nextCursor` ends the "
    "list. Not for NDJSON and CSV."
)
CURSOR_TEXT = "The `nextCursor` of the previous page, with the same parameters or none. Not for NDJSON and CSV."
FIELDS_TEXT = (
    "The fields of each call, separated by commas; nested fields with a dot, such as `address.city`. JSON and NDJSON "
    "add `id`, `clientCode` and `startTime`, and leave out the others, although the schema `Call` requires them. CSV "
    "has exactly these columns, in this order."
)
FORMAT_TEXT = "Overrides `Accept`. NDJSON and CSV stream the whole window."
INTERVAL_TEXT = "The length of the time buckets, by clock and calendar in `tz`. Weeks begin on Monday. Default: `none`."
CLIENT = Parameter("client", ValueType({"type": "array"} | CODES), FILTERED, CLIENT_TEXT, ["8005550100", "8005550101"])
PARAMETERS = (
    Parameter("start", INSTANT, ALL, f"{START} Inclusive. {START_DEFAULT}", "2026-11-01"),
    Parameter("end", INSTANT, ALL, f"{START} Exclusive. Default: now.", "2026-11-02T00:00:00Z"),
    Parameter("range", _choice("DateRange", *RANGES), ALL, RANGE_TEXT),
    Parameter("tz", ZONE, ALL, "The IANA time zone of dates without offset. Default: `UTC`.", "America/Chicago"),
    Parameter("include", _choice("CallPart", "status"), "list call", "`status` adds the status of each call."),
    Parameter("result", RESULTS, FILTERED, RESULT_TEXT, "busy,no_answer"),
    Parameter("campaign", TEXT, FILTERED, "Only calls of this campaign.", "4018"),
    Parameter("did", TEXT, FILTERED, "Only calls to this tracking number.", "8005550100"),
    Parameter("ani", TEXT, FILTERED, "Only calls from this number.", "3125550161"),
    Parameter("target", TEXT, FILTERED, "Only calls forwarded to this number.", "7735550158"),
    Parameter("phoneType", PHONE_TYPES, FILTERED, PHONE_TEXT, "cell"),
    Parameter("recorded", FLAG, FILTERED, "Only calls with a recording, or only calls without one."),
    Parameter("minDuration", _whole_number(0, 9_999_999), FILTERED, "Only calls of at least this many seconds.", 30),
    Parameter("sort", SORT, "list", "Oldest call first, or newest first with `-startTime`. Default: `-startTime`."),
    Parameter("limit", _whole_number(1, MAX_LIMIT), "list", LIMIT_TEXT),
    Parameter("cursor", ValueType({"type": "string"}), "list", CURSOR_TEXT),
    Parameter("fields", FIELD_LIST, "list call", FIELDS_TEXT, "ani,result,address.city"),
    Parameter("format", _choice("ListFormat", *FORMATS), "list", FORMAT_TEXT),
    Parameter("interval", _choice("SummaryInterval", *INTERVALS), "summary", INTERVAL_TEXT, "day"),
    Parameter("groupBy", _choice("SummaryGroup", *GROUPS), "summary", "Separate figures by this field.", "result"),
)


def parameters_of(route: str) -> tuple[Parameter, ...]:
    """The query parameters of a kind of route, except `client`."""
    return tuple(parameter for parameter in PARAMETERS if route in parameter.routes.split())


class Filters(Struct, frozen=True, array_like=True):
    """The filters of a query. Empty and None do not filter."""

    result: tuple[CallResult, ...] = ()
    phone_type: tuple[PhoneType, ...] = ()
    campaign: str | None = None
    did: str | None = None
    ani: str | None = None
    target: str | None = None
    recorded: bool | None = None
    min_duration: int | None = None

    @property
    def texts(self) -> dict[str, str]:
        """The text filters that are set, by field name."""
        return {name: text for name in TEXT_FILTERS if (text := getattr(self, name)) is not None}

    def apply(self, calls: Sequence[Call]) -> Sequence[Call]:
        """The calls that pass all filters."""
        if (results := self.result) and calls:
            calls = [call for call in calls if call.result in results]
        if (types := self.phone_type) and calls:
            calls = [call for call in calls if call.phone_type in types]
        for name, wanted in self.texts.items():
            field = _TEXT_OF[name]
            calls = [call for call in calls if field(call) == wanted]
        if (recorded := self.recorded) is not None:
            calls = [call for call in calls if (call.recording_url is not None) == recorded]
        if (shortest := self.min_duration) is not None:
            calls = [call for call in calls if (seconds := call.duration_seconds) is not None and seconds >= shortest]
        return calls


_TEXT_OF: dict[str, Callable[[Call], str | None]] = {name: attrgetter(name) for name in TEXT_FILTERS}
NO_FILTERS = Filters()


class ListQuery(Struct, frozen=True, array_like=True):
    """A list of calls after the position `after`. `given` are the parameters as the consumer sent them."""

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
    """One call, with an optional window to search."""

    code: str
    window: Window | None
    status: bool
    fields: tuple[str, ...]


class SummaryQuery(Struct, frozen=True):
    """Figures of a window by time bucket and group. `starts` are the starts of the buckets."""

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
    """Parse the query of a list. `code` is the client in the path, if there is one. Raises InvalidParameters."""
    parameters = _Parameters(query_string, "list", with_client=code is None)
    if "cursor" in parameters.given:
        return _parse_cursor(parameters, code, signing_key)
    codes, window = parameters.codes(code), parameters.window(now, history_start)
    values = parameters.checked()
    return ListQuery(
        codes=codes,
        window=window,
        status="include" in values,
        newest_first=values.get("sort") != "startTime",
        limit=values.get("limit", 100),
        filters=_filters(values),
        fields=values.get("fields", ()),
        format=values.get("format"),
        given=parameters.given,
    )


def render_cursor(query: ListQuery, after: Position, signing_key: bytes) -> str:
    """Render the cursor of the page after a position."""
    return CURSORS.sign(replace(query, after=after), signing_key)


def parse_call_query(query_string: bytes, code: str, now: float, history_start: int) -> CallQuery:
    """Parse the query of one call. `code` is the client in the path. Raises InvalidParameters."""
    parameters = _Parameters(query_string, "call")
    parameters.codes(code)
    window = parameters.window(now, history_start)
    values = parameters.checked()
    has_window = not parameters.given.keys().isdisjoint(("start", "end", "range"))
    return CallQuery(code, window if has_window else None, "include" in values, values.get("fields", ()))


def parse_summary_query(query_string: bytes, code: str | None, now: float, history_start: int) -> SummaryQuery:
    """Parse the query of a summary. `code` is the client in the path, if there is one. Raises InvalidParameters."""
    parameters = _Parameters(query_string, "summary", with_client=code is None)
    codes, window = parameters.codes(code), parameters.window(now, history_start, needs_start=True)
    values = parameters.checked()
    interval, zone = values.get("interval", "none"), parameters.zone
    starts = tuple(bucket_starts(window, interval, zone))
    return SummaryQuery(codes, window, interval, str(zone), starts, values.get("groupBy"), _filters(values))


def parse_clients_query(query_string: bytes, now: float, history_start: int) -> Window:
    """Parse the query of the list of clients, which is a window. Raises InvalidParameters."""
    parameters = _Parameters(query_string, "clients")
    window = parameters.window(now, history_start, needs_start=True)
    parameters.checked()
    return window


class _Parameters:
    """The parameters of a request: `given` as the consumer sent them, the parsed `values`, and the `faults` so far."""

    def __init__(self, query_string: bytes, route: str, *, with_client: bool = False) -> None:
        known = {parameter.name: parameter for parameter in parameters_of(route)}
        if with_client:
            known["client"] = CLIENT
        try:
            pairs = parse_qsl(query_string.decode("ascii"), keep_blank_values=True, errors="strict")
        except ValueError:
            raise InvalidParameters([ParameterFault("query", "is not URL-encoded UTF-8")]) from None
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

    def window(self, now: float, history_start: int, *, needs_start: bool = False) -> Window:
        """The window. With `needs_start`, its start is required, because the whole window is read."""
        if needs_start and self.given.keys().isdisjoint(("start", "range")):
            self.fault("start", "is required without `range`")
        return parse_window(self.values, self.zone, now, history_start, self.faults)

    def checked(self) -> dict[str, Any]:
        """The parsed values. Raises InvalidParameters with every fault."""
        if self.faults:
            raise InvalidParameters(self.faults)
        return self.values


def _parse(known: Mapping[str, Parameter], name: str, texts: list[str]) -> object:
    if name not in known:
        raise ValueError(f"is not a parameter of this path; the parameters are {', '.join(sorted(known))}")
    if name == "client":
        return texts
    kind = known[name].kind
    if len(texts) > 1 and kind.schema["type"] != "array":  # some generated clients repeat the parameter of a list
        raise ValueError("is given more than once")
    return kind.parse(",".join(texts))


def _parse_code(text: str) -> str:
    if CODE.fullmatch(text) is None:
        raise ValueError("is not a client code: 1 to 64 letters, digits, dots, hyphens or underscores")
    return text


def _parse_codes(texts: Sequence[str]) -> tuple[str, ...]:
    codes = tuple(dict.fromkeys(texts))
    if not codes:
        raise ValueError("is required; `client=*` selects every client")
    if len(texts) > MAX_CLIENTS:
        raise ValueError(f"is given more than {MAX_CLIENTS} times")
    if EVERY_CLIENT not in codes:
        return tuple(map(_parse_code, codes))
    if len(codes) > 1:
        raise ValueError("cannot combine `*` with client codes")
    return codes


def _parse_cursor(parameters: _Parameters, code: str | None, signing_key: bytes) -> ListQuery:
    beside = {name: texts for name, texts in parameters.given.items() if name != "cursor"}
    codes = parameters.codes(code) if code is not None or "client" in beside else None
    cursor = parameters.checked()["cursor"]
    try:
        query = CURSORS.verify(cursor, signing_key)
        if (codes is not None and codes != query.codes) or (beside and beside != query.given):
            parameters.fault("cursor", "belongs to a list with other parameters; send it without them")
    except ValueError:
        parameters.fault("cursor", "is not a cursor of this gateway; start again from the first page")
    parameters.checked()
    return query


def _filters(values: Mapping[str, Any]) -> Filters:
    return Filters(
        result=values.get("result", ()),
        phone_type=values.get("phoneType", ()),
        recorded=None if "recorded" not in values else values["recorded"] in ("true", "1"),
        min_duration=values.get("minDuration"),
        **{name: values.get(name) for name in TEXT_FILTERS},
    )
