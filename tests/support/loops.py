"""Turns of the event loop."""

import asyncio

TURNS = 20  # more than any task of a test takes from one wait to the next


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(TURNS):
        await asyncio.sleep(0)
