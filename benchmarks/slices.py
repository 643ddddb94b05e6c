"""The longest slices of the event loop in requests for large data, with the stack of each place.

`python -m benchmarks.slices` prints the slices over 10 ms of CPU time, by request; a number after it is another bound
in milliseconds. The upstream has one client with 100,000 calls in June 2026, and 27 with 1,000 each in the year before.
"""

from __future__ import annotations

import random
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import httpx

from benchmarks.loop_watch import LONGEST, LongSlice, LoopWatch
from benchmarks.replies import HEAD, TAIL, facts, field_call
from benchmarks.support import serving
from gateway import app
from gateway.settings import Settings
from gateway.simulator.request import Request
from gateway.simulator.server import PATH, Options, Simulator

CALLS, OTHERS, CALLS_OF_OTHER = 100_000, 27, 1000
BIG, SMALL = "8005550100", "8005550101"
END = datetime(2026, 6, 30)  # noqa: DTZ001 - Central wall time
NOW = datetime(2026, 7, 1, tzinfo=UTC).timestamp()
DAYS, YEAR = "start=2026-06-01&end=2026-06-30", "start=2025-07-01&end=2026-06-30"
EVERY = "&".join(f"client=80055501{place:02}" for place in range(OTHERS + 1))
# In this order: the first request for a window fetches its calls, and the others find them in the cache.
REQUESTS = {
    "a page of 1,000 of 10,000 calls, fetched": f"/clients/{BIG}/calls?start=2026-06-10&end=2026-06-13&limit=1000",
    "a summary by hour, fetched": f"/clients/{BIG}/calls/summary?{DAYS}&interval=hour&groupBy=result",
    "a page of 1,000": f"/clients/{BIG}/calls?{DAYS}&limit=1000&sort=startTime",
    "a page of 1,000 of some fields": f"/clients/{BIG}/calls?{DAYS}&limit=1000&fields=id,ani,address.city",
    "a page that 100,000 calls are searched for": f"/clients/{BIG}/calls?{DAYS}&target=none",
    "a page that most calls match": f"/clients/{BIG}/calls?{DAYS}&minDuration=1&sort=startTime",
    "NDJSON": f"/clients/{BIG}/calls?{DAYS}&format=ndjson",
    "CSV": f"/clients/{BIG}/calls?{DAYS}&format=csv",
    "a summary by campaign": f"/clients/{BIG}/calls/summary?{DAYS}&groupBy=campaign",
    "a single call": f"/clients/{BIG}/calls/100001",
    "clients, fetched": f"/clients?{DAYS}",
    "a page of all clients": f"/calls?client=*&{DAYS}&limit=1000",
    "a summary of 20,000 rows": f"/calls/summary?client=*&{DAYS}&interval=hour&groupBy=client",
    "a summary of a year by client, fetched": f"/calls/summary?{EVERY}&{YEAR}&groupBy=client",
    "a summary of a year by client": f"/calls/summary?{EVERY}&{YEAR}&groupBy=client&interval=month",
    "a page of a year": f"/calls?{EVERY}&{YEAR}&target=none",
    "NDJSON of all clients": f"/calls?client=*&{DAYS}&format=ndjson",
    "the feed of one client": f"/clients/{BIG}/changes?start=2026-06-01&limit=10000",
    "the feed of all clients": "/changes?client=*&start=2026-06-01&limit=10000",
}
MAX_POLLS = 100  # of a feed, until it is up to date


class Upstream(Simulator):
    """A server whose calls are rendered beforehand, by client code and in order of time."""

    def __init__(self) -> None:
        super().__init__(Options(), lambda: NOW)
        self.calls = {f"80055501{place:02}": list(_records(place)) for place in range(OTHERS + 1)}

    def _reply(self, request: Request, address: str, faults: Mapping[str, str]) -> Iterator[str]:  # noqa: ARG002
        yield HEAD
        for code in self.calls if request.codes == ("*",) else request.codes:
            calls = self.calls[code]
            first = bisect_left(calls, request.start, key=_wall) if request.start else 0
            after = bisect_right(calls, request.end, key=_wall) if request.end else len(calls)
            listed = "".join([record for _, record in calls[first:after]])
            yield f"<Client><ClientCode>{code}</ClientCode><CallDetails>{listed}</CallDetails></Client>"
        yield TAIL


def _wall(record: tuple[datetime, str]) -> datetime:
    return record[0]


def _records(place: int) -> Iterator[tuple[datetime, str]]:
    """The calls of a client, evenly over a month or a year, with their wall times."""
    count, days, draw = (CALLS_OF_OTHER, 364, random.Random(place)) if place else (CALLS, 29, random.Random(place))
    for index in range(count):
        wall, number = END - timedelta(days) * (count - index) / count, index + place * CALLS
        record = field_call(number, draw).replace(str(facts(number)["start"]), f"{wall:%m/%d/%Y %H:%M:%S}")
        yield wall, record


@contextmanager
def watched(upstream: Upstream, bound: float, cache_url: str = "") -> Iterator[tuple[LoopWatch, httpx.Client]]:
    """Serve a gateway whose event loop is watched. `cache_url` is that of a Redis server."""
    watch = LoopWatch(bound)
    with serving(upstream) as port:
        settings = Settings(
            upstream_url=f"http://127.0.0.1:{port}{PATH}",
            auth="none",
            log_level="error",
            signing_key="k" * 32,
            upstream_max_bytes=2**28,
            cache_bytes=2**30,
            cache_url=cache_url,
            request_deadline=600.0,
            upstream_timeout=600.0,
            upstream_deadline=600.0,
        )
        application = app.create(settings, clock=lambda: NOW)
        with (
            watch.watching(),
            serving(application, watch.make_loop) as port,
            httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=600) as client,
        ):
            yield watch, client


def follow(client: httpx.Client, path: str) -> None:
    """Send a request; follow a feed until it is up to date, and once more."""
    answer = client.get(path)
    assert answer.status_code == 200, answer.text
    if "/changes" not in path:
        assert answer.content
        return
    for _ in range(MAX_POLLS):
        page = answer.json()["page"]
        address = path.partition("&start")[0].partition("?start")[0]
        answer = client.get(
            address, params={**_client(path), "since": page["next"], "limit": 10_000}
        ).raise_for_status()
        if page["upToDate"]:
            return
    raise AssertionError("the feed is not up to date")


def _client(path: str) -> dict[str, str]:
    return {"client": "*"} if "client=*" in path else {}


def long_slices(upstream: Upstream, bound: float, requests: Mapping[str, str] = REQUESTS) -> dict[str, list[LongSlice]]:
    """The slices over a bound of each request, the longest first."""
    found = {}
    with watched(upstream, bound) as (watch, client):
        client.get(f"/clients/{SMALL}/calls?{YEAR}&limit=1")  # modules that are loaded when first needed
        for name, path in requests.items():
            before = len(watch.long)
            follow(client, path)
            found[name] = sorted(watch.long[before:], key=lambda one: one.seconds, reverse=True)
    return found


def main() -> int:
    """Print the slices over the bound."""
    bound = float(sys.argv[1]) / 1e3 if len(sys.argv) > 1 else LONGEST
    found = long_slices(Upstream(), bound)
    for name, slices in found.items():
        print(f"## {name}: {len(slices)} over {bound * 1e3:.0f} ms")
        for one in slices[:5]:
            print(one)
    return any(found.values())


if __name__ == "__main__":
    sys.exit(main())
