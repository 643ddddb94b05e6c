"""Every route with every set of scopes, in every format: the refusals, and the data in each answer."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from gateway.access import SCOPES
from gateway.api.middleware.authentication import OPEN_PATHS
from gateway.api.query import PARAMETERS
from gateway.api.routes import HANDLERS
from gateway.formats import FORMATS
from gateway.simulator.calls import CALLER_NAMES, FIRST, JOURNALS, LAST, STREETS
from gateway.simulator.server import Options
from tests.support.consumers import Member, keys_file
from tests.support.stand import Make, Stand

MINE, OTHER = "8005550100", "8005550101"
FOLD = {"start": "2026-11-01T05:00:00Z", "end": "2026-11-01T09:00:00Z"}
# Missed callers are read up to now, so a window of long ago would take long.
RECENT = {"start": "2026-11-18T05:00:00Z", "end": "2026-11-18T09:00:00Z"}
LIST_FORMATS = {"json": "application/json", "ndjson": "application/x-ndjson", "csv": "text/csv"}
JSON = {"json": "application/json"}


class Row(NamedTuple):
    """A route that returns calls: a path with `{code}` and `{id}`, its kind in the table of parameters, its formats."""

    path: str
    kind: str
    formats: dict[str, str] = JSON


ROWS = {
    "/clients/{code:str}/calls": Row("/clients/{code}/calls", "list", LIST_FORMATS),
    "/calls": Row("/calls?client={code}", "list", LIST_FORMATS),
    "/clients/{code:str}/calls/{call_id:str}": Row("/clients/{code}/calls/{id}", "call"),
    "/clients/{code:str}/calls/summary": Row("/clients/{code}/calls/summary", "summary", LIST_FORMATS),
    "/calls/summary": Row("/calls/summary?client={code}", "summary", LIST_FORMATS),
    "/clients/{code:str}/calls/missed": Row("/clients/{code}/calls/missed", "missed", LIST_FORMATS),
    "/calls/missed": Row("/calls/missed?client={code}", "missed", LIST_FORMATS),
    "/clients": Row("/clients", "clients"),
}
FEED_ROWS = {  # tests/api/test_feed_rights.py
    "/clients/{code:str}/changes": Row("/clients/{code}/changes", "changes"),
    "/changes": Row("/changes?client={code}", "changes"),
}
OPEN_ROWS = {
    "/", "/healthz", "/readyz", "/metrics", "/openapi.json", "/openapi.yaml", "/docs", "/docs/{name:str}",
    "/console", "/console/{name:str}",
    "/problems/{name:str}", "/recordings/{token:str}",
}  # fmt: skip
EVERY_SET = [frozenset(chosen) for size in range(len(SCOPES) + 1) for chosen in combinations(SCOPES, size)]
NEEDED = {"missed": ("personal",)}  # the scopes of a kind of route, beside `calls`
# Optional parameters, each with its value and the scope that it requires.
ASKED = {"include": ("status", "status"), "ani": ("3125550161", "personal")}
PERSONAL = {
    *FIRST[:4],
    *LAST[:3],
    *CALLER_NAMES,
    *STREETS,
    *(text.split("\r")[0] for text in JOURNALS),
    "312555",
    "print ad",
}


def member(scopes: frozenset[str]) -> Member:
    return Member("-".join(sorted(scopes)) or "none", clients=(MINE,), scopes=tuple(sorted(scopes)))


ALL = Member("all", scopes=SCOPES)


@pytest.fixture
def gateway(stand: Make, tmp_path: Path) -> Stand:
    members = [member(scopes) for scopes in EVERY_SET]
    return stand(Options(calls_per_day=400), auth="keys", keys_file=keys_file(tmp_path, ALL, *members))


def url_of(gateway: Stand, row: Row, code: str) -> str:
    identity = ""
    if "{id}" in row.path:
        page = gateway.client.get(f"/clients/{code}/calls", params=FOLD, headers=ALL.headers).json()
        identity = page["data"][0]["id"]
    return row.path.format(code=code, id=identity)


def ask(gateway: Stand, who: Member | None, url: str, accept: str, **parameters: str) -> httpx.Response:
    headers = {"Accept": accept} | (who.headers if who else {})
    window = RECENT if "/missed" in url else FOLD
    merged = httpx.URL(url).copy_merge_params(window | parameters)
    return gateway.client.get(str(merged), headers=headers)


def test_every_route_has_a_row_and_every_format_and_personal_filter_is_in_it():
    routes = {path for handler in HANDLERS for path in handler.paths}
    assert ROWS.keys() | FEED_ROWS.keys() | OPEN_ROWS == routes
    assert not ROWS.keys() & OPEN_ROWS
    assert set(LIST_FORMATS) == set(FORMATS)
    assert {parameter.name for parameter in PARAMETERS} >= ASKED.keys()


def test_open_routes_need_nobody_and_all_others_a_consumer(gateway: Stand):
    for template in OPEN_ROWS:
        path = template.replace("{name:str}", "x").replace("{token:str}", "x")
        assert OPEN_PATHS.fullmatch(path), path
        # A link to a recording is itself a credential; this one is forged.
        assert gateway.client.get(path).status_code in (200, 302, 404) or "/recordings/" in path, path
    for row in (*ROWS.values(), *FEED_ROWS.values()):
        path = row.path.format(code=MINE, id="1")
        assert not OPEN_PATHS.fullmatch(httpx.URL(path).path), path
        for method in ("GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE", "PATCH", "TRACE"):
            assert gateway.client.request(method, path, params=FOLD).status_code == 401, (method, path)


@pytest.mark.parametrize("route", ROWS)
def test_each_set_of_scopes_gets_what_it_names_in_each_format(gateway: Stand, route: str):
    row = ROWS[route]
    url = url_of(gateway, row, MINE)
    possible = [name for name in ASKED if any(p.name == name and row.kind in p.routes.split() for p in PARAMETERS)]
    for scopes in EVERY_SET:
        who = member(scopes)
        for asked in [(), *((name,) for name in possible), *([tuple(possible)] if len(possible) > 1 else [])]:
            allowed = {"calls", *NEEDED.get(row.kind, ()), *(ASKED[name][1] for name in asked)} <= scopes
            for name, accept in row.formats.items():
                where = (who.name, asked, name)
                answer = ask(gateway, who, url, accept, **{one: ASKED[one][0] for one in asked})
                assert answer.status_code == (200 if allowed else 403), where
                if allowed:
                    assert answer.headers["content-type"].startswith(accept), where
                    check(row, answer.text, scopes, where, asked)
                else:
                    assert answer.json()["type"] == "/problems/forbidden", where


def check(row: Row, text: str, scopes: frozenset[str], where: object, asked: tuple[str, ...]) -> None:
    """Check that an answer contains exactly the data that the scopes allow."""
    shown = {word for word in PERSONAL if word in text}
    if "personal" not in scopes or row.kind not in ("list", "call", "missed"):
        assert not shown, where
    elif row.kind == "list" and "ani" not in asked:
        assert {"312555", "print ad", "Lovelace"} <= shown, where
    if row.kind == "list" and not asked:
        assert ("********" in text) == ("personal" not in scopes), where
    if not {"status", "personal"} <= scopes or "include" not in asked:
        assert not {word for word in shown if word.startswith(("Called", "No voice", "Ask for"))}, where
    if "include" not in asked:
        assert "made_sale" not in text, where
    elif row.kind == "list" and "ani" not in asked:
        assert "made_sale" in text, where
    assert "callbutton.example" not in text, where  # the upstream's recording address


@pytest.mark.parametrize("route", ROWS)
def test_another_client_is_forbidden_in_each_format_whether_or_not_it_exists(gateway: Stand, route: str):
    row = ROWS[route]
    who = member(frozenset(SCOPES))
    for code in (OTHER, "8005559999"):
        if "{code}" not in row.path:  # every client, which means one's own
            assert OTHER not in ask(gateway, who, row.path, "application/json").text
            continue
        for accept in row.formats.values():
            answer = ask(gateway, who, row.path.format(code=code, id="1"), accept)
            assert (answer.status_code, answer.json()["type"]) == (403, "/problems/forbidden"), (code, accept)


@pytest.mark.parametrize("route", [route for route, row in ROWS.items() if "client=" in row.path])
def test_every_client_means_ones_own_in_each_format(gateway: Stand, route: str):
    row = ROWS[route]
    who = member(frozenset(SCOPES))
    for accept in row.formats.values():
        text = ask(gateway, who, row.path.format(code="*", id=""), accept, **SHOWS_CLIENTS.get(row.kind, {})).text
        assert MINE in text
        assert OTHER not in text
        assert (
            OTHER in ask(gateway, ALL, row.path.format(code="*", id=""), accept, **SHOWS_CLIENTS.get(row.kind, {})).text
        )


SHOWS_CLIENTS = {"summary": {"groupBy": "client"}, "missed": {"reached": "true"}}
