"""Pages of a list: how far to read for one, and where the next begins.

Rules: a page is fetched no further than it needs. The first span is the 24 hours nearest the sort's beginning; spans
double while the last held few calls. A page that has cost 8 POSTs, or looked at 100,000 calls, is answered short.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from operator import attrgetter
from typing import NamedTuple

import msgspec
from msgspec import Struct

from gateway.callbutton.central import whole
from gateway.ledger.extents import DAY, instant, not_superseded
from gateway.ledger.reader import Ledger, Question
from gateway.ledger.readings import Reading
from gateway.model import Call, Window

SPARSE = 100  # calls: spans double while the last held fewer
MOST_POSTS = 8  # a page that has cost so many is answered short
MOST_CALLS = 100_000  # looked at for one page

Keep = Callable[[Sequence[Call]], Sequence[Call]]  # a filter


class Position(NamedTuple):
    """The place of a call in the order of all lists."""

    start_time: datetime
    id: str
    client_code: str


class Page(Struct):
    """Calls in order; `after` is where the next page begins, None at the end. Instants are seconds since 1970."""

    calls: list[Call]
    after: Position | None
    as_of: float
    oldest_fetch: float
    past: float
    stale: bool
    unreadable: int
    lookup: str
    collapsed: bool


order = attrgetter(*Position._fields)  # a call's position as a bare tuple, four times as quick


def position(call: Call) -> Position:
    """The place of a call."""
    return Position(call.start_time, call.id, call.client_code)


async def read_page(
    ledger: Ledger,
    question: Question,
    now: float,
    *,
    newest_first: bool,
    limit: int,
    after: Position | None,
    keep: Keep = list,
    texts: Mapping[str, str] | None = None,
) -> Page:
    """Read one page of the calls to keep, fetching no further than it needs. Raises UpstreamError.

    `texts` are those that every call to keep has, by the names of fields: what cannot have them is not looked at.
    """
    window = question.window
    rest = Window(window.start, min(window.end, max(window.start, math.ceil(now))))
    if after is not None:
        second = math.floor(after.start_time.timestamp())
        rest = Window(rest.start, min(rest.end, second + 1)) if newest_first else Window(second, rest.end)
    calls: list[Call] = []
    readings: list[Reading] = []
    span = DAY
    posts = looked_at = 0
    while _left(rest) and len(calls) <= limit and posts < MOST_POSTS and looked_at < MOST_CALLS:
        if newest_first:
            part = Window(max(rest.start, rest.end - span), rest.end)
        else:
            part = Window(rest.start, min(rest.end, rest.start + span))
        part = _clipped(whole(part), rest)
        reading = await ledger.read(msgspec.structs.replace(question, window=part), span)
        rest = Window(rest.start, part.start) if newest_first else Window(part.end, rest.end)
        calls, fresh = _distinct(calls, readings, reading, keep(reading.calls_with(texts or {})))
        found = sorted(fresh, key=order, reverse=newest_first)
        if after is not None:
            found = [call for call in found if (position(call) < after if newest_first else position(call) > after)]
        calls += found
        readings.append(reading)
        posts, looked_at = posts + reading.posts, looked_at + reading.size
        if reading.size < SPARSE:
            span *= 2
    following = None
    if len(calls) > limit or (len(calls) == limit and _left(rest)):
        following = position(calls[limit - 1])
    elif _left(rest):
        following = Position(instant(rest.end if newest_first else rest.start), "", "")
    newest = readings[0 if newest_first else -1] if readings else None
    return Page(
        calls=calls[:limit],
        after=following,
        as_of=newest.as_of if newest else now,
        oldest_fetch=min((reading.oldest_fetch for reading in readings), default=now),
        past=max((reading.past for reading in readings), default=0),
        stale=any(reading.stale for reading in readings),
        unreadable=sum(reading.unreadable for reading in readings),
        lookup=_lookup(readings),
        collapsed=any(r.collapsed for r in readings) and all(r.collapsed or r.lookup == "hit" for r in readings),
    )


def _distinct(
    calls: list[Call], readings: Sequence[Reading], reading: Reading, fresh: Sequence[Call]
) -> tuple[list[Call], list[Call]]:
    """Of calls of which two spans have a version keep the later POST's (T2), whichever of the two are to be kept."""
    before = [extent for earlier in readings for extent in earlier.extents]
    kept = not_superseded(calls, before, reading.extents, ties=False)
    return kept, not_superseded(fresh, reading.extents, before, ties=True)


def _lookup(readings: Sequence[Reading]) -> str:
    found = {reading.lookup for reading in readings}
    return "hit" if found <= {"hit"} else "miss" if found == {"miss"} else "partial"


def _left(window: Window) -> bool:
    return window.start < window.end


def _clipped(window: Window, to: Window) -> Window:
    return Window(max(window.start, to.start), min(window.end, to.end))
