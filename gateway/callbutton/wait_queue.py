"""The queue in front of the upstream. Pure; instants are arguments, of the event loop's clock.

Rules:
- A consumer's miss goes before a revalidation, and that before a prefetch; within a priority first in, first out.
- When the queue is full, a new entry evicts the lowest-priority one, or is rejected.
- An entry without waiters is dropped, and so is one that cannot have its turn before its waiters give up.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import IntEnum, StrEnum

from msgspec import Struct

from gateway.errors import Overloaded, UpstreamError

NO_DEADLINE = math.inf
MAX_QUEUED = 1000  # POSTs; at 8 slots and half a second each the last waits for 62 s, and its consumer for 60
LEAD = 0.1  # seconds before the last waiter gives up: a refusal still reaches it
NEWEST_WEIGHT = 0.2  # of the newest POST in the typical duration: five POSTs outweigh the past


class Priority(IntEnum):
    """Lower values go first."""

    MISS = 0
    REVALIDATION = 1
    PREFETCH = 2


class DropReason(StrEnum):
    """Why a POST was not sent."""

    FULL = "full"
    LATE = "late"
    UNWANTED = "unwanted"
    CIRCUIT = "circuit-open"


class Waiters:
    """The waiters of a POST: consumers, each until an instant, and perhaps background work, which has no deadline."""

    def __init__(self, background: Priority | None = None) -> None:
        self._background = background
        self._consumers = 0
        self._until = -math.inf

    def join(self, until: float = NO_DEADLINE) -> None:
        """Add a consumer that waits until an instant."""
        self._consumers += 1
        self._until = max(self._until, until)

    def leave(self) -> None:
        """Remove a consumer."""
        self._consumers -= 1

    @property
    def wanted(self) -> bool:
        """Whether the POST still has a waiter."""
        return self._consumers > 0 or self._background is not None

    @property
    def until(self) -> float:
        """The instant just before the last waiter gives up."""
        return self._until - LEAD if self._background is None else NO_DEADLINE

    @property
    def priority(self) -> Priority:
        """The highest priority of all waiters."""
        return Priority.MISS if self._background is None or self._consumers > 0 else self._background


Notify = Callable[[UpstreamError | None], None]


class Entry(Struct, frozen=True, eq=False):
    """A POST in the queue. `notify` is called once: with None when it may be sent, or with the refusal."""

    waiters: Waiters
    number: int
    notify: Notify
    limit: float = NO_DEADLINE  # an instant after which it must not be sent

    @property
    def order(self) -> tuple[int, int]:
        """Lower values go first. The priority may rise while the POST waits."""
        return self.waiters.priority, self.number

    @property
    def until(self) -> float:
        """The instant at which it stops waiting."""
        return min(self.limit, self.waiters.until)


class WaitQueue:
    """POSTs that wait for a slot, at most `max_length`. `dropped` is called for each that is not sent."""

    def __init__(self, dropped: Callable[[DropReason], None], max_length: int = MAX_QUEUED) -> None:
        self._dropped = dropped
        self._max_length = max_length
        self._entries: list[Entry] = []
        self._added = 0
        self.typical = 0.0  # seconds that a POST holds its slot

    def __len__(self) -> int:
        return len(self._entries)

    def record(self, seconds: float) -> None:
        """Learn from one POST how long a slot is held."""
        self.typical += (NEWEST_WEIGHT if self.typical else 1) * (seconds - self.typical)

    def add(self, waiters: Waiters, now: float, slots: int, notify: Notify, limit: float = NO_DEADLINE) -> Entry:
        """Wait for one of `slots`. Raises Overloaded if the queue is full, or if the turn would come too late."""
        if len(self._entries) >= self._max_length:
            self._sweep(now)
        self._added += 1
        new = Entry(waiters, self._added, notify, limit)
        ahead = sum(other.order < new.order for other in self._entries)
        delay = self._delay(ahead, slots)
        if now + delay > new.until:
            raise self._refusal(DropReason.LATE, delay)
        if len(self._entries) >= self._max_length:
            last = max(self._entries, key=lambda entry: entry.order)
            if last.order < new.order:
                raise self._refusal(DropReason.FULL, delay)
            self.remove(last)
            last.notify(self._refusal(DropReason.FULL, delay))
        self._entries.append(new)
        return new

    def remove(self, entry: Entry) -> None:
        """Take an entry out, if it is there."""
        if entry in self._entries:
            self._entries.remove(entry)

    def take(self, now: float) -> Entry | None:
        """Take out the next entry to be sent; drop entries that are not wanted or late."""
        self._sweep(now)
        if not self._entries:
            return None
        first = min(self._entries, key=lambda entry: entry.order)
        self._entries.remove(first)
        return first

    def expire(self, entry: Entry, now: float, slots: int) -> None:
        """Drop an entry that has waited too long."""
        if entry in self._entries and now >= entry.until:
            self._entries.remove(entry)
            entry.notify(self._refusal(DropReason.LATE, self._delay(len(self), slots)))

    def _delay(self, ahead: int, slots: int) -> float:
        """Estimate the seconds until the turn of an entry with `ahead` entries before it."""
        return (ahead + 1) * self.typical / max(1, slots)

    def _sweep(self, now: float) -> None:
        for entry in [one for one in self._entries if not one.waiters.wanted or now >= one.until]:
            self._entries.remove(entry)
            reason = DropReason.LATE if entry.waiters.wanted else DropReason.UNWANTED
            entry.notify(self._refusal(reason, self.typical))

    def _refusal(self, reason: DropReason, seconds: float) -> Overloaded:
        self._dropped(reason)
        return Overloaded("too many requests wait for the Callbutton server", max(1, math.ceil(seconds)))
