"""Client codes share the upstream: a code whose POSTs fail or hang changes no read of another."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.support.behaviours import (
    Behaviour,
    Upstream,
    answers,
    call,
    client,
    document,
    drip,
    failure,
    http,
    resets,
    sends,
)
from tests.support.processes import wait_for
from tests.support.stand import Make, Stand

GOOD = [f"80055503{number:02}" for number in range(12)]
BAD = ["8005559998", "8005559999"]
WINDOW = "start=2026-06-01T12:00:00Z&end=2026-06-01T13:00:00Z"  # wall 07:00 to 08:00
SHORT = {"upstream_timeout": 2.0, "upstream_idle_timeout": 2.0, "upstream_deadline": 4.0}  # seconds
BEHAVIOURS: dict[str, Behaviour] = {
    "UNAUTHORIZED": answers(failure("UNAUTHORIZED")),
    "403": answers("", status="403 No"),
    "closes": sends(close=True),
    "resets": resets(),
    "500": answers("", status="500 Error"),
    "503": answers("", status="503 Busy"),
    "HTML": answers("<html><body>Login</body></html>"),
    "ERROR": answers(failure("ERROR")),
    "ERROR about the code": answers(failure("ERROR", "Client code not valid")),
    "truncated": sends(http(document(client(call())))[:-40], close=True),
    "hangs": sends(60.0),
    "drips": drip(http(document(client(call()))), 0.2),
}


class ByCode(Upstream):
    """An upstream that misbehaves if a POST has a bad code, and else answers one call for each code."""

    def __init__(self) -> None:
        super().__init__()
        self.bad: Sequence[str] = ()
        self.fault: Behaviour = sends()
        self.requests: list[list[str]] = []
        self.behave = self.answer

    async def answer(self, body: bytes, writer: asyncio.StreamWriter) -> None:
        codes = re.findall(r"<ClientCode>([^<]+)</ClientCode>", body.decode())
        self.requests.append(codes)
        if set(codes) & set(self.bad):
            await self.fault(body, writer)
        else:
            await answers(document("".join(client(call(), code) for code in codes)))(body, writer)


@pytest.fixture(scope="module")
def upstream() -> Iterator[ByCode]:
    server = ByCode()
    with server:
        yield server


def prepared(stand: Make, upstream: ByCode, fault: str, bad: Sequence[str], **settings: float) -> Stand:
    upstream.bad, upstream.fault = bad, BEHAVIOURS[fault]
    upstream.requests.clear()
    return stand(upstream_url=f"http://127.0.0.1:{upstream.port}/xml.jsp", **settings)


def together(gateway: Stand, paths: Sequence[str]) -> list[httpx.Response]:
    """Send requests at once, and wait for all responses."""
    with ThreadPoolExecutor(len(paths)) as pool:
        return list(pool.map(gateway.client.get, paths))


def single(code: str) -> str:
    return f"/clients/{code}/calls?{WINDOW}"


def several(*codes: str) -> str:
    return "/calls?" + "".join(f"client={code}&" for code in codes) + WINDOW


def codes_of(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [one["clientCode"] for one in answer.json()["data"]]


@pytest.mark.parametrize("bad", [BAD[:1], BAD], ids=["one", "two"])
@pytest.mark.parametrize("fault", BEHAVIOURS)
def test_reads_of_other_codes_are_right_while_some_misbehave(fault: str, bad: list[str], stand: Make, upstream: ByCode):
    gateway = prepared(stand, upstream, fault, bad, **(SHORT if fault in ("hangs", "drips") else {}))
    for _ in range(2):
        answers = together(gateway, [*map(single, (*bad, *GOOD)), several(*GOOD[:3])])
        assert all(answer.status_code >= 400 for answer in answers[: len(bad)])
        assert [codes_of(answer) for answer in answers[len(bad) : -1]] == [[code] for code in GOOD]
        assert sorted(codes_of(answers[-1])) == GOOD[:3]
        gateway.pass_time(40 * 86400)  # nothing is fresh
    mixed = gateway.client.get(several(GOOD[3], bad[0], GOOD[4]))
    assert mixed.status_code >= 400
    assert bad[0] in mixed.json()["detail"]
    assert not any(code in mixed.text for code in GOOD)
    assert sorted(codes_of(gateway.client.get(several(*GOOD[3:5])))) == GOOD[3:5]
    assert gateway.metric("upstream_circuit_state") == 0
    assert gateway.metric("upstream_limit") == 8


def test_a_code_that_is_never_answered_holds_a_part_of_the_places_and_refuses_no_other(stand: Make, upstream: ByCode):
    """Nine readers of the silent code, with the default timeouts: the others are read while these POSTs hang."""
    gateway = prepared(stand, upstream, "hangs", BAD[:1])
    silent = f"/clients/{BAD[0]}/calls"
    with ThreadPoolExecutor(9) as pool:
        hanging = [
            pool.submit(gateway.client.get, f"{silent}?start=2026-0{month}-01&end=2026-0{month}-02", timeout=None)
            for month in range(1, 10)
        ]
        try:
            wait_for(lambda: gateway.metric("upstream_posts_in_flight") == 2, "the silent code holds its part")
            for month in range(1, 6):
                for code in GOOD:
                    answer = gateway.get(f"/clients/{code}/calls", start=f"2026-0{month}-01", end=f"2026-0{month}-02")
                    assert answer.status_code == 200
            assert gateway.metric("upstream_posts_in_flight") == 2
            assert not any(one.done() for one in hanging)
            assert all(len(codes) == 1 or BAD[0] not in codes for codes in upstream.requests)
        finally:
            upstream.bad = ()
            upstream.hang_up()
