"""Authorization and masking. Pure.

Rules:
- A consumer may read the clients that its patterns match: exact codes, prefixes such as `800777*`, or `*` for all.
- Access is decided before the cache is read. The answer, `Forbidden`, does not reveal whether a client exists.
- Calls are masked here, after the cache and never in it, and in the same way for every format. Without the scope
  `personal` the caller's number is `********NN`; address, keys pressed, other data and journal are None; `extra` keeps
  `PUBLIC_EXTRA`, the names in GATEWAY_EXTRA_PUBLIC, and the elements of promoted fields that are not personal. Without
  the scope `status` a call has neither `status` nor the status elements in `extra`.
- No consumer receives the upstream's own recording address.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from enum import StrEnum

from msgspec import Struct
from msgspec.structs import replace

from gateway.errors import Forbidden
from gateway.extra_fields import NO_EXTRAS, ExtraFields
from gateway.model import EVERY_CLIENT, Call, CallStatus

SCOPES = ("calls", "personal", "status", "recordings", "refresh")
CLIENT_PATTERN = re.compile(r"\*|[A-Za-z0-9_.-]{1,64}|[A-Za-z0-9_.-]{1,63}\*", re.ASCII)
RATE_PATTERN = re.compile(r"([1-9][0-9]{0,8})/(second|minute|hour|day)", re.ASCII)
RATE_PERIODS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
PUBLIC_EXTRA = frozenset({"Result", "InfoDigits"})  # elements in `extra` that hold no personal data
STATUS_EXTRA = frozenset({"ReviewedStatus", "SalesStatus", "Journal"})
PUBLIC_STATUS_EXTRA = frozenset({"ReviewedStatus", "SalesStatus"})  # the journal is personal data
RECORDING_EXTRA = "VoiceDirectory"  # the upstream's recording address, in `extra` if a call has more than one
FILTER_SCOPES = {"ani": "personal", "recorded": "recordings"}  # parameters whose results would reveal a masked field
MIN_DISTINCT = 5  # calls; of fewer, a consumer without the scope `personal` may not know the number of callers


class Rate(Struct, frozen=True):
    """A number of requests in a period of `seconds`."""

    requests: int
    seconds: int


class Kind(StrEnum):
    """How a consumer is identified: by access key, bearer token, or, without authentication, address alone."""

    KEY = "key"
    TOKEN = "token"  # noqa: S105 - a kind, not a secret
    ADDRESS = "address"


class Consumer(Struct, frozen=True, kw_only=True):
    """A program that calls the API, and its rights. Names are unique within a kind only."""

    name: str
    clients: tuple[str, ...]
    scopes: frozenset[str]
    rate: Rate | None = None
    kind: Kind = Kind.KEY

    @property
    def key(self) -> Key:
        """Its identity: the key of everything that is stored by consumer."""
        return self.kind, self.name

    @property
    def label(self) -> str:
        """Its name in metrics: the name in the keys file, or OIDC_LABEL for every consumer with a token."""
        if self.kind is Kind.TOKEN:
            return OIDC_LABEL
        return f"{self.kind}/{self.name}" if self.name == OIDC_LABEL else self.name  # no name contains a slash


Key = tuple[Kind, str]
OIDC_LABEL = "oidc"
ANONYMOUS = Consumer(name="anyone", clients=(EVERY_CLIENT,), scopes=frozenset(SCOPES), kind=Kind.ADDRESS)


def parse_rate(text: str) -> Rate:
    """Parse a rate such as `600/minute`. Raises ValueError."""
    match = RATE_PATTERN.fullmatch(text)
    if match is None:
        raise ValueError("is not a rate such as 600/minute: a number, and second, minute, hour or day")
    return Rate(int(match[1]), RATE_PERIODS[match[2]])


def can_read(consumer: Consumer, code: str) -> bool:
    """Whether the consumer may read the calls of a client."""
    return any(
        pattern == code or (pattern.endswith("*") and code.startswith(pattern[:-1])) for pattern in consumer.clients
    )


def require_scope(consumer: Consumer, scope: str) -> None:
    """Check that the consumer has a scope. Raises Forbidden."""
    if scope not in consumer.scopes:
        raise Forbidden(f"the scope {scope} is required", "scope")


def can_filter_by(consumer: Consumer, parameter: str) -> bool:
    """Whether the consumer may filter by a parameter: a filter on a masked field would reveal it."""
    return parameter not in FILTER_SCOPES or FILTER_SCOPES[parameter] in consumer.scopes


def can_count_callers(consumer: Consumer, calls: int) -> bool:
    """Whether the consumer may know how many callers made some calls: for a few, it would show which share a caller."""
    return calls >= MIN_DISTINCT or "personal" in consumer.scopes


def require_list_scopes(consumer: Consumer, parameters: Collection[str], *, status: bool) -> None:
    """Check that the consumer has the scopes to list calls, filtered by `parameters`. Raises Forbidden."""
    require_scope(consumer, "calls")
    if status:
        require_scope(consumer, "status")
    for parameter in parameters:
        if not can_filter_by(consumer, parameter):
            require_scope(consumer, FILTER_SCOPES[parameter])


def authorized_codes(consumer: Consumer, codes: Sequence[str]) -> tuple[str, ...]:
    """The client codes to read from the cache for requested codes. Raises Forbidden.

    A requested `*` means all clients that the consumer may read. If its patterns have a prefix the result is `*`, as
    the upstream has no query by prefix: apply `client_filter` to the calls.
    """
    if tuple(codes) != (EVERY_CLIENT,):
        if not all(can_read(consumer, code) for code in codes):
            raise Forbidden("this consumer has no access to that client, if it exists", "client")
        return tuple(codes)
    if not consumer.clients:
        raise Forbidden("this consumer has access to no client", "client")
    exact = not any(pattern.endswith("*") for pattern in consumer.clients)
    return tuple(dict.fromkeys(consumer.clients)) if exact else (EVERY_CLIENT,)


def client_filter(consumer: Consumer, codes: Sequence[str]) -> Callable[[Sequence[Call]], Sequence[Call]]:
    """A function that drops calls of clients that the consumer may not read; `codes` come from `authorized_codes`."""
    if tuple(codes) != (EVERY_CLIENT,) or EVERY_CLIENT in consumer.clients:
        return list
    return lambda calls: [call for call in calls if can_read(consumer, call.client_code)]


def mask_call(
    call: Call,
    consumer: Consumer,
    *,
    status: bool,
    extras: ExtraFields = NO_EXTRAS,
    recording_url: str | None = None,
) -> Call:
    """Return the call without the data that the consumer may not read, and with the promoted extra fields.

    `status` says whether the consumer asked for the status. `recording_url` replaces the upstream's address.
    """
    return extras.promote(_mask(call, consumer, status=status, public_extra=extras.public, recording_url=recording_url))


def _mask(
    call: Call, consumer: Consumer, *, status: bool, public_extra: Collection[str], recording_url: str | None
) -> Call:
    shows_status = status and "status" in consumer.scopes
    if "personal" in consumer.scopes:
        extra = call.extra
        if extra:
            extra = _without(extra, frozenset() if shows_status else STATUS_EXTRA)
        same_status = shows_status or call.status is None
        if same_status and extra is call.extra and call.recording_url is None and recording_url is None:
            return call
        return replace(call, recording_url=recording_url, extra=extra, status=call.status if shows_status else None)
    visible = call.status if shows_status else None
    return replace(
        call,
        ani=mask_number(call.ani),
        address=None,
        dtmf=None,
        other_data=None,
        recording_url=recording_url,
        status=visible and CallStatus(reviewed=visible.reviewed, sales=visible.sales, journal=None),
        extra=_public(call.extra, public_extra, status=shows_status) if call.extra else call.extra,
    )


def mask_number(number: str | None) -> str | None:
    """Mask a telephone number except its last two digits; mask a text of less than seven characters completely."""
    if number is None:
        return None
    end = number[-2:]
    return f"********{end}" if len(number) >= 7 and end.isascii() and end.isdigit() else "********"


def _without(extra: dict[str, str], names: Collection[str]) -> dict[str, str]:
    """Remove some elements, with their nested elements, and the upstream's recording address."""
    hidden = {name for name in extra if (root := name.partition(".")[0]) in names or root == RECORDING_EXTRA}
    return {name: text for name, text in extra.items() if name not in hidden} if hidden else extra


def _public(extra: dict[str, str], public: Collection[str], *, status: bool) -> dict[str, str]:
    """Keep the elements that are not personal data. The journal is removed even if `public` names it."""
    kept = {}
    for name, text in extra.items():
        root = name.partition(".")[0]
        shown = name in PUBLIC_EXTRA or (name in public and root != RECORDING_EXTRA)
        if root in STATUS_EXTRA:
            shown = status and name in PUBLIC_STATUS_EXTRA
        if shown:
            kept[name] = text
    return kept
