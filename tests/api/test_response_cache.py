"""The response cache: identical bytes for the same consumer while the answer is fresh, within a memory bound."""

import asyncio
from datetime import datetime
from typing import Any, cast

import pytest
from litestar.types import HTTPScope, Message, Receive, Send
from prometheus_client import CollectorRegistry

from gateway.access import Consumer
from gateway.api.middleware.request_context import Lifetime, RequestContext, context_of
from gateway.api.middleware.response_cache import MAX_TTL, PART, ResponseCache
from gateway.memory import Memory
from gateway.metrics import RequestMetrics
from gateway.simulator.server import Options
from tests.support.memory import traced_memory
from tests.support.stand import NOW, Clock, Make

CALLS = "/clients/8005550100/calls"
PAST = {"start": "2026-11-01T05:00:00Z", "end": "2026-11-01T09:00:00Z"}
LIVE = {"start": "2026-11-18T00:00:00Z"}


def test_a_repeat_is_the_same_answer_with_its_age_and_its_life_made_anew(stand: Make):
    gateway = stand()
    first = gateway.get(CALLS, **PAST)
    assert gateway.metric("repeats_total") == 0
    gateway.clock.now += 20
    again = gateway.get(CALLS, **PAST)
    assert gateway.metric("repeats_total") == 1
    assert again.content == first.content
    assert (again.headers["age"], again.headers["etag"]) == ("20", first.headers["etag"])
    assert again.headers["cache-status"] == "callbutton-gateway; hit; ttl=147620"
    assert again.headers["x-request-id"] != first.headers["x-request-id"]
    same = {"age", "cache-status", "x-request-id", "date", "server-timing"}
    assert {k: v for k, v in again.headers.items() if k not in same} == {
        k: v for k, v in first.headers.items() if k not in same
    }
    unchanged = gateway.client.get(CALLS, params=PAST, headers={"If-None-Match": first.headers["etag"]})
    assert (unchanged.status_code, unchanged.content, unchanged.headers["age"]) == (304, b"", "20")


def test_a_repeat_is_counted_as_every_request_is(stand: Make):
    gateway = stand()
    for _ in range(3):
        gateway.get(CALLS, **PAST)
    assert gateway.metric('requests_total{method="GET",route="/clients/{code}/calls",status="200"}') == 3
    assert gateway.metric('request_seconds_count{route="/clients/{code}/calls"}') == 3


def test_a_repeat_ends_with_its_freshness(stand: Make):
    gateway = stand()
    hour = {"start": "2026-11-18T10:50:00Z", "end": "2026-11-18T11:00:00Z"}  # its end is 400 s ago: fresh for 40 s
    gateway.get(CALLS, **hour)
    gateway.clock.now += 39
    assert gateway.get(CALLS, **hour).headers["cache-status"] == "callbutton-gateway; hit; ttl=1"
    gateway.clock.now += 2
    assert gateway.get(CALLS, **hour).headers["cache-status"].startswith("callbutton-gateway; fwd=partial")


def test_a_repeat_ends_with_a_post_of_its_client(stand: Make):
    gateway = stand()
    earlier = {"start": "2026-10-01T05:00:00Z", "end": "2026-10-01T09:00:00Z"}
    first = gateway.get(CALLS, **PAST)
    gateway.get("/clients/8005550101/calls", **PAST)
    assert gateway.get(CALLS, **PAST).content == first.content
    assert gateway.metric("repeats_total") == 1
    gateway.get(CALLS, **earlier)  # it may have a call that had moved there
    assert gateway.get(CALLS, **PAST).content == first.content
    assert gateway.metric("repeats_total") == 1
    gateway.get(CALLS, **PAST)
    assert gateway.metric("repeats_total") == 2


def test_a_page_of_a_relative_range_is_another_one_after_midnight_even_with_the_same_calls(stand: Make):
    gateway = stand(Options(calls_per_day=0))
    gateway.clock.now = NOW // 86400 * 86400 + 86380  # 20 seconds before midnight
    ended = {"range": "last_7_days", "ani": "3125550100"}
    before = gateway.get(CALLS, **ended)
    headers = {"If-None-Match": before.headers["etag"]}
    assert gateway.client.get(CALLS, params=ended, headers=headers).status_code == 304
    gateway.clock.now += 30
    after = gateway.client.get(CALLS, params=ended, headers=headers)
    assert (after.status_code, after.json()["data"]) == (200, before.json()["data"])
    assert after.json()["meta"]["start"] != before.json()["meta"]["start"]


def test_a_clock_that_is_set_back_does_not_prolong_a_response(stand: Make):
    gateway = stand()
    for _ in range(2):
        assert gateway.get(CALLS, **PAST).status_code == 200
    repeats = gateway.metric("repeats_total")
    gateway.clock.now -= 3600
    assert gateway.get(CALLS, **PAST).status_code == 200
    assert gateway.metric("repeats_total") == repeats == 1


