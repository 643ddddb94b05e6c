"""The change feed of a request: its view of the calls, its tokens, and its items.

Rules:
- A token holds the state of the consumer (`cache.feed_state`) and hashes of the feed (consumer, clients, status) and of
  the view (fields, scopes), with a signature. A token of another feed is an error; with one of another view, all calls
  are reported again.
- Items show calls as lists do, with `hasRecording` in place of a link, which would change every hour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from gateway import access
from gateway.api import responses
from gateway.api.middleware.request_context import RequestContext
from gateway.api.responses import Services
from gateway.api.signing import TOKENS, FeedToken, SigningKeys
from gateway.cache.feed import Report
from gateway.cache.feed_reader import Clients
from gateway.cache.feed_state import FeedState, pack, unpack
from gateway.cache.fingerprints import View
from gateway.cache.watch import Answer, Feeds
from gateway.errors import InvalidParameters, ParameterFault
from gateway.model import EVERY_CLIENT, Call, Instant, Window, about
from gateway.slices import Steps, in_slices

ADDRESS = "The address, relative to this gateway. It opens this feed alone, with the rights that the consumer then has."
ADDRESS_EXPIRES = (
    "Until when it can be used as it is. Later it needs `since`, or `Last-Event-ID`, which `EventSource` sends when it "
    "reconnects."
)
STEP_CALLS = 100  # rendered in one step, about a millisecond
encode = msgspec.json.Encoder().encode
HASH_VERSION = b"1"  # of `fingerprints.hash_of`

HAS_RECORDING = "Whether the consumer may hear a recording of the call."


@lru_cache(maxsize=16)
def feed_call_type(call_type: type[Call]) -> Any:  # noqa: ANN401 - a type that is built at run time
    """The type of calls in the feed."""
    return msgspec.defstruct(
        "FeedCall",
        [
            *[(name, field.type) for name, field in _shown_fields(call_type).items()],
            ("has_recording", Annotated[bool, about(HAS_RECORDING, True)]),
        ],
        kw_only=True,
        frozen=True,
        rename="camel",
        namespace={"__doc__": "A call, with `hasRecording` in place of a link: the link is in the single call."},
    )


@lru_cache(maxsize=16)  # msgspec evaluates the annotations at each call, in a millisecond
def _shown_fields(call_type: type[Call]) -> dict[str, msgspec.structs.FieldInfo]:
    fields = {field.name: field for field in msgspec.structs.fields(call_type)}
    del fields["recording_url"]
    return fields


FeedCall: Any = feed_call_type(Call)


class FeedWindow(Struct, frozen=True, kw_only=True):
    """A half-open interval of start times."""

    start: Annotated[Instant, msgspec.Meta(description="Start (inclusive).", examples=["2026-11-01T05:00:00Z"])]
    end: Annotated[Instant, msgspec.Meta(description="End (exclusive).", examples=["2026-11-01T09:00:00Z"])]


class RemovedCall(Struct, frozen=True, kw_only=True, rename="camel", tag_field="op", tag="remove"):
    """The server no longer returns this call: delete it."""

    client_code: Annotated[str, msgspec.Meta(description="The client code.", examples=["8005550100"])]
    id: Annotated[str, msgspec.Meta(description="The id of the call.", examples=["498200007"])]
    start_time: Annotated[Instant, msgspec.Meta(description="When it began.", examples=["2026-11-01T08:49:51Z"])]


class ReplacedWindow(Struct, frozen=True, kw_only=True, tag_field="op", tag="replace"):
    """Of these clients, the window has exactly these calls: delete all others in it, and insert or update these."""

    window: FeedWindow
    clients: Annotated[  # without a type: a union would not compile in Java
        Any, about("The client codes, a list; or `*`, a text, for all.", ["8005550100"])
    ]
    calls: Annotated[list[FeedCall], msgspec.Meta(description="The calls, in order of their start.")]


class ChangedCall(Struct, frozen=True, kw_only=True, tag_field="op", tag="upsert"):
    """A call that is new or was changed: insert or update it."""

    call: FeedCall


class ChangesPage(Struct, frozen=True, kw_only=True, rename="camel"):
    """How to continue."""

    next: Annotated[
        str, msgspec.Meta(description="The token: send it as `since`, with the same clients.", examples=["kS1wQ3"])
    ]
    up_to_date: Annotated[
        bool,
        msgspec.Meta(
            description="Whether nothing is left to report. If false, request the next page at once.", examples=[True]
        ),
    ]
    calls: Annotated[
        int | None,
        msgspec.Meta(description="How many calls the copy must have now. Null unless up to date.", examples=[1]),
    ]


class ChangesMeta(Struct, frozen=True, kw_only=True, rename="camel"):
    """The window of the copy, and its freshness."""

    start: Annotated[
        Instant,
        msgspec.Meta(
            description="Calls from here on are in the copy. It moves on by months, 400 days ago at most.",
            examples=["2026-11-01T00:00:00Z"],
        ),
    ]
    as_of: Annotated[
        Instant, msgspec.Meta(description="When the newest point was fetched.", examples=["2026-11-01T12:00:00Z"])
    ]
    complete_through: Annotated[
        Instant | None,
        msgspec.Meta(
            description="Changes that were made before this instant are in the copy. Null unless up to date.",
            examples=["2026-11-01T11:00:00Z"],
        ),
    ]


class Changes(Struct, frozen=True, kw_only=True):
    """Changes, in the order in which they are applied."""

    data: Annotated[
        list[RemovedCall | ReplacedWindow | ChangedCall], msgspec.Meta(description="Removals, replacements, upserts.")
    ]
    page: ChangesPage
    meta: ChangesMeta


class UpToDate(Struct, frozen=True, tag_field="op", tag="up-to-date"):
    """The event after which nothing is left to report."""

    page: ChangesPage
    meta: ChangesMeta


class FeedAddress(Struct, frozen=True, kw_only=True, rename="camel"):
    """An address of this feed that needs no header."""

    url: Annotated[str, about(ADDRESS, "/clients/8005550100/changes?access=kS1wQ3", form="uri-reference")]
    expires_at: Annotated[Instant, about(ADDRESS_EXPIRES, "2026-11-01T12:01:00Z")]


class Item(NamedTuple):
    """A rendered item, and its operation."""

    op: str
    body: bytes


def json_object(items: Sequence[Item], page: ChangesPage, meta: ChangesMeta) -> bytes:
    """Render an answer as JSON."""
    data = msgspec.Raw(b"[" + b",".join([item.body for item in items]) + b"]")
    return encode({"data": data, "page": page, "meta": meta})


def json_lines(items: Sequence[Item], page: ChangesPage, meta: ChangesMeta) -> bytes:
    """Render an answer as NDJSON."""
    return b"\n".join([*[item.body for item in items], encode({"page": page, "meta": meta}), b""])


def event_stream(items: Sequence[Item], page: ChangesPage, meta: ChangesMeta) -> bytes:
    """Render an answer as server-sent events. The id of the last one is the token."""
    last = [Item("up-to-date", encode(UpToDate(page=page, meta=meta)))] if page.up_to_date else []
    events = [f"event: {item.op}\ndata: ".encode() + item.body + b"\n\n" for item in [*items, *last]]
    if events:
        events[-1] = f"id: {page.next}\n".encode() + events[-1]
    return b"".join(events)


Render = Callable[[Sequence[Item], ChangesPage, ChangesMeta], bytes]


class Feed(Struct, frozen=True):
    """The feed of one request."""

    feeds: Feeds
    clients: Clients
    codes: tuple[str, ...]  # as requested
    view: View
    limit: int
    feed_hash: bytes
    view_hash: bytes
    keys: SigningKeys

    def parse(self, token: str) -> FeedState:
        """Parse a token, and return the state of its consumer. Raises InvalidParameters."""
        try:
            return self.state_of(TOKENS.verify(token, self.keys))
        except ValueError:
            raise InvalidParameters(
                [ParameterFault("since", "is not a token of this gateway; begin again without `since`")]
            ) from None

    def state_of(self, content: FeedToken) -> FeedState:
        """The state of the consumer in the content of a token. Raises InvalidParameters, ValueError."""
        state = unpack(content.state)
        if content.feed != self.feed_hash:
            detail = "belongs to a feed of another consumer, other clients or another `include`"
            raise InvalidParameters([ParameterFault("since", detail)])
        if content.view != self.view_hash:  # fields or scopes changed: sums of different views cannot be compared
            return replace(
                state, reports=tuple([replace(one, total=0, pending=True) for one in state.reports]), cut=None
            )
        return state

    def token(self, state: FeedState) -> str:
        """Render the token of a state."""
        return TOKENS.sign(self.content(state), self.keys)

    def content(self, state: FeedState) -> FeedToken:
        """The content of the token of a state."""
        return FeedToken(self.feed_hash, self.view_hash, pack(state))

    async def body(self, answer: Answer, render: Render) -> bytes:
        """Render an answer, and count its items. The last body is kept, for the next consumer with an equal one."""
        count, report = self.feeds.metrics.feed_changes.labels, answer.report
        for kind, changes in (("remove", report.removes), ("replace", report.replaces), ("upsert", report.upserts)):
            if changes:
                count(kind).inc(len(changes))
        key = render, self.codes, self.feed_hash, self.view_hash
        if answer.rendered.get(Feed, (None,))[0] != key:
            if self.codes not in answer.rendered:
                answer.rendered[self.codes] = await in_slices(self._items(report))
            body = render(answer.rendered[self.codes], self._page(answer), self._meta(answer))
            answer.rendered[Feed] = key, body
        rendered: bytes = answer.rendered[Feed][1]
        return rendered

    def _items(self, report: Report) -> Steps[Sequence[Item]]:
        """Items in the order in which they are applied. Consumers with equal views and client codes have equal ones."""
        items: list[Item] = []
        for one in [remove.call for remove in report.removes]:
            removed = RemovedCall(client_code=one.client_code, id=one.id, start_time=one.start_time)
            items.append(Item("remove", encode(removed)))
        for part in report.replaces:
            calls: list[bytes] = []
            for place in range(0, len(part.calls), STEP_CALLS):
                calls += [encode(self._call(call)) for call in part.calls[place : place + STEP_CALLS]]
                yield
            items.append(Item("replace", encode(self._replacement(part.window, calls))))
        for place, upsert in enumerate(report.upserts):
            items.append(Item("upsert", encode(ChangedCall(call=self._call(upsert.call)))))
            if place % STEP_CALLS == 0:
                yield
        return items

    def _page(self, answer: Answer) -> ChangesPage:
        """How to continue after an answer."""
        calls = answer.calls if answer.report.up_to_date else None
        return ChangesPage(next=self.token(answer.report.state), up_to_date=answer.report.up_to_date, calls=calls)

    def _meta(self, answer: Answer) -> ChangesMeta:
        """The window of a copy after an answer, and its freshness."""
        oldest = responses.instant(math.floor(answer.provenance.oldest_fetch))
        return ChangesMeta(
            start=responses.instant(answer.report.state.start),
            as_of=responses.instant(math.floor(answer.provenance.as_of)),
            complete_through=oldest if answer.report.up_to_date else None,
        )

    def _call(self, call: Call) -> Any:  # noqa: ANN401 - the type is built at run time
        shown = self.view.present(call)
        fields = msgspec.structs.asdict(shown)
        recording = fields.pop("recording_url")
        return feed_call_type(type(shown))(**fields, has_recording=recording is not None)

    def _replacement(self, window: Window, calls: Sequence[bytes]) -> ReplacedWindow:
        shown = FeedWindow(start=responses.instant(window.start), end=responses.instant(window.end))
        codes: Any = EVERY_CLIENT if self.codes == (EVERY_CLIENT,) else list(self.codes)
        rendered: Any = msgspec.Raw(b"[" + b",".join(calls) + b"]")
        return ReplacedWindow(window=shown, clients=codes, calls=rendered)


def feed_of(services: Services, context: RequestContext, codes: tuple[str, ...], limit: int, *, status: bool) -> Feed:
    """Authorize the query of a feed. Raises Forbidden."""
    consumer = responses.consumer_of(context)
    access.require_list_scopes(consumer, (), status=status)
    allowed = access.authorized_codes(consumer, codes)
    keep = access.client_filter(consumer, allowed)
    extras = services.extras
    hears = "recordings" in consumer.scopes

    def present(call: Call) -> Call:
        recording = "" if hears and call.recording_url is not None else None
        return access.mask_call(call, consumer, status=status, extras=extras, recording_url=recording)

    fields = [*_shown_fields(extras.call_type), *(one.element for one in extras.fields)]
    shown = sorted(consumer.scopes & {"personal", "status", "recordings"}), sorted(extras.public), fields
    patterns = () if keep is list else consumer.clients
    name = (status, tuple(shown[0]), patterns)
    return Feed(
        services.feeds,
        Clients(allowed, status),
        codes,
        View(name, keep, present),
        limit,
        digest(16, *consumer.key, sorted(codes), status),
        digest(5, HASH_VERSION, shown),
        services.signing_keys,
    )


def digest(size: int, *parts: object) -> bytes:
    """A hash of `size` bytes."""
    return blake2b(msgspec.msgpack.encode(parts), digest_size=size).digest()
