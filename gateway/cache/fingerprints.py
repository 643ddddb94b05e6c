"""Fingerprints: sums of hashes of calls by hour, which tell whether two sets of calls are equal. Pure.

Rules:
- A call is hashed as a view shows it, so that only changes that a consumer can see change a sum.
- Sums are independent of order, and the sum of a day is that of its hours.
- The sums of an extent are memoised with it. A part that is cut off takes over the hours that the cut leaves whole.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import cached_property
from hashlib import blake2b

import msgspec
from msgspec import Struct

from gateway.cache.extents import SUMS, Extent, Keep
from gateway.cache.packed_calls import place_of, start_of
from gateway.model import Call, Window
from gateway.slices import Steps

HOUR = 3600
SIZE = 5  # bytes of a hash: two sets of calls have the same sum by chance once in 10^12 comparisons
MODULUS = 1 << 8 * SIZE
STEP_CALLS = 200  # hashed in one step, about a millisecond
HOUR_BYTES, SUMS_BYTES = 200, 500  # of a fingerprint, and of those of an extent without hours
_encode = msgspec.msgpack.Encoder(order="deterministic").encode


class View(Struct, frozen=True):
    """The calls as a consumer sees them: `keep` filters, `present` masks. `name` tells views apart."""

    name: Hashable
    keep: Keep
    present: Callable[[Call], Call]


class Fingerprint(Struct, frozen=True):
    """The sum of the hashes of some calls, and their number."""

    total: int = 0
    calls: int = 0

    def __add__(self, other: Fingerprint) -> Fingerprint:
        return Fingerprint((self.total + other.total) % MODULUS, self.calls + other.calls)


NOTHING = Fingerprint()


def hash_of(call: Call, view: View) -> int:
    """The hash of a call, below MODULUS. It is the same in every process and version of Python."""
    digest = blake2b(_encode(view.present(call)), digest_size=SIZE, person=b"callbutton feed").digest()
    return int.from_bytes(digest, "big")


def fingerprint(calls: Iterable[Call], view: View) -> Fingerprint:
    """The fingerprint of calls that the view keeps."""
    hashes = [hash_of(call, view) for call in calls]
    return Fingerprint(sum(hashes) % MODULUS, len(hashes))


class HourSums(Struct, frozen=True, dict=True):
    """Fingerprints by the start of the hour, of those hours of an extent that have calls; `unknown` are not counted."""

    known: Mapping[int, Fingerprint]
    unknown: frozenset[int] = frozenset()

    @cached_property
    def total(self) -> Fingerprint:
        """The fingerprint of all hours that are known."""
        totals, calls = (
            zip(*[(one.total, one.calls) for one in self.known.values()], strict=True) if self.known else ((), ())
        )
        return Fingerprint(sum(totals) % MODULUS, sum(calls))

    def cut(self, whole: Window, part: Window) -> HourSums:
        """Those of a part of the extent."""

        def kept(hour: int) -> bool:
            return _inside(hour, whole) == _inside(hour, part)

        edges = {_hour(part.start), _hour(part.end - 1)}
        within = range(_hour(part.start), part.end, HOUR)
        unknown = {hour for hour in edges if not kept(hour)} | {hour for hour in self.unknown if hour in within}
        return HourSums(
            {hour: found for hour, found in self.known.items() if hour in within and kept(hour)}, frozenset(unknown)
        )


def _hour(second: int) -> int:
    return second - second % HOUR


def _inside(hour: int, window: Window) -> Window:
    return Window(max(hour, window.start), min(hour + HOUR, window.end))


def hour_sums(extent: Extent, view: View) -> Steps[HourSums]:
    """The fingerprints of an extent, memoised."""
    memo, name = extent.memo, (SUMS, view.name)
    kept: HourSums | None = memo.get(name) if memo is not None else None
    if kept is not None:
        return kept
    known: HourSums | None = extent.hour_sums.get(view.name)
    if known is None and extent.stored is not extent:
        known = (yield from hour_sums(extent.stored, view)).cut(extent.stored.window, extent.window)
    if known is None or known.unknown:
        done = dict(known.known) if known is not None else {}
        for hour, places in _by_hour(extent.calls, None if known is None else known.unknown):
            done[hour] = NOTHING
            for place in places[::STEP_CALLS]:
                calls = extent.calls[place : min(places.stop, place + STEP_CALLS)]
                done[hour] += fingerprint(view.keep(calls), view)
                yield
        known = HourSums(done)
    if memo is not None:
        memo.put(name, known, HOUR_BYTES * len(known.known) + SUMS_BYTES)
    else:
        extent.__dict__["hour_sums"] = {view.name: known}
    return known


def _by_hour(calls: Sequence[Call], only: frozenset[int] | None) -> Iterable[tuple[int, range]]:
    """The places of the calls of each hour, or of some hours."""
    if only is not None:
        for hour in only:
            yield hour, range(place_of(calls, hour), place_of(calls, hour + HOUR))
        return
    place = 0
    while place < len(calls):
        hour = _hour(start_of(calls, place))
        places = range(place, place_of(calls, hour + HOUR))
        yield hour, places
        place = places.stop
