"""Whether a POST that failed is sent once more. Pure.

Rules:
- At most once, and only where it can help: no connection, a connection closed before the first byte, 502, 503, 504
  (not a 503 that asks for more patience than ours).
- Retries are at most `SHARE` of requests. What is not used is saved up, but little of it: a retry is for one POST that
  failed among others that did not, so it is called off if anything else has failed meanwhile.
"""

from __future__ import annotations

from gateway.errors import UpstreamError, UpstreamFailed, UpstreamUnreachable

SHARE = 0.1  # retries a request
SAVED = 5.0  # retries
SOONEST, LATEST = 0.05, 0.25  # seconds until it is sent


class Budget:
    """What may still be retried."""

    def __init__(self) -> None:
        self._left = 0.0

    def earn(self) -> None:
        """Earn for a request."""
        self._left = min(SAVED, self._left + SHARE)

    def spend(self) -> bool:
        """Spend a retry, if there is one."""
        if self._left < 1 - 1e-9:  # ten tenths
            return False
        self._left -= 1
        return True

    def give_back(self) -> None:
        """Take back a retry that was called off."""
        self._left += 1


def helps(error: UpstreamError) -> bool:
    """Tell whether the same POST may fare better."""
    if isinstance(error, UpstreamFailed):
        return error.status in (502, 503, 504) and error.retry_after <= LATEST
    return isinstance(error, UpstreamUnreachable)


def pause(chance: float) -> float:
    """Seconds until the retry; `chance` is from 0 to 1."""
    return SOONEST + (LATEST - SOONEST) * chance
