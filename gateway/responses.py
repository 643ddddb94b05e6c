"""What uvicorn lacks in speed: an answer that is whole goes out in one piece, head and body, and not in two.

Rules:
- Its length is known, its body comes at once, and nothing is odd about it; all others are uvicorn's business.
- A message that has headers as `written` begins its own with them; that is checked, so that a layer in between may
  still change them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from gateway.headers import CONNECTION, LENGTH, TRANSFER, Written, lines_of

CLOSE = (b"connection", b"close")
STATUS = {status: line[:-2] for status, line in STATUS_LINE.items()}


class Done:
    """What needs no waiting for."""

    def __await__(self) -> Generator[None, None, None]:
        return iter(())  # type: ignore[return-value]  # all that `await` needs


DONE = Done()


class Whole(RequestResponseCycle):
    """One request and its answer, which goes out in one piece if its length is known and its body comes at once."""

    _begun: Any = None  # the message that begins an answer, held until its body comes
    _head = _length = b""  # its headers as lines, and the length of the body
    _default = Written([])  # what was written last of what all answers have

    def send(self, message: Any) -> Awaitable[None]:  # type: ignore[override]  # noqa: ANN401 - ASGI
        """Send a part of the answer."""
        begun = self._begun
        if begun is None:
            if message["type"] == "http.response.start" and not self.response_started and self._hold(message):
                return DONE
            return super().send(message)
        self._begun = None
        if message["type"] != "http.response.body":
            return super().send(message)  # begun anew, since the first one failed
        body = message.get("body", b"")
        if message.get("more_body") or not self._may_be_whole(body):
            return self._send_both(begun, message)
        head = b"".join((STATUS[begun["status"]], self._shared().lines, self._head))
        self.response_started = self.response_complete = True
        self.waiting_for_100_continue = False
        self.transport.writelines([head, body])
        self.message_event.set()
        self.on_response()
        return DONE

    def _hold(self, message: Any) -> bool:  # noqa: ANN401 - ASGI
        """Keep the beginning of an answer, unless its end may be far."""
        headers, written, rest = message["headers"], message.get("written"), b""
        if written is None or headers[: written.count] != written.headers:
            written = Written(headers)
        else:
            rest = lines_of(headers[written.count :])
            if max(rest.find(LENGTH), rest.find(CONNECTION), rest.find(TRANSFER)) >= 0:  # twice as quick as `in`
                return False
        if written.odd or not (written.length or message["status"] == 304):
            return False
        self._begun, self._length = message, written.length or b"0"
        self._head = written.lines + rest + b"\r\n\r\n"
        return True

    def _may_be_whole(self, body: bytes) -> bool:
        return (
            self._length == b"%d" % len(body)
            and self.keep_alive
            and not self._shared().odd
            and not self.disconnected
            and not self.flow.write_paused
            and self.scope["method"] != "HEAD"
        )

    def _shared(self) -> Written:
        """What all answers of a second have, be it of which connection."""
        if Whole._default.headers is not self.default_headers:
            Whole._default = Written(self.default_headers)
        return Whole._default

    async def _send_both(self, begun: Any, body: Any) -> None:  # noqa: ANN401 - ASGI
        await super().send(begun)
        await super().send(body)
