"""How many POSTs may be under way: additive increase, multiplicative decrease. Pure; time is an argument.

Rules:
- Between 1 and `most`; it begins at `most`.
- A time-out or a 5xx halves it, once for all POSTs that were under way at that moment: eight that time out together
  are one piece of news.
- Every POST that is answered adds its share, so that a limit's worth of answers raises the limit by one.
"""

from __future__ import annotations


class Limit:
    """The limit. Instants are of any one clock."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._value = float(most)
        self._halved = float("-inf")

    @property
    def allowed(self) -> int:
        """POSTs that may be under way."""
        return int(self._value)

    def answered(self) -> None:
        """Learn that a POST was answered."""
        self._value = min(float(self._most), self._value + 1 / self._value)

    def strained(self, sent: float, now: float) -> None:
        """Learn at `now` that a POST sent at `sent` timed out, or met a 5xx."""
        if sent >= self._halved:
            self._value = max(1.0, self._value / 2)
            self._halved = now
