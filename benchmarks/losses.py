"""The calls that three ways to copy a month lose: a cursor on the start time, a nightly read, the change feed.

`--write` updates the table in docs/changes.md.
"""

from __future__ import annotations

import argparse
import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry

from benchmarks.world import DAY, FOREVER, HOUR, NOW, Version, World, call
from gateway.cache.feed import Report
from gateway.cache.feed_reader import Clients
from gateway.cache.feed_state import FeedState, midnight, pack, unpack
from gateway.cache.fingerprints import View
from gateway.cache.freshness import Rule
from gateway.cache.reader import Cache, CacheSettings
from gateway.cache.watch import Feeds
from gateway.callbutton.client import Fetched
from gateway.callbutton.wait_queue import Waiters
from gateway.memory import Memory
from gateway.metrics import Metrics
from gateway.model import Call, Window

MONTH = 30 * DAY
QUIET = 7 * DAY  # seconds after the month, in which each method fetches its last changes
CALLS_A_DAY = 200
CALL_BYTES = 1000  # of a call in a reply
MARKERS = "<!-- losses -->", "<!-- /losses -->"
PAGE = Path(__file__).parent.parent / "docs" / "changes.md"
Copy = dict[str, Call]


class Month(World):
    """A month of calls, of which some are published late, edited or deleted afterwards. Counts the bytes of replies."""

    def __init__(self, seed: int = 7) -> None:
        super().__init__(NOW, omits=False, shared_ids=False)
        self.sent = 0
        draw = random.Random(seed)
        starts = sorted(draw.randrange(NOW, NOW + MONTH) for _ in range(30 * CALLS_A_DAY))
        for place, start in enumerate(starts):
            since = start + (draw.expovariate(1 / (6 * HOUR)) if draw.random() < 0.02 else draw.randrange(10, 900))
            edited = since + draw.expovariate(1 / (2 * DAY)) if draw.random() < 0.1 else FOREVER
            deleted = since + draw.expovariate(1 / (5 * DAY)) if draw.random() < 0.005 else FOREVER
            edited, deleted = (event if event <= NOW + MONTH else FOREVER for event in (edited, deleted))
            for campaign, begin, end in ((None, since, min(edited, deleted)), ("edited", edited, deleted)):
                if begin < end and begin <= NOW + MONTH:
                    one = call(str(place), start, campaign=campaign)
                    self.versions.append(Version("a", one.id, start, one, timed=True, since=begin, until=end))

    @property
    def current(self) -> Copy:
        """The calls that it returns now."""
        return {version.id: version.call for version in self.shown(self.now) if version.call is not None}

    async def __call__(
        self, codes: Sequence[str], window: Window, *, status: bool, now: float, waiters: Waiters
    ) -> Fetched:
        """Reply to a POST."""
        fetched = await super().__call__(codes, window, status=status, now=now, waiters=waiters)
        self.sent += CALL_BYTES * sum(map(len, fetched.calls.values()))
        return fetched


async def losses(copying: Callable[[Month], Awaitable[Copy]]) -> list[str]:
    """Copy a month in one way, and compare the copy with the truth a week after its end."""
    world = Month()
    copy = await copying(world)
    truth = world.current
    lost = len(truth.keys() - copy.keys())
    edits = sum(copy[identity] != one for identity, one in truth.items() if identity in copy)
    kept = len(copy.keys() - truth.keys())
    return [f"{lost:,}", f"{edits:,}", f"{kept:,}", f"{world.posts:,}", f"{world.sent / 2**20:.1f} MiB"]


async def ask(world: Month, window: Window) -> list[Call]:
    """One POST."""
    fetched = await world(["a"], window, status=False, now=world.now, waiters=Waiters())
    return [one for one in fetched.calls["a"] if window.start <= one.start_time.timestamp() < window.end]


async def by_cursor(world: Month) -> Copy:
    """Each hour, fetch what starts since a minute before the last fetch."""
    copy: Copy = {}
    for hour in range(1, (MONTH + QUIET) // HOUR + 1):
        world.now = NOW + hour * HOUR
        window = Window(NOW + (hour - 1) * HOUR - 60, NOW + hour * HOUR)
        copy |= {one.id: one for one in await ask(world, window)}
    return copy


async def by_nightly_read(world: Month) -> Copy:
    """Each night, replace the last 15 days."""
    copy: Copy = {}
    for day in range(1, (MONTH + QUIET) // DAY + 1):
        world.now = NOW + day * DAY
        since = NOW + (day - 15) * DAY
        copy = {key: one for key, one in copy.items() if one.start_time.timestamp() < since}
        copy |= {one.id: one for one in await ask(world, Window(since, NOW + day * DAY))}
    return copy


async def by_feed(world: Month) -> Copy:
    """Each hour, apply the changes of the feed."""
    metrics = Metrics(CollectorRegistry())
    rules = CacheSettings(plain=Rule(), with_status=Rule(ratio=0.01), max_span=31 * DAY, batch=50, cache_bytes=2**28)
    feeds = Feeds(Cache(world, rules, metrics, lambda: world.now), Memory(), lambda: world.now, 600, metrics)
    view = View("all", list, lambda one: one)
    copy: Copy = {}
    state: FeedState | int = midnight(NOW)
    for hour in range(1, (MONTH + QUIET) // HOUR + 1):
        world.now = NOW + hour * HOUR
        report = None
        while report is None or not report.up_to_date:
            report = (await feeds.answer(Clients(("a",), status=False), state, view, 1000)).report
            state = unpack(pack(report.state))
            apply(copy, report)
    return copy


def apply(copy: Copy, report: Report) -> None:
    """Apply changes."""
    for remove in report.removes:
        copy.pop(remove.call.id, None)
    for part in report.replaces:
        for key in [
            key for key, one in copy.items() if part.window.start <= one.start_time.timestamp() < part.window.end
        ]:
            del copy[key]
        copy |= {one.id: one for one in part.calls}
    copy |= {upsert.call.id: upsert.call for upsert in report.upserts}


WAYS = {
    "a cursor on the start time, hourly, with a minute's overlap": by_cursor,
    "a nightly read of the last 15 days": by_nightly_read,
    "the change feed, hourly": by_feed,
}


def table(rows: Mapping[str, Sequence[str]]) -> str:
    """The table of losses."""
    head = ["way", "calls lost", "edits missed", "deletions kept", "POSTs", "bytes of calls"]
    lines = [head, ["---"] * len(head), *([name, *cells] for name, cells in rows.items())]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def rewritten(text: str, rows: Mapping[str, Sequence[str]]) -> str:
    """The page with a new table of losses."""
    before, rest = text.split(MARKERS[0], 1)
    return f"{before}{MARKERS[0]}\n{table(rows)}\n{MARKERS[1]}{rest.split(MARKERS[1], 1)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare three ways to copy calls.")
    parser.add_argument("--write", action="store_true", help="write the table to docs/changes.md")
    options = parser.parse_args()
    rows = {way: asyncio.run(losses(copying)) for way, copying in WAYS.items()}
    print(table(rows))
    if options.write:
        PAGE.write_text(rewritten(PAGE.read_text("utf-8"), rows), "utf-8")


if __name__ == "__main__":
    main()
