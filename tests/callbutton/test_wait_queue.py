"""The wait queue, without a clock."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.callbutton.wait_queue import LEAD, DropReason, Priority, Waiters, WaitQueue
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
        self.queue = WaitQueue(lambda reason: self.dropped.update([reason]), most)

    def join(self, waiters: Waiters, now: float = 0, slots: int = 1) -> int:
        number = self.queue._added + 1
        return self.queue.add(waiters, now, slots, lambda error: self.told.update({number: error})).number

    def taken(self, now: float = 0) -> list[int]:
        found = []
        while (waiting := self.queue.take(now)) is not None:
            found.append(waiting.number)
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
