"""Recordings of calls: the stream behind a signed link (`gateway.api.signing`).

Rules:
- A link counts against the rate and the places of the consumer for which it was made; without authentication, of the
  address that plays it.
- A link stops working when its consumer loses the scope or the client. A consumer with a bearer token is not in the
  keys file: its links work until they expire.
- Each request derives the address of the recording from the cached call. Paths, and with them links, are not logged.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from litestar import Request, get
from litestar.datastructures import State
from litestar.params import FromPath
from litestar.response import Stream

from gateway.access import Rate, can_read
from gateway.api.middleware.authentication import take_token
from gateway.api.middleware.request_context import RequestContext, context_of
from gateway.api.responses import deadline_of, services_of
from gateway.api.signing import parse_link
from gateway.cache.reader import Query
from gateway.callbutton.recordings import Recording
from gateway.errors import Forbidden, GatewayError, InvalidParameters, NotFound, ParameterFault
from gateway.model import Window

DEFAULT_RATE = Rate(100, 10)  # of listeners whose consumer has no rate: players seek, but the upstream is slow
LOGGER = logging.getLogger(__name__)


@get(
    "/recordings/{token:str}",
    operation_id="getRecording",
    summary="Listen to the recording of a call",
    kind="recording",
)
async def get_recording(request: Request[Any, Any, State], token: FromPath[str]) -> Stream:
    """Stream the recording at the `recordingUrl` of a call. `Range` requests a part of it."""
    if request.scope["query_string"]:
        raise InvalidParameters([ParameterFault("query", "is not allowed: a recording link has no parameters")])
    services, context = services_of(request), context_of(request.scope)
    now = services.clock()
    link = parse_link(token, now, services.signing_keys)
    consumer = services.current_rights((link.kind, link.consumer))
    if consumer is None or "recordings" not in consumer.scopes or not can_read(consumer, link.code):
        raise Forbidden("this recording link was revoked", "link")
    context.consumer = consumer
    take_token(context, services.rates, consumer.rate or DEFAULT_RATE, now)
    window = Window(link.start, link.start + 1)
    deadline, wait = deadline_of(services, context), partial(context.hold, services.waiting)
    reading = await services.cache.read(Query(codes=(link.code,), window=window, deadline=deadline, before_wait=wait))
    call = next((one for one in reading.calls if one.id == link.call_id), None)
    if call is None or call.recording_url is None:
        raise NotFound("this call has no recording, or no longer exists")
    part = None if context.is_head or context.header(b"if-range") else context.header(b"range") or None
    leave = services.listeners.take(context.party)
    recording = await services.recordings.open(call.recording_url, call.id, part, leave)
    headers = {**recording.headers, "Cache-Control": f"private, max-age={link.expires - int(now)}"}
    body = iter([b""]) if context.is_head else _stream(recording, context)
    return Stream(body, status_code=recording.status, headers=headers)


async def _stream(recording: Recording, context: RequestContext) -> AsyncIterator[bytes]:
    try:
        async for chunk in recording.chunks:
            yield chunk
    except GatewayError as error:
        context.aborted = True
        LOGGER.warning("recording aborted", extra={"fields": {"error": type(error).__name__}})
        raise


HANDLERS = [get_recording]
