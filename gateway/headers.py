"""Headers as the lines that they are sent as; what goes out again and again is written once. Pure.

Rule: names are tokens in lower case, as ASGI has them, and no value adds a line.
"""

from __future__ import annotations

Headers = list[tuple[bytes, bytes]]
LENGTH, CONNECTION, TRANSFER = b"\r\ncontent-length: ", b"\r\nconnection: ", b"\r\ntransfer-encoding: "
IN_A_LINE = bytes(code for code in range(256) if code == 9 or (code >= 32 and code != 127))  # RFC 9110, section 5.5


class Written:
    """Headers as lines, and what they say of the body. Raises RuntimeError for characters that no line may have."""

    def __init__(self, headers: Headers) -> None:
        self.headers = headers
        self.count = len(headers)
        self.lines = lines = lines_of(headers)
        self.odd = CONNECTION in lines or TRANSFER in lines or lines.count(LENGTH) > 1
        self.length = lines.partition(LENGTH)[2].partition(b"\r\n")[0]  # of the body; empty if it is not said


def lines_of(headers: Headers) -> bytes:
    """Lines, each after an end of line. Raises RuntimeError for characters that no line may have."""
    lines = b"\r\n".join([b"", *map(b": ".join, headers)])
    if lines.translate(None, IN_A_LINE) != b"\r\n" * len(headers):
        raise RuntimeError("a header of the answer has characters that no header may have")
    return lines
