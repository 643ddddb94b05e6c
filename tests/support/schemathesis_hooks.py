"""Schemathesis hooks with the constraints between parameters that the OpenAPI document cannot express.

Positive cases are adjusted to satisfy the constraints; negative cases are left unchanged. Those that the gateway
accepts on purpose are left out: empty values, the numbers that some clients send as booleans, and `fields`.
"""

from __future__ import annotations

from typing import Any

import schemathesis
from schemathesis.generation import GenerationMode

from gateway.formats import FIELDS

READ_WHOLE = (
    "/calls/summary",
    "/clients/{code}/calls/summary",
    "/calls/missed",
    "/clients/{code}/calls/missed",
    "/clients",
)
STARTS = (
    "2026-10-30",
    "2026-10-31T10:00",
    "2026-11-01T00:30:00-05:00",
    "2026-11-01t06:30:00z",
    "2026-11-01 00:00:00.5Z",
)
ENDS = ("2026-11-02", "2026-11-02T00:00:00Z", "2026-11-04T12:00+05:30", "2026-11-20T00:00:00.001Z")
ZONES = ("UTC", "America/Chicago", "Asia/Kathmandu", "Pacific/Apia")


@schemathesis.hook
def filter_case(context: Any, case: Any) -> bool:  # noqa: ARG001 - the signature of the hook
    negative = case.meta is not None and case.meta.generation.mode == GenerationMode.NEGATIVE
    return not (negative and case.query and is_accepted_on_purpose(dict(case.query)))


def is_accepted_on_purpose(query: dict[str, Any]) -> bool:
    """Whether a query has a value that the schema cannot describe and the gateway understands."""
    booleans = [str(query[name]).lower() for name in ("recorded", "link", "reached") if name in query]
    given = query.get("fields") or ["none"]
    fields = ",".join([given] if isinstance(given, str) else map(str, given)).split(",")
    return (
        any(text in ("0", "1", "true", "false") for text in booleans)
        or any(value in ("", [], [""]) for value in query.values())
        or {*fields, ""} <= {*FIELDS, ""}  # with fewer, a call lacks fields that its schema requires
    )


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: Any) -> None:  # noqa: ARG001 - the signature of the hook
    if case.meta is not None and case.meta.generation.mode == GenerationMode.POSITIVE and case.query is not None:
        case.query = fitting(dict(case.query), case.path)


def fitting(query: dict[str, Any], path: str) -> dict[str, Any]:
    """Replace other text with valid dates and zones; keep one of several mutually exclusive parameters."""
    if len(str(query.get("cursor", ""))) > 100:  # of an earlier page
        return {"cursor": query["cursor"]} | {name: query[name] for name in ("client",) if name in query}
    query.pop("cursor", None)
    query.pop("since", None)  # a token belongs to one feed
    for name, texts in (("start", STARTS), ("end", ENDS), ("tz", ZONES)):
        if name in query:
            query[name] = texts[len(str(query[name])) % len(texts)]
    if "range" in query:
        query.pop("start", None)
        query.pop("end", None)
    elif path in READ_WHOLE:
        query |= {"start": query.get("start", STARTS[0]), "end": query.get("end", ENDS[0])}
    for name, form in (("limit", "json"), ("dialect", "csv"), ("meta", "ndjson")):
        if query.get("format", "json") != form:
            query.pop(name, None)
    if query.get("groupBy", "") in ("", [], [""]):
        query.pop("top", None)
    if "*" in query.get("client", ()):
        query["client"] = ["*"]
    if "fields" in query:  # with fewer, a call lacks fields that its schema requires
        query["fields"] = ",".join(name for name in FIELDS if "." not in name)
    return query
