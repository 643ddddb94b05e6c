"""Bytes of a reply to text that an XML 1.0 parser accepts. Nothing here knows the protocol.

Rules:
- The charset is, in this order: the byte order mark, the header's charset, the declaration's, UTF-8.
- Bytes that the charset cannot explain are read as windows-1252; so are bodies that claim ISO-8859-1. The five bytes
  that windows-1252 leaves undefined become the C1 controls of the same number, as in browsers. So U+FFFD is never
  invented.
- White space before the declaration is removed, and so are byte order marks before the root and at the end.
- Characters that XML 1.0 forbids are removed, and so are references to them. Two references to the halves of a
  surrogate pair, or the six bytes of CESU-8, become the one character that they mean.
- An ampersand that begins no reference is an ampersand, unless a start tag follows it: then it is in no value. A named
  reference of HTML is its character. A reference with any other name stays, and is an error.
- CDATA sections, comments and processing instructions have no references, so nothing in them is repaired as one.
- Every repair is counted by name. The text is the same wherever the body is cut into pieces.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter
from html.entities import html5

MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
LATIN = {"iso8859-1", "cp1252", "latin-1"}  # read as windows-1252
SUPERSETS = {"utf-8", "ascii"}  # read as UTF-8
KNOWN = {
    *(f"iso8859-{part}" for part in (2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 14, 15, 16)),
    *(f"cp{page}" for page in (437, 850, 932, 949, 950, 1250, 1251, 1253, 1254, 1255, 1256, 1257, 1258)),
    *("koi8-r", "koi8-u", "mac-roman", "gbk", "gb2312", "gb18030", "big5", "shift_jis", "euc_jp", "euc_kr"),
}
DECLARED = re.compile(rb"""\s*<\?xml[^>]{0,200}?\sencoding\s*=\s*["']([A-Za-z0-9._-]{1,40})["']""")
UNMARKED = {b"<\0": "utf-16-le", b"\0<": "utf-16-be"}  # the start of UTF-16 without a byte order mark
PROLOG_SIZE = 1024  # characters in which byte order marks before the root are found
PROLOG = re.compile(r"(?:<\?[^>]*>|<!--[^>]*-->|[ \t\r\n\ufeff])*")
DECLARATION = re.compile(r"<\?xml[^<>&]*\?>")
SPACE = " \t\r\n\ufeff"
MARK = "\ufeff"
END_MARKS = r"\ufeff[ \t\r\n\ufeff]{0,63}"  # at the end of a reply
ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]+")
CONTROLS = bytes(code for code in range(32) if code not in b"\t\n\r")
UNUSUAL = re.compile(rb"\xed[\xa0-\xbf]|\xef\xbf[\xbe\xbf]")  # surrogates, U+FFFE, U+FFFF
REFERENCE = re.compile(  # none of the five that XML knows
    "&(?!(?:amp|lt|gt|quot|apos);)"
    r"(?:#(?:[xX]([0-9A-Fa-f]{1,30})|([0-9]{1,30}));|([A-Za-z][A-Za-z0-9]{0,31};)|(?!<[\w:]))"
)
REMOVED = "\0"  # in place of an illegal reference, so that it separates surrogates
SURROGATES = re.compile(f"[\ud800-\udbff][\udc00-\udfff]|[{REMOVED}\ud800-\udfff]")
CESU = re.compile(rb"\xed[\xa0-\xaf][\x80-\xbf]\xed[\xb0-\xbf][\x80-\xbf]")  # a surrogate pair, each half as UTF-8
CESU_TAIL = re.compile(rb"\xed(?:[\xa0-\xaf](?:[\x80-\xbf](?:\xed[\xb0-\xbf]?)?)?)?\Z")
CDATA_START, CDATA_END = "<![CDATA[", "]]>"
SECTIONS = {CDATA_START: CDATA_END, "<!--": "-->", "<?": "?>"}  # which have no references, with their ends
HIGH_SURROGATE = r"&#(?:[xX]0{0,26}[dD][89abAB][0-9A-Fa-f]{2}|0{0,25}(?:5529[6-9]|55[3-9]\d\d|56[0-2]\d\d|563[01]\d));"
UNFINISHED = (
    r"&(?:#(?:[xX]?[0-9A-Fa-f]{0,30})|[A-Za-z][A-Za-z0-9]{0,31}|<)?"
    r"|<(?:\?|!(?:\[(?:C(?:D(?:A(?:TA?)?)?)?)?|-{1,2})?)?|\]{1,2}|(?<!<!)(?<!<!-)-{1,2}|\?"
)
TAIL = re.compile(rf"(?:{HIGH_SURROGATE})?(?:{UNFINISHED}|{END_MARKS})?\Z")  # text that the next piece may complete
END = re.compile(END_MARKS + r"\Z")
TAIL_SIZE = 80  # characters; more than the longest tail
HEAD_SIZE = 512  # bytes that decide the charset
WINDOWS = bytes(range(256)).decode("cp1252", errors="replace")
WINDOWS = "".join(chr(code) if char == "\ufffd" else char for code, char in enumerate(WINDOWS))


