"""Flights single across replicas: who sends a POST claims it in the server that they share, and others wait for it.

Rules:
- A claim says which window of a client is under way, up to which point it will count, and when it was planned. A
  flight that a claim of another replica serves whole waits; it then promises no more than that one does.
- A claim is a lease of 3 s that its holder renews. A holder that dies costs its waiters at most that; then one of them
  claims. Nobody waits for others longer than a minute.
- The holder stores its extents, then releases: waiters see it by a blocking read of a stream, which also finds what was
  written before they asked, so that no signal is lost and nothing is polled. A claim that was met stays for 5 s for
  those who had looked in level 2 just before; one that failed is gone at once, and who waited sends a POST himself.
- Without the server every flight is its replica's own.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import defaultdict
from collections.abc import Coroutine, Sequence
from typing import Any, NamedTuple

from gateway.ledger.extents import Extent, covers, overlay_all
from gateway.ledger.level2 import Found, Level2, Wanted
from gateway.ledger.posts import Posts
from gateway.ledger.tickets import Flight, Landed
from gateway.redis_client import RedisClient, Unavailable

LOGGER = logging.getLogger(__name__)
LEASE = 3.0  # seconds
KEPT = 5.0  # seconds that a claim is known after it was met
PATIENCE = 60.0  # seconds
MARGIN = 2  # seconds by which an open window of another must reach further than ours: who joins comes a little later

# Token, status, start, end, reach, planned, the earliest that another may be planned, seconds of the lease.
CLAIM = """
local found = {}
for i, key in ipairs(KEYS) do
  local other = ''
  local claims = redis.call('HGETALL', key)
  for n = 1, #claims, 2 do
    local kind, start, reach, planned, till = string.match(claims[n + 1], '^(%S+) (%S+) (%S+) (%S+) (%S+)$')
    if not kind or tonumber(till) < now then
      redis.call('HDEL', key, claims[n])
    elseif other == '' and claims[n] ~= text(1) and tonumber(kind) >= number(2) and tonumber(start) <= number(3)
      and tonumber(reach) >= number(4) and tonumber(planned) >= number(7) then
      other = claims[n] .. ' ' .. reach .. ' ' .. planned
    end
  end
  if other == '' then
    local till = string.format('%.3f', now + number(8))
    redis.call('HSET', key, text(1), table.concat({text(2), text(3), text(5), text(6), till}, ' '))
    redis.call('EXPIRE', key, 60)
  end
  found[i] = other
end
return found
"""
# Seconds, then for each key the token; a claim that is not there any more is not made again.
RENEW = """
for i, key in ipairs(KEYS) do
  local claim = redis.call('HGET', key, text(i + 1))
  if claim then
    local till = string.format(' %.3f', now + number(1))
    redis.call('HSET', key, text(i + 1), (string.gsub(claim, ' %S+$', till)))
    redis.call('EXPIRE', key, 60)
  end
end
"""
# Token, seconds, then for each key but the last whether its claim was met; the last is the stream.
RELEASE = """
for i = 1, #KEYS - 1 do
  local claim = redis.call('HGET', KEYS[i], text(1))
  if claim and text(i + 2) == '1' then
    local till = string.format(' %.3f', now + number(2))
    redis.call('HSET', KEYS[i], text(1), (string.gsub(claim, ' %S+$', till)))
  elseif claim then
    redis.call('HDEL', KEYS[i], text(1))
  end
