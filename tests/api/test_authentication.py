"""Authentication over real sockets: credentials, open paths, refusals, rate limits, isolation of consumers."""

from __future__ import annotations

import logging
import socket
import time
from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest

from gateway.api.middleware.authentication import OPEN_PATHS
from gateway.logs import JsonFormatter
from gateway.simulator.server import Options
from tests.support.consumers import Member, keys_file, written
from tests.support.processes import wait_for
from tests.support.stand import Make, Stand

CALLS = "/clients/8005550100/calls"
FOLD = {"start": "2026-11-01T05:00:00Z", "end": "2026-11-01T09:00:00Z"}
ALL = Member("all", scopes=("calls", "personal", "status", "recordings", "refresh"))
PLAIN = Member("plain")
LIMITED = Member("limited", clients=("8005550101", "8005550102"), scopes=("calls", "personal"))
PREFIX = Member("prefix", clients=("800555010*",), scopes=("calls", "personal"))
NARROW = Member("narrow", clients=("800555010*", "x"), scopes=("calls",))
MEMBERS = (ALL, PLAIN, LIMITED, PREFIX, NARROW)


@pytest.fixture
def gateway(stand: Make, tmp_path: Path) -> Stand:
    return stand(auth="keys", keys_file=keys_file(tmp_path, *MEMBERS))


def get(gateway: Stand, member: Member, path: str, **parameters: object) -> httpx.Response:
    return gateway.client.get(path, params=parameters, headers=member.headers)  # type: ignore[arg-type]


REFUSED = {
    "nothing": [],
    "an unknown key": [("X-API-Key", "cbg_nobody")],
    "a hash": [("X-API-Key", "5" * 64)],
    "no key": [("X-API-Key", "")],
    "an unknown bearer": [("Authorization", "Bearer cbg_nobody")],
    "a token where keys are asked for": [("Authorization", "Bearer eyJhbGciOiJub25lIn0.e30.")],
    "the key as basic": [("Authorization", f"Basic {ALL.key}")],
    "the key bare": [("Authorization", ALL.key)],
    "no bearer": [("Authorization", "Bearer")],
    "two keys": [("X-API-Key", ALL.key), ("X-API-Key", PLAIN.key)],
    "two bearers": [("Authorization", f"Bearer {ALL.key}"), ("Authorization", f"Bearer {PLAIN.key}")],
    "two kinds": [("X-API-Key", ALL.key), ("Authorization", f"Bearer {PLAIN.key}")],
    "a key and a wrong bearer": [("X-API-Key", ALL.key), ("Authorization", "Bearer x")],
    "the key as digest": [("Authorization", f'Digest username="{ALL.key}", realm="Bearer"')],
    "a key and more": [("X-API-Key", f"{ALL.key},{PLAIN.key}")],
    "a cookie": [("Cookie", f"X-API-Key={ALL.key}")],
    "a huge key": [("X-API-Key", "cbg_" + "x" * 20_000)],
    "letters of another script": [("X-API-Key", "cbg_é")],
}


NO_CREDENTIAL = {"nothing", "no key", "no bearer", "the key as basic", "the key bare", "the key as digest", "a cookie"}


def test_without_a_credential_that_counts_the_answer_is_401_whatever_is_asked(gateway: Stand):
    for name, headers in REFUSED.items():
        for path in (CALLS, "/calls", "/clients/x/calls?limit=bad", "/calls/", "//clients"):
            url = httpx.URL(gateway.client.base_url, raw_path=path.encode())
            answer = gateway.client.send(httpx.Request("GET", url, headers=encoded(headers)))
            assert (answer.status_code, answer.json()["type"]) == (401, "/problems/unauthenticated"), (name, path)
            assert answer.headers["www-authenticate"].startswith('Bearer realm="callbutton-gateway"')
            assert ("invalid_token" in answer.headers["www-authenticate"]) == (name not in NO_CREDENTIAL), name
            assert answer.headers["x-request-id"] == answer.json()["requestId"]
    assert gateway.simulator.posts == 0


