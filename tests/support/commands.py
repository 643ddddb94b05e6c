"""The command line as a process."""

import os
import subprocess
import sys

ENVIRONMENT = {name: text for name, text in os.environ.items() if not name.startswith("GATEWAY_")}
COMMAND = [sys.executable, "-m", "gateway"]


def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = ENVIRONMENT | variables
    return subprocess.run([*COMMAND, *words], env=environment, capture_output=True, text=True, timeout=300, check=False)
