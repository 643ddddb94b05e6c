"""The OpenAPI document, built from the handlers.

Rules:
- Each fact has one source: paths, summaries and operation ids are those of the handlers, schemas and examples those of
  the response Structs, parameters those of `query.PARAMETERS`, and problems those of `problems.PROBLEM_TYPES`.
- Building the document has no side effects. It creates no Litestar application, which would change the logging.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, NamedTuple

import msgspec
from litestar.handlers import HTTPRouteHandler

from gateway import __version__
from gateway.api import problems, query
from gateway.api.calls import CallPage, SingleCall
from gateway.api.responses import AnswerMeta
from gateway.api.summaries import CallSummary, ClientList
from gateway.formats import NESTED, REQUIRED_FIELDS, Csv, Ndjson
from gateway.model import Call

DESCRIPTION = """\
The calls of a Callbutton call-tracking server as JSON, in UTC.

Lists are paged: send the `nextCursor` of a page as `cursor` to get the next page, until it is null. Instants are RFC
3339 with `Z`, and absent values are null. Every error response is a problem (RFC 9457).

Authenticate with an access key, in `X-API-Key` or as `Authorization: Bearer`, or with a bearer token of an OpenID
Connect issuer. The clients and scopes of the credential decide which calls and fields are visible; `client=*` selects
all of its clients."""
SCHEMA_REFERENCE = "#/components/schemas/{name}"
ALWAYS_PRESENT: dict[str, list[str]] = {"Call": list(REQUIRED_FIELDS)} | {part.__name__: [] for part in NESTED.values()}
CALL_PROBLEMS = (400, 401, 403, 405, 406, 422, 429, 500, 502, 503, 504)
RECORDING_PROBLEMS = (400, 403, 404, 405, 500, 502, 503, 504)
PROBE: Any = Annotated[dict[str, str], msgspec.Meta(examples=[{"status": "ok"}])]


class Route(NamedTuple):
    """A kind of route: its tag, the body and the description of the response 200, and the status codes of problems."""

    tag: str
    body: Any
    description: str
    problems: tuple[int, ...] = CALL_PROBLEMS


ROUTES = {
    "list": Route("calls", CallPage, "A page of calls as JSON, or all calls of the window as NDJSON or CSV."),
    "call": Route("calls", SingleCall, "The call.", (*CALL_PROBLEMS, 404)),
    "summary": Route("summaries", CallSummary, "Figures by time bucket and group, and of all calls."),
    "clients": Route("summaries", ClientList, "The clients, sorted by code."),
    "recording": Route("calls", bytes, "The recording.", RECORDING_PROBLEMS),
    "probe": Route("operations", PROBE, "The check succeeded.", (405,)),
}
PROBLEM_BY_STATUS = {kind.status: kind for kind in problems.BY_NAME.values()} | {
    404: problems.NOT_FOUND,
    502: problems.UNREACHABLE,
    503: problems.OVERLOADED,
}  # the description and example of each status code
TAGS = [
    {"name": "calls", "description": "Call detail records."},
    {"name": "operations", "description": "For operators of the gateway."},
    {"name": "summaries", "description": "Figures about calls."},
]
HEADERS = {
    "X-Request-Id": "The id of the request, which the log has too.",
    "Age": "Seconds since the newest point of the window was fetched.",
    "Cache-Status": "Whether the response is from the cache (RFC 9211).",
    "ETag": "A weak entity tag of the data; it does not depend on when the data was fetched.",
    "Server-Timing": "Milliseconds to read the cache, and to write the response.",
}
PROBLEM_HEADERS = {
    401: {"WWW-Authenticate": "The scheme, and the error `invalid_token` if a credential was sent (RFC 6750)."},
    405: {"Allow": "The allowed methods."},
    429: {"Retry-After": "Seconds to wait before the next attempt."},
    503: {"Retry-After": "Seconds to wait before the next attempt."},
}
RATE_HEADERS = {
    "RateLimit-Policy": "The rate limit of this consumer, if it has one.",
    "RateLimit": "The remaining requests, and the seconds until the full limit is available again.",
}
SCHEMES = {
    "key": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "An access key. The operator of the gateway creates it with `keys new`.",
    },
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "An access key, or a JSON Web Token of the configured issuer.",
    },
}
FIRST_CALL = {
    "description": "Get one of the calls.",
    "operationId": "getClientCall",
    "parameters": {"code": "$response.body#/data/0/clientCode", "call_id": "$response.body#/data/0/id"},
}
PATH_PARAMETERS = {
    "code": {
        "description": "The client code, often its toll-free number.",
        "schema": {"type": "string", "pattern": f"^{query.CODE_PATTERN}$"},
        "example": "8005550100",
    },
    "call_id": {
        "description": "The `id` of the call.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 200},
        "example": "498200007",
    },
    "token": {
        "description": "The last segment of the `recordingUrl` of a call.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]+$", "maxLength": 1000},
    },
}
RANGE_HEADER = {
    "name": "Range",
    "in": "header",
    "required": False,
    "description": "The requested part of the recording (RFC 9110), if the Callbutton server supports ranges.",
    "schema": {"type": "string"},
    "example": "bytes=0-65535",
}


def build(handlers: Iterable[HTTPRouteHandler]) -> dict[str, Any]:
    """Build the document of the handlers in the schema. The option `kind` of a handler names its entry in `ROUTES`."""
    schemas = _components(problems.Problem)
    paths = {}
    for handler in handlers:
        if handler.include_in_schema is not False:
            (template,) = handler.paths
            path = template.replace(":str}", "}")
            paths[path] = {"get": _operation(handler, path, schemas)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Callbutton gateway",
            "version": __version__,
            "description": DESCRIPTION,
            "contact": {"name": "The operator of this gateway"},
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/", "description": "This gateway."}],
        "security": [{name: []} for name in SCHEMES],
        "tags": TAGS,
        "paths": paths,
        "components": {"schemas": dict(sorted(schemas.items())), "securitySchemes": SCHEMES},
    }


def example_of(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Any:  # noqa: ANN401 - any JSON
    """An example value of a schema, built from the examples of its fields. Raises ValueError if a field has none."""
    match schema:
        case {"examples": [example, *_]} | {"enum": [example, *_]}:
            return example
        case {"$ref": reference}:
            return example_of(schemas[reference.rpartition("/")[2]], schemas)
        case {"oneOf": [first, *_]}:
            return example_of(first, schemas)
        case {"items": items}:
            return [example_of(items, schemas)]
        case {"properties": properties}:
            return {name: example_of(field, schemas) for name, field in properties.items()}
    raise ValueError(f"a field has no example: {schema}")


def _operation(handler: HTTPRouteHandler, path: str, schemas: dict[str, Any]) -> dict[str, Any]:
    kind = handler.opt["kind"]
    route = ROUTES[kind]
    operation: dict[str, Any] = {
        "tags": [route.tag],
        "summary": handler.summary,
        "description": inspect.getdoc(handler.fn),
        "operationId": handler.operation_id,
        "parameters": [*_path_parameters(path), *_query_parameters(path, kind)],
        "responses": {"200": _success(route, kind, schemas)},
    }
    if kind == "recording":
        operation["parameters"].append(RANGE_HEADER)
        content = operation["responses"]["200"]["content"]
        operation["responses"]["206"] = {"description": "The requested part of the recording.", "content": content}
    if kind in ("recording", "probe"):  # a recording link is a credential; probes are open
        operation["security"] = []
    for status in sorted(route.problems):
        operation["responses"][str(status)] = _problem(status)
    return operation


def _path_parameters(path: str) -> list[dict[str, Any]]:
    names = [name for name in PATH_PARAMETERS if f"{{{name}}}" in path]
    return [{"name": name, "in": "path", "required": True} | PATH_PARAMETERS[name] for name in names]


def _query_parameters(path: str, kind: str) -> Iterator[dict[str, Any]]:
    several_clients = kind in query.CLIENT.routes.split() and "{code}" not in path
    for parameter in (*([query.CLIENT] if several_clients else []), *query.parameters_of(kind)):
        yield {
            "name": parameter.name,
            "in": "query",
            "required": parameter is query.CLIENT,
            "description": parameter.description,
            "schema": dict(parameter.kind.schema),
        } | ({} if parameter.example is None else {"example": parameter.example})


def _success(route: Route, kind: str, schemas: dict[str, Any]) -> dict[str, Any]:
    """The response 200. Adds its schemas to `schemas`."""
    if route.body is bytes:
        schema = {"type": "string", "format": "binary"}
        return {"description": route.description, "content": {"audio/*": {"schema": schema}}}
    schemas |= _components(route.body)
    ((schema,), _) = msgspec.json.schema_components([route.body], ref_template=SCHEMA_REFERENCE)
    content = {"application/json": {"schema": schema, "example": example_of(schema, schemas)}}
    if kind == "probe":
        return {"description": route.description, "content": content}
    described: dict[str, Any] = {
        "description": route.description,
        "headers": _headers(HEADERS | RATE_HEADERS),
        "content": content,
    }
    if kind == "list":
        described["headers"] |= _headers({"Link": "The next page, if there is one."})
        described["links"] = {"call": FIRST_CALL}
        described["content"] |= _streams(content["application/json"]["example"])
    return described


def _streams(page: Mapping[str, Any]) -> dict[str, Any]:
    """Examples of the streamed media types, from the example of a page."""
    calls = msgspec.convert(page["data"], list[Call])
    lines, table = Ndjson(), Csv()
    texts = {
        "application/x-ndjson": lines.rows(calls) + lines.end(msgspec.convert(page["meta"], AnswerMeta)),
        "text/csv": table.begin() + table.rows(calls),
    }
    return {name: {"schema": {"type": "string"}, "example": text.decode()} for name, text in texts.items()}


def _problem(status: int) -> dict[str, Any]:
    kind = PROBLEM_BY_STATUS[status]
    example = msgspec.json.decode(problems.render_problem(kind, "/calls", "5f0c1d"))
    rate = RATE_HEADERS if kind is problems.RATE_LIMITED else {}
    reference = {"$ref": SCHEMA_REFERENCE.format(name="Problem")}
    return {
        "description": f"{kind.title}. {kind.hint}",
        "headers": _headers({"X-Request-Id": HEADERS["X-Request-Id"]} | PROBLEM_HEADERS.get(status, {}) | rate),
        "content": {problems.MEDIA_TYPE: {"schema": reference, "example": example}},
    }


def _headers(described: Mapping[str, str]) -> dict[str, Any]:
    return {name: {"description": text, "schema": {"type": "string"}} for name, text in described.items()}


def _components(body: Any) -> dict[str, Any]:  # noqa: ANN401 - any type that has a schema
    """The schemas of a response body and of every type that it refers to, by name."""
    _, schemas = msgspec.json.schema_components([body], ref_template=SCHEMA_REFERENCE)
    for name, schema in schemas.items():
        schema["description"] = " ".join(inspect.cleandoc(schema["description"]).partition("\n\n")[0].split())
        if "enum" in schema:
            schema["type"] = "string"
        for field in schema.get("properties", {}).values():
            if "anyOf" in field:
                field["oneOf"] = field.pop("anyOf")
            for one in (field, *field.get("oneOf", ())):
                if one.get("type") == "integer":  # every integer is a count or a number of seconds
                    one |= {"format": "int64", "minimum": 0}
        required = ALWAYS_PRESENT.get(name, schema.pop("required", []))  # the parameter `fields` leaves out the others
        if required:
            schema["required"] = required
    return schemas
