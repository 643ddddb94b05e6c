"""Memory: one bound, in bytes, for everything that grows with requests (T8).

Rules:
- A structure counts its bytes where it is filled: keys, expired entries and memoised values too.
- A structure that could displace others has a part of the bound, and evicts its own least recently used entries.
- When all together exceed the bound, `first_to_last` frees memory, that which costs least to restore first.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from itertools import count
from typing import Any, Generic, TypeVar

ENTRY_SIZE = 350  # bytes of an entry of `Lru` without its key and value, at the load of a table that has just grown
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class Memory:
    """The bytes that all structures of a process hold. `bound` is in bytes."""

    def __init__(self, bound: float = math.inf) -> None:
        self.bound = bound
        self.size = 0
        self.first_to_last: list[Callable[[], bool]] = []  # each frees an entry, or returns False if it has none

    def fit(self) -> None:
        """Free memory until the bound is kept."""
        while self.size > self.bound and any(free() for free in self.first_to_last):
            pass


class Lru(Generic[_Key, _Value]):
    """A table that evicts its least recently used entries when it exceeds its part of the bound.

    `removed` is called with each key and value that leaves it.
    """

    def __init__(
        self, memory: Memory, part: float = 1, removed: Callable[[_Key, _Value], object] = lambda *_: None
    ) -> None:
        self.size = 0  # bytes
        self._removed = removed
        self._memory = memory
        self._part = part
        self._entries: OrderedDict[_Key, tuple[_Value, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def items(self) -> Iterable[tuple[_Key, _Value]]:
        """All keys and values, the least recently used first."""
        return [(key, value) for key, (value, _) in self._entries.items()]

    def get(self, key: _Key) -> _Value | None:
        """The value of a key, which counts as a use of it."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: _Key, value: _Value, size: int) -> None:
        """Store a value; `size` is in bytes, of key and value. One that is too large is evicted at once."""
        self.pop(key)
        self._entries[key] = value, size + ENTRY_SIZE
        self._add(size + ENTRY_SIZE)
        while self.size > self._part * self._memory.bound:
            self.free()
        self._memory.fit()

    def pop(self, key: _Key) -> _Value | None:
        """Remove a key. Returns its value, or None if it is not there."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        self._add(-entry[1])
        self._removed(key, entry[0])
        return entry[0]

    def free(self) -> bool:
        """Evict the least recently used entry. Returns False if there is none."""
        return bool(self._entries) and self.pop(next(iter(self._entries))) is not None

    def _add(self, size: int) -> None:
        self.size += size
        self._memory.size += size


class Memo:
    """The values derived from a stored extent. They count as memory of the cache, and are evicted before extents."""

    __slots__ = ("_number", "_stored", "_table", "size", "values")
    numbers = count()

    def __init__(self, table: MemoTable, size: int = 0) -> None:
        self.size = size  # of the extent, in bytes
        self.values: dict[Hashable, Any] = {}
        self._table = table
        self._number = next(self.numbers)  # not `id`, which a later memo may have too
        self._stored = True

    def get(self, name: Hashable) -> Any:  # noqa: ANN401 - whatever was put
        """The value of a name, or None."""
        return None if self._table.get((self._number, name)) is None else self.values[name]

    def put(self, name: Hashable, value: object, size: int) -> None:
        """Keep a value of `size` bytes, unless the extent is no longer stored."""
        if self._stored:
            self._table.pop((self._number, name))
            self.values[name] = value
            self._table.put((self._number, name), self, size)

    def clear(self) -> None:
        """Drop all values, and keep no others: the extent is no longer stored."""
        self._stored = False
        for name in list(self.values):
            self._table.pop((self._number, name))


MemoTable = Lru[tuple[int, Hashable], Memo]


def memo_table(memory: Memory) -> MemoTable:
    """The order in which the values of all memos are evicted."""
    return Lru(memory, removed=lambda key, memo: memo.values.pop(key[1], None))
