"""Slices: long pure work on the event loop, cut into slices of a few milliseconds.

Pure work that may take long is a generator that yields, with no value, after each step of at most a millisecond or two.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Generator
from typing import TypeVar

SLICE = 0.004  # seconds after which other tasks run
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
