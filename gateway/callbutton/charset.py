"""Bytes of a reply to the text of an XML 1.0 document.

Rules:
- The charset is, in this order: the byte order mark, the header's charset, the declaration's, UTF-8.
- What the charset cannot explain is read as windows-1252, byte by byte; ISO-8859-1 and US-ASCII are read so, too.
  windows-1252 leaves five bytes undefined; they become the C1 controls of the same number, as browsers have it.
  So U+FFFD is never invented.
- Characters that XML 1.0 forbids are removed, and so are references to them outside CDATA.
- Line ends become newlines, as XML 1.0 has it (section 2.11).
- Every repair is counted by name. Nothing here knows the protocol.
"""

from __future__ import annotations

import codecs
import io
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
DECLARATION = re.compile(rb"""\s*<\?xml[^>]{0,200}?\sencoding\s*=\s*["']([A-Za-z0-9._-]{1,40})["']""")
ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]+")
CONTROLS = bytes(code for code in range(32) if code not in b"\t\n\r")
UNUSUAL = re.compile(rb"\xed[\xa0-\xbf]|\xef\xbf[\xbe\xbf]")  # surrogates, U+FFFE, U+FFFF
REFERENCE = re.compile("&#(?:x([0-9A-Fa-f]{1,8})|([0-9]{1,10}));")
MARK = re.compile("[&<\\]]")
LONGEST_MARK = 12  # characters that a reference or a CDATA mark may lack at the end of a piece
HEAD = 512  # bytes within which a declaration ends
WINDOWS = bytes(range(256)).decode("cp1252", errors="replace")
WINDOWS = "".join(chr(code) if char == "\ufffd" else char for code, char in enumerate(WINDOWS))


def charset_of(head: bytes, header: str | None, repairs: Counter[str]) -> tuple[str, int]:
    """The codec of a body that begins with `head`, and the length of its byte order mark."""
    for mark, codec in MARKS:
        if head.startswith(mark):
            return codec, len(mark)
    declared = DECLARATION.match(head)
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


class TextReader:
    """The text of one body, piece by piece; `repairs` counts what had to be mended."""

    def __init__(self, header_charset: str | None = None) -> None:
        self.repairs: Counter[str] = Counter()
        self._header = header_charset
        self._head = b""
        self._decoder: codecs.IncrementalDecoder | None = None
        self._held = ""  # the beginning of a reference that the next piece may end
        self._cdata = False
        self._lines = io.IncrementalNewlineDecoder(None, translate=True)
        codecs.register_error("callbutton-windows-1252", _as_windows)

    def feed(self, data: bytes, *, last: bool = False) -> str:
        """The text that is certain after these bytes."""
        if self._decoder is None:
            self._head += data
            if len(self._head) < HEAD and not last:
                return ""
            codec, skip = charset_of(self._head[:HEAD], self._header, self.repairs)
            self._decoder = codecs.getincrementaldecoder(codec)("callbutton-windows-1252")
            data, self._head = self._head[skip:], b""
        _decoding.append(self.repairs)
        try:
            text = self._held + self._lines.decode(self._decoder.decode(data, last), last)
        finally:
            _decoding.pop()
        self._held = ""
        if not _is_legal(text):
            text = ILLEGAL.sub(self._drop_run, text)
        return self._without_bad_references(text, last=last)

    def _drop_run(self, match: re.Match[str]) -> str:
        self.repairs["illegal_character"] += len(match[0])
        return ""

    def _without_bad_references(self, text: str, *, last: bool) -> str:
        # What may be the beginning of a reference or of a CDATA mark waits for the next piece.
        if not last and (mark := MARK.search(text, max(0, len(text) - LONGEST_MARK))):
            text, self._held = text[: mark.start()], text[mark.start() :]
        # Single characters are sought many times faster than strings.
        if "[" not in text and "]" not in text and (self._cdata or "&" not in text):
            return text
        pieces = []
        for index, piece in enumerate(re.split(r"(<!\[CDATA\[|\]\]>)", text)):
            if index % 2:
                self._cdata = piece != "]]>"
            elif not self._cdata and "&#" in piece:
                piece = REFERENCE.sub(self._drop_reference, piece)
            pieces.append(piece)
        return "".join(pieces) if len(pieces) > 1 else pieces[0]

    def _drop_reference(self, match: re.Match[str]) -> str:
        code = int(match[1], 16) if match[1] else int(match[2])
        if code <= 0x10FFFF and not ILLEGAL.match(chr(code)):
            return match[0]
        self.repairs["illegal_character"] += 1
        return ""


def _is_legal(text: str) -> bool:
    """Tell, many times faster than a regular expression, that every character is one of XML 1.0."""
    raw = text.encode("utf-8", "surrogatepass")
    if len(raw.translate(None, CONTROLS)) != len(raw):
        return False
    return len(raw) == len(text) or not UNUSUAL.search(raw)


_decoding: list[Counter[str]] = []  # whose repairs the error handler counts; decoding never awaits


def _as_windows(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    _decoding[-1]["windows_1252"] += error.end - error.start
    return "".join(WINDOWS[byte] for byte in error.object[error.start : error.end]), error.end
