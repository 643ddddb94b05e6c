"""A list of calls, read page by page."""

from tests.support.stand import Stand

CALLS = "/clients/8005550100/calls"
FOLD = {"start": "2026-11-01T05:00:00Z", "end": "2026-11-01T09:00:00Z"}


def every_call(stand: Stand, path: str, **parameters: str) -> list[dict[str, object]]:
    answer = stand.get(path, **parameters).json()
    calls: list[dict[str, object]] = answer["data"]
    while answer["page"]["nextCursor"]:
        answer = stand.get(path, cursor=answer["page"]["nextCursor"]).json()
        calls += answer["data"]
    return calls
