"""The OpenAPI document against a running gateway: all schemathesis checks, with valid and invalid data, and stateful.

`make schemathesis` runs at least 20,000 cases.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from gateway.simulator.server import Options
from tests.support.consumers import Member, keys_file
from tests.support.paths import ROOT
from tests.support.stand import Make

EXAMPLES = os.environ.get("SCHEMATHESIS_EXAMPLES", "2")
PROGRAM = Member("program", scopes=("calls", "personal", "status", "recordings", "refresh"))


def test_schemathesis_finds_nothing(stand: Make, tmp_path: Path):
    client = stand(Options(calls_per_day=20, history=60), auth="keys", keys_file=keys_file(tmp_path, PROGRAM)).client
    command = [
        *(
            str(Path(sys.executable).parent / "schemathesis"),
            "run",
            f"{client.base_url}/openapi.json".replace("//o", "/o"),
        ),
        *("--header", f"X-API-Key:{PROGRAM.key}", "--checks", "all", "--mode", "all", "--warnings", "off"),
        *("--phases", "examples,coverage,fuzzing,stateful", "--max-examples", EXAMPLES, "--seed", "1"),
        *("--request-timeout", "120", "--continue-on-failure", "--no-color"),
    ]
    environment = os.environ | {"SCHEMATHESIS_HOOKS": "tests.support.schemathesis_hooks", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    said = re.sub(r"^\s*\n", "", done.stdout, flags=re.MULTILINE)
    assert done.returncode == 0, said[-8000:]
    generated = re.search(r"(\d[\d,]*) generated, (\d[\d,]*) passed", said)
    assert generated is not None, said[-2000:]
    assert int(generated[1].replace(",", "")) > 500
    sys.stdout.write(said[-600:])  # shown by make schemathesis
