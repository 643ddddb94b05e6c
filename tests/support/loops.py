"""Helpers for the event loop."""

import asyncio
from typing import TypeVar

from gateway.turns import Steps

Result = TypeVar("Result")
TURNS = 20  # more iterations than any task of a test needs between two waits


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


def finish(steps: Steps[Result]) -> Result:
    """Take all steps of pure work at once, and return what they return."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: Result = end.value
            return result
