"""Recordings, as links lead to them.

Rules: the consumer of a key must still have its rights; those of a token are as when the link was made. Where the
recording is, is worked out anew from the call as the ledger has it. Paths are never logged, so no link is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

from litestar import Request
from litestar.response import Stream

from gateway.access import may_see
from gateway.api.answers import Desk
from gateway.api.links import read_link
from gateway.callbutton.recordings import Recording
from gateway.errors import Forbidden, GatewayError, InvalidParameters, NotFound, ParameterFault
from gateway.ledger.reader import Question
from gateway.model import Window

LOGGER = logging.getLogger(__name__)


async def answer_recording(desk: Desk, request: Request[Any, Any, Any], token: str) -> Stream:
    """Stream a recording. Raises GatewayError."""
    if request.scope["query_string"]:
        raise InvalidParameters([ParameterFault("query", "a link to a recording takes no parameters")])
    now = desk.clock()
    capability = read_link(token, now, desk.signing_key)
    consumer = desk.rights_of(capability.consumer, capability.label)
    if consumer is None or "recordings" not in consumer.scopes or not may_see(consumer, capability.code):
        raise Forbidden("who was given this link may listen no more", "link")
    request.scope["state"]["consumer"] = consumer
    question = Question(
        codes=(capability.code,),
        window=Window(capability.start, capability.start + 1),
        deadline=asyncio.get_running_loop().time() + desk.deadline,
    )
    calls = (await desk.ledger.read(question)).calls
    call = next((one for one in calls if one.id == capability.call_id), None)
    if call is None or call.recording_url is None:
        raise NotFound("there is no recording of this call, or no longer")
    recording = await desk.recordings.open(call.recording_url, call.id, request.headers.get("range"))
    headers = {**recording.headers, "Cache-Control": f"private, max-age={capability.until - int(now)}"}
    if request.scope["state"].get("head"):
        return Stream(iter([b""]), status_code=recording.status, headers=headers)
    return Stream(_heard(recording, request.scope["state"]), status_code=recording.status, headers=headers)


async def _heard(recording: Recording, state: dict[str, Any]) -> AsyncIterator[bytes]:
    try:
        async for piece in recording.pieces:
            yield piece
    except GatewayError as error:
        state["broken_off"] = True
        LOGGER.warning("recording broken off", extra={"fields": {"error": type(error).__name__}})
        raise
