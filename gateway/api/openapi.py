"""The OpenAPI document, built from the handlers.

Rules:
- Each fact has one source: paths, summaries and operation ids are those of the handlers, schemas and examples those of
  the response Structs, parameters those of `query.PARAMETERS`, and problems those of `problems.BY_NAME`.
- Schemas, enums, parameters, responses and headers are components: each is written once and referred to by name.
- Building the document has no side effects. It creates no Litestar application, which would change the logging.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Annotated, Any, NamedTuple

import msgspec
from litestar.handlers import HTTPRouteHandler

from gateway import __version__
from gateway.api import problems, query
from gateway.api.calls import CallPage, SingleCall
from gateway.api.changes import LINK_TYPE
from gateway.api.dimensions import dimensions_of
from gateway.api.feed import Changes, FeedAddress, feed_call_type
from gateway.api.missed import MissedCaller, MissedPage
from gateway.api.query import Parameter, ValueType
from gateway.api.responses import AnswerMeta
from gateway.api.summaries import CallSummary, ClientList
from gateway.api.summary_table import SummaryRow, render_csv, render_ndjson
from gateway.errors import ParameterFault
from gateway.extra_fields import ExtraFields
from gateway.formats import Csv, Ndjson, columns_of
from gateway.model import CODE_PATTERN
from gateway.slices import finish

DESCRIPTION = """\
The calls of a Callbutton call-tracking server as JSON, in UTC.

Lists are paged: send the `nextCursor` of a page as `cursor` to get the next page, until it is null. Instants are RFC
3339 with `Z`, and absent values are null. Every error response is a problem (RFC 9457).

