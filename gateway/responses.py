"""What uvicorn lacks in speed: an answer that is whole goes out in one piece, head and body, and not in two.

Rules: its length is known, its body comes at once, and nothing is odd about it; all others are uvicorn's business.
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

CLOSE = (b"connection", b"close")
LENGTH, CONNECTION, TRANSFER = b"\r\ncontent-length: ", b"\r\nconnection: ", b"\r\ntransfer-encoding: "
IN_A_LINE = bytes(code for code in range(256) if code == 9 or (code >= 32 and code != 127))  # RFC 9110, section 5.5


class Whole(RequestResponseCycle):
    """One request and its answer, which goes out in one piece if its length is known and its body comes at once."""

    _begun: Any = None  # the message that begins an answer, held until its body comes
    _head = b""  # its headers, with the end of line before and two after

    async def send(self, message: Any) -> None:  # noqa: ANN401 - ASGI
        """Send a part of the answer."""
        begun = self._begun
        if begun is None:
            if message["type"] == "http.response.start" and not self.response_started:
                head = _lines(message["headers"]) + b"\r\n\r\n"
                if (LENGTH in head or message["status"] == 304) and CONNECTION not in head and TRANSFER not in head:
                    self._begun, self._head = message, head
                    return
        else:
            self._begun = None
            if message["type"] == "http.response.body":
                body = message.get("body", b"")
                if not message.get("more_body") and self._may_be_whole(len(body)):
                    self._send_whole(begun, body)
                    return
                await super().send(begun)
            # or else it is begun anew, since the first one failed
        await super().send(message)

    def _may_be_whole(self, size: int) -> bool:
        return (
            (LENGTH + b"%d\r\n" % size in self._head or (not size and LENGTH not in self._head))
            and self.keep_alive
            and not self.disconnected
            and not self.flow.write_paused
            and self.scope["method"] != "HEAD"
            and CLOSE not in self.default_headers
        )

    def _send_whole(self, begun: Any, body: bytes) -> None:  # noqa: ANN401 - ASGI
        head = STATUS_LINE[begun["status"]].rstrip() + _lines(self.default_headers) + self._head
        if head.translate(None, IN_A_LINE) != b"\r\n" * (2 + len(self.default_headers) + len(begun["headers"])):
            raise RuntimeError("a header of the answer has characters that no header may have")
        self.response_started = self.response_complete = True
        self.waiting_for_100_continue = False
        self.transport.writelines([head, body])
        self.message_event.set()
        self.on_response()


def _lines(headers: list[tuple[bytes, bytes]]) -> bytes:
    """Header lines, each after an end of line."""
    return b"\r\n".join([b"", *map(b": ".join, headers)])
