"""The outermost middleware sends large bodies in pieces, at the pace at which the client reads."""

import asyncio
from typing import Any

import pytest

from gateway.api.middleware.request_context import CHUNK_SIZE, send_in_chunks
from tests.support.loops import settle


@pytest.mark.parametrize("more_body", [False, True])
def test_a_large_body_is_sent_in_pieces_one_after_the_other(more_body: bool):
    sent: list[Any] = []
    taken = asyncio.Event()

    async def send(message: Any) -> None:
        sent.append(message)
        await taken.wait()

    async def run() -> None:
        body = bytes(range(256)) * 1000
        sending = asyncio.create_task(
            send_in_chunks({"type": "http.response.body", "body": body, "more_body": more_body}, send)
        )
        await settle()
        assert len(sent) == 1  # the client has not taken the first
        taken.set()
        await sending
        assert b"".join(message["body"] for message in sent) == body

    asyncio.run(run())
    assert [len(message["body"]) for message in sent] == [CHUNK_SIZE, CHUNK_SIZE, CHUNK_SIZE, 256_000 % CHUNK_SIZE]
    assert [message["more_body"] for message in sent] == [True, True, True, more_body]
