"""The OpenAPI document: generated from the handlers by Litestar, then completed from the parameter table.

Rule: what is described twice drifts apart. Schemas come from the Structs, parameters from `params.TABLE`, problems
from `problems.KINDS`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway import __version__
from gateway.api import params, problems

DESCRIPTION = """\
Calls of a Callbutton call-tracking server as JSON, in UTC.

Access control is not part of this version: run it where only trusted programs reach it."""
LISTS = ("/clients/{code}/calls", "/calls")
LIST_PROBLEMS = (400, 422, 500, 502, 504)
OTHER_PROBLEMS = (405,)
EXAMPLES = {kind.status: kind for kind in (*problems.KINDS.values(), problems.NOT_ALLOWED, problems.INTERNAL)} | {
    502: problems.UNREACHABLE
}
TAGS = [
    {"name": "calls", "description": "Call detail records."},
    {"name": "operations", "description": "For whoever runs the gateway."},
]
HEADERS = {
    "X-Request-Id": "The id of this request, also in the log.",
    "Age": "Seconds since the window's newest point was fetched.",
    "Cache-Status": "Whether the ledger had the answer (RFC 9211).",
}


def complete(generated: dict[str, Any]) -> dict[str, Any]:
    """Complete the document that Litestar generated."""
    schemas = generated["components"]["schemas"]
    _, problem_schemas = msgspec.json.schema_components(
        [problems.Problem, problems.Fault], ref_template="#/components/schemas/{name}"
    )
    schemas |= problem_schemas
    paths = generated["paths"]
    for path, item in paths.items():
        for operation in item.values():
            operation.setdefault("responses", {})
            if path in LISTS:
                _complete_list(operation, path)
            else:
                operation["responses"]["200"]["description"] = "Yes."
            for status in LIST_PROBLEMS if path in LISTS else OTHER_PROBLEMS:
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
        "security": [],
        "tags": TAGS,
        "paths": paths,
        "components": {"schemas": dict(sorted(schemas.items()))},
    }


def _complete_list(operation: dict[str, Any], path: str) -> None:
    described = []
    if "{code}" in path:
        described.append(
            {
                "name": "code",
                "in": "path",
                "required": True,
                "description": "The client's code, often its toll-free number.",
                "schema": {"type": "string", "pattern": "^[A-Za-z0-9_.-]{1,64}$"},
                "example": "8005550100",
            }
        )
    for parameter in params.TABLE if described else (params.CLIENT, *params.TABLE):
        entry: dict[str, Any] = {
            "name": parameter.name,
            "in": "query",
            "required": parameter is params.CLIENT,
            "description": parameter.description,
            "schema": dict(parameter.schema),
        }
        if parameter.example is not None:
            entry["example"] = parameter.example
        described.append(entry)
    operation["parameters"] = described
    operation["responses"]["200"]["headers"] = {
        name: {"description": text, "schema": {"type": "string"}} for name, text in HEADERS.items()
    }


def _problem(status: int) -> dict[str, Any]:
    kind = EXAMPLES[status]
    example = msgspec.json.decode(problems.render_problem(kind, "/calls", "5f0c1d"))
    return {
        "description": kind.title,
        "content": {
            problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "example": example},
        },
    }
