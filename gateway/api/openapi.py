"""The OpenAPI document: generated from the handlers by Litestar, then completed from the parameter table.

Rule: what is described twice drifts apart. Schemas come from the Structs, parameters from `params.TABLE`, problems
from `problems.KINDS`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway import __version__
from gateway.api import descriptions, examples, params, problems
from gateway.formats import KEYS, PARTS

DESCRIPTION = """\
Calls of a Callbutton call-tracking server as JSON, in UTC.

A list is read page by page: give `nextCursor` of one page as `cursor` for the next, until it is null. Instants come as
RFC 3339 with `Z`; what is absent is null. Whatever is not a success is a problem (RFC 9457).

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
CALL_PROBLEMS = (400, 401, 403, 405, 406, 422, 429, 500, 502, 503, 504)
OTHER_PROBLEMS = (405,)
RECORDING = "/recordings/{token}"
RECORDING_PROBLEMS = (400, 403, 404, 405, 500, 502, 503, 504)
EXAMPLES = {kind.status: kind for kind in problems.BY_NAME.values()} | {
    404: problems.NOT_FOUND,
    502: problems.UNREACHABLE,
    503: problems.OVERLOADED,
}
TAGS = [
    {"name": "calls", "description": "Call detail records."},
    {"name": "operations", "description": "For whoever runs the gateway."},
    {"name": "summaries", "description": "Figures of calls."},
]
HEADERS = {
    "X-Request-Id": "The id of this request, also in the log.",
    "Age": "Seconds since the window's newest point was fetched.",
    "Cache-Status": "Whether the ledger had the answer (RFC 9211).",
    "ETag": "Changes with the data, not with the time.",
    "Server-Timing": "Milliseconds that the ledger and the writing took.",
}
PROBLEM_HEADERS = {
    401: {"WWW-Authenticate": "How to authenticate, and whether what came was wrong (RFC 6750)."},
    405: {"Allow": "The methods that are allowed."},
    429: {"Retry-After": "Seconds after which to ask again."},
    503: {"Retry-After": "Seconds after which to ask again."},
}
RATE_HEADERS = {
    "RateLimit-Policy": "How often this consumer may ask; absent if it has no rate.",
    "RateLimit": "What is left of that, and the seconds until nothing is missing.",
}
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
FIRST_CALL = {
    "description": "Each call can be had by itself.",
    "operationId": "getClientCall",
    "parameters": {"code": "$response.body#/data/0/clientCode", "call_id": "$response.body#/data/0/id"},
}


def complete(generated: dict[str, Any]) -> dict[str, Any]:
    """Complete the document that Litestar generated."""
    schemas = generated["components"]["schemas"]
    _, problem_schemas = msgspec.json.schema_components(
        [problems.Problem, problems.Fault], ref_template="#/components/schemas/{name}"
    )
    schemas |= problem_schemas
    schemas["Call"]["required"] = list(KEYS)  # all else may be left out by `fields`
    for part in PARTS:
        schemas[part.capitalize()].pop("required")
    paths = generated["paths"]
    for path, item in paths.items():
        for operation in item.values():
            operation.setdefault("responses", {})
            if path in KINDS:
                _complete_operation(operation, path)
            elif path == RECORDING:
                _complete_recording(operation)
            else:
                answer = operation["responses"]["200"]
                answer["description"] = "Yes."
                answer["content"]["application/json"]["example"] = examples.answer_of("health")
                operation["security"] = []
            for status in sorted(_problems_of(path)):
                operation["responses"][str(status)] = _problem(status)
    for name, schema in schemas.items():
        _describe(name, schema)
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


def _complete_recording(operation: dict[str, Any]) -> None:
    operation["security"] = []  # the link is the credential
    operation["parameters"] = [
        {
            "name": "token",
            "in": "path",
            "required": True,
            "description": "The end of a call's `recordingUrl`.",
            "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]+$", "maxLength": 1000},
        },
        {
            "name": "Range",
            "in": "header",
            "required": False,
            "description": "A part of the recording, if the server knows how (RFC 9110).",
            "schema": {"type": "string"},
            "example": "bytes=0-65535",
        },
    ]
    whole = operation["responses"]["200"]
    whole["content"] = {"audio/*": {"schema": {"type": "string", "format": "binary"}}}
    operation["responses"]["206"] = {"description": "The part that was asked for.", "content": whole["content"]}


def _problems_of(path: str) -> tuple[int, ...]:
    if path == RECORDING:
        return RECORDING_PROBLEMS
    if path not in KINDS:
        return OTHER_PROBLEMS
    return (*CALL_PROBLEMS, 404) if KINDS[path] == "call" else CALL_PROBLEMS


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
    answer["content"]["application/json"]["example"] = examples.answer_of(kind)
    if kind == "list":
        answer["headers"] |= _headers({"Link": "The next page, if there is one."})
        answer["links"] = {"call": FIRST_CALL}
        answer["content"] |= {
            media_type: {"schema": {"type": "string"}, "example": text}
            for media_type, text in examples.streams().items()
        }


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


def _problem(status: int) -> dict[str, Any]:
    kind = EXAMPLES[status]
    example = msgspec.json.decode(problems.render_problem(kind, "/calls", "5f0c1d"))
    rate = RATE_HEADERS if kind is problems.RATE_LIMITED else {}
    return {
        "description": f"{kind.title}. {kind.advice}",
        "headers": _headers({"X-Request-Id": HEADERS["X-Request-Id"]} | PROBLEM_HEADERS.get(status, {}) | rate),
        "content": {
            problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "example": example},
        },
    }


def _headers(described: dict[str, str]) -> dict[str, Any]:
    return {name: {"description": text, "schema": {"type": "string"}} for name, text in described.items()}


def _describe(name: str, schema: dict[str, Any]) -> None:
    """Say what a schema and its fields mean; integers are counts, or seconds."""
    schema["description"] = descriptions.SCHEMAS[name]
    for field, described in schema.get("properties", {}).items():
        for one in (described, *described.get("oneOf", ()), *described.get("anyOf", ())):
            if one.get("type") == "integer":
                one |= {"format": "int64", "minimum": 0}
        if "$ref" not in described:
            described["description"] = descriptions.FIELDS[name][field]
