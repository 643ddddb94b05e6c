"""Problems: every response that is not a success, as RFC 9457 `application/problem+json`.

Rules:
- This is the only module that maps errors to status codes.
- `title` names the type of problem, `detail` says what happened in this request, and `hint` what to do about it.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import msgspec
from litestar.types import Send
from msgspec import UNSET, Struct, UnsetType

from gateway import errors
from gateway.model import about

Headers = Sequence[tuple[bytes, bytes]]
MEDIA_TYPE = "application/problem+json"
NO_CREDENTIAL = "no credential"  # the `reason` for a request without a credential


class ProblemType(NamedTuple):
    """A type of problem: what its body says, and the `meaning` that its page at `/problems/{name}` adds.

    `detail` is for errors without a text of their own.
    """

    status: int
    name: str
    title: str
    detail: str
    hint: str
    meaning: str


INVALID = ProblemType(
    400,
    "invalid-parameter",
    "Invalid parameter",
    "One or more parameters are invalid.",
    "Correct the request as `detail` and `errors` say.",
    "A parameter is unknown, repeated, or has an invalid value, such as a date that does not exist or a cursor of "
    "another list. Parsing is strict: a misspelt parameter is an error, not a different query. The list `errors` names "
    "every invalid parameter and its fault.",
)
NOT_FOUND = ProblemType(
    404,
    "not-found",
    "Not found",
    "No resource has this path.",
    "Check the path. `/openapi.json` lists all paths.",
    "The gateway does not have this path, or the call or recording that it names does not exist.",
)
UNAUTHENTICATED = ProblemType(
    401,
    "unauthenticated",
    "Authentication required",
    "The request has no valid credential.",
    "Send an access key in `X-API-Key` or `Authorization: Bearer`.",
    "The request has no credential, or its credential is unknown, expired or malformed. The operator of the gateway "
    "issues access keys.",
)
FORBIDDEN = ProblemType(
    403,
    "forbidden",
    "Forbidden",
    "This consumer does not have access.",
    "Ask the operator of the gateway for access.",
    "The credential is valid, but it does not give access to this client or to this kind of data. The response is the "
    "same whether or not the client exists.",
)
RATE_LIMITED = ProblemType(
    429,
    "rate-limited",
    "Too many requests",
    "This consumer has reached its rate limit.",
    "Wait for the seconds in `Retry-After`, then try again.",
    "This consumer has sent more requests than its rate limit allows, or it holds its share of a common "
    "resource: requests in progress, exports, recordings, unread responses. The headers `RateLimit-Policy` and "
    "`RateLimit` show the rate limit and the remaining requests.",
)
ISSUER_UNREACHABLE = ProblemType(
    503,
    "issuer-unreachable",
    "Token issuer unreachable",
    "The gateway cannot verify the token at present.",
    "Wait for the seconds in `Retry-After`, then try again, or use an access key.",
    "The gateway cannot fetch the keys of the token issuer, and has no recent copy of them. The token may be valid.",
)
NOT_ACCEPTABLE = ProblemType(
    406,
    "not-acceptable",
    "Not acceptable",
    "The header `Accept` allows no available media type.",
    "Accept an available media type, or leave the header `Accept` out.",
    "The header `Accept` allows no media type in which this resource is available. Lists of calls, missed callers and "
    "summaries are available as `application/json`, `application/x-ndjson` and `text/csv`, the change feed as "
    "`application/json`, `application/x-ndjson` and `text/event-stream`, and other resources about calls only as "
    "`application/json`.",
)
NOT_ALLOWED = ProblemType(
    405,
    "method-not-allowed",
    "Method not allowed",
    "The path does not support this method.",
    "Use a method that the header `Allow` lists.",
    "The path exists, but not with this method. The gateway is read-only.",
)
INTERNAL = ProblemType(
    500,
    "internal-error",
    "Internal server error",
    "An unexpected error occurred in the gateway.",
    "Report the `requestId` to the operator of the gateway.",
    "This is a bug in the gateway. The log has a stack trace with the same `requestId`.",
)
REJECTED = ProblemType(
    422,
    "upstream-rejected",
    "Request rejected by the Callbutton server",
    "The Callbutton server rejected the request.",
    "Check the dates and the client code.",
    "The request is well formed, but the Callbutton server rejects its dates or its client code. `detail` is the "
    "server's message. The same request will fail again.",
)
UNAUTHORIZED = ProblemType(
    502,
    "upstream-unauthorized",
    "Gateway not authorized by the Callbutton server",
    "The Callbutton server does not allow the gateway's IP address.",
    "Ask the operator of the gateway to have its IP address allowed.",
    "The Callbutton server authenticates by IP address, and does not allow the address of the gateway. The credential "
    "of the request is not the cause. The operator finds the address in the log, and with the command "
    "`callbutton-gateway check`.",
)
FAILED = ProblemType(
    502,
    "upstream-error",
    "Callbutton server error",
    "The Callbutton server reported an error.",
    "Try again later.",
    "The Callbutton server reported an internal error. The gateway has already retried with shorter windows.",
)
MALFORMED = ProblemType(
    502,
    "upstream-malformed",
    "Malformed reply from the Callbutton server",
    "The gateway cannot parse the reply of the Callbutton server.",
    "Try again later.",
    "The reply does not follow the protocol, or is incomplete. The gateway discards such a reply as a whole, and "
    "never returns a part of it.",
)
UNREACHABLE = ProblemType(
    502,
    "upstream-unreachable",
    "Callbutton server unreachable",
    "The gateway cannot connect to the Callbutton server.",
    "Try again later.",
    "The gateway cannot connect to the Callbutton server: the server or the network is down.",
)
TIMEOUT = ProblemType(
    504,
    "upstream-timeout",
    "Callbutton server timeout",
    "The Callbutton server did not reply in time.",
    "Try again in a moment, or choose a shorter window.",
    "The Callbutton server did not reply in time. The gateway continues to wait for the reply and caches it, so the "
    "same request often succeeds a moment later.",
)
OVERLOADED = ProblemType(
    503,
    "overloaded",
    "Overloaded, try again later",
    "Too many requests are in progress.",
    "Wait for the seconds in `Retry-After`, then try again.",
    "The gateway, or the Callbutton server behind it, has reached its limit of concurrent requests. This request was "
    "not forwarded, so it is safe to repeat.",
)
CIRCUIT_OPEN = ProblemType(
    503,
    "upstream-circuit-open",
    "Callbutton server unavailable",
    "The Callbutton server has failed several times in a row.",
    "Wait for the seconds in `Retry-After`, then try again.",
    "The Callbutton server has failed several times in a row, so the circuit breaker is open: the gateway sends it "
    "no requests for some seconds, then a single one as a probe.",
)
PROBLEM_TYPES: dict[type[BaseException], ProblemType] = {
    errors.InvalidParameters: INVALID,
    errors.Unauthenticated: UNAUTHENTICATED,
    errors.Forbidden: FORBIDDEN,
    errors.NotFound: NOT_FOUND,
    errors.NotAcceptable: NOT_ACCEPTABLE,
    errors.RateLimited: RATE_LIMITED,
    errors.IssuerUnreachable: ISSUER_UNREACHABLE,
    errors.UpstreamRejected: REJECTED,
    errors.UpstreamUnauthorized: UNAUTHORIZED,
    errors.UpstreamFailed: FAILED,
    errors.UpstreamMalformed: MALFORMED,
    errors.UpstreamUnreachable: UNREACHABLE,
    errors.UpstreamTimeout: TIMEOUT,
    errors.UpstreamCircuitOpen: CIRCUIT_OPEN,
    errors.Overloaded: OVERLOADED,
}
BY_NAME = {kind.name: kind for kind in (*PROBLEM_TYPES.values(), NOT_FOUND, NOT_ALLOWED, INTERNAL)}


# By the class or the reason of an error, where the hint of its type does not help.
HINTS: dict[object, str] = {
    errors.NotFound: "Check the client code and the id, and send the window of the call as `start` and `end`.",
    "link": "Get a new link: the `recordingUrl` of the call (scope `recordings`), or the feed with `link=true`.",
    "expired link": "Get a new link: the `recordingUrl` of the call, or the feed with `link=true`.",
    "exports": "Wait until an export of this consumer has ended.",
    "requests": "Wait until earlier requests of this consumer are answered; send fewer at a time.",
    "recordings": "Wait until a recording of this consumer has been played; stop players that are not listened to.",
    "unread": "Read the responses to earlier requests first.",
}


class ParameterError(Struct, frozen=True, kw_only=True):
    """An invalid parameter."""

    parameter: Annotated[str, about("The name of the parameter.")]
    detail: Annotated[str, about("Why it is invalid.")]


class Problem(Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """The reason why a request failed (RFC 9457)."""

    type: Annotated[str, about("The type of problem: the path of a page that explains it.", form="uri-reference")]
    title: Annotated[str, about("The type of problem in words.")]
    status: Annotated[int, about("The HTTP status code.", ge=400, le=599)]
    detail: Annotated[str, about("The cause of the problem in this request.")]
    hint: Annotated[str, about("How to solve the problem.")]
    instance: Annotated[str, about("The path of the request.")]
    request_id: Annotated[str, about("The id of the request, which the log has too.")]
    errors: Annotated[
        list[ParameterError] | UnsetType, about("Every invalid parameter, if the type is `invalid-parameter`.")
    ] = UNSET


def type_of(error: BaseException) -> ProblemType:
    """The type of problem for an error."""
    kind = PROBLEM_TYPES.get(type(error), INTERNAL)
    hint = HINTS.get(type(error)) or HINTS.get(getattr(error, "reason", None))
    return kind._replace(hint=hint) if hint else kind


def headers_of(error: BaseException) -> dict[str, str]:
    """The response headers for an error."""
    match error:
        case errors.Unauthenticated():
            wrong = "" if error.reason == NO_CREDENTIAL else ', error="invalid_token"'
            return {"WWW-Authenticate": f'Bearer realm="callbutton-gateway"{wrong}'}
        case errors.RateLimited() | errors.IssuerUnreachable():
            return {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
        case errors.NotSent():
            return {"Retry-After": str(error.retry_after)}
        case _:
            return {}


def bare_problem(status: int, detail: str) -> bytes:
    """The problem for a request that the server refuses before the application: malformed (400) or excess (503)."""
    return render_problem(INVALID if status == INVALID.status else OVERLOADED, "", secrets.token_hex(8), detail)


async def send_problem(
    send: Send, kind: ProblemType, instance: str, request_id: str, detail: str = "", headers: Headers = ()
) -> None:
    """Send a problem as the response."""
    body = render_problem(kind, instance, request_id, detail)
    always = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": kind.status, "headers": [*always, *headers]})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def send_error(send: Send, error: BaseException, instance: str, request_id: str) -> None:
    """Send the problem for an error as the response."""
    headers = [(name.lower().encode(), value.encode()) for name, value in headers_of(error).items()]
    await send_problem(send, type_of(error), instance, request_id, str(error), headers)


def render_problem(
    kind: ProblemType, instance: str, request_id: str, detail: str = "", faults: tuple[errors.ParameterFault, ...] = ()
) -> bytes:
    """Render the body of a problem. `detail` is a clause without a full stop; by default the detail of its type."""
    if len(faults) == 1:
        detail = f"`{faults[0].parameter}` {faults[0].detail}"
    return msgspec.json.encode(
        Problem(
            type=f"/problems/{kind.name}",
            title=kind.title,
            status=kind.status,
            detail=f"{detail[:1].upper()}{detail[1:]}." if detail else kind.detail,
            hint=kind.hint,
            instance=instance,
            request_id=request_id,
            errors=[ParameterError(parameter=fault.parameter, detail=fault.detail) for fault in faults] or UNSET,
        )
    )
