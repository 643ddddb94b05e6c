"""Check accepted replies: the decoded text must be well-formed XML according to expat."""

from __future__ import annotations

from typing import NamedTuple
from xml.etree.ElementTree import ParseError, XMLParser

from gateway.callbutton.reply import Reply, ReplyParser
from gateway.callbutton.text import TextDecoder
from gateway.errors import UpstreamError

HEAD = (
    b'<Callbutton version="B"><CallbuttonService><GetCallDetailsResponse status="OK"><Client><ClientCode>a</ClientCode>'
)
TAIL = b"</Client></GetCallDetailsResponse></CallbuttonService></Callbutton>"
BEFORE = b'<CallDetails><Call ID="1"><StartTime>01/02/2026 03:04:05</StartTime>'
AFTER = b'</Call><Call ID="2"><StartTime>01/02/2026 03:04:05</StartTime></Call></CallDetails>'
PIECE = 11  # bytes; cuts most markup
PIECES = 60  # at most; a long input is cut into longer pieces


class Mode(NamedTuple):
    """How an input is read: the markup around it, and the charset of the Content-Type header."""

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
    """Return whether the parser accepts a reply.

    Fails if it accepts XML that is not well-formed, if the result depends on the size of the pieces, or if it raises
    anything but an UpstreamError.
    """
    body = mode.before + data + mode.after
    whole, in_pieces = (read(body, mode.charset, size) for size in (len(body) + 1, max(PIECE, len(body) // PIECES)))
    assert whole == in_pieces, body
    assert whole is None or is_well_formed(body, mode.charset), body
    return whole is not None


def read(body: bytes, charset: str | None, size: int) -> Reply | None:
    """Parse a reply in pieces of `size` bytes. None if it is rejected."""
    parser = ReplyParser(status=True, charset=charset)
    try:
        for at in range(0, len(body), size):
            parser.feed(body[at : at + size])
        return parser.close()
    except UpstreamError:
        return None


def is_well_formed(body: bytes, charset: str | None = None) -> bool:
    """Return whether expat accepts the text, stripped of surrounding white space."""
    decoder = TextDecoder(charset)
    text = (decoder.decode(body) + decoder.decode(b"", last=True)).strip(" \t\r\n")
    parser = XMLParser()
    try:
        parser.feed(text)
        parser.close()
    except ParseError:
        return False
    return True
