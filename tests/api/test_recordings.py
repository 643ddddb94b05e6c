"""Links to recordings: they require a scope, lead only to the recording, and expire."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.callbutton.recordings import MAX_RECORDINGS, locate
from gateway.simulator.recordings import wav
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
    assert first_call(gateway, READER)["recordingUrl"] is None
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
    beyond = gateway.client.get(call["recordingUrl"], headers={"Range": "bytes=9999999-"})
    assert (beyond.status_code, beyond.content) == (200, whole)
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


def test_a_forged_link_a_cursor_and_a_link_with_parameters_are_refused(gateway: Stand):
    link = first_call(gateway)["recordingUrl"]
    changed = link[:-1] + ("A" if link[-1] != "A" else "B")
    page = gateway.client.get(CALLS, params=WINDOW | {"limit": "1"}, headers=LISTENER.headers).json()
    for bad in (changed, link[:30], "/recordings/x", f"/recordings/{page['page']['nextCursor']}"):
        assert gateway.client.get(bad).status_code == 403, bad
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
        self.asked: list[str] = []

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (message := await receive())["type"] != "lifespan.shutdown":
                await send({"type": message["type"] + ".complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        self.asked.append(scope["path"])
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.body})


REFUSED = {
    "a page": (200, [(b"content-type", b"text/html")], 502, "upstream-malformed"),
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
