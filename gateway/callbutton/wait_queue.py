"""The queue in front of the upstream. Pure; instants are arguments, of the event loop's clock.

Rules:
- A consumer's miss goes before a revalidation, and that before a prefetch. Within a priority client codes take turns:
  the code with the fewest POSTs in flight and ahead goes first; of equals, the one that came first.
- When the queue is full, a new entry evicts the last one, which is of the code with the most, or is rejected.
- An entry without waiters is dropped, and so is one that cannot have its turn before its waiters give up.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum, StrEnum
from operator import itemgetter

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
    notify: Notify
    codes: Sequence[str] = ("",)  # the first one takes turns with those of other entries
    limit: float = NO_DEADLINE  # an instant after which it must not be sent

    @property
    def until(self) -> float:
        """The instant at which it stops waiting."""
        return min(self.limit, self.waiters.until)


class WaitQueue:
    """POSTs that wait for a slot, at most `max_length`. `dropped` is called for each that is not sent."""

    def __init__(self, dropped: Callable[[DropReason], None], max_length: int = MAX_QUEUED) -> None:
        self._dropped = dropped
        self._max_length = max_length
        self._entries: list[Entry] = []  # as they came
        self.held: Counter[str] = Counter()  # POSTs in flight by client code; the owner keeps it
        self.typical = 0.0  # seconds that a POST holds its slot

    def __len__(self) -> int:
        return len(self._entries)

    def record(self, seconds: float) -> None:
        """Learn from one POST how long a slot is held."""
        self.typical += (NEWEST_WEIGHT if self.typical else 1) * (seconds - self.typical)

    def add(self, new: Entry, now: float, slots: int, alone: float = 0) -> Entry:
        """Wait for one of `slots`. Raises Overloaded if the queue is full, or if the turn would come too late.

        `alone` is 0, or how many seconds a POST holds a slot if its code may hold only one.
        """
        if len(self._entries) >= self._max_length:
            self._sweep(now)
        order = self._in_order([*self._entries, new])
        ahead = order[: order.index(new)]
        same = sum(other.codes[0] == new.codes[0] for other in ahead) if alone else 0
        delay = max(self._delay(len(ahead), slots), alone * (same + 1))
        if now + delay > new.until:
            raise self._refusal(DropReason.LATE, delay)
        if len(self._entries) >= self._max_length:
            if order[-1] is new:
                raise self._refusal(DropReason.FULL, delay)
            self.remove(order[-1])
            order[-1].notify(self._refusal(DropReason.FULL, delay))
        self._entries.append(new)
        return new

    def remove(self, entry: Entry) -> None:
        """Take an entry out, if it is there."""
        if entry in self._entries:
            self._entries.remove(entry)

    def take(self, now: float, may_go: Callable[[Sequence[str]], bool] = lambda _: True) -> Entry | None:
        """Take out the next entry whose codes may go; drop entries that are not wanted or late."""
        self._sweep(now)
        first = next((entry for entry in self._in_order(self._entries) if may_go(entry.codes)), None)
        if first is not None:
            self._entries.remove(first)
        return first

    def _in_order(self, entries: Iterable[Entry]) -> list[Entry]:
        """Entries in the order of their turns. The priority of an entry may rise while it waits."""
        turns: Counter[tuple[Priority, str]] = Counter()
        order: list[tuple[Priority, int, int, Entry]] = []
        for number, entry in enumerate(entries):
            priority, code = entry.waiters.priority, entry.codes[0]
            order.append((priority, self.held[code] + turns[priority, code], number, entry))
            turns[priority, code] += 1
        order.sort(key=itemgetter(0, 1, 2))
        return [entry for *_, entry in order]

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
