"""What a read found: the calls of a window, and what they rest on. Pure.

Rule: of two versions of a call the later POST's counts (T2), whichever of the two is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import msgspec
from msgspec import Struct

from gateway.ledger.extents import Extent, merge, repeated_ids
from gateway.ledger.freshness import Rule, seconds_past
from gateway.model import Call, Window

Held = dict[str, list[Extent]]  # by client code


class Reading(Struct, kw_only=True, dict=True):
    """The calls of a window, unordered, and what they rest on; instants in seconds since 1970.

    `past` is how long the stalest point has been stale, negative while all is fresh.
    """

    as_of: float
    oldest_fetch: float
    past: float
    stale: bool = False
    unreadable: int = 0
    used: Held = msgspec.field(default_factory=dict)
    lookup: str = "hit"  # or partial, miss
    collapsed: bool = False  # it rests on flights of others alone
    posts: int = 0  # needs of its own that were not joined to flights of others

    @cached_property
    def extents(self) -> list[Extent]:
        """All extents of the window."""
        return [extent for extents in self.used.values() for extent in extents]

    @cached_property
    def calls(self) -> list[Call]:
        """The calls, put together when first asked for."""
        return merge(self.extents)

    def calls_with(self, texts: Mapping[str, str]) -> Sequence[Call]:
        """The calls, but for extents of which none can have these texts, by the names of fields."""
        if not texts or repeated_ids(self.extents):  # a version without them may be the later one (T2)
            return self.calls
        return [
            call
            for extent in self.extents
            if all(extent.may_have(field, text) for field, text in texts.items())
            for call in extent.calls
        ]

    @property
    def size(self) -> int:
        """How many calls its extents have."""
        return sum(len(extent.calls) for extent in self.extents)


def make_reading(held: Held, window: Window, now: float, rules: Mapping[str, Rule]) -> Reading:
    """Put together what extents that cover the window hold."""
    used = {
        code: [extent.looked_at(window) for extent in found if extent.window.overlaps(window)]
        for code, found in held.items()
    }
    every = [extent for extents in used.values() for extent in extents]
    unreadable = {(code, extent.sent): extent.unreadable for code, extents in used.items() for extent in extents}
    return Reading(
        used=used,
        as_of=min(extent.sent for extent in every if extent.window.end == window.end),
        oldest_fetch=min(extent.sent for extent in every),
        past=max(seconds_past(extents, now, rules[code]) for code, extents in used.items()),
        unreadable=sum(unreadable.values()),
    )
