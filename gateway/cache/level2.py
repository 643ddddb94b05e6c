"""Level 2: extents that replicas share, in Redis or Valkey.

Rules:
- A key has 32 days of a client, as a Redis hash. A field has the part of an extent in one day; its name has the kind,
  the window and the time of the POST. Values are never changed, and each is true without the others: for each point the
  later POST wins, in whatever order they come, without a compare-and-set that could be lost.
- The script that stores an extent deletes older ones that it covers. A value that is evicted or unreadable is a miss.
- A value begins with a digest of the client code and the rest, keyed with GATEWAY_SIGNING_KEY: it cannot be made or
  changed without the key. One whose digest is wrong is unreadable. Replicas with another key have other keys here.
- A read looks up its gaps once, and only extents that were sent after the extents of level 1.
- A lookup takes at most 100 ms. Equal lookups at the same time are one.
- An extent of every client (`*`) is stored in parts, one for each hash tag, in the slot of the clients that it lists. A
  read of one client takes its part where there is no later extent of the client alone. A read of every client takes
  an extent of which all parts are there.
- `LAYOUT` is part of every key: it changes with the fields of a call.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import NamedTuple, get_type_hints

import msgspec

from gateway.cache.extents import (
    DAY,
    Extent,
    ExtentsByCode,
    by_day,
    covers,
    extent_in_steps,
    extent_of_all_in_steps,
    instant,
)
from gateway.cache.packed_calls import BLOCK_SIZE, compress, decompress
from gateway.cache.single_flight import Gap
from gateway.metrics import Metrics
from gateway.model import EVERY_CLIENT, Call, CallerAddress, CallStatus, UnreadableCall, Window
from gateway.redis_client import RedisClient, load_script
from gateway.redis_nodes import SPREAD, TAGS, hash_tag
from gateway.slices import Steps, in_slices, parts_of

LOGGER = logging.getLogger(__name__)
BLOCK = 32 * DAY  # seconds of a key
MAX_KEYS = 2000  # of a lookup, 170 years; the oldest are left out
MAX_BYTES = 2**24  # of the answer to a lookup: 100 ms of a network of 1 Gbit/s
CHUNK_SIZE = 2**20  # bytes of one command that stores
MAX_STORES = 100  # at the same time; more are dropped
MAX_BLOCK_BYTES = 2**24  # of a block of calls, without compression
DIGEST_SIZE = 16  # bytes; 128 bits, which cannot be guessed
VERSION = 4  # of the layout

LOOKUP = load_script("extent_fields", "extents_lookup")
STORE = load_script("extent_fields", "extents_store")


class Value(NamedTuple):
    """A value, unpacked: an extent of a client, or a part of one of every client. Calls are by client code."""

    status: bool
    window: Window
    sent: float
    calls: dict[str, list[Call]]
    unreadable: list[UnreadableCall]


class Found(NamedTuple):
    """An extent of a client, and whether it is with status."""

    code: str
    status: bool
    extent: Extent


Keep = Callable[[Found], Steps[bool]]


class Wanted(NamedTuple):
    """Extents of a client that overlap a window, of POSTs sent after an instant."""

    code: str
    window: Window
    after: float


def wanted(gaps: Iterable[Gap], held: Mapping[str, Sequence[Extent]]) -> tuple[Wanted, ...]:
    """The extents that could serve gaps better than those held; by whole days, so that many lookups are equal.

    Gaps in the same days share one.
    """
    result = []
    for gap in gaps:
        inside = [extent for extent in held[gap.code] if extent.window.overlaps(gap.window)]
        after = min(extent.sent for extent in inside) if covers(inside, gap.window) else 0.0
        days = Window(gap.window.start // DAY * DAY, -(-gap.window.end // DAY) * DAY)
        result.append(Wanted(gap.code, days, after))
    return tuple(dict.fromkeys(result))


class Level2:
    """Extents in Redis. `space` is the prefix of its keys; `keep` stores an extent in level 1 if it can be used.

    `key` is the key of digests, at most 64 bytes.
    """

    def __init__(self, shared: RedisClient, space: str, key: bytes, life: float, metrics: Metrics, keep: Keep) -> None:
        self._shared = shared
        self._key = key
        self._space = space
        self._life = max(1, int(life))
        self._metrics = metrics
        self._keep = keep
        self._lookups: dict[tuple[tuple[Wanted, ...], bool], asyncio.Task[list[Found]]] = {}
        self._stores = 0

    async def better(
        self, gaps: Sequence[Gap], held: ExtentsByCode, *, status: bool, until: float | None
    ) -> ExtentsByCode:
        """Look up the extents that serve gaps better than those held, in no order; `until` as in `Query.deadline`."""
        result: ExtentsByCode = defaultdict(list)
        for found in await self.lookup(wanted(gaps, held), status=status, until=until):
            result[found.code].append(found.extent)
        return result

    async def lookup(self, wants: tuple[Wanted, ...], *, status: bool, until: float | None = None) -> list[Found]:
        """Look up extents; none if that takes too long."""
        key = wants, status
        task = self._lookups.get(key)
        if task is None:
            task = self._lookups[key] = asyncio.create_task(self._lookup(wants, status))
            task.add_done_callback(lambda _: self._lookups.pop(key))
        left = math.inf if until is None else max(0.0, until - asyncio.get_running_loop().time())
        done, _ = await asyncio.wait({task}, timeout=min(self._shared.timeout, left))
        if not done:
            return []
        if (crash := task.exception()) is not None:
            LOGGER.error("a lookup in level 2 crashed", exc_info=crash)
            return []
        return task.result()

    async def _lookup(self, wants: tuple[Wanted, ...], status: bool) -> list[Found]:
        every = ((number, want, *rest) for number, want in enumerate(wants, 1) for rest in self._keys(want))
        asked = list(islice(every, MAX_KEYS))
        own = []
        for number, want, name, _ in asked:
            part = name != want.code != EVERY_CLIENT
            own.append((want.window.start, want.window.end, want.after, -number if part else number))
        common = int(status), MAX_BYTES // len(asked)
        answer = await self._shared.run("lookup", LOOKUP, [key for *_, key in asked], common, own)
        results = dict.fromkeys(wants, "miss")
        parts: dict[tuple[Wanted, bool, Window, float], dict[str, Value]] = defaultdict(dict)  # by name
        found: list[Found] = []
        for (_, want, name, _), values in zip(asked, answer, strict=True):
            if values is None:
                results[want] = "unavailable"
            for packed in values or ():
                value = await in_slices(unpack(name, packed, self._key, want.code))
                if value is None:
                    self._metrics.shared_lookups.labels("unreadable").inc()
                    continue
                together = {name: value}
                if want.code == EVERY_CLIENT:
                    together = parts[want, value.status, value.window, value.sent]
                    together[name] = value
                if want.code != EVERY_CLIENT or len(together) == SPREAD:
                    extent = await in_slices(assembled(want.code, list(together.values())))
                    if extent is not None and await in_slices(
                        self._keep(one := Found(want.code, value.status, extent))
                    ):
                        found.append(one)
                        results[want] = "found"
                await asyncio.sleep(0)  # a long answer must not hold the loop
        for result in results.values():
            self._metrics.shared_lookups.labels(result).inc()
        return found

    def _keys(self, want: Wanted) -> list[tuple[str, str]]:
        """The keys of extents, each with the name of the client or part. The newest are first."""
        first, last = want.window.start // BLOCK, (want.window.end - 1) // BLOCK
        blocks = ["long", *range(last, max(first, last - MAX_KEYS) - 1, -1)]
        names = PART_NAMES if want.code == EVERY_CLIENT else [want.code, part_of(want.code)]
        return [(name, self._key_of(name, block)) for block in blocks for name in names]

    def _key_of(self, name: str, block: int | str) -> str:
        """The key of a client or a part."""
        tag = name[1:] if name[0] == EVERY_CLIENT else hash_tag(name)
        return f"{self._space}:{tag}:{name}:{block}"

    async def store(self, extents: Iterable[Found]) -> None:
        """Store extents, if Redis can be reached."""
        if self._stores >= MAX_STORES:
            return
        self._stores += 1
        keys: list[str] = []
        own: list[tuple[str, bytes]] = []
        size = 0
        try:
            for code, status, extent in extents:
                for day, piece in by_day(extent):
                    for name, part in parts_by_name(code, piece).items():
                        value = await in_slices(pack(name, part, self._key, status=status))
                        keys.append(self._key_of(name, "long" if day is None else day * DAY // BLOCK))
                        own.append((f"{int(status)}:{part.window.start}:{part.window.end}:{part.sent!r}", value))
                        size += len(value) + 100
                        if size > CHUNK_SIZE:
                            if not any(await self._shared.run("store", STORE, keys, [self._life], own)):
                                return
                            keys, own, size = [], [], 0
            if keys:
                await self._shared.run("store", STORE, keys, [self._life], own)
        finally:
            self._stores -= 1


_KINDS = (Call, CallerAddress, CallStatus, UnreadableCall)
_FIELDS = [(name, str(hint)) for kind in _KINDS for name, hint in get_type_hints(kind).items()]
LAYOUT = f"{VERSION}.{hashlib.sha256(repr(_FIELDS).encode()).hexdigest()[:8]}"

_encoder = msgspec.msgpack.Encoder()
# With status or not, the window, when its POST was sent, unreadable records, packed calls by client code.
_decoder = msgspec.msgpack.Decoder(tuple[bool, int, int, float, list[UnreadableCall], dict[str, list[bytes]]])


def space_of(source: str, signing_key: bytes) -> tuple[str, bytes]:
    """The prefix of keys for an upstream and a signing key, and the key of digests."""
    name, key = (hashlib.blake2b(signing_key, digest_size=32, person=person).digest() for person in (b"space", b"key"))
    return f"callbutton:{LAYOUT}:{source}:{name[:4].hex()}", key


def part_of(code: str) -> str:
    """The name of the part of extents of every client that has a client's calls. No client code begins so."""
    return f"{EVERY_CLIENT}{hash_tag(code)}"


