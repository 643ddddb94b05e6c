"""Bytes of a reply to text."""

import random
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.callbutton.text import TextDecoder
from gateway.metrics import REPAIRS

MARK = b"\xef\xbb\xbf"
DECLARATION = b"<?xml version='1.0'?>"
CHARSETS = {
    "windows-1252 amid UTF-8": ("<a>caf\xe9 ".encode("cp1252") + "é ’</a>".encode(), None, "<a>café é ’</a>"),
    "ISO-8859-1 is windows-1252": (b"<?xml version='1.0' encoding='ISO-8859-1'?>\x92\x81", None, "’\x81"),
    "the header before the declaration": (b"<?xml version='1.0' encoding='utf-8'?>\xe9", "windows-1251", "й"),
    "the mark before the header": (MARK + b"\xc3\xa9", "windows-1251", "é"),
    "an unknown charset": ("é".encode(), "utf-7", "é"),
    "illegal characters": (b"a\x00b\x1f&#0;&#x1F;&#65;", None, "ab&#65;"),
    "references in CDATA stay": (b"<![CDATA[&#0;]]>&#0;", None, "<![CDATA[&#0;]]>"),
    "references after brackets": (b"<![CDATA[]] &#0;]]]>]] &#0;]", None, "<![CDATA[]] &#0;]]]>]] ]"),
    "a character of two surrogate references": (b"&#55357;&#56832; &#xD83D;&#xde00;", None, "\U0001f600 \U0001f600"),
    "surrogate references that are no pair": (b"a&#56832;&#55357;b&#xD83D;", None, "ab"),
    "three surrogate references": (b"&#55357;&#55357;&#56832;", None, "\U0001f600"),
    "blank lines first": (b"\r\n \n<a/>", None, "<a/>"),
    "a mark after a blank line": (b"\r\n" + MARK + b"<a/>", None, "<a/>"),
    "a mark after a blank line, whatever the header": (b"\n" + MARK + "é".encode(), "iso-8859-1", "é"),
    "two marks": (MARK + MARK + b"<a/>", None, "<a/>"),
    "a mark before the root": (DECLARATION + b"\n" + MARK + b"<a/>", None, "\n<a/>"),
    "a mark in a value stays": (b"<a>" + MARK + b"</a>", None, "<a>\ufeff</a>"),
    "a mark after a comment": (
        DECLARATION + b"<!-- a -->\n" + MARK + b"\n" + MARK + b"<a/>",
        None,
        "<!-- a -->\n\n<a/>",
    ),
    "marks at the end": (b"<a/>" + MARK + b"\r\n" + MARK, None, "<a/>\r\n"),
    "an emoji in CESU-8": (b"<a>\xed\xa0\xbd\xed\xb8\x80</a>", None, "<a>\U0001f600</a>"),
    "half an emoji in CESU-8": (b"<a>Aqu\xed\xa0\xbb</a>", None, "<a>Aqu\xed\xa0\xbb</a>"),
    "UTF-16 without a mark": ("<a>\u20ac</a>".encode("utf-16-le"), "utf-8", "<a>\u20ac</a>"),
    "UTF-16 without a mark, the other byte first": ("<a>\u20ac</a>".encode("utf-16-be"), None, "<a>\u20ac</a>"),
    "a bare ampersand": (b"<a>R&D & B&B&</a>", None, "<a>R&amp;D &amp; B&amp;B&amp;</a>"),
    "a bare ampersand in an attribute": (b"<a b='R&D'/>", None, "<a b='R&amp;D'/>"),
    "half a reference": (
        b"<a>&#;&#x;&#xZ;&#65 &lt &;</a>",
        None,
        "<a>&amp;#;&amp;#x;&amp;#xZ;&amp;#65 &amp;lt &amp;;</a>",
    ),
    "a named reference of HTML": (b"<a>&nbsp;&eacute;&Eacute;</a>", None, "<a>&#160;&#233;&#201;</a>"),
    "a named reference to markup": (b"<a>&LT;&AMP;&rsqb;&nvlt;</a>", None, "<a>&#60;&#38;&#93;&#60;&#8402;</a>"),
    "an escaped reference stays": (b"<a>&amp;nbsp;&amp;&quot;&apos;</a>", None, "<a>&amp;nbsp;&amp;&quot;&apos;</a>"),
    "a reference with an unknown name stays": (b"<a>&foo;</a>", None, "<a>&foo;</a>"),
    "an ampersand before a start tag stays": (b"<a>&<b>&<!-- --></b></a>", None, "<a>&<b>&amp;<!-- --></b></a>"),
    "a reference with zeros or a capital X": (
        b"<a>&#00000000000065;&#X41;</a>",
        None,
        "<a>&#00000000000065;&#x41;</a>",
    ),
    "ampersands in sections stay": (
        b"<a>&<![CDATA[&<!--&]]>&<!--&<![CDATA[-->&<?b &?>&</a>",
        None,
        "<a>&amp;<![CDATA[&<!--&]]>&amp;<!--&<![CDATA[-->&amp;<?b &?>&amp;</a>",
    ),
    "UTF-16": ("<a>é</a>".encode("utf-16"), None, "<a>é</a>"),
}


