"""Helpers for the event loop."""

import asyncio

TURNS = 20  # more iterations than any task of a test needs between two waits


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(TURNS):
        await asyncio.sleep(0)
