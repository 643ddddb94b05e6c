"""Query parameters: one table, which parses requests and describes the API.

Rules:
- A query string is parsed once, to a typed query. Handlers see only the typed query.
- Parsing is strict: an unknown or repeated parameter, or an invalid value, is a fault. One error reports all faults.
- An empty value, or one that equals the default, counts as absent. A list may be a repeated parameter or one value with
  commas, and its name may have brackets (`fields[]`), as HTML forms and PHP send them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple
from urllib.parse import parse_qsl
from zoneinfo import ZoneInfo

from msgspec import Struct

from gateway.api.dimensions import DIMENSIONS, dimensions_of
from gateway.api.time_ranges import RANGES, parse_window, parse_zone
from gateway.errors import InvalidParameters, ParameterFault
from gateway.extra_fields import NO_EXTRAS, ExtraFields
from gateway.formats import FORMATS, columns_of, fields_of
from gateway.model import CLIENT_CODE, CODE_PATTERN, EVERY_CLIENT, Call, CallResult, PhoneType, Window

MAX_CLIENTS = 50  # codes in a query; as many as one POST takes by default (GATEWAY_UPSTREAM_BATCH)
MAX_CHANGES = 10_000  # calls in a response of the change feed
MAX_LIMIT = 1000  # calls on a page; about 700 kB of JSON
MAX_GRACE = 31 * 86400  # seconds
MAX_TEXT = 200  # characters of a text filter; telephone numbers and campaign ids have under 20
UTC = ZoneInfo("UTC")
INTERVALS = ("none", "hour", "day", "week", "month")
MAX_TOP = 1000  # groups of a summary
MAX_ANSWERED_WITHIN = 3600  # seconds
LOOKBACK = re.compile("([1-9][0-9]?|[1-3][0-9]{2}|400)d", re.ASCII)  # days; as far back as the change feed goes


class ValueType(NamedTuple):
    """A type of value: its JSON schema, and its parser, which raises ValueError with the fault.

    The parser takes one text, or with `several` a list of texts that are not empty. The schema has no `default`, which
    generated clients would send. The `title` of an enum is the name of its component.
    """

    schema: Mapping[str, Any]
    parse: Callable[[Any], Any] = str
    several: bool = False


class Parameter(NamedTuple):
    """One parameter. `routes` has the kinds of routes that take it, separated by spaces: keys of `openapi.ROUTES`."""

    name: str
    kind: ValueType
    routes: str
    description: str
    example: Any = None
    component: str = ""  # its name in the OpenAPI document, if another parameter has the same name


def _choice(title: str, *names: str, **extensions: list[str]) -> ValueType:
    def parse(text: str) -> str:
        if text not in names:
            raise ValueError(f"is not one of {', '.join(names)}")
        return text

    return ValueType({"title": title, "type": "string", "enum": list(names), **extensions}, parse)


def _words(title: str, known: Mapping[str, Any], *, ordered: bool = False, most: int = 0) -> ValueType:
    """A list of known words. Its value has the meaning of each word once, in the order of `known` or as given.

    With `most`, it has at most that number of words, and none twice.
    """

    def parse(texts: Sequence[str]) -> tuple[Any, ...]:
        given = [word for text in texts for word in text.split(",") if word]
        words = dict.fromkeys(given)
        if most and len(given) > len(words):
            raise ValueError("names the same value twice")
        if most and len(words) > most:
            raise ValueError(f"has {len(words)} values, more than {most}")
        if unknown := [word[:64] for word in words if word not in known]:
            raise ValueError(f"has unknown values {', '.join(unknown[:5])}; the values are {', '.join(known)}")
        return tuple(known[word] for word in (words if ordered else known) if word in words)

    limits = {"maxItems": most, "uniqueItems": True} if most else {}
    return ValueType({"type": "array", "items": _choice(title, *known).schema, **limits}, parse, several=True)


def _whole_number(minimum: int, maximum: int) -> ValueType:
    def parse(text: str) -> int:
        if re.fullmatch("[0-9]{1,10}", text) is None or not minimum <= int(text) <= maximum:
            raise ValueError(f"is not a whole number from {minimum} to {maximum}")
        return int(text)

    return ValueType({"type": "integer", "format": "int32", "minimum": minimum, "maximum": maximum}, parse)


def _parse_text(text: str) -> str:
    if len(text) > MAX_TEXT:
        raise ValueError(f"is longer than {MAX_TEXT} characters")
    return text


def _parse_boolean(text: str) -> bool:
    word = text.lower()
    if word not in ("true", "false", "1", "0"):
        raise ValueError("is not true or false")
    return word in ("true", "1")


def _parse_lookback(text: str) -> int:
    if (match := LOOKBACK.fullmatch(text)) is None:
        raise ValueError("is not a number of days such as 30d, from 1d to 400d")
    return int(match[1])


def _parse_code(text: str) -> str:
    if CLIENT_CODE.fullmatch(text) is None:
        raise ValueError("is not a client code: 1 to 64 letters, digits, dots, hyphens or underscores")
    return text


def _parse_codes(texts: Sequence[str]) -> tuple[str, ...]:
    codes = tuple(dict.fromkeys(texts))
    if len(texts) > MAX_CLIENTS:
        raise ValueError(f"is given more than {MAX_CLIENTS} times")
    if EVERY_CLIENT not in codes:
        return tuple(map(_parse_code, codes))
    if len(codes) > 1:
        raise ValueError("cannot combine `*` with client codes")
    return codes


INSTANT = ValueType({"type": "string"})  # parsed by `parse_window`, once the time zone is known
ZONE = ValueType({"type": "string"}, parse_zone)
TEXT = ValueType({"type": "string", "maxLength": MAX_TEXT}, _parse_text)
BOOLEAN = ValueType({"type": "boolean"}, _parse_boolean)
NAME_LIST = ValueType({"type": "array"}, several=True)  # `all_parameters` has its values
RESULTS = _words("CallResult", {one.value: one for one in CallResult})
PHONE_TYPES = _words("PhoneType", {one.value: one for one in PhoneType})
LOOKBACK_DAYS = ValueType({"type": "string", "pattern": f"^{LOOKBACK.pattern}$"}, _parse_lookback)
SORT = _choice("SortOrder", "startTime", "-startTime", **{"x-enum-varnames": ["OLDEST_FIRST", "NEWEST_FIRST"]})
CODES = {"items": {"type": "string", "pattern": rf"^(\*|{CODE_PATTERN})$"}, "minItems": 1, "maxItems": MAX_CLIENTS}
ALL = "list call summary missed clients"
FILTERED = "list summary missed"
PAGED = "list missed"
SINCE_TEXT = "The token of the last response (`page.next`), with the same clients and `include`. Without it: all calls."
FEED_START_TEXT = (
    "The first instant of the copy, rounded down to midnight in UTC; only without `since`. Default: 30 days ago; at "
    "most 400 days ago."
)
FEED_LIMIT_TEXT = "The maximum number of calls in a response. Default: 1000."
WAIT_TEXT = "Seconds to wait for a change if there is nothing to report (long polling). Default: 0."
LINK_TEXT = (
    "Whether to answer with an address of this feed that needs no header, for `EventSource`, in place of the changes. "
    "Overrides `Accept`."
)
START_DEFAULT = (
    "Default: the beginning of history; summaries, missed callers and `/clients` require it without `range`."
)
START = "An RFC 3339 instant, or a date or date-time without offset in the time zone `tz`."
CLIENT_TEXT = f"A client code, up to {MAX_CLIENTS} times, or `*` for every client."
RANGE_TEXT = "Days in the time zone `tz`, instead of `start` and `end`. `last_7_days` and `last_30_days` include today."
RESULT_TEXT = "Only calls with one of these results, separated by commas."
PHONE_TEXT = "Only calls from one of these types of phone, separated by commas."
LIMIT_TEXT = (
    "The maximum number of calls, or of callers, on a page. Default: 100. A page may have fewer: only a null "
    "`nextCursor` ends the list. Not for NDJSON and CSV."
)
CURSOR_TEXT = (
    "The `nextCursor` of the previous page, alone or with the same parameters. If they have more than about 700 "
    "characters, it needs them. Not for NDJSON and CSV."
)
FIELDS_TEXT = (
    "The fields of each call, separated by commas; nested fields with a dot, such as `address.city`. JSON and NDJSON "
    "add `id`, `clientCode` and `startTime`, and leave out the others, although the schema `Call` requires them. CSV "
    "has exactly these columns, in this order."
)
FORMAT_TEXT = "Overrides `Accept`. NDJSON and CSV of calls stream the whole window."
DIALECT_TEXT = (
    "Only for CSV: `excel` begins with a byte order mark, and has times without offset in the time zone `tz`, which "
    "Excel reads as dates."
)
GRACE_TEXT = "In seconds. Missed calls younger than this are left out: they may still be returned. Default: 0."
REACHED_TEXT = (
    "`true` adds the callers who were reached since their last missed call, after the others. Default: `false`."
)
INTERVAL_TEXT = "The length of the time buckets, by clock and calendar in `tz`. Weeks begin on Monday. Default: `none`."
GROUP_TEXT = (
    "Separate figures by one or two dimensions, separated by commas; `hourOfDay`, `dayOfWeek` and `hourOfWeek` are on "
    "the clock of `tz`. The schema `GroupValues` describes them."
)
TOP_TEXT = "Only the groups with the most calls in the window; all others are one row with `rest`. Requires `groupBy`."
COMPARE_TEXT = (
    "Add the figures of another window as `previous`: `previous` is the time just before, `year` the same dates a year "
    "before. A period that is not over is compared up to the same moment."
)
WITHIN_TEXT = "Fill in `answeredWithinRate`: the share of calls that are answered within this many seconds."
LOOKBACK_TEXT = (
    "Callers are new only if they did not call within this many days before the window either. Ignored without the "
    "scope `personal`."
)
CODE_LIST = ValueType({"type": "array"} | CODES, _parse_codes, several=True)
ACCESS = Parameter("access", ValueType({"type": "string"}), "changes", "The credential of a link.")
CLIENT = Parameter("client", CODE_LIST, f"{FILTERED} changes", CLIENT_TEXT, ["8005550100", "8005550101"])
PARAMETERS = (
    Parameter("start", INSTANT, ALL, f"{START} Inclusive. {START_DEFAULT}", "2026-11-01"),
    Parameter("end", INSTANT, ALL, f"{START} Exclusive. Default: now.", "2026-11-02T00:00:00Z"),
    Parameter("range", _choice("DateRange", *RANGES), ALL, RANGE_TEXT),
    Parameter("tz", ZONE, ALL, "The IANA time zone of dates without offset. Default: `UTC`.", "America/Chicago"),
    Parameter("since", ValueType({"type": "string"}), "changes", SINCE_TEXT),
    Parameter("start", INSTANT, "changes", FEED_START_TEXT, "2026-11-01", "feed_start"),
    Parameter(
        "include", _choice("CallPart", "status"), "list call missed changes", "`status` adds the status of each call."
    ),
    Parameter("result", RESULTS, "list summary", RESULT_TEXT, "busy,no_answer"),
    Parameter("campaign", TEXT, FILTERED, "Only calls of this campaign.", "4018"),
    Parameter("did", TEXT, FILTERED, "Only calls to this tracking number.", "8005550100"),
    Parameter("ani", TEXT, FILTERED, "Only calls from this number.", "3125550161"),
    Parameter("target", TEXT, FILTERED, "Only calls forwarded to this number.", "7735550158"),
    Parameter("phoneType", PHONE_TYPES, FILTERED, PHONE_TEXT, "cell"),
    Parameter("recorded", BOOLEAN, FILTERED, "Only calls with a recording, or only calls without one."),
    Parameter("minDuration", _whole_number(0, 9_999_999), FILTERED, "Only calls of at least this many seconds.", 30),
    Parameter("sort", SORT, "list", "Oldest call first, or newest first with `-startTime`. Default: `-startTime`."),
    Parameter("limit", _whole_number(1, MAX_LIMIT), PAGED, LIMIT_TEXT),
    Parameter("cursor", ValueType({"type": "string"}), PAGED, CURSOR_TEXT),
    Parameter("fields", NAME_LIST, "list call", FIELDS_TEXT, "ani,result,address.city"),
    Parameter("format", _choice("ListFormat", *FORMATS), FILTERED, FORMAT_TEXT),
    Parameter("dialect", _choice("CsvDialect", "excel"), FILTERED, DIALECT_TEXT),
    Parameter("meta", _choice("NdjsonMeta", "none"), PAGED, "Only for NDJSON: `none` leaves out the last line."),
    Parameter("limit", _whole_number(1, MAX_CHANGES), "changes", FEED_LIMIT_TEXT, 10_000, "feed_limit"),
    Parameter("wait", _whole_number(0, 60), "changes", WAIT_TEXT, 30),
    Parameter("format", _choice("FeedFormat", "json", "ndjson"), "changes", "Overrides `Accept`.", None, "feed_format"),
    Parameter("link", BOOLEAN, "changes", LINK_TEXT),
    Parameter("grace", _whole_number(0, MAX_GRACE), "missed", GRACE_TEXT, 300),
    Parameter("reached", BOOLEAN, "missed", REACHED_TEXT),
    Parameter("interval", _choice("SummaryInterval", *INTERVALS), "summary", INTERVAL_TEXT, "day"),
    Parameter("groupBy", NAME_LIST, "summary", GROUP_TEXT, "result,hourOfDay"),
    Parameter("top", _whole_number(1, MAX_TOP), "summary", TOP_TEXT, 10),
    Parameter("compare", _choice("SummaryComparison", "previous", "year"), "summary", COMPARE_TEXT, "previous"),
    Parameter("answeredWithin", _whole_number(0, MAX_ANSWERED_WITHIN), "summary", WITHIN_TEXT, 20),
    Parameter("lookback", LOOKBACK_DAYS, "summary", LOOKBACK_TEXT, "30d"),
)
DEFAULTS: Mapping[str, Any] = {
    "tz": UTC,
    "sort": "-startTime",
    "limit": 100,
    "interval": "none",
    "grace": 0,
    "reached": False,
}
BRACKETS = re.compile(r"\[\d{0,3}\]$", re.ASCII)


@lru_cache(maxsize=64)
def all_parameters(extras: ExtraFields) -> tuple[Parameter, ...]:
    """The query parameters of all routes, except `client`.

    Promoted extra fields are filters, and names in `fields` and `groupBy`.
    """
    fields, groups = fields_of(columns_of(extras.call_type)), dimensions_of(extras)
    names = {
        "fields": _words("CallField", {name: name for name in fields}, ordered=True),
        "groupBy": _words("SummaryGroup", {name: name for name in groups}, ordered=True, most=2),
    }
    filters = [
        Parameter(one.name, TEXT, FILTERED, f"Only calls with this `{one.name}`.", component=f"extra_{one.name}")
        for one in extras.fields
    ]
    return (*[one._replace(kind=names.get(one.name, one.kind)) for one in PARAMETERS], *filters)


def parameters_of(route: str, extras: ExtraFields = NO_EXTRAS) -> tuple[Parameter, ...]:
    """The query parameters of a kind of route, except `client`."""
    return tuple(parameter for parameter in all_parameters(extras) if route in parameter.routes.split())


def check_names(extras: ExtraFields) -> None:
    """Check that no promoted field has the name of a field or parameter, in any case. Raises ValueError."""
    fields, parameters = fields_of(columns_of(Call)), [one.name for one in (CLIENT, ACCESS, *PARAMETERS)]
    taken = {name.lower() for name in (*fields, *parameters, *DIMENSIONS, "hasRecording")}
    for one in extras.fields:
        if one.name.lower() in taken:
            raise ValueError(f"the name {one.name} is taken by a field or parameter; choose another")


class CallQuery(Struct, frozen=True):
    """One call, with an optional window to search."""

    code: str
    window: Window | None
    status: bool
    fields: tuple[str, ...]


def parse_call_query(
    query_string: bytes, code: str, now: float, history_start: int, extras: ExtraFields = NO_EXTRAS
) -> CallQuery:
    """Parse the query of one call. `code` is the client in the path. Raises InvalidParameters."""
    parameters = Parameters(query_string, "call", code, extras)
    window = parameters.window(now, history_start)
    values = parameters.checked()
    has_window = not values.keys().isdisjoint(("start", "end", "range"))
    return CallQuery(code, window if has_window else None, "include" in values, values.get("fields", ()))


def parse_clients_query(query_string: bytes, now: float, history_start: int) -> Window:
    """Parse the query of the list of clients, which is a window. Raises InvalidParameters."""
    parameters = Parameters(query_string, "clients")
    window = parameters.window(now, history_start, needs_start=True)
    parameters.checked()
    return window


class Parameters:
    """The parameters of a `route`: the parsed `values` that are not empty or defaults, and the `faults` so far.

    `code`, the client in the path, is the value of `client`.
    """

    def __init__(
        self, query_string: bytes, route: str, code: str | None = None, extras: ExtraFields = NO_EXTRAS
    ) -> None:
        known = {parameter.name: parameter for parameter in parameters_of(route, extras)}
        if code is None and route in CLIENT.routes.split():
            known["client"] = CLIENT
        if route == "changes":
            known["access"] = ACCESS  # in the OpenAPI document it is a security scheme
        try:
            pairs = parse_qsl(query_string.decode("ascii"), keep_blank_values=True, errors="strict")
        except ValueError:
            raise InvalidParameters([ParameterFault("query", "is not URL-encoded UTF-8")]) from None
        self.route = route
        self.extras = extras
        self.values: dict[str, Any] = {}
        self.faults: list[ParameterFault] = []
        self._defaults = {} if route == "changes" else DEFAULTS
        given: dict[str, list[str]] = {}
        for name, text in pairs:
            bare = BRACKETS.sub("", name)
            known_as = bare if bare in known and known[bare].kind.several else name
            if text or known_as not in known:
                given.setdefault(known_as, []).append(text)
        if code is not None:
            self._add("code", partial(_parse_code, code))
            self.values["client"] = (self.values.pop("code", ""),)
        for name, texts in given.items():
            self._add(name, partial(_parse, known, name, texts))
        self.zone: ZoneInfo = self.values.get("tz", UTC)

    def fault(self, name: str, detail: object) -> None:
        """Add a fault."""
        self.faults.append(ParameterFault(name, str(detail)))

    def require_client(self) -> None:
        """Check that there is a client."""
        if "client" not in self.values and all(fault.parameter != "client" for fault in self.faults):
            self.fault("client", "is required; `client=*` selects every client")

    def window(self, now: float, history_start: int, *, needs_start: bool = False) -> Window:
        """The window. With `needs_start`, its start is required, because the whole window is read."""
        if needs_start and self.values.keys().isdisjoint(("start", "range")):
            self.fault("start", "is required without `range`")
        return parse_window(self.values, self.zone, now, history_start, self.faults)

    def checked(self) -> dict[str, Any]:
        """The parsed values. Raises InvalidParameters with every fault."""
        if self.faults:
            raise InvalidParameters(self.faults)
        return self.values

    def _add(self, name: str, parse: Callable[[], object]) -> None:
        try:
            value = parse()
        except ValueError as error:
            self.fault(name[:64], error)
        else:
            if value not in ((), self._defaults.get(name)):
                self.values[name] = value


def _parse(known: Mapping[str, Parameter], name: str, texts: list[str]) -> object:
    if name not in known:
        raise ValueError(f"is not a parameter of this path; the parameters are {', '.join(sorted(known))}")
    kind = known[name].kind
    if kind.several:
        return kind.parse(texts)
    if len(texts) > 1:
        raise ValueError("is given more than once")
    return kind.parse(texts[0])