Authenticate with an access key, in `X-API-Key` or as `Authorization: Bearer`, or with a bearer token of an OpenID
Connect issuer. The clients and scopes of the credential decide which calls and fields are visible; `client=*` selects
all of its clients."""
MAX_INTEGER = 2**31 - 1  # of int32; generators make a `bigint` or a string of int64
CALL_PROBLEMS = (400, 401, 403, 405, 406, 422, 429, 500, 502, 503, 504)
RECORDING_PROBLEMS = (400, 403, 404, 405, 429, 500, 502, 503, 504)
PROBE: Any = Annotated[dict[str, str], msgspec.Meta(examples=[{"status": "ok"}])]


class Route(NamedTuple):
    """A kind of route: its tag, the body and the description of the response 200, and the status codes of problems."""

    tag: str
    body: Any
    description: str
    problems: tuple[int, ...] = CALL_PROBLEMS


ROUTES = {
    "list": Route("calls", CallPage, "A page of calls as JSON, or all calls of the window otherwise."),
    "changes": Route("changes", Changes, "What changed, in the order in which it is applied."),
    "call": Route("calls", SingleCall, "The call.", (*CALL_PROBLEMS, 404)),
    "summary": Route("summaries", CallSummary, "Figures by time bucket and group, and of all calls."),
    "missed": Route("calls", MissedPage, "A page of missed callers as JSON, or all of the window otherwise."),
    "clients": Route("summaries", ClientList, "The clients, sorted by code."),
    "recording": Route("calls", bytes, "The recording.", RECORDING_PROBLEMS),
    "probe": Route("operations", PROBE, "The check succeeded.", (405, 500, 503)),
}
TAGS = [
    {"name": "calls", "description": "Call detail records."},
    {"name": "changes", "description": "The change feed: keeps a copy of the calls exact."},
    {"name": "operations", "description": "For operators of the gateway."},
    {"name": "summaries", "description": "Figures about calls."},
]
WINDOW_HEADERS = ("Age", "Cache-Status", "ETag", "RateLimit", "RateLimit-Policy", "Server-Timing")
BODY_HEADERS: dict[Any, tuple[str, ...]] = {PROBE: (), Changes: ("RateLimit", "RateLimit-Policy", "Server-Timing")}
PROBLEM_HEADERS = {
    401: ("WWW-Authenticate",),
    405: ("Allow",),
    429: ("RateLimit", "RateLimit-Policy", "Retry-After"),
    503: ("Retry-After",),
}  # besides X-Request-Id
HEADERS = {
    "Age": "Seconds since the newest point of the window was fetched.",
    "Allow": "The allowed methods.",
    "Cache-Status": "Whether the response is from the cache (RFC 9211).",
    "ETag": "A weak entity tag of the data, whenever it was fetched. With `If-None-Match`, the same data is 304.",
    "Link": "The next page, if there is one.",
    "RateLimit": "The remaining requests, and the seconds until the full limit is available again.",
    "RateLimit-Policy": "The rate limit of this consumer, if it has one.",
    "Retry-After": "Seconds to wait before the next attempt.",
    "Server-Timing": "Milliseconds to read the cache, and to write the response.",
    "WWW-Authenticate": "The scheme, and the error `invalid_token` if a credential was sent (RFC 6750).",
    "X-Request-Id": "The id of the request, which the log has too.",
}
INTEGER_HEADERS = {"Age": "integer", "Retry-After": "integer"}
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
LINK_SCHEME = {
    "type": "apiKey",
    "in": "query",
    "name": "access",
    "description": "The credential in the `url` that the change feed returns with `link=true`.",
}
FIRST_CALL = {
    "description": "Get one of the calls.",
    "operationId": "getClientCall",
    "parameters": {"code": "$response.body#/data/0/clientCode", "call_id": "$response.body#/data/0/id"},
}
GROUP = "GroupValues"  # the schema of the values of dimensions
GROUP_TEXT = "The value of each dimension of `groupBy`, and no other property. A value is null if the calls have none."
CODE = ValueType({"type": "string", "pattern": f"^{CODE_PATTERN}$"})
CALL_ID = ValueType({"type": "string", "minLength": 1, "maxLength": 200})
TOKEN = ValueType({"type": "string", "pattern": "^[A-Za-z0-9_-]+$", "maxLength": 1000})
PART_TEXT = "The requested part of the recording (RFC 9110), if the Callbutton server supports ranges."
PATH_PARAMETERS = (
    Parameter("code", CODE, "", "The client code, often its toll-free number.", "8005550100"),
    Parameter("call_id", CALL_ID, "", "The `id` of the call.", "498200007"),
    Parameter("token", TOKEN, "", "The last segment of the `recordingUrl` of a call."),
)
RANGE_HEADER = Parameter("Range", ValueType({"type": "string"}), "", PART_TEXT, "bytes=0-65535")
RECORDING_TEXT = (
    "`Content-Type` is the type of the audio; `application/octet-stream` is for generators that do not know `audio/*`."
)


def build(handlers: Iterable[HTTPRouteHandler], extras: ExtraFields) -> dict[str, Any]:
    """Build the document of the handlers in the schema, with the promoted extra fields.

    The option `kind` of a handler names its entry in `ROUTES`.
    """
    paths = {}
    for handler in handlers:
        if handler.include_in_schema is not False:
            (template,) = handler.paths
            path = template.replace(":str}", "}")
            paths[path] = {"get": _operation(handler, path, extras)}
    schemas = _schemas(
        [route.body for route in ROUTES.values() if route.body is not bytes] + [FeedAddress, problems.Problem],
        extras,
    )
    located = [("path", one) for one in PATH_PARAMETERS] + [
        ("query", one) for one in (query.CLIENT, *query.all_parameters(extras))
    ]
    parameters = {_parameter_name(one): _parameter(place, one, schemas) for place, one in located}
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
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "parameters": parameters,
            "responses": _responses(schemas, extras),
            "headers": {
                name: {"description": text, "schema": _bounded({"type": INTEGER_HEADERS.get(name, "string")})}
                for name, text in HEADERS.items()
            },
            "securitySchemes": {**SCHEMES, "link": LINK_SCHEME},
        },
    }


def example_of(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> Any:  # noqa: ANN401 - any JSON
    """An example value of a schema, built from the examples of its fields. Raises ValueError if a field has none."""
    match schema:
        case {"examples": [example, *_]} | {"enum": [example, *_]} | {"const": example}:
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


def _reference(section: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/components/{section}/{name}"}


def _operation(handler: HTTPRouteHandler, path: str, extras: ExtraFields) -> dict[str, Any]:
    kind = handler.opt["kind"]
    route = ROUTES[kind]
    parameters = [parameter for parameter in PATH_PARAMETERS if f"{{{parameter.name}}}" in path]
    several_clients = kind in query.CLIENT.routes.split() and not parameters
    parameters += [*([query.CLIENT] if several_clients else []), *query.parameters_of(kind, extras)]
    responses = {"200": _success_name(kind)} | {str(status): _problem_name(status) for status in sorted(route.problems)}
    operation: dict[str, Any] = {
        "tags": [route.tag],
        "summary": handler.summary,
        "description": inspect.getdoc(handler.fn),
        "operationId": handler.operation_id,
        "parameters": [_reference("parameters", _parameter_name(parameter)) for parameter in parameters],
        "responses": {status: _reference("responses", name) for status, name in responses.items()},
    }
    if kind == "recording":
        operation["parameters"].append(_parameter("header", RANGE_HEADER, {}))
        operation["responses"]["206"] = _reference("responses", _success_name("part"))
    if kind in ("recording", "probe"):  # a recording link is a credential; probes are open
        operation["security"] = []
    if kind == "changes":
        operation["security"] = [{name: []} for name in (*SCHEMES, "link")]
    return operation


def _parameter_name(parameter: Parameter) -> str:
    """The name of a parameter's component, from which some generators make a type."""
    return "".join(
        word[:1].upper() + word[1:] for word in (*(parameter.component or parameter.name).split("_"), "parameter")
    )


