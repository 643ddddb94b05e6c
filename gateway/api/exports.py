"""Whole windows as NDJSON or CSV, streamed.

Rules:
- The first calls are read before the answer begins, so that what fails at once is a problem.
- What fails later breaks the connection off: no last line, no end of the answer.
- CSV has no place to say that it is stale, so it never is: what can only be had stale is a failure.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

import msgspec
from litestar.response import Stream

from gateway.api.answers import JSON, Asking, Meta, instant
from gateway.api.wanted import ListRequest
from gateway.errors import GatewayError, UpstreamFailed
from gateway.formats import Csv, Ndjson
from gateway.ledger.extents import Keep
from gateway.ledger.reader import Question, Reading
from gateway.ledger.scans import Part, stream

LOGGER = logging.getLogger(__name__)
FORMS: dict[str, type[Ndjson] | type[Csv]] = {"ndjson": Ndjson, "csv": Csv}
MEDIA_TYPES = JSON | {
    "application/x-ndjson": "ndjson",
    "text/csv": "csv",
    "application/ndjson": "ndjson",
    "application/jsonl": "ndjson",
}
PIECE = 500  # calls written without a turn of the event loop: about 5 ms as NDJSON, 15 ms as CSV
HEADERS = {
    "ndjson": {"Content-Type": "application/x-ndjson"},
    "csv": {
        "Content-Type": "text/csv; charset=utf-8; header=present",
        "Content-Disposition": 'attachment; filename="calls.csv"',
    },
}


class Sources:
    """What the calls of a stream rest on, span by span."""

    def __init__(self, wanted: ListRequest, now: float) -> None:
        self._wanted = wanted
        self._last: Reading | None = None
        self._as_of, self._oldest = now, now
        self._stale, self._unreadable = False, 0

    def add(self, reading: Reading) -> None:
        """Count a span, which comes in one part or several."""
        if reading is self._last:
            return
        if self._last is None or not self._wanted.newest_first:
            self._as_of = reading.as_of
        self._last = reading
        self._oldest = min(self._oldest, reading.oldest_fetch)
        self._stale |= reading.stale
        self._unreadable += reading.unreadable

    def meta(self) -> Meta:
        """Say what the stream covered and how fresh it was."""
        return Meta(
            start=instant(self._wanted.window.start),
            end=instant(self._wanted.window.end),
            as_of=instant(self._as_of),
            oldest_fetch=instant(self._oldest),
            stale=self._stale,
            unreadable=self._unreadable,
        )


async def answer_export(asking: Asking, wanted: ListRequest, question: Question, keep: Keep, form: str) -> Stream:
    """Begin to stream a window. Raises GatewayError for what fails before the first calls."""
    desk = asking.desk
    desk.exports.begin(asking.consumer, asking.request.scope["state"])  # authentication ends it, whatever becomes of it
    question = msgspec.structs.replace(question, passing=True)
    parts = stream(desk.ledger, question, desk.clock(), desk.deadline, newest_first=wanted.newest_first, keep=keep)
    first = await anext(parts, None)
    asking.has_read()
    if first is not None:
        _refuse_stale(form, first)
    headers = HEADERS[form] | asking.headers() | {"Cache-Control": "private, no-store"}
    if asking.request.scope["state"].get("head"):
        return Stream(iter([b""]), headers=headers)
    return Stream(_written(asking, wanted, first, parts, form), headers=headers)


async def _written(
    asking: Asking, wanted: ListRequest, first: Part | None, parts: AsyncIterator[Part], form: str
) -> AsyncIterator[bytes]:
    writer, sources = FORMS[form](wanted.fields), Sources(wanted, asking.desk.clock())
    if beginning := writer.begin():
        yield beginning
    try:
        part = first
        while part is not None:
            _refuse_stale(form, part)
            sources.add(part.reading)
            for place in range(0, len(part.calls), PIECE):
                yield writer.rows(asking.present(part.calls[place : place + PIECE], status=wanted.status))
                await asyncio.sleep(0)
            part = await anext(parts, None)
    except GatewayError as error:
        asking.request.scope["state"]["broken_off"] = True
        LOGGER.warning("export broken off", extra={"fields": {"error": type(error).__name__, "format": form}})
        raise
    if ending := writer.end(sources.meta()):
        yield ending


def _refuse_stale(form: str, part: Part) -> None:
    if form == "csv" and part.reading.stale:
        raise UpstreamFailed("a part of the window can only be had stale, which CSV has no place to say")
