"""The routes: every path of the gateway, its handler, and what errors become."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Annotated, Any

import msgspec
import yaml
from litestar import Litestar, MediaType, Request, Response, get
from litestar.datastructures import State
from litestar.exceptions import HTTPException, MethodNotAllowedException, NotFoundException
from litestar.handlers import BaseRouteHandler
from litestar.openapi import ResponseSpec
from litestar.params import FromPath
from litestar.response import Stream
from msgspec import Meta, Struct
from prometheus_client import CONTENT_TYPE_LATEST

from gateway.api import problems, reference
from gateway.api.answers import Desk
from gateway.api.authentication import Authentication, note_refusal
from gateway.api.calls import CallPage, SingleCall, answer_call, answer_list
from gateway.api.compression import Compression
from gateway.api.cors import Cors
from gateway.api.door import Door
from gateway.api.edge import Edge
from gateway.api.methods import Methods
from gateway.api.negotiation import HTTPApp
from gateway.api.openapi import build
from gateway.api.recordings import answer_recording
from gateway.api.repeats import Repeats
from gateway.api.summaries import CallSummary, ClientList, answer_clients, answer_summary
from gateway.credentials.identity import Identity
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
from gateway.shutdown import Shutdown

PROBE: Any = Annotated[dict[str, str], Meta(examples=[{"status": "ok"}])]
_DOCUMENT_LOCK = threading.Lock()


def _answers(struct: type[Struct], description: str) -> dict[int, ResponseSpec]:
    return {200: ResponseSpec(struct, description=description, generate_examples=False)}


@get(
    "/clients/{code:str}/calls",
    operation_id="listClientCalls",
    summary="List the calls of one client",
    tags=["calls"],
    responses=_answers(CallPage, "A page of calls; as NDJSON or CSV all calls of the window."),
    kind="list",
)
async def list_client_calls(request: Request[Any, Any, State], code: FromPath[str]) -> Response[Any]:
    """Calls of one client in a window, newest first unless `sort` says otherwise."""
    return await answer_list(request.app.state.desk, request, code)


@get(
    "/calls",
    operation_id="listCalls",
    summary="List the calls of several clients",
    tags=["calls"],
    responses=_answers(CallPage, "A page of calls; as NDJSON or CSV all calls of the window."),
    kind="list",
)
async def list_calls(request: Request[Any, Any, State]) -> Response[Any]:
    """Calls of several clients, or of all, in a window."""
    return await answer_list(request.app.state.desk, request, None)


@get(
    "/clients/{code:str}/calls/{call_id:str}",
    operation_id="getClientCall",
    summary="Find one call of a client",
    tags=["calls"],
    responses=_answers(SingleCall, "The call."),
    kind="call",
)
async def get_client_call(
    request: Request[Any, Any, State], code: FromPath[str], call_id: FromPath[str]
) -> Response[Any]:
    """One call, looked for in the window given, else where the gateway last saw it, else in the last 31 days."""
    return await answer_call(request.app.state.desk, request, code, call_id)


@get(
    "/clients/{code:str}/calls/summary",
    operation_id="summarizeClientCalls",
    summary="Summarize the calls of one client",
    tags=["summaries"],
    responses=_answers(CallSummary, "Figures by bucket and group, and of all calls."),
    kind="summary",
)
async def summarize_client_calls(request: Request[Any, Any, State], code: FromPath[str]) -> Response[Any]:
    """Counts and talk time of one client's calls in a window, by bucket of time and by group."""
    return await answer_summary(request.app.state.desk, request, code)


@get(
    "/calls/summary",
    operation_id="summarizeCalls",
    summary="Summarize the calls of several clients",
    tags=["summaries"],
    responses=_answers(CallSummary, "Figures by bucket and group, and of all calls."),
    kind="summary",
)
async def summarize_calls(request: Request[Any, Any, State]) -> Response[Any]:
    """Counts and talk time of the calls of several clients, or of all, in a window."""
    return await answer_summary(request.app.state.desk, request, None)


@get(
    "/clients",
    operation_id="listClients",
    summary="List the clients that had calls",
    tags=["summaries"],
    responses=_answers(ClientList, "The clients, by code."),
    kind="clients",
)
async def list_clients(request: Request[Any, Any, State]) -> Response[Any]:
    """Client codes that this consumer may see and that had calls in a window, with how many."""
    return await answer_clients(request.app.state.desk, request)


