"""HTTP features of every path: HEAD, OPTIONS, compression, links and cross-origin requests."""

import gzip
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import brotli  # type: ignore[import-untyped]
import httpx
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.api.middleware.request_context import combine_fields
from gateway.api.negotiation import negotiate_coding, negotiate_media_type, parse_weights, split_list, with_vary
from gateway.api.routes import document
from gateway.simulator.server import Options
from tests.support.consumers import Member, keys_file
from tests.support.lists import CALLS, FOLD
from tests.support.processes import wait_for
from tests.support.stand import Make

KEY = Member("all").key
DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "zstd": lambda body: zstandard.ZstdDecompressor().decompressobj().decompress(body),
    "br": brotli.decompress,
    "gzip": gzip.decompress,
}
CODINGS = {
    "": None,
    "identity": None,
    "gzip": "gzip",
    "gzip, deflate, br, zstd": "zstd",
    "gzip, br": "br",
    "gzip;q=1.0, br;q=0.5": "gzip",
    "br;q=0, *": "zstd",
    "zstd;q=0, br;q=0, *;q=0.1": "gzip",
    "*;q=0": None,
    "gzip;q=0.5, identity": None,
    "gzip;q=0.5, identity;q=0.2": "gzip",
    "gzip;q=nan": None,
    "GZIP": "gzip",
}


def test_the_best_coding_is_chosen():
    assert {header: negotiate_coding(header, ("zstd", "br", "gzip")) for header in CODINGS} == CODINGS


def test_the_most_specific_range_of_media_types_counts():
    offered = {"application/json": "json", "text/csv": "csv"}
    assert negotiate_media_type("text/*;q=0.1, text/csv;q=0.9, application/json;q=0.5", offered) == "csv"
    assert negotiate_media_type("*/*, application/json;q=0", offered) == "csv"
    assert negotiate_media_type("image/png", offered) is None


LISTS = {
    "": [],
    " , ,": [],
    "a,b , c": ["a", "b", "c"],
    'W/"a,b", "c"': ['W/"a,b"', '"c"'],
    'Digest realm="x, Bearer y", uri="/"': ['Digest realm="x, Bearer y"', 'uri="/"'],
    r'a;b="\",", c': [r'a;b="\","', "c"],
    'a, "b, c': ["a", '"b, c'],
}


@pytest.mark.parametrize(("header", "elements"), LISTS.items())
def test_a_list_is_split_outside_of_quotes(header: str, elements: list[str]):
    assert split_list(header) == elements


@given(st.text('a,;" \\=q'))
def test_any_list_is_split_alike_with_empty_elements_around_it(text: str):
    elements = split_list(text)
    assert all(element.strip() == element != "" for element in elements)
    assert split_list(", ".join(elements)) == elements
    assert split_list(f",, {text}") == elements


def test_quoted_parameters_do_not_end_a_media_type():
    assert parse_weights('text/csv;note="a, b;q=1";q=0.2, application/json') == [
        ("text/csv", 0.2), ("application/json", 1.0),
    ]  # fmt: skip


def test_vary_names_each_header_once():
    headers = with_vary([(b"Vary", b"Origin"), (b"a", b"b")], "accept-encoding")
    assert headers == [(b"a", b"b"), (b"vary", b"Origin, accept-encoding")]
    assert with_vary(headers, "ORIGIN") == headers


def raw(client: httpx.Client, path: str, coding: str, **more: str) -> tuple[httpx.Response, bytes]:
    with client.stream("GET", path, params=FOLD | more, headers={"Accept-Encoding": coding}) as answer:
        return answer, b"".join(answer.iter_raw())