def _parameter(place: str, parameter: Parameter, schemas: dict[str, Any]) -> dict[str, Any]:
    """A parameter. Adds its enum to `schemas`."""
    required, example = place == "path" or parameter is query.CLIENT, parameter.example
    # In the text, the example of an optional parameter is not sent by reference pages.
    text = "" if required or example is None else f" Example: `{example}`."
    schema = _named(parameter.kind.schema, f"A value of the parameter `{parameter.name}`.", schemas)
    described = {"name": parameter.name, "in": place, "required": required, "schema": schema}
    described |= {"description": parameter.description + text}
    described |= {"style": "form", "explode": parameter is query.CLIENT} if schema.get("type") == "array" else {}
    return described | ({"example": example} if required and example is not None else {})


def _named(schema: Mapping[str, Any], description: str, schemas: dict[str, Any]) -> dict[str, Any]:
    """A schema in which each enum is a reference to a component. Adds the component, if it is new."""
    if "title" in schema:
        schemas.setdefault(schema["title"], {**schema, "description": description})
        return _reference("schemas", schema["title"])
    return {**schema, "items": _named(schema["items"], description, schemas)} if "items" in schema else {**schema}


def _success_name(kind: str) -> str:
    return f"{kind.title()}Response"


def _responses(schemas: Mapping[str, Any], extras: ExtraFields) -> dict[str, Any]:
    routes = ROUTES | {"part": ROUTES["recording"]._replace(description="The requested part of the recording.")}
    statuses = sorted({status for route in routes.values() for status in route.problems})
    found = {_success_name(kind): _success(route, schemas, extras) for kind, route in routes.items()}
    return found | {_problem_name(status): _problem(status) for status in statuses}


def _success(route: Route, schemas: Mapping[str, Any], extras: ExtraFields) -> dict[str, Any]:
    """The response 200."""
    if route.body is bytes:
        media = {"schema": {"type": "string", "format": "binary"}}
        content = dict.fromkeys(("audio/*", "application/octet-stream"), media)
        return {"description": f"{route.description} {RECORDING_TEXT}", "headers": _headers(), "content": content}
    schema = msgspec.json.schema_components([route.body], ref_template="#/components/schemas/{name}")[0][0]
    example = example_of(schema, schemas)
    described: dict[str, Any] = {
        "description": route.description,
        "headers": _headers(*BODY_HEADERS.get(route.body, WINDOW_HEADERS)),
        "content": {"application/json": {"schema": schema, "example": example}},
    }
    if route.body is Changes:
        link = _reference("schemas", FeedAddress.__name__)
        described["content"][LINK_TYPE] = {"schema": link, "example": example_of(link, schemas)}
        described["content"] |= _feed_streams(example)
    if route.body in (CallPage, MissedPage):
        described["headers"] |= {"Link": _reference("headers", "Link")}
        described["content"] |= _streams(example, route.body, extras)
    if route.body is CallPage:
        described["links"] = {"call": FIRST_CALL}
    if route.body is CallSummary:
        described["content"] |= _texts(*_texts_of_summary(msgspec.convert(example, CallSummary)))
    return described


def _streams(page: Mapping[str, Any], body: Any, extras: ExtraFields) -> dict[str, Any]:  # noqa: ANN401 - a type
    """Examples of the streamed media types, from the example of a page."""
    row_type: type[msgspec.Struct] = extras.call_type if body is CallPage else MissedCaller
    rows = [msgspec.convert(row, row_type) for row in page["data"]]
    if body is MissedPage:
        calls = [msgspec.convert(row["lastCall"], extras.call_type) for row in page["data"]]
        rows = [msgspec.structs.replace(row, last_call=call) for row, call in zip(rows, calls, strict=True)]
    lines, table = Ndjson(), Csv(columns=columns_of(row_type, extras.call_type))
    ndjson = lines.rows(rows) + lines.end(msgspec.convert(page["meta"], AnswerMeta))
    return _texts(ndjson, table.begin() + table.rows(rows))