PART_NAMES = [f"{EVERY_CLIENT}{tag}" for tag in TAGS]


def parts_by_name(code: str, extent: Extent) -> dict[str, Extent]:
    """The extent of a client, or the parts of one of every client, whose calls are in `listed` alone."""
    if extent.listed is None:
        return {code: extent}
    listed: dict[str, dict[str, Sequence[Call]]] = {name: {} for name in PART_NAMES}
    unreadable: dict[str, list[UnreadableCall]] = defaultdict(list)
    for client, calls in extent.listed.items():
        listed[part_of(client)][client] = calls
    for record in extent.unreadable:
        unreadable[part_of(record.client_code)].append(record)
    return {
        name: Extent(extent.window, extent.sent, (), tuple(unreadable[name]), calls) for name, calls in listed.items()
    }


def sealed(name: str, body: bytes, key: bytes) -> bytes:
    """A value of a client or part: the digest, then the body."""
    return hashlib.blake2b(name.encode() + b"\0" + body, digest_size=DIGEST_SIZE, key=key).digest() + body


def pack(name: str, extent: Extent, key: bytes = b"", *, status: bool) -> Steps[bytes]:
    """Render an extent of a client, or a part, in steps: a digest, then msgpack with packed calls."""
    by_code = {name: extent.calls} if extent.listed is None else extent.listed
    blocks: dict[str, list[bytes]] = {owner: [] for owner in by_code}
    for owner, calls in by_code.items():
        for step in parts_of(calls, BLOCK_SIZE):
            blocks[owner].append(compress(step))
            yield
    window = extent.window
    body = _encoder.encode((status, window.start, window.end, extent.sent, extent.unreadable, blocks))
    yield
    return sealed(name, body, key)


