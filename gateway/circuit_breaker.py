"""Whether to send a request to a server that may be down. Pure; instants are arguments, of any one clock.

    state       admits                    success    failure
    closed      every request             closed     the `threshold`-th in a row: open
    open        none until an instant, then one request, which makes it half-open
    half-open   none                      closed     open, for twice as long, up to MAX_PAUSE

Rules:
- Half of each pause is random, so that replicas do not probe together.
- The outcome of a request that was admitted before the last change of state is ignored.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

MIN_PAUSE, MAX_PAUSE = 1.0, 30.0  # seconds; a restart takes one or two, and a server that is back is used within 30


class State(IntEnum):
    """As metrics show it."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


class Permit(NamedTuple):
    """Permission to send one request; its outcome counts while the state has not changed since."""

    change: int


class CircuitBreaker:
    """A circuit breaker. `chance` gives numbers from 0 to 1."""

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
        """While it is not closed, the instant at which the pause ends."""
        return self._until

    def admits(self, now: float) -> bool:
        """Whether a request may be sent."""
        return self.state is State.CLOSED or (self.state is State.OPEN and now >= self._until)

    def admit(self, now: float) -> Permit | None:
        """Let a request go, if it may: the probe when a pause has ended. Its outcome must be reported once."""
        if not self.admits(now):
            return None
        if self.state is State.OPEN:
            self._turn(State.HALF_OPEN)
        return Permit(self._changes)

    def counts(self, permit: Permit) -> bool:
        """Whether the outcome of a request is used: the state has not changed since it was admitted."""
        return permit.change == self._changes

    def succeed(self, permit: Permit) -> None:
        """Report that the server answered."""
        if self.counts(permit):
            self.failures, self._pause = 0, MIN_PAUSE
            if self.state is not State.CLOSED:
                self._turn(State.CLOSED)

    def fail(self, permit: Permit, now: float, *, excused: bool = False) -> None:
        """Report that the server failed; a failure that is `excused` is counted but does not open the breaker."""
        if not self.counts(permit):
            return
        if self.state is State.HALF_OPEN:
            self._pause = min(MAX_PAUSE, 2 * self._pause)
            self._open(now)
            return
        self.failures += 1
        if self.failures >= self._threshold and not excused:
            self._open(now)

    def withdraw(self, permit: Permit, now: float) -> None:
        """Report that the request had no outcome, a cancellation for example; the next one may be the probe."""
        if self.counts(permit) and self.state is State.HALF_OPEN:
            self._until = now
            self._turn(State.OPEN)

    def _open(self, now: float) -> None:
        self._until = now + self._pause * (0.5 + 0.5 * self._chance())
        self._turn(State.OPEN)

    def _turn(self, state: State) -> None:
        self.state = state
        self._changes += 1
