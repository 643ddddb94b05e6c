"""The limit, suspects and retry budget, without a clock; and admission, which combines them with the wait queue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from gateway.callbutton.admission import (
    FAILURES_TO_OPEN,
    MAX_BACKOFF,
    MAX_SUSPECTS,
    MIN_BACKOFF,
    RETRY_RATIO,
    AdaptiveLimit,
    Admission,
    Evidence,
    RetryBudget,
    backoff,
    is_outage,
    is_retryable,
)
from gateway.callbutton.wait_queue import LEAD, Waiters
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
from tests.support.loops import settle

SILENT = UpstreamTimeout("no byte", answering=False)


def consumer(until: float = float("inf")) -> Waiters:
    waiters = Waiters()
    waiters.join(until + LEAD)
    return waiters


@given(st.integers(1, 50), st.lists(st.tuples(st.booleans(), st.floats(0, 100)), max_size=60))
def test_the_limit_stays_between_one_and_the_most_and_recovers(most: int, events: list[tuple[bool, float]]):
    limit = AdaptiveLimit(most)
    assert limit.slots == most
    now = 0.0
    for answered, seconds in events:
        before = limit.slots
        sent, now = now, now + seconds
        limit.on_success() if answered else limit.on_overload(sent, now)
        assert max(1, before // 2) <= limit.slots <= min(most, before + 1)
    for _ in range(most * (most + 1)):
        limit.on_success()
    assert limit.slots == most


def test_posts_that_time_out_together_halve_the_limit_once():
    limit = AdaptiveLimit(8)
    for _ in range(8):
        limit.on_overload(sent=0, now=30)
    assert limit.slots == 4
    limit.on_overload(sent=30, now=60)
    assert limit.slots == 2


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
    assert (is_outage(error), is_retryable(error)) == (against, helped)


def test_the_first_failure_of_a_code_counts_for_all_and_later_ones_for_itself_until_it_is_answered():
    evidence = Evidence()
    assert [evidence.failed([code], 30, connected=True) for code in "abab"] == [True, True, False, False]
    evidence.answered(["a"])
    assert [evidence.failed([code], 30, connected=True) for code in "ab"] == [True, False]


def test_every_client_and_a_lost_connection_count_for_all_each_time_and_a_batch_never():
    evidence = Evidence()
    assert all(evidence.failed(["*"], 30, connected=True) for _ in range(3))
    assert all(evidence.failed(["a"], 30, connected=False) for _ in range(3))
    assert not evidence.failed(["a", "b"], 30, connected=True)
    assert evidence.seconds_of_suspects("ab") is None


def test_the_address_is_taken_to_be_refused_if_every_client_or_two_in_a_row_are():
    evidence = Evidence()
    assert [evidence.answered([code], refused=True) for code in "aab"] == [True, True, False]
    assert evidence.answered(["c"])
    assert [evidence.answered([code], refused=True) for code in "bb"] == [True, True]
    assert evidence.answered(["a", "b"], refused=True)  # a batch: one of them may be the reason
    assert not evidence.answered(["*"], refused=True)


@given(st.lists(st.tuples(st.sampled_from(["answered", "failed"]), st.integers(0, 3000)), max_size=50))
def test_what_is_known_of_codes_is_bounded_and_a_code_is_proven_or_suspect(events: list[tuple[str, int]]):
    evidence = Evidence()
    for outcome, number in [*events, *[("failed", number) for number in range(MAX_SUSPECTS + 5)]]:
        code = str(number)
        if outcome == "answered":
            evidence.answered([code])
        else:
            evidence.failed([code], 1, connected=True)
        assert evidence.are_proven([code]) == (outcome == "answered")
        assert (evidence.seconds_of_suspects([code]) is None) == (outcome == "answered")
    assert evidence.seconds_of_suspects(["0"]) is None  # the oldest


@given(st.lists(st.booleans(), max_size=500))
def test_retries_are_at_most_a_tenth_of_requests(asks: list[bool]):
    budget, retries = RetryBudget(), 0
    for requests, asked in enumerate(asks, start=1):
        budget.earn()
        retries += asked and budget.spend()
        assert retries <= requests * RETRY_RATIO + 1e-6


def test_a_retry_that_was_called_off_may_be_used_later():
    budget = RetryBudget()
    for _ in range(10):
        budget.earn()
    assert budget.spend()
    assert not budget.spend()
    budget.give_back()
    assert budget.spend()
    assert MIN_BACKOFF <= backoff(0) < backoff(1) <= MAX_BACKOFF


class Stage:
    """An admission whose POSTs end when the test ends them. The code of a POST `a/2` is `a`."""

    def __init__(self, most: int) -> None:
        self.registry = CollectorRegistry()
        self.admission = Admission(most, Metrics(self.registry))
        self.sent: list[str] = []
        self.ends: dict[str, asyncio.Future[None]] = {}

    async def post(self, name: str, waiters: Waiters | None = None) -> None:
        async with self.admission.slot([name.partition("/")[0]], waiters or consumer()):
            self.sent.append(name)
            self.ends[name] = asyncio.get_running_loop().create_future()
            await self.ends[name]

    def start(self, name: str, waiters: Waiters | None = None) -> asyncio.Task[None]:
        return asyncio.create_task(self.post(name, waiters))

    async def end(self, name: str, error: UpstreamError | None = None) -> None:
        self.ends[name].set_exception(error) if error else self.ends[name].set_result(None)
        await settle()

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"callbutton_gateway_upstream_{name}", labels)


def staged(most: int) -> Callable[[Callable[[Stage], Coroutine[Any, Any, None]]], Callable[[], None]]:
    """Turn a coroutine function that takes a Stage into a test."""

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
    waiters = consumer()
    tasks = [stage.start("a"), stage.start("b", waiters), stage.start("c")]
    await settle()
    waiters.leave()
    await stage.end("a")
    assert stage.sent == ["a", "c"]
    assert isinstance(tasks[1].exception(), Overloaded)
    assert stage.metric("dropped_total", reason="unwanted") == 1
    await stage.end("c")


@staged(most=1)
async def test_a_waiter_without_a_turn_is_refused_before_it_gives_up(stage: Stage):
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
    tasks = [stage.start(name) for name in "abcdefghijkl"]
    await settle()
    for name in "abcde":
        await stage.end(name, SILENT)
    assert (stage.metric("limit"), stage.metric("circuit_state"), stage.metric("healthy")) == (4, 2, 0)
    assert stage.sent == [*"abcdefghij"]  # from the third code on, failures lower the limit
    assert [type(task.exception()) for task in tasks[10:]] == [UpstreamCircuitOpen, UpstreamCircuitOpen]
    with pytest.raises(UpstreamCircuitOpen):
        await stage.post("m")
    assert stage.metric("dropped_total", reason="circuit-open") == 3
    for name in "fghij":
        await stage.end(name)
    assert stage.metric("circuit_state") == 2  # sent before it opened


@staged(most=1)
async def test_a_probe_that_is_given_up_does_not_wedge_the_breaker(stage: Stage):
    for number in range(FAILURES_TO_OPEN):
        task = stage.start(str(number))
        await settle()
        await stage.end(str(number), UpstreamUnreachable("refused"))
        assert task.done()
    stage.admission.breaker._until = 0  # let time pass
    probe = stage.start("probe")
    await settle()
    probe.cancel()
    await settle()
    again = stage.start("again")
    await settle()
    await stage.end("again")
    assert again.exception() is None
    assert (stage.metric("circuit_state"), stage.metric("queue_length")) == (0, 0)


async def fail(stage: Stage, code: str, error: UpstreamError = SILENT) -> None:
    stage.start(code)
    await settle()
    await stage.end(code, error)


@staged(most=8)
async def test_failures_of_a_few_clients_lower_no_limit_and_open_no_breaker_and_those_of_others_do(stage: Stage):
    for _ in range(20):
        await fail(stage, "a")
        await fail(stage, "b", UpstreamFailed("500", status=500))
    assert (stage.metric("circuit_state"), stage.metric("limit")) == (0, 8)
    for code in "cde":
        assert stage.metric("circuit_state") == 0
        await fail(stage, code)
    assert (stage.metric("circuit_state"), stage.metric("limit")) == (2, 1)


@staged(most=8)
async def test_any_number_of_bad_clients_among_good_ones_opens_no_breaker(stage: Stage):
    for _ in range(3):
        for number in range(50):
            await fail(stage, f"bad{number}")
            stage.start("good")
            await settle()
            await stage.end("good")
    for number in range(50):  # and now in a row
        await fail(stage, f"bad{number}")
    assert stage.metric("circuit_state") == 0


@staged(most=8)
async def test_failures_of_every_client_open_the_breaker_and_a_client_that_was_answered_closes_it(stage: Stage):
    stage.start("a")
    await settle()
    await stage.end("a")
    for _ in range(FAILURES_TO_OPEN):
        await fail(stage, "*")
    assert stage.metric("circuit_state") == 2
    with pytest.raises(UpstreamCircuitOpen):
        await stage.post("unknown")
    stage.start("a")  # during the pause
    await settle()
    await stage.end("a")
    assert stage.metric("circuit_state") == 0


@staged(most=8)
async def test_a_client_holds_a_part_of_the_slots_and_the_others_do_not_wait(stage: Stage):
    silent = [stage.start(f"silent/{number}") for number in range(20)]
    await settle()
    assert stage.sent == ["silent/0", "silent/1"]  # a quarter
    for number in range(6):
        stage.start(f"good{number}")
    await settle()
    assert stage.sent[2:] == [f"good{number}" for number in range(6)]
    late = stage.start("late")
    await settle()
    await stage.end("good0")
    assert stage.sent[-1] == "late"
    await stage.end("silent/0", SILENT)
    assert stage.sent[-1] == "late"  # a suspect has one slot, and its other POST holds it
    for code in ("late", *(f"good{number}" for number in range(1, 6))):
        await stage.end(code)
    assert late.done()
    assert stage.sent[-1] == "late"
    assert stage.metric("limit") == 8
    await stage.end("silent/1", SILENT)
    assert stage.sent[-1] == "silent/2"
    for task in silent:
        task.cancel()
    await settle()


@staged(most=8)
async def test_a_client_that_is_answered_holds_up_to_half_of_the_slots(stage: Stage):
    stage.start("a")
    await settle()
    await stage.end("a")
    tasks = [stage.start(f"a/{number}") for number in range(8)]
    await settle()
    assert len(stage.sent) == 1 + 4
    for task in tasks:
        task.cancel()
    await settle()


@staged(most=8)
async def test_all_suspects_together_hold_half_of_the_slots(stage: Stage):
    bad = [f"bad{number}" for number in range(8)]
    for code in bad[:4]:
        await fail(stage, code)
    stage.start("good")
    await settle()
    await stage.end("good")
    for code in bad[4:]:
        await fail(stage, code)
    slots = int(stage.metric("limit") or 0)
    assert slots >= 1
    stage.sent.clear()
    tasks = [stage.start(code) for code in bad]
    await settle()
    assert len(stage.sent) == max(1, slots // 2)
    for task in tasks:
        task.cancel()
    await settle()


@staged(most=8)
async def test_a_batch_with_a_client_at_its_share_waits(stage: Stage):
    async def post(codes: list[str]) -> None:
        async with stage.admission.slot(codes, consumer()):
            stage.sent.append("".join(codes))
            await asyncio.Event().wait()

    tasks = [asyncio.create_task(post(codes)) for codes in (["x", "a"], ["y", "a"], ["z", "a"], ["z", "b"])]
    await settle()
    assert stage.sent == ["xa", "ya", "zb"]
    for task in tasks:
        task.cancel()
    await settle()


@staged(most=8)
async def test_failures_to_connect_open_the_breaker_whatever_client_was_asked_for(stage: Stage):
    for _ in range(FAILURES_TO_OPEN):
        stage.start("a")
        await settle()
        await stage.end("a", UpstreamUnreachable("refused"))
    assert stage.metric("circuit_state") == 2


@staged(most=1)
async def test_a_waiter_that_is_cancelled_after_its_turn_came_gives_its_slot_back(stage: Stage):
    first, second, third = (stage.start(name) for name in "abc")
    await settle()
    stage.ends["a"].set_result(None)
    await first  # its end gives the slot to the second, which has not run yet
    assert (stage.metric("posts_in_flight"), stage.sent) == (1, ["a"])
    second.cancel()
    await settle()
    assert (second.cancelled(), stage.sent) == (True, ["a", "c"])
    await stage.end("c")
    assert third.done()
    assert stage.metric("posts_in_flight") == 0


@staged(most=1)
async def test_a_post_with_a_limit_does_not_wait_past_it_though_its_waiters_would(stage: Stage):
    first = stage.start("a")
    await settle()
    with pytest.raises(Overloaded):
        async with stage.admission.slot(["b"], consumer(), asyncio.get_running_loop().time() + 0.01):
            raise AssertionError("it was sent")
    assert stage.metric("dropped_total", reason="late") == 1
    await stage.end("a")
    assert first.done()
