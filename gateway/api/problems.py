"""Problems: every answer that is not a success, as RFC 9457 `application/problem+json`.

Rule: this is the only place that knows the status code of an error.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec
from msgspec import Struct

from gateway.errors import (
    Forbidden,
    GatewayError,
    InvalidParameters,
    ParameterFault,
    RateLimited,
    Unauthenticated,
    UpstreamFailed,
    UpstreamMalformed,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnauthorized,
    UpstreamUnreachable,
)

MEDIA_TYPE = "application/problem+json"


class Kind(NamedTuple):
    """A kind of problem, and what to do about it."""

    status: int
    name: str
    title: str
    advice: str


INVALID = Kind(400, "invalid-parameter", "A parameter cannot be read", "Correct the parameters named in errors.")
UNAUTHENTICATED = Kind(
    401, "unauthenticated", "Who asks is not known", "Send an access key in X-API-Key or Authorization: Bearer."
)
FORBIDDEN = Kind(403, "forbidden", "Not for this consumer", "Ask whoever runs this gateway for the right to see it.")
RATE_LIMITED = Kind(429, "rate-limited", "Too many requests", "Ask again after the seconds of Retry-After.")
NOT_FOUND = Kind(404, "not-found", "There is nothing here", "The paths are listed in /openapi.json.")
NOT_ALLOWED = Kind(
    405, "method-not-allowed", "This method is not allowed here", "The header Allow lists those that are."
)
INTERNAL = Kind(500, "internal-error", "The gateway failed", "Report the requestId to whoever runs this gateway.")
REJECTED = Kind(422, "upstream-rejected", "The Callbutton server refused the request", "Check dates and client code.")
UNAUTHORIZED = Kind(
    502, "upstream-unauthorized", "The Callbutton server does not know the gateway", "Have its address allowed there."
)
FAILED = Kind(502, "upstream-error", "The Callbutton server reports an error", "Try again later.")
MALFORMED = Kind(502, "upstream-malformed", "The Callbutton server's answer is unreadable", "Try again later.")
UNREACHABLE = Kind(502, "upstream-unreachable", "The Callbutton server cannot be reached", "Try again later.")
TIMEOUT = Kind(504, "upstream-timeout", "The Callbutton server is too slow", "Ask again in a moment, or for less.")
KINDS: dict[type[GatewayError], Kind] = {
    InvalidParameters: INVALID,
    Unauthenticated: UNAUTHENTICATED,
    Forbidden: FORBIDDEN,
    RateLimited: RATE_LIMITED,
    UpstreamRejected: REJECTED,
    UpstreamUnauthorized: UNAUTHORIZED,
    UpstreamFailed: FAILED,
    UpstreamMalformed: MALFORMED,
    UpstreamUnreachable: UNREACHABLE,
    UpstreamTimeout: TIMEOUT,
}


class Fault(Struct, frozen=True, kw_only=True):
    """A parameter at fault."""

    parameter: str
    detail: str


class Problem(Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Why there is no answer."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str
    errors: list[Fault] | None = None


def kind_of(error: BaseException) -> Kind:
    """Find the kind of problem that an error is."""
    return KINDS.get(type(error), INTERNAL) if isinstance(error, GatewayError) else INTERNAL


def render_problem(
    kind: Kind, instance: str, request_id: str, detail: str = "", faults: tuple[ParameterFault, ...] = ()
) -> bytes:
    """Write the body of a problem."""
    sentence = f"{detail[:1].upper()}{detail[1:]}. {kind.advice}" if detail else kind.advice
    return msgspec.json.encode(
        Problem(
            type=f"/problems/{kind.name}",
            title=kind.title,
            status=kind.status,
            detail=sentence,
            instance=instance,
            request_id=request_id,
            errors=[Fault(parameter=fault.parameter, detail=fault.detail) for fault in faults] or None,
        )
    )
