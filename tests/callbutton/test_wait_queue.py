"""The wait queue, without a clock."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.callbutton.wait_queue import LEAD, DropReason, Entry, Priority, Waiters, WaitQueue
from gateway.errors import Overloaded, UpstreamError


def consumer(until: float = float("inf")) -> Waiters:
    waiters = Waiters()
    waiters.join(until + LEAD)
    return waiters


class Row:
    """A queue, and the notification of each entry."""

    def __init__(self, most: int = 100) -> None:
        self.dropped: Counter[DropReason] = Counter()
        self.told: dict[int, UpstreamError | None] = {}
        self.entries: list[Entry] = []
        self.queue = WaitQueue(lambda reason: self.dropped.update([reason]), most)

    def join(self, waiters: Waiters, slots: int = 1, code: str = "a", alone: float = 0) -> int:
        number = len(self.entries) + 1
        entry = Entry(waiters, lambda error: self.told.update({number: error}), [code])
        self.entries.append(entry)
        self.queue.add(entry, 0, slots, alone)
        return number

    def taken(self, now: float = 0, held_back: str = "") -> list[int]:
        found = []
        while (entry := self.queue.take(now, lambda codes: held_back not in codes)) is not None:
            found.append(self.entries.index(entry) + 1)
            self.queue.held.update(entry.codes)
        return found


DEMANDS = st.lists(st.tuples(st.sampled_from([None, *list(Priority)]), st.booleans(), st.integers(1, 50)), max_size=30)


@given(DEMANDS, st.integers(1, 12), st.integers(0, 60))
def test_the_queue_is_ordered_and_bounded_and_notifies_each_entry_once(
    demands: list[tuple[Priority | None, bool, int]], most: int, now: int
):
    row, joined = Row(most), {}
    for background, stays, until in demands:
        waiters = Waiters(background)
        waiters.join(until + LEAD)
        try:
            joined[row.join(waiters)] = waiters
        except Overloaded as error:
            assert error.retry_after >= 1  # noqa: PT017 - both outcomes are allowed
        if not stays:
            waiters.leave()
        assert len(row.queue) <= most
    taken = row.taken(now)
    assert taken == sorted(taken, key=lambda number: (joined[number].priority, number))
    assert all(joined[number].wanted and now < joined[number].until for number in taken)
    assert set(taken) | set(row.told) == set(joined)
    assert not set(taken) & set(row.told)
    assert row.dropped.total() == len(demands) - len(taken)


def test_a_miss_goes_first_and_a_revalidation_before_a_prefetch():
    row = Row()
    prefetch, joined = Waiters(Priority.PREFETCH), Waiters(Priority.PREFETCH)
    order = [
        row.join(waiters) for waiters in (prefetch, Waiters(Priority.REVALIDATION), consumer(), joined, consumer())
    ]
    joined.join()  # a consumer needs it by now
    assert [order.index(number) for number in row.taken()] == [2, 3, 4, 1, 0]


def test_a_full_queue_evicts_the_last_entry_of_lower_priority():
    row = Row(most=2)
    first, second = row.join(Waiters(Priority.PREFETCH)), row.join(Waiters(Priority.PREFETCH))
    third = row.join(consumer())
    with pytest.raises(Overloaded):
        row.join(Waiters(Priority.PREFETCH))
    assert list(row.told) == [second]
    assert row.taken() == [third, first]
    assert row.dropped == {DropReason.FULL: 2}


def test_an_entry_whose_turn_would_come_too_late_is_rejected():
    row = Row()
    row.queue.record(10)
    row.join(consumer(until=25), slots=1)
    row.join(consumer(until=25), slots=1)
    with pytest.raises(Overloaded) as refused:
        row.join(consumer(until=25), slots=1)
    assert refused.value.retry_after == 30
    row.join(consumer(until=25), slots=2)
    assert row.dropped == {DropReason.LATE: 1}


def test_client_codes_take_turns():
    row = Row()
    order = [row.join(consumer(), code=code) for code in "aaabbc"]
    row.queue.held.update("bb")  # two POSTs of b are in flight
    assert [("aaabbc")[order.index(number)] for number in row.taken()] == [*"acaabb"]


def test_a_full_queue_evicts_the_last_entry_of_the_code_with_the_most():
    row = Row(most=4)
    for _ in range(4):
        row.join(consumer(), code="a")
    for code in "bc":
        row.join(consumer(), code=code)
    assert list(row.told) == [4, 3]
    with pytest.raises(Overloaded):
        row.join(consumer(), code="a")
    assert row.taken() == [1, 5, 6, 2]


def test_entries_whose_codes_may_not_go_wait_and_hold_nobody_up():
    row = Row()
    first, second, third = (row.join(consumer(), code=code) for code in "aba")
    assert row.taken(held_back="a") == [second]
    assert row.taken() == [first, third]


def test_a_code_with_one_slot_of_its_own_is_estimated_by_its_own_posts():
    row = Row()
    row.queue.record(1)
    for _ in range(2):
        row.join(consumer(until=65), code="slow", alone=30)
    with pytest.raises(Overloaded) as refused:
        row.join(consumer(until=65), code="slow", alone=30)
    assert refused.value.retry_after == 90
    row.join(consumer(until=3), code="quick")
