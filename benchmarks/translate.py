"""XML bytes to JSON bytes, side by side with bare expat and with xmltodict + msgspec.convert; memory; the event loop.

The replies have the layout of the protocol document's sample, about 1.2 kB a call, every element present; `compact` is
the same without white space between elements. Ratios are medians of rounds in which the contenders take turns.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.parsers import expat

import httpx
import msgspec
import uvicorn
import xmltodict

from benchmarks.support import free_port, reachable, running, wait_for
from gateway import app
from gateway.callbutton.wire import ReplyParser
from gateway.model import Call
from gateway.settings import Settings

PIECE = 65536
CALL = """\
          <Call ID="{id}">
            <StartTime>06/{day:02}/2026 {hour:02}:{minute:02}:17</StartTime>
            <Campaign>44{client}</Campaign>
            <DID>8005550{client}</DID>
            <ANI>312{ani:07}</ANI>
            <OtherData>web</OtherData>
            <InfoDigits>c</InfoDigits>
            <Target>773555{target:04}</Target>
            <Result>Connected</Result>
            <Duration>{duration}</Duration>
            <TalkTime>{talk}</TalkTime>
            <IndexNumber>0042</IndexNumber>
            <VoiceDirectory>http://callbutton.example/cb/main/jsp/mates/cBEventCallRecordingURL.jsp?id={id}</VoiceDirectory>
            <Address>
              <FirstName>Ada</FirstName>
              <MiddleInitial>Q</MiddleInitial>
              <LastName>Lovelace {last}</LastName>
              <StreetAddress>{house} Lake Shore Drive</StreetAddress>
              <SecondaryAddress></SecondaryAddress>
              <City>Chicago</City>
              <State>IL</State>
              <ZIP>60601</ZIP>
              <ZIP4>0123</ZIP4>
            </Address>
            <ReviewedStatus>Reviewed</ReviewedStatus>
            <DTMF>1</DTMF>
            <SalesStatus>Made sale</SalesStatus>
            <Journal>Called back on Tuesday, wants a quote {id}.</Journal>
          </Call>
"""
HEAD = """\
<?xml version="1.0"?>
<Callbutton version="B">
  <Username>partner</Username>
  <Authentication>192.0.2.7</Authentication>
  <CallbuttonService>
    <GetCallDetailsResponse status="OK">
      <Client>
        <ClientCode>8005550100</ClientCode>
        <CallDetails>
"""
TAIL = """\
        </CallDetails>
      </Client>
    </GetCallDetailsResponse>
  </CallbuttonService>
</Callbutton>
"""
TEXTS = {
    "campaign": "Campaign",
    "did": "DID",
    "ani": "ANI",
    "otherData": "OtherData",
    "target": "Target",
    "indexNumber": "IndexNumber",
    "dtmf": "DTMF",
    "recordingUrl": "VoiceDirectory",
}
ADDRESS = {
    "firstName": "FirstName",
    "middleInitial": "MiddleInitial",
    "lastName": "LastName",
    "street": "StreetAddress",
    "secondary": "SecondaryAddress",
    "city": "City",
    "state": "State",
    "zip": "ZIP",
    "zip4": "ZIP4",
}


def reply(count: int, *, compact: bool = False) -> bytes:
    """Write a reply of so many calls."""

    def squeezed(text: str) -> str:
        return "".join(map(str.strip, text.splitlines())) if compact else text

    one = squeezed(CALL)
    calls = (
        one.format(
            id=480_000_000 + n,
            day=1 + n // 3600 % 28,
            hour=6 + n // 60 % 12,
            minute=n % 60,
            client=100,
            ani=n * 7919 % 10**7,
            target=n % 100,
            duration=60 + n % 300,
            talk=50 + n % 300,
            last=n % 5000,
            house=n % 900,
        )
        for n in range(count)
    )
    return f"{squeezed(HEAD)}{''.join(calls)}{squeezed(TAIL)}".encode()


def pieces(body: bytes) -> Iterator[bytes]:
    return (body[at : at + PIECE] for at in range(0, len(body), PIECE))


def gateway(body: bytes) -> bytes:
    """Translate as the gateway does."""
    parser = ReplyParser(status=True)
    for piece in pieces(body):
        parser.feed(piece)
    return msgspec.json.encode({"data": parser.close().calls["8005550100"]})


def straightforward(body: bytes) -> bytes:
    """Translate as an afternoon's code would, with none of the rules about time, repairs and unknown elements."""
    response = xmltodict.parse(body, force_list=("Call",))["Callbutton"]["CallbuttonService"]["GetCallDetailsResponse"]
    calls = [
        {
            "id": call["@ID"],
            "clientCode": "8005550100",
            "startTime": "2026-06-01T12:00:00Z",
            "startTimeCertainty": "exact",
            "phoneType": "cell",
            "result": call["Result"].lower(),
            "durationSeconds": int(call["Duration"]),
            "talkTimeSeconds": int(call["TalkTime"]),
            "address": {name: call["Address"].get(element) for name, element in ADDRESS.items()},
            "status": {"reviewed": True, "sales": "made_sale", "journal": call["Journal"]},
            "extra": {},
            **{name: call[element] for name, element in TEXTS.items()},
        }
        for call in response["Client"]["CallDetails"]["Call"]
    ]
    return msgspec.json.encode({"data": msgspec.convert(calls, list[Call])})


def bare_expat(body: bytes) -> None:
    """Read and forget: what well-formedness alone costs."""
    parser = expat.ParserCreate()
    for piece in pieces(body):
        parser.Parse(piece, False)
    parser.Parse(b"", True)


