"""Problems: every answer that is not a success, as RFC 9457 `application/problem+json`.

Rule: this is the only place that knows the status code of an error.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from typing import Annotated, NamedTuple

import msgspec
from litestar.types import Send
from msgspec import UNSET, Meta, Struct, UnsetType

from gateway import errors

Headers = Sequence[tuple[bytes, bytes]]
MEDIA_TYPE = "application/problem+json"
NO_CREDENTIAL = "no credential"  # the reason when none came


class ProblemType(NamedTuple):
    """A kind of problem. Its body has title and advice, its page the meaning too."""

    status: int
    name: str
    title: str
    advice: str
    meaning: str = ""


INVALID = ProblemType(
    400,
    "invalid-parameter",
    "A parameter cannot be read",
    "Correct the parameters named in errors.",
    "A parameter is unknown, given twice, or has a value that cannot be read: a date, a time zone, a client code, a "
    "cursor of another list. Parameters are read strictly, so that a slip of the pen is not an answer to another "
    "question. The list `errors` names every one of them and says what is wrong with it.",
)
NOT_FOUND = ProblemType(
    404,
    "not-found",
    "There is nothing here",
    "The paths are listed in /openapi.json.",
    "The gateway has no such path, or what the path names does not exist.",
)
UNAUTHENTICATED = ProblemType(
    401,
    "unauthenticated",
    "Who asks is not known",
    "Send an access key in X-API-Key or Authorization: Bearer.",
    "The request came without credentials, or with some that are not known, have expired, or cannot be read. Whoever "
    "runs the gateway hands out access keys.",
)
FORBIDDEN = ProblemType(
    403,
    "forbidden",
    "Not for this consumer",
    "Ask whoever runs this gateway for the right to see it.",
    "The credentials are good, but they do not allow this client, or this kind of data. The answer is the same whether "
    "or not the client exists.",
)
RATE_LIMITED = ProblemType(
    429,
    "rate-limited",
    "Too many requests",
    "Ask again after the seconds of Retry-After.",
    "This consumer has asked more often than it may. The headers `RateLimit` and `RateLimit-Policy` say how often that "
    "is, and what is left of it.",
)
ISSUER_UNREACHABLE = ProblemType(
    503,
    "issuer-unreachable",
    "Tokens cannot be judged now",
    "Ask again after the seconds of Retry-After, or use an access key.",
    "The gateway has no keys of the issuer of bearer tokens, or has had them for too long, and cannot fetch them now. "
    "The token may be good.",
)
NOT_ACCEPTABLE = ProblemType(
    406,
    "not-acceptable",
    "There is no such form of this",
    "Ask for a media type that there is, or send no Accept.",
    "The header `Accept` allows no form in which this can be had. Lists of calls come as `application/json`, "
    "`application/x-ndjson` and `text/csv`, all else about calls as `application/json`.",
)
NOT_ALLOWED = ProblemType(
    405,
    "method-not-allowed",
    "This method is not allowed here",
    "The header Allow lists those that are.",
    "The path exists, but not with this method. The gateway only reads: nothing can be changed through it.",
)
INTERNAL = ProblemType(
    500,
    "internal-error",
    "The gateway failed",
    "Report the requestId to whoever runs this gateway.",
    "A bug of the gateway: something happened that nobody foresaw. The log has the place in the code.",
)
REJECTED = ProblemType(
    422,
    "upstream-rejected",
    "The Callbutton server refused the request",
    "Check dates and client code.",
    "The request was well formed, but the Callbutton server refuses its dates or its client code. Its own words are in "
    "`detail`. Asking again brings the same answer.",
)
UNAUTHORIZED = ProblemType(
    502,
    "upstream-unauthorized",
    "The Callbutton server does not know the gateway",
    "Have its address allowed there.",
    "The Callbutton server knows its partners by their IP addresses, and the gateway's is not among them. It is not "
    "about the credentials of your request. Whoever runs the gateway finds the address that the server saw in the log, "
    "and with the command `callbutton-gateway check`.",
)
FAILED = ProblemType(
    502,
    "upstream-error",
    "The Callbutton server reports an error",
    "Try again later.",
    "The Callbutton server was reached and says that it failed. The gateway has already tried smaller windows.",
)
MALFORMED = ProblemType(
    502,
    "upstream-malformed",
    "The Callbutton server's answer is unreadable",
    "Try again later.",
    "The answer was not what the protocol says, or it broke off. The gateway throws such an answer away whole, and "
    "never hands out the half that it could read.",
)
UNREACHABLE = ProblemType(
    502,
    "upstream-unreachable",
    "The Callbutton server cannot be reached",
    "Try again later.",
    "No connection to the Callbutton server could be made. It is down, or the network between is.",
)
TIMEOUT = ProblemType(
    504,
    "upstream-timeout",
    "The Callbutton server is too slow",
    "Ask again in a moment, or for less.",
    "The answer did not come in time. What is under way goes on, and is kept when it lands: the same request a moment "
    "later often finds it there.",
)
OVERLOADED = ProblemType(
    503,
    "overloaded",
    "Too much is asked at present",
    "Ask again after the seconds of Retry-After.",
    "More is asked than the gateway, or the Callbutton server behind it, can bear at a time. Nothing was sent: asking "
    "again costs nobody anything.",
)
CIRCUIT_OPEN = ProblemType(
    503,
    "upstream-circuit-open",
    "The Callbutton server is given time to recover",
    "Ask again after the seconds of Retry-After.",
    "The Callbutton server has failed several times in a row, so it is left alone for some seconds, then tried with a "
    "single request. Nothing was sent for yours.",
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


class Fault(Struct, frozen=True, kw_only=True):
    """A parameter at fault."""

    parameter: Annotated[str, Meta(description="Its name.")]
    detail: Annotated[str, Meta(description="The fault.")]


class Problem(Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Why the request failed (RFC 9457)."""

    type: Annotated[str, Meta(description="The kind of problem, and the path of a page that explains it.")]
    title: Annotated[str, Meta(description="The kind in words.")]
    status: Annotated[int, Meta(description="The HTTP status code.")]
    detail: Annotated[str, Meta(description="The problem with this request, and how to solve it.")]
    instance: Annotated[str, Meta(description="The path of the request.")]
    request_id: Annotated[str, Meta(description="The id of the request, also in the log.")]
    errors: Annotated[list[Fault] | UnsetType, Meta(description="Every parameter at fault.")] = UNSET


