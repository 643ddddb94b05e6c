"""Time reports on the cached calls of 30 days: the first, and warm ones, in CPU time, with the longest step.

The callers have 40,000 numbers, and waits are random. Every figure but the first is the least of several runs. The
targets are for a machine on which `xmltodict.parse` of 100 calls takes 4 ms: it is measured before each report, and
times are scaled by it. Uniting the callers of all days is the least that an exact count of callers takes.
"""

from __future__ import annotations

import gc
import math
import random
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from typing import Any, TypeVar
from zoneinfo import ZoneInfo

import xmltodict
from msgspec.structs import replace

from benchmarks import replies
from benchmarks.translate import calls_of
from gateway.access import ANONYMOUS
from gateway.api.calendars import Calendar, compared_window
from gateway.api.dimensions import DIMENSIONS, clocks_of, reader
from gateway.api.filters import NO_FILTERS
from gateway.api.summary_query import SummaryQuery
from gateway.api.summary_table import Period, make_rows
from gateway.cache.aggregates import AggregateSpec, Aggregator
from gateway.cache.extents import Extent, make_extent
from gateway.cache.missed import MissedCallers
from gateway.memory import Memo, Memory, memo_table
from gateway.model import Call, CallResult, Window
from gateway.slices import Steps

ZONE = ZoneInfo("America/Chicago")
MIDNIGHT = int(datetime(2026, 9, 1, tzinfo=ZONE).timestamp())
NOW = int(datetime(2026, 10, 1, tzinfo=ZONE).timestamp())
DAY, DAYS = 86400, 60  # the second half is summarized, the first is for comparisons
PAGE = 100  # missed callers
RUNS = 5
REFERENCE = 4.0  # ms of `xmltodict.parse`
RESULTS = [CallResult.CONNECTED] * 6 + [CallResult.BUSY, CallResult.NO_ANSWER, CallResult.ABANDONED]
CASES: dict[str, tuple[str, tuple[str, ...], str, int]] = {  # interval, groupBy, compare, bar in ms
    "by day": ("day", (), "", 8),
    "two dimensions": ("none", ("did", "result"), "", 15),
    "two dimensions by day": ("day", ("did", "result"), "", 0),
    "hour of the week in a zone": ("none", ("hourOfWeek",), "", 15),
    "by day, compared": ("day", (), "previous", 16),
}
_Result = TypeVar("_Result")


class Timer:
    """Takes steps, and notes the CPU seconds of all and of the longest."""

    def __init__(self) -> None:
        self.total = self.longest = 0.0

    def finish(self, steps: Steps[_Result]) -> _Result:
        """Take all steps."""
        while True:
            began = time.thread_time()
            try:
                next(steps)
            except StopIteration as end:
                result: _Result = end.value
                return result
            finally:
                took = time.thread_time() - began
                self.total, self.longest = self.total + took, max(self.longest, took)


def make_days(count: int) -> list[Extent]:
    """Extents of UTC days with `count` calls in 30 days, as the cache stores them."""
    chance, memos = random.Random(1), memo_table(Memory())
    (sample,) = calls_of(replies.reply("document", 1)).calls.values()
    found = []
    for day in range(DAYS + 1):
        window = Window(
            MIDNIGHT // DAY * DAY + (day - DAYS // 2) * DAY, MIDNIGHT // DAY * DAY + (day - DAYS // 2 + 1) * DAY
        )
        starts = sorted(chance.randrange(window.start, window.end) for _ in range(count // 30))
        extent = make_extent(
            window, NOW, [make_call(sample[0], at, f"{day}-{n}", chance) for n, at in enumerate(starts)]
        )
        extent.keep(Memo(memos))
        found.append(extent)
    return found


def make_call(sample: Call, at: int, identity: str, chance: random.Random) -> Call:
    """A call with random figures. Equal texts are not one object, as in calls that were parsed."""
    talk = chance.randrange(300)
    return replace(
        sample,
        id=identity,
        start_time=datetime.fromtimestamp(at, UTC),
        ani=str(3_120_000_000 + chance.randrange(40_000)),
        did=str(8_005_550_100 + chance.randrange(20)),
        result=chance.choice(RESULTS),
        duration_seconds=talk + int(chance.expovariate(1 / 15)),
        talk_time_seconds=talk,
    )


def summarize(days: Sequence[Extent], timer: Timer, interval: str, group_by: tuple[str, ...], compare: str) -> int:
    """Summarize the second half of the days. Returns the number of rows."""
    window = Window(MIDNIGHT, NOW)
    compared = compared_window(window, compare, ZONE, NOW) if compare else None
    periods = []
    for part in filter(None, (window, compared)):
        calendar = Calendar(part, interval, ZONE, clocks_of(group_by))
        dimensions = [name for name in group_by if DIMENSIONS[name].read]
        spec = AggregateSpec((calendar.name, *dimensions), calendar.slots, reader(dimensions), list, math.inf)
        aggregator = Aggregator(spec)
        timer.finish(aggregator.add([day.view(part) for day in days if day.window.overlaps(part)]))
        periods.append(Period(aggregator, calendar, timer.finish(calendar.seconds(NOW))))
    query = SummaryQuery((), window, NO_FILTERS, interval, ZONE, group_by, None, compared, 20, 0, None, None)
    rows, _ = timer.finish(make_rows(query, periods[0], (*periods, None)[1], ANONYMOUS))
    return len(rows)


def list_missed(days: Sequence[Extent], timer: Timer) -> int:
    """Find the missed callers of the second half of the days, and the first page of them. Returns the page's length."""
    window = Window(MIDNIGHT, NOW)
    callers = MissedCallers(window, list, "", status=False)
    timer.finish(callers.add([day.view(window) for day in days if day.window.overlaps(window)]))
    return len(list(islice(timer.finish(callers.ordered(None, PAGE, reached=False)), PAGE)))


def least(work: Callable[[], Any]) -> float:
    """The least CPU milliseconds of several runs."""
    times = []
    for _ in range(RUNS):
        began = time.thread_time()
        work()
        times.append(time.thread_time() - began)
    return min(times) * 1e3


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    days = make_days(count)
    gc.disable()  # as in `loop_watch`, a collection that happens to run within a step does not count
    sets = [{call.ani for call in day.calls} for day in days[DAYS // 2 : DAYS]]
    reply = replies.reply("field", 100)
    print(f"| {count:,} calls in 30 days | rows | first | warm | longest step | warm / union | scaled | target |")
    print("|---|---|---|---|---|---|---|---|")
    cases: dict[str, tuple[Callable[[Timer], int], int]] = {
        name: (partial(summarize, days, interval=interval, group_by=group_by, compare=compare), bar)
        for name, (interval, group_by, compare, bar) in CASES.items()
    }
    cases["missed callers, a page"] = partial(list_missed, days), 30
    for name, (report, bar) in cases.items():
        scale = REFERENCE / least(lambda: xmltodict.parse(reply))
        first = Timer()
        rows = report(first)
        warm = [Timer() for _ in range(RUNS)]
        for timer in warm:
            report(timer)
        union = least(lambda: set().union(*sets))
        best, longest = (
            min(timer.total for timer in warm) * 1e3,
            max(first.longest, min(one.longest for one in warm)) * 1e3,
        )
        target = f"80 ms, {bar} ms" if bar else "-"
        measured = f"{first.total * 1e3:.0f} ms | {best:.1f} ms | {longest:.1f} ms | {best / union:.1f}"
        print(
            f"| {name} | {rows:,} | {measured} | {first.total * scale * 1e3:.0f} ms, {best * scale:.1f} ms | {target} |"
        )


if __name__ == "__main__":
    main()
