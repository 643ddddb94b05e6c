"""The values that all parts of the gateway share: calls, and windows of time.

Rules:
- Every Struct is frozen; a changed value is a new one.
- Every instant is UTC. Wall time (naive US Central Time) exists only inside `gateway/callbutton/`.
- Phone numbers, ids, ZIP codes and index numbers are strings, never numbers (T7). An absent value is None.
- The OpenAPI document takes its texts from here: the first paragraph of a docstring describes the schema, `about`
  describes a field.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from enum import StrEnum
from operator import attrgetter
from typing import Annotated

from msgspec import Meta, Struct

EVERY_CLIENT = "*"  # in place of a client code
CODE_PATTERN = "[A-Za-z0-9_.-]{1,64}"  # of a client code
CLIENT_CODE = re.compile(CODE_PATTERN, re.ASCII)
UNREADABLE = "Null if the server's value is not a number; its text is then in `extra`."
Instant = Annotated[datetime, Meta(tz=True)]  # in UTC


def about(text: str, *examples: object, ge: int | None = None, le: int | None = None, form: str | None = None) -> Meta:
    """Describe a field for the OpenAPI document: its text, examples, limits, and JSON schema's `format`."""
    extra = {"format": form} if form else None
    return Meta(description=text, examples=list(examples) or None, ge=ge, le=le, extra_json_schema=extra)


class StartTimeCertainty(StrEnum):
    """How certain the start time is: `exact`, `inferred` from the server's reply, or `assumed` and maybe an hour off.

    The server sends local times (T4), and US clocks repeat an hour in autumn and skip one in spring. A time in the
    repeated hour is `inferred` if the order of the reply decides between the two readings, else `assumed`. A time in
    the skipped hour is `assumed`.
    """

    EXACT = "exact"
    INFERRED = "inferred"
    ASSUMED = "assumed"


class PhoneType(StrEnum):  # `InfoDigits` on the wire
    """The type of phone that the caller used. For `other`, the server's text is in `extra`."""

    NORMAL = "normal"
    PAYPHONE = "payphone"
    CELL = "cell"
    OTHER = "other"


class CallResult(StrEnum):
    """The result of the call. For `other`, the server's text is in `extra`."""

    CONNECTED = "connected"
    BUSY = "busy"
    NO_ANSWER = "no_answer"
    ABANDONED = "abandoned"
    OTHER = "other"


class SalesStatus(StrEnum):
    """The sales status, as set by a user of Callbutton. For `other`, the server's text is in `extra`."""

    NONE = "none"
    CALLED_BACK = "called_back"
    MADE_SALE = "made_sale"
    OTHER = "other"


class CallerAddress(Struct, frozen=True, kw_only=True, rename="camel", gc=False):
    """The address at which the caller's phone is registered."""

    first_name: Annotated[str | None, about("First name, which may include a prefix.", "Ada")]
    middle_initial: Annotated[str | None, about("Middle name or initial.", "K.")]
    last_name: Annotated[str | None, about("Last name, which may include a suffix.", "Lovelace")]
    street: Annotated[str | None, about("Street and number.", "12 Lake Shore Drive")]
    secondary: Annotated[str | None, about("Apartment, suite or floor.", "Apt 4")]
    city: Annotated[str | None, about("City.", "Chicago")]
    state: Annotated[str | None, about("US state or Canadian province, two letters.", "IL")]
    zip: Annotated[str | None, about("ZIP code with its leading zeros, or postal code.", "60601")]
    zip4: Annotated[str | None, about("The four additional digits of a ZIP+4 code.", "1234")]


class CallStatus(Struct, frozen=True, kw_only=True, rename="camel", gc=False):
    """The review and sales status of the call, as set by users of Callbutton."""

    reviewed: Annotated[bool, about("Whether the call was reviewed.", True)]
    sales: SalesStatus
    journal: Annotated[str | None, about("Notes about the call.", "Wants a quote.")]


class Call(Struct, frozen=True, kw_only=True, rename="camel", gc=False):
    """One call detail record, identified by `clientCode` and `id`. It has fewer fields with the parameter `fields`.

    In the cache `recording_url` is the upstream's `VoiceDirectory`; `access.mask_call` replaces it in responses.
    """

    id: Annotated[
        str,
        about("The id of the call, unique within its client. It is text: leading zeros are significant.", "498200007"),
    ]
    client_code: Annotated[str, about("The code of the client that was called.", "8005550100")]
    start_time: Annotated[Instant, about("When the call began.", "2026-11-01T08:49:51Z")]
    start_time_certainty: StartTimeCertainty
    campaign: Annotated[str | None, about("The id of the campaign.", "4018")]
    did: Annotated[str | None, about("The tracking number that was called.", "8005550100")]
    ani: Annotated[str | None, about("The number of the caller, if known.", "3125550161")]
    other_data: Annotated[str | None, about("Free text set by the client.", "print ad")]
    phone_type: PhoneType
    target: Annotated[str | None, about("The number that the call was forwarded to.", "7735550158")]
    result: CallResult
    duration_seconds: Annotated[int | None, about(f"Seconds from the start to the end of the call. {UNREADABLE}", 351)]
    talk_time_seconds: Annotated[
        int | None, about(f"Seconds from the answer to the end of the call. {UNREADABLE}", 332)
    ]
    index_number: Annotated[
        str | None, about("The index number that is announced to the target after the call.", "0042")
    ]
    dtmf: Annotated[str | None, about("The keys that the caller pressed.", "1")]
    recording_url: Annotated[
        str | None,
        about(
            "A link to the recording, valid until the end of the next hour without a further credential. "
            "Null without a recording, or without the scope `recordings`.",
            "/recordings/iC0XHkjeqL1bo0HptbFpdZaqODAw",
            form="uri-reference",
        ),
    ]
    address: Annotated[CallerAddress | None, about("The address at which the caller's phone is registered, if known.")]
    status: Annotated[
        CallStatus | None,
        about("The review and sales status. Null without `include=status`, or if the server has none."),
    ]
    extra: Annotated[
        dict[str, str],
        about(
            "Elements of the server's reply that the protocol does not define, as text by dotted name.",
            {"Weather": "rain"},
        ),
    ]


def text_reader(field: str) -> Callable[[Call], str | None]:
    """A function that reads a text of a call: a field by its attribute, or an element by `extra.` and its name."""
    part, _, element = field.partition(".")
    return (lambda call: call.extra.get(element)) if part == "extra" else attrgetter(part)


class UnreadableCall(Struct, frozen=True, array_like=True, gc=False):
    """A record that is not a Call, because it has no id or no readable StartTime. It is counted once (T3).

    `id` is the record's, or else a digest of its texts. It started from `start_time` to `latest`: both are its
    StartTime, or else those of the calls beside it in the reply.
    """

    id: str
    client_code: str
    start_time: Instant
    latest: Instant


class Window(Struct, frozen=True, order=True):
    """A half-open UTC interval `[start, end)`, in whole seconds since 1970."""

    start: int
    end: int

    def __contains__(self, point: float) -> bool:
        return self.start <= point < self.end

    def overlaps(self, other: Window) -> bool:
        """Whether the windows have a point in common."""
        return self.start < other.end and other.start < self.end
