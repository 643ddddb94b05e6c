"""Content negotiation (RFC 9110, section 12): the best of the forms on offer, by the weights of the request. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Headers = list[tuple[bytes, bytes]]


def parse_weights(header: str) -> list[tuple[str, float]]:
    """Parse a list of names with weights; a weight that cannot be parsed is 0."""
    found = []
    for part in header.split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        weight = 1.0
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip().lower() == "q":
                weight = _weight(value.strip())
        if name:
            found.append((name.lower(), weight))
    return found


def negotiate_media_type(accept: str, offered: Mapping[str, str]) -> str | None:
    """Choose among offered media types, best first, by `Accept`; None if none is acceptable."""
    asked = parse_weights(accept) or [("*/*", 1.0)]
    best, most = None, 0.0
    for offer, choice in offered.items():
        names = ("*/*", f"{offer.partition('/')[0]}/*", offer)
        fitting = [(names.index(name), weight) for name, weight in asked if name in names]
        weight = max(fitting)[1] if fitting else 0.0  # the most specific counts
        if weight > most:
            best, most = choice, weight
    return best


def negotiate_coding(accept_encoding: str, offered: Sequence[str]) -> str | None:
    """Choose among offered codings, best first, by `Accept-Encoding`; None is the identity."""
    asked = dict(parse_weights(accept_encoding))
    every = asked.get("*", 0.0)
    identity = asked.get("identity", 0.0)
    best, most = None, 0.0
    for offer in offered:
        weight = asked.get(offer, every)
        if weight > most and weight >= identity:
            best, most = offer, weight
    return best


def with_vary(headers: Headers, name: str) -> Headers:
    """The headers of a response, with the name of a request header once in `Vary`."""
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
