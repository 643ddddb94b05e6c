"""The application: all routes, the middleware around them, and the conversion of errors to problems."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import msgspec
import yaml
from litestar import Litestar, MediaType, Request, Response, get
from litestar.datastructures import State
from litestar.exceptions import HTTPException, MethodNotAllowedException, NotFoundException
from litestar.handlers import HTTPRouteHandler
from litestar.utils import normalize_path
from prometheus_client import CONTENT_TYPE_LATEST

from gateway import errors
from gateway.api import calls, changes, console, missed, openapi, problems, recordings, reference, summaries
from gateway.api.middleware.authentication import UNMATCHED, Authentication, audit
from gateway.api.middleware.compression import Compression
from gateway.api.middleware.cors import Cors
from gateway.api.middleware.load_shedder import LoadShedder
from gateway.api.middleware.request_context import HTTPApp, RequestContextMiddleware, context_of
from gateway.api.middleware.response_cache import ResponseCache
from gateway.api.responses import Services, services_of
from gateway.auth.authenticator import Authenticator
from gateway.extra_fields import NO_EXTRAS, ExtraFields
from gateway.logs import AccessLog
from gateway.memory import Memory
from gateway.metrics import Metrics
from gateway.rates import Shares
from gateway.shutdown import Shutdown

_T = TypeVar("_T")


@get("/healthz", operation_id="getHealth", summary="Check liveness", kind="probe")
async def health() -> dict[str, str]:
    """The process is alive."""
    return {"status": "ok"}


@get("/readyz", operation_id="getReadiness", summary="Check readiness", kind="probe")
async def readiness() -> dict[str, str]:
    """The process accepts requests. 503 while it shuts down. Readiness does not depend on the Callbutton server."""
    return {"status": "ok"}


@get("/metrics", include_in_schema=False)
async def metrics_text(request: Request[Any, Any, State]) -> Response[bytes]:
    """All metrics in the format of Prometheus."""
    text = request.app.state.metrics.scrape()
    return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})


@get("/openapi.json", include_in_schema=False)
async def openapi_json(request: Request[Any, Any, State]) -> Response[bytes]:
    """The OpenAPI document as JSON."""
    text = await asyncio.to_thread(document_json, services_of(request).extras)
    return Response(text, media_type="application/json")


@get("/openapi.yaml", include_in_schema=False, media_type=MediaType.TEXT)
async def openapi_yaml(request: Request[Any, Any, State]) -> Response[str]:
    """The OpenAPI document as YAML."""
    text = await asyncio.to_thread(document_yaml, services_of(request).extras)
    return Response(text, media_type="application/yaml")


OPERATOR_HANDLERS = [health, readiness, metrics_text]
HANDLERS = [
    *calls.HANDLERS,
    *missed.HANDLERS,
    *changes.HANDLERS,
    *summaries.HANDLERS,
    *recordings.HANDLERS,
    *OPERATOR_HANDLERS,
    openapi_json,
    openapi_yaml,
    *reference.HANDLERS,
    *console.HANDLERS,
]


def _once(build: Callable[[ExtraFields], _T]) -> Callable[..., _T]:
    """Cache the results of a function. Concurrent first calls from several threads run it once."""
    lock, cached = threading.Lock(), lru_cache(maxsize=4)(build)

    def locked(extras: ExtraFields = NO_EXTRAS) -> _T:
        with lock:
            return cached(extras)

    return locked


@_once
def document_json(extras: ExtraFields = NO_EXTRAS) -> bytes:
    """The OpenAPI document as JSON."""
    return msgspec.json.encode(openapi.build(HANDLERS, extras))


def document(extras: ExtraFields = NO_EXTRAS) -> dict[str, Any]:
    """A copy of the OpenAPI document."""
    copy: dict[str, Any] = msgspec.json.decode(document_json(extras))
    return copy


@_once
def document_yaml(extras: ExtraFields = NO_EXTRAS) -> str:
    """The OpenAPI document as YAML."""
    return yaml.safe_dump(document(extras), sort_keys=False, allow_unicode=True, width=120)


def problem_response(request: Request[Any, Any, State], error: Exception) -> Response[bytes]:
    """Render an error as a problem. An unexpected error is raised again, for `RequestContextMiddleware`."""
    detail, headers = "", {}
    if isinstance(error, (errors.Unauthenticated, errors.Forbidden, errors.RateLimited)):
        audit(request.app.state.metrics, request.scope, error)
    faults: tuple[errors.ParameterFault, ...] = ()
    if isinstance(error, errors.GatewayError):
        kind, headers = problems.type_of(error), problems.headers_of(error)
        if isinstance(error, errors.InvalidParameters):
            faults = error.faults
        else:
            detail = (
                error.message if isinstance(error, errors.UpstreamRejected) and not error.client_code else str(error)
            )
    elif isinstance(error, NotFoundException):
        kind = problems.NOT_FOUND
    elif isinstance(error, MethodNotAllowedException):
        kind, headers = problems.NOT_ALLOWED, dict(error.headers or {})
        detail = f"the path does not support {request.method}"
    elif isinstance(error, HTTPException) and error.status_code < 500:
        kind, faults = problems.INVALID, (errors.ParameterFault("request", "cannot be read"),)
    else:
        raise error
    request_id = context_of(request.scope).request_id
    body = problems.render_problem(kind, request.scope["path"], request_id, detail, faults)
    return Response(body, status_code=kind.status, media_type=problems.MEDIA_TYPE, headers=headers)


def route_finder(app: Litestar) -> Callable[[str], str]:
    """A function that finds the route template of a path, for requests refused before the router.

    As the router does, it ignores needless slashes.
    """
    templates = [
        (re.compile(re.sub(r"\\{[^}]+\\}", "[^/]+", re.escape(route.path_format))), route.path_format)
        for route in app.routes
    ]

    def route_of(path: str) -> str:
        normal = normalize_path(path)
        return next((template for pattern, template in templates if pattern.fullmatch(normal)), UNMATCHED)

    return route_of


def create_api(
    services: Services,
    authenticator: Authenticator | None,
    metrics: Metrics,
    access_log: AccessLog,
    shutdown: Shutdown,
    *,
    memory: Memory,
    metrics_port: int,
    unsent: Shares,
    cors_origins: frozenset[str],
    page: console.Console | None,
) -> tuple[RequestContextMiddleware, Litestar]:
    """Build the API: the ASGI application, and the Litestar application inside it.

    Without `authenticator`, every consumer sees every client. With `metrics_port`, only the application at `operator`
    serves the metrics. `page` are the settings of the console, if there is one.
    """

    def router(handlers: Sequence[HTTPRouteHandler]) -> Litestar:
        return Litestar(
            handlers,
            openapi_config=None,
            logging_config=None,
            exception_handlers={Exception: problem_response},
            state=State({"services": services, "metrics": metrics, "console": page}),
            debug=False,
            pdb_on_exception=False,
        )

    def outermost(app: HTTPApp, litestar: Litestar) -> RequestContextMiddleware:
        app = LoadShedder(app, shutdown)
        app = Cors(app, cors_origins) if cors_origins else app
        routes = route_finder(litestar)
        return RequestContextMiddleware(app, litestar, metrics, access_log, shutdown, unsent, routes)

    left_out = [*([metrics_text] if metrics_port else []), *([] if page else console.HANDLERS)]
    litestar = router([handler for handler in HANDLERS if handler not in left_out])
    cached = ResponseCache(Compression(litestar), services.clock, memory, metrics.requests)
    routes = route_finder(litestar)
    api = outermost(Authentication(cached, authenticator, services.rates, services.clock, metrics, routes), litestar)
    if metrics_port:
        operator = router(OPERATOR_HANDLERS)
        api.operator = outermost(Compression(operator), operator)
    return api, litestar
