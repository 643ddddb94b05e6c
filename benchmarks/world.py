"""An upstream that publishes late, edits, moves, deletes and spoils calls, and fails; and the history of replies."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from gateway.callbutton.central_time import align_to_fold
from gateway.callbutton.client import Fetched
from gateway.callbutton.record import EARLIEST, LATEST
from gateway.callbutton.wait_queue import Waiters
from gateway.errors import UpstreamError
from gateway.model import Call, CallResult, PhoneType, StartTimeCertainty, UnreadableCall, Window

NOW = 1_790_000_000
HOUR = 3600
DAY = 86400  # seconds
CODES = ("a", "b", "c")
ALIAS, OWNER = "alias", "c"  # a customer code whose calls are listed under its toll-free number
FOREVER = float("inf")


def call(identity: str, start: int, code: str = "a", campaign: str | None = None) -> Call:
    """A call without details, of the client `code`."""
    return Call(
        id=identity,
        client_code=code,
        start_time=datetime.fromtimestamp(start, UTC),
        start_time_certainty=StartTimeCertainty.EXACT,
        campaign=campaign,
        did=None,
        ani=None,
        other_data=None,
        phone_type=PhoneType.NORMAL,
        target=None,
        result=CallResult.CONNECTED,
        duration_seconds=1,
        talk_time_seconds=None,
        index_number=None,
        dtmf=None,
        recording_url=None,
        address=None,
        status=None,
        extra={},
    )


class Version(NamedTuple):
    """A version of a record, and the period in which the upstream returned it.

    A record without a call is unreadable: its id, its true start, and whether its StartTime is readable.
    """

    code: str
    id: str
    start: int
    call: Call | None
    timed: bool
    since: float
    until: float = FOREVER

    @property
    def key(self) -> tuple[str, str]:
        """The client code and the id."""
        return self.code, self.id


class World:
    """The upstream, and its history."""

    def __init__(self, now: float, *, omits: bool, shared_ids: bool) -> None:
        self.now = now
        self.versions: list[Version] = []
        self.omits = omits
        self.failing: tuple[UpstreamError, int] | None = None  # the error; windows above this many seconds fail
        self.shared_ids = shared_ids
        self.serial = 0
        self.posts = 0

    def make(self, identity: str, start: int, code: str) -> Call:
        """A call whose fields follow from a serial number, which is its campaign."""
        self.serial += 1
        number = self.serial
        return msgspec.structs.replace(
            call(identity, start, code, campaign=str(number)),
            ani=f"31255501{number % 7:02}" if number % 5 else None,
            result=list(CallResult)[number % len(CallResult)],
            did=f"800555{number % 3:04}",
            duration_seconds=number % 11 or None,
            talk_time_seconds=number % 7 or None,
            dtmf="1",
        )

    def publish(self, start: int, code: str, late: float) -> None:
        """A new call, `late` seconds from now. Clients may number their calls by themselves, and share ids."""
        identity = str(sum(version.code == code for version in self.versions) if self.shared_ids else self.serial)
        made = self.make(identity, start, code)
        self.versions.append(Version(code, identity, start, made, timed=True, since=self.now + late))

    def end(self, index: int) -> Version | None:
        """End the period in which the upstream returns a version; None if it does not return it now."""
        version = self.versions[index % len(self.versions)]
        if not version.since <= self.now < version.until:
            return None
        self.versions[index % len(self.versions)] = version._replace(until=self.now)
        return version

    def edit(self, version: Version, start: int, *, readable: bool = True, timed: bool = True) -> None:
        """Publish another version of a record, from now on."""
        made = self.make(version.id, start, version.code) if readable else None
        self.versions.append(Version(version.code, version.id, start, made, timed, self.now))

    def restore(self, code: str) -> None:
        """Return the calls of a client that were lost last again, each once: in the version that was lost last."""
        until = max((one.until for one in self.versions if one.code == code and one.until < self.now), default=0)
        shown = {one.key for one in self.shown(self.now)}
        lost = {one.key: one for one in self.versions if one.code == code and one.until == until}
        self.versions += [one._replace(since=self.now, until=FOREVER) for key, one in lost.items() if key not in shown]

    def shown(self, at: float) -> Iterator[Version]:
        """The versions that it returned at an instant."""
        return (version for version in self.versions if version.since <= at < version.until)

    async def __call__(
        self,
        codes: Sequence[str],
        window: Window,
        *,
        status: bool,  # noqa: ARG002
        now: float,
        waiters: Waiters,  # noqa: ARG002
    ) -> Fetched:
        """Reply to a POST with one second more on each side."""
        assert align_to_fold(window) == window
        sent = self.now
        self.posts += 1
        await asyncio.sleep(0)
        if self.failing is not None and window.end - window.start > self.failing[1]:
            raise self.failing[0]
        end = sent if window.end >= now else window.end + 1
        asked = CODES if "*" in codes else dict.fromkeys(OWNER if code == ALIAS else code for code in codes)
        calls: dict[str, list[Call]] = {}
        unreadable: dict[str, list[UnreadableCall]] = {}
        for code in asked:
            shown = [one for one in self.shown(sent) if one.code == code and window.start - 1 <= one.start <= end]
            assert len({one.key for one in shown}) == len(shown), "the upstream has one version of a call"
            shown.sort(key=lambda version: version.start)
            found = [version.call for version in shown if version.call is not None]
            if found or len(shown) > len(found) or not self.omits or "*" in codes:
                calls[code] = found
                unreadable[code] = [_unreadable(place, shown) for place, one in enumerate(shown) if one.call is None]
        return Fetched(sent, calls, {code: records for code, records in unreadable.items() if records}, False)


def _unreadable(place: int, reply: Sequence[Version]) -> UnreadableCall:
    """The place of an unreadable record in a reply: its StartTime, or the calls beside it."""
    version = reply[place]
    if version.timed:
        start = datetime.fromtimestamp(version.start, UTC)
        return UnreadableCall(version.id, version.code, start, start)
    before = [one.call.start_time for one in reply[:place] if one.call is not None]
    after = [one.call.start_time for one in reply[place:] if one.call is not None]
    first, last = before[-1] if before else EARLIEST, after[0] if after else LATEST
    return UnreadableCall(version.id, version.code, first, last)
