"""Everything that can go wrong on purpose, as one tree. Status codes are not known here: `api/problems.py` has them.

    GatewayError
    ├── InvalidParameters          what the consumer asked cannot be read
    ├── Unauthenticated            no credentials, or none that count
    ├── Forbidden                  not for this consumer, whether or not it exists
    ├── IssuerUnreachable          whether a token counts cannot be told now
    ├── NotFound                   there is no such thing
    ├── NotAcceptable              not to be had in any form that the consumer accepts
    ├── RateLimited                this consumer asks too much; when to come again
    └── UpstreamError              the upstream did not give an answer that can be used
        ├── UpstreamUnauthorized   the upstream does not know our address
        ├── UpstreamRejected       ERROR about the request itself: the date range, the client code
        ├── UpstreamFailed         any other ERROR, or an HTTP status that is not 200
        ├── UpstreamMalformed      not the protocol, or broken off
        ├── UpstreamUnreachable    no connection
        ├── UpstreamTimeout        a deadline passed
        └── Postponed              it was not asked; it may be later
            ├── UpstreamCircuitOpen    it has failed several times in a row
            └── Overloaded             too much waits already

The text of an error is in our words and may be shown to consumers; what the upstream said is never part of it, but
for `UpstreamRejected.message`.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple


class GatewayError(Exception):
    """The root of the tree."""


class ParameterFault(NamedTuple):
    """One parameter and what is wrong with it."""

    parameter: str
    detail: str


class InvalidParameters(GatewayError):  # noqa: N818 - the name of a problem, not of a class of bugs
    """One or several parameters cannot be read."""

    def __init__(self, faults: Sequence[ParameterFault]) -> None:
        super().__init__("; ".join(f"{fault.parameter}: {fault.detail}" for fault in faults))
        self.faults = tuple(faults)


class Unauthenticated(GatewayError):  # noqa: N818
    """No credentials, or none that count; `reason` is a word for logs and metrics."""

    def __init__(self, detail: str, reason: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Forbidden(GatewayError):  # noqa: N818
    """Not for this consumer, whether or not it exists; `reason` is a word for logs and metrics."""

    def __init__(self, detail: str, reason: str) -> None:
        super().__init__(detail)
        self.reason = reason


class IssuerUnreachable(GatewayError):  # noqa: N818
    """Whether a token counts cannot be told now; it may be in `seconds`."""

    reason = "issuer unreachable"

    def __init__(self, detail: str, seconds: float) -> None:
        super().__init__(detail)
        self.seconds = seconds


class NotFound(GatewayError):  # noqa: N818
    """There is no such thing."""


class NotAcceptable(GatewayError):  # noqa: N818
    """It is not to be had in any form that the consumer accepts."""


class RateLimited(GatewayError):  # noqa: N818
    """A consumer asks too much; `seconds` until it may again. `reason` is a word for logs and metrics."""

    def __init__(self, detail: str, seconds: float, reason: str = "rate") -> None:
        super().__init__(detail)
        self.seconds = seconds
        self.reason = reason


class UpstreamError(GatewayError):
    """The upstream did not give an answer that can be used."""


class UpstreamUnauthorized(UpstreamError):  # noqa: N818
    """The upstream does not know our address; `username` and `address` are what it says it saw."""

    def __init__(self, username: str | None, address: str | None) -> None:
        super().__init__("the Callbutton server does not allow the gateway's address")
        self.username = username
        self.address = address


class UpstreamRejected(UpstreamError):  # noqa: N818
    """The upstream answered ERROR about the request itself; `message` is its own, printable, at most 200 characters."""

    def __init__(self, message: str) -> None:
        super().__init__(f"the Callbutton server refused the request: {message}")
        self.message = message


class UpstreamFailed(UpstreamError):  # noqa: N818
    """Any other ERROR (`reported`), or an HTTP status that is not 200; it asks for `retry_after` seconds."""

    def __init__(self, detail: str, *, reported: bool = False, status: int = 0, retry_after: float = 0) -> None:
        super().__init__(detail)
        self.reported = reported
        self.status = status
        self.retry_after = retry_after


class UpstreamMalformed(UpstreamError):  # noqa: N818
    """The answer is not the protocol, or broke off; the text says where."""


class Obstacle(StrEnum):
    """What is in the way of a connection."""

    NAME = "name"
    REFUSED = "refused"
    ROUTE = "route"
    TLS = "tls"
    PROXY = "proxy"
    CLOSED = "closed"


class UpstreamUnreachable(UpstreamError):  # noqa: N818
    """No connection to the upstream."""

    def __init__(self, detail: str, obstacle: Obstacle = Obstacle.ROUTE) -> None:
        super().__init__(detail)
        self.obstacle = obstacle


class UpstreamTimeout(UpstreamError):  # noqa: N818
    """A deadline passed; `answering` tells whether bytes had come, `connecting` that there was no connection yet."""

    def __init__(self, detail: str, *, answering: bool, connecting: bool = False) -> None:
        super().__init__(detail)
        self.answering = answering
        self.connecting = connecting


class Postponed(UpstreamError):  # noqa: N818
    """The upstream was not asked; it may be in `wait` seconds."""

    def __init__(self, detail: str, wait: int) -> None:
        super().__init__(detail)
        self.wait = wait


class UpstreamCircuitOpen(Postponed):
    """Not asked: the upstream has failed several times in a row."""


class Overloaded(Postponed):
    """Not asked: too much waits already."""
