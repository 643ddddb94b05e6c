"""What a consumer wants, read from the parameters of a request."""

from __future__ import annotations

import re
from collections.abc import Mapping

from msgspec import Struct

from gateway.api.filters import Filters, read_filters
from gateway.api.moments import bucket_starts, read_window, read_zone
from gateway.api.params import FORMATS, GROUPS, INTERVALS, MOST_LIMIT
from gateway.errors import InvalidParameters, ParameterFault
from gateway.formats import FIELDS
from gateway.model import Window

Values = Mapping[str, list[str]]


class ListRequest(Struct, frozen=True):
    """Calls in order, by pages or whole."""

    codes: tuple[str, ...]
    window: Window
    status: bool
    newest_first: bool
    limit: int
    filters: Filters
    fields: tuple[str, ...]


class CallRequest(Struct, frozen=True):
    """One call, with an optional window to look in."""

    window: Window | None
    status: bool
    fields: tuple[str, ...]


class SummaryRequest(Struct, frozen=True):
    """Figures of a window, by bucket and group; `starts` are where the buckets begin."""

    codes: tuple[str, ...]
    window: Window
    interval: str
    zone: str
    starts: tuple[int, ...]
    group_by: str | None
    filters: Filters


def read_list(codes: tuple[str, ...], values: Values, now: float, history_start: int) -> ListRequest:
    """Read all but the cursor. Raises InvalidParameters with every fault."""
    faults: list[ParameterFault] = []
    single = _single(values)
    window = read_window(single, read_zone(single, faults), now, history_start, faults)
    sort = single.get("sort", "-startTime")
    if sort not in ("startTime", "-startTime"):
        faults.append(ParameterFault("sort", "is neither startTime nor -startTime"))
    limit = single.get("limit", "100")
    if re.fullmatch(r"[1-9][0-9]{0,3}", limit) is None or not 1 <= int(limit) <= MOST_LIMIT:
        faults.append(ParameterFault("limit", f"is not a whole number from 1 to {MOST_LIMIT}"))
    _one_of("format", FORMATS, single, faults)
    status, fields = _status(single, faults), _fields(single, faults)
    filters = read_filters(single, faults)
    if faults:
        raise InvalidParameters(faults)
    return ListRequest(codes, window, status, sort == "-startTime", int(limit), filters, fields)


def read_call(values: Values, now: float, history_start: int) -> CallRequest:
    """Read what goes with a call's id. Raises InvalidParameters with every fault."""
    faults: list[ParameterFault] = []
    single = _single(values)
    window = read_window(single, read_zone(single, faults), now, history_start, faults)
    hinted = not {"start", "end", "range"}.isdisjoint(single)
    status, fields = _status(single, faults), _fields(single, faults)
    if faults:
        raise InvalidParameters(faults)
    return CallRequest(window if hinted else None, status, fields)


def read_summary(codes: tuple[str, ...], values: Values, now: float, history_start: int) -> SummaryRequest:
    """Read what a summary is of. Raises InvalidParameters with every fault."""
    faults: list[ParameterFault] = []
    single = _single(values)
    zone = read_zone(single, faults)
    _refuse_all_of_history(single, faults)
    window = read_window(single, zone, now, history_start, faults)
    interval = _one_of("interval", INTERVALS, single, faults) or "none"
    group_by = _one_of("groupBy", GROUPS, single, faults)
    filters = read_filters(single, faults)
    if faults:
        raise InvalidParameters(faults)
    starts = tuple(bucket_starts(window, interval, zone))
    return SummaryRequest(codes, window, interval, str(zone), starts, group_by, filters)


def read_clients(values: Values, now: float, history_start: int) -> Window:
    """Read the window in which clients had calls. Raises InvalidParameters with every fault."""
    faults: list[ParameterFault] = []
    single = _single(values)
    _refuse_all_of_history(single, faults)
    window = read_window(single, read_zone(single, faults), now, history_start, faults)
    if faults:
        raise InvalidParameters(faults)
    return window


def _single(values: Values) -> dict[str, str]:
    return {name: found[0] for name, found in values.items() if name != "client"}


def _refuse_all_of_history(single: Mapping[str, str], faults: list[ParameterFault]) -> None:
    """The whole window is read: it must have a beginning."""
    if "start" not in single and "range" not in single:
        faults.append(ParameterFault("start", "is required here, or range: the whole window is read"))


def _one_of(name: str, known: tuple[str, ...], single: Mapping[str, str], faults: list[ParameterFault]) -> str | None:
    value = single.get(name)
    if value is not None and value not in known:
        faults.append(ParameterFault(name, f"is none of {', '.join(known)}"))
    return value


def _status(single: Mapping[str, str], faults: list[ParameterFault]) -> bool:
    if single.get("include", "status") != "status":
        faults.append(ParameterFault("include", "is not status, the only thing that can be included"))
    return "include" in single


def _fields(single: Mapping[str, str], faults: list[ParameterFault]) -> tuple[str, ...]:
    fields = tuple(dict.fromkeys(single["fields"].split(","))) if "fields" in single else ()
    if unknown := [field[:64] for field in fields if field not in FIELDS]:
        faults.append(ParameterFault("fields", f"has no {', '.join(unknown[:5])}; there are {', '.join(FIELDS)}"))
    return fields