def _texts_of_summary(body: CallSummary) -> tuple[bytes, bytes]:
    group_by = list(body.data[0].group or ())
    table = finish(render_csv(body.data, group_by, compared=True))
    return finish(render_ndjson(body.data, body.total, body.meta)), table


def _texts(ndjson: bytes, csv: bytes) -> dict[str, Any]:
    """The media types that are not JSON, with examples."""
    texts = {"application/x-ndjson": ndjson, "text/csv": csv}
    return {name: {"schema": {"type": "string"}, "example": text.decode()} for name, text in texts.items()}


def _feed_streams(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Examples of the streamed media types of the change feed, from the example of its JSON."""
    rest = {name: part for name, part in answer.items() if name != "data"}
    events = [*answer["data"], {"op": "up-to-date"} | rest]
    texts = {
        "application/x-ndjson": "".join(f"{_json(line)}\n" for line in (*answer["data"], rest)),
        "text/event-stream": "".join(f"event: {event['op']}\ndata: {_json(event)}\n\n" for event in events),
    }
    return {name: {"schema": {"type": "string"}, "example": text} for name, text in texts.items()}


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _problem_name(status: int) -> str:
    return HTTPStatus(status).phrase.replace(" ", "")


def _problem(status: int) -> dict[str, Any]:
    """The response of a status code, with an example of each of its types of problem."""
    kinds = [kind for kind in problems.BY_NAME.values() if kind.status == status]
    faults = (ParameterFault("limit", f"is not a whole number from 1 to {query.MAX_LIMIT}"),) if status == 400 else ()
    examples = {
        kind.name: {"value": msgspec.json.decode(problems.render_problem(kind, "/calls", "5f0c1d", "", faults))}
        for kind in kinds
    }
    content = {"schema": _reference("schemas", "Problem"), "examples": examples}
    return {
        "description": " Or: ".join(f"{kind.title}. {kind.hint}" for kind in kinds),
        "headers": _headers(*PROBLEM_HEADERS.get(status, ())),
        "content": {problems.MEDIA_TYPE: content},
    }


def _headers(*names: str) -> dict[str, Any]:
    return {name: _reference("headers", name) for name in sorted((*names, "X-Request-Id"))}


def _schemas(bodies: list[Any], extras: ExtraFields) -> dict[str, Any]:
    """The schemas of response bodies and of every type that they refer to, by name."""
    _, schemas = msgspec.json.schema_components(bodies, ref_template="#/components/schemas/{name}")
    for call_type in (extras.call_type, feed_call_type(extras.call_type)) if extras.fields else ():
        schemas |= msgspec.json.schema_components([call_type], ref_template="#/components/schemas/{name}")[1]
    for schema in schemas.values():
        schema["description"] = " ".join(inspect.cleandoc(schema["description"]).partition("\n\n")[0].split())
        if "enum" in schema:
            schema["type"] = "string"
        for name, field in schema.get("properties", {}).items():
            if "enum" in field:  # the tag of one of several types
                field["description"] = "What to do."
            arms = [_bounded(arm) for arm in field.pop("anyOf", [])]
            if "anyOf" in field.get("items", {}):
                field["items"]["oneOf"] = field["items"].pop("anyOf")
            if arms and ("$ref" in arms[0] or "items" in arms[0]):
                field["oneOf"] = arms
            elif arms:
                field |= arms[0] | {"type": [arm["type"] for arm in arms]}
            schema["properties"][name] = _bounded(field)
    values = {name: _bounded(dimension.schema) for name, dimension in dimensions_of(extras).items()}
    schemas[GROUP] = {"type": "object", "description": GROUP_TEXT, "properties": values}
    row = schemas[SummaryRow.__name__]["properties"]
    row["group"] = {
        "description": row["group"]["description"],
        "oneOf": [_reference("schemas", GROUP), {"type": "null"}],
    }
    return schemas


def _bounded(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema with the format and limits of numbers, which are counts, seconds or status codes."""
    if len(schema.get("enum", ())) == 1:
        schema |= {"type": "string", "const": schema.pop("enum")[0]}
    match schema.get("type"):
        case "integer":
            return schema | ({"format": "int32", "minimum": 0, "maximum": MAX_INTEGER} | schema)
        case "number":
            return schema | {"format": "double", "minimum": 0}
    return schema
