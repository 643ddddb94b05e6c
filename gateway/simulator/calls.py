"""Calls as a pure function of seed, client and time."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

CENTRAL = ZoneInfo("America/Chicago")
HOUR = 3600
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


@dataclass(frozen=True)
class SimulatedCall:
    """One call: its start and the instant from which the server shows it, in seconds since 1970, and its elements."""

    identity: str
    start: int
    published: int
    elements: tuple[tuple[str, str], ...]
    address: tuple[tuple[str, str], ...]
    status: tuple[tuple[str, str], ...]


def client_code(index: int) -> str:
    """Make the code of a client: a toll-free number."""
    return f"800555{100 + index:04}"


def calls_of_hour(seed: int, code: str, hour: int, calls_per_day: int) -> Iterator[SimulatedCall]:
    """Make the calls of one client that start in the hour, counted since 1970, sorted by start."""
    draw = random.Random(f"{seed}/{code}/{hour}")
    mean = calls_per_day / 24
    count = int(mean) + (draw.random() < mean % 1)
    for number, offset in enumerate(sorted(draw.randrange(HOUR) for _ in range(count))):
        yield _call(draw, code, f"{hour:06}{number:03}", hour * HOUR + offset)


def _call(draw: random.Random, code: str, identity: str, start: int) -> SimulatedCall:
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
        path = f"/cb/main/jsp/mates/cBEventCallRecordingURL.jsp?id={identity}"
        elements.append(("VoiceDirectory", f"http://callbutton.example{path}"))
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
    elements.append(("DTMF", draw.choice(("", "1", "2#"))))
    status = (
        ("ReviewedStatus", draw.choice(("Reviewed", "Unreviewed"))),
        ("SalesStatus", draw.choice(("", "Called back", "Made sale"))),
        ("Journal", draw.choice(JOURNALS)),
    )
    return SimulatedCall(identity, start, start + duration + late, tuple(elements), address if known else (), status)
