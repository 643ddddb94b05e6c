"""The call lists: a query becomes one read of the ledger, a page becomes JSON."""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import Callable
from datetime import UTC, datetime
from urllib.parse import urlencode

import msgspec
from litestar import Request, Response
from msgspec import Struct

from gateway.access import Consumer, codes_to_read, keep_seen, present, require_list
from gateway.api import params
from gateway.api.cursors import Cursor, read_cursor, render_cursor
from gateway.api.repeats import Lifetime, matches
from gateway.ledger.pages import Page, read_page
from gateway.ledger.reader import Ledger, Question
from gateway.model import Call

_encode = msgspec.json.Encoder().encode


class PageLinks(Struct, frozen=True, kw_only=True, rename="camel"):
    """Where the list goes on; a null `nextCursor` is its end."""

    limit: int
    next_cursor: str | None


class Meta(Struct, frozen=True, kw_only=True, rename="camel"):
    """What the answer covers and how fresh it is."""

    start: datetime
    end: datetime
    as_of: datetime
    oldest_fetch: datetime
    stale: bool
    unreadable: int


class CallPage(Struct, frozen=True, kw_only=True):
    """A page of calls."""

    data: list[Call]
    page: PageLinks
    meta: Meta


class CallLists(Struct, frozen=True):
    """What the handlers of call lists need."""

    ledger: Ledger
    clock: Callable[[], float]
    signing_key: bytes
    history_start: int
    deadline: float
    public_extra: frozenset[str] = frozenset()

    async def answer(self, request: Request, code: str | None) -> Response[bytes]:  # type: ignore[type-arg]
        """Answer a list of one client's calls, or of those named by `client`. Raises GatewayError."""
        values = params.read_query(request.scope["query_string"], with_client=code is None)
        if "cursor" in values:
            codes = params.read_codes(code, values) if code is not None or "client" in values else None
            cursor = read_cursor(values["cursor"][0], codes, values, self.signing_key)
            wanted, parameters, after = cursor.request, cursor.parameters, cursor.position
        else:
            wanted = params.read_list(params.read_codes(code, values), values, self.clock(), self.history_start)
            parameters, after = values, None
        consumer: Consumer = request.scope["state"]["consumer"]
        # A cursor gives no rights: whoever brings it is asked for theirs.
        require_list(consumer, parameters, status=wanted.status)
        question = Question(
            codes=codes_to_read(consumer, wanted.codes),
            window=wanted.window,
            status=wanted.status,
            insist=_insists(request) and "refresh" in consumer.scopes,
            deadline=asyncio.get_running_loop().time() + self.deadline,
        )
        now = self.clock()
        page = await read_page(
            self.ledger,
            question,
            now,
            newest_first=wanted.newest_first,
            limit=wanted.limit,
            after=after,
            keep=keep_seen(consumer, question.codes),
        )
        following = None
        if page.after is not None:
            following = render_cursor(Cursor(wanted, dict(parameters), page.after), self.signing_key)
        if not page.stale:
            # A window that reaches into the future grows by the second.
            until = math.inf if wanted.window.end <= now else math.ceil(now)
            request.scope["state"]["lifetime"] = Lifetime(page.as_of, now - page.past, until)
        return self._render(request, wanted, page, following)

    def _render(
        self,
        request: Request,  # type: ignore[type-arg]
        wanted: params.ListRequest,
        page: Page,
        following: str | None,
    ) -> Response[bytes]:
        consumer: Consumer = request.scope["state"]["consumer"]
        body = CallPage(
            data=[present(call, consumer, status=wanted.status, public_extra=self.public_extra) for call in page.calls],
            page=PageLinks(limit=wanted.limit, next_cursor=following),
            meta=Meta(
                start=_instant(wanted.window.start),
                end=_instant(wanted.window.end),
                as_of=_instant(page.as_of),
                oldest_fetch=_instant(page.oldest_fetch),
                stale=page.stale,
                unreadable=page.unreadable,
            ),
        )
        encoded = _encode(body)
        headers = {
            "Cache-Control": "private",
            "ETag": _etag(encoded[: encoded.rindex(b'],"page":')], more=following is not None),
            "Age": str(max(0, int(self.clock() - page.as_of))),
            "Cache-Status": f"callbutton-gateway; {_cache_status(page)}{_ignored(request, consumer)}",
            "Vary": "Authorization, X-API-Key, Accept, Accept-Encoding, Origin",
        }
        if following is not None:
            headers["Link"] = f'<{request.scope["path"]}?{urlencode({"cursor": following})}>; rel="next"'
        if matches(request.headers.get("if-none-match", ""), headers["ETag"]):
            return Response(b"", status_code=304, headers=headers)
        return Response(encoded, media_type="application/json", headers=headers)


def _etag(data: bytes, *, more: bool) -> str:
    """Name an answer by its data and whether a next page exists, not by when it was fetched."""
    return f'W/"{hashlib.blake2b(data, digest_size=12, key=b"more" if more else b"end").hexdigest()}"'


def _insists(request: Request) -> bool:  # type: ignore[type-arg]
    return "no-cache" in request.headers.get("cache-control", "").lower()


def _ignored(request: Request, consumer: Consumer) -> str:  # type: ignore[type-arg]
    """Say that `no-cache` was not heeded: browsers send it on each reload, so it is no reason to refuse."""
    heeded = "refresh" in consumer.scopes or not _insists(request)
    return "" if heeded else '; detail="no-cache needs the scope refresh"'


def _cache_status(page: Page) -> str:
    """Say where the answer is from (RFC 9211); a negative ttl is how long it has been stale."""
    if page.lookup == "hit" or page.stale:
        return f"hit; ttl={-math.ceil(page.past)}"
    return f"fwd={page.lookup}{'; collapsed' if page.collapsed else ''}"


def _instant(seconds: float) -> datetime:
    return datetime.fromtimestamp(int(seconds), UTC)
