"""Readings for the change feed: all calls of a feed, from its start until now, at one instant.

Rules:
- A reading that fails or is stale is an error (T3).
- A feed whose calls do not fit into the cache is refused: they would be fetched again and again.
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import count

from msgspec import Struct

from gateway.cache.deduplication import deduplicated_in_steps
from gateway.cache.extents import Extent, Key, key_of
from gateway.cache.freshness import Provenance
from gateway.cache.level1 import bytes_of
from gateway.cache.reader import Cache, Query
from gateway.cache.scans import COUNTS, Spans
from gateway.errors import InvalidParameters, ParameterFault, UpstreamFailed
from gateway.model import Call, Window
from gateway.slices import Steps, in_slices, parts_of


class Clients(Struct, frozen=True):
    """The client codes of a feed (`*` alone for all), and whether it has the status of calls."""

    codes: tuple[str, ...]
    status: bool


class Terms(Struct, frozen=True):
    """How a request waits: until `deadline`, an instant of the event loop's clock, after a call of `before_wait`."""

    deadline: float | None = None
    before_wait: Callable[[], None] = lambda: None


NO_TERMS = Terms()


class FeedResult(Struct, frozen=True):
    """All calls from a start to `end`, merged, and their provenance.

    `lost` are the calls of which there is a later version elsewhere: their start, and when its POST was sent.
    `evictions` is the eviction counter of the cache before and after the reading. `numbers` are the places of its begin
    and its end in the sequence of all begins and ends of readings in the process.
    """

    extents: Sequence[Extent]
    lost: Sequence[tuple[float, float]]
    end: int
    provenance: Provenance
    evictions: tuple[int, int]
    numbers: tuple[int, int]


class FeedReader:
    """Reads whole windows from a cache. A reading may take `timeout` seconds, and `bound` bytes of the cache."""

    def __init__(self, cache: Cache, clock: Callable[[], float], timeout: float, bound: float) -> None:
        self._cache = cache
        self._clock = clock
        self._timeout = timeout
        self._bound = bound
        self._numbers = count()

    async def read(
        self, clients: Clients, start: int, terms: Terms = NO_TERMS, windows: Sequence[Window] = ()
    ) -> FeedResult:
        """Read the calls of clients from a start until now. `windows` are fetched again first. Raises GatewayError."""
        for window in windows:
            await self._read(clients, window, terms, no_cache=True)
        return await self._read(clients, Window(start, math.ceil(self._clock())), terms)

    async def _read(self, clients: Clients, window: Window, terms: Terms, *, no_cache: bool = False) -> FeedResult:
        codes = clients.codes
        now, evictions = self._clock(), self._cache.evictions(codes)
        begun = next(self._numbers)
        query = Query(
            codes=codes,
            window=window,
            status=clients.status,
            no_cache=no_cache,
            no_stale=True,
            deadline=terms.deadline or asyncio.get_running_loop().time() + self._timeout,
            before_wait=terms.before_wait,
        )
        extents: list[Extent] = []
        total: Provenance | None = None
        spans = Spans(self._cache, query, now, COUNTS, newest_first=False)
        try:
            spans.begin()
            while (part := await spans.next()) is not None:
                spans.begin()
                if part.stale:
                    raise UpstreamFailed("a reply lost many calls, and is doubted until another one confirms it")
                extents += part.extents
                total = total.combine(part) if total is not None else part
        finally:
            spans.leave()
        evicted = self._cache.evictions(codes)
        if evicted != evictions:
            _refuse_too_large(sum(bytes_of(extent.calls) for extent in extents), self._bound)
        merged = await in_slices(deduplicated_in_steps(extents))
        lost = await in_slices(superseded(extents, merged))
        total = total or Provenance(planned=now, as_of=now, oldest_fetch=now, fresh_until=now)
        numbers = begun, next(self._numbers)
        return FeedResult(merged, lost, window.end, total, (evictions, evicted), numbers)


def superseded(extents: Sequence[Extent], kept: Sequence[Extent]) -> Steps[list[tuple[float, float]]]:
    """The calls that deduplication left out: when each starts, and when the POST of its later version was sent."""
    lost: list[Call] = []
    for before, after in zip(extents, kept, strict=True):
        for step in parts_of(before.calls) if before is not after else ():
            lost += [call for call in step if call.id not in after.ids_of(call.client_code)]
            yield
    by_client: dict[str, set[str]] = defaultdict(set)
    for call in lost:
        by_client[call.client_code].add(call.id)
    sent: dict[Key, float] = {}
    for extent in kept if lost else ():
        for code, ids in by_client.items():
            sent |= dict.fromkeys([(code, id_) for id_ in ids & extent.ids_of(code)], extent.sent)
        yield
    return [(call.start_time.timestamp(), sent[key_of(call)]) for call in lost]


def _refuse_too_large(needed: int, allowed: float) -> None:
    """Raise InvalidParameters for a feed whose calls take more bytes than one feed may have of the cache."""
    if needed > allowed:
        detail = f"this feed needs about {needed:,} bytes of GATEWAY_CACHE_BYTES, and may have {int(allowed):,} of them"
        raise InvalidParameters([ParameterFault("start", detail)])
