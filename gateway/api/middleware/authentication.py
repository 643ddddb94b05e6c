"""Authentication, and the rate limit of each consumer.

Rules:
- Only paths that match `OPEN_PATHS` exactly are open. Every other path needs a credential. Without one, a path that has
  no route is not found, whatever was sent.
- A request has one credential, in `X-API-Key`, as `Authorization: Bearer`, or in both. Empty values and
  other schemes do not count, because proxies and generated clients add them. A credential in the URL, which proxies
  log, is an unknown parameter. Only signed links, which expire soon, are accepted there.
- A signed link is its own credential, which the handler verifies: a path to a recording, or a path of the change feed
  with the parameter `access`. These are therefore open here.
- This layer sets the consumer in the request context. Handlers of calls fail without it.
- Every refusal is counted by reason and logged in one line, with consumer and route but without the credential.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial

from litestar.types import HTTPScope, Receive, Send

from gateway.access import ANONYMOUS, Consumer, Rate
from gateway.api import problems
from gateway.api.middleware.request_context import HTTPApp, RequestContext, context_of
from gateway.api.negotiation import split_list
from gateway.auth.authenticator import Authenticator
from gateway.errors import RateLimited, Refusal, Unauthenticated
from gateway.metrics import Metrics
from gateway.rates import RateLimiter, rate_headers

AUDIT = logging.getLogger("gateway.audit")
OPEN_PATHS = re.compile(
    r"/(|healthz|readyz|metrics|openapi\.json|openapi\.yaml|(console|docs)(/[^/]+)?|problems/[^/]+|recordings/[^/]+)"
)
LINKED_PATHS = re.compile(r"(/clients/[^/]+)?/changes")
ACCESS = re.compile(rb"(^|&)access=[^&]")
SEVERAL = "the request has more than one credential"
UNMATCHED = "unmatched"  # in place of the route of a path that has none
RouteOf = Callable[[str], str]


class Authentication:
    """The ASGI layer. Without `authenticator`, it accepts every request as `ANONYMOUS`."""

    def __init__(
        self,
        app: HTTPApp,
        authenticator: Authenticator | None,
        rates: RateLimiter,
        clock: Callable[[], float],
        metrics: Metrics,
        route_of: RouteOf,
    ) -> None:
        self._app = app
        self._authenticator = authenticator
        self._rates = rates
        self._clock = clock
        self._metrics = metrics
        self._route_of = route_of

    def __call__(self, scope: HTTPScope, receive: Receive, send: Send) -> Awaitable[None]:
        """Authenticate a request, or refuse it."""
        if OPEN_PATHS.fullmatch(scope["path"]):
            return self._app(scope, receive, send)
        context, authenticator = context_of(scope), self._authenticator
        linked = LINKED_PATHS.fullmatch(scope["path"]) and ACCESS.search(scope["query_string"])
        try:
            if authenticator is None:
                if not linked:
                    self._admit(context, ANONYMOUS, lambda: ANONYMOUS)
            elif linked:
                if credentials_of(context.headers):
                    raise Unauthenticated(SEVERAL, "several credentials")
            else:
                credential, bearer = parse_credential(context.headers)
                consumer = authenticator.authenticate_key(credential, bearer=bearer)
                if consumer is None:
                    return self._verify_token(scope, receive, send, authenticator, credential)
                self._admit(context, consumer, partial(_consumer_of_key, authenticator, credential))
        except Refusal as error:
            return self._refuse(scope, send, error)
        return self._app(scope, receive, send)

    def _admit(self, context: RequestContext, consumer: Consumer, current: Callable[[], Consumer | None]) -> None:
        context.current = current
        admit(context, consumer, self._rates, self._clock())

    async def _verify_token(
        self, scope: HTTPScope, receive: Receive, send: Send, authenticator: Authenticator, token: str
    ) -> None:
        try:
            context = context_of(scope)
            verified = await authenticator.authenticate_token(token, context.source)
            context.rights_end = verified.expiry
            self._admit(
                context, verified.consumer, lambda: verified.consumer if self._clock() < verified.expiry else None
            )
        except Refusal as error:
            await self._refuse(scope, send, error)
        else:
            await self._app(scope, receive, send)

    async def _refuse(self, scope: HTTPScope, send: Send, error: Refusal) -> None:
        scope["path_template"] = route = self._route_of(scope["path"])
        if route == UNMATCHED and isinstance(error, Unauthenticated):
            await problems.send_problem(send, problems.NOT_FOUND, scope["path"], context_of(scope).request_id)
            return
        audit(self._metrics, scope, error)
        await problems.send_error(send, error, scope["path"], context_of(scope).request_id)


def admit(context: RequestContext, consumer: Consumer, rates: RateLimiter, now: float) -> None:
    """Set the consumer of a request, and take a token from its bucket. Raises RateLimited."""
    context.consumer = consumer
    if consumer.rate is not None:
        take_token(context, rates, consumer.rate, now)


def take_token(context: RequestContext, rates: RateLimiter, rate: Rate, now: float) -> None:
    """Take a token from the bucket of a request's consumer, and add the rate limit headers. Raises RateLimited."""
    bucket = rates.bucket(context.party, rate, now)
    taken = bucket.take(now)
    context.response_headers += rate_headers(bucket)
    if not taken:
        raise RateLimited("this consumer has reached its rate limit", "rate", bucket.seconds_until_token())


def parse_credential(headers: Mapping[bytes, bytes]) -> tuple[str, bool]:
    """The credential of a request, and whether it was sent as a bearer token. Raises Unauthenticated."""
    found = credentials_of(headers)
    if not found:
        raise Unauthenticated("the request has no credential", problems.NO_CREDENTIAL)
    if len(found) > 1:
        raise Unauthenticated(SEVERAL, "several credentials")
    return found.popitem()


def credentials_of(headers: Mapping[bytes, bytes]) -> dict[str, bool]:
    """The credentials in the headers of a request, and whether each was sent as a bearer token."""
    key, authorization = (headers.get(name, b"").decode("latin-1") for name in (b"x-api-key", b"authorization"))
    found = dict.fromkeys(split_list(key), False)
    for text in split_list(authorization):
        scheme, *token = text.split(maxsplit=1)
        if scheme.lower() == "bearer":
            found |= dict.fromkeys(token, True)
    return found


def _consumer_of_key(authenticator: Authenticator, key: str) -> Consumer | None:
    """The present consumer of an access key; None if the key is no longer valid."""
    with suppress(Unauthenticated):
        return authenticator.authenticate_key(key, bearer=False)
    return None


def audit(metrics: Metrics, scope: HTTPScope, error: Refusal) -> None:
    """Count and log a refusal."""
    metrics.refused.labels(error.reason).inc()
    context = context_of(scope)
    fields = {
        "requestId": context.request_id,
        "consumer": context.consumer and context.consumer.name,
        "route": str(scope.get("path_template") or "unmatched"),
        "reason": error.reason,
    }
    AUDIT.warning("refused", extra={"fields": fields})
