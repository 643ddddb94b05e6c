"""The freshness rule: which points of time are stale, and which windows to POST so that none is.

A point `p`, fetched by a POST sent at `f`, is fresh at `now` while `now - f < clamp(ratio * (f - p), min, max)`.
Within an extent the stale points are a suffix. A gap is fetched from where half the ratio is used up, inside the extent
in which it begins, rounded down to a grid that coarsens with age (4 % fewer POSTs). Neighbouring gaps merge while the
POST asks for at most twice the seconds that they need. Pure: `now` is an argument, in seconds since 1970.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from msgspec import Struct

from gateway.cache.extents import Extent
from gateway.model import Window

EARLY_REFRESH_RATIO = 0.5  # of the ratio
COVER = 2.0  # merged windows are at most this many times as long as their gaps together
MAX_READ_POSTS = 40  # of one read and client; a year at the default span of 31 days takes 12
GRID = 0.1  # of a point's age
BACKGROUND_REFRESH = 0.8  # of the maximum age; older points are refreshed in the background

Align = Callable[[Window], Window]  # widens a window so that no edge lies in the fold of autumn


class Rule(Struct, frozen=True):
    """The numbers of the rule; `minimum` and `maximum` in seconds."""

    minimum: float = 15
    ratio: float = 0.1
    maximum: float = 7 * 86400

    def life(self, point: float, sent: float) -> float:
        """How long a point is fresh after its POST was sent."""
        return min(max(self.ratio * (sent - point), self.minimum), self.maximum)


def unknown() -> bool:
    """The `changed` of an answer that cannot tell whether it has changed: it may have."""
    return True


class Provenance(Struct, kw_only=True):
    """The fetches that an answer rests on. Instants are seconds since 1970.

    The read was `planned` at an instant; the first point becomes stale at `fresh_until`. `lookup` is hit, partial or
    miss; `collapsed`: it rests on flights of other readers alone. `changed` tells whether a read now may find other
    calls or records. It is kept with responses, and holds no calls.
    """

    planned: float
    as_of: float
    oldest_fetch: float
    fresh_until: float
    stale: bool = False
    lookup: str = "hit"
    collapsed: bool = False
    changed: Callable[[], bool] = unknown

    def combine(self, following: Provenance, *, newest_first: bool = False) -> Provenance:
        """Combine with the provenance of the span that was read next."""
        both = self, following
        return Provenance(
            planned=self.planned,
            as_of=self.as_of if newest_first else following.as_of,
            oldest_fetch=min(one.oldest_fetch for one in both),
            fresh_until=min(one.fresh_until for one in both),
            stale=any(one.stale for one in both),
            lookup=self.lookup if self.lookup == following.lookup else "partial",
            changed=self.changed if self.changed == following.changed else unknown,  # they differ after a change
            collapsed=any(one.collapsed for one in both) and all(one.collapsed or one.lookup == "hit" for one in both),
        )


def stale_from(extent: Extent, now: float, rule: Rule) -> float | None:
    """Find the earliest stale point of an extent, or None."""
    age = now - extent.sent
    if age < rule.minimum:
        return None
    if age >= rule.maximum:
        return extent.window.start
    point = max(extent.window.start, extent.sent - age / rule.ratio)
    return point if point < extent.window.end else None


def seconds_past(extents: Iterable[Extent], now: float, rule: Rule) -> float:
    """Seconds for which the stalest point has been stale. Negative: seconds until the first point becomes stale."""
    return max(now - extent.sent - rule.life(extent.window.end, extent.sent) for extent in extents)


def coalesce(extents: Sequence[Extent]) -> list[Extent]:
    """Join neighbours of the same POST, without their calls."""
    found: list[Extent] = []
    for extent in extents:
        if found and found[-1].sent == extent.sent and found[-1].window.end == extent.window.start:
            found[-1] = Extent(Window(found[-1].window.start, extent.window.end), extent.sent)
        else:
            found.append(Extent(extent.window, extent.sent))
    return found


def gaps(extents: Sequence[Extent], window: Window, now: float, rule: Rule, align_to_fold: Align) -> list[Window]:
    """Plan the windows to POST so that all of `window` is fresh; `extents` are sorted and do not overlap."""
    ahead_rule = Rule(0, rule.ratio * EARLY_REFRESH_RATIO, rule.maximum)
    found: list[Window] = []
    covered = window.start
    for extent in coalesce(extents):
        start, end = max(extent.window.start, window.start), min(extent.window.end, window.end)
        if start >= end:
            continue
        if start > covered:
            found.append(Window(covered, start))
        point = stale_from(extent, now, rule)
        if point is not None and point < end:
            ahead = stale_from(extent, now, ahead_rule)
            found.append(Window(max(start, _on_grid(point if ahead is None else min(point, ahead), now)), end))
        covered = max(covered, end)
    if covered < window.end:
        found.append(Window(covered, window.end))
    return merge_gaps(map(align_to_fold, found))


def _on_grid(point: float, now: float) -> int:
    """Round a point down, to a power of two of seconds below a tenth of its age: extents then meet more often."""
    age = (now - point) * GRID
    step = 2 ** int(math.log2(age)) if age > 1 else 1
    return int(point // step * step)


def merge_gaps(windows: Iterable[Window]) -> list[Window]:
    """Merge neighbouring windows while one asks for at most twice the seconds needed; the result does not overlap."""
    merged: list[tuple[Window, int]] = []  # with the seconds that are needed of it
    for window in sorted(windows):
        needed = window.end - window.start
        if merged:
            last, before = merged[-1]
            overlap = max(0, min(last.end, window.end) - window.start)
            needed_of_both = before + needed - overlap
            end = max(last.end, window.end)
            if window.start <= last.end or end - last.start <= COVER * needed_of_both:
                merged[-1] = (Window(last.start, end), needed_of_both)
                continue
        merged.append((window, needed))
    return [window for window, _ in merged]


def due_for_refresh(extents: Sequence[Extent], now: float, rule: Rule) -> list[Window]:
    """Find the windows of extents that soon reach the maximum, each at a different time to spread the load."""
    found = []
    for extent in coalesce(extents):
        jitter = (extent.window.start * 2654435761 + int(extent.sent)) % 1000 / 1000  # Knuth's multiplier
        if rule.maximum * (BACKGROUND_REFRESH + (1 - BACKGROUND_REFRESH) * jitter) <= now - extent.sent < rule.maximum:
            found.append(extent.window)
    return found


def plan_posts(windows: Iterable[Window], span: int, align_to_fold: Align) -> list[Window]:
    """Plan the windows of the POSTs for one client: of at most about `span` seconds each, at most `MAX_READ_POSTS`.

    More gaps than half of that are merged, the nearest first. Then spans are made longer, if there are still too many.
    """
    merged = merge_gaps(windows)
    while len(merged) > MAX_READ_POSTS // 2:
        distances = sorted(after.start - before.end for before, after in pairwise(merged))
        near = distances[len(merged) - MAX_READ_POSTS // 2 - 1]
        wider = [merged[0]]
        for window in merged[1:]:
            if window.start - wider[-1].end <= near:
                wider[-1] = Window(wider[-1].start, window.end)
            else:
                wider.append(window)
        merged = wider
    seconds = sum(window.end - window.start for window in merged)
    span = max(span, -(-seconds // (MAX_READ_POSTS - len(merged))))
    return [part for window in merged for part in split_window(window, span, align_to_fold)]


def split_window(window: Window, span: int, align_to_fold: Align) -> list[Window]:
    """Cut a long window into parts of at most about `span` seconds, all of them aligned."""
    parts, start = [], window.start
    while start < window.end:
        end = min(window.end, align_to_fold(Window(start, min(window.end, start + span))).end)
        parts.append(Window(start, end))
        start = end
    return parts
