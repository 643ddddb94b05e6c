"""Schemathesis against a live gateway, with a key that may see two clients: examples, coverage and fuzzing, all checks.

`make schemathesis` runs more of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from gateway.access import SCOPES
from gateway.simulator.server import Options
from tests.conftest import Make
from tests.consumers import Member, keys_file

EXAMPLES = os.environ.get("SCHEMATHESIS_EXAMPLES", "3")
CONFIG = Path(__file__).parent / "schemathesis.toml"


def test_schemathesis_finds_nothing(stand: Make, tmp_path: Path):
    member = Member("fuzz", clients=("8005550100", "8005550101"), scopes=SCOPES)
    gateway = stand(Options(calls_per_day=20), auth="keys", keys_file=keys_file(tmp_path, member))
    command = [
        str(Path(sys.executable).parent / "schemathesis"),
        f"--config-file={CONFIG}",
        "run",
        f"{gateway.client.base_url}/openapi.json",
        "--header",
        f"X-API-Key: {member.key}",
        "--max-examples",
        EXAMPLES,
        "--seed=1",
        "--no-color",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
