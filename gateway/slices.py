"""Slices: long pure work on the event loop, cut into slices of a few milliseconds.

Pure work that may take long is a generator that yields, with no value, after each step of at most a millisecond or two.
A thread is no substitute: one call of `sorted`, or of an encoder, keeps the interpreter until it returns.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, TypeVar

SLICE = 0.002  # seconds after which other tasks run; a turn of the loop takes a hundredth of it
STEP = 1000  # items of a step of simple work, which takes less than a millisecond
SAMPLE = 251  # every 251st item is a sample of the keys; a prime, because lists may repeat at round numbers
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
Steps = Generator[None, None, _Result]


async def in_slices(steps: Steps[_Result]) -> _Result:
    """Run all steps and return their result. Other tasks run between slices."""
    began = time.perf_counter()
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: _Result = end.value
            return result
        if time.perf_counter() - began > SLICE:
            await asyncio.sleep(0)
            began = time.perf_counter()


def finish(steps: Steps[_Result]) -> _Result:
    """Run all steps without a pause and return their result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: _Result = end.value
            return result


def parts_of(items: Sequence[_Item], size: int = STEP) -> Iterator[Sequence[_Item]]:
    """The items of each step."""
    return (items[place : place + size] for place in range(0, len(items), size))


def sorted_in_steps(items: Sequence[_Item], key: Callable[[_Item], Any]) -> Steps[list[_Item]]:
    """Sort as `sorted` does: items that are almost in order in little more time, others in about three times as long.

    Each part is sorted, and cut at the same few hundred keys; what lies between two of these keys is sorted again.
    """
    edges = sorted(map(key, items[::SAMPLE]))
    between: list[list[_Item]] = [[] for _ in range(len(edges) + 1)]
    for part in parts_of(items):
        run, place = sorted(part, key=key), 0
        while place < len(run):
            which = bisect_right(edges, key(run[place]))
            after = bisect_left(run, edges[which], place, key=key) if which < len(edges) else len(run)
            between[which] += run[place:after]
            place = after
        yield
    ordered: list[_Item] = []
    for run in between:
        ordered += sorted(run, key=key)
        yield
    return ordered
