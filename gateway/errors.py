"""The errors that the gateway raises deliberately, as one tree. `api/problems.py` maps them to HTTP status codes.

    GatewayError
    ├── InvalidParameters          a parameter is not valid
    ├── Refusal                    the consumer is not admitted
    │   ├── Unauthenticated        no valid credential
    │   ├── IssuerUnreachable      a token cannot be verified at present
    │   ├── Forbidden              the consumer has no access, whether or not the resource exists
    │   └── RateLimited            the consumer has reached a limit
    ├── NotFound                   the resource does not exist
    ├── NotAcceptable              the resource has no representation that the consumer accepts
    └── UpstreamError              the upstream gave no usable reply
        ├── UpstreamUnauthorized   the upstream does not allow our address
        ├── UpstreamRejected       ERROR about the request: the date range, the client code
        ├── UpstreamFailed         any other ERROR, or an unexpected HTTP status
        ├── UpstreamMalformed      the reply does not follow the protocol, is truncated or too large
        ├── UpstreamUnreachable    no connection
        ├── UpstreamTimeout        a deadline passed
        └── NotSent                the request was not sent to the upstream
            ├── UpstreamCircuitOpen    the circuit breaker is open
            └── Overloaded             the queue is full, or the time or the POSTs of a flight do not suffice

Rules:
- Consumers may see the text of an error. It contains no text of the upstream, except `UpstreamRejected.message`.
- `reason` is a word for logs and metrics; `retry_after` is in seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple, Self


class GatewayError(Exception):
    """The root of the tree."""


class ParameterFault(NamedTuple):
    """A parameter that is not valid, and why."""

    parameter: str
    detail: str


class InvalidParameters(GatewayError):  # noqa: N818 - the name of a problem, not of a class of bugs
    """One or several parameters are not valid."""

    def __init__(self, faults: Sequence[ParameterFault]) -> None:
        super().__init__("; ".join(f"{fault.parameter}: {fault.detail}" for fault in faults))
        self.faults = tuple(faults)


class Refusal(GatewayError):  # noqa: N818
    """The consumer is not admitted. `retry_after` is 0 if a later request would be refused as well."""

    def __init__(self, detail: str, reason: str, retry_after: float = 0) -> None:
        super().__init__(detail)
        self.reason = reason
        self.retry_after = retry_after


class Unauthenticated(Refusal):
    """The request has no valid credential."""


class IssuerUnreachable(Refusal):
    """A token cannot be verified at present, because the issuer's keys are not available."""


class Forbidden(Refusal):
    """The consumer has no access, whether or not the resource exists."""


class RateLimited(Refusal):
    """The consumer has reached its rate, or its share of what consumers share."""


class NotFound(GatewayError):  # noqa: N818
    """The resource does not exist."""


class NotAcceptable(GatewayError):  # noqa: N818
    """The resource has no representation that the consumer accepts."""


class UpstreamError(GatewayError):
    """The upstream gave no usable reply.

    `disconnected`: no connection was made, so every POST would fail. `client_code`: the code that the text names.
    """

    disconnected = False
    client_code: str | None = None

    def naming(self, client_code: str) -> Self:
        """A copy whose text names a client code, for a request with several."""
        error = type(self).__new__(type(self))
        error.args = self.args
        error.__dict__ |= {**self.__dict__, "client_code": client_code}
        return error

    def __str__(self) -> str:
        """The text, with the client code."""
        text = super().__str__()
        return f"client {self.client_code}: {text}" if self.client_code else text


class UpstreamUnauthorized(UpstreamError):  # noqa: N818
    """The upstream does not allow our address. It reports `username` and `address`."""

    def __init__(self, username: str | None, address: str | None) -> None:
        super().__init__("the Callbutton server does not allow the gateway's address")
        self.username = username
        self.address = address


class UpstreamRejected(UpstreamError):  # noqa: N818
    """The upstream replied ERROR about the request. `message` is its text, printable, at most 200 characters."""

    def __init__(self, message: str) -> None:
        super().__init__(f"the Callbutton server refused the request: {message}")
        self.message = message


class UpstreamFailed(UpstreamError):  # noqa: N818
    """Any other ERROR in a reply (`reported`), or an unexpected HTTP status. `retry_after` is 0 if not given."""

    def __init__(self, detail: str, *, reported: bool = False, status: int = 0, retry_after: float = 0) -> None:
        super().__init__(detail)
        self.reported = reported
        self.status = status
        self.retry_after = retry_after


class UpstreamMalformed(UpstreamError):  # noqa: N818
    """The reply does not follow the protocol. The text says where.

    `start_time_form` is the form of its times if that is what does not follow it, such as `00/00/0000 00:00 PM`.
    `truncated`: the connection was closed in the middle of it. `too_large`: it exceeds GATEWAY_UPSTREAM_MAX_BYTES.
    """

    def __init__(
        self, detail: str, *, start_time_form: str = "", truncated: bool = False, too_large: bool = False
    ) -> None:
        super().__init__(detail)
        self.start_time_form = start_time_form
        self.truncated = truncated
        self.too_large = too_large


class Obstacle(StrEnum):
    """The cause of a failed connection. CLOSED: the server closed it before a reply. ROUTE: any other cause."""

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
        self.disconnected = obstacle is not Obstacle.CLOSED


class UpstreamTimeout(UpstreamError):  # noqa: N818
    """A deadline passed: before the connection was made (`disconnected`), or after the reply began (`answering`)."""

    def __init__(self, detail: str, *, answering: bool, disconnected: bool = False) -> None:
        super().__init__(detail)
        self.answering = answering
        self.disconnected = disconnected


class NotSent(UpstreamError):  # noqa: N818
    """The request was not sent to the upstream."""

    def __init__(self, detail: str, retry_after: int) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class UpstreamCircuitOpen(NotSent):
    """Not sent: the circuit breaker is open, because the upstream failed several times in a row."""


class Overloaded(NotSent):
    """Not sent: the queue is full, the turn would come too late, or the flight has no POSTs left."""


def forget_frames(error: BaseException | None) -> None:
    """Drop the tracebacks of an error and its causes: their frames hold the whole reply."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
