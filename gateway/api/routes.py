"""The routes: every path of the gateway, its handler, and what errors become."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import yaml
from litestar import Litestar, MediaType, Request, Response, get
from litestar.datastructures import State
from litestar.exceptions import HTTPException, MethodNotAllowedException, NotFoundException
from litestar.openapi import OpenAPIConfig, ResponseSpec
from litestar.params import FromPath
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from gateway.access import ANYONE
from gateway.api import problems, reference
from gateway.api.authentication import Authentication, Identify, note_refusal
from gateway.api.calls import CallLists, CallPage
from gateway.api.edge import Edge
from gateway.api.openapi import complete
from gateway.api.repeats import Repeats
from gateway.errors import (
    Forbidden,
    GatewayError,
    InvalidParameters,
    ParameterFault,
    RateLimited,
    Unauthenticated,
    UpstreamRejected,
)
from gateway.logs import AccessLog
from gateway.metrics import Metrics
from gateway.rates import Rates

PAGE = {200: ResponseSpec(CallPage, description="A page of calls.", generate_examples=False)}


@get(
    "/clients/{code:str}/calls",
    operation_id="listClientCalls",
    summary="List the calls of one client",
    tags=["calls"],
    responses=PAGE,
)
async def list_client_calls(request: Request[Any, Any, State], code: FromPath[str]) -> Response[bytes]:
    """Calls of one client in a window, newest first unless `sort` says otherwise."""
    lists: CallLists = request.app.state.lists
    return await lists.answer(request, code)


@get("/calls", operation_id="listCalls", summary="List the calls of several clients", tags=["calls"], responses=PAGE)
async def list_calls(request: Request[Any, Any, State]) -> Response[bytes]:
    """Calls of several clients, or of all, in a window."""
    lists: CallLists = request.app.state.lists
    return await lists.answer(request, None)


@get("/healthz", operation_id="getHealth", summary="Tell whether the process lives", tags=["operations"])
async def health() -> dict[str, str]:
    """Alive."""
    return {"status": "ok"}


@get("/readyz", operation_id="getReadiness", summary="Tell whether requests may come", tags=["operations"])
async def readiness() -> dict[str, str]:
    """Ready; it does not depend on the upstream."""
    return {"status": "ok"}


@get("/metrics", include_in_schema=False)
async def metrics_text(request: Request[Any, Any, State]) -> Response[bytes]:
    """Every series, for Prometheus."""
    text = generate_latest(request.app.state.metrics.registry)
    return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})


@get("/openapi.json", include_in_schema=False)
async def openapi_json() -> dict[str, Any]:
    """The contract."""
    return document()


@get("/openapi.yaml", include_in_schema=False, media_type=MediaType.TEXT)
async def openapi_yaml() -> Response[str]:
    """The contract, for people."""
    return Response(document_yaml(), media_type="application/yaml")


HANDLERS = [
    list_client_calls,
    list_calls,
    health,
    readiness,
    metrics_text,
    openapi_json,
    openapi_yaml,
    *reference.HANDLERS,
]


def document() -> dict[str, Any]:
    """Build the OpenAPI document."""
    app = Litestar(HANDLERS, openapi_config=OpenAPIConfig(title="", version="", render_plugins=[]))
    return complete(app.openapi_schema.to_schema())


def document_yaml() -> str:
    """Write the OpenAPI document as YAML."""
    return yaml.safe_dump(document(), sort_keys=False, allow_unicode=True, width=120)


def answer_problem(request: Request[Any, Any, State], error: Exception) -> Response[bytes]:
    """Turn an error into a problem. What is not foreseen goes on to the edge."""
    detail, headers = "", {}
    if isinstance(error, (Unauthenticated, Forbidden, RateLimited)):
        note_refusal(request.app.state.metrics, request.scope, error)
    faults: tuple[ParameterFault, ...] = ()
    if isinstance(error, GatewayError):
        kind, headers = problems.kind_of(error), problems.headers_of(error)
        if isinstance(error, InvalidParameters):
            faults = error.faults
        else:
            detail = error.message if isinstance(error, UpstreamRejected) else str(error)
    elif isinstance(error, NotFoundException):
        kind = problems.NOT_FOUND
    elif isinstance(error, MethodNotAllowedException):
        kind, headers = problems.NOT_ALLOWED, dict(error.headers or {})
    elif isinstance(error, HTTPException) and error.status_code < 500:
        kind, faults = problems.INVALID, (ParameterFault("request", "cannot be read"),)
    else:
        raise error
    state: dict[str, Any] = request.scope["state"]
    body = problems.render_problem(kind, request.scope["path"], state["request_id"], detail, faults)
    return Response(body, status_code=kind.status, media_type=problems.MEDIA_TYPE, headers=headers)


def templates(app: Litestar) -> Callable[[str], str]:
    """What finds the template of a path; for refusals, which come before the router."""
    found = [
        (re.compile(re.sub(r"\\{[^}]+\\}", "[^/]+", re.escape(route.path_format))), route.path_format)
        for route in app.routes
    ]
    return lambda path: next((template for pattern, template in found if pattern.fullmatch(path)), "unmatched")


def create_api(
    lists: CallLists, identify: Identify | None, metrics: Metrics, access_log: AccessLog, repeats_bytes: int
) -> tuple[Edge, Litestar]:
    """Put the API together: the application, and Litestar inside it. Without `identify` anyone sees everything."""
    app = Litestar(
        HANDLERS,
        openapi_config=None,
        logging_config=None,
        exception_handlers={Exception: answer_problem},
        state=State({"lists": lists, "metrics": metrics}),
        debug=False,
        pdb_on_exception=False,
    )
    repeats = Repeats(app, lists.clock, repeats_bytes, metrics.lookups.labels("repeat"))
    inside = Authentication(repeats, identify, ANYONE, Rates(), lists.clock, metrics, templates(app))
    return Edge(inside, metrics, access_log), app
