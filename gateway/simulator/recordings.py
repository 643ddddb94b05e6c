"""Recordings as a pure function of a call's id: a tone, as WAV."""

from __future__ import annotations

import math
import re
import struct
import zlib

PATH = "/cb/main/jsp/mates/cBEventCallRecordingURL.jsp"
SAMPLE_RATE = 8000  # samples of one byte a second; the rate of telephony
DURATION = 2  # seconds; enough to hear, small enough for tests
RANGE = re.compile(rb"bytes=(\d+)-(\d*)")


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
