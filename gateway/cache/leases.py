"""Leases: single flight across replicas. The replica that sends a POST holds a lease in the Redis that they share.

Rules:
- A lease names the window of a client that is being fetched, the end of the points that it counts for, and when it was
  planned. A flight waits for the lease of another replica that serves all of it, and then counts for the same points.
- A lease ends 3 s after its holder last renewed it. If the holder dies, its waiters lose at most that time; then one of
  them takes the lease. No flight waits for others longer than a minute.
- The holder stores its extents, then releases the lease. Waiters learn it by a blocking read of a stream, which also
  finds entries written before the read: no signal is lost, and nothing is polled. A fulfilled lease stays for 5 s, for
  replicas that had looked in level 2 just before. A failed one is deleted at once, and its waiters send their own POST.
- Without Redis each replica sends its own POSTs. In a cluster the leases of each slot are taken alone: of a batch that
  two replicas send at the same time, each may send a part.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import defaultdict
from collections.abc import Coroutine, Sequence
from typing import Any, NamedTuple

from gateway.cache.extents import Extent, covers, overlay_all
from gateway.cache.fetcher import Fetcher
from gateway.cache.level2 import Found, Level2, Wanted
from gateway.cache.single_flight import Flight, FlightResult
from gateway.redis_client import RedisClient, Unavailable, load_script
from gateway.redis_nodes import hash_tag

LOGGER = logging.getLogger(__name__)
LEASE_TTL = 3.0  # seconds without renewal; a stalled process is taken over in the time of a slow POST
FULFILLED_TTL = 5.0  # seconds
TIMEOUT = 60.0  # seconds; the default deadline of a request
REACH_MARGIN = 2  # seconds by which the reach of an open lease must exceed the window: a reader that joins comes later

ACQUIRE = load_script("lease_acquire")
RENEW = load_script("lease_renew")
RELEASE = load_script("lease_release")
Results = dict[str, FlightResult]


class RemoteLease(NamedTuple):
    """A lease that another replica holds."""

    token: str
    reach: int
    planned: float


class Leases:
    """Sends flights, or waits for those of other replicas."""

    def __init__(self, fetcher: Fetcher, shared: RedisClient, level2: Level2, space: str, fresh: float) -> None:
        self._fetcher = fetcher
        self._shared = shared
        self._level2 = level2
        self._space = space
        self._fresh = fresh
        self._held: dict[str, list[str]] = {}  # keys by token
        self._renewal: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[None]] = set()

    async def fetch(self, flight: Flight, codes: Sequence[str]) -> Results:
        """Fetch some of the codes of a flight, or receive them from other replicas. Errors are in the result."""
        return await self._fetch(flight, list(codes), asyncio.get_running_loop().time() + TIMEOUT)

    async def _fetch(self, flight: Flight, codes: list[str], until: float) -> Results:
        token = f"{hash_tag(codes[0])}{secrets.token_hex(8)}"
        remote = await self._acquire(token, flight, codes) if asyncio.get_running_loop().time() < until else {}
        groups: dict[RemoteLease, list[str]] = defaultdict(list)
        for code, lease in remote.items():
            groups[lease].append(code)
            flight.follow(lease.planned, lease.reach)
        parts = [self._follow(flight, group, lease, until) for lease, group in groups.items()]
        if own := [code for code in codes if code not in remote]:
            parts.append(self._post(flight, own, token))
        results: Results = {}
        for part in await asyncio.gather(*parts):
            results |= part
        return results

    async def _acquire(self, token: str, flight: Flight, codes: list[str]) -> dict[str, RemoteLease]:
        """Take the leases of codes. The codes that another replica serves are in the result, with its leases."""
        window, planned = flight.window, flight.planned
        end = window.end + REACH_MARGIN if flight.open else window.end
        reach = int(max(window.end, planned + self._fresh)) if flight.open else window.end
        earliest = planned - (1.0 if flight.no_cache else self._fresh / 2)
        keys = list(map(self._key, codes))
        common = token, int(flight.status), window.start, end, reach, repr(planned), repr(earliest), LEASE_TTL
        remote: dict[str, RemoteLease] = {}
        held: list[str] = []
        for code, key, found in zip(codes, keys, await self._shared.run("claim", ACQUIRE, keys, common), strict=True):
            if found:
                other, other_reach, other_planned = found.decode("ascii").split(" ")
                remote[code] = RemoteLease(other, int(other_reach), float(other_planned))
            elif found is not None:
                held.append(key)
        if held:
            self._held[token] = held
            if self._renewal is None or self._renewal.done():
                self._renewal = asyncio.create_task(self._renew())
        return remote

    async def _post(self, flight: Flight, codes: list[str], token: str) -> Results:
        results: Results = {}
        try:
            results = await self._fetcher.fetch(flight, codes)
        finally:
            self._in_background(self._release(token, flight.status, codes, results))
        return results

    async def _release(self, token: str, status: bool, codes: list[str], results: Results) -> None:
        """Store the extents, then tell the waiters."""
        held = self._held.pop(token, [])
        try:
            await self._level2.store(
                Found(code, status, extent)
                for code, result in results.items()
                if not result.doubted
                for extent in result.extents
            )
        except Exception:
            LOGGER.exception("extents could not be stored in level 2")
            results = {}
        if not held:
            return
        fulfilled = {self._key(code) for code in codes if code in results and results[code].error is None}
        states = [["fulfilled" if key in fulfilled else "failed"] for key in held]
        keys = [*held, self._stream(token)]
        await self._shared.run("release", RELEASE, keys, [token, FULFILLED_TTL], [*states, ["stream"]])

    async def _follow(self, flight: Flight, codes: list[str], lease: RemoteLease, until: float) -> Results:
        """Wait for another replica's flight and take its extents from level 2; else send the POST."""
        try:
            released = await self._shared.wait(self._stream(lease.token))
        except Unavailable:
            return await self._post(flight, codes, "")
        if not released:
            return await self._fetch(flight, codes, until)  # the lease is still there if its holder lives
        parts: dict[str, list[Extent]] = defaultdict(list)
        wants = tuple(Wanted(code, flight.window, lease.planned - 0.001) for code in codes)
        for found in await self._level2.lookup(wants, status=flight.status):
            parts[found.code].append(found.extent)
        results = {
            code: FlightResult(extents)
            for code, extents in ((code, overlay_all(parts[code])) for code in codes)
            if covers(extents, flight.window)
        }
        if rest := [code for code in codes if code not in results]:
            results |= await self._post(flight, rest, "")
        return results

    async def _renew(self) -> None:
        while self._held:
            await asyncio.sleep(LEASE_TTL / 3)
            pairs = [(key, token) for token, keys in self._held.items() for key in keys]
            if pairs:
                keys, tokens = zip(*pairs, strict=True)
                await self._shared.run("renew", RENEW, keys, [LEASE_TTL], [[token] for token in tokens])

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _key(self, code: str) -> str:
        return f"{self._space}:{hash_tag(code)}:leases:{code}"

    def _stream(self, token: str) -> str:
        return f"{self._space}:landed:{token}"  # it begins with a hash tag

    async def close(self) -> None:
        """Wait until extents are stored."""
        while self._background:
            await asyncio.gather(*self._background, return_exceptions=True)
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.gather(self._renewal, return_exceptions=True)
