"""Links to recordings: capabilities that are signed.

Rule: whoever has a link may listen, since an `<audio>` element sends no header. So it is bound to client, call and
consumer, and ends with the next hour of the clock: within an hour the answers that hold it stay the same.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from msgspec import Struct

from gateway.access import Consumer
from gateway.api.signed import sealer, unseal
from gateway.errors import Forbidden
from gateway.model import Call

HOUR = 3600  # seconds
KIND = "recording"


class Capability(Struct, frozen=True, array_like=True):
    """A call that a consumer may listen to; `start` and `until` in seconds since 1970."""

    code: str
    call_id: str
    start: int
    consumer: str
    label: str
    until: int


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Capability).decode


def link_writer(consumer: Consumer, now: float, key: bytes, base: str) -> Callable[[Call], str | None]:
    """What writes the link to a call's recording, if it has one, for a consumer; `base` comes before its path."""
    until = (int(now) // HOUR + 2) * HOUR
    path, write, name, label = f"{base}/recordings/", sealer(KIND, key), consumer.name, consumer.label

    def render_link(call: Call) -> str | None:
        if call.recording_url is None:
            return None
        start = int(call.start_time.timestamp())
        return path + write(_encode(Capability(call.client_code, call.id, start, name, label, until)))

    return render_link


def read_link(token: str, now: float, key: bytes) -> Capability:
    """Read the token of a link. Raises Forbidden."""
    try:
        capability = _decode(unseal(KIND, token, key))
    except (ValueError, msgspec.MsgspecError):
        raise Forbidden("this is not a link of this gateway", "link") from None
    if now >= capability.until:
        raise Forbidden("this link has ended; the call has a new one", "expired link")
    return capability
