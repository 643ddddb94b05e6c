"""What all answers about calls have in common: where they come from, their meta, their headers, and 304.

Rule: calls become visible in one place, `Asking.present`, whatever they are written as.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from litestar import Request, Response
from msgspec import Struct

from gateway.access import Consumer, codes_to_read, keep_seen, present, require_list
from gateway.api.filters import NO_FILTERS, Filters
from gateway.api.links import link_writer
from gateway.api.negotiation import media_type
from gateway.api.repeats import Lifetime, matches
from gateway.callbutton.recordings import Recordings
from gateway.errors import NotAcceptable
from gateway.ledger.reader import Ledger, Question, Reading
from gateway.ledger.scans import Page
from gateway.model import Call, Window
from gateway.rates import Exports, Rates

JSON = {"application/json": "json"}
VARY = "Authorization, X-API-Key, Accept, Accept-Encoding, Origin"
encode = msgspec.json.Encoder().encode


class Meta(Struct, frozen=True, kw_only=True, rename="camel"):
    """What the answer covers and how fresh it is."""

    start: datetime
    end: datetime
    as_of: datetime
    oldest_fetch: datetime
    stale: bool
    unreadable: int


class Desk(Struct, frozen=True):
    """What answers about calls need. `deadline` in seconds; `public_url` goes before the links that are handed out."""

    ledger: Ledger
    clock: Callable[[], float]
    signing_key: bytes
    history_start: int
    deadline: float
    rates: Rates
    exports: Exports
    recordings: Recordings
    rights_of: Callable[[str, str], Consumer | None]  # of a consumer, by name and label, as they are now
    public_extra: frozenset[str] = frozenset()
    public_url: str = ""


class Asking:
    """One request about calls: who asks for which clients, and what is in the way of an answer."""

    def __init__(self, desk: Desk, request: Request[Any, Any, Any]) -> None:
        self.desk = desk
        self.request = request
        self.consumer: Consumer = request.scope["state"]["consumer"]
        self.began = time.perf_counter()
        self.read_until = self.began
        self._insists = "no-cache" in request.headers.get("cache-control", "").lower()

    def choose(self, offered: Mapping[str, str], named: str | None = None) -> str:
        """Choose how to write the answer. Raises NotAcceptable."""
        chosen = named or media_type(self.request.headers.get("accept", ""), offered)
        if chosen is None:
            raise NotAcceptable(f"there are {', '.join(offered)}")
        return chosen

    def question(
        self, codes: tuple[str, ...], window: Window, parameters: Collection[str], *, status: bool = False
    ) -> Question:
        """What to read for some codes, as far as this consumer may; a cursor gives no rights. Raises Forbidden."""
        require_list(self.consumer, parameters, status=status)
        return Question(
            codes=codes_to_read(self.consumer, codes),
            window=window,
            status=status,
            insist=self._insists and "refresh" in self.consumer.scopes,
            deadline=asyncio.get_running_loop().time() + self.desk.deadline,
        )

    def keep(self, question: Question, filters: Filters = NO_FILTERS) -> Callable[[Sequence[Call]], Sequence[Call]]:
        """The filter of what is read: what was asked for, of the clients that are for this consumer."""
        seen = keep_seen(self.consumer, question.codes)
        return filters.keep if seen is list else lambda calls: seen(filters.keep(calls))

    def present(self, calls: Iterable[Call], *, status: bool) -> list[Call]:
        """Make the calls as this consumer sees them."""
        consumer, public = self.consumer, self.desk.public_extra
        if "recordings" not in consumer.scopes:
            return [present(call, consumer, status=status, public_extra=public) for call in calls]
        link = link_writer(consumer, self.desk.clock(), self.desk.signing_key, self.desk.public_url)
        return [present(call, consumer, status=status, public_extra=public, recording_url=link(call)) for call in calls]

    def has_read(self) -> None:
        """Note that the ledger has answered."""
        self.read_until = time.perf_counter()

    def answer(
        self, body: object, data: Callable[[bytes], bytes], window: Window, source: Page | Reading, following: str = ""
    ) -> Response[bytes]:
        """Write an answer as JSON; `data` finds the part that `ETag` stands for; `following` links to the next page."""
        encoded, now = encode(body), self.desk.clock()
        if not source.stale:
            # A window that reaches into the future grows by the second.
            until = math.inf if window.end <= now else math.ceil(now)
            self.request.scope["state"]["lifetime"] = Lifetime(source.as_of, now - source.past, until)
        headers = {
            "ETag": _etag(data(encoded), more=bool(following)),
            "Age": str(max(0, int(now - source.as_of))),
            "Cache-Status": f"callbutton-gateway; {_cache_status(source)}{self._ignored()}",
            **self.headers(),
        }
        if following:
            headers["Link"] = f'<{self.link(following)}>; rel="next"'
        if matches(self.request.headers.get("if-none-match", ""), headers["ETag"]):
            return Response(b"", status_code=304, headers=headers)
        return Response(encoded, media_type="application/json", headers=headers)

    def headers(self) -> dict[str, str]:
        """The headers of every answer about calls."""
        read, rest = self.read_until - self.began, time.perf_counter() - self.read_until
        timing = f"ledger;dur={read * 1e3:.1f}, write;dur={rest * 1e3:.1f}"
        return {"Cache-Control": "private", "Vary": VARY, "Server-Timing": timing}

    def _ignored(self) -> str:
        """Say that `no-cache` was not heeded: browsers send it on each reload, so it is no reason to refuse."""
        heeded = "refresh" in self.consumer.scopes or not self._insists
        return "" if heeded else '; detail="no-cache needs the scope refresh"'

    def link(self, path_and_query: str) -> str:
        """A link as consumers reach it."""
        return self.desk.public_url + path_and_query


def meta_of(window: Window, source: Page | Reading) -> Meta:
    """Say what an answer covers and how fresh it is."""
    return Meta(
        start=instant(window.start),
        end=instant(window.end),
        as_of=instant(source.as_of),
        oldest_fetch=instant(source.oldest_fetch),
        stale=source.stale,
        unreadable=source.unreadable,
    )


def instant(seconds: float) -> datetime:
    """Seconds since 1970 as answers show them."""
    return datetime.fromtimestamp(int(seconds), UTC)


def _etag(data: bytes, *, more: bool) -> str:
    """Name an answer by its data and whether a next page exists, not by when it was fetched."""
    return f'W/"{hashlib.blake2b(data, digest_size=12, key=b"more" if more else b"end").hexdigest()}"'


def _cache_status(source: Page | Reading) -> str:
    """Say where the answer is from (RFC 9211); a negative ttl is how long it has been stale."""
    if source.lookup == "hit" or source.stale:
        return f"hit; ttl={-math.ceil(source.past)}"
    return f"fwd={source.lookup}{'; collapsed' if source.collapsed else ''}"
