"""One fetch over a real socket: retries within the deadline of their POST."""

from __future__ import annotations

import asyncio
import itertools
import time
from datetime import datetime

import pytest
from prometheus_client import CollectorRegistry

from gateway.callbutton.central_time import align_to_fold, parse_wall
from gateway.callbutton.client import UpstreamClient, UpstreamSettings
from gateway.callbutton.transport import UpstreamLimits
from gateway.errors import UpstreamFailed, UpstreamTimeout
from gateway.metrics import Metrics
from gateway.model import Window

WINDOW = Window(1_790_000_000, 1_790_003_600)
EMPTY = (
    b'<?xml version="1.0"?><Callbutton version="B"><Username>u</Username><Authentication>192.0.2.1</Authentication>'
    b'<CallbuttonService><GetCallDetailsResponse status="OK"/></CallbuttonService></Callbutton>'
)


def head(status: bytes, length: int) -> bytes:
    return b"HTTP/1.1 %b x\r\nContent-Type: text/xml\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (
        status,
        length,
    )


def test_a_retry_that_gets_no_slot_in_time_is_not_sent_and_does_not_count_against_the_upstream():
    """There is one slot. A POST fails; while its retry waits, another POST hangs past the deadline of the first."""
    answered, sent = 10, 0  # ten requests earn one retry

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        sent += 1
        if sent <= answered:
            writer.write(head(b"200", len(EMPTY)) + EMPTY)
        elif sent == answered + 1:
            writer.write(head(b"503", 0))
        else:
            await reader.read(-1)  # until the gateway gives up
        writer.close()

    async def work() -> None:
        registry = CollectorRegistry()
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/xml.jsp"
            limits = UpstreamLimits(first_byte=2, deadline=2, concurrency=1)
            upstream = UpstreamClient(UpstreamSettings(url, limits), Metrics(registry), time.time)

            async def fetch() -> None:
                await upstream.fetch(["8005550100"], WINDOW, status=False, now=time.time())

            for _ in range(answered):
                await fetch()
            first, second = asyncio.create_task(fetch()), asyncio.create_task(fetch())
            with pytest.raises(UpstreamFailed) as failed:
                await first
            assert failed.value.status == 503
            assert not second.done()
            with pytest.raises(UpstreamTimeout):
                await second
            assert sent == answered + 2
            assert registry.get_sample_value("callbutton_gateway_upstream_retries_total") == 0
            await upstream.close()

    asyncio.run(work())


def test_the_time_that_a_post_took_is_not_measured_by_a_clock_that_is_set():
    clock = itertools.count(1_790_000_000.0, 3600.0)  # it is set an hour ahead between any two looks

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head(b"200", len(EMPTY)) + EMPTY)
        writer.close()

    async def work() -> None:
        registry = CollectorRegistry()
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/xml.jsp"
            settings = UpstreamSettings(url, UpstreamLimits(deadline=60))
            upstream = UpstreamClient(settings, Metrics(registry), clock.__next__)
            began = time.monotonic()
            fetched = await upstream.fetch(["8005550100"], WINDOW, status=False, now=1_790_000_000)
            assert 0 < fetched.seconds <= time.monotonic() - began
            await upstream.close()
        seconds = registry.get_sample_value("callbutton_gateway_upstream_post_seconds_sum")
        assert seconds is not None
        assert 0 < seconds <= time.monotonic() - began

    asyncio.run(work())


@pytest.mark.parametrize(
    ("planned", "sent", "null_end", "end"),
    [
        ("2026-06-01T13:00", "2026-06-01T13:00:40", False, "06/01/2026 08:00:40"),
        ("2026-11-01T05:59:50", "2026-11-01T06:00:30", False, "11/01/2026 04:00:01"),  # in the fold by then
        ("2026-11-01T09:59:50", "2026-11-01T10:00:30", True, None),  # it is sent after the last anchor of the fold
        ("2026-11-01T09:59:50", "2026-11-01T10:00:30", False, "11/01/2026 04:00:30"),
    ],
)
def test_a_post_up_to_now_reaches_to_when_it_is_sent(planned: str, sent: str, null_end: bool, end: str | None):
    """It waits for a slot. Its extent counts from when it was sent, so calls that began meanwhile must be in it."""
    now, after = (datetime.fromisoformat(f"{text}+00:00").timestamp() for text in (planned, sent))
    bodies: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal now
        await reader.readuntil(b"\r\n\r\n")
        bodies.append(await reader.readuntil(b"</Callbutton>"))
        now = after
        writer.write(head(b"200", len(EMPTY)) + EMPTY)
        writer.close()

    async def work() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/xml.jsp"
            settings = UpstreamSettings(url, UpstreamLimits(concurrency=1), null_end=null_end)
            upstream = UpstreamClient(settings, Metrics(CollectorRegistry()), lambda: now)
            window = align_to_fold(Window(int(now) - 6 * 3600, int(now)))
            fetches = [upstream.fetch([code], window, status=False, now=now) for code in ("8005550100", "8005550101")]
            assert [fetched.sent for fetched in await asyncio.gather(*fetches)][1] == after
            await upstream.close()

    asyncio.run(work())
    body = bodies[1].decode()
    assert (f"<EndDate>{end}</EndDate>" in body) if end else ("<EndDate></EndDate>" in body)


@pytest.mark.parametrize("null_end", [True, False])
def test_a_window_that_ended_within_the_last_second_is_not_refused_for_an_end_in_the_future(null_end: bool):
    """One second more is asked for, which the upstream may call a date in the future."""
    now = 1_790_003_600.5

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        body = (await reader.readuntil(b"</Callbutton>")).decode()
        end = body.partition("<EndDate>")[2].partition("</EndDate>")[0]
        refused = end and parse_wall(end)[0].timestamp() > now
        answer = EMPTY.replace(b'"OK"/>', b'"ERROR">End date is in the future</GetCallDetailsResponse>')
        answer = answer if refused or not (end or null_end) else EMPTY
        writer.write(head(b"200", len(answer)) + answer)
        writer.close()

    async def work() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/xml.jsp"
            settings = UpstreamSettings(url, UpstreamLimits(), null_end=null_end)
            upstream = UpstreamClient(settings, Metrics(CollectorRegistry()), lambda: now)
            window = Window(int(now) - 3600, int(now))
            assert (await upstream.fetch(["8005550100"], window, status=False, now=now)).calls == {}
            await upstream.close()

    asyncio.run(work())
