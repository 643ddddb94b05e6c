"""Reads the request headers that are lists, and chooses the media type and coding that a request prefers. Pure.

Rule: a header is read here from its combined value (RFC 9110, sections 5.3 and 12), so its lines cannot disagree.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

Headers = list[tuple[bytes, bytes]]
QUOTED = r'"(?:\\.|[^"\\])*+"?'  # a quoted string, which may contain the separators
ELEMENT = re.compile(rf'(?:[^,"]++|{QUOTED})+')  # of a list
PART = re.compile(rf'(?:[^;"]++|{QUOTED})+')  # of an element: its name or a parameter


def split_list(header: str) -> list[str]:
    """The elements of a header that is a list, without empty ones (RFC 9110, section 5.6.1)."""
    elements = ELEMENT.findall(header) if '"' in header else header.split(",")
    return [stripped for element in elements if (stripped := element.strip())]


def parse_weights(header: str) -> list[tuple[str, float]]:
    """Parse a header such as `text/csv, */*;q=0.5` to names and weights. An invalid weight is 0."""
    found = []
    for element in split_list(header):
        name, *parameters = [part.strip() for part in PART.findall(element)] or [""]
        weight = 1.0
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip().lower() == "q":
                weight = _weight(value.strip())
        if name:
            found.append((name.lower(), weight))
    return found


def parse_directives(header: str) -> set[str]:
    """The names of the directives in `Cache-Control`, in lower case and without their arguments."""
    return {element.partition("=")[0].strip().lower() for element in split_list(header)}


def negotiate_media_type(accept: str, offered: Mapping[str, str]) -> str | None:
    """The value of the media type that `Accept` prefers, the first offered among equals; None if it allows none."""
    weights = parse_weights(accept) or [("*/*", 1.0)]
    best, best_weight = None, 0.0
    for offer, choice in offered.items():
        names = ("*/*", f"{offer.partition('/')[0]}/*", offer)
        matching = [(names.index(name), weight) for name, weight in weights if name in names]
        weight = max(matching)[1] if matching else 0.0  # the most specific name decides
        if weight > best_weight:
            best, best_weight = choice, weight
    return best


def negotiate_coding(accept_encoding: str, offered: Sequence[str]) -> str | None:
    """The coding that `Accept-Encoding` prefers, the first offered among equals; None for no compression."""
    weights = dict(parse_weights(accept_encoding))
    default, identity = weights.get("*", 0.0), weights.get("identity", 0.0)
    best, best_weight = None, 0.0
    for offer in offered:
        weight = weights.get(offer, default)
        if weight > best_weight and weight >= identity:
            best, best_weight = offer, weight
    return best


def with_vary(headers: Headers, name: str) -> Headers:
    """Add the name of a request header to `Vary`, unless it is there."""
    found = b", ".join(value for key, value in headers if key.lower() == b"vary")
    names = {one.strip().lower() for one in found.decode("latin-1").split(",")}
    if name.lower() in names:
        return headers
    kept = [(key, value) for key, value in headers if key.lower() != b"vary"]
    return [*kept, (b"vary", found + b", " * bool(found) + name.encode("ascii"))]


def _weight(text: str) -> float:
    try:
        return min(1.0, max(0.0, float(text)))
    except ValueError:
        return 0.0
