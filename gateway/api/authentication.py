"""Who asks, and how often they may: the layer inside the edge through which every request goes.

Rules:
- Open are the paths of `OPEN`, spelt exactly so, and nothing else: whatever a path means to the router, it needs a
  credential unless it is one of these.
- A credential comes once, in `X-API-Key` or as `Authorization: Bearer`. In a URL it would be logged by everybody on the
  way: there it is an unknown parameter.
- A link to a recording is a credential of its own kind, which its handler reads.
- The consumer goes into the request's state as `consumer`; without it no handler answers.
- Each refusal is counted by its reason and is one line of the log, with the consumer and the route, never the
  credential.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Iterable

from litestar.types import HTTPScope, Receive, Send

from gateway.access import ANYONE, Consumer
from gateway.api import problems
from gateway.api.negotiation import HTTPApp
from gateway.errors import Forbidden, IssuerUnreachable, RateLimited, Unauthenticated
from gateway.metrics import Metrics
from gateway.rates import Bucket, Exports, Rates, left, policy

AUDIT = logging.getLogger("gateway.audit")
OPEN = re.compile(
    r"/(healthz|readyz|metrics|openapi\.json|openapi\.yaml|docs(/[A-Za-z0-9._-]+)?|problems/[a-z-]+"
    r"|recordings/[A-Za-z0-9_-]+)",
    re.ASCII,
)
Refusal = Unauthenticated | Forbidden | RateLimited | IssuerUnreachable
Identify = Callable[..., Awaitable[Consumer]]
RouteOf = Callable[[str], str]


class Authentication:
    """An ASGI application around another; `identify` is None where anyone may ask."""

    def __init__(
        self,
        app: HTTPApp,
        identify: Identify | None,
        rates: Rates,
        exports: Exports,
        clock: Callable[[], float],
        metrics: Metrics,
        route_of: RouteOf,
    ) -> None:
        self._app = app
        self._identify = identify
        self._rates = rates
        self._exports = exports
        self._clock = clock
        self._metrics = metrics
        self._route_of = route_of

    async def __call__(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        """Let a request through with its consumer, or refuse it."""
        if OPEN.fullmatch(scope["path"]):
            await self._app(scope, receive, send)
            return
        bucket = None
        try:
            consumer = await self._consumer(scope)
            scope["state"]["consumer"] = consumer
            if consumer.rate is not None:
                now = self._clock()
                bucket = self._rates.bucket(consumer, now)
                if not bucket.take(now):
                    raise RateLimited("this consumer has used up its rate", bucket.wait())
        except (Unauthenticated, RateLimited, IssuerUnreachable) as error:
            await self._refuse(scope, send, error, bucket)
            return
        if bucket is not None:
            _add_rate(scope, bucket)
        try:
            await self._app(scope, receive, send)
        finally:
            self._exports.end(scope["state"])

    async def _consumer(self, scope: HTTPScope) -> Consumer:
        if self._identify is None:
            return ANYONE
        credential, bearer = read_credential(scope["headers"])
        return await self._identify(credential, bearer=bearer)

    async def _refuse(self, scope: HTTPScope, send: Send, error: Refusal, bucket: Bucket | None) -> None:
        state = scope["state"]
        scope["path_template"] = self._route_of(scope["path"])
        note_refusal(self._metrics, scope, error)
        headers = [(name.lower().encode(), value.encode()) for name, value in problems.headers_of(error).items()]
        if bucket is not None:
            _add_rate(scope, bucket)
        await problems.send_problem(
            send, problems.kind_of(error), scope["path"], state["request_id"], str(error), headers=headers
        )


def read_credential(headers: Iterable[tuple[bytes, bytes]]) -> tuple[str, bool]:
    """Read the credential, and whether it is a bearer's. Raises Unauthenticated."""
    found = [(name, value) for name, value in headers if name in (b"x-api-key", b"authorization")]
    if not found:
        raise Unauthenticated("a credential is needed", problems.NO_CREDENTIAL)
    if len(found) > 1:
        raise Unauthenticated("more than one credential came", "several credentials")
    name, value = found[0]
    text = value.decode("latin-1").strip()
    if name == b"x-api-key":
        return text, False
    scheme, _, credential = text.partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated("Authorization is not of the kind Bearer", "other scheme")
    return credential.strip(), True


def note_refusal(metrics: Metrics, scope: HTTPScope, error: Refusal) -> None:
    """Count a refusal and write its line."""
    metrics.refused.labels(error.reason).inc()
    consumer: Consumer | None = scope["state"].get("consumer")
    fields = {
        "requestId": scope["state"]["request_id"],
        "consumer": consumer and consumer.name,
        "route": str(scope.get("path_template") or "unmatched"),
        "reason": error.reason,
    }
    AUDIT.warning("refused", extra={"fields": fields})


def _add_rate(scope: HTTPScope, bucket: Bucket) -> None:
    """Leave the headers of a rate to the edge, which adds what every answer has."""
    scope["state"]["added_headers"] = [(b"ratelimit-policy", policy(bucket.rate)), (b"ratelimit", left(bucket))]
