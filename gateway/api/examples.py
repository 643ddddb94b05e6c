"""Example answers for the OpenAPI document.

Rule: they are values of the Structs that answers are written from, so that an example has every field there is.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from gateway.api.answers import Meta
from gateway.api.calls import CallPage, PageLinks, SingleCall
from gateway.api.summaries import CallSummary, ClientFigures, ClientList, Row, Totals
from gateway.formats import Csv, Ndjson
from gateway.model import Address, Call, Certainty, PhoneType, Result, SalesStatus, Status

START = datetime(2026, 11, 1, 5, tzinfo=UTC)
META = Meta(
    start=START,
    end=START.replace(hour=9),
    as_of=START.replace(hour=12),
    oldest_fetch=START.replace(hour=11),
    stale=False,
    unreadable=0,
)
CALL = Call(
    id="498200007",
    client_code="8005550100",
    start_time=datetime(2026, 11, 1, 8, 49, 51, tzinfo=UTC),
    start_time_certainty=Certainty.EXACT,
    campaign="4018",
    did="8005550100",
    ani="3125550161",
    other_data="print ad",
    phone_type=PhoneType.CELL,
    target="7735550158",
    result=Result.CONNECTED,
    duration_seconds=351,
    talk_time_seconds=332,
    index_number="0042",
    dtmf="1",
    recording_url="/recordings/iC0XHkjeqL1bo0HptbFpdZaqODAw",
    address=Address(
        first_name="Ada",
        middle_initial=None,
        last_name="Lovelace",
        street="12 Lake Shore Drive",
        secondary=None,
        city="Chicago",
        state="IL",
        zip="60601",
        zip4=None,
    ),
    status=Status(reviewed=True, sales=SalesStatus.MADE_SALE, journal="Wants a quote."),
    extra={"Weather": "rain"},
)
FIGURES: dict[str, Any] = {
    "calls": 2,
    "connected": 1,
    "unique_callers": 2,
    "new_callers": 2,
    "duration_seconds": 412,
    "talk_time_seconds": 332,
    "mean_talk_time_seconds": 166.0,
}
ANSWERS: dict[str, object] = {
    "list": CallPage(data=[CALL], page=PageLinks(limit=1, next_cursor="uvkL5TFIUylomGu3e5M0UJOF"), meta=META),
    "call": SingleCall(data=CALL, meta=META),
    "summary": CallSummary(
        data=[Row(bucket_start=START, group=None, **FIGURES)],
        total=Totals(**FIGURES),
        meta=META,
    ),
    "clients": ClientList(data=[ClientFigures(client_code="8005550100", calls=2)], meta=META),
    "health": {"status": "ok"},
}  # by the kind of route


def answer_of(kind: str) -> Any:  # noqa: ANN401 - any JSON
    """The body of a route's answer."""
    return msgspec.to_builtins(ANSWERS[kind])


def streams() -> dict[str, str]:
    """The same call by the media types of exports."""
    lines, table = Ndjson(), Csv()
    return {
        "application/x-ndjson": (lines.rows([CALL]) + lines.end(META)).decode(),
        "text/csv": (table.begin() + table.rows([CALL])).decode(),
    }
