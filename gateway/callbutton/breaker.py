"""Whether to ask the upstream at all. Pure; time is an argument.

Rules:
- What counts: no connection, time-outs, 5xx (`counts`). ERROR, UNAUTHORIZED and an answer that is malformed are
  answers: the upstream lives.
- `IN_A_ROW` that count, with no answer between them, open it; but never while one client code was in all of them, for
  then that code may be the reason. Where there was no connection no code can be.
- Open, it refuses until an instant, then lets one POST through. If that is answered it closes; if not it stays open
  for twice as long, up to `LONGEST`. Half of each time is left to chance, so that replicas do not probe together.
- A POST sent before the last change of state says nothing about the present one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import NamedTuple

from gateway.errors import UpstreamCircuitOpen, UpstreamError, UpstreamFailed, UpstreamTimeout, UpstreamUnreachable

IN_A_ROW = 5
SHORTEST, LONGEST = 1.0, 30.0  # seconds that it stays open


class State(IntEnum):
    """As the metric shows it."""

    CLOSED = 0
    PROBING = 1
    OPEN = 2


class Permit(NamedTuple):
    """Leave to send one POST; good for news while the breaker has not changed since."""

    change: int


def counts(error: UpstreamError) -> bool:
    """Tell whether an error counts against the upstream."""
    if isinstance(error, UpstreamFailed):
        return error.status >= 500
    return isinstance(error, (UpstreamUnreachable, UpstreamTimeout))


class Breaker:
    """The breaker. `chance` gives numbers from 0 to 1."""

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance
        self._change = 0
        self._suspects: frozenset[str] | None = None  # codes that were in every failure in a row
        self._until = 0.0
        self._stay = SHORTEST
        self.state = State.CLOSED
        self.failures = 0  # in a row

    def refuse(self, now: float) -> None:
        """Raise UpstreamCircuitOpen if no POST may go at `now`."""
        if self.state is State.PROBING or (self.state is State.OPEN and now < self._until):
            seconds = max(1, math.ceil(self._until - now))
            raise UpstreamCircuitOpen("the Callbutton server has failed several times in a row", seconds)

    def admit(self, now: float) -> Permit:
        """Let a POST go, the probe if it is open; whoever has the permit reports once. Raises UpstreamCircuitOpen."""
        self.refuse(now)
        if self.state is State.OPEN:
            self._turn(State.PROBING)
        return Permit(self._change)

    def answered(self, permit: Permit) -> None:
        """Learn that a POST was answered."""
        if permit.change == self._change:
            self._suspects, self.failures, self._stay = None, 0, SHORTEST
            if self.state is not State.CLOSED:
                self._turn(State.CLOSED)

    def failed(self, permit: Permit, codes: Iterable[str], now: float, *, connected: bool) -> None:
        """Learn that a POST failed in a way that counts; `connected` unless there was no connection."""
        if permit.change != self._change:
            return
        if self.state is State.PROBING:
            self._stay = min(LONGEST, 2 * self._stay)
            self._open(now)
            return
        involved = frozenset(codes) if connected else frozenset()
        self._suspects = involved if self._suspects is None else self._suspects & involved
        self.failures += 1
        if self.failures >= IN_A_ROW and not self._suspects:
            self._open(now)

    def unsent(self, permit: Permit, now: float) -> None:
        """Learn that a POST came to nothing that says anything; the next may probe."""
        if permit.change == self._change and self.state is State.PROBING:
            self._until = now
            self._turn(State.OPEN)

    def _open(self, now: float) -> None:
        self._until = now + self._stay * (0.5 + 0.5 * self._chance())
        self._turn(State.OPEN)

    def _turn(self, state: State) -> None:
        self.state = state
        self._change += 1
