"""The POSTs of a conformance report: sent one after the other, each reply read by `reply` and by `evidence`.

Rules:
- At most MAX_POSTS are sent. A POST that fails is sent again once, unless the server rejects the request itself.
- Dates are wall times as they are sent; None is a null date.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from msgspec import Struct

from gateway.callbutton.central_time import HOUR, WallRange, render_wall
from gateway.callbutton.client import check_status, render_request
from gateway.callbutton.conformance.evidence import Evidence, Record, is_calm, parse_evidence
from gateway.callbutton.reply import ReplyParser
from gateway.callbutton.transport import Transport
from gateway.errors import UpstreamError, UpstreamMalformed, UpstreamRejected

MAX_POSTS = 40
MARGIN = 60  # seconds; a difference between the clocks of the server and of this machine


class Questions(Struct, frozen=True):
    """The client codes to ask for, and the settings that findings are about. Times are in seconds.

    `timeout` is to the first byte of a reply, `deadline` to its last; `watch` is how long to look for late calls.
    """

    codes: tuple[str, ...]
    flag_element: str
    batch: int
    max_span: float
    max_bytes: int
    timeout: float
    deadline: float
    watch: float = 0


class Post(Struct):
    """One POST and its reply.

    `waited` and `seconds` are the seconds to the first byte of the reply and to its last. `error` is the one that the
    gateway raises for it. `evidence` is None if it does not follow the protocol. `transient`: the POST failed, and
    succeeded when it was sent again.
    """

    number: int
    codes: tuple[str, ...]
    start: str | None
    end: str | None
    flag_element: str | None
    sent: float
    waited: float = 0
    seconds: float = 0
    size: int = 0
    charset: str | None = None
    error: UpstreamError | None = None
    evidence: Evidence | None = None
    transient: bool = False

    @property
    def ok(self) -> bool:
        """Whether the server answered OK."""
        return self.evidence is not None and self.evidence.verdict == "OK"

    @property
    def records(self) -> list[Record]:
        """The calls of the reply."""
        return self.evidence.records if self.evidence is not None else []

    @property
    def listed(self) -> list[str]:
        """The client codes of the reply."""
        return sorted(self.evidence.by_code()) if self.evidence is not None else []

    @property
    def outcome(self) -> str:
        """The reply in words."""
        if self.evidence is None:
            return str(self.error)
        if self.ok:
            return f"OK, {self.evidence.calls:,} {'call' if self.evidence.calls == 1 else 'calls'}"
        return f'<{self.evidence.response} status="{self.evidence.verdict}">{self.evidence.message}'

    def said(self, what: str = "") -> str:
        """A line of evidence: the request, and what its reply shows."""
        codes = self.codes[0] if len(self.codes) == 1 else f"{len(self.codes)} client codes"
        flag = f", <{self.flag_element}>true" if self.flag_element else ""
        dates = f"StartDate {self.start or 'null'}, EndDate {self.end or 'null'}"
        return f"POST {self.number} ({codes}{flag}, {dates}): {what or self.outcome}"


class NoPostsLeft(Exception):  # noqa: N818 - a bound, not an error
    """MAX_POSTS POSTs were sent."""


class Inquiry:
    """The POSTs of one report. `target` is a call at an exact time, which most probes look for."""

    def __init__(
        self,
        transport: Transport,
        questions: Questions,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        show: Callable[[str], None] = lambda text: None,  # noqa: ARG005
    ) -> None:
        self.questions = questions
        self.clock = clock
        self.sleep = sleep
        self.show = show
        self.posts: list[Post] = []
        self.target: Record | None = None
        self.topic = ""  # of the next POSTs, for `show`
        self._transport = transport

    async def post(
        self, walls: WallRange | None, codes: Sequence[str] | None = None, flag_element: str | None = None
    ) -> Post:
        """POST, for the codes of the questions by default. Raises NoPostsLeft."""
        post = await self._send(codes or self.questions.codes, walls, flag_element)
        if post.error is None or isinstance(post.error, UpstreamRejected) or len(self.posts) == MAX_POSTS:
            return post
        again = await self._send(post.codes, walls, flag_element)
        post.transient = again.error is None
        return again

    async def _send(self, codes: Sequence[str], walls: WallRange | None, flag_element: str | None) -> Post:
        if len(self.posts) == MAX_POSTS:
            raise NoPostsLeft
        start, end = walls or (None, None)
        post = Post(len(self.posts) + 1, tuple(codes), start, end, flag_element, self.clock())
        self.posts.append(post)
        self.show(f"POST {post.number} of at most {MAX_POSTS}: {self.topic}")
        body = render_request(codes, walls, status=flag_element is not None, flag_element=flag_element or "")
        time = asyncio.get_running_loop().time
        began = time()
        try:
            async with self._transport.post(body, began + self.questions.deadline) as answer:
                post.waited, post.charset = time() - began, answer.charset
                check_status(answer)
                reply = b"".join([piece async for piece in answer.chunks])
            post.size = len(reply)
            self._read(post, reply)
        except UpstreamError as error:
            post.error = error
        post.seconds = time() - began
        post.waited = post.waited or post.seconds
        return post

    def _read(self, post: Post, reply: bytes) -> None:
        """Read a reply. Raises UpstreamMalformed."""
        parser = ReplyParser(status=post.flag_element is not None, charset=post.charset, single=len(post.codes) == 1)
        parser.feed(reply)
        try:
            parser.close()
        except UpstreamMalformed:
            raise
        except UpstreamError as error:  # that the server reports
            post.error = error
        try:
            post.evidence = parse_evidence(reply, post.charset)
        except ValueError as error:
            raise UpstreamMalformed(str(error)) from error

    def last_hour(self) -> WallRange:
        """The hour up to MARGIN before now."""
        return walls(self.clock() - HOUR, self.clock() - MARGIN)

    def around(self, before: int, after: int) -> WallRange:
        """The seconds around the target; the last hour if there is none."""
        if self.target is None:
            return self.last_hour()
        start = self.target.start.timestamp()
        return walls(start - before, start + after)

    def targets(self) -> list[Record]:
        """The last suitable call of each client so far, the latest first."""
        calm = [record for post in self.posts if post.ok for record in post.records if is_calm(record)]
        last = {record.code: record for record in sorted(calm, key=lambda record: record.start)}
        return sorted(last.values(), key=lambda record: record.start, reverse=True)

    def holds(self, post: Post) -> bool:
        """Whether a reply has the target."""
        target = self.target
        return target is not None and any((one.id, one.start) == (target.id, target.start) for one in post.records)

    def told(self, post: Post) -> str:
        """A line of evidence about the target."""
        if self.target is None or not post.ok:
            return post.said()
        start = render_wall(int(self.target.start.timestamp()))
        return post.said(f"{'has' if self.holds(post) else 'lacks'} the call of {start}; {post.outcome}")


def walls(start: float, end: float) -> WallRange:
    """The wall times of two instants."""
    return WallRange(render_wall(int(start)), render_wall(int(end)))