def charset_of(head: bytes, header: str | None, repairs: Counter[str]) -> tuple[str, int]:
    """The codec of a body that begins with `head`, and the length of its byte order mark."""
    for mark, codec in MARKS:
        if head.startswith(mark):
            return codec, len(mark)
    if head.lstrip().startswith(codecs.BOM_UTF8):
        return "utf-8", 0
    if unmarked := UNMARKED.get(head[:2]):
        return unmarked, 0
    declared = DECLARED.match(head)
    for label in (header, declared[1].decode("ascii") if declared else None):
        if not label:
            continue
        try:
            codec = codecs.lookup(label.strip(" \"'")).name
        except (LookupError, ValueError):
            repairs["unknown_charset"] += 1
            continue
        if codec in LATIN:
            return "cp1252", 0
        if codec in SUPERSETS:
            return "utf-8", 0
        if codec in KNOWN:
            return codec, 0
        if codec.startswith("utf-16") and b"\0" in head[:4]:
            return ("utf-16-be" if head.startswith(b"\0") else "utf-16-le"), 0
        repairs["unknown_charset"] += 1
    return "utf-8", 0


class TextDecoder:
    """The text of one body, piece by piece.

    `repairs` counts repairs by name; `lines_removed` counts the line feeds that were removed before the declaration.
    """

    def __init__(self, header_charset: str | None = None) -> None:
        self.repairs: Counter[str] = Counter()
        self.lines_removed = 0
        self._header = header_charset
        self._head = b""
        self._decoder: codecs.IncrementalDecoder | None = None
        self._is_utf8 = False
        self._at_start = True
        self._bytes = b""  # the end of the last piece, which may be the start of CESU-8
        self._held = ""  # the end of the last piece, which the next piece may complete
        self._section_end = ""  # of the section that the next piece begins in
        codecs.register_error("callbutton-windows-1252", _as_windows)

    def decode(self, data: bytes, *, last: bool = False) -> str:
        """The text that is certain after these bytes."""
        if self._decoder is None:
            self._head += data
            if len(self._head) < HEAD_SIZE and not last:
                return ""
            codec, skip = charset_of(self._head[:HEAD_SIZE], self._header, self.repairs)
            self._is_utf8 = codec == "utf-8"
            self._decoder = codecs.getincrementaldecoder(codec)("callbutton-windows-1252")
            data, self._head = self._head[skip:], b""
        if self._is_utf8 and (self._bytes or b"\xed" in data):
            data, self._bytes = self._bytes + data, b""
            if not last and (unfinished := CESU_TAIL.search(data, max(0, len(data) - 5))):
                data, self._bytes = data[: unfinished.start()], unfinished[0]
            data = CESU.sub(self._repair_pair, data)
        _decoding.append(self.repairs)
        try:
            text = self._decoder.decode(data, last)
        finally:
            _decoding.pop()
        if not _is_legal(text):
            text = ILLEGAL.sub(self._remove, text)
        text, self._held = self._held + text, ""
        if self._at_start:
            text = self._trim_start(text)
            if len(text) < PROLOG_SIZE and not last:
                self._held = text
                return ""
            self._at_start = False
            text = PROLOG.sub(self._remove_marks, text[:PROLOG_SIZE], 1) + text[PROLOG_SIZE:]
        if last:
            text = END.sub(self._remove_marks, text)
        elif tail := TAIL.search(text, max(0, len(text) - TAIL_SIZE)):
            text, self._held = text[: tail.start()], tail[0]
        return self._repair_references(text)

    def _trim_start(self, text: str) -> str:
        trimmed = text.lstrip(SPACE)
        if removed := text[: len(text) - len(trimmed)]:
            self.lines_removed += removed.count("\n")
            if spaces := len(removed.replace(MARK, "")):
                self.repairs["leading_space"] += spaces
            if marks := removed.count(MARK):
                self.repairs["byte_order_mark"] += marks
        return trimmed

    def _repair_references(self, text: str) -> str:
        """Repair references outside sections, and note the section in which the text ends."""
        if not self._section_end and "&" not in text and "!" not in text and "<?" not in text:
            return text  # a single character is found many times faster than several
        if not self._section_end and (declaration := DECLARATION.match(text)):  # the only section of most replies
            return declaration[0] + self._repair_references(text[declaration.end() :])
        if self._section_end in ("", CDATA_END) and "<!--" not in text and "<?" not in text:
            chunks = text.split(CDATA_START)
            outside = [chunk.partition(CDATA_END)[2] for chunk in chunks]
            outside[0] = outside[0] if self._section_end else chunks[0]
            if not any("&" in chunk and REFERENCE.search(chunk) for chunk in outside):
                begun = len(chunks) > 1 or self._section_end
                self._section_end = CDATA_END if begun and CDATA_END not in chunks[-1] else ""
                return text  # as almost every reply, seven times faster than below
        pieces, place = [], 0
        starts = {start: at for start in SECTIONS if start[1] in text and (at := text.find(start)) >= 0}
        while place < len(text):
            if self._section_end:
                end = text.find(self._section_end, place)
                after = len(text) if end < 0 else end + len(self._section_end)
                pieces.append(text[place:after])
                self._section_end = self._section_end if end < 0 else ""
            else:
                after = len(text)
                for start, at in starts.items():
                    if 0 <= at < place:
                        starts[start] = at = text.find(start, place)
                    if 0 <= at < after:
                        after, self._section_end = at, SECTIONS[start]
                piece = text[place:after]
                pieces.append(self._repair_piece(piece) if "&" in piece else piece)
            place = after
        return "".join(pieces)

    def _repair_piece(self, text: str) -> str:
        removed = self.repairs["illegal_character"]
        text = REFERENCE.sub(self._repair_reference, text)
        return text if self.repairs["illegal_character"] == removed else SURROGATES.sub(_join_surrogates, text)

    def _remove_marks(self, match: re.Match[str]) -> str:
        if marks := match[0].count(MARK):
            self.repairs["byte_order_mark"] += marks
        return match[0].replace(MARK, "")

    def _repair_pair(self, match: re.Match[bytes]) -> bytes:
        self.repairs["cesu_8"] += 1
        return match[0].decode("utf-8", "surrogatepass").encode("utf-16", "surrogatepass").decode("utf-16").encode()

    def _remove(self, match: re.Match[str]) -> str:
        self.repairs["illegal_character"] += len(match[0])
        return ""

    def _repair_reference(self, match: re.Match[str]) -> str:
        hexadecimal, decimal, name = match.groups()
        if name is not None:
            if name not in html5:
                return match[0]
            self.repairs["html_reference"] += 1
            return "".join(f"&#{ord(character)};" for character in html5[name])
        if hexadecimal is None and decimal is None:
            self.repairs["bare_ampersand"] += 1
            return "&amp;"
        code = int(decimal) if hexadecimal is None else int(hexadecimal, 16)
        if code <= 0x10FFFF and not ILLEGAL.match(chr(code)):
            return match[0].lower()
        self.repairs["illegal_character"] += 1
        return chr(code) if 0xD800 <= code <= 0xDFFF else REMOVED


def _join_surrogates(match: re.Match[str]) -> str:
    return match[0].replace(REMOVED, "").encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")


def _is_legal(text: str) -> bool:
    """Tell, many times faster than a regular expression, that every character is one of XML 1.0."""
    raw = text.encode("utf-8", "surrogatepass")
    if any(map(raw.__contains__, CONTROLS)):
        return False
    return len(raw) == len(text) or not UNUSUAL.search(raw)


_decoding: list[Counter[str]] = []  # whose repairs the error handler counts; decoding never awaits


def _as_windows(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    repairs = _decoding[-1]
    repairs["windows_1252"] += error.end - error.start
    return "".join(WINDOWS[byte] for byte in error.object[error.start : error.end]), error.end
