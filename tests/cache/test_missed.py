"""Missed callers put together from extents, memoised or cut, equal a plain count over all calls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.api.filters import Filters
from gateway.cache import extents as extent_module
from gateway.cache import missed as missed_callers
from gateway.cache.extents import Extent, make_extent, make_extent_of_all, overlay_clients
from gateway.cache.missed import MissedCallers, Reached, TooManyCallers, place
from gateway.cache.scans import Position, order
from gateway.memory import Memo, Memory, memo_table
from gateway.model import Call, CallResult, CallStatus, SalesStatus, Window
from gateway.slices import finish
from tests.support.upstream import NOW, call

LENGTH = 40  # seconds: few, so that calls share them
MISSED = {CallResult.BUSY, CallResult.NO_ANSWER, CallResult.ABANDONED}
STATUSES = {SalesStatus.CALLED_BACK: Reached.CALLED_BACK, SalesStatus.MADE_SALE: Reached.MADE_SALE}


class Row(NamedTuple):
    """The figures of a caller in the list."""

    client_code: str
    ani: str
    calls: int
    first: int
    last: str
    reached: Reached
    reached_at: int | None


def second(one: Call) -> int:
    return int(one.start_time.timestamp())


def plain(calls: Iterable[Call], window: Window, filters: Filters, *, status: bool) -> list[Row]:
    """Count the missed callers call by call, as the reference."""
    rows: list[tuple[tuple[bool, tuple[object, ...]], Row]] = []
    known = sorted((one for one in calls if one.ani is not None), key=lambda one: (one.client_code, one.ani or ""))
    for (code, ani), group in groupby(known, key=lambda one: (one.client_code, one.ani or "")):
        own = sorted(group, key=order)
        missed = [one for one in own if one.result in MISSED and second(one) in window and filters.apply([one])]
        if not missed:
            continue
        last = missed[-1]
        later = [one for one in own if second(one) >= second(last)]
        connected = [second(one) for one in later if one.result is CallResult.CONNECTED]
        sales = [STATUSES.get(one.status.sales, Reached.NO) for one in later if one.status and status]
        reached = Reached.CONNECTED if connected else max(sales, default=Reached.NO)
        row = Row(code, ani, len(missed), second(missed[0]), last.id, reached, min(connected, default=None))
        rows.append(((reached is Reached.NO, order(last)), row))
    return [row for _, row in sorted(rows, reverse=True)]


@st.composite
def calls_of(draw: st.DrawFn) -> list[Call]:
    made = draw(
        st.lists(
            st.tuples(
                st.integers(0, LENGTH - 1),
                st.sampled_from("ab"),
                st.sampled_from([None, "1", "1", "2", "3"]),
                st.sampled_from([CallResult.CONNECTED, *MISSED, *MISSED, CallResult.OTHER]),
                st.sampled_from([None, None, None, *SalesStatus]),
                st.sampled_from(["x", "y"]),
            ),
            max_size=40,
        )
    )
    return [
        msgspec.structs.replace(
            call(str(number), NOW + start, code, campaign),
            ani=ani,
            result=result,
            status=sales and CallStatus(reviewed=False, sales=sales, journal=None),
        )
        for number, (start, code, ani, result, sales, campaign) in enumerate(made)
    ]


@st.composite
def extents_of(draw: st.DrawFn, calls: Sequence[Call]) -> list[list[Extent]]:
    """Parts of the time axis, each of extents of single clients, or of all with single clients over it."""
    cuts = sorted({0, LENGTH, *draw(st.lists(st.integers(1, LENGTH - 1), max_size=3))})
    parts = []
    for start, end in pairwise(cuts):
        window = Window(NOW + start, NOW + end)
        by_client = {code: [one for one in calls if one.client_code == code] for code in "ab"}
        if draw(st.booleans()):
            parts.append([make_extent(window, 0, found) for found in by_client.values()])
            continue
        every = make_extent_of_all(
            window,
            0,
            {code: make_extent(window, 0, found).calls for code, found in by_client.items()},
        )
        inner = sorted(draw(st.tuples(st.integers(start, end), st.integers(start, end))))
        own = {}
        if inner[0] < inner[1]:
            own["a"] = [make_extent(Window(NOW + inner[0], NOW + inner[1]), 1, by_client["a"])]
        parts.append(overlay_clients(every, own))
    return parts


def listed(
    parts: Iterable[Sequence[Extent]], window: Window, filters: Filters, *, status: bool, limit: int | None = None
) -> list[Row]:
    """The rows of the list, in pages of `limit`."""
    rows: list[Row] = []
    after: tuple[bool, Position] | None = None
    while True:
        callers = MissedCallers(window, filters.apply, filters, status=status)
        for part in parts:
            finish(callers.add(part))
        found = list(finish(callers.ordered(after, limit and limit + 1, reached=True)))
        page = found[:limit]
        rows += [
            Row(
                one.last.client_code,
                one.last.ani or "",
                one.calls,
                int(one.first.timestamp()),
                one.last.id,
                one.reached,
                None if one.reached_at is None else int(one.reached_at.timestamp()),
            )
            for one in page
        ]
        if limit is None or len(found) <= limit:
            return rows
        after = page[-1].reached is not Reached.NO, Position(*place(page[-1]))


@settings(max_examples=200, deadline=None)
@given(st.data(), calls_of(), st.integers(0, LENGTH), st.integers(0, LENGTH))
def test_missed_callers_are_those_of_a_plain_count(data: st.DataObject, calls: list[Call], start: int, end: int):
    parts = data.draw(extents_of(calls))
    memos = memo_table(Memory())
    for extent in (extent for part in parts for extent in part):
        extent.keep(Memo(memos))
    views = [[extent.view(Window(NOW, NOW + LENGTH)) for extent in part] for part in parts]
    window = Window(NOW + min(start, end), NOW + max(start, end))
    inside = [[one for one in part if one.window.end > window.start] for part in views]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extent_module, "QUARTER", data.draw(st.sampled_from([1, 900])))  # parts are memoised, or counted
        for status in (True, False):
            for filters in (Filters(), Filters(campaign="x"), Filters()):  # the third uses memoised values
                expected = plain([one for one in calls if second(one) >= window.start], window, filters, status=status)
                assert listed(inside, window, filters, status=status) == expected
                assert listed(inside, window, filters, status=status, limit=2) == expected


def test_many_callers_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(missed_callers, "MAX_CALLERS", 2)
    calls = [
        msgspec.structs.replace(call(str(number), NOW + number), ani=str(number), result=CallResult.BUSY)
        for number in range(3)
    ]
    window = Window(NOW, NOW + 3)
    assert len(listed([[make_extent(window, 0, calls[:2])]], window, Filters(), status=False)) == 2
    with pytest.raises(TooManyCallers):
        listed([[make_extent(window, 0, calls)]], window, Filters(), status=False)


def test_an_early_page_does_not_order_every_caller():
    """The callers after the limit are dropped while parts are ordered; the page stays that of the whole order."""
    calls = [
        msgspec.structs.replace(call(str(number), NOW + number % 977), ani=str(number), result=CallResult.BUSY)
        for number in range(5000)
    ]
    window = Window(NOW, NOW + 1000)
    callers = MissedCallers(window, list, None, status=False)
    finish(callers.add([make_extent(window, 0, calls)]))
    whole = [one.last.id for one in finish(callers.ordered(None, None, reached=False))]
    page = [one.last.id for one in finish(callers.ordered(None, 10, reached=False))]
    assert len(whole) == 5000
    assert page[:10] == whole[:10] == [one.id for one in sorted(calls, key=order, reverse=True)[:10]]
    assert len(page) < 1000
