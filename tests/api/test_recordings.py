"""Links to recordings: they require a scope, lead only to the recording, and expire."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.api.recordings import DEFAULT_RATE
from gateway.callbutton.recordings import MAX_RECORDINGS, locate, redirected
from gateway.errors import UpstreamFailed
from gateway.simulator.calls import part_of, wav
from tests.support.consumers import Member, keys_file
from tests.support.processes import wait_for
from tests.support.stand import Make, Stand, serving

CALLS = "/clients/8005550100/calls"
WINDOW = {"start": "2026-11-01T05:00:00Z", "end": "2026-11-01T09:00:00Z", "recorded": "true"}
LISTENER = Member("listener", clients=("8005550100",), scopes=("calls", "recordings"))
READER = Member("reader", clients=("8005550100",), scopes=("calls", "personal"))
HOUR = 3600


@pytest.fixture
def gateway(stand: Make, tmp_path: Path) -> Stand:
    return stand(auth="keys", keys_file=keys_file(tmp_path, LISTENER, READER))


def first_call(gateway: Stand, who: Member = LISTENER) -> dict[str, Any]:
    answer = gateway.client.get(CALLS, params=WINDOW | {"limit": "1"}, headers=who.headers)
    call: dict[str, Any] = answer.raise_for_status().json()["data"][0]
    return call


def test_a_link_plays_the_recording_without_credentials_and_only_for_who_may_listen(gateway: Stand):
    call = first_call(gateway)
    assert re.fullmatch(r"/recordings/[A-Za-z0-9_-]+", call["recordingUrl"])
    assert gateway.client.get(CALLS, params=WINDOW, headers=READER.headers).status_code == 403
    calls = gateway.client.get(
        CALLS, params={k: v for k, v in WINDOW.items() if k != "recorded"}, headers=READER.headers
    )
    assert {one["recordingUrl"] for one in calls.json()["data"]} == {None}
    played = gateway.client.get(call["recordingUrl"])
    assert (played.status_code, played.headers["content-type"]) == (200, "audio/wav")
    assert played.content == wav(call["id"])
    assert played.headers["x-content-type-options"] == "nosniff"


def test_a_part_is_a_part_and_head_has_no_body(gateway: Stand):
    call = first_call(gateway)
    whole = wav(call["id"])
    part = gateway.client.get(call["recordingUrl"], headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, whole[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(whole)}"
    for none in ("bytes=9999999-", "bytes=19-10", "bytes=1-2,4-5", "bytes=", "seconds=1-2", "bytes=-0"):
        beyond = gateway.client.get(call["recordingUrl"], headers={"Range": none})
        assert (beyond.status_code, beyond.content) == (200, whole), none
    for _ in range(MAX_RECORDINGS + 2):  # none stays open
        head = gateway.client.head(call["recordingUrl"])
        assert (head.status_code, head.headers["content-length"], head.content) == (200, str(len(whole)), b"")
    assert gateway.client.get(call["recordingUrl"]).content == whole


def test_a_link_is_the_same_within_an_hour_and_ends_with_the_next(gateway: Stand):
    gateway.clock.now = gateway.clock.now // HOUR * HOUR + 1
    link = first_call(gateway)["recordingUrl"]
    gateway.clock.now += HOUR - 2
    assert first_call(gateway)["recordingUrl"] == link
    gateway.clock.now += HOUR
    assert gateway.client.get(link).status_code == 200
    gateway.clock.now += 1
    ended = gateway.client.get(link)
    assert (ended.status_code, ended.json()["type"]) == (403, "/problems/forbidden")
    late = first_call(gateway)["recordingUrl"]
    gateway.clock.now -= HOUR  # the clock is set back: the link does not live longer
    assert [gateway.client.get(one).status_code for one in (late, link)] == [403, 200]


def test_a_forged_link_a_cursor_and_a_link_with_parameters_are_refused(gateway: Stand):
    link = first_call(gateway)["recordingUrl"]
    token = link.removeprefix("/recordings/")
    changed = [token[:at] + ("A" if one != "A" else "B") + token[at + 1 :] for at, one in enumerate(token)]
    assert {gateway.client.get(f"/recordings/{one}").status_code for one in changed} == {403}
    page = gateway.client.get(CALLS, params=WINDOW | {"limit": "1"}, headers=LISTENER.headers).json()
    for bad in (link[:30], f"{link}=", "/recordings/x", f"/recordings/{page['page']['nextCursor']}"):
        refused = gateway.client.get(bad)
        assert (refused.status_code, "`recordingUrl`" in refused.json()["hint"]) == (403, True), bad
    assert gateway.client.get(f"{link}?id=7").status_code == 400


def test_a_link_ends_with_the_rights_of_its_consumer(stand: Make, tmp_path: Path):
    path = keys_file(tmp_path, LISTENER)
    gateway = stand(auth="keys", keys_file=path)
    link = first_call(gateway)["recordingUrl"]
    keys_file(tmp_path, Member("listener", clients=("8005550100",), scopes=("calls",)))
    wait_for(lambda: gateway.client.get(link).status_code == 403, "the keys file is read again")


def test_a_key_of_another_gateway_opens_nothing(stand: Make):
    link = stand(signing_key="a" * 32).get(CALLS, **WINDOW, limit="1").json()["data"][0]["recordingUrl"]
    assert stand(signing_key="b" * 32).client.get(link).status_code == 403


class Elsewhere:
    """An ASGI application that answers every request for a recording with a configurable response."""

    def __init__(self) -> None:
        self.status, self.headers, self.body = 200, [(b"content-type", b"audio/mpeg")], b"sound"
        self.ranges = False  # whether a range is answered with a part
        self.asked: list[str] = []

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (message := await receive())["type"] != "lifespan.shutdown":
                await send({"type": message["type"] + ".complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        self.asked.append(scope["path"])
        part = part_of(self.body, dict(scope["headers"]).get(b"range", b"")) if self.ranges else None
        headers, body, status = self.headers, self.body, self.status
        if part is not None:
            status, body = 206, body[slice(*part)]
            shown = f"bytes {part[0]}-{part[1] - 1}/{len(self.body)}"
            headers = [
                *(field for field in headers if field[0] != b"content-range"),
                (b"content-range", shown.encode()),
            ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Silent(Elsewhere):
    """A server that answers only once it may."""

    def __init__(self) -> None:
        super().__init__()
        self.answer, self.waiting = threading.Event(), 0

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        self.waiting += scope["type"] == "http"
        while scope["type"] == "http" and not self.answer.is_set():  # noqa: ASYNC110 - another thread sets it
            await asyncio.sleep(0.01)
        await super().__call__(scope, receive, send)


REFUSED = {
    "a page": (200, [(b"content-type", b"text/html")], 404, "not-found"),
    "text": (200, [(b"content-type", b"text/plain")], 502, "upstream-malformed"),
    "no part": (206, [(b"content-type", b"audio/wav")], 502, "upstream-error"),
    "another part": (206, [(b"content-type", b"audio/wav"), (b"content-range", b"lines 0-9/9")], 502, "upstream-error"),
    "never whole": (206, [(b"content-type", b"audio/wav"), (b"content-range", b"bytes 0-4/9")], 502, "upstream-error"),
    "no type": (200, [], 502, "upstream-malformed"),
    "nothing": (404, [], 404, "not-found"),
    "forbidden": (403, [], 502, "upstream-unauthorized"),
    "a failure": (500, [], 502, "upstream-error"),
    "another host": (302, [(b"location", b"http://169.254.169.254/x.wav")], 502, "upstream-error"),
    "in circles": (302, [(b"location", b"/again")], 502, "upstream-error"),
    "nowhere": (302, [], 502, "upstream-error"),
    "nothing new": (304, [(b"location", b"/x")], 502, "upstream-error"),
    "a host that is none": (302, [(b"location", b"http://[::1")], 502, "upstream-error"),
    "a bracket": (302, [(b"location", b"//[")], 502, "upstream-error"),
    "without end": (302, [(b"location", b"/" + b"a" * 70_000)], 502, "upstream-malformed"),
    "too long": (
        200,
        [(b"content-type", b"audio/wav"), (b"content-length", b"99999999999")],
        502,
        "upstream-malformed",
    ),
    "compressed": (200, [(b"content-type", b"audio/wav"), (b"content-encoding", b"br")], 502, "upstream-malformed"),
}


def test_what_is_not_a_recording_is_a_problem_and_never_handed_on(stand: Make):
    server = Elsewhere()
    with serving(server) as port:
        gateway = stand(recording_url=f"http://127.0.0.1:{port}/{{id}}.mp3")
        call = gateway.get(CALLS, **WINDOW, limit="1").json()["data"][0]
        played = gateway.client.get(call["recordingUrl"])
        assert (played.content, server.asked) == (b"sound", [f"/{call['id']}.mp3"])
        for name, (status, headers, expected, problem) in REFUSED.items():
            server.status, server.headers = status, headers
            answer = gateway.client.get(call["recordingUrl"], timeout=10)
            assert (answer.status_code, answer.json()["type"]) == (expected, f"/problems/{problem}"), name


def test_a_recording_that_breaks_off_never_ends_cleanly(stand: Make):
    server = Elsewhere()
    server.headers = [(b"content-type", b"audio/wav"), (b"content-length", b"900000")]
    server.body = bytes(400_000)
    with serving(server) as port:
        gateway = stand(recording_url=f"http://127.0.0.1:{port}/{{id}}")
        link = gateway.get(CALLS, **WINDOW, limit="1").json()["data"][0]["recordingUrl"]
        with pytest.raises(httpx.HTTPError):
            gateway.client.get(link)


FORMATS = {
    "wav": (b"RIFF\x24\x00\x00\x00WAVEfmt ", "audio/wav"),
    "long wav": (b"RF64\xff\xff\xff\xffWAVEds64", "audio/wav"),
    "mp3 with a tag": (b"ID3\x03\x00\x00\x00\x00\x00\x00\x00\x00", "audio/mpeg"),
    "mp3": (b"\xff\xfb\x90\x64" + bytes(12), "audio/mpeg"),
    "mp3 of 8 kHz": (b"\xff\xe3\x18\xc4" + bytes(12), "audio/mpeg"),
    "mp2": (b"\xff\xfd\x80\x04" + bytes(12), "audio/mpeg"),
    "ogg": (b"OggS\x00\x02" + bytes(12), "audio/ogg"),
    "asf": (bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"), "audio/x-ms-wma"),
    "aiff": (b"FORM\x00\x00\x00\x00AIFFCOMM", "audio/aiff"),
    "aifc": (b"FORM\x00\x00\x00\x00AIFCFVER", "audio/aiff"),
    "au": (b".snd\x00\x00\x00\x18" + bytes(8), "audio/basic"),
}
LABELS = ("application/octet-stream", "application/force-download", "text/html", "video/x-ms-asf", "audio/wav", None)


@pytest.fixture
def recorder(stand: Make) -> Iterator[tuple[Elsewhere, Callable[..., httpx.Response]]]:
    """A server of recordings, and a function that plays one, with these request headers."""
    server = Elsewhere()
    with serving(server) as port:
        gateway = stand(recording_url=f"http://127.0.0.1:{port}/{{id}}")
        link = gateway.get(CALLS, **WINDOW, limit="1").json()["data"][0]["recordingUrl"]
        yield server, lambda method="GET", **headers: gateway.client.request(method, link, headers=headers)


@pytest.mark.parametrize("name", FORMATS)
def test_audio_is_known_by_its_first_bytes_whatever_its_label(name: str, recorder: Any):
    server, play = recorder
    beginning, media_type = FORMATS[name]
    server.body, server.ranges = beginning + bytes(range(200)), True
    for label in LABELS:
        server.headers = [] if label is None else [(b"content-type", label.encode())]
        played = play()
        assert (played.status_code, played.headers["content-type"], played.content) == (200, media_type, server.body)
    server.headers = [(b"content-type", b"application/octet-stream")]
    for asked in ("bytes=0-1", "bytes=0-", "bytes=100-109"):
        part = play(Range=asked)
        start, end = part_of(server.body, asked.encode()) or (0, 0)
        assert (part.status_code, part.headers["content-type"]) == (206, media_type), asked
        assert part.content == server.body[start:end]
        assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{len(server.body)}"


NOT_AUDIO = {
    "a page": (b"<!DOCTYPE html><title>Not found</title>", 404),
    "a page after a mark": (b"\xef\xbb\xbf\r\n <HTML><body>No recording", 404),
    "XHTML": (b'<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"/>', 404),
    "UTF-16": (b"\xff\xfe" + "plain".encode("utf-16-le"), 502),
    "a film": (b"RIFF\x24\x00\x00\x00AVI LIST", 502),
    "an image": (b"RIFF\x24\x00\x00\x00WEBPVP8 ", 502),
    "another image": (b"FORM\x00\x00\x00\x00ILBMBMHD", 502),
    "PNG": (b"\x89PNG\r\n\x1a\n" + bytes(20), 502),
    "text": (b"The recording is not available.", 502),
    "nothing": (b"", 502),
}


@pytest.mark.parametrize("name", NOT_AUDIO)
def test_what_is_not_audio_is_refused_and_a_page_means_that_there_is_none(name: str, recorder: Any):
    server, play = recorder
    server.body, expected = NOT_AUDIO[name]
    for label in (b"application/octet-stream", b"video/mpeg"):
        server.headers = [(b"content-type", label)]
        assert play().status_code == expected
    server.headers = [(b"content-type", b"text/html; charset=utf-8")]
    assert play().status_code == 404


def test_an_unknown_format_with_an_audio_label_is_handed_on(recorder: Any):
    server, play = recorder
    server.headers, server.body = (
        [(b"content-type", b"audio/AMR"), (b"content-encoding", b"UTF-8")],
        b"#!AMR\n" + bytes(9),
    )
    assert (play().headers["content-type"], play().content) == ("audio/amr", server.body)


def test_a_false_condition_head_and_a_part_that_was_not_asked_for_give_the_whole(recorder: Any):
    server, play = recorder
    server.headers, server.body, server.ranges = [(b"content-type", b"audio/wav")], FORMATS["wav"][0] * 9, True
    for headers in ({"If-Range": '"other"'}, {"If-Range": "Wed, 21 Oct 2015 07:28:00 GMT"}):
        whole = play(**headers, Range="bytes=0-9")
        assert (whole.status_code, whole.content, "content-range" in whole.headers) == (200, server.body, False)
    head = play("HEAD", Range="bytes=5-9")
    assert (head.status_code, "content-range" in head.headers) == (200, False)
    server.ranges = False
    for first in (0, 1):  # the server sends a part unasked: all of it, or less
        server.status, size = 206, len(server.body)
        shown = f"bytes 0-{size - 1 - first}/{size}".encode()
        server.headers = [(b"content-type", b"audio/wav"), (b"content-range", shown)]
        server.ranges = bool(first)
        unasked = play()
        assert (unasked.status_code, "content-range" in unasked.headers) == (200, False)
        assert unasked.content == server.body


def test_slow_listeners_of_one_consumer_leave_places_to_others(stand: Make, tmp_path: Path):
    other = Member("other", clients=("8005550100",), scopes=("calls", "recordings"))
    server = Silent()
    with serving(server) as port:
        path = keys_file(tmp_path, LISTENER, other)
        url = f"http://127.0.0.1:{port}/{{id}}"
        gateway = stand(auth="keys", keys_file=path, recording_url=url)
        links = [first_call(gateway, who)["recordingUrl"] for who in (LISTENER, other)]
        with ThreadPoolExecutor(MAX_RECORDINGS) as pool:
            waiting = [pool.submit(gateway.client.get, links[0]) for _ in range(MAX_RECORDINGS - 2)]
            held = MAX_RECORDINGS // 2 + 1
            wait_for(lambda: sum(one.done() for one in waiting) == len(waiting) - held, "the rest are refused")
            wait_for(lambda: server.waiting == held, "the upstream is asked for its share")
            refused = next(one.result() for one in waiting if one.done())
            assert (refused.status_code, refused.json()["type"]) == (429, "/problems/rate-limited")
            assert "retry-after" in refused.headers
            playing = pool.submit(gateway.client.get, links[1])
            wait_for(lambda: server.waiting == held + 1, "the other's is asked for")
            server.answer.set()
            assert playing.result().content == server.body
            assert {one.result().status_code for one in waiting} == {200, 429}
        assert gateway.client.get(links[0]).status_code == 200


def test_links_count_against_the_rate_of_their_consumer(stand: Make, tmp_path: Path):
    rated = Member("rated", clients=("8005550100",), scopes=("calls", "recordings"), rate="5/minute")
    gateway = stand(auth="keys", keys_file=keys_file(tmp_path, LISTENER, rated))
    link = first_call(gateway, rated)["recordingUrl"]
    played = [gateway.client.get(link) for _ in range(5)]
    assert [one.status_code for one in played] == [200] * 4 + [429]
    assert [one.headers["ratelimit"].partition(";t")[0] for one in played[:2]] == ['"requests";r=3', '"requests";r=2']
    assert gateway.client.get(CALLS, headers=rated.headers).status_code == 429
    free = first_call(gateway)["recordingUrl"]  # its consumer has no rate, so that of recordings counts
    requests = DEFAULT_RATE.requests
    assert [gateway.client.head(free).status_code for _ in range(requests + 1)] == [200] * requests + [429]


UPSTREAM = "http://callbutton.example/cb/main/jsp/xml/xml.jsp"
OWN = "http://callbutton.example/cb/main/jsp/mates/r.jsp?id=7%2F8"


@pytest.mark.parametrize(
    ("value", "template", "expected"),
    [
        (None, "/cb/main/jsp/mates/r.jsp?id={id}", OWN),
        ("http://callbutton.example/elsewhere/7.wav", "/r?id={id}", "http://callbutton.example/elsewhere/7.wav"),
        ("http://CALLBUTTON.example:80/7.wav", "/r?id={id}", "http://CALLBUTTON.example:80/7.wav"),
        ("https://callbutton.example/7.wav", "/cb/main/jsp/mates/r.jsp?id={id}", OWN),
        ("http://callbutton.example:8080/7.wav", "/cb/main/jsp/mates/r.jsp?id={id}", OWN),
        ("http://169.254.169.254/latest", "/cb/main/jsp/mates/r.jsp?id={id}", OWN),
        ("file:///etc/passwd", "/cb/main/jsp/mates/r.jsp?id={id}", OWN),
        ("http://callbutton.example:x/", "/cb/main/jsp/mates/r.jsp?id={id}", OWN),
        ("recordings/7", "/cb/main/jsp/mates/r.jsp?id={id}", OWN),
        ("http://sound.example/7", "http://sound.example/{id}.mp3", "http://sound.example/7"),
    ],
)
def test_the_upstreams_own_address_counts_at_its_own_origin_alone(value: str | None, template: str, expected: str):
    assert locate(value, "7/8", template, UPSTREAM) == expected


@pytest.mark.parametrize(
    ("location", "followed"),
    [
        ("/audio/7.wav", "http://sound.example:8080/audio/7.wav"),
        ("https://sound.example/7", "https://sound.example/7"),
        ("https://SOUND.example:8443/7", "https://SOUND.example:8443/7"),
        ("//sound.example:8080/7", "http://sound.example:8080/7"),
        ("http://sound.example/7", None),
        ("http://sound.example:81/7", None),
        ("https://other.example/7", None),
        ("https://sound.example.other.example/7", None),
        ("https://sound.example@other.example/7", None),
        ("https:///7", None),
        ("ftp://sound.example:8080/7", None),
        ("file:///etc/passwd", None),
    ],
)
def test_a_redirect_leads_to_the_same_server_or_to_https_of_its_host(location: str, followed: str | None):
    if followed is not None:
        assert redirected("http://sound.example:8080/r?id=7", location) == followed
    else:
        with pytest.raises(UpstreamFailed):
            redirected("http://sound.example:8080/r?id=7", location)


def test_a_redirect_from_https_never_leads_to_http():
    with pytest.raises(UpstreamFailed):
        redirected("https://sound.example/7", "http://sound.example/7")
