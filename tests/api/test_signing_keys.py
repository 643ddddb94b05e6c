"""Rotation of GATEWAY_SIGNING_KEY: of two keys the first signs, and both verify."""

from __future__ import annotations

from typing import Any

from tests.support.stand import Make, Stand

OLD, NEW = "o" * 32, "n" * 32
CALLS = "/clients/8005550100/calls"
FEED = "/clients/8005550100/changes"
WINDOW = {"start": "2026-11-01", "end": "2026-11-08"}


def signed(gateway: Stand) -> dict[str, Any]:
    """One of each kind of signed value: the address and parameters of a request with it."""
    page = gateway.get(CALLS, **WINDOW, limit=1, recorded="true").json()
    return {
        "cursor": (CALLS, {"cursor": page["page"]["nextCursor"]}),
        "recording link": (page["data"][0]["recordingUrl"], {}),
        "token": (FEED, {"since": gateway.get(FEED).json()["page"]["next"]}),
    }


def statuses(gateway: Stand, values: dict[str, Any]) -> dict[str, int]:
    return {name: gateway.get(path, **parameters).status_code for name, (path, parameters) in values.items()}


def test_what_the_old_key_signed_is_good_until_the_key_is_removed(stand: Make):
    values = signed(stand(signing_key=OLD))
    good = dict.fromkeys(values, 200)
    assert statuses(stand(signing_key=f"{OLD},{NEW}"), values) == good
    assert statuses(stand(signing_key=f"{NEW},{OLD}"), values) == good
    refused = good | {"cursor": 400, "recording link": 403, "token": 400}
    assert statuses(stand(signing_key=NEW), values) == {name: refused[name] for name in values}


def test_the_first_key_signs(stand: Make):
    values = signed(stand(signing_key=f"{NEW}, {OLD}"))
    assert set(statuses(stand(signing_key=NEW), values).values()) == {200}
    assert 200 not in statuses(stand(signing_key=OLD), values).values()