def unpack(name: str, value: bytes, key: bytes, code: str) -> Steps[Value | None]:
    """Parse the value of a client or part in steps, with the calls of one client, or of every client.

    None if its digest is wrong or it cannot be read.
    """
    body = value[DIGEST_SIZE:]
    if not hmac.compare_digest(value, sealed(name, body, key)):
        return None
    yield
    try:
        status, start, end, sent, unreadable, blocks = _decoder.decode(body)
        if not (0 <= start < end and 0 <= sent < math.inf) or (name[0] != EVERY_CLIENT and blocks.keys() != {code}):
            return None
        instant(end)  # raises if it is impossible
        calls: dict[str, list[Call]] = {owner: [] for owner in blocks if code in (owner, EVERY_CLIENT)}
        for owner, found in calls.items():
            for block in blocks[owner]:
                found += decompress(block, MAX_BLOCK_BYTES)
                yield
        return Value(status, Window(start, end), sent, calls, unreadable)
    except (msgspec.DecodeError, ValueError, OverflowError, OSError):  # the last three for impossible instants
        return None


def assembled(code: str, values: Sequence[Value]) -> Steps[Extent | None]:
    """The extent of a client, or of every client, of one value or of all parts; None if they do not list the client."""
    first = values[0]
    calls = {owner: found for value in values for owner, found in value.calls.items()}
    unreadable = [record for value in values for record in value.unreadable]
    if code == EVERY_CLIENT:
        return (yield from extent_of_all_in_steps(first.window, first.sent, calls, unreadable))
    own = [record for record in unreadable if record.client_code == code]
    return (yield from extent_in_steps(first.window, first.sent, calls[code], own)) if code in calls else None
