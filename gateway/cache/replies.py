"""Comparison of a reply of the upstream with the calls already held.

Rules:
- A reply that loses much is doubted: at least 20 records, and over half of those held of its window. It is believed
  once a POST at least `wait` seconds later loses the same; until then the earlier extent stays, and grows stale.
- A reply with status is also compared with the extents held without status, and a reply of every client with those of
  single clients: once it is stored, readers get it in place of them.
- An `assumed` reading of a wall time does not replace an `inferred` one of the same call (T4).
- A call that a reply adds to a window that was fetched before is late; how late is measured.
- Whether the upstream knows the status flag is learned by client, from the first status on, until a reply without any
  has a call that had one. Calls of such a client without a status have an empty one.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from operator import attrgetter

import msgspec

from gateway.cache.client_profiles import ClientProfiles
from gateway.cache.extents import Extent, key_of, with_calls
from gateway.callbutton.central_time import is_same_wall_time
from gateway.callbutton.record import NO_STATUS
from gateway.model import Call, StartTimeCertainty, UnreadableCall
from gateway.slices import Steps, parts_of, sorted_in_steps

MIN_LOSS = 20  # records; a reply that loses fewer is believed
MAX_MISSED = 100_000  # records that are missed, about 15 MB; when there are more, the doubts begin again
LIVE = 3600  # seconds; calls after the newest extent are measured too, unless that was fetched longer ago
NO_STATUSES = (None, NO_STATUS)
Others = Mapping[str, Sequence[Extent]]  # extents by client, as `Level1.replaced_by` returns them
NO_OTHERS: Others = {}


class Replies:
    """Earlier replies that are doubted, by client. `wait` is in seconds."""

    def __init__(self, profiles: ClientProfiles, wait: float) -> None:
        self._profiles = profiles
        self._wait = wait
        # When the POST was sent that first missed a record, by whether with status, client code and id.
        self._missed: dict[tuple[bool, str, str], float] = {}

    def compare(
        self, new: Extent, held: Sequence[Extent], others: Others = NO_OTHERS, *, status: bool
    ) -> Steps[tuple[Extent, bool]]:
        """Compare a new extent with those held of its window, and those of other kinds by client, in steps.

        Returns it as it counts, and whether it is believed.
        """
        if status:
            new = yield from self._with_known_status(new, held)
        new = yield from keep_inferred(new, [*held, *chain.from_iterable(others.values())])
        return new, (yield from self.believes(new, held, others, status=status))

    def believes(self, new: Extent, held: Iterable[Extent], others: Others = NO_OTHERS, *, status: bool) -> Steps[bool]:
        """Whether a new extent may replace older ones of its window, in steps."""
        older = [one for one in chain(held, *others.values()) if one.sent < new.sent]
        if not older and not self._missed:
            return True
        if len(self._missed) > MAX_MISSED:
            self._missed.clear()
        found: dict[str, set[str]] = defaultdict(set)
        every: list[Sequence[Call | UnreadableCall]] = [*new.by_client.values(), new.unreadable]
        for records in every:
            for step in parts_of(records):
                for record in step:
                    found[record.client_code].add(record.id)
                    if self._missed:
                        self._missed.pop((status, record.client_code, record.id), None)
                yield
        before: dict[str, set[str]] = defaultdict(set)
        missing: dict[str, set[tuple[bool, str, str]]] = defaultdict(set)  # by client
        for extent in older:
            for code, ids in extent.ids.items():
                before[code] |= ids
                missing[code].update([(status, code, id_) for id_ in ids.difference(found[code])])
            yield
        for codes in ([*before], *([code] for code in others)):
            lost = list(chain.from_iterable(missing[code] for code in codes))
            few = max(MIN_LOSS - 1, sum(len(before[code]) for code in codes) // 2)
            unconfirmed = 0
            for keys in parts_of(lost if len(lost) > few else ()):
                unconfirmed += sum(abs(new.sent - self._missed.setdefault(key, new.sent)) < self._wait for key in keys)
                yield
            if unconfirmed > few:
                return False
        for keys in parts_of(list(chain.from_iterable(missing.values())) if self._missed else ()):
            for key in keys:
                self._missed.pop(key, None)
            yield
        return True

    def _with_known_status(self, new: Extent, held: Iterable[Extent]) -> Steps[Extent]:
        known = set()
        for code, calls in new.by_client.items():
            profile, has_none = self._profiles.of(code), True
            for step in parts_of(calls):
                has_none = has_none and all(call.status is None for call in step)
                yield
            if profile.has_status and has_none:
                had = set[str]()
                for extent in held:
                    for step in parts_of(extent.by_client.get(code, ())):
                        had.update([call.id for call in step if call.status not in NO_STATUSES])
                        yield
                profile.has_status = had.isdisjoint([call.id for call in calls] if had else ())
            if profile.has_status and has_none:
                known.add(code)
            profile.has_status = profile.has_status or not has_none

        def complete(call: Call) -> Call:
            return msgspec.structs.replace(call, status=NO_STATUS) if call.client_code in known else call

        return (yield from _changed(new, complete)) if known else new


def keep_inferred(new: Extent, held: Iterable[Extent]) -> Steps[Extent]:
    """A new extent with the start times of held calls whose reading is `inferred`, where its own is `assumed` (T4)."""
    assumed: dict[tuple[str, str], Call] = {}
    for step in parts_of(new.calls):
        assumed |= {key_of(one): one for one in step if one.start_time_certainty is StartTimeCertainty.ASSUMED}
        yield
    if not assumed:
        return new
    known: dict[tuple[str, str], Call] = {}
    for extent in held:
        for step in parts_of(extent.calls):
            known |= {
                key: call
                for call in step
                if call.start_time_certainty is StartTimeCertainty.INFERRED
                and (one := assumed.get(key := key_of(call))) is not None
                and is_same_wall_time(one.start_time, call.start_time)
            }
            yield

    def settle(call: Call) -> Call:
        if (found := known.get(key_of(call))) is None:
            return call
        certainty = StartTimeCertainty.INFERRED
        return msgspec.structs.replace(call, start_time=found.start_time, start_time_certainty=certainty)

    return (yield from _changed(new, settle)) if known else new


def _changed(extent: Extent, change: Callable[[Call], Call]) -> Steps[Extent]:
    """An extent whose calls are changed one by one, in steps."""
    by_client: dict[str, Sequence[Call]] = {}
    for code, calls in extent.by_client.items():
        changed: list[Call] = []
        for step in parts_of(calls):
            changed += map(change, step)
            yield
        by_client[code] = tuple((yield from sorted_in_steps(changed, attrgetter("start_time"))))
    return (yield from with_calls(extent, by_client))


def lateness(held: Sequence[Extent], new: Extent) -> Steps[list[float]]:
    """The seconds from start to first sight of each call that a new extent adds to windows that were fetched before.

    `held` are sorted and do not overlap.
    """
    found: list[float] = []
    if not held:
        return found
    edge = held[-1].window.end if new.sent - held[-1].sent < LIVE else math.inf
    ends = [one.window.end for one in held]
    for code, calls in new.by_client.items():
        seen = set[str]()
        for one in held:
            seen |= one.ids_of(code)
            yield
        for step in parts_of(calls):
            for call in [call for call in step if call.id not in seen]:
                start = call.start_time.timestamp()
                place = bisect_right(ends, start)
                if start >= edge or (place < len(held) and start in held[place].window):
                    found.append(max(0.0, new.sent - start))
            yield
    return found
