"""Calls as a pure function of seed, client and time; their recordings as a pure function of their ids.

Rules:
- Elements are in the protocol document's order. VoiceDirectory and Address are left out when a call has none.
- The variations seen in the field are drawn from a random stream of their own, so the remaining values of a call are
  the same with and without them.
"""

from __future__ import annotations

import math
import random
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

CENTRAL = ZoneInfo("America/Chicago")
HOUR = 3600  # seconds; calls are drawn one hour at a time
FIRST = ("Ada", "Grace", "José", "Anneke", "Mary-Jane", "Dmitri", "Siobhán", "Wei")
LAST = ("Lovelace", "Hopper", "Núñez", "de Vries", "O'Neill & Sons", "Smith", "Brown <Jr>", "Li")
STREETS = ("Main St", "Oak Ave", "2nd Street", "Lake Shore Dr")
CITIES = (
    ("Chicago", "IL", "60601"),
    ("Boston", "MA", "02134"),
    ("Vancouver", "BC", "V1M2H8"),
    ("Austin", "TX", "73301"),
)
JOURNALS = ("Called back twice.\r\nWants a quote.", "No voicemail", 'Ask for the manager; said "maybe"')
# In capitals, as telephone companies list them.
CALLER_NAMES = ("SMITH & SON", "WIRELESS CALLER", "LAKE SHORE DENTAL", "UNAVAILABLE")
ZIP_NUMBERS = range(501, 99951)  # US ZIP codes as numbers: 00501 becomes 501
PADDED_SHARE = 0.2  # of calls; the share in the reference replies of the field
SHORT_ZIP_SHARE = 0.1  # of ZIP codes that begin with 0; the share in the reference replies of the field
RECORDINGS = "/cb/main/jsp/mates/cBEventCallRecordingURL.jsp"  # the path
SAMPLE_RATE = 8000  # samples of one byte a second; the rate of telephony
DURATION = 2  # seconds; enough to hear, small enough for tests
RANGE = re.compile(rb"bytes=(\d+)-(\d*)")

Element = tuple[str, str]


@dataclass(frozen=True)
class SimulatedCall:
    """One call, as its elements in the order of a reply: `elements`, those within Address, and `after_address`.

    `start` and `published`, the time from which replies contain the call, are in seconds since 1970.
    """

    identity: str
    start: int
    published: int
    elements: tuple[Element, ...]
    address: tuple[Element, ...]
    after_address: tuple[Element, ...]


def client_code(index: int) -> str:
    """Return the code of a client, a toll-free number."""
    return f"800555{100 + index:04}"


def calls_of_hour(
    seed: int, code: str, hour: int, calls_per_day: int, *, plain: bool = False
) -> Iterator[SimulatedCall]:
    """Yield the calls of a client that start within an hour, sorted by start. `hour` is counted from 1970."""
    draw = random.Random(f"{seed}/{code}/{hour}")
    field = random.Random(f"{seed}/{code}/{hour}/field")
    mean = calls_per_day / 24
    count = int(mean) + (draw.random() < mean % 1)
    for number, offset in enumerate(sorted(draw.randrange(HOUR) for _ in range(count))):
        call = _call(draw, code, f"{hour:06}{number:03}", hour * HOUR + offset)
        yield call if plain else _as_in_the_field(field, call)


def _call(draw: random.Random, code: str, identity: str, start: int) -> SimulatedCall:
    """Draw a call. The order of the draws determines all later values: keep it."""
    result = draw.choices(("Connected", "Busy", "No Answer", "Abandoned"), (70, 8, 15, 7))[0]
    talk = draw.randrange(5, 900) if result == "Connected" else 0
    duration = talk + draw.randrange(2, 40)
    late = draw.randrange(600, 6 * HOUR) if draw.random() < 0.02 else 0
    elements = [
        ("StartTime", datetime.fromtimestamp(start, UTC).astimezone(CENTRAL).strftime("%m/%d/%Y %H:%M:%S")),
        ("Campaign", str(draw.randrange(4000, 4020))),
        ("DID", code),
        ("ANI", f"312555{draw.randrange(100, 200):04}"),
        ("OtherData", draw.choice(("", "web", "print ad"))),
        ("InfoDigits", draw.choice(("", "", "c", "c", "p"))),
        ("Target", f"773555{draw.randrange(100, 200):04}"),
        ("Result", result),
        ("Duration", str(duration)),
        ("TalkTime", str(talk)),
        ("IndexNumber", draw.choice(("", "0042"))),
    ]
    if talk and draw.random() < 0.7:
        elements.append(("VoiceDirectory", f"http://callbutton.example{RECORDINGS}?id={identity}"))
    city, state, postal = draw.choice(CITIES)
    address = (
        ("FirstName", draw.choice(FIRST)),
        ("MiddleInitial", draw.choice(("", "Q"))),
        ("LastName", draw.choice(LAST)),
        ("StreetAddress", f"{draw.randrange(1, 900)} {draw.choice(STREETS)}"),
        ("SecondaryAddress", draw.choice(("", "Apt 3"))),
        ("City", city),
        ("State", state),
        ("ZIP", postal),
        ("ZIP4", draw.choice(("", "0123"))),
    )
    known = draw.random() < 0.8
    dtmf = ("DTMF", draw.choice(("", "1", "2#")))
    after_address = (
        ("ReviewedStatus", draw.choice(("Reviewed", "Unreviewed"))),
        dtmf,
        ("SalesStatus", draw.choice(("", "Called back", "Made sale"))),
        ("Journal", draw.choice(JOURNALS)),
    )
    published = start + duration + late
    return SimulatedCall(identity, start, published, tuple(elements), address if known else (), after_address)


def _as_in_the_field(draw: random.Random, call: SimulatedCall) -> SimulatedCall:
    """Return the call with elements that the document does not know, and now and then a padded value or a short ZIP."""
    elements, address = list(call.elements), dict(call.address)
    if draw.random() < PADDED_SHARE:
        place = draw.randrange(len(elements))
        name, text = elements[place]
        elements[place] = (name, f"  {text} ")
    if draw.random() < SHORT_ZIP_SHARE and address:
        address["ZIP"] = address["ZIP"].removeprefix("0")
    elements += [
        ("CallerName", f"{draw.choice(CALLER_NAMES)} {draw.randrange(77)}"),
        ("CustomA", f"AX-{draw.randrange(50)}"),
        ("CallerNANPAZipCode", str(draw.choice(ZIP_NUMBERS))),
    ]
    return replace(call, elements=tuple(elements), address=tuple(address.items()))


def wav(identity: str) -> bytes:
    """Return the recording of a call: 8-bit mono PCM, its pitch chosen by the id."""
    pitch = 220 + zlib.crc32(identity.encode()) % 440
    samples = bytes(
        128 + int(100 * math.sin(2 * math.pi * pitch * place / SAMPLE_RATE)) for place in range(SAMPLE_RATE * DURATION)
    )
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, SAMPLE_RATE, SAMPLE_RATE, 1, 8)
    data = form + struct.pack("<4sI", b"data", len(samples)) + samples
    return struct.pack("<4sI4s", b"RIFF", len(data) + 4, b"WAVE") + data


def part_of(body: bytes, asked: bytes) -> tuple[int, int] | None:
    """Return the half-open range of bytes that a Range header asks for, or None for the whole recording."""
    match = RANGE.fullmatch(asked)
    if match is None or int(match[1]) >= len(body):
        return None
    return int(match[1]), min(len(body), int(match[2]) + 1) if match[2] else len(body)
