"""The circuit breaker, without a clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.circuit_breaker import MAX_PAUSE, CircuitBreaker, Permit, State

THRESHOLD = 5


def broken(threshold: int = THRESHOLD, chance: float = 1.0) -> CircuitBreaker:
    """Return a circuit breaker that opened at time 0."""
    breaker = CircuitBreaker(threshold, lambda: chance)
    for _ in range(threshold):
        breaker.fail(admit(breaker, 0), 0)
    assert breaker.state is State.OPEN
    return breaker


def admit(breaker: CircuitBreaker, now: float) -> Permit:
    permit = breaker.admit(now)
    assert permit is not None
    return permit


def state_of(breaker: CircuitBreaker) -> State:
    return breaker.state


def test_so_many_failures_in_a_row_open_it():
    breaker = CircuitBreaker(THRESHOLD, lambda: 1.0)
    for failures in range(1, THRESHOLD + 1):
        assert state_of(breaker) is State.CLOSED
        breaker.fail(admit(breaker, 0), 0)
        assert breaker.failures == failures
    assert state_of(breaker) is State.OPEN
    assert breaker.admit(0.9) is None


def test_an_answer_between_failures_keeps_it_closed():
    breaker = CircuitBreaker(THRESHOLD, lambda: 1.0)
    for number in range(40):
        permit = admit(breaker, 0)
        breaker.succeed(permit) if number % THRESHOLD == 4 else breaker.fail(permit, 0)
    assert state_of(breaker) is State.CLOSED


def test_excused_failures_do_not_count_but_end_a_probe():
    breaker = CircuitBreaker(THRESHOLD, lambda: 1.0)
    for _ in range(50):
        breaker.fail(admit(breaker, 0), 0, excused=True)
    assert (state_of(breaker), breaker.failures) == (State.CLOSED, 0)
    breaker = broken()
    breaker.fail(admit(breaker, 1), 1, excused=True)
    assert state_of(breaker) is State.OPEN


def test_a_trusted_request_probes_during_the_pause_and_does_not_lengthen_it():
    breaker = broken()
    assert breaker.admit(0.5) is None
    early = breaker.admit(0.5, trusted=True)
    assert early is not None
    assert breaker.admit(0.6, trusted=True) is None  # one at a time
    breaker.fail(early, 0.7)
    assert (state_of(breaker), breaker.until) == (State.OPEN, 1.0)
    again = breaker.admit(0.8, trusted=True)
    assert again is not None
    breaker.succeed(again)
    assert state_of(breaker) is State.CLOSED


def test_it_probes_with_one_request_and_closes_when_that_is_answered():
    breaker = broken()
    probe = admit(breaker, 1.0)
    assert (state_of(breaker), breaker.admit(1.0)) == (State.HALF_OPEN, None)
    breaker.succeed(probe)
    assert (state_of(breaker), breaker.failures) == (State.CLOSED, 0)


def test_requests_from_before_a_change_of_state_say_nothing():
    breaker = CircuitBreaker(1, lambda: 1.0)
    early, failing = admit(breaker, 0), admit(breaker, 0)
    breaker.fail(failing, 0)
    breaker.succeed(early)
    assert state_of(breaker) is State.OPEN
    probe = admit(breaker, 1.0)
    breaker.fail(early, 1.0)
    breaker.withdraw(failing, 1.0)
    assert state_of(breaker) is State.HALF_OPEN
    assert [breaker.counts(permit) for permit in (early, failing, probe)] == [False, False, True]


def test_a_probe_that_is_withdrawn_leaves_its_place_to_the_next():
    breaker = broken()
    breaker.withdraw(admit(breaker, 1.0), 1.0)
    breaker.succeed(admit(breaker, 1.0))
    assert state_of(breaker) is State.CLOSED


def test_each_probe_that_fails_doubles_the_pause_up_to_a_bound_and_an_answer_resets_it():
    breaker, pauses, now = broken(threshold=1), [], 0.0
    for _ in range(7):
        pauses.append(breaker.until - now)
        now = breaker.until
        breaker.fail(admit(breaker, now), now)
    assert pauses == [1, 2, 4, 8, 16, MAX_PAUSE, MAX_PAUSE]
    breaker.succeed(admit(breaker, now + MAX_PAUSE))
    breaker.fail(admit(breaker, now), now)
    assert breaker.until == now + 1


@pytest.mark.parametrize(("chance", "pause"), [(0.0, 0.5), (0.5, 0.75), (1.0, 1.0)])
def test_half_of_a_pause_is_random(chance: float, pause: float):
    breaker = broken(chance=chance)
    assert [breaker.admits(now) for now in (pause - 0.01, pause)] == [False, True]


@given(st.lists(st.tuples(st.sampled_from(["admit", "succeed", "fail", "withdraw"]), st.floats(0, 5)), max_size=200))
def test_it_never_wedges_and_closes_with_the_first_probe_that_is_answered(events: list[tuple[str, float]]):
    breaker, now = CircuitBreaker(THRESHOLD, lambda: 0.5), 0.0
    held: list[Permit] = []
    for event, seconds in events:
        now += seconds
        if event == "admit":
            permit = breaker.admit(now)
            assert (permit is None) <= (breaker.until - now <= MAX_PAUSE)
            held += [] if permit is None else [permit]
        elif held:
            permit = held.pop()
            if event == "succeed":
                breaker.succeed(permit)
            elif event == "fail":
                breaker.fail(permit, now)
            else:
                breaker.withdraw(permit, now)
    for permit in held:
        breaker.withdraw(permit, now)
    breaker.succeed(admit(breaker, now + MAX_PAUSE))
    assert state_of(breaker) is State.CLOSED
