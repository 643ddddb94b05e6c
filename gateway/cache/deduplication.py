"""Deduplication: of the records that several extents have, the version of the later POST counts (T2). Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from operator import itemgetter

import msgspec

from gateway.cache.extents import Extent, with_calls
from gateway.model import Call
from gateway.slices import Steps, finish, parts_of


def repeated_ids(extents: Iterable[Extent]) -> Steps[dict[str, set[str]]]:
    """The ids that more than one extent of a client has, by client code, in steps.

    Only extents whose ranges of ids overlap are compared, each once with all before it.
    """
    by_client: dict[str, list[tuple[tuple[str, str], Extent]]] = defaultdict(list)
    for extent in extents:
        for code, bounds in extent.id_ranges.items():
            by_client[code].append((bounds, extent))
        yield
    found: dict[str, set[str]] = {}
    for code, ranges in by_client.items():
        ranges.sort(key=itemgetter(0))
        repeated = set[str]()
        seen: set[str] | None = None  # the ids of the extents since the last gap between ranges
        reached = ""
        for place, ((least, greatest), extent) in enumerate(ranges):
            if place == 0 or least > reached:
                seen, reached = None, greatest
                continue
            if seen is None:
                seen = set(ranges[place - 1][1].ids_of(code))
            ids = extent.ids_of(code)
            repeated |= seen & ids
            seen |= ids
            reached = max(reached, greatest)
            yield
        if repeated:
            found[code] = repeated
    return found


def deduplicated(extents: Sequence[Extent]) -> Sequence[Extent]:
    """The extents without outdated records: of several records with one id, only that of the latest POST stays.

    Windows do not change, and an extent that loses nothing is the same object. Of POSTs sent at the same instant, that
    of the later window counts, so that every reading chooses the same version (T2).
    """
    return finish(deduplicated_in_steps(extents))


def deduplicated_in_steps(extents: Sequence[Extent]) -> Steps[Sequence[Extent]]:
    """Deduplicate extents as `deduplicated` does, in steps."""
    lost: dict[int, dict[str, Collection[str]]] = defaultdict(dict)  # ids by place in `extents` and client code
    versions = [(extent.sent, extent.window.start) for extent in extents]
    latest_first = sorted(range(len(extents)), key=versions.__getitem__, reverse=True)
    for code, repeated in (yield from repeated_ids(extents)).items():
        seen = set[str]()
        for place in latest_first:
            own = extents[place].ids_of(code) & repeated
            if older := own & seen:
                lost[place][code] = older
            seen |= own
            yield
    kept = list(extents)
    for place, ids in lost.items():
        kept[place] = yield from without_calls(extents[place], ids)
    return kept if lost else extents


def without_calls(extent: Extent, lost: Mapping[str, Collection[str]]) -> Steps[Extent]:
    """An extent without the records whose ids are in `lost`, by client code, in steps. Its window does not change."""
    unreadable = tuple([record for record in extent.unreadable if record.id not in lost.get(record.client_code, ())])
    kept = dict(extent.by_client)
    for code in lost.keys() & kept.keys():
        calls: list[Call] = []
        for step in parts_of(kept[code]):
            calls += [call for call in step if call.id not in lost[code]]
            yield
        kept[code] = tuple(calls)
    return msgspec.structs.replace((yield from with_calls(extent, kept)), unreadable=unreadable)
