"""The console's first view in Chromium: 30 days of 200 calls a day from a warm cache, until everything is painted.

`--pictures` also writes the pictures of `docs/`. Needs Chromium, and `npm ci` in tests/node.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import statistics
import subprocess
import time
from pathlib import Path

from benchmarks.support import serving
from gateway import app
from gateway.api import console
from gateway.settings import Settings
from gateway.simulator.server import PATH, Options, create

ROOT = Path(__file__).parent.parent
TIMES = 6  # the first warms the cache


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", action="store_true", help="write docs/console.png and docs/console-hours.png")
    arguments = parser.parse_args()
    node, chromium = shutil.which("node"), shutil.which("chromium")
    if not node or not chromium:
        raise SystemExit("node and chromium are needed")
    with serving(create(Options(clients=1), time.time)) as simulator:
        settings = Settings(
            upstream_url=f"http://127.0.0.1:{simulator}{PATH}", auth="none", signing_key="k" * 32, log_level="WARNING"
        )
        with serving(app.create(settings)) as port:
            address = f"http://127.0.0.1:{port}"
            script = str(ROOT / "benchmarks" / "console.mjs")
            pictures = [str(ROOT / "docs")] if arguments.pictures else []
            command = [node, script, chromium, address, "none", str(TIMES), *pictures]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
    painted = json.loads(done.stdout)[1:]
    loaded = ("index.html", "console.js", "console.css")
    sizes = {name: len(gzip.compress((console.STATIC / name).read_bytes(), 9)) for name in loaded}
    median = statistics.median(one["milliseconds"] for one in painted)
    print(f"loaded: {sum(sizes.values()):,} bytes by gzip -9, bar 120,000: {sizes}")
    rows = painted[0]["rows"]
    print(f"painted after {median:.0f} ms, median of {len(painted)}, bar 1,000 ms; {rows} rows in the page")


if __name__ == "__main__":
    main()
