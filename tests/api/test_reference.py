"""The HTML pages: their bytes, and their rendering in a real browser."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from gateway.api import problems, reference
from gateway.api.openapi import TAGS
from tests.support.consumers import Member, keys_file
from tests.support.paths import NODE, ROOT
from tests.support.stand import Make
from tests.support.tools import need, tool

OPEN = ["/docs", *(f"/docs/{name}" for name in reference.MEDIA_TYPES), "/problems/upstream-timeout"]


@pytest.mark.parametrize("path", OPEN)
def test_pages_come_under_a_strict_policy_and_name_no_other_host(path: str, stand: Make):
    answer = stand().client.get(path)
    policy = answer.headers["content-security-policy"]
    assert answer.status_code == 200
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert set(re.findall(r"https?://[\w.]+", answer.text)) <= {"http://www.w3.org"}  # the name of SVG


@pytest.mark.parametrize(("console", "page"), [("on", "console"), ("off", "docs")])
def test_the_root_leads_to_a_page_without_a_key_and_behind_an_ingress_path(
    console: str, page: str, stand: Make, tmp_path: Path
):
    client = stand(auth="keys", keys_file=keys_file(tmp_path, Member("reader")), console=console).client
    answer = client.get("/")
    assert (answer.status_code, answer.headers["location"]) == (302, page)
    assert client.get("/", follow_redirects=True).url.path == f"/{page}"


@pytest.mark.parametrize("path", ["/docs/__init__.py", "/docs/docs.html", "/docs/..%2fproblems.py", "/problems/other"])
def test_what_is_no_page_is_a_problem(path: str, stand: Make):
    answer = stand().client.get(path)
    assert (answer.status_code, answer.headers["content-type"]) == (404, problems.MEDIA_TYPE)


def test_every_problem_leads_to_a_page_that_says_what_it_means_and_what_to_do(stand: Make):
    client = stand().client
    kinds = [kind for kind in vars(problems).values() if isinstance(kind, problems.ProblemType)]
    assert {kind.name: kind for kind in kinds} == problems.BY_NAME
    for kind in kinds:
        page = client.get(f"/problems/{kind.name}").text
        assert kind.meaning, f"{kind.name} has no meaning"
        assert f"<h1>{kind.title}</h1>" in page
        assert kind.hint.split("`")[0] in page
        assert kind.meaning.split("`")[0] in page


def test_the_type_of_a_problem_is_the_path_of_its_page(stand: Make):
    client = stand().client
    problem = client.get("/calls?limit=0").json()
    assert problem["title"] in client.get(problem["type"]).text


def test_a_problem_says_what_happened_and_what_to_do_about_it(stand: Make):
    def texts(path: str) -> tuple[str, str, str]:
        problem = stand().client.get(path).json()
        return problem["title"], problem["detail"], problem["hint"]

    assert texts("/clients/8005550100/calls?limit=0") == (
        "Invalid parameter",
        "`limit` is not a whole number from 1 to 1000.",
        "Correct the request as `detail` and `errors` say.",
    )
    assert texts("/call") == (
        "Not found",
        "No resource has this path.",
        "Check the path. `/openapi.json` lists all paths.",
    )
    assert texts("/clients/8005550100/calls/x?range=today") == (
        "Not found",
        "This client has no call with this id in the searched window.",
        "Check the client code and the id, and send the window of the call as `start` and `end`.",
    )


def test_the_wheel_holds_the_pages(tmp_path: Path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60)
    (wheel,) = tmp_path.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if "/assets/" in name}
    assert held == {f"gateway/api/assets/{path.name}" for path in Path(str(reference.ASSETS)).iterdir()}


def test_a_browser_shows_the_contract_and_sends_requests(stand: Make, tmp_path: Path):
    need((NODE / "node_modules" / "playwright-core").exists(), "npm ci in tests/node")
    reader = Member("reader", scopes=("calls", "recordings"))
    client = stand(auth="keys", keys_file=keys_file(tmp_path, reader)).client
    base = str(client.base_url).rstrip("/")
    command = [tool("node"), str(NODE / "browser.mjs"), tool("chromium"), base, reader.key]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    contract = client.get("/openapi.json").json()
    named = [name for tag in TAGS for name in _paths(contract, tag["name"])] + list(contract["components"]["schemas"])
    assert set(seen["requests"]) == {base}
    assert seen["complaints"] == []  # of the Content-Security-Policy, too
    assert seen["operations"] == named
    assert seen["unlabelled"] == []
    assert seen["overflow"] <= 0  # on a telephone
    assert seen["navigation"] < 200  # pixels
    assert seen["menuCloses"]
    assert seen["copied"] == seen["shown"]
    assert seen["duration"] > 0
    assert seen["keptKey"] == reader.key
    assert seen["backgrounds"]["light"] != seen["backgrounds"]["dark"]
    assert seen["command"] == f"curl '{base}/calls?client=8005550100' -H \"X-API-Key: $KEY\""
    assert seen["first"]["status"] == "200 OK"
    pages = [seen["first"]["body"], seen["second"]]
    assert [len(page["data"]) for page in pages] == [100, 100]
    assert not {call["id"] for call in pages[0]["data"]} & {call["id"] for call in pages[1]["data"]}
    assert seen["problem"] == problems.TIMEOUT.title


def _paths(contract: dict[str, dict[str, dict[str, dict[str, list[str]]]]], tag: str) -> list[str]:
    items = contract["paths"].items()
    return [path for path, item in items for operation in item.values() if operation["tags"] == [tag]]
