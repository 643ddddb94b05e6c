"""Level 2: extents that replicas share, in Redis or Valkey.

Rules:
- A key is a client and 32 days, a hash; a field is an extent's part of one day, with its calls as one value, named by
  kind, window and instant of its POST. Values are never changed. Whatever of them is there is true, in any order and
  with any part missing: so the later POST wins for each point, without a compare-and-set that could be lost.
- What one later extent covers whole is deleted by the script that stores it. What is evicted or unreadable is a miss.
- A read asks once, for what level 1 lacks or has stale, and only for what was sent after that.
- Who asks waits 100 ms at most, and many who ask the same at once ask once.
- Extents of every client are found by reads of every client alone: for one client they would weigh too much.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from gateway.ledger.extents import DAY, Extent, by_day, covers
from gateway.ledger.memory import LONG
from gateway.ledger.packing import pack, unpack
from gateway.ledger.tickets import Need
from gateway.metrics import Metrics
from gateway.model import Window
from gateway.redis_client import RedisClient, Unavailable

LOGGER = logging.getLogger(__name__)
BLOCK = 32 * DAY  # seconds of a key
MOST_KEYS = 2000  # of a lookup; the oldest are left out
MOST_BYTES = 2**24  # of an answer
CHUNK = 2**20  # bytes of one command to store
MOST_STORES = 100  # under way; more are left out

PARSE = """
local function parse(field)
  local kind, first, last, sent = string.match(field, '^([01]):(%d+):(%d+):([%d.]+)$')
  return tonumber(kind), tonumber(first), tonumber(last), tonumber(sent)
end
local function fields(key)
  local found = redis.pcall('HKEYS', key)
  return found.err and {} or found
end
"""
# For each key: the least kind, the window, the instant of the POST after which.
LOOKUP = (
    PARSE
    + f"""