end
redis.call('XADD', KEYS[#KEYS], '*', 'landed', '1')
redis.call('EXPIRE', KEYS[#KEYS], number(2) * 2)
"""


class Other(NamedTuple):
    """A claim of another replica."""

    token: str
    reach: int
    planned: float


class Claims:
    """Sends flights, or waits for those of other replicas."""

    def __init__(self, posts: Posts, shared: RedisClient, level2: Level2, space: str, fresh: float) -> None:
        self._posts = posts
        self._shared = shared
        self._level2 = level2
        self._space = space
        self._fresh = fresh
        self._held: dict[str, list[str]] = {}  # keys by token
        self._renewal: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[None]] = set()

    async def fetch(self, flight: Flight, codes: Sequence[str]) -> dict[str, Landed]:
        """Have what a flight is for, by POSTs or from other replicas; what fails is in the result."""
        return await self._fetch(flight, list(codes), asyncio.get_running_loop().time() + PATIENCE)

    async def _fetch(self, flight: Flight, codes: list[str], until: float) -> dict[str, Landed]:
        token = secrets.token_hex(8)
        others = await self._claim(token, flight, codes) if asyncio.get_running_loop().time() < until else {}
        groups: dict[Other, list[str]] = defaultdict(list)
        for code, other in others.items():
            groups[other].append(code)
            flight.promise(other.planned, other.reach)
        parts = [self._follow(flight, group, other, until) for other, group in groups.items()]
        if mine := [code for code in codes if code not in others]:
            parts.append(self._post(flight, mine, token))
        landed: dict[str, Landed] = {}
        for part in await asyncio.gather(*parts):
            landed |= part
        return landed

    async def _claim(self, token: str, flight: Flight, codes: list[str]) -> dict[str, Other]:
        """Claim codes; those that another serves are in the result instead."""
        window, planned = flight.window, flight.begun
        end = window.end + MARGIN if flight.open else window.end
        reach = int(max(window.end, planned + self._fresh)) if flight.open else window.end
        earliest = planned - (1.0 if flight.alone else self._fresh / 2)
        keys = [self._key(code) for code in codes]
        arguments: list[str | bytes | float] = [token, int(flight.status), window.start, end, reach]
        arguments += [repr(planned), repr(earliest), LEASE]
        try:
            answer = await self._shared.run("claim", CLAIM, keys, arguments)
        except Unavailable:
            return {}
        others: dict[str, Other] = {}
        for code, found in zip(codes, answer, strict=True):
            if found:
                other, other_reach, other_planned = found.decode("ascii").split(" ")
                others[code] = Other(other, int(other_reach), float(other_planned))
        if held := [self._key(code) for code in codes if code not in others]:
            self._held[token] = held
            if self._renewal is None or self._renewal.done():
                self._renewal = asyncio.create_task(self._renew())
        return others

    async def _post(self, flight: Flight, codes: list[str], token: str) -> dict[str, Landed]:
        landed: dict[str, Landed] = {}
        try:
            landed = await self._posts.send(flight, codes)
        finally:
            self._later(self._release(token, flight.status, codes, landed))
        return landed

    async def _release(self, token: str, status: bool, codes: list[str], landed: dict[str, Landed]) -> None:
        """Store what landed, then tell those who wait."""
        held = self._held.pop(token, [])
        try:
            await self._level2.store(
                Found(code, status, extent) for code, one in landed.items() for extent in one.extents
            )
        except Exception:
            LOGGER.exception("storing what landed failed")
            landed = {}
        if not held:
            return
        met = {self._key(code) for code in codes if code in landed and landed[code].error is None}
        flags = ["1" if key in met else "0" for key in held]
        try:
            await self._shared.run("release", RELEASE, [*held, self._stream(token)], [token, KEPT, *flags])
        except Unavailable:
            LOGGER.debug("a claim is left to its lease")

    async def _follow(self, flight: Flight, codes: list[str], other: Other, until: float) -> dict[str, Landed]:
        """Wait for another replica's flight, and take what it brought; else claim again."""
        try:
            landed_there = await self._shared.wait(self._stream(other.token))
        except Unavailable:
            return await self._post(flight, codes, "")
        if not landed_there:
            return await self._fetch(flight, codes, until)  # of a holder that lives the claim is still there
        landed = await self._brought(flight, codes, other)
        if rest := [code for code in codes if code not in landed]:
            landed |= await self._post(flight, rest, "")
        return landed

    async def _brought(self, flight: Flight, codes: list[str], other: Other) -> dict[str, Landed]:
        wants = tuple(Wanted(code, flight.window, other.planned - 0.001) for code in codes)
        parts: dict[str, list[Extent]] = defaultdict(list)
        for found in await self._level2.lookup(wants, status=flight.status):
            parts[found.code].append(found.extent)
        together = {code: overlay_all(extents) for code, extents in parts.items()}
        return {code: Landed(extents) for code, extents in together.items() if covers(extents, flight.window)}

    async def _renew(self) -> None:
        while self._held:
            await asyncio.sleep(LEASE / 3)
            pairs = [(key, token) for token, keys in self._held.items() for key in keys]
            if pairs:
                keys, tokens = zip(*pairs, strict=True)
                try:
                    await self._shared.run("renew", RENEW, keys, [LEASE, *tokens])
                except Unavailable:
                    continue

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _key(self, code: str) -> str:
        return f"{self._space}:claims:{code}"

    def _stream(self, token: str) -> str:
        return f"{self._space}:landed:{token}"

    async def close(self) -> None:
        """Let what is stored be stored."""
        while self._background:
            await asyncio.gather(*self._background, return_exceptions=True)
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.gather(self._renewal, return_exceptions=True)
