"""Comparison of a reply of the upstream with the calls already held.

Rules:
- A reply that loses much is doubted: at least 20 records, and over half of those held of its window. It is believed
  once a POST at least `wait` seconds later loses the same; until then the earlier extent stays, and grows stale.
- An `assumed` reading of a wall time does not replace an `inferred` one of the same call (T4).
- Whether the upstream knows the status flag is learned by client, from the first status on, until a reply without any
  has a call that had one. Calls of such a client without a status have an empty one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from operator import attrgetter

import msgspec

from gateway.cache.client_profiles import ClientProfiles
from gateway.cache.extents import Extent, key_of
from gateway.callbutton.central_time import is_same_wall_time
from gateway.callbutton.record import NO_STATUS
from gateway.model import Call, StartTimeCertainty

MIN_LOSS = 20  # records; a reply that loses fewer is believed
MAX_MISSED = 100_000  # records that are missed, about 15 MB; when there are more, the doubts begin again
NO_STATUSES = (None, NO_STATUS)


class Replies:
    """Earlier replies that are doubted, by client. `wait` is in seconds."""

    def __init__(self, profiles: ClientProfiles, wait: float) -> None:
        self._profiles = profiles
        self._wait = wait
        # When the POST was sent that first missed a record, by whether with status, client code and id.
        self._missed: dict[tuple[bool, str, str], float] = {}

    def compare(self, new: Extent, held: Sequence[Extent], *, status: bool) -> tuple[Extent, bool]:
        """Compare a new extent with those held of its window. Returns it as it counts, and whether it is believed."""
        new = keep_inferred(self._with_known_status(new, held) if status else new, held)
        return new, self.believes(new, held, status=status)

    def believes(self, new: Extent, held: Iterable[Extent], *, status: bool) -> bool:
        """Whether a new extent may replace older ones of its window."""
        before: dict[str, set[str]] = defaultdict(set)
        for extent in held:
            for code, ids in extent.ids.items() if extent.sent < new.sent else ():
                before[code] |= ids
        if len(self._missed) > MAX_MISSED:
            self._missed.clear()
        for code, ids in new.ids.items() if self._missed else ():
            for id_ in ids:
                self._missed.pop((status, code, id_), None)
        missing = [(status, code, id_) for code, ids in before.items() for id_ in ids - new.ids_of(code)]
        few = max(MIN_LOSS - 1, sum(map(len, before.values())) // 2)
        if len(missing) > few:
            unconfirmed = sum(self._missed.setdefault(key, new.sent) > new.sent - self._wait for key in missing)
            if unconfirmed > few:
                return False
        if self._missed:
            for key in missing:
                self._missed.pop(key, None)
        return True

    def _with_known_status(self, new: Extent, held: Iterable[Extent]) -> Extent:
        known = set()
        for code, calls in new.by_client.items():
            profile, has_none = self._profiles.of(code), all(call.status is None for call in calls)
            if profile.has_status and has_none:
                older = [call for extent in held for call in extent.by_client.get(code, ())]
                had = {call.id for call in older if call.status not in NO_STATUSES}
                profile.has_status = had.isdisjoint(new.ids_of(code))
            if profile.has_status and has_none:
                known.add(code)
            profile.has_status = profile.has_status or not has_none
        if not known:
            return new

        def complete(call: Call) -> Call:
            return msgspec.structs.replace(call, status=NO_STATUS) if call.client_code in known else call

        listed = new.listed and {code: tuple(map(complete, calls)) for code, calls in new.listed.items()}
        return msgspec.structs.replace(new, calls=tuple(map(complete, new.calls)), listed=listed)


def keep_inferred(new: Extent, held: Iterable[Extent]) -> Extent:
    """A new extent with the start times of held calls whose reading is `inferred`, where its own is `assumed` (T4)."""
    assumed = {key_of(call): call for call in new.calls if call.start_time_certainty is StartTimeCertainty.ASSUMED}
    if not assumed:
        return new
    known = {
        key: call
        for extent in held
        for call in extent.calls
        if call.start_time_certainty is StartTimeCertainty.INFERRED
        and (one := assumed.get(key := key_of(call))) is not None
        and is_same_wall_time(one.start_time, call.start_time)
    }

    def settle(calls: Iterable[Call]) -> tuple[Call, ...]:
        settled = [
            msgspec.structs.replace(call, start_time=found.start_time, start_time_certainty=StartTimeCertainty.INFERRED)
            if (found := known.get(key_of(call))) is not None
            else call
            for call in calls
        ]
        return tuple(sorted(settled, key=attrgetter("start_time")))

    listed = new.listed and {code: settle(calls) for code, calls in new.listed.items()}
    return msgspec.structs.replace(new, calls=settle(new.calls), listed=listed) if known else new