def seconds(work: Callable[[bytes], object], body: bytes) -> float:
    began = time.perf_counter()
    work(body)
    return time.perf_counter() - began


def speed() -> None:
    print("## Speed: bars are 4 times xmltodict + convert, 0.33 of bare expat\n")
    print(f"{'calls':>8} {'layout':>8} {'MB':>7} {'gateway':>10} {'x xmltodict':>12} {'of bare expat':>14}")
    for count, rounds in ((10, 200), (100, 100), (1000, 15), (100_000, 3)):
        for compact in (False, True):
            body = reply(count, compact=compact)
            times = [[seconds(work, body) for work in (gateway, straightforward, bare_expat)] for _ in range(rounds)]
            ours = statistics.median(row[0] for row in times)
            faster = statistics.median(b / a for a, b, _ in times)
            of_expat = statistics.median(c / a for a, _, c in times)
            layout = "compact" if compact else "document"
            first = f"{count:>8} {layout:>8} {len(body) / 1e6:>7.2f} {ours * 1e3:>7.2f} ms"
            print(f"{first} {faster:>12.2f} {of_expat:>14.2f}")


def memory(count: int = 100_000) -> None:
    """Measure in a process of its own: the peak while pieces arrive one by one, answer included."""
    script = f"from benchmarks.translate import measure_memory; measure_memory({count})"
    peak, answer = map(
        int, subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout.split()
    )
    print(f"\n## Memory: {count} calls, bar 4 times the JSON\n")
    print(f"peak over idle {peak / 1e6:.0f} MB, JSON {answer / 1e6:.0f} MB: {peak / answer:.2f} times")


def measure_memory(count: int) -> None:
    """Print the peak of resident memory over the idle process, and the answer's size, both in bytes."""
    head, tail = reply(0).split(b"        </CallDetails>")
    block = reply(1000)[len(head) :].removesuffix(b"        </CallDetails>" + tail)
    msgspec.json.encode(gateway(reply(10)))
    idle = peak_memory()
    parser = ReplyParser(status=True)
    parser.feed(head)
    for number in range(count // 1000):
        fresh = block.replace(b'ID="480', b'ID="%03d' % number).replace(b"Lovelace ", b"Lovelace %d-" % number)
        for piece in pieces(fresh):
            parser.feed(piece)
    parser.feed(b"        </CallDetails>" + tail)
    answer = msgspec.json.encode({"data": parser.close().calls["8005550100"]})
    print(peak_memory() - idle, len(answer))


def peak_memory() -> int:
    """The most bytes that were resident, from the kernel: getrusage would tell of the parent's, too."""
    status = Path("/proc/self/status").read_text("ascii")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


class Upstream:
    """A server whose every answer is one long reply, sent as fast as it is read."""

    def __init__(self, body: bytes) -> None:
        self.body = body

    async def __call__(self, _: object, receive: Callable[[], Any], send: Callable[[Any], Any]) -> None:
        """Answer."""
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/xml")]})
        for piece in pieces(self.body):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def serve_upstream(count: int, port: int) -> None:
    """Run the upstream; in a process of its own, so that it does not hold the loop that is measured."""
    uvicorn.run(Upstream(reply(count)), port=port, log_level="critical", lifespan="off")


def event_loop(count: int = 10_000) -> None:
    """Measure what holds the loop, and the latency of another endpoint, while a long reply arrives."""
    port = free_port()
    script = f"from benchmarks.translate import serve_upstream; serve_upstream({count}, {port})"
    with running([sys.executable, "-c", script], Path(os.devnull)):
        wait_for(lambda: reachable(port), "the upstream listens")
        rounds = [asyncio.run(_latencies(f"http://127.0.0.1:{port}/xml.jsp")) for _ in range(5)]
    idle, busy, held = zip(*rounds, strict=True)
    print(f"\n## Event loop: while a reply of {count} calls arrives, five times; bar 10 ms\n")
    print(f"longest hold of the loop: median {statistics.median(held) * 1e3:.1f} ms, worst {max(held) * 1e3:.1f} ms")
    for name, found in (("meanwhile", busy), ("idle", idle)):
        times = [one for times in found for one in times]
        print(f"/healthz {name}: median {statistics.median(times) * 1e3:.1f} ms, worst {max(times) * 1e3:.1f} ms")


async def _latencies(url: str) -> tuple[list[float], list[float], float]:
    application = app.create(Settings(upstream_url=url, auth="none", log_level="error"))
    window = {"start": "2026-06-01T00:00:00Z", "end": "2026-06-30T00:00:00Z", "include": "status", "sort": "startTime"}
    transport = httpx.ASGITransport(app=application)  # type: ignore[arg-type]
    held = 0.0

    async def watch() -> None:
        nonlocal held
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            held = max(held, time.perf_counter() - before - 0.001)

    async with httpx.AsyncClient(transport=transport, base_url="http://gateway", timeout=60) as client:

        async def health() -> float:
            """Ask after a turn of the loop, as a request that arrives over a socket waits for one."""
            before = time.perf_counter() + 0.001
            await asyncio.sleep(0.001)
            (await client.get("/healthz")).raise_for_status()
            return time.perf_counter() - before

        idle = [await health() for _ in range(100)]
        fetching = asyncio.create_task(client.get("/clients/8005550100/calls", params=window))
        watching = asyncio.create_task(watch())
        busy = []
        while not fetching.done():
            busy.append(await health())
        watching.cancel()
        assert len((await fetching).json()["data"]) == 100
    return idle, busy, held


def main() -> None:
    speed()
    memory()
    event_loop()


if __name__ == "__main__":
    main()
