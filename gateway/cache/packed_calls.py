"""Packed calls: blocks of compressed msgpack, of which a read unpacks those it needs. Pure.

Rules:
- A packed sequence has the same calls, in the same order, as the one it was made of. Level 1 packs days that were not
  read for a while, level 2 packs all calls that it stores.
- The starts and ids of the calls are held beside them: a sequence is cut, counted and searched for ids without being
  unpacked.
- Unpacked calls are not kept, except for a few blocks: the next part that is read, in either direction, may share one.
"""

from __future__ import annotations

import math
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from itertools import chain, islice
from operator import attrgetter
from typing import NamedTuple, overload

import msgspec

from gateway.model import Call, UnreadableCall
from gateway.slices import Steps, parts_of

BLOCK_SIZE = 128  # calls; packed or unpacked in one step of the event loop, in half a millisecond
COMPRESSION = 1  # of 9: the fastest
BLOCK_BYTES = 250  # of a block in memory, without its content
KEPT_BLOCKS = 4  # of the process, about half a megabyte
SEQUENCE_BYTES = 300  # of a packed sequence without blocks
_encode = msgspec.msgpack.Encoder().encode
_decode_calls = msgspec.msgpack.Decoder(tuple[Call, ...]).decode
_decode_ids = msgspec.msgpack.Decoder(list[str]).decode
_start_time = attrgetter("start_time")


def compress(calls: Sequence[Call]) -> bytes:
    """Render calls as compressed msgpack."""
    return zlib.compress(_encode(calls), COMPRESSION)


def decompress(block: bytes, max_size: int = 0) -> tuple[Call, ...]:
    """Parse the result of `compress`, of up to `max_size` bytes if it is not 0. Raises ValueError for anything else."""
    unpacking = zlib.decompressobj()
    try:
        body = unpacking.decompress(block, max_size)
    except zlib.error as error:
        raise ValueError("the block is not compressed") from error
    if not unpacking.eof:
        raise ValueError("the block is too large, or a part of it is missing")
    return _decode_calls(body)


unpacked = lru_cache(maxsize=KEPT_BLOCKS)(decompress)


class Block(NamedTuple):
    """Calls that follow each other, compressed, and their ids."""

    calls: bytes
    ids: bytes


class PackedCalls(Sequence[Call]):
    """The packed calls of one client, in order of time. Its slices are unpacked.

    `starts` has the second in which each call starts. The first `skip` calls of the first block are left out.
    """

    __slots__ = ("_blocks", "_skip", "client_code", "starts")

    def __init__(self, client_code: str, blocks: Sequence[Block], starts: array[int], skip: int = 0) -> None:
        self.client_code = client_code
        self.starts = starts
        self._blocks = blocks
        self._skip = skip

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, place: int) -> Call: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Call, ...]: ...
    def __getitem__(self, place: int | slice) -> Call | tuple[Call, ...]:
        places = range(len(self))[place]
        if isinstance(places, int):
            return self[places : places + 1][0]
        first, after = min(places, default=0), max(places, default=-1) + 1
        return tuple(self.part(first, after))[:: places.step]

    def __iter__(self) -> Iterator[Call]:
        blocks = (unpacked(block.calls) for block in self._blocks)
        return islice(chain.from_iterable(blocks), self._skip, self._skip + len(self))

    def part(self, first: int, after: int) -> PackedCalls:
        """The calls from one place up to another, still packed."""
        begin, end = self._skip + first, self._skip + after
        blocks = self._blocks[begin // BLOCK_SIZE : -(-end // BLOCK_SIZE)] if first < after else ()
        return PackedCalls(self.client_code, blocks, self.starts[first:after], begin % BLOCK_SIZE)

    def ids(self) -> list[str]:
        """The ids of the calls, in their order."""
        ids = chain.from_iterable([_decode_ids(block.ids) for block in self._blocks])
        return list(islice(ids, self._skip, self._skip + len(self)))

    @property
    def size(self) -> int:
        """The bytes that it holds in memory."""
        blocks = sum([len(block.calls) + len(block.ids) + BLOCK_BYTES for block in self._blocks])
        return SEQUENCE_BYTES + blocks + self.starts.itemsize * len(self)


def pack_calls(client_code: str, calls: Sequence[Call]) -> Steps[PackedCalls]:
    """Pack the calls of a client, which are in order of time, in steps."""
    blocks, starts = list[Block](), array("q")
    for step in parts_of(calls, BLOCK_SIZE):
        blocks.append(Block(compress(step), _encode(ids_of(step))))
        starts.extend(starts_of(step))
        yield
    return PackedCalls(client_code, tuple(blocks), starts)


def ids_of(calls: Sequence[Call]) -> list[str]:
    """The ids of calls, in their order."""
    return calls.ids() if isinstance(calls, PackedCalls) else [call.id for call in calls]


def starts_of(calls: Sequence[Call]) -> Sequence[int]:
    """The seconds in which calls start."""
    if isinstance(calls, PackedCalls):
        return calls.starts
    return [math.floor(call.start_time.timestamp()) for call in calls]


def start_of(calls: Sequence[Call], place: int) -> int:
    """The second in which the call at a place starts."""
    return calls.starts[place] if isinstance(calls, PackedCalls) else starts_of((calls[place],))[0]


def place_of(calls: Sequence[Call | UnreadableCall], second: int) -> int:
    """The number of calls, which are in order of time, that start before a second."""
    if isinstance(calls, PackedCalls):
        return bisect_left(calls.starts, second)
    return bisect_left(calls, datetime.fromtimestamp(second, UTC), key=_start_time)


def in_whole_seconds(calls: Sequence[Call], size: int, *, backwards: bool = False) -> Iterator[tuple[Call, ...]]:
    """Parts of at least `size` of calls, which are in order of time. No second is in two parts."""
    first, after = 0, len(calls)
    while first < after:
        if backwards:
            begin = place_of(calls, start_of(calls, max(first, after - size)))
            yield tuple(calls[begin:after])
            after = begin
        else:
            end = place_of(calls, start_of(calls, min(first + size, after) - 1) + 1)
            yield tuple(calls[first:end])
            first = end