def test_a_clock_that_is_set_back_does_not_prolong_an_error(stand: Make):
    gateway = stand(Options(faults=("error",)))
    assert [gateway.get(CALLS, **PAST).status_code for _ in range(2)] == [502, 502]
    posts = gateway.simulator.posts
    gateway.clock.now -= 3600
    gateway.simulator.misbehave()
    assert gateway.get(CALLS, **PAST).status_code == 200
    assert gateway.simulator.posts > posts


def test_a_window_that_ends_now_ends_later_a_second_later(stand: Make):
    gateway = stand()
    gateway.clock.now = NOW + 0.25
    first = gateway.get(CALLS, **LIVE).json()["meta"]
    gateway.clock.now = NOW + 0.75
    assert gateway.get(CALLS, **LIVE).json()["meta"] == first
    assert gateway.metric("repeats_total") == 1
    gateway.clock.now = NOW + 1.25
    assert first["end"] == "2026-11-18T11:06:41Z"
    assert gateway.get(CALLS, **LIVE).json()["meta"]["end"] == "2026-11-18T11:06:42Z"


MIDNIGHTS = {
    "UTC": "2026-11-19T00:00:00Z",
    "America/Chicago": "2026-11-19T06:00:00Z",
    "Asia/Kathmandu": "2026-11-18T18:15:00Z",  # UTC+05:45
}


@pytest.mark.parametrize(("zone", "midnight"), MIDNIGHTS.items(), ids=MIDNIGHTS)
@pytest.mark.parametrize("name", ["yesterday", "last_7_days"])
def test_a_range_asked_after_midnight_is_not_the_response_of_the_day_before(
    stand: Make, zone: str, midnight: str, name: str
):
    gateway = stand()
    seconds = datetime.fromisoformat(midnight).timestamp()
    asked = {"range": name, "tz": zone}
    gateway.clock.now = seconds - 12
    before = gateway.get(CALLS, **asked)
    gateway.clock.now = seconds - 1
    assert gateway.get(CALLS, **asked).content == before.content
    assert gateway.metric("repeats_total") == 1
    gateway.clock.now = seconds
    after = gateway.get(CALLS, **asked)
    windows = [(answer.json()["meta"]["start"], answer.json()["meta"]["end"]) for answer in (before, after)]
    assert gateway.metric("repeats_total") == 1
    assert all(earlier < later for earlier, later in zip(*windows, strict=True)), windows


def test_a_poll_after_a_record_became_unreadable_is_not_304(stand: Make):
    """The calls stay the same: only `meta.unreadable` counts the record."""
    gateway = stand()
    day = {"start": "2026-11-16T00:00:00Z", "end": "2026-11-17T00:00:00Z", "fields": "id", "limit": "1000"}
    first = gateway.get(CALLS, **day)
    gateway.simulator.misbehave("unreadable")
    gateway.pass_time(86_400)
    found = [
        gateway.client.get(CALLS, params=day, headers={"If-None-Match": tag})
        for tag in (first.headers["etag"], gateway.get(CALLS, **day).headers["etag"])
    ]
    assert [answer.status_code for answer in found] == [200, 304]
    assert found[0].json()["data"] == first.json()["data"]
    assert (first.json()["meta"]["unreadable"], found[0].json()["meta"]["unreadable"]) == (0, 2)


def test_the_cache_is_asked_each_minute_so_that_it_knows_what_is_in_use(stand: Make):
    gateway = stand()
    for _ in range(3):
        gateway.get(CALLS, **PAST)
        gateway.clock.now += 61
    assert gateway.metric("repeats_total") == 0
    assert gateway.simulator.posts == 1


def test_what_is_stale_or_failed_is_not_repeated(stand: Make):
    gateway = stand()
    live = {"start": "2026-11-18T00:00:00Z", "end": "2026-11-18T11:00:00Z"}
    gateway.get(CALLS, **live)
    gateway.simulator.misbehave("http-500")
    gateway.pass_time(600)
    assert gateway.get(CALLS, **live).json()["meta"]["stale"]
    assert gateway.get("/clients/8005550101/calls", **live).status_code == 502
    gateway.simulator.misbehave()
    gateway.pass_time(2)
    assert not gateway.get(CALLS, **live).json()["meta"]["stale"]
    assert gateway.get("/clients/8005550101/calls", **live).status_code == 200
    assert gateway.metric("repeats_total") == 0


def test_no_cache_goes_past_what_is_held(stand: Make):
    gateway = stand()
    gateway.get(CALLS, **PAST)
    gateway.clock.now += 5
    gateway.client.get(CALLS, params=PAST, headers={"Cache-Control": "no-cache"})
    assert gateway.simulator.posts == 2
    assert gateway.get(CALLS, **PAST).headers["age"] == "0"


def test_what_is_held_is_bounded_and_the_oldest_goes_first(stand: Make):
    gateway = stand(cache_bytes=300_000)  # an eighth is for repeats: two pages of 20 calls
    gateway.client.headers["accept-encoding"] = "identity"
    hours = [{"start": f"2026-11-0{day}T00:00:00Z", "end": f"2026-11-0{day}T12:00:00Z"} for day in range(2, 6)]
    for hour in hours:
        gateway.get(CALLS, **hour, limit=20)
    gateway.get(CALLS, **hours[-1], limit=20)
    assert gateway.metric("repeats_total") == 1
    gateway.get(CALLS, **hours[0], limit=20)
    assert gateway.metric("repeats_total") == 1


