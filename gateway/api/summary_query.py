"""The query of a summary."""

from __future__ import annotations

import math
from zoneinfo import ZoneInfo

from msgspec import Struct

from gateway.api.calendars import compared_window
from gateway.api.filters import Filters, make_filters
from gateway.api.query import DEFAULTS, Parameters
from gateway.errors import InvalidParameters, ParameterFault
from gateway.extra_fields import NO_EXTRAS, ExtraFields
from gateway.model import Window

DAY = 86400  # seconds


class SummaryQuery(Struct, frozen=True):
    """Figures of a window by time bucket and group. `lookback` is in seconds, `answered_within` too.

    `compared` is the window to compare with, which may begin before the beginning of history.
    """

    codes: tuple[str, ...]
    window: Window
    filters: Filters
    interval: str
    zone: ZoneInfo
    group_by: tuple[str, ...]
    top: int | None
    compared: Window | None
    answered_within: int | None
    lookback: int
    format: str | None
    dialect: str | None

    def require_format(self, form: str) -> None:
        """Check that the query can be answered in a format. Raises InvalidParameters."""
        if self.dialect and form != "csv":
            raise InvalidParameters([ParameterFault("dialect", f"cannot be combined with {form}, only with csv")])


def parse_summary_query(
    query_string: bytes, code: str | None, now: float, history_start: int, extras: ExtraFields = NO_EXTRAS
) -> SummaryQuery:
    """Parse the query of a summary. `code` is the client in the path, if there is one. Raises InvalidParameters."""
    parameters = Parameters(query_string, "summary", code, extras)
    parameters.require_client()
    window = parameters.window(now, history_start, needs_start=True)
    faulty = {fault.parameter for fault in parameters.faults}
    if "top" in parameters.values and "groupBy" not in parameters.values.keys() | faulty:
        parameters.fault("top", "requires `groupBy`: it chooses the groups with the most calls")
    values = parameters.checked()
    compare = values.get("compare")
    return SummaryQuery(
        codes=values["client"],
        window=window,
        filters=make_filters(values, extras),
        interval=values.get("interval", DEFAULTS["interval"]),
        zone=parameters.zone,
        group_by=values.get("groupBy", ()),
        top=values.get("top"),
        compared=compare and compared_window(window, compare, parameters.zone, math.ceil(now)),
        answered_within=values.get("answeredWithin"),
        lookback=values.get("lookback", 0) * DAY,
        format=values.get("format"),
        dialect=values.get("dialect"),
    )
