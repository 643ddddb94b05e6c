"""The freshness rule: which points of time are stale, and which windows to POST so that none is.

A point `p`, fetched by a POST sent at `f`, is fresh at `now` while `now - f < clamp(ratio * (f - p), min, max)`.
Within an extent the stale points are a suffix. What must be fetched anyway is fetched from where half the ratio is
used up, inside the extent in which the gap begins; neighbouring gaps merge while the POST asks for at most twice what
they need. All pure: `now` is an argument, in seconds since 1970.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from msgspec import Struct

from gateway.ledger.extents import Extent
from gateway.model import Window

AHEAD = 0.5  # of the ratio
COVER = 2.0  # times what the gaps need


class Rule(Struct, frozen=True):
    """The numbers of the rule; `minimum` and `maximum` in seconds."""

    minimum: float = 15
    ratio: float = 0.1
    maximum: float = 7 * 86400


def stale_from(extent: Extent, now: float, rule: Rule) -> float | None:
    """Find the earliest stale point of an extent, or None."""
    age = now - extent.sent
    if age < rule.minimum:
        return None
    if age >= rule.maximum:
        return extent.window.start
    point = max(extent.window.start, extent.sent - age / rule.ratio)
    return point if point < extent.window.end else None


def gaps(
    extents: Sequence[Extent], window: Window, now: float, rule: Rule, whole: Callable[[Window], Window]
) -> list[Window]:
    """Plan the windows to POST so that all of `window` is fresh; `extents` are sorted and do not overlap.

    `whole` widens a window so that it does not split what cannot be split.
    """
    ahead_rule = Rule(0, rule.ratio * AHEAD, rule.maximum)
    found: list[tuple[int, int]] = []
    covered = window.start
    for extent in extents:
        start, end = max(extent.window.start, window.start), min(extent.window.end, window.end)
        if start >= end:
            continue
        if start > covered:
            found.append((covered, start))
        point = stale_from(extent, now, rule)
        if point is not None and point < end:
            ahead = stale_from(extent, now, ahead_rule)
            begin = max(start, math.floor(point if ahead is None else min(point, ahead)))
            found.append((begin, end))
        covered = max(covered, end)
    if covered < window.end:
        found.append((covered, window.end))
    merged: list[tuple[Window, int]] = []  # with the seconds that are needed of it
    for start, end in found:
        gap = whole(Window(start, end))
        if merged:
            last, needed = merged[-1]
            if gap.start <= last.end or gap.end - last.start <= COVER * (needed + gap.end - gap.start):
                merged[-1] = (Window(min(last.start, gap.start), max(last.end, gap.end)), needed + gap.end - gap.start)
                continue
        merged.append((gap, gap.end - gap.start))
    return [gap for gap, _ in merged]


def cut(window: Window, span: int, whole: Callable[[Window], Window]) -> list[Window]:
    """Cut a long window into parts of at most about `span` seconds, none of which splits what cannot be split."""
    parts, start = [], window.start
    while start < window.end:
        end = min(window.end, whole(Window(start, min(window.end, start + span))).end)
        parts.append(Window(start, end))
        start = end
    return parts
