"""Client profiles: for each client code, how the upstream echoes it, how long a window and how large a batch it bears.

Rules:
- How a code is echoed is learned only from a POST for it alone whose reply has calls. If such a code echoes itself, and
  the reply to a batch has no foreign codes, it has no calls when the reply leaves it out. A code that is echoed under
  another code is never batched.
- A code whose own POST failed is not batched until one is answered, at most for ten minutes. If the reply itself was at
  fault, an answer to another window does not end that time.
- A timeout before the first byte or a 5xx halves the span of a code if the window was long, over half of the present
  span: the failure of a short window is no evidence about longer ones. The span doubles with each window of its length
  that is answered. If it fails soon after it grew, it does not grow for ten minutes.
- The failure of a batch is no evidence about any of its codes. If a batch fails again, without those codes that failed
  alone, the batches of its codes are halved, and double again in the same way.
- A flight whose window was split teaches the longest window that was answered, unless the shortest one failed: then
  it is not the length that the upstream cannot answer. A single failure teaches no less than a quarter of the limit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from msgspec import Struct

from gateway.memory import Lru, Memory
from gateway.model import EVERY_CLIENT, Call

PART = 1 / 16  # of the memory; a million bytes hold 1,400 profiles
PROFILE_BYTES = 360  # of a profile, without its code
FAILED_TTL = 600  # seconds; records are corrected, and servers mended, within minutes
LIMIT_TTL = 3600  # seconds after which a limit is forgotten
SPAN_HOLD = 600  # seconds in which a span that grew too far does not grow
MIN_SPAN = 3600  # seconds; a server that cannot answer for an hour cannot answer
MAX_CUT = 4  # POSTs of the longest window after one failure
MAX_POSTS = 32  # of a flight


class ClientProfile(Struct):
    """The profile of one code. Instants are seconds since 1970.

    `last_duration` is how long its last POST for at most a day took. `max_span` (seconds) and `max_batch` (codes) are 0
    while nothing is known against the configured limits.
    """

    echoes_itself: bool = False
    never_batch: bool = False
    alone_until: float = 0  # not batched before, because its own POST failed
    bad_reply: bool = False  # whether the reply to that POST was at fault
    max_span: int = 0
    max_batch: int = 0
    batch_failed: bool = False  # whether its last batch failed
    limited_until: float = 0  # when `max_span` and `max_batch` are forgotten
    grown: float = 0  # when `max_span` last grew
    hold_until: float = 0  # `max_span` does not grow before
    last_duration: float = 0
    has_status: bool = False  # whether a reply had its calls' status, so that the upstream knows the flag


class ClientProfiles:
    """The profiles of all codes. `max_span` (seconds) and `max_batch` (codes) are the configured limits."""

    def __init__(self, max_span: int, max_batch: int, memory: Memory | None = None) -> None:
        self.max_span = max_span
        self._max_batch = max_batch
        self._omits = False  # whether the upstream leaves codes out of its replies
        self._profiles: Lru[str, ClientProfile] = Lru(memory or Memory(), PART)

    def of(self, code: str) -> ClientProfile:
        """Return the profile of a code, to be read and changed."""
        profile = self._profiles.get(code)
        if profile is None:
            profile = ClientProfile()
            self._profiles.put(code, profile, PROFILE_BYTES + len(code))
        return profile

    def answered(self, codes: Collection[str], seconds: int, now: float) -> None:
        """Learn that a POST for some codes and a window of `seconds` was answered as it was planned."""
        for code in codes:
            profile = self._unexpired(code, now)
            if profile.max_batch and len(codes) >= profile.max_batch:
                profile.max_batch = 2 * len(codes)
            if len(codes) > 1:
                profile.batch_failed = False
                continue
            if not profile.bad_reply:
                profile.alone_until = 0
            if profile.max_span and seconds >= profile.max_span and not _is_ahead(profile.hold_until, now, SPAN_HOLD):
                profile.max_span, profile.grown = 2 * seconds, now

    def answered_part(self, code: str, seconds: int, now: float, *, failures: int) -> None:
        """Learn the longest window that was answered where longer ones failed, one or several times."""
        if failures == 1:  # it may have been chance
            seconds = max(seconds, self.max_span // MAX_CUT)
        self._limit_span(self._unexpired(code, now), seconds, now)

    def echoed(self, code: str, calls: Mapping[str, Collection[Call]]) -> None:
        """Learn from the calls, by the codes listed, in the reply to a POST for one code."""
        profile = self.of(code)
        if calls.get(code):
            profile.echoes_itself, profile.never_batch = True, False
        elif code not in calls and any(calls.values()):
            profile.echoes_itself, profile.never_batch = False, True

    def omitted(self) -> None:
        """Learn that the upstream left codes out of the reply to a batch."""
        self._omits = True

    def failed(self, code: str, now: float, *, bad_reply: bool) -> None:
        """Learn that the POST for a code failed, perhaps because of its reply."""
        profile = self.of(code)
        profile.alone_until, profile.bad_reply = now + FAILED_TTL, bad_reply

    def batch_failed(self, codes: Collection[str], now: float) -> None:
        """Learn that the POST for several codes failed."""
        for code in codes:
            profile = self._unexpired(code, now)
            if profile.batch_failed:
                profile.max_batch, profile.limited_until = len(codes) // 2, now + LIMIT_TTL
            profile.batch_failed = True

    def overloaded(self, code: str, seconds: int, now: float) -> None:
        """Learn that a POST for a code was not answered in time, or with a 5xx."""
        profile = self._unexpired(code, now)
        if seconds > self.span(code, now) // 2:
            self._limit_span(profile, seconds // 2, now)

    def _limit_span(self, profile: ClientProfile, seconds: int, now: float) -> None:
        profile.max_span, profile.limited_until = max(MIN_SPAN, seconds), now + LIMIT_TTL
        if now - profile.grown < LIMIT_TTL:
            profile.hold_until = now + SPAN_HOLD

    def span(self, code: str, now: float, allowed: int = 0) -> int:
        """The longest window to request of a code, in seconds; `allowed` may exceed the configured limit."""
        allowed = max(self.max_span, allowed)
        return min(allowed, self._unexpired(code, now).max_span or allowed)

    def batches(self, codes: Sequence[str], now: float, alone: Collection[str] = ()) -> list[list[str]]:
        """Cut codes into batches, none larger than each of its codes allows. The codes in `alone` get a batch each."""
        limits = {code: 1 if code in alone else self._batch_limit(code, now) for code in codes}
        batches: list[list[str]] = []
        for code in sorted(codes, key=lambda code: -limits[code]):
            if not batches or len(batches[-1]) >= limits[code]:
                batches.append([])
            batches[-1].append(code)
        place = {code: number for number, code in enumerate(codes)}
        return [sorted(batch, key=place.__getitem__) for batch in batches]

    def _batch_limit(self, code: str, now: float) -> int:
        profile = self._unexpired(code, now)
        if code == EVERY_CLIENT or profile.never_batch or _is_ahead(profile.alone_until, now, FAILED_TTL):
            return 1
        limit = min(self._max_batch, profile.max_batch or self._max_batch)
        # Each code that such a batch leaves out costs another POST of the flight.
        return limit if profile.echoes_itself or not self._omits else min(limit, MAX_POSTS - 1)

    def _unexpired(self, code: str, now: float) -> ClientProfile:
        profile = self.of(code)
        if not _is_ahead(profile.limited_until, now, LIMIT_TTL):
            profile.max_span = profile.max_batch = 0
        return profile


def _is_ahead(until: float, now: float, most: float) -> bool:
    """Whether an instant is ahead, by at most `most` seconds: more than that means that the clock was set back."""
    return now < until <= now + most
