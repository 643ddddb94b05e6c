"""A circuit breaker: stops requests to a server that seems down, then probes it. Pure; time is an argument, in seconds.

    state       admits                                 after a success    after a failure
    closed      every request                          closed             open, if it is the `threshold`-th in a row
    open        no request during the pause; then one request, the probe, which makes it half-open
    half-open   no request                             closed             open, with a pause twice as long

Rules:
- Pauses are from MIN_PAUSE to MAX_PAUSE. Half of each is random, so that replicas do not probe at the same time.
- The outcome of a request that was admitted before the last change of state is ignored.
- A `trusted` request may be the probe before the pause has ended. If it fails, the pause stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

MIN_PAUSE, MAX_PAUSE = 1.0, 30.0  # seconds; a restart takes one or two; a server is used within 30 of its return


class State(IntEnum):
    """The state, and its value in metrics."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Permit(NamedTuple):
    """Permission to send one request. `change` is the number of changes of state before it."""

    change: int


class CircuitBreaker:
    """A circuit breaker. `chance` returns random numbers from 0 to 1."""

    def __init__(self, threshold: int, chance: Callable[[], float]) -> None:
        self._threshold = threshold
        self._chance = chance
        self._changes = 0
        self._until = 0.0
        self._pause = MIN_PAUSE
        self.state = State.CLOSED
        self.failures = 0  # in a row

    @property
    def until(self) -> float:
        """The time at which the pause ends, if the breaker is not closed."""
        return self._until

    def admits(self, now: float, *, trusted: bool = False) -> bool:
        """Whether a request may be sent."""
        return self.state is State.CLOSED or (self.state is State.OPEN and (trusted or now >= self._until))

    def admit(self, now: float, *, trusted: bool = False) -> Permit | None:
        """Admit a request; None if it must not be sent.

        The caller reports the outcome once: `succeed`, `fail` or `withdraw`.
        """
        if not self.admits(now, trusted=trusted):
            return None
        if self.state is State.OPEN:
            self._change_to(State.HALF_OPEN)
        return Permit(self._changes)

    def counts(self, permit: Permit) -> bool:
        """Whether the outcome of a request counts: the state has not changed since it was admitted."""
        return permit.change == self._changes

    def succeed(self, permit: Permit) -> None:
        """Report that the server answered."""
        if self.counts(permit):
            self.failures, self._pause = 0, MIN_PAUSE
            if self.state is not State.CLOSED:
                self._change_to(State.CLOSED)

    def fail(self, permit: Permit, now: float, *, excused: bool = False) -> None:
        """Report that the server failed. A failure that is `excused` does not count while the breaker is closed."""
        if not self.counts(permit):
            return
        if self.state is State.HALF_OPEN and now < self._until:
            self._change_to(State.OPEN)
        elif self.state is State.HALF_OPEN:
            self._pause = min(MAX_PAUSE, 2 * self._pause)
            self._open(now)
        elif not excused:
            self.failures += 1
            if self.failures >= self._threshold:
                self._open(now)

    def withdraw(self, permit: Permit, now: float) -> None:
        """Report that the request has no outcome, for example a cancelled one. The next request may be the probe."""
        if self.counts(permit) and self.state is State.HALF_OPEN:
            self._until = now
            self._change_to(State.OPEN)

    def _open(self, now: float) -> None:
        self._until = now + self._pause * (0.5 + 0.5 * self._chance())
        self._change_to(State.OPEN)

    def _change_to(self, state: State) -> None:
        self.state = state
        self._changes += 1
