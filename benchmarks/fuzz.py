"""Fuzz the reply parser: it must not crash or hang, and must not accept a reply that is not well-formed.

`make fuzz` creates a separate environment with the extra `fuzz` (atheris) and runs RUNS inputs (default 2,000,000). An
input is a whole reply, or the inside of one of its records. `benchmarks.wellformed` judges the result.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["gateway"]):
    from benchmarks.wellformed import MODES, judge

SAMPLES = Path(__file__).parent.parent / "tests" / "data" / "samples"
WORDS = (
    "<Call ID=\"1\">", "</Call>", "<StartTime>", "</StartTime>", "<Client>", "</Client>", "<CallDetails>", "<!--",
    "-->", "<![CDATA[", "]]>", "<?xml version=\"1.0\"?>", "<!DOCTYPE a>", "&#0;", "&amp;", "\\xef\\xbb\\xbf",
    "</CallDetails>", "<ClientCode>a</ClientCode>", "01/02/2026 03:04:05", "<Address>", "status=\"OK\"",
    "encoding=\"utf-16\"", "&#55357;", "&#xDE00;",
)  # fmt: skip


class Count:
    """Inputs judged and accepted, and the longest CPU time of one input in seconds."""

    inputs = 0
    accepted = 0
    longest = 0.0


def one(data: bytes) -> None:
    """Judge one input. Its first byte selects the mode."""
    if not data:
        return
    began = time.process_time()
    Count.accepted += judge(data[1:], MODES[data[0] % len(MODES)])
    took = time.process_time() - began
    Count.inputs += 1
    Count.longest = max(Count.longest, took)
    assert took < 1, f"{took} s"


def main() -> None:
    """Run the fuzzer, and print the figures at the end."""
    runs = os.environ.get("RUNS", "2000000")
    with tempfile.TemporaryDirectory() as place:
        for number, path in enumerate(sorted(SAMPLES.glob("*.xml"))):
            for mode in range(len(MODES)):
                (Path(place) / f"{number}-{mode}").write_bytes(bytes([mode]) + path.read_bytes()[:4000])
        words = Path(place) / "words"
        words.write_text("".join(f'"{word.replace(chr(34), chr(92) + chr(34))}"\n' for word in WORDS))
        options = [f"-atheris_runs={runs}", f"-dict={words}", "-max_len=4096", "-timeout=30", "-close_fd_mask=0"]
        atheris.Setup([sys.argv[0], *options, *sys.argv[1:], place], one)
        try:
            atheris.Fuzz()
        finally:
            print(f"{Count.inputs} inputs, {Count.accepted} accepted, the longest {Count.longest:.3f} s")


if __name__ == "__main__":
    main()
