"""Bytes of a reply to text that an XML 1.0 parser accepts. Nothing here knows the protocol.

Rules:
- The charset is, in this order: the byte order mark, the header's charset, the declaration's, UTF-8.
- Bytes that the charset cannot explain are read as windows-1252; so are bodies that claim ISO-8859-1. The five bytes
  that windows-1252 leaves undefined become the C1 controls of the same number, as in browsers. So U+FFFD is never
  invented.
- White space and byte order marks before the declaration, and marks before the root, are removed.
- Characters that XML 1.0 forbids are removed, and so are references to them outside CDATA. Two references to the
  halves of a surrogate pair become the one character that they mean.
- Every repair is counted by name. The text is the same wherever the body is cut into pieces.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter

MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
LATIN = {"iso8859-1", "cp1252", "latin-1"}  # read as windows-1252
SUPERSETS = {"utf-8", "ascii"}  # read as UTF-8
KNOWN = {
    *(f"iso8859-{part}" for part in (2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 14, 15, 16)),
    *(f"cp{page}" for page in (437, 850, 932, 949, 950, 1250, 1251, 1253, 1254, 1255, 1256, 1257, 1258)),
    *("koi8-r", "koi8-u", "mac-roman", "gbk", "gb2312", "gb18030", "big5", "shift_jis", "euc_jp", "euc_kr"),
}
DECLARED = re.compile(rb"""\s*<\?xml[^>]{0,200}?\sencoding\s*=\s*["']([A-Za-z0-9._-]{1,40})["']""")
DECLARATION_SIZE = 256  # characters: the maximum size of an XML declaration
BEFORE_ROOT = re.compile(r"\A(<\?xml[^>]{0,200}>[ \t\r\n]{0,20})\ufeff+")
SPACE = " \t\r\n\ufeff"
ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]+")
CONTROLS = bytes(code for code in range(32) if code not in b"\t\n\r")
UNUSUAL = re.compile(rb"\xed[\xa0-\xbf]|\xef\xbf[\xbe\xbf]")  # surrogates, U+FFFE, U+FFFF
REFERENCE = re.compile("&#(?:x([0-9A-Fa-f]{1,8})|([0-9]{1,10}));")
REMOVED = "\0"  # in place of an illegal reference, so that it separates surrogates
SURROGATES = re.compile(f"[\ud800-\udbff][\udc00-\udfff]|[{REMOVED}\ud800-\udfff]")
CDATA_START, CDATA_END = "<![CDATA[", "]]>"
CDATA_MARK = re.compile(r"(<!\[CDATA\[|\]\]>)")
HIGH_SURROGATE = r"&#(?:x0*[dD][89abAB][0-9A-Fa-f]{2}|0*(?:5529[6-9]|55[3-9]\d\d|56[0-2]\d\d|563[01]\d));"
UNFINISHED = r"&(?:#x?[0-9A-Fa-f]{0,10})?|<(?:!(?:\[(?:C(?:D(?:A(?:TA?)?)?)?)?)?)?|\]{1,2}"
TAIL = re.compile(rf"(?:{HIGH_SURROGATE})?(?:{UNFINISHED})?\Z")  # markup that the next piece may complete
TAIL_SIZE = 32  # characters; more than the longest tail
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
        self._at_start = True
        self._held = ""  # the end of the last piece, where markup may be incomplete
        self._in_cdata = False
        codecs.register_error("callbutton-windows-1252", _as_windows)

    def decode(self, data: bytes, *, last: bool = False) -> str:
        """The text that is certain after these bytes."""
        if self._decoder is None:
            self._head += data
            if len(self._head) < HEAD_SIZE and not last:
                return ""
            codec, skip = charset_of(self._head[:HEAD_SIZE], self._header, self.repairs)
            self._decoder = codecs.getincrementaldecoder(codec)("callbutton-windows-1252")
            data, self._head = self._head[skip:], b""
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
            if len(text) < DECLARATION_SIZE and not last:
                self._held = text
                return ""
            self._at_start = False
            text = BEFORE_ROOT.sub(r"\1", text)
        if not last and (tail := TAIL.search(text, max(0, len(text) - TAIL_SIZE))):
            text, self._held = text[: tail.start()], text[tail.start() :]
        return self._repair_references(text)

    def _trim_start(self, text: str) -> str:
        trimmed = text.lstrip(SPACE)
        self.lines_removed += text.count("\n", 0, len(text) - len(trimmed))
        return trimmed

    def _repair_references(self, text: str) -> str:
        if "#" in text and "&#" in text:  # a single character is found many times faster
            pieces = CDATA_MARK.split(text)
            for place, piece in enumerate(pieces):
                if place % 2:
                    self._in_cdata = piece == CDATA_START
                elif not self._in_cdata and "&#" in piece:
                    pieces[place] = SURROGATES.sub(_join_surrogates, REFERENCE.sub(self._repair_reference, piece))
            return "".join(pieces)
        if "]" in text or "[" in text:
            starts, ends = text.rfind(CDATA_START), text.rfind(CDATA_END)
            self._in_cdata = starts > ends or (self._in_cdata and ends < 0)
        return text

    def _remove(self, match: re.Match[str]) -> str:
        self.repairs["illegal_character"] += len(match[0])
        return ""

    def _repair_reference(self, match: re.Match[str]) -> str:
        code = int(match[1], 16) if match[1] else int(match[2])
        if code <= 0x10FFFF and not ILLEGAL.match(chr(code)):
            return match[0]
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
    _decoding[-1]["windows_1252"] += error.end - error.start
    return "".join(WINDOWS[byte] for byte in error.object[error.start : error.end]), error.end
