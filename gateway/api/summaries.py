"""Summaries, and the clients that had calls: figures of a whole window, by bucket and group.

Rule: figures are counted before anything is masked; no number, name or text of a caller is in them.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from operator import attrgetter
from typing import Any

from litestar import Request, Response
from msgspec import Struct

from gateway.api import params
from gateway.api.answers import JSON, Asking, Desk, Meta, instant, meta_of
from gateway.api.wanted import SummaryRequest, read_clients, read_summary
from gateway.errors import InvalidParameters, ParameterFault
from gateway.ledger.aggregates import AggregateSpec as Shape
from gateway.ledger.aggregates import Aggregator as Figures
from gateway.ledger.aggregates import Group
from gateway.ledger.aggregates import Totals as Count
from gateway.ledger.extents import Extent
from gateway.ledger.reader import Question, Reading
from gateway.ledger.scans import counted
from gateway.model import Call

MOST_ROWS = 20_000
TURN = 20_000  # calls counted without a turn of the event loop, about 5 ms
EVER = (-(10**11),)  # one bucket for whatever window, so that figures of it are remembered
GROUPS: dict[str, Callable[[Call], Group]] = {
    "result": lambda call: call.result.value,
    "campaign": attrgetter("campaign"),
    "did": attrgetter("did"),
    "phoneType": lambda call: call.phone_type.value,
    "client": attrgetter("client_code"),
}


class Totals(Struct, frozen=True, kw_only=True, rename="camel"):
    """Figures of calls: how many, how many connected, from how many numbers, how long, in seconds.

    `newCallers` called here for the first time within the window; the mean is of calls that say how long was talked.
    """

    calls: int
    connected: int
    unique_callers: int
    new_callers: int
    duration_seconds: int
    talk_time_seconds: int
    mean_talk_time_seconds: float | None


class Row(Totals, frozen=True, kw_only=True, rename="camel"):
    """The figures of one bucket and group; `group` is null without `groupBy`, and of calls that have no such value."""

    bucket_start: datetime
    group: str | None


class CallSummary(Struct, frozen=True, kw_only=True):
    """Figures by bucket and group, the oldest first, and of all calls of the window."""

    data: list[Row]
    total: Totals
    meta: Meta


class ClientFigures(Struct, frozen=True, kw_only=True, rename="camel"):
    """A client, and how many calls it had in the window."""

    client_code: str
    calls: int


class ClientList(Struct, frozen=True, kw_only=True):
    """The clients that had calls in the window, by code."""

    data: list[ClientFigures]
    meta: Meta


async def _count(asking: Asking, question: Question, count: Callable[[Extent], None]) -> Reading:
    """Count every extent of a window, and tell what they rest on. Raises UpstreamError."""
    desk, now, since = asking.desk, asking.desk.clock(), 0
    rests_on: Reading | None = None
    async for part in counted(desk.ledger, question, now, desk.deadline):
        for extent in part.extents:
            count(extent)
            since += len(extent.calls)
            if since > TURN:
                since = 0
                await asyncio.sleep(0)
        rests_on = part.reading if rests_on is None else _together(rests_on, part.reading)
    asking.has_read()
    return rests_on or Reading(as_of=now, oldest_fetch=now, past=-1)


def _together(before: Reading, reading: Reading) -> Reading:
    """What two neighbouring spans rest on, the newer one last."""
    return Reading(
        as_of=reading.as_of,
        oldest_fetch=min(before.oldest_fetch, reading.oldest_fetch),
        past=max(before.past, reading.past),
        stale=before.stale or reading.stale,
        unreadable=before.unreadable + reading.unreadable,
        lookup=reading.lookup if before.lookup == reading.lookup else "partial",
        collapsed=reading.collapsed and before.collapsed,
    )


async def answer_summary(desk: Desk, request: Request[Any, Any, Any], code: str | None) -> Response[bytes]:
    """Answer figures of one client's calls, or of those named by `client`. Raises GatewayError."""
    asking = Asking(desk, request)
    asking.choose(JSON)
    values = params.read_query(request.scope["query_string"], "summary", with_client=code is None)
    wanted = read_summary(params.read_codes(code, values), values, desk.clock(), desk.history_start)
    question = asking.question(wanted.codes, wanted.window, values)
    figures = Figures(_shape(asking, question, wanted))
    reading = await _count(asking, question, figures.add)
    found, total = figures.sums()
    body = CallSummary(data=_rows(wanted, found), total=_totals(total), meta=meta_of(wanted.window, reading))
    return asking.answer(body, _before_meta, wanted.window, reading)


async def answer_clients(desk: Desk, request: Request[Any, Any, Any]) -> Response[bytes]:
    """Answer the clients that had calls in a window. Raises GatewayError."""
    asking = Asking(desk, request)
    asking.choose(JSON)
    values = params.read_query(request.scope["query_string"], "clients")
    window = read_clients(values, desk.clock(), desk.history_start)
    question = asking.question(("*",), window, values)
    keep = asking.keep(question)
    calls: Counter[str] = Counter()

    def count(extent: Extent) -> None:
        if extent.listed is None:
            calls.update([call.client_code for call in keep(extent.calls)])
        else:
            calls.update({code: len(keep(listed)) for code, listed in extent.listed.items()})

    reading = await _count(asking, question, count)
    rows = [ClientFigures(client_code=code, calls=calls[code]) for code in sorted(calls) if calls[code]]
    body = ClientList(data=rows, meta=meta_of(window, reading))
    return asking.answer(body, _before_meta, window, reading)


def _before_meta(encoded: bytes) -> bytes:
    return encoded[: encoded.rindex(b',"meta":')]


def _shape(asking: Asking, question: Question, wanted: SummaryRequest) -> Shape:
    counted = wanted.group_by, wanted.filters, asking.consumer.clients
    return Shape(
        name=(wanted.interval, wanted.zone, counted),
        counted=counted,
        starts=EVER if wanted.interval == "none" else wanted.starts,
        group=GROUPS[wanted.group_by] if wanted.group_by else None,
        keep=asking.keep(question, wanted.filters),
    )


def _rows(wanted: SummaryRequest, found: Sequence[tuple[int, dict[Group, Count]]]) -> list[Row]:
    """A row for each bucket and each group of the window. Raises InvalidParameters if they are too many."""
    every = sorted({name for _, groups in found for name in groups}, key=lambda name: (name is None, name)) or [None]
    if len(found) * len(every) > MOST_ROWS:
        detail = (
            f"makes {len(found)} buckets of {len(every)} groups, more than {MOST_ROWS} rows; ask for longer buckets"
        )
        raise InvalidParameters([ParameterFault("groupBy", detail)])
    nothing = Count()
    return [
        _row(instant(start), name, groups.get(name, nothing))
        for start, (_, groups) in zip(wanted.starts, found, strict=True)
        for name in every
    ]


def _row(start: datetime, group: Group, count: Count) -> Row:
    return Row(
        bucket_start=start,
        group=group,
        calls=count.calls,
        connected=count.connected,
        unique_callers=count.callers,
        new_callers=count.new,
        duration_seconds=count.duration,
        talk_time_seconds=count.talk,
        mean_talk_time_seconds=count.mean_talk,
    )


def _totals(count: Count) -> Totals:
    return Totals(
        calls=count.calls,
        connected=count.connected,
        unique_callers=count.callers,
        new_callers=count.new,
        duration_seconds=count.duration,
        talk_time_seconds=count.talk,
        mean_talk_time_seconds=count.mean_talk,
    )
