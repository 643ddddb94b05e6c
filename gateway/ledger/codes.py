"""What has been learned of client codes: how the upstream knows them, and how much of them it can bear at a time.

Rules:
- A code whose reply echoes itself, or is empty, is *plain*: its absence from a batch without foreign codes means empty.
- A code that is echoed otherwise, or failed within ten minutes, travels alone.
- A window that failed halves the span of a code; the span is kept for an hour.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from msgspec import Struct

from gateway.model import EVERY_CLIENT

MOST_CODES = 20_000  # remembered; the one not used for longest is forgotten
FAILED = 600  # seconds
SPAN = 3600  # seconds
HOUR = 3600  # the shortest span


class Knowledge(Struct):
    """What is known of one code. Instants are seconds since 1970; `took` is how long its last flight took."""

    plain: bool = False
    alone: bool = False
    failed: float = 0
    span: int = 0
    span_until: float = 0
    took: float = 0


class Codes:
    """What is known of all codes."""

    def __init__(self, max_span: int, batch: int) -> None:
        self.max_span = max_span
        self._batch = batch
        self._known: OrderedDict[str, Knowledge] = OrderedDict()

    def of(self, code: str) -> Knowledge:
        """What is known of a code, to be read and changed."""
        known = self._known.get(code)
        if known is None:
            known = self._known[code] = Knowledge()
            if len(self._known) > MOST_CODES:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(code)
        return known

    def learn(self, code: str, echoed: Iterable[str]) -> None:
        """Learn from the reply to a POST with one code."""
        known = self.of(code)
        known.alone = any(echo != code for echo in echoed)
        known.plain = not known.alone

    def fail(self, code: str, now: float) -> None:
        """Learn that a POST for a code failed on its own."""
        self.of(code).failed = now

    def halve(self, code: str, seconds: int, now: float) -> None:
        """Learn that a window of so many seconds was too much."""
        known = self.of(code)
        known.span, known.span_until = max(HOUR, seconds // 2), now + SPAN

    def span(self, code: str, now: float, most: int = 0) -> int:
        """The longest window to ask of a code; `most` if nothing is known against it."""
        known = self.of(code)
        return known.span if now < known.span_until else max(self.max_span, most)

    def batches(self, codes: Sequence[str], now: float) -> list[list[str]]:
        """Cut codes into batches."""
        alone = [code for code in codes if self._travels_alone(code, now)]
        others = [code for code in codes if code not in set(alone)]
        cut = [others[index : index + self._batch] for index in range(0, len(others), self._batch)]
        return cut + [[code] for code in alone]

    def _travels_alone(self, code: str, now: float) -> bool:
        known = self.of(code)
        return code == EVERY_CLIENT or known.alone or now - known.failed < FAILED
