"""The change feed and rights that change: over HTTP, with a keys file that changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.consumers import Member, keys_file, written
from tests.support.feed import CODE, FEED, START, Copy, listed
from tests.support.processes import wait_for
from tests.support.stand import Make, Stand

PREFIX, OTHER = "80055501*", "8005550101"
WRITER = Member("reader", clients=(PREFIX,), scopes=("calls", "personal", "status", "recordings"))
Become = Callable[[Member], None]


@pytest.fixture
def gateway(stand: Make, tmp_path: Path) -> Stand:
    gateway = stand(auth="keys", keys_file=keys_file(tmp_path, WRITER, Member("other")))
    gateway.client.headers["X-API-Key"] = WRITER.key
    return gateway


@pytest.fixture
def become(gateway: Stand, tmp_path: Path) -> Become:
    """A function that changes the rights of the consumer, and waits until they are in force."""

    def change(member: Member) -> None:
        probe = Member("probe-" + str(hash(member)))
        (tmp_path / "keys.toml").write_text(written(member, probe), "utf-8")
        wait_for(
            lambda: gateway.client.get("/clients", headers=probe.headers).status_code != 401, "the file is read again"
        )

    return change


@pytest.mark.parametrize(("path", "parameters"), [(FEED, {}), ("/changes", {"client": [CODE, OTHER]})])
def test_a_client_that_is_no_longer_allowed_is_403_and_the_token_stays_good(
    gateway: Stand, become: Become, path: str, parameters: dict[str, list[str]]
):
    copy = Copy()
    copy.follow(gateway, path, **parameters)
    before = dict(copy.calls)
    become(WRITER._replace(clients=(OTHER,)))
    for wait in (0, 60):
        response = gateway.get(path, since=copy.token, wait=wait, **parameters)
        assert (response.status_code, response.json()["type"]) == (403, "/problems/forbidden")
    become(WRITER)
    body = gateway.get(path, since=copy.token, **parameters).json()
    assert (body["data"], body["page"]["upToDate"], body["page"]["calls"]) == ([], True, len(before))


@pytest.mark.parametrize("kept", [("8005550101*",), (OTHER,), (OTHER, "9*")])
def test_calls_of_a_client_that_is_no_longer_allowed_are_told_as_gone(
    gateway: Stand, become: Become, kept: tuple[str, ...]
):
    copy = Copy()
    copy.follow(gateway, "/changes", client="*")
    both = dict(copy.calls)
    assert {code for code, _ in both} > {OTHER}
    become(WRITER._replace(clients=kept))
    copy.follow(gateway, "/changes", client="*")
    assert copy.calls == listed(gateway, "/calls", client="*") == {key: both[key] for key in both if key[0] == OTHER}
    become(WRITER)
    copy.follow(gateway, "/changes", client="*")
    assert copy.calls == both


@pytest.mark.parametrize("scopes", [("calls", "status", "recordings"), ("calls", "personal", "status"), ("calls",)])
def test_changed_scopes_tell_the_whole_view_again(gateway: Stand, become: Become, scopes: tuple[str, ...]):
    copy = Copy()
    copy.follow(gateway)
    full = dict(copy.calls)
    become(WRITER._replace(scopes=scopes))
    told = gateway.get(FEED, since=copy.token, limit=10_000).json()["data"]
    assert {item["op"] for item in told} == {"replace"}
    assert sum(len(item["calls"]) for item in told) == len(full)
    copy.follow(gateway)
    assert copy.calls == listed(gateway) != full
    become(WRITER)
    copy.follow(gateway)
    assert copy.calls == full


def test_a_scope_that_the_feed_needs_is_403_and_the_token_stays_good(gateway: Stand, become: Become):
    copy = Copy()
    copy.follow(gateway, include="status")
    for scopes in (("calls",), ("status", "personal"), ()):
        become(WRITER._replace(scopes=scopes))
        assert gateway.get(FEED, since=copy.token, include="status").status_code == 403
    become(WRITER)
    copy.follow(gateway, include="status")
    assert copy.calls == listed(gateway, include="status")


def test_a_consumer_with_another_name_begins_again(gateway: Stand, become: Become):
    copy = Copy()
    copy.follow(gateway)
    become(Member("renamed", clients=(PREFIX,), scopes=WRITER.scopes))
    gateway.client.headers["X-API-Key"] = "cbg_key-of-renamed"
    refused = gateway.get(FEED, since=copy.token)
    assert (refused.status_code, refused.json()["errors"][0]["parameter"]) == (400, "since")
    again = Copy()
    again.follow(gateway, start=START)
    assert again.calls == copy.calls
