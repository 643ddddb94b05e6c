"""Authentication, and the rate limit of each consumer.

Rules:
- The paths of `OPEN`, spelt exactly so, are open. Every other path needs a credential, whatever the router makes of it.
- A credential comes once, in `X-API-Key` or as `Authorization: Bearer`. In a URL it would be logged by every proxy on
  the way: there it is an unknown parameter.
- A link to a recording is a credential of another kind, which its handler verifies.
- The consumer is set in the request's context; without it no handler of calls answers.
- Each refusal is counted by its reason and logged in one line, with the consumer and the route, never the credential.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Mapping

from litestar.types import HTTPScope, Receive, Send

from gateway.access import ANONYMOUS, Consumer
from gateway.api import problems
from gateway.api.middleware.request_context import HTTPApp, RequestContext, context_of
from gateway.auth.authenticator import Authenticator
from gateway.errors import RateLimited, Refusal, Unauthenticated
from gateway.metrics import Metrics
from gateway.rates import RateLimiter, rate_headers

AUDIT = logging.getLogger("gateway.audit")
OPEN = re.compile(
    r"/(healthz|readyz|metrics|openapi\.json|openapi\.yaml|docs(/[A-Za-z0-9._-]+)?|problems/[a-z-]+"
    r"|recordings/[A-Za-z0-9_-]+)",
    re.ASCII,
)
RouteOf = Callable[[str], str]


class Authentication:
    """An ASGI layer; without `authenticator` every request is let through."""

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
        """Let a request through with its consumer, or refuse it."""
        if OPEN.fullmatch(scope["path"]):
            return self._app(scope, receive, send)
        context, authenticator = context_of(scope), self._authenticator
        try:
            if authenticator is None:
                self._admit(context, ANONYMOUS)
            else:
                credential, bearer = parse_credential(context.headers)
                consumer = authenticator.authenticate_key(credential, bearer=bearer)
                if consumer is None:
                    return self._verify_token(scope, receive, send, authenticator, credential)
                self._admit(context, consumer)
        except Refusal as error:
            return self._refuse(scope, send, error)
        return self._app(scope, receive, send)

    def _admit(self, context: RequestContext, consumer: Consumer) -> None:
        """Set the consumer, and count the request. Raises RateLimited."""
        context.consumer = consumer
        if consumer.rate is not None:
            now = self._clock()
            bucket = self._rates.bucket(consumer, now)
            taken = bucket.take(now)
            context.response_headers += rate_headers(bucket)
            if not taken:
                raise RateLimited("this consumer has used up its rate", "rate", bucket.seconds_until_token())

    async def _verify_token(
        self, scope: HTTPScope, receive: Receive, send: Send, authenticator: Authenticator, token: str
    ) -> None:
        try:
            self._admit(context_of(scope), await authenticator.authenticate_token(token))
        except Refusal as error:
            await self._refuse(scope, send, error)
        else:
            await self._app(scope, receive, send)

    async def _refuse(self, scope: HTTPScope, send: Send, error: Refusal) -> None:
        scope["path_template"] = self._route_of(scope["path"])
        audit(self._metrics, scope, error)
        headers = [(name.lower().encode(), value.encode()) for name, value in problems.headers_of(error).items()]
        request_id = context_of(scope).request_id
        await problems.send_problem(send, problems.type_of(error), scope["path"], request_id, str(error), headers)


def parse_credential(headers: Mapping[bytes, bytes]) -> tuple[str, bool]:
    """The credential of a request, and whether it is a bearer token. Raises Unauthenticated."""
    key, authorization = headers.get(b"x-api-key"), headers.get(b"authorization")
    if key is not None and authorization is not None:
        raise Unauthenticated("more than one credential came", "several credentials")
    if key is not None:
        credential, bearer = key.decode("latin-1").strip(), False
    elif authorization is not None:
        scheme, _, rest = authorization.decode("latin-1").strip().partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthenticated("Authorization is not of the kind Bearer", "other scheme")
        credential, bearer = rest.strip(), True
    else:
        raise Unauthenticated("a credential is needed", problems.NO_CREDENTIAL)
    if "," in credential:  # the header was sent twice: neither keys nor tokens have a comma
        raise Unauthenticated("more than one credential came", "several credentials")
    return credential, bearer


def audit(metrics: Metrics, scope: HTTPScope, error: Refusal) -> None:
    """Count a refusal, and log it."""
    metrics.refused.labels(error.reason).inc()
    context = context_of(scope)
    fields = {
        "requestId": context.request_id,
        "consumer": context.consumer and context.consumer.name,
        "route": str(scope.get("path_template") or "unmatched"),
        "reason": error.reason,
    }
    AUDIT.warning("refused", extra={"fields": fields})
