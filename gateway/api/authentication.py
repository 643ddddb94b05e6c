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
from collections.abc import Callable, Collection, Mapping
from typing import Any

from litestar.types import HTTPScope, Receive, Send

from gateway.access import ANYONE, Consumer
from gateway.api import problems
from gateway.api.negotiation import HTTPApp
from gateway.credentials.identity import Identity
from gateway.errors import Forbidden, IssuerUnreachable, RateLimited, Unauthenticated
from gateway.metrics import Metrics
from gateway.rates import Exports, Rates, rate_headers

AUDIT = logging.getLogger("gateway.audit")
OPEN = re.compile(
    r"/(healthz|readyz|metrics|openapi\.json|openapi\.yaml|docs(/[A-Za-z0-9._-]+)?|problems/[a-z-]+"
    r"|recordings/[A-Za-z0-9_-]+)",
    re.ASCII,
)
Refusal = Unauthenticated | Forbidden | RateLimited | IssuerUnreachable
CREDENTIALS = (b"x-api-key", b"authorization")
RouteOf = Callable[[str], str]


class Authentication:
    """An ASGI application around another; `identity` is None where anyone may ask."""

    def __init__(
        self,
        app: HTTPApp,
        identity: Identity | None,
        rates: Rates,
        exports: Exports,
        clock: Callable[[], float],
        metrics: Metrics,
        route_of: RouteOf,
    ) -> None:
        self._app = app
        self._identity = identity
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
        state, identity = scope["state"], self._identity
        try:
            if identity is None:
                consumer = ANYONE
            else:
                pairs: Any = scope["headers"]  # of a length, whatever ASGI promises
                credential, bearer = read_credential(pairs, state["headers"])
                known = identity.known(credential, bearer=bearer)
                consumer = await identity.of_token(credential) if known is None else known
            state["consumer"] = consumer
            if consumer.rate is not None:
                now = self._clock()
                bucket = self._rates.bucket(consumer, now)
                taken = bucket.take(now)
                state["added_headers"] = rate_headers(bucket)
                if not taken:
                    raise RateLimited("this consumer has used up its rate", bucket.wait())
        except (Unauthenticated, RateLimited, IssuerUnreachable) as error:
            await self._refuse(scope, send, error)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            self._exports.end(state)

    async def _refuse(self, scope: HTTPScope, send: Send, error: Refusal) -> None:
        state = scope["state"]
        scope["path_template"] = self._route_of(scope["path"])
        note_refusal(self._metrics, scope, error)
        headers = [(name.lower().encode(), value.encode()) for name, value in problems.headers_of(error).items()]
        await problems.send_problem(
            send, problems.kind_of(error), scope["path"], state["request_id"], str(error), headers=headers
        )


def read_credential(pairs: Collection[tuple[bytes, bytes]], headers: Mapping[bytes, bytes]) -> tuple[str, bool]:
    """Read the credential, and whether it is a bearer's; `headers` is the last of each name. Raises Unauthenticated."""
    key, authorization = headers.get(b"x-api-key"), headers.get(b"authorization")
    doubled = len(pairs) != len(headers) and sum(name in CREDENTIALS for name, _ in pairs) > 1
    if doubled or (key is not None and authorization is not None):
        raise Unauthenticated("more than one credential came", "several credentials")
    if key is not None:
        return key.decode("latin-1").strip(), False
    if authorization is None:
        raise Unauthenticated("a credential is needed", problems.NO_CREDENTIAL)
    scheme, _, credential = authorization.decode("latin-1").strip().partition(" ")
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