def encoded(headers: list[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers]


def test_a_path_that_is_not_there_is_404_whatever_credential_comes(gateway: Stand):
    for headers in (*REFUSED.values(), [("X-API-Key", ALL.key)]):
        for path in ("/nothing", "/clients/x", "/openapi", "/docs/x/y", "/calls/summary/x", "/clients//calls"):
            answer = gateway.client.get(path, headers=encoded(headers))
            assert (answer.status_code, answer.json()["type"]) == (404, "/problems/not-found"), path
            assert "www-authenticate" not in answer.headers
    assert gateway.metric("refused_total") == 0


def test_the_same_answer_tells_what_is_there_with_and_without_a_key(gateway: Stand):
    """A path is 404 without a key exactly if it is 404 with one."""
    for path in (*TRICKS, "/calls//", "/clients/a/calls/b", "/clients/a/calls/b/c", "/nothing/"):
        url = httpx.URL(gateway.client.base_url, raw_path=path.encode())
        without, with_key = (
            gateway.client.send(httpx.Request("GET", url, headers=headers)) for headers in ({}, ALL.headers)
        )
        missing = with_key.status_code == 404 and "call" not in with_key.json()["detail"]
        assert (without.status_code == 404) == missing, path


@pytest.mark.parametrize(
    "headers",
    [
        [("X-API-Key", ALL.key)],
        [("Authorization", f"Bearer {ALL.key}")],
        [("authorization", f"bEARER   {ALL.key}")],
        [("X-API-Key", ALL.key), ("Authorization", "Bearer")],
        [("X-API-Key", ALL.key), ("Authorization", "")],
        [("X-API-Key", ALL.key), ("Authorization", "Basic dXNlcjpwYXNz")],
        [("X-API-Key", ALL.key), ("Authorization", 'Digest username="a", realm="b", uri="/calls"')],
        [("X-API-Key", ALL.key), ("Authorization", f"Bearer {ALL.key}")],
        [("X-API-Key", ALL.key), ("X-API-Key", ALL.key)],
        [("X-API-Key", ""), ("X-API-Key", ALL.key), ("X-API-Key", "")],
        [("X-API-Key", f"{ALL.key}, {ALL.key}")],
        [("X-API-Key", ""), ("Authorization", f"Bearer {ALL.key}")],
        [("Authorization", "Basic dXNlcjpwYXNz"), ("Authorization", f"Bearer {ALL.key}")],
        [("Authorization", f"Bearer {ALL.key}"), ("Authorization", f"Bearer {ALL.key}")],
    ],
    ids=str,
)
def test_a_key_lets_in_whatever_else_is_no_credential(gateway: Stand, headers: list[tuple[str, str]]):
    assert gateway.client.get(CALLS, params=FOLD, headers=encoded(headers)).status_code == 200


@pytest.mark.parametrize("name", ["key", "api_key", "x-api-key", "access_token", "token"])
def test_a_key_in_a_url_is_an_unknown_parameter(gateway: Stand, name: str):
    assert gateway.get(CALLS, **FOLD | {name: ALL.key}).status_code == 401
    answer = get(gateway, ALL, CALLS, **FOLD | {name: ALL.key})
    assert answer.status_code == 400
    assert ALL.key not in answer.text


PATHS = ["/healthz", "/readyz", "/metrics", "/openapi.json", "/openapi.yaml"]
TRICKS = [
    "//healthz", "/healthz/", "/HEALTHZ", "/healthz%00", "/healthz/../calls", "/healthz%2f..%2fcalls", "/calls/",
    "//calls", "/%63alls", "/calls%3fclient=*", "/clients/8005550100%2fcalls", "/clients//calls", "/Calls",
    "/clients/8005550100/calls/", "/./calls", "/calls;/healthz", "/docs/../calls", "/problems/../calls",
    "/docs/..", "/problems/x/../../calls", "/metrics/../calls", "/openapi.json/../../calls", "/healthz%0a",
    "/problems/x%0a", "/docs/%2e%2e/calls",
]  # fmt: skip


def test_open_paths_need_no_credential_and_tricks_with_them_do(gateway: Stand):
    for path in PATHS:
        assert gateway.client.get(path).status_code == 200, path
        assert gateway.client.get(path, headers={"X-API-Key": "cbg_nobody"}).status_code == 200, path
    for path in TRICKS:
        # httpx would tidy the path up
        url = httpx.URL(gateway.client.base_url, raw_path=path.encode())
        answer = gateway.client.send(httpx.Request("GET", url))
        if not OPEN_PATHS.fullmatch(path):
            assert answer.status_code in (401, 404), path
        assert "clientCode" not in answer.text


def test_what_a_consumer_may_not_see_is_the_same_answer_whether_or_not_it_exists(gateway: Stand):
    answers = []
    for code in ("8005550100", "8005559999", "nobody"):
        answer = get(gateway, LIMITED, f"/clients/{code}/calls", **FOLD)
        problem = answer.json()
        for varying in ("instance", "requestId"):
            problem.pop(varying)
        answers.append((answer.status_code, problem))
    assert answers[0][0] == 403
    assert answers[0] == answers[1] == answers[2]
    assert get(gateway, LIMITED, "/calls", client=["8005550101", "8005550100"], **FOLD).status_code == 403
    assert gateway.simulator.posts == 0


@pytest.mark.parametrize(
    ("member", "codes"),
    [
        (ALL, {f"800555010{n}" for n in range(5)}),
        (LIMITED, {"8005550101", "8005550102"}),
        (PREFIX, {f"800555010{n}" for n in range(5)}),
    ],
    ids=lambda value: value.name if isinstance(value, Member) else "",
)
def test_every_client_means_the_consumers_own(gateway: Stand, member: Member, codes: set[str]):
    page = get(gateway, member, "/calls", client="*", limit=1000, **FOLD).json()
    assert {call["clientCode"] for call in page["data"]} == codes


def test_a_prefix_shows_what_it_names_and_no_more(stand: Make, tmp_path: Path):
    member = Member("few", clients=("80055501000", "800555010[", "8005550103*"), scopes=("calls",))
    few = member._replace(clients=("80055501000", "8005550103*"))
    gateway = stand(auth="keys", keys_file=keys_file(tmp_path, few))
    seen: set[str] = set()
    cursor: dict[str, str] = {"client": "*", **FOLD, "limit": "5"}
    while cursor:
        page = get(gateway, few, "/calls", **cursor).json()
        seen |= {call["clientCode"] for call in page["data"]}
        cursor = {"cursor": page["page"]["nextCursor"]} if page["page"]["nextCursor"] else {}
    assert seen == {"8005550103"}


def test_a_cursor_gives_no_rights(gateway: Stand):
    of_all = get(gateway, ALL, "/calls", client="*", limit=3, **FOLD).json()["page"]["nextCursor"]
    page = get(gateway, LIMITED, "/calls", cursor=of_all).json()
    assert {call["clientCode"] for call in page["data"]} <= set(LIMITED.clients)
    of_one = get(gateway, ALL, CALLS, limit=3, **FOLD).json()["page"]["nextCursor"]
    assert get(gateway, LIMITED, CALLS, cursor=of_one).status_code == 403
    assert get(gateway, LIMITED, "/calls", cursor=of_one).status_code == 403
    with_status = get(gateway, ALL, CALLS, limit=3, include="status", **FOLD).json()["page"]["nextCursor"]
    assert get(gateway, PLAIN, CALLS, cursor=with_status).status_code == 403
    masked = get(gateway, PLAIN, CALLS, cursor=of_one).json()["data"]
    assert masked
    assert all(call["ani"].startswith("********") and call["address"] is None for call in masked)


def test_what_one_consumer_was_answered_is_never_anothers(gateway: Stand):
    full = get(gateway, ALL, CALLS, **FOLD)
    for _ in range(2):  # the second time as an exact repeat
        masked = get(gateway, PLAIN, CALLS, **FOLD)
        assert "312555" not in masked.text
        assert masked.headers["etag"] != full.headers["etag"]
        tagged = {**PLAIN.headers, "If-None-Match": full.headers["etag"]}
        assert gateway.client.get(CALLS, params=FOLD, headers=tagged).status_code == 200
        again = get(gateway, ALL, CALLS, **FOLD)
        assert again.json()["data"] == full.json()["data"]
        assert get(gateway, LIMITED, CALLS, **FOLD).status_code == 403
        tagged = {**LIMITED.headers, "If-None-Match": full.headers["etag"]}
        assert gateway.client.get(CALLS, params=FOLD, headers=tagged).status_code == 403
    assert "Authorization" in full.headers["vary"]
    assert "X-API-Key" in full.headers["vary"]


def test_a_remembered_failure_is_told_only_to_those_who_may_know(gateway: Stand):
    gateway.simulator.misbehave("error@8005550100")
    assert get(gateway, ALL, CALLS, **FOLD).status_code == 502
    assert get(gateway, LIMITED, CALLS, **FOLD).status_code == 403


def test_no_cache_without_refresh_is_not_heeded_and_the_answer_says_so(gateway: Stand):
    get(gateway, ALL, CALLS, **FOLD)
    posts = gateway.simulator.posts
    gateway.clock.now += 5
    headers = {"Cache-Control": "no-cache"}
    ignored = gateway.client.get(CALLS, params=FOLD, headers={**PLAIN.headers, **headers})
    assert (ignored.status_code, gateway.simulator.posts) == (200, posts)
    assert ignored.headers["cache-status"].endswith('; detail="no-cache needs the scope refresh"')
    heeded = gateway.client.get(CALLS, params=FOLD, headers={**ALL.headers, **headers})
    assert "detail" not in heeded.headers["cache-status"]
    assert gateway.simulator.posts == posts + 1


def test_a_rate_is_told_kept_and_given_back_by_time(stand: Make, tmp_path: Path):
    slow, other = Member("slow", rate="3/minute"), Member("other", rate="600/minute")
    gateway = stand(auth="keys", keys_file=keys_file(tmp_path, slow, other, PLAIN))
    left = []
    for _ in range(3):
        answer = get(gateway, slow, CALLS, **FOLD)
        assert (answer.status_code, answer.headers["ratelimit-policy"]) == (200, '"requests";q=3;w=60')
        left.append(answer.headers["ratelimit"])
    assert left == ['"requests";r=2;t=20', '"requests";r=1;t=40', '"requests";r=0;t=60']
    refused = get(gateway, slow, CALLS, **FOLD)
    assert (refused.status_code, refused.json()["type"]) == (429, "/problems/rate-limited")
    assert (refused.headers["retry-after"], refused.headers["ratelimit"]) == ("20", '"requests";r=0;t=60')
    assert get(gateway, other, CALLS, **FOLD).status_code == 200
    assert "ratelimit" not in get(gateway, PLAIN, CALLS, **FOLD).headers
    gateway.clock.now += 20
    assert get(gateway, slow, CALLS, **FOLD).status_code == 200
    assert get(gateway, slow, CALLS, **FOLD).status_code == 429
    gateway.clock.now -= 3600  # a clock that goes back gives nothing and takes nothing
    assert get(gateway, slow, CALLS, **FOLD).status_code == 429
    assert gateway.metric('refused_total{reason="rate"}') == 3


def test_each_refusal_is_counted_and_is_one_line_without_a_secret(gateway: Stand, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "gateway")
    gateway.client.get(CALLS, headers={"X-API-Key": "cbg_nobody"})
    gateway.client.get(CALLS)
    get(gateway, LIMITED, CALLS, **FOLD)
    get(gateway, PLAIN, CALLS, include="status", **FOLD)
    reasons = ["unknown key", "no credential", "client", "scope"]
    assert [gateway.metric(f'refused_total{{reason="{reason}"}}') for reason in reasons] == [1, 1, 1, 1]
    lines = [record for record in caplog.records if record.name == "gateway.audit"]
    said = [getattr(record, "fields") for record in lines]  # noqa: B009 - LogRecord does not declare it
    assert [(line["consumer"], line["reason"], line["route"]) for line in said] == [
        (None, "unknown key", "/clients/{code}/calls"),
        (None, "no credential", "/clients/{code}/calls"),
        ("limited", "client", "/clients/{code}/calls"),
        ("plain", "scope", "/clients/{code}/calls"),
    ]
    everything = "\n".join(JsonFormatter().format(record) for record in caplog.records)
    assert "cbg_" not in everything
    assert gateway.metric('consumer_requests_total{consumer="limited",status="403"}') == 1
    assert gateway.metric('requests_total{method="GET",route="/clients/{code}/calls",status="401"}') == 2


def test_the_file_is_read_again_while_requests_go_on(stand: Make, tmp_path: Path):
    path = keys_file(tmp_path, PLAIN)
    gateway = stand(Options(), auth="keys", keys_file=path)
    assert get(gateway, PLAIN, CALLS, **FOLD).status_code == 200
    assert get(gateway, ALL, CALLS, **FOLD).status_code == 401
    Path(path).write_text(written(PLAIN, ALL), "utf-8")
    wait = time.monotonic() + 20
    while get(gateway, ALL, CALLS, **FOLD).status_code == 401 and time.monotonic() < wait:
        assert get(gateway, PLAIN, CALLS, **FOLD).status_code == 200
    assert get(gateway, ALL, CALLS, **FOLD).status_code == 200
    # Changed rights apply immediately, also to responses that are already cached.
    Path(path).write_text(written(ALL, PLAIN._replace(clients=("8005550101",))), "utf-8")
    wait = time.monotonic() + 20
    while get(gateway, PLAIN, CALLS, **FOLD).status_code == 200 and time.monotonic() < wait:
        pass
    assert get(gateway, PLAIN, CALLS, **FOLD).status_code == 403


def test_exports_under_way_are_limited_for_each_consumer_and_end_with_who_leaves(stand: Make, tmp_path: Path):
    """An export stays open while its client does not read, because the kernel's buffers fill up."""
    year = {"start": "2025-11-18", "end": "2026-11-18", "format": "ndjson"}
    path = f"{CALLS}?{urlencode(year)}"
    gateway = stand(
        Options(calls_per_day=2000), auth="keys", keys_file=keys_file(tmp_path, *MEMBERS), consumer_exports=2
    )
    url = gateway.client.base_url

    def begin() -> socket.socket:
        connection = socket.create_connection((url.host, url.port or 0), timeout=20)
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: g\r\nX-API-Key: {PLAIN.key}\r\n\r\n".encode())
        assert b" 200 " in connection.recv(100)
        return connection

    first, second = begin(), begin()
    refused = gateway.client.get(path, headers=PLAIN.headers)
    assert (refused.status_code, refused.json()["type"]) == (429, "/problems/rate-limited")
    assert refused.headers["retry-after"] == "10"
    assert gateway.metric('refused_total{reason="exports"}') == 1
    assert gateway.client.get(CALLS, params=FOLD, headers=PLAIN.headers).status_code == 200  # pages are not exports
    with gateway.client.stream("GET", path, headers=ALL.headers) as other:
        assert other.status_code == 200
    second.close()
    wait_for(lambda: _status(gateway, path) == 200, "the closed export is no longer counted")
    first.close()


def _status(gateway: Stand, path: str) -> int:
    with gateway.client.stream("GET", path, headers=PLAIN.headers) as answer:
        return answer.status_code