@pytest.mark.parametrize(("data", "header", "expected"), CHARSETS.values(), ids=CHARSETS)
def test_bytes_become_text_however_they_are_cut(data: bytes, header: str | None, expected: str):
    for seed in range(20):
        draw, decoder, text, at = random.Random(seed), TextDecoder(header), "", 0
        while at < len(data):
            size = draw.randrange(1, 9)
            text += decoder.decode(data[at : at + size])
            at += size
        text += decoder.decode(b"", last=True)
        assert re.sub(r"\A<\?xml[^>]*>", "", text) == expected


def test_repairs_are_counted():
    decoder = TextDecoder("utf-8")
    decoder.decode(b"\xe9\x00&#1;&#55357;&#56832;", last=True)
    assert decoder.repairs == {"windows_1252": 1, "illegal_character": 4}
    decoder = TextDecoder("utf-8")
    decoder.decode(b"\r\n" + MARK + MARK + b"<a>&eacute;&nbsp;&B \xed\xa0\xbd\xed\xb8\x80</a>", last=True)
    assert decoder.repairs == {
        "leading_space": 2,
        "byte_order_mark": 2,
        "html_reference": 2,
        "bare_ampersand": 1,
        "cesu_8": 1,
    }
    assert decoder.repairs.keys() | {"windows_1252", "illegal_character", "unknown_charset"} == set(REPAIRS)


def test_the_first_mark_of_a_reply_is_no_repair():
    decoder = TextDecoder()
    assert decoder.decode(MARK + b"<a>&amp;</a>", last=True) == "<a>&amp;</a>"
    assert decoder.repairs == {}


def test_removed_lines_are_counted_so_that_places_in_errors_are_right():
    decoder = TextDecoder()
    decoder.decode(b"\r\n\n" + MARK + b"\n<a>\n</a>", last=True)
    assert decoder.lines_removed == 3


WORDS = (
    b"<![CDATA[ ]]> ] [ <!-- --> - <? ?> < > & ; &#0; &#65; &#X41; &amp; &nbsp; &eacute; nbsp; &foo; &#xD83D; &#xDE00; "
    b"&#5 5357; </a> a \xed\xa0\xbd \xed\xb8\x80 \xed \xa0 \xe9 " + MARK
)
PARTS = st.sampled_from([*WORDS.split(b" "), b" ", b"\n", b"&#" + b"0" * 20 + b"xD83D;"])


@given(
    st.one_of(
        st.binary(max_size=300), st.lists(PARTS, max_size=40).map(b"".join).map(lambda text: b"<x>" * 400 + text)
    ),
    st.integers(1, 20),
)
@settings(max_examples=300)
@example(MARK + b"<x>&" * 300 + b"<![CDATA[&eacute;", 7)
@example(b"x" * 520 + b"&#xD83D;&#0;&#xDE00;", 1)  # no pair: a reference stands between the surrogates
def test_no_bytes_are_lost_or_crash_and_no_replacement_is_invented(data: bytes, size: int):
    decoder = TextDecoder()
    whole = TextDecoder().decode(data, last=True)
    pieces = "".join(decoder.decode(data[at : at + size]) for at in range(0, len(data), size))
    assert pieces + decoder.decode(b"", last=True) == whole
    assert "\ufffd" not in whole or b"\xef\xbf\xbd" in data or data[:2] in (b"\xff\xfe", b"\xfe\xff")
