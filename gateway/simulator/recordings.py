"""Recordings as a pure function of a call's id: two seconds of a tone, as WAV."""

from __future__ import annotations

import math
import re
import struct
import zlib

PATH = "/cb/main/jsp/mates/cBEventCallRecordingURL.jsp"
RATE = 8000  # samples a second, a byte each
SECONDS = 2
RANGE = re.compile(rb"bytes=(\d+)-(\d*)")


def wav(identity: str) -> bytes:
    """Make the recording of a call."""
    pitch = 220 + zlib.crc32(identity.encode()) % 440
    samples = bytes(128 + int(100 * math.sin(2 * math.pi * pitch * place / RATE)) for place in range(RATE * SECONDS))
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, RATE, RATE, 1, 8)
    data = form + struct.pack("<4sI", b"data", len(samples)) + samples
    return struct.pack("<4sI4s", b"RIFF", len(data) + 4, b"WAVE") + data


def part_of(body: bytes, asked: bytes) -> tuple[int, int] | None:
    """The first place and the one after the last of the part asked for by a Range header; None is the whole."""
    match = RANGE.fullmatch(asked)
    if match is None or int(match[1]) >= len(body):
        return None
    return int(match[1]), min(len(body), int(match[2]) + 1) if match[2] else len(body)