def type_of(error: BaseException) -> ProblemType:
    """The kind of problem that an error is."""
    return PROBLEM_TYPES.get(type(error), INTERNAL)


def headers_of(error: BaseException) -> dict[str, str]:
    """The headers that go with an error."""
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
    """The body of a problem for a request that the server refuses: unreadable (400), or one too many (503)."""
    return render_problem(INVALID if status == INVALID.status else OVERLOADED, "", secrets.token_hex(8), detail)


async def send_problem(
    send: Send, kind: ProblemType, instance: str, request_id: str, detail: str = "", headers: Headers = ()
) -> None:
    """Answer with a problem."""
    body = render_problem(kind, instance, request_id, detail)
    always = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": kind.status, "headers": [*always, *headers]})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def render_problem(
    kind: ProblemType, instance: str, request_id: str, detail: str = "", faults: tuple[errors.ParameterFault, ...] = ()
) -> bytes:
    """The body of a problem."""
    sentence = f"{detail[:1].upper()}{detail[1:]}. {kind.advice}" if detail else kind.advice
    return msgspec.json.encode(
        Problem(
            type=f"/problems/{kind.name}",
            title=kind.title,
            status=kind.status,
            detail=sentence,
            instance=instance,
            request_id=request_id,
            errors=[Fault(parameter=fault.parameter, detail=fault.detail) for fault in faults] or UNSET,
        )
    )
