"""The values that the gateway is about.

Rules:
- Every Struct is frozen: whoever wants another value makes one.
- Every instant is UTC. Wall time (naive US Central Time) exists only inside `gateway/callbutton/`.
- Phone numbers, ids, ZIP codes and index numbers are strings, never numbers (T7). An absent value is None.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from msgspec import Struct

EVERY_CLIENT = "*"  # in place of a client code


class Certainty(StrEnum):
    """How sure the instant of a call is (T4)."""

    EXACT = "exact"
    INFERRED = "inferred"  # in the autumn fold; the order of the reply decided
    ASSUMED = "assumed"  # in the fold with nothing to decide by, or in the spring gap


class PhoneType(StrEnum):
    """`InfoDigits`: the type of phone that the caller used."""

    NORMAL = "normal"
    PAYPHONE = "payphone"
    CELL = "cell"
    OTHER = "other"


class Result(StrEnum):
    """What became of a call."""

    CONNECTED = "connected"
    BUSY = "busy"
    NO_ANSWER = "no_answer"
    ABANDONED = "abandoned"
    OTHER = "other"


class SalesStatus(StrEnum):
    """The sales status that somebody set by hand."""

    NONE = "none"
    CALLED_BACK = "called_back"
    MADE_SALE = "made_sale"
    OTHER = "other"


class Address(Struct, frozen=True, kw_only=True, rename="camel", gc=False):
    """Where the caller's telephone is registered."""

    first_name: str | None
    middle_initial: str | None
    last_name: str | None
    street: str | None
    secondary: str | None
    city: str | None
    state: str | None
    zip: str | None
    zip4: str | None


class Status(Struct, frozen=True, kw_only=True, rename="camel", gc=False):
    """What people said of a call afterwards."""

    reviewed: bool
    sales: SalesStatus
    journal: str | None


class Call(Struct, frozen=True, kw_only=True, rename="camel", gc=False):
    """One call detail record, known by `id` within its client.

    Inside the gateway `recording_url` is the upstream's `VoiceDirectory` as it came; `api/` never hands that out.
    """

    id: str
    client_code: str
    start_time: datetime
    start_time_certainty: Certainty
    campaign: str | None
    did: str | None
    ani: str | None
    other_data: str | None
    phone_type: PhoneType
    target: str | None
    result: Result
    duration_seconds: int | None
    talk_time_seconds: int | None
    index_number: str | None
    dtmf: str | None
    recording_url: str | None
    address: Address | None
    status: Status | None
    extra: dict[str, str]


class Window(Struct, frozen=True, order=True):
    """A half-open UTC interval `[start, end)`, in whole seconds since 1970."""

    start: int
    end: int

    def __contains__(self, point: float) -> bool:
        return self.start <= point < self.end

    def overlaps(self, other: Window) -> bool:
        """Whether the two have a point in common."""
        return self.start < other.end and other.start < self.end
