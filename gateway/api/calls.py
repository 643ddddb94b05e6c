"""Lists of calls and single calls: a query becomes one read of the ledger, a page becomes JSON."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from litestar import Request, Response
from litestar.response import Stream
from msgspec import Struct

from gateway.api import params
from gateway.api.answers import JSON, Asking, Desk, Meta, meta_of
from gateway.api.cursors import Cursor, read_cursor, render_cursor
from gateway.api.exports import FORMS, MEDIA_TYPES, answer_export
from gateway.api.wanted import ListRequest, read_call, read_list
from gateway.errors import InvalidParameters, NotFound, ParameterFault
from gateway.formats import Projection
from gateway.ledger.extents import DAY
from gateway.ledger.scans import Page, read_page
from gateway.model import Call, Window

LATELY = 31 * DAY  # in which a call is looked for that the ledger does not know


class PageLinks(Struct, frozen=True, kw_only=True, rename="camel"):
    """Where the list goes on; a null `nextCursor` is its end."""

    limit: int
    next_cursor: str | None


class CallPage(Struct, frozen=True, kw_only=True):
    """A page of calls."""

    data: list[Call]
    page: PageLinks
    meta: Meta


class SingleCall(Struct, frozen=True, kw_only=True):
    """One call."""

    data: Call
    meta: Meta


async def answer_list(desk: Desk, request: Request[Any, Any, Any], code: str | None) -> Response[bytes] | Stream:
    """Answer a list of one client's calls, or of those named by `client`. Raises GatewayError."""
    asking = Asking(desk, request)
    values = params.read_query(request.scope["query_string"], "list", with_client=code is None)
    named = values.get("format", [""])[0]
    form = asking.choose(MEDIA_TYPES, named if named in params.FORMATS else None)
    if form in FORMS:
        _refuse_pages(form, values)
    if "cursor" in values:
        codes = params.read_codes(code, values) if code is not None or "client" in values else None
        cursor = read_cursor(values["cursor"][0], codes, values, desk.signing_key)
        wanted, parameters, after = cursor.request, cursor.parameters, cursor.position
    else:
        wanted = read_list(params.read_codes(code, values), values, desk.clock(), desk.history_start)
        parameters, after = values, None
    question = asking.question(wanted.codes, wanted.window, parameters, status=wanted.status)
    keep = asking.keep(question, wanted.filters)
    if form in FORMS:
        return await answer_export(asking, wanted, question, keep, form)
    page = await read_page(
        desk.ledger,
        question,
        desk.clock(),
        newest_first=wanted.newest_first,
        limit=wanted.limit,
        after=after,
        keep=keep,
        texts=wanted.filters.texts,
    )
    asking.has_read()
    following = None
    if page.after is not None:
        following = render_cursor(Cursor(wanted, dict(parameters), page.after), desk.signing_key)
    return _answer_page(asking, wanted, page, following)


def _refuse_pages(form: str, values: dict[str, list[str]]) -> None:
    detail = f"does not go with {form}, which is not paged: it is the whole window"
    if faults := [ParameterFault(name, detail) for name in ("limit", "cursor") if name in values]:
        raise InvalidParameters(faults)


def _answer_page(asking: Asking, wanted: ListRequest, page: Page, following: str | None) -> Response[bytes]:
    calls = asking.present(page.calls, status=wanted.status)
    links, meta = PageLinks(limit=wanted.limit, next_cursor=following), meta_of(wanted.window, page)
    body: object = CallPage(data=calls, page=links, meta=meta)
    if wanted.fields:
        body = {"data": list(map(Projection(wanted.fields), calls)), "page": links, "meta": meta}
    link = f"{asking.request.scope['path']}?{urlencode({'cursor': following})}" if following else ""
    return asking.answer(body, lambda text: text[: text.rindex(b'],"page":')], wanted.window, page, link)


async def answer_call(desk: Desk, request: Request[Any, Any, Any], code: str, identity: str) -> Response[bytes]:
    """Answer one call: from the window given, else from the ledger, else from the last 31 days. Raises GatewayError."""
    asking = Asking(desk, request)
    asking.choose(JSON)
    values = params.read_query(request.scope["query_string"], "call")
    (code,) = params.read_codes(code, values)
    now = desk.clock()
    wanted = read_call(values, now, desk.history_start)
    lately = Window(int(now) - LATELY, int(now) + 1)
    asking.question((code,), lately, (), status=wanted.status)  # before the ledger tells, be it by its time
    known = desk.ledger.whereabouts(code, identity, status=wanted.status)
    # Where the ledger last saw it is read by the rule of freshness; it may have gone from there.
    windows = [wanted.window] if wanted.window else [known, lately] if known else [lately]
    for window in windows:
        page = await _find(asking, code, identity, window, status=wanted.status)
        if page.calls:
            asking.has_read()
            (call,) = asking.present(page.calls, status=wanted.status)
            meta = meta_of(window, page)
            body: object = SingleCall(data=call, meta=meta)
            if wanted.fields:
                body = {"data": Projection(wanted.fields)(call), "meta": meta}
            return asking.answer(body, lambda text: text[: text.rindex(b',"meta":')], window, page)
    raise NotFound("this client has no such call in the window that was looked at")


async def _find(asking: Asking, code: str, identity: str, window: Window, *, status: bool) -> Page:
    """Look for a call, the newest days first."""
    question = asking.question((code,), window, (), status=status)
    after = None
    while True:
        page = await read_page(
            asking.desk.ledger,
            question,
            asking.desk.clock(),
            newest_first=True,
            limit=1,
            after=after,
            keep=lambda calls: [call for call in calls if call.id == identity],
        )
        if page.calls or page.after is None:
            return page
        after = page.after