def test_answers_and_streams_are_compressed_and_the_same(stand: Make):
    client = stand().client
    plain, expected = raw(client, CALLS, "identity")
    _, lines = raw(client, CALLS, "identity", format="ndjson")
    assert "content-encoding" not in plain.headers
    for name, decode in DECODERS.items():
        answer, body = raw(client, CALLS, name)
        assert (answer.headers["content-encoding"], answer.headers["content-length"]) == (name, str(len(body)))
        assert "Accept-Encoding" in answer.headers["vary"]
        assert answer.headers["etag"] == plain.headers["etag"]
        assert json.loads(decode(body))["data"] == json.loads(expected)["data"]
        assert len(body) < len(expected) / 3
        stream, body = raw(client, CALLS, name, format="ndjson")
        assert (stream.headers["content-encoding"], "content-length" in stream.headers) == (name, False)
        assert decode(body).splitlines()[:-1] == lines.splitlines()[:-1]
    assert "content-encoding" not in raw(client, "/healthz", "gzip")[0].headers  # tiny
    repeated, body = raw(client, CALLS, "br")
    assert json.loads(brotli.decompress(body))["data"] == json.loads(expected)["data"]
    assert repeated.headers["content-encoding"] == "br"
    unchanged = client.get(CALLS, params=FOLD, headers={"If-None-Match": plain.headers["etag"]})
    assert (unchanged.status_code, "content-encoding" in unchanged.headers) == (304, False)


def test_a_compressed_stream_that_breaks_off_has_no_end(stand: Make):
    gateway = stand(Options(calls_per_day=2000), stale_if_error=0)
    parameters = {"start": "2026-10-20", "format": "ndjson"}
    with gateway.client.stream("GET", CALLS, params=parameters, headers={"Accept-Encoding": "gzip"}) as answer:
        pieces = answer.iter_raw()
        next(pieces)
        gateway.simulator.misbehave("error")
        try:
            for _ in pieces:
                pass
        except httpx.RemoteProtocolError:
            return
    raise AssertionError("a clean end")


PATHS = [
    "/clients/8005550100/changes",
    "/changes?client=*",
    "/calls?client=*&limit=3",
    f"{CALLS}?limit=3",
    f"{CALLS}/summary?range=today",
    "/calls/summary?range=today&client=*",
    f"{CALLS}/missed?range=today",
    "/calls/missed?range=today&client=*",
    "/clients?range=today",
    "/healthz",
    "/readyz",
    "/metrics",
    "/openapi.json",
    "/openapi.yaml",
    "/docs",
    "/problems/not-found",
]


def test_head_is_get_without_a_body_on_every_path(stand: Make):
    client = stand().client
    client.headers["accept-encoding"] = "identity"  # tokens of the feed differ, and so do their compressed lengths
    for path in PATHS:
        answer, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (200, b""), path
        assert head.headers["content-type"] == answer.headers["content-type"], path
        if path != "/metrics":  # it counts the two
            assert head.headers["content-length"] == answer.headers["content-length"], path
    missing = client.head("/nothing")
    assert (missing.status_code, missing.content) == (404, b"")
    assert 'method="HEAD"' in client.get("/metrics").text


def test_head_of_a_stream_reads_no_further_than_its_beginning(stand: Make):
    gateway = stand()
    head = gateway.client.head(CALLS, params={"start": "2025-01-01", "format": "csv"})
    assert (head.status_code, head.headers["content-type"]) == (200, "text/csv; charset=utf-8; header=present")
    assert gateway.simulator.posts <= 2  # one ahead


def test_options_and_405_say_what_is_allowed_on_every_path(stand: Make):
    client = stand().client
    for path in PATHS:
        options, refused = client.options(path), client.post(path)
        assert (options.status_code, options.content, options.headers["allow"]) == (204, b"", "GET, HEAD, OPTIONS")
        assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
    assert client.options("/nothing").status_code == 404


def test_links_begin_with_the_public_address(stand: Make):
    client = stand(public_url="https://api.example/callbutton").client
    answer = client.get(CALLS, params=FOLD | {"limit": "1"})
    cursor = answer.json()["page"]["nextCursor"]
    assert answer.headers["link"] == f'<https://api.example/callbutton{CALLS}?cursor={cursor}>; rel="next"'
    assert client.get(f"{CALLS}?cursor={cursor}").status_code == 200


