"""Who may see what: decisions, without I/O.

Rules:
- A consumer sees the clients that its patterns name: exact codes, prefixes such as `800777*`, or `*` for all.
- What a consumer may not see is `Forbidden`, decided before anything is asked, so the answer is the same whether or
  not it exists.
- Calls are masked here, after the cache and never in it, and the same for every format. Without the scope `personal`
  the caller's number is `********NN`; address, keys pressed, other data and journal are None; `extra` keeps
  `PUBLIC_EXTRA` and the names that the operator calls public. Without `status` there is no status, raw or read.
- The upstream's own recording address goes to nobody.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence

from msgspec import Struct
from msgspec.structs import replace

from gateway.errors import Forbidden
from gateway.model import EVERY_CLIENT, Call, Status

SCOPES = ("calls", "personal", "status", "recordings", "refresh")
PATTERN = re.compile(r"\*|[A-Za-z0-9_.-]{1,64}|[A-Za-z0-9_.-]{1,63}\*", re.ASCII)
RATE = re.compile(r"([1-9][0-9]{0,8})/(second|minute|hour|day)", re.ASCII)
PERIODS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
PUBLIC_EXTRA = frozenset({"Result", "InfoDigits"})
STATUS_EXTRA = frozenset({"ReviewedStatus", "SalesStatus", "Journal"})
STATUS_WORDS = frozenset({"ReviewedStatus", "SalesStatus"})  # not personal, unlike the journal
NEVER_EXTRA = "VoiceDirectory"
PERSONAL_FILTERS = frozenset({"ani"})  # parameters that search in what is masked


class Rate(Struct, frozen=True):
    """So many requests in a period of so many seconds."""

    requests: int
    seconds: int


class Consumer(Struct, frozen=True, kw_only=True):
    """A program that calls the API, and its rights; `label` is what metrics call it, a name from the keys file."""

    name: str
    clients: tuple[str, ...]
    scopes: frozenset[str]
    rate: Rate | None = None
    label: str = ""


OIDC_LABEL = "oidc"
ANYONE = Consumer(name="anyone", clients=(EVERY_CLIENT,), scopes=frozenset(SCOPES), label="anyone")


def parse_rate(text: str) -> Rate:
    """Parse a rate such as `600/minute`. Raises ValueError."""
    match = RATE.fullmatch(text)
    if match is None:
        raise ValueError("is not a rate such as 600/minute, of second, minute, hour or day")
    return Rate(int(match[1]), PERIODS[match[2]])


def may_see(consumer: Consumer, code: str) -> bool:
    """Whether a client's calls are for this consumer."""
    return any(
        pattern == code or (pattern.endswith("*") and code.startswith(pattern[:-1])) for pattern in consumer.clients
    )


def require(consumer: Consumer, scope: str) -> None:
    """Raises Forbidden unless the consumer has the scope."""
    if scope not in consumer.scopes:
        raise Forbidden(f"this needs the scope {scope}", "scope")


def may_filter(consumer: Consumer, parameter: str) -> bool:
    """Whether the consumer may search by a parameter: not by what is masked for it."""
    return parameter not in PERSONAL_FILTERS or "personal" in consumer.scopes


def require_list(consumer: Consumer, parameters: Collection[str], *, status: bool) -> None:
    """Raises Forbidden unless the consumer may list calls with status or without, by these parameters."""
    require(consumer, "calls")
    if status:
        require(consumer, "status")
    if not all(may_filter(consumer, parameter) for parameter in parameters):
        require(consumer, "personal")


def codes_to_read(consumer: Consumer, codes: Sequence[str]) -> tuple[str, ...]:
    """The codes, or `*`, to read from the cache; `*` asked means the consumer's own clients. Raises Forbidden.

    Of what is read `keep_seen` keeps the consumer's own: prefixes cannot be asked of the upstream.
    """
    if tuple(codes) != (EVERY_CLIENT,):
        if not all(may_see(consumer, code) for code in codes):
            raise Forbidden("this consumer may not see that client, if there is one", "client")
        return tuple(codes)
    if not consumer.clients:
        raise Forbidden("this consumer may see no client", "client")
    exact = not any(pattern.endswith("*") for pattern in consumer.clients)
    return tuple(dict.fromkeys(consumer.clients)) if exact else (EVERY_CLIENT,)


def keep_seen(consumer: Consumer, read: Sequence[str]) -> Callable[[Sequence[Call]], Sequence[Call]]:
    """What keeps, of calls of the codes that `codes_to_read` gave, those that the consumer may see."""
    if tuple(read) != (EVERY_CLIENT,) or EVERY_CLIENT in consumer.clients:
        return list
    return lambda calls: [call for call in calls if may_see(consumer, call.client_code)]


def present(
    call: Call,
    consumer: Consumer,
    *,
    status: bool,
    public_extra: Collection[str] = (),
    recording_url: str | None = None,
) -> Call:
    """Make the call as this consumer sees it; `status` tells whether it asked for that.

    The upstream's own address of the recording is nobody's business: `recording_url` stands in its place.
    """
    shows_status = status and "status" in consumer.scopes
    if "personal" in consumer.scopes:
        extra = call.extra
        if extra:
            extra = _without(extra, frozenset() if shows_status else STATUS_EXTRA)
        same_status = shows_status or call.status is None
        if same_status and extra is call.extra and call.recording_url is None and recording_url is None:
            return call
        return replace(call, recording_url=recording_url, extra=extra, status=call.status if shows_status else None)
    shown = call.status if shows_status else None
    return replace(
        call,
        ani=masked(call.ani),
        address=None,
        dtmf=None,
        other_data=None,
        recording_url=recording_url,
        status=shown and Status(reviewed=shown.reviewed, sales=shown.sales, journal=None),
        extra=_public(call.extra, public_extra, status=shows_status) if call.extra else call.extra,
    )


def masked(number: str | None) -> str | None:
    """A telephone number without all but its last two digits; of what is too short to be one, nothing."""
    if number is None:
        return None
    end = number[-2:]
    return f"********{end}" if len(number) >= 7 and end.isascii() and end.isdigit() else "********"


def _without(extra: dict[str, str], names: Collection[str]) -> dict[str, str]:
    """Leave out some elements, and the upstream's recording address, which is here if it came twice."""
    roots = {name: name.partition(".")[0] for name in extra}
    if not any(root in names or root == NEVER_EXTRA for root in roots.values()):
        return extra
    return {name: extra[name] for name, root in roots.items() if root not in names and root != NEVER_EXTRA}


def _public(extra: dict[str, str], public: Collection[str], *, status: bool) -> dict[str, str]:
    """Keep what is not personal; the journal is, whatever the operator calls it."""
    kept = {}
    for name, text in extra.items():
        root = name.partition(".")[0]
        shown = name in PUBLIC_EXTRA or (name in public and root != NEVER_EXTRA)
        if root in STATUS_EXTRA:
            shown = status and name in STATUS_WORDS
        if shown:
            kept[name] = text
    return kept
