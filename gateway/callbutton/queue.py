"""The line in front of the upstream: what waits for a place among the POSTs under way. Pure; time is an argument.

Rules:
- A consumer's miss goes before a revalidation, that before a prefetch; within a priority first in, first out. The
  priority is the highest of all who wait for the POST by now, not of who asked first.
- The line is bounded. Who finds it full turns out the last of lower priority, or goes away.
- What nobody awaits any more is dropped unsent, and so is what cannot have its turn before the last of those who await
  it has left.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import IntEnum, StrEnum

from msgspec import Struct

from gateway.errors import Overloaded, UpstreamError

MOST = 1000  # in the line
FOR_EVER = math.inf
LEAD = 0.1  # seconds before the last leaves: so much earlier a refusal still finds him
WEIGHT = 0.2  # of the newest POST in what is typical


class Priority(IntEnum):
    """Who goes first."""

    MISS = 0
    REVALIDATION = 1
    PREFETCH = 2


class Reason(StrEnum):
    """Why a POST was dropped unsent."""

    FULL = "full"
    LATE = "late"
    UNWANTED = "unwanted"
    CIRCUIT = "circuit-open"


class Demand:
    """Who waits for a POST: consumers, each until an instant, and a background that waits for ever."""

    def __init__(self, background: Priority | None = None) -> None:
        self._background = background
        self._consumers = 0
        self._until = -math.inf

    def join(self, until: float = FOR_EVER) -> None:
        """Note a consumer who waits until an instant."""
        self._consumers += 1
        self._until = max(self._until, until)

    def leave(self) -> None:
        """Note that a consumer waits no longer."""
        self._consumers -= 1

    @property
    def wanted(self) -> bool:
        """Whether anybody waits."""
        return self._consumers > 0 or self._background is not None

    @property
    def until(self) -> float:
        """The instant just before the last who waits leaves."""
        return self._until - LEAD if self._background is None else FOR_EVER

    @property
    def priority(self) -> Priority:
        """The highest of all who wait."""
        return Priority.MISS if self._background is None or self._consumers > 0 else self._background


class Waiting(Struct, frozen=True, eq=False):
    """A POST in the line. `told` learns once that it may go (None), or why not."""

    demand: Demand
    number: int
    told: Callable[[UpstreamError | None], None]

    def order(self) -> tuple[int, int]:
        """What is less goes first."""
        return self.demand.priority, self.number


class Line:
    """All that wait. `dropped` learns of each that was dropped unsent."""

    def __init__(self, dropped: Callable[[Reason], None], most: int = MOST) -> None:
        self._dropped = dropped
        self._most = most
        self._waiting: list[Waiting] = []
        self._number = 0
        self.typical = 0.0  # seconds that a POST has its place

    def __len__(self) -> int:
        return len(self._waiting)

    def learn(self, seconds: float) -> None:
        """Learn how long a POST had its place."""
        self.typical += (WEIGHT if self.typical else 1) * (seconds - self.typical)

    def join(self, demand: Demand, now: float, places: int, told: Callable[[UpstreamError | None], None]) -> Waiting:
        """Wait behind `places` POSTs under way. Raises Overloaded for what will not have its turn in time."""
        if len(self._waiting) >= self._most:
            self._sweep(now)
        self._number += 1
        new = Waiting(demand, self._number, told)
        ahead = sum(other.order() < new.order() for other in self._waiting)
        turn = self.seconds(ahead, places)
        if now + turn > demand.until:
            raise self._refusal(Reason.LATE, turn)
        if len(self._waiting) >= self._most:
            last = max(self._waiting, key=Waiting.order)
            if last.order() < new.order():
                raise self._refusal(Reason.FULL, turn)
            self.leave(last)
            last.told(self._refusal(Reason.FULL, turn))
        self._waiting.append(new)
        return new

    def leave(self, waiting: Waiting) -> None:
        """Leave the line."""
        if waiting in self._waiting:
            self._waiting.remove(waiting)

    def take(self, now: float) -> Waiting | None:
        """Take out whose turn it is; what is not wanted any more is dropped."""
        self._sweep(now)
        if not self._waiting:
            return None
        first = min(self._waiting, key=Waiting.order)
        self._waiting.remove(first)
        return first

    def expire(self, waiting: Waiting, now: float, places: int) -> None:
        """Drop what has not had its turn in time."""
        if waiting in self._waiting and now >= waiting.demand.until:
            self._waiting.remove(waiting)
            waiting.told(self._refusal(Reason.LATE, self.seconds(len(self), places)))

    def seconds(self, ahead: int, places: int) -> float:
        """How long a turn takes to come, with so many ahead."""
        return (ahead + 1) * self.typical / max(1, places)

    def _sweep(self, now: float) -> None:
        for waiting in [one for one in self._waiting if not one.demand.wanted or now >= one.demand.until]:
            self._waiting.remove(waiting)
            reason = Reason.LATE if waiting.demand.wanted else Reason.UNWANTED
            waiting.told(self._refusal(reason, self.typical))

    def _refusal(self, reason: Reason, seconds: float) -> Overloaded:
        self._dropped(reason)
        return Overloaded("too many requests wait for the Callbutton server", max(1, math.ceil(seconds)))
