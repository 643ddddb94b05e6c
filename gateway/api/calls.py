"""Lists of calls and single calls: a query becomes one read of the ledger, a page becomes JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any
from urllib.parse import urlencode

import msgspec
from litestar import Request, Response
from litestar.response import Stream
from msgspec import Struct

from gateway.access import present
from gateway.api.answers import JSON, Asking, Desk, Meta, meta_of
from gateway.api.exports import FORMS, MEDIA_TYPES, Present, answer_export
from gateway.api.query import ListQuery, parse_call_query, parse_list_query, render_cursor
from gateway.api.recordings import link_renderer
from gateway.errors import InvalidParameters, NotFound, ParameterFault
from gateway.formats import Projection
from gateway.ledger.extents import DAY
from gateway.ledger.pages import Page, read_page
from gateway.model import Call, Window

LATELY = 31 * DAY  # in which a call is looked for that the ledger does not know


class PageLinks(Struct, frozen=True, kw_only=True, rename="camel"):
    """Where the list continues."""

    limit: Annotated[int, msgspec.Meta(description="The most calls of a page.", examples=[1])]
    next_cursor: Annotated[
        str | None,
        msgspec.Meta(
            description="The `cursor` of the next page. Null, and nothing else, is the end of the list.",
            examples=["uvkL5TFIUylomGu3e5M0UJOF"],
        ),
    ]


class CallPage(Struct, frozen=True, kw_only=True):
    """A page of calls."""

    data: Annotated[list[Call], msgspec.Meta(description="The calls, in order.")]
    page: PageLinks
    meta: Meta


class SingleCall(Struct, frozen=True, kw_only=True):
    """One call."""

    data: Call
    meta: Meta


async def answer_list(desk: Desk, request: Request[Any, Any, Any], code: str | None) -> Response[bytes] | Stream:
    """Answer a list of one client's calls, or of those named by `client`. Raises GatewayError."""
    asking = Asking(desk, request)
    query_string = request.scope["query_string"]
    wanted = parse_list_query(query_string, code, desk.clock(), desk.history_start, desk.signing_key)
    form = asking.choose(MEDIA_TYPES, wanted.format)
    question = asking.question(wanted.codes, wanted.window, wanted.filters.texts, status=wanted.status)
    keep, present = asking.keep(question, wanted.filters), presenter(asking, status=wanted.status)
    if form in FORMS:
        _refuse_pages(form, wanted)
        return await answer_export(asking, wanted, question, keep, present, form)
    page = await read_page(
        desk.ledger,
        question,
        desk.clock(),
        newest_first=wanted.newest_first,
        limit=wanted.limit,
        after=wanted.after,
        keep=keep,
        texts=wanted.filters.texts,
    )
    asking.has_read()
    following = None if page.after is None else render_cursor(wanted, page.after, desk.signing_key)
    return _answer_page(asking, wanted, page, present(page.calls), following)


def _refuse_pages(form: str, query: ListQuery) -> None:
    detail = f"cannot be combined with {form}, which is not paged: it is the whole window"
    given = ["cursor"] if query.after else ["limit"] if "limit" in query.given else []
    if given:
        raise InvalidParameters([ParameterFault(name, detail) for name in given])


def presenter(asking: Asking, *, status: bool) -> Present:
    """The function that makes calls as this consumer sees them: masked, and with links to recordings."""
    consumer, desk = asking.consumer, asking.desk
    link: Callable[[Call], str | None] = lambda call: None  # noqa: ARG005, E731
    if "recordings" in consumer.scopes:
        link = link_renderer(consumer, desk.clock(), desk.signing_key, desk.public_url)

    def present_all(calls: Sequence[Call]) -> list[Call]:
        return [
            present(call, consumer, status=status, public_extra=desk.public_extra, recording_url=link(call))
            for call in calls
        ]

    return present_all


def _answer_page(
    asking: Asking, wanted: ListQuery, page: Page, calls: list[Call], following: str | None
) -> Response[bytes]:
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
    now = desk.clock()
    wanted = parse_call_query(request.scope["query_string"], code, now, desk.history_start)
    lately = Window(int(now) - LATELY, int(now) + 1)
    asking.question((code,), lately, (), status=wanted.status)  # before the ledger tells, be it by its time
    known = desk.ledger.whereabouts(code, identity, status=wanted.status)
    # Where the ledger last saw it is read by the rule of freshness; it may have gone from there.
    windows = [wanted.window] if wanted.window else [known, lately] if known else [lately]
    for window in windows:
        page = await _find(asking, code, identity, window, status=wanted.status)
        if page.calls:
            asking.has_read()
            (call,) = presenter(asking, status=wanted.status)(page.calls)
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