def test_answers_say_how_long_they_took(stand: Make):
    assert stand().get(CALLS, **FOLD).headers["server-timing"].startswith("cache;dur=")


def test_pages_of_origins_that_are_named_may_read_answers(stand: Make):
    client = stand(cors_origins=frozenset({"https://App.Example"})).client
    asked = {"Origin": "https://app.example"}
    preflight = client.options(CALLS, headers=asked | {"Access-Control-Request-Method": "GET"})
    assert (preflight.status_code, preflight.content) == (204, b"")
    assert preflight.headers["access-control-allow-origin"] == "https://app.example"
    assert "X-API-Key" in preflight.headers["access-control-allow-headers"]
    for path in (CALLS, "/nothing"):
        answer = client.get(path, params=FOLD, headers=asked)
        assert answer.headers["access-control-allow-origin"] == "https://app.example"
        assert "ETag" in answer.headers["access-control-expose-headers"]
        assert "Origin" in answer.headers["vary"]
    other = client.get(CALLS, params=FOLD, headers={"Origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers
    refused = {"Origin": "https://other.example", "Access-Control-Request-Method": "GET"}
    assert "access-control-allow-origin" not in client.options(CALLS, headers=refused).headers
    everyone = stand(cors_origins=frozenset({"*"})).client
    assert everyone.get("/healthz", headers=asked).headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-origin" not in stand().client.get("/healthz", headers=asked).headers


def test_pages_of_named_origins_may_read_every_refusal(stand: Make, tmp_path: Path):
    origin = {"Origin": "https://app.example"}
    keys = keys_file(tmp_path, Member("dashboard"))
    client = stand(cors_origins=frozenset({"https://app.example"}), auth="keys", keys_file=keys).client
    long = f"{CALLS}?x={'y' * 20_000}"
    for path, status in ((CALLS, 401), (long, 400), ("/healthz", 200)):
        answer = client.get(path, headers=origin)
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == "https://app.example", path
        assert "access-control-allow-origin" not in client.get(path).headers, path


def test_pages_of_named_origins_may_read_the_refusal_of_one_request_too_many(stand: Make):
    gateway = stand(
        Options(faults=("hang",)), cors_origins=frozenset({"*"}), request_concurrency=1, upstream_timeout=5.0
    )
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(lambda: gateway.client.get(CALLS, params=FOLD, timeout=60))
        wait_for(lambda: gateway.metric("upstream_posts_in_flight") == 1, "the first request waits")
        refused = gateway.client.get(CALLS, params=FOLD, headers={"Origin": "https://app.example"})
        assert (refused.status_code, refused.json()["type"]) == (503, "/problems/overloaded")
        assert refused.headers["access-control-allow-origin"] == "*"
        gateway.simulator.misbehave()
        waiting.result()


def test_pages_of_named_origins_may_read_a_crash(stand: Make, monkeypatch: pytest.MonkeyPatch):
    async def crash(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("gateway.api.calls.list_response", crash)
    client = stand(cors_origins=frozenset({"*"})).client
    answer = client.get(CALLS, params=FOLD, headers={"Origin": "https://app.example"})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (500, "*")


def test_a_preflight_allows_the_headers_of_tracing(stand: Make):
    client = stand(cors_origins=frozenset({"*"})).client
    asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "GET"}
    allowed = client.options(CALLS, headers=asked).headers["access-control-allow-headers"].split(", ")
    assert {"traceparent", "tracestate", "baggage"} <= set(allowed)


def test_repeated_header_fields_are_one_list_for_every_layer(stand: Make):
    client = stand().client
    both = [("Accept", "application/json;q=0.5"), ("Accept", "text/csv")]
    for headers, media_type in ((both, "text/csv"), (both[:1], "application/json"), (both[1:], "text/csv")) * 2:
        answer = client.get(CALLS, params=FOLD, headers=headers)
        assert answer.headers["content-type"].startswith(media_type)
    tag = client.get(CALLS, params=FOLD).headers["etag"]
    for _ in range(2):
        unchanged = client.get(CALLS, params=FOLD, headers=[("If-None-Match", tag), ("If-None-Match", 'W/"x"')])
        assert unchanged.status_code == 304


def test_repeated_fields_are_joined_in_order():
    fields = [(b"accept", b"a"), (b"host", b"h"), (b"accept", b"b")]
    assert combine_fields(fields) == {b"accept": b"a, b", b"host": b"h"}


VALUES = {
    "Accept": ["text/csv", "application/json;q=0.5", "*/*;q=0.1", "text/csv;q=0", "image/png", ""],
    "Accept-Encoding": ["gzip", "br;q=0.5", "zstd;q=0", "*;q=0.3", "identity", ""],
    "Authorization": ["Basic dXNlcjpwYXNz", "Bearer", "", f"Bearer {KEY}", "Bearer cbg_other"],
    "X-API-Key": [KEY, "", "cbg_other"],
    "Cache-Control": ["no-cache", "max-age=0", ""],
    "If-None-Match": ['W/"x"', "*", ""],
    "Origin": ["https://app.example", "https://other.example"],
    "X-Request-Id": ["one", "two"],
    "traceparent": ["00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "x"],
}
LINES = st.lists(st.sampled_from([(name, value) for name, values in VALUES.items() for value in values]), max_size=8)
VARYING = {"date", "server-timing", "x-request-id"}


def seen(answer: httpx.Response) -> tuple[object, ...]:
    """The parts of an answer that must not vary: all but ids and times of the request."""
    headers = sorted((name, value) for name, value in answer.headers.multi_items() if name not in VARYING)
    body = {} if answer.headers.get("content-type") == "application/problem+json" else answer.content
    return answer.status_code, answer.headers["x-request-id"] in ("one", "two"), headers, body


def test_any_lines_of_headers_are_the_same_as_their_combination(stand: Make, tmp_path: Path):
    origins = frozenset({"https://app.example"})
    keys = keys_file(tmp_path, Member("all", scopes=("calls", "personal", "refresh")))
    gateway = stand(auth="keys", keys_file=keys, cors_origins=origins)
    client = httpx.Client(base_url=gateway.client.base_url, timeout=60)
    client.headers.clear()
    statuses = set()

    @settings(max_examples=60)
    @given(LINES)
    def check(lines: list[tuple[str, str]]) -> None:
        combined: dict[str, list[str]] = {}
        for name, value in lines:
            combined.setdefault(name, []).append(value)
        together = [(name, ", ".join(values).strip()) for name, values in combined.items()]
        client.get(CALLS, params=FOLD, headers=together)  # afterwards both are answered from the same caches
        answers = [client.get(CALLS, params=FOLD, headers=one) for one in (lines, together, lines)]
        assert len({str(seen(answer)) for answer in answers}) == 1
        statuses.add(answers[0].status_code)

    check()
    client.close()
    assert {200, 401} <= statuses


@given(st.lists(st.tuples(st.sampled_from([b"accept", b"range", b"x"]), st.sampled_from([b"", b"a", b"b, c"]))))
def test_combining_again_changes_nothing(fields: list[tuple[bytes, bytes]]):
    combined = combine_fields(fields)
    assert combine_fields(list(combined.items())) == combined
    for name, value in combined.items():
        assert value == b", ".join(each for other, each in fields if other == name)


def test_every_path_of_the_contract_is_looked_at_here():
    templates = {path.split("?")[0].replace("8005550100", "{code}") for path in PATHS}
    assert document()["paths"].keys() <= templates | {"/clients/{code}/calls/{call_id}", "/recordings/{token}"}