local found, left = {{}}, {MOST_BYTES}
for i, key in ipairs(KEYS) do
  local at = (i - 1) * 4
  for _, field in ipairs(fields(key)) do
    local kind, first, last, sent = parse(field)
    if kind and kind >= number(at + 1) and first < number(at + 3) and last > number(at + 2) and sent > number(at + 4)
    then
      local value = redis.call('HGET', key, field)
      left = left - #value
      if left < 0 then return found end
      found[#found + 1] = i
      found[#found + 1] = value
    end
  end
end
return found
"""
)
# The life of a key in seconds; then for each key: field and value.
STORE = (
    PARSE
    + """
for i, key in ipairs(KEYS) do
  local life, field, value = number(1), text(i * 2), text(i * 2 + 1)
  local kind, first, last, sent = parse(field)
  local rest, beaten = {}, false
  for _, other in ipairs(fields(key)) do
    local k, f, l, s = parse(other)
    if not k or s < sent - life or (k <= kind and s <= sent and f >= first and l <= last) then
      redis.call('HDEL', key, other)
    else
      beaten = beaten or (k >= kind and s >= sent and f <= first and l >= last)
      rest[#rest + 1] = {s, other}
    end
  end
  if #rest >= 1000 then
    table.sort(rest, function(a, b) return a[1] < b[1] end)
    for n = 1, 100 do redis.call('HDEL', key, rest[n][2]) end
  end
  if not beaten then redis.call('HSET', key, field, value) end
  redis.call('EXPIRE', key, life)
end
"""
)


class Found(NamedTuple):
    """An extent of a client, and whether it is with status."""

    code: str
    status: bool
    extent: Extent


Keep = Callable[[Found], bool]
Held = dict[str, list[Extent]]  # by client code


class Wanted(NamedTuple):
    """Extents of a client that overlap a window, of POSTs sent after an instant."""

    code: str
    window: Window
    after: float


def wanted(needs: Iterable[Need], held: Mapping[str, Sequence[Extent]]) -> tuple[Wanted, ...]:
    """What could serve needs better than what is held of their clients; by whole days, so that many ask the same."""
    result = []
    for need in needs:
        inside = [extent for extent in held[need.code] if extent.window.overlaps(need.window)]
        after = min(extent.sent for extent in inside) if covers(inside, need.window) else 0.0
        days = Window(need.window.start // DAY * DAY, -(-need.window.end // DAY) * DAY)
        result.append(Wanted(need.code, days, after))
    return tuple(result)


class Level2:
    """Extents in the server that replicas share.

    `space` keeps apart what does not belong together; `keep` is level 1's, and says whether an extent can be used.
    """

    def __init__(self, shared: RedisClient, space: str, life: float, metrics: Metrics, keep: Keep) -> None:
        self._shared = shared
        self._space = space
        self._life = max(1, int(life))
        self._metrics = metrics
        self._keep = keep
        self._lookups: dict[tuple[tuple[Wanted, ...], bool], asyncio.Task[list[Found]]] = {}
        self._stores = 0

    async def better(self, needs: Sequence[Need], held: Held, *, status: bool) -> Held:
        """What there is that serves needs better than what is held of their clients, in no order."""
        result: Held = defaultdict(list)
        for found in await self.lookup(wanted(needs, held), status=status):
            result[found.code].append(found.extent)
        return result

    async def lookup(self, wants: tuple[Wanted, ...], *, status: bool) -> list[Found]:
        """What there is of what is wanted; nothing if it takes too long."""
        key = wants, status
        task = self._lookups.get(key)
        if task is None:
            task = self._lookups[key] = asyncio.create_task(self._lookup(wants, status))
            task.add_done_callback(lambda _: self._lookups.pop(key))
        done, _ = await asyncio.wait({task}, timeout=self._shared.timeout)
        if not done:
            return []
        if (crash := task.exception()) is not None:
            LOGGER.error("a lookup in level 2 crashed", exc_info=crash)
            return []
        return task.result()

    async def _lookup(self, wants: tuple[Wanted, ...], status: bool) -> list[Found]:
        asked = [(want, key) for want in wants for key in self._keys(want)][:MOST_KEYS]
        arguments: list[float] = []
        for want, _ in asked:
            arguments += (int(status), want.window.start, want.window.end, want.after)
        try:
            answer = await self._shared.run("lookup", LOOKUP, [key for _, key in asked], list(map(repr, arguments)))
        except Unavailable:
            self._metrics.shared_lookups.labels("unavailable").inc(len(wants))
            return []
        found: list[Found] = []
        for place, value in zip(answer[::2], answer[1::2], strict=True):
            code = asked[place - 1][0].code
            if (unpacked := unpack(code, value)) is None:
                self._metrics.shared_lookups.labels("unreadable").inc()
            elif self._keep(one := Found(code, *unpacked)):
                found.append(one)
            await asyncio.sleep(0)  # a long answer leaves others their turn
        codes = {one.code for one in found}
        for want in wants:
            self._metrics.shared_lookups.labels("found" if want.code in codes else "miss").inc()
        return found

    def _keys(self, want: Wanted) -> list[str]:
        first, last = want.window.start // BLOCK, (want.window.end - 1) // BLOCK
        blocks = [f"{self._space}:{want.code}:{block}" for block in range(last, max(first, last - MOST_KEYS) - 1, -1)]
        return [f"{self._space}:{want.code}:long", *blocks]

    async def store(self, extents: Iterable[Found]) -> None:
        """Keep extents, as far as can be had."""
        if self._stores >= MOST_STORES:
            return
        self._stores += 1
        try:
            keys: list[str] = []
            arguments: list[str | bytes] = []
            size = 0
            for code, status, extent in extents:
                for day, part in by_day(extent, LONG):
                    value = pack(code, part, status=status)
                    keys.append(f"{self._space}:{code}:{'long' if day is None else day * DAY // BLOCK}")
                    arguments += (f"{int(status)}:{part.window.start}:{part.window.end}:{part.sent!r}", value)
                    size += len(value) + 100
                    if size > CHUNK:
                        await self._shared.run("store", STORE, keys, [str(self._life), *arguments])
                        keys, arguments, size = [], [], 0
            if keys:
                await self._shared.run("store", STORE, keys, [str(self._life), *arguments])
        except Unavailable:
            return
        finally:
            self._stores -= 1
