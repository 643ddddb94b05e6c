"""The OpenAPI document: generated from the handlers by Litestar, then completed from the parameter table.

Rule: what is described twice drifts apart. Schemas come from the Structs, parameters from `params.TABLE`, problems
from `problems.KINDS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from gateway import __version__
from gateway.api import params, problems
from gateway.formats import KEYS

DESCRIPTION = """\
Calls of a Callbutton call-tracking server as JSON, in UTC.

Consumers send an access key, in `X-API-Key` or as `Authorization: Bearer`, or a bearer token of an OpenID Connect
issuer. What they see of calls depends on their clients and scopes; `client=*` means their own."""
KINDS = {
    "/clients/{code}/calls": "list",
    "/calls": "list",
    "/clients/{code}/calls/{call_id}": "call",
    "/clients/{code}/calls/summary": "summary",
    "/calls/summary": "summary",
    "/clients": "clients",
}  # of the routes about calls, as `params.TABLE` calls them
CALL_PROBLEMS = (400, 406, 422, 500, 502, 503, 504)
OTHER_PROBLEMS = (405,)
ACCESS_PROBLEMS = (401, 403, 429)
SCHEMES = {
    "key": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "An access key; whoever runs the gateway makes it with `keys new`.",
    },
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "An access key, or a JSON Web Token of the issuer that the gateway is set to.",
    },
}
PROBLEM_HEADERS = {
    401: {"WWW-Authenticate": "How to authenticate, and whether what came was wrong (RFC 6750)."},
    429: {"Retry-After": "Seconds after which to ask again."},
    503: {"Retry-After": "Seconds after which to ask again."},
}
RATE_HEADERS = {
    "RateLimit-Policy": "How often this consumer may ask; absent if it has no rate.",
    "RateLimit": "What is left of that, and the seconds until nothing is missing.",
}
STREAMED = ("application/x-ndjson", "text/csv")
EXAMPLES = {kind.status: kind for kind in problems.BY_NAME.values()} | {
    404: problems.NOT_FOUND,
    502: problems.UNREACHABLE,
}
TAGS = [
    {"name": "calls", "description": "Call detail records."},
    {"name": "summaries", "description": "Figures of calls."},
    {"name": "operations", "description": "For whoever runs the gateway."},
]
HEADERS = {
    "X-Request-Id": "The id of this request, also in the log.",
    "Age": "Seconds since the window's newest point was fetched.",
    "Cache-Status": "Whether the ledger had the answer (RFC 9211).",
    "ETag": "Changes with the data, not with the time.",
    "Server-Timing": "Milliseconds that the ledger and the writing took.",
}


def complete(generated: dict[str, Any]) -> dict[str, Any]:
    """Complete the document that Litestar generated."""
    schemas = generated["components"]["schemas"]
    _, problem_schemas = msgspec.json.schema_components(
        [problems.Problem, problems.Fault], ref_template="#/components/schemas/{name}"
    )
    schemas |= problem_schemas
    schemas["Call"]["required"] = list(KEYS)  # all else may be left out by `fields`
    paths = generated["paths"]
    for path, item in paths.items():
        for operation in item.values():
            operation.setdefault("responses", {})
            if path in KINDS:
                _complete_operation(operation, path)
            else:
                operation["responses"]["200"]["description"] = "Yes."
                operation["security"] = []
            for status in _problems_of(path):
                operation["responses"][str(status)] = _problem(status)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Callbutton gateway",
            "version": __version__,
            "description": DESCRIPTION,
            "contact": {"name": "Whoever runs this gateway"},
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/", "description": "This gateway."}],
        "security": [{name: []} for name in SCHEMES],
        "tags": TAGS,
        "paths": paths,
        "components": {"schemas": dict(sorted(schemas.items())), "securitySchemes": SCHEMES},
    }


def _problems_of(path: str) -> tuple[int, ...]:
    if path not in KINDS:
        return OTHER_PROBLEMS
    return tuple(sorted((*CALL_PROBLEMS, *ACCESS_PROBLEMS, *((404,) if KINDS[path] == "call" else ()))))


def _complete_operation(operation: dict[str, Any], path: str) -> None:
    kind = KINDS[path]
    described = [_parameter(parameter, "path") for parameter in params.PATH if f"{{{parameter.name}}}" in path]
    if not described and kind != "clients":
        described.append(_parameter(params.CLIENT, "query"))
    operation["parameters"] = described + [_parameter(parameter, "query") for parameter in params.of_route(kind)]
    for parameter in operation["parameters"] if kind in ("summary", "clients") else ():
        if parameter["name"] == "start":
            parameter["description"] = f"{params.START} Included. Required, unless `range` is there."
    answer = operation["responses"]["200"]
    answer["headers"] = _headers(HEADERS | RATE_HEADERS)
    if kind == "list":
        answer["headers"]["Link"] = {"description": "The next page, if there is one.", "schema": {"type": "string"}}
        answer["content"] |= {media_type: {"schema": {"type": "string"}} for media_type in STREAMED}


def _parameter(parameter: params.Parameter, place: str) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": parameter.name,
        "in": place,
        "required": place == "path" or parameter is params.CLIENT,
        "description": parameter.description,
        "schema": dict(parameter.schema),
    }
    if parameter.example is not None:
        entry["example"] = parameter.example
    return entry


def _headers(texts: Mapping[str, str]) -> dict[str, Any]:
    return {name: {"description": text, "schema": {"type": "string"}} for name, text in texts.items()}


def _problem(status: int) -> dict[str, Any]:
    kind = EXAMPLES[status]
    example = msgspec.json.decode(problems.render_problem(kind, "/calls", "5f0c1d"))
    described: dict[str, Any] = {
        "description": kind.title,
        "content": {
            problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "example": example},
        },
    }
    if status in PROBLEM_HEADERS:
        rate = RATE_HEADERS if status == problems.RATE_LIMITED.status else {}
        described["headers"] = _headers(PROBLEM_HEADERS[status] | rate)
    return described