@get(
    "/recordings/{token:str}",
    operation_id="getRecording",
    summary="Listen to the recording of a call",
    tags=["calls"],
    responses={200: ResponseSpec(bytes, description="The recording.", media_type="audio/*")},
    kind="recording",
)
async def get_recording(request: Request[Any, Any, State], token: FromPath[str]) -> Stream:
    """The recording to which `recordingUrl` of a call leads, until the end of the next hour; `Range` gives a part."""
    return await answer_recording(request.app.state.desk, request, token)


@get(
    "/healthz",
    operation_id="getHealth",
    summary="Tell whether the process lives",
    tags=["operations"],
    responses={200: ResponseSpec(PROBE, description="The process is alive.", generate_examples=False)},
    kind="probe",
)
async def health() -> dict[str, str]:
    """Alive."""
    return {"status": "ok"}


@get(
    "/readyz",
    operation_id="getReadiness",
    summary="Tell whether requests may come",
    tags=["operations"],
    responses={200: ResponseSpec(PROBE, description="The process is ready.", generate_examples=False)},
    kind="probe",
)
async def readiness() -> dict[str, str]:
    """Ready; it does not depend on the upstream."""
    return {"status": "ok"}


@get("/metrics", include_in_schema=False)
async def metrics_text(request: Request[Any, Any, State]) -> Response[bytes]:
    """Every series, for Prometheus."""
    text = request.app.state.metrics.scrape()
    return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})


@get("/openapi.json", include_in_schema=False)
async def openapi_json() -> Response[bytes]:
    """The contract."""
    return Response(await asyncio.to_thread(document_json), media_type="application/json")


@get("/openapi.yaml", include_in_schema=False, media_type=MediaType.TEXT)
async def openapi_yaml() -> Response[str]:
    """The contract, for people."""
    return Response(await asyncio.to_thread(document_yaml), media_type="application/yaml")


OPERATOR_HANDLERS = [health, readiness, metrics_text]
HANDLERS = [
    list_client_calls,
    list_calls,
    get_client_call,
    summarize_client_calls,
    summarize_calls,
    list_clients,
    get_recording,
    *OPERATOR_HANDLERS,
    openapi_json,
    openapi_yaml,
    *reference.HANDLERS,
]


def document() -> dict[str, Any]:
    """The OpenAPI document."""
    return build(HANDLERS)


@cache
def _document_json() -> bytes:
    return msgspec.json.encode(document())


@cache
def _document_yaml() -> str:
    return yaml.safe_dump(document(), sort_keys=False, allow_unicode=True, width=120)


def document_json() -> bytes:
    """The OpenAPI document as JSON, rendered once."""
    with _DOCUMENT_LOCK:
        return _document_json()


def document_yaml() -> str:
    """The OpenAPI document as YAML, rendered once: it takes a second."""
    with _DOCUMENT_LOCK:
        return _document_yaml()


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
    desk: Desk,
    identity: Identity | None,
    metrics: Metrics,
    access_log: AccessLog,
    shutdown: Shutdown,
    *,
    repeats_bytes: int,
    metrics_port: int,
    concurrency: int,
    cors_origins: frozenset[str],
) -> tuple[Edge, Litestar]:
    """Put the API together: the application, and Litestar inside it.

    Without `identity` anyone sees everything. With `metrics_port` only the application's `operator` has the metrics.
    """

    def router(handlers: Sequence[BaseRouteHandler]) -> Litestar:
        return Litestar(
            handlers,
            openapi_config=None,
            logging_config=None,
            exception_handlers={Exception: answer_problem},
            state=State({"desk": desk, "metrics": metrics}),
            debug=False,
            pdb_on_exception=False,
        )

    app = router([handler for handler in HANDLERS if handler is not metrics_text or not metrics_port])
    repeats = Repeats(Methods(Compression(app)), desk.clock, repeats_bytes, metrics.requests)
    inside: HTTPApp = Authentication(repeats, identity, desk.rates, desk.exports, desk.clock, metrics, templates(app))
    if cors_origins:
        inside = Cors(inside, cors_origins)
    edge = Edge(Door(inside, concurrency, shutdown), app, metrics, access_log, shutdown)
    if metrics_port:
        operator = router(OPERATOR_HANDLERS)
        door = Door(Methods(Compression(operator)), concurrency, shutdown)
        edge.operator = Edge(door, operator, metrics, access_log, shutdown)
    return edge, app