def test_each_coding_is_held_as_it_was_compressed(stand: Make):
    gateway = stand()
    plain = gateway.get(CALLS, **PAST)
    for coding in ("zstd", "gzip"):
        headers = {"Accept-Encoding": coding}
        first, again = (gateway.client.get(CALLS, params=PAST, headers=headers) for _ in range(2))
        assert (again.headers["content-encoding"], again.json()) == (coding, plain.json())
        assert again.headers["content-length"] == first.headers["content-length"]
    assert gateway.metric("repeats_total") == 2


def test_a_client_that_always_sends_a_condition_fills_the_cache(stand: Make):
    gateway = stand()
    tag = gateway.get(CALLS, **PAST).headers["etag"]
    gateway.clock.now += MAX_TTL + 1  # the stored response has expired
    for repeats in (0, 1, 2):
        unchanged = gateway.client.get(CALLS, params=PAST, headers={"If-None-Match": tag})
        assert (unchanged.status_code, unchanged.content, gateway.metric("repeats_total")) == (304, b"", repeats)
        assert unchanged.headers["etag"] == tag
        assert not {"content-type", "content-encoding"} & unchanged.headers.keys()
    whole = gateway.get(CALLS, **PAST)
    assert (whole.status_code, gateway.metric("repeats_total")) == (200, 3)
    assert whole.json()["data"]


def test_conditions_mean_the_same_for_hits_misses_and_head(stand: Make):
    gateway = stand()
    tag = gateway.get(CALLS, **PAST).headers["etag"]
    conditions = {tag: 304, tag.removeprefix("W/"): 304, f'"x", {tag}': 304, "*": 304, '"x"': 200, "": 200, "x": 200}
    for condition, status in conditions.items():
        for bypass in ({}, {"Pragma": "x"}):
            headers = {"If-None-Match": condition, **bypass}
            for method in ("GET", "HEAD"):
                answer = gateway.client.request(method, CALLS, params=PAST, headers=headers)
                assert answer.status_code == status, (condition, method)
    stream = gateway.client.get(CALLS, params=PAST | {"format": "csv"}, headers={"If-None-Match": "*"})
    assert stream.status_code == 200  # a stream has no tag
    assert gateway.client.get(f"{CALLS}/no", params=PAST, headers={"If-None-Match": "*"}).status_code == 404


BODY = b"[]"
CONSUMER = Consumer(name="dashboard", clients=("*",), scopes=frozenset({"calls"}))


async def application(scope: HTTPScope, _: Receive, send: Send) -> None:
    """Answer every request with the same response, which is fresh for an hour."""
    context_of(scope).lifetime = Lifetime(as_of=NOW, fresh_until=NOW + 3600, until=NOW + 3600)
    headers = [(b"etag", b'W/"1"'), (b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": BODY, "more_body": False})


def cache_of(clock: Clock, max_bytes: int) -> tuple[ResponseCache, Memory]:
    """Return a cache whose part of the memory is `max_bytes`, and the memory."""
    memory = Memory(max_bytes / PART)
    return ResponseCache(application, clock, memory, RequestMetrics(CollectorRegistry())), memory


def ask(cache: ResponseCache, query: bytes, **headers: bytes) -> list[Message]:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    fields = {name.replace("_", "-").encode(): value for name, value in headers.items()}
    context = RequestContext("1", fields, 0.0, CONSUMER)
    scope: dict[str, Any] = {"method": "GET", "raw_path": b"/calls", "query_string": query}
    scope["state"] = {"context": context}

    async def run() -> None:
        await cache(cast("HTTPScope", scope), cast("Receive", None), send)

    asyncio.run(run())
    return sent


def test_hostile_keys_stay_within_the_bound():
    """Each request has a key of 8 kB and a body of 2 bytes."""
    bound = 1024**2
    cache, memory = cache_of(Clock(), bound)
    ask(cache, b"first")
    with traced_memory() as held:
        for number in range(1000):
            ask(cache, b"", accept=b"text/x%d, " % number + b"a" * 8000)
            assert memory.size <= bound
    assert bound / 2 < held() < bound * 1.2
    assert len(ask(cache, b"first")) == 2  # evicted, and answered by the application


def test_many_small_entries_stay_within_the_bound():
    bound = 1024**2
    cache, memory = cache_of(Clock(), bound)
    ask(cache, b"first")
    with traced_memory() as held:
        for number in range(2000):
            ask(cache, b"%d" % number)
    assert memory.size <= bound
    assert held() < bound * 1.2


def test_expired_entries_are_dropped_when_a_response_is_stored():
    clock = Clock()
    cache, memory = cache_of(clock, 1024**2)
    for number in range(50):
        ask(cache, b"%d" % number)
    full = memory.size
    clock.now += MAX_TTL + 1
    ask(cache, b"another")
    assert memory.size < full / 40


def test_a_response_larger_than_the_bound_is_not_held():
    cache, memory = cache_of(Clock(), 1000)
    ask(cache, b"")
    assert memory.size == 0
