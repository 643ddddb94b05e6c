"""The judge of accepted replies: their text, with its encoding repaired, is well-formed by a parser of expat alone."""

from __future__ import annotations

from typing import NamedTuple
from xml.etree.ElementTree import ParseError, XMLParser

from gateway.callbutton.reply import parse_reply
from gateway.callbutton.text import TextDecoder
from gateway.errors import UpstreamError

HEAD = (
    b'<Callbutton version="B"><CallbuttonService><GetCallDetailsResponse status="OK"><Client><ClientCode>a</ClientCode>'
)
TAIL = b"</Client></GetCallDetailsResponse></CallbuttonService></Callbutton>"
BEFORE = b'<CallDetails><Call ID="1"><StartTime>01/02/2026 03:04:05</StartTime>'
AFTER = b'</Call><Call ID="2"><StartTime>01/02/2026 03:04:05</StartTime></Call></CallDetails>'


class Mode(NamedTuple):
    """How an input is read: as a body, or within one, with a header's charset."""

    before: bytes
    after: bytes
    charset: str | None


MODES = (
    Mode(b"", b"", None),
    Mode(HEAD + BEFORE, AFTER + TAIL, None),
    Mode(HEAD, TAIL, "iso-8859-1"),
    Mode(b"", b"", "utf-16"),
)


def judge(data: bytes, mode: Mode = MODES[0]) -> bool:
    """Tell whether a reply is accepted; fails if it should not be, or if anything but UpstreamError is raised."""
    body = mode.before + data + mode.after
    try:
        parse_reply(body, charset=mode.charset)
    except UpstreamError:
        return False
    assert is_well_formed(body, mode.charset), body
    return True


def is_well_formed(body: bytes, charset: str | None = None) -> bool:
    """Tell whether expat accepts the text without the white space around it."""
    decoder = TextDecoder(charset)
    text = (decoder.decode(body) + decoder.decode(b"", last=True)).strip(" \t\r\n")
    parser = XMLParser()
    try:
        parser.feed(text)
        parser.close()
    except ParseError:
        return False
    return True
