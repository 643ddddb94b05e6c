"""The evidence of the conformance report, which xmltodict reads, agrees with the calls that the gateway reads."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.replies import LAYOUTS, reply
from benchmarks.support import parse_reply
from gateway.callbutton.conformance.evidence import parse_evidence
from gateway.errors import UpstreamError, UpstreamMalformed
from tests.support.behaviours import failure
from tests.support.paths import DATA

REPLIES = [*(reply(layout, 3) for layout in LAYOUTS), (DATA / "samples" / "reply.xml").read_bytes()]
PIECES = [
    b"<Call ID='1'>text</Call>",
    b"<Call/>",
    b"<CallDetails/>",
    b"<CallDetails>text</CallDetails>",
    b"<Client/>",
    b"<Client>text</Client>",
    b"<Client><CallDetails><Call>text</Call></CallDetails></Client>",
    b"<Address/>",
    b"<Address>text</Address>",
    b"<Address><City><a/></City></Address>",
    b"<StartTime/>",
    b"<StartTime>13/45/2026 99:99:99</StartTime>",
    b"<Duration>" + b"9" * 5000 + b"</Duration>",
    b"<x:y xmlns:x='urn:x' x:z='1'/>",
    b"<![CDATA[ <b> ]]>",
    b"<!-- comment --><?target text?>",
    b"text &nbsp; & \xe9",
]


def ids(body: bytes) -> set[str]:
    return {record.id for record in parse_evidence(body, None).records}


@pytest.mark.parametrize("body", REPLIES, ids=[*LAYOUTS, "sample"])
def test_the_evidence_has_the_calls_that_the_gateway_reads(body: bytes):
    evidence, read = parse_evidence(body, None), parse_reply(body)
    assert evidence.verdict == "OK"
    assert {code: [(one.id, one.start) for one in records] for code, records in evidence.by_code().items()} == {
        code: [(call.id, call.start_time) for call in calls] for code, calls in read.calls.items()
    }


@given(
    body=st.sampled_from(REPLIES),
    pieces=st.lists(st.tuples(st.integers(0, 10_000), st.sampled_from(PIECES)), max_size=3),
)
def test_every_reply_that_the_gateway_reads_is_evidence(body: bytes, pieces: Sequence[tuple[int, bytes]]):
    for place, piece in pieces:
        tags = [tag.start() for tag in re.finditer(b"<[A-Za-z/]", body)]
        at = tags[place % len(tags)]
        body = body[:at] + piece + body[at:]
    try:
        read = {call.id for calls in parse_reply(body).calls.values() for call in calls}
    except UpstreamMalformed:
        return
    assert ids(body) == read


@pytest.mark.parametrize("element", ["GetCallDetailResponse", "GetCallDetailsResponse"])
@pytest.mark.parametrize("status", ["ERROR", "UNAUTHORIZED"])
def test_a_failure_is_evidence_with_its_message(status: str, element: str):
    body = failure(status, "Connection\n time out", element=element).encode()
    with pytest.raises(UpstreamError):
        parse_reply(body)
    evidence = parse_evidence(body, None)
    assert (evidence.response, evidence.verdict, evidence.message) == (element, status, "Connection time out")
    assert evidence.clients == []


def test_a_body_that_is_no_xml_is_refused():
    with pytest.raises(ValueError, match="is not XML"):
        parse_evidence(b"<html><p>", None)
