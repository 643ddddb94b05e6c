"""The line, the limit, the breaker and the retry, without a clock; and the gate that puts them together."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from gateway.callbutton import breaker, retry
from gateway.callbutton.breaker import IN_A_ROW, LONGEST, Breaker, Permit, State, counts
from gateway.callbutton.gate import Gate
from gateway.callbutton.limit import Limit
from gateway.callbutton.queue import LEAD, Demand, Line, Priority, Reason
from gateway.errors import (
    Overloaded,
    UpstreamCircuitOpen,
    UpstreamError,
    UpstreamFailed,
    UpstreamMalformed,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnauthorized,
    UpstreamUnreachable,
)
from gateway.metrics import Metrics

SILENT = UpstreamTimeout("no byte", answering=False)


def consumer(until: float = float("inf")) -> Demand:
    demand = Demand()
    demand.join(until + LEAD)
    return demand


class Row:
    """A line, and what it told each that waited."""

    def __init__(self, most: int = 100) -> None:
        self.dropped: Counter[Reason] = Counter()
        self.told: dict[int, UpstreamError | None] = {}
        self.line = Line(lambda reason: self.dropped.update([reason]), most)

    def join(self, demand: Demand, now: float = 0, places: int = 1) -> int:
        number = self.line._number + 1
        return self.line.join(demand, now, places, lambda error: self.told.update({number: error})).number

    def taken(self, now: float = 0) -> list[int]:
        found = []
        while (waiting := self.line.take(now)) is not None:
            found.append(waiting.number)
        return found


DEMANDS = st.lists(st.tuples(st.sampled_from([None, *list(Priority)]), st.booleans(), st.integers(1, 50)), max_size=30)


@given(DEMANDS, st.integers(1, 12), st.integers(0, 60))
def test_the_line_is_in_order_bounded_and_tells_each_exactly_once(
    demands: list[tuple[Priority | None, bool, int]], most: int, now: int
):
    row, joined = Row(most), {}
    for background, stays, until in demands:
        demand = Demand(background)
        demand.join(until + LEAD)
        try:
            joined[row.join(demand)] = demand
        except Overloaded as error:
            assert error.wait >= 1  # noqa: PT017 - either way goes on
        if not stays:
            demand.leave()
        assert len(row.line) <= most
    taken = row.taken(now)
    assert taken == sorted(taken, key=lambda number: (joined[number].priority, number))
    assert all(joined[number].wanted and now < joined[number].until for number in taken)
    assert set(taken) | set(row.told) == set(joined)
    assert not set(taken) & set(row.told)
    assert row.dropped.total() == len(demands) - len(taken)


def test_a_miss_goes_first_and_a_revalidation_before_a_prefetch():
    row = Row()
    prefetch, joined = Demand(Priority.PREFETCH), Demand(Priority.PREFETCH)
    order = [row.join(demand) for demand in (prefetch, Demand(Priority.REVALIDATION), consumer(), joined, consumer())]
    joined.join()  # a consumer needs it by now
    assert [order.index(number) for number in row.taken()] == [2, 3, 4, 1, 0]


def test_a_full_line_turns_out_the_last_of_lower_priority():
    row = Row(most=2)
    first, second = row.join(Demand(Priority.PREFETCH)), row.join(Demand(Priority.PREFETCH))
    third = row.join(consumer())
    with pytest.raises(Overloaded):
        row.join(Demand(Priority.PREFETCH))
    assert list(row.told) == [second]
    assert row.taken() == [third, first]
    assert row.dropped == {Reason.FULL: 2}


def test_what_cannot_have_its_turn_in_time_does_not_wait():
    row = Row()
    row.line.learn(10)
    row.join(consumer(until=25), places=1)
    row.join(consumer(until=25), places=1)
    with pytest.raises(Overloaded) as refused:
        row.join(consumer(until=25), places=1)
    assert refused.value.wait == 30
    row.join(consumer(until=25), places=2)
    assert row.dropped == {Reason.LATE: 1}


@given(st.integers(1, 50), st.lists(st.tuples(st.booleans(), st.floats(0, 100)), max_size=60))
def test_the_limit_stays_between_one_and_the_most_and_recovers(most: int, events: list[tuple[bool, float]]):
    limit = Limit(most)
    assert limit.allowed == most
    now = 0.0
    for answered, seconds in events:
        before = limit.allowed
        sent, now = now, now + seconds
        limit.answered() if answered else limit.strained(sent, now)
        assert max(1, before // 2) <= limit.allowed <= min(most, before + 1)
    for _ in range(most * (most + 1)):
        limit.answered()
    assert limit.allowed == most


def test_posts_that_time_out_together_halve_the_limit_once():
    limit = Limit(8)
    for _ in range(8):
        limit.strained(sent=0, now=30)
    assert limit.allowed == 4
    limit.strained(sent=30, now=60)
    assert limit.allowed == 2


KINDS = [
    (UpstreamUnreachable("refused"), True, True),
    (SILENT, True, False),
    (UpstreamFailed("500", status=500), True, False),
    (UpstreamFailed("502", status=502), True, True),
    (UpstreamFailed("503", status=503), True, True),
    (UpstreamFailed("503", status=503, retry_after=60), True, False),
    (UpstreamFailed("504", status=504), True, True),
    (UpstreamFailed("404", status=404), False, False),
    (UpstreamFailed("ERROR", reported=True), False, False),
    (UpstreamUnauthorized(None, None), False, False),
    (UpstreamRejected("dates"), False, False),
    (UpstreamMalformed("html"), False, False),
]


@pytest.mark.parametrize(("error", "against", "helped"), KINDS, ids=[str(error) for error, _, _ in KINDS])
def test_what_counts_against_the_upstream_and_what_a_retry_helps(error: UpstreamError, against: bool, helped: bool):
    assert (counts(error), retry.helps(error)) == (against, helped)


def state_of(broken: Breaker) -> State:
    return broken.state


def fail(broken: Breaker, *codes: str, now: float = 0.0, connected: bool = True) -> None:
    broken.failed(broken.admit(now), codes, now, connected=connected)


def test_five_failures_in_a_row_open_it_but_not_those_of_one_client():
    broken = Breaker(lambda: 1.0)
    for _ in range(50):
        fail(broken, "a", "b")
    assert state_of(broken) is State.CLOSED
    fail(broken, "c")
    assert state_of(broken) is State.OPEN
    with pytest.raises(UpstreamCircuitOpen) as refused:
        broken.admit(0.1)
    assert refused.value.wait == 1


def test_no_connection_is_no_client_s_fault():
    broken = Breaker(lambda: 1.0)
    for _ in range(IN_A_ROW):
        fail(broken, "a", connected=False)
    assert state_of(broken) is State.OPEN


def test_an_answer_between_failures_keeps_it_closed():
    broken = Breaker(lambda: 1.0)
    for number in range(40):
        broken.answered(broken.admit(0)) if number % IN_A_ROW == 4 else fail(broken, str(number))
    assert state_of(broken) is State.CLOSED


def test_it_probes_with_one_and_closes_when_that_is_answered():
    broken = Breaker(lambda: 1.0)
    stragglers = [broken.admit(0) for _ in range(3)]
    for number in range(IN_A_ROW):
        fail(broken, str(number))
    broken.failed(stragglers[0], ["x"], 0.5, connected=True)
    broken.answered(stragglers[1])
    assert state_of(broken) is State.OPEN
    probe = broken.admit(1.0)
    with pytest.raises(UpstreamCircuitOpen):
        broken.admit(1.0)
    broken.answered(stragglers[2])
    assert state_of(broken) is State.PROBING
    broken.failed(probe, ["a"], 1.5, connected=True)
    with pytest.raises(UpstreamCircuitOpen):
        broken.admit(3.4)
    broken.answered(broken.admit(3.5))
    assert state_of(broken) is State.CLOSED


@given(st.lists(st.tuples(st.sampled_from("agfu"), st.floats(0, 5), st.sampled_from("abc")), max_size=200))
def test_it_never_wedges_and_heals_within_two_probes(events: list[tuple[str, float, str]]):
    broken, now = Breaker(lambda: 0.5), 0.0
    held: list[tuple[Permit, str]] = []
    for event, seconds, code in events:
        now += seconds
        if event == "a":
            try:
                held.append((broken.admit(now), code))
            except UpstreamCircuitOpen as refusal:
                assert 1 <= refusal.wait <= LONGEST  # noqa: PT017 - either way goes on
        elif held:
            permit, asked = held.pop()
            if event == "g":
                broken.answered(permit)
            elif event == "f":
                broken.failed(permit, [asked], now, connected=True)
            else:
                broken.unsent(permit, now)
    for permit, _ in held:
        broken.unsent(permit, now)
    probes = 0
    while state_of(broken) is not State.CLOSED:
        now, probes = now + LONGEST, probes + 1
        broken.answered(broken.admit(now))
    assert probes <= 1


@given(st.lists(st.booleans(), max_size=500))
def test_retries_are_at_most_a_tenth_of_requests(asks: list[bool]):
    budget, retries = retry.Budget(), 0
    for requests, asked in enumerate(asks, start=1):
        budget.earn()
        retries += asked and budget.spend()
        assert retries <= requests * retry.SHARE + 1e-6


def test_a_retry_that_was_called_off_may_be_used_later():
    budget = retry.Budget()
    for _ in range(10):
        budget.earn()
    assert budget.spend()
    assert not budget.spend()
    budget.give_back()
    assert budget.spend()
    assert retry.SOONEST <= retry.pause(0) < retry.pause(1) <= retry.LATEST


class Stage:
    """A gate and POSTs through it that end when told."""

    def __init__(self, most: int) -> None:
        self.registry = CollectorRegistry()
        self.gate = Gate(most, Metrics(self.registry))
        self.sent: list[str] = []
        self.ends: dict[str, asyncio.Future[None]] = {}

    async def post(self, name: str, demand: Demand | None = None) -> None:
        async with self.gate.through([name], demand or consumer()):
            self.sent.append(name)
            self.ends[name] = asyncio.get_running_loop().create_future()
            await self.ends[name]

    def start(self, name: str, demand: Demand | None = None) -> asyncio.Task[None]:
        return asyncio.create_task(self.post(name, demand))

    async def end(self, name: str, error: UpstreamError | None = None) -> None:
        self.ends[name].set_exception(error) if error else self.ends[name].set_result(None)
        await settle()

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"callbutton_gateway_upstream_{name}", labels)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def staged(most: int) -> Callable[[Callable[[Stage], Coroutine[Any, Any, None]]], Callable[[], None]]:
    """Make a test of a coroutine that plays on a stage."""

    def made(play: Callable[[Stage], Coroutine[Any, Any, None]]) -> Callable[[], None]:
        async def run() -> None:
            await play(Stage(most))

        return lambda: asyncio.run(run())

    return made


@staged(most=2)
async def test_no_more_posts_than_the_limit_are_under_way_and_the_next_goes_when_one_ends(stage: Stage):
    tasks = [stage.start(name) for name in "abcd"]
    await settle()
    assert stage.sent == ["a", "b"]
    assert stage.metric("queue_length") == 2
    await stage.end("a")
    assert stage.sent == ["a", "b", "c"]
    await stage.end("b", UpstreamMalformed("html"))
    await stage.end("c")
    await stage.end("d")
    assert [type(task.exception()) for task in tasks] == [type(None), UpstreamMalformed, type(None), type(None)]
    assert (stage.metric("queue_length"), stage.metric("limit"), stage.metric("healthy")) == (0, 2, 1)


@staged(most=1)
async def test_a_queued_post_that_nobody_awaits_any_more_is_dropped_unsent(stage: Stage):
    demand = consumer()
    tasks = [stage.start("a"), stage.start("b", demand), stage.start("c")]
    await settle()
    demand.leave()
    await stage.end("a")
    assert stage.sent == ["a", "c"]
    assert isinstance(tasks[1].exception(), Overloaded)
    assert stage.metric("dropped_total", reason="unwanted") == 1
    await stage.end("c")


@staged(most=1)
async def test_who_has_had_no_turn_in_time_is_told_before_he_leaves(stage: Stage):
    now = asyncio.get_running_loop().time()
    first = stage.start("a")
    late = stage.start("b", consumer(now + 0.05))
    with pytest.raises(Overloaded):
        await late
    assert stage.sent == ["a"]
    assert stage.metric("dropped_total", reason="late") == 1
    await stage.end("a")
    await first


@staged(most=8)
async def test_time_outs_halve_the_limit_and_open_the_breaker_for_all_who_wait(stage: Stage):
    tasks = [stage.start(name) for name in "abcdefghij"]
    await settle()
    for name in "abcde":
        await stage.end(name, SILENT)
    assert (stage.metric("limit"), stage.metric("circuit_state"), stage.metric("healthy")) == (4, 2, 0)
    assert stage.sent == [*"abcdefgh"]
    assert [type(task.exception()) for task in tasks[8:]] == [UpstreamCircuitOpen, UpstreamCircuitOpen]
    with pytest.raises(UpstreamCircuitOpen):
        await stage.post("k")
    assert stage.metric("dropped_total", reason="circuit-open") == 3
    for name in "fgh":
        await stage.end(name)
    assert stage.metric("circuit_state") == 2  # sent before it opened


@staged(most=1)
async def test_a_probe_that_is_given_up_does_not_wedge_the_breaker(stage: Stage):
    for number in range(breaker.IN_A_ROW):
        task = stage.start(str(number))
        await settle()
        await stage.end(str(number), UpstreamUnreachable("refused"))
        assert task.done()
    stage.gate._breaker._until = 0  # let time pass
    probe = stage.start("probe")
    await settle()
    probe.cancel()
    await settle()
    again = stage.start("again")
    await settle()
    await stage.end("again")
    assert again.exception() is None
    assert (stage.metric("circuit_state"), stage.metric("queue_length")) == (0, 0)
