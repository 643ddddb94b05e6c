"""The memory that a block of code leaves allocated."""

import gc
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def traced_memory() -> Iterator[Callable[[], int]]:
    """Give a function that returns the bytes allocated in the block, once it has ended, and still in use."""
    held = 0
    tracemalloc.start()
    try:
        yield lambda: held
        gc.collect()  # the event loops of the requests are cycles
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
