"""Count the files and functions of `gateway/` that one GET runs, in the server's thread.

The application is the one that `serve` runs, with an access key and without level 2, behind its HTTP server on a
socket. The upstream is the simulator. Three requests are traced, from the first byte of the request until shortly after
the last byte of the response:

- cold: a page of a window that has not been fetched
- page from the cache: another page of the same window, not in the response cache
- exact repeat: the same page again, from the response cache

    python -m benchmarks.call_path [--list]
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

import httpx

import gateway
from benchmarks.support import serving
from gateway import app
from gateway.auth.access_keys import fingerprint, new_key
from gateway.cli.keys import with_key
from gateway.settings import Settings
from gateway.simulator.server import PATH, Options, create

ROOT = str(Path(gateway.__file__).parent) + "/"
CALLS = "/clients/8005550100/calls?start=2026-09-01T05:00:00Z&end=2026-09-01T17:00:00Z"
REQUESTS = {
    "cold": f"{CALLS}&limit=10",
    "page from the cache": f"{CALLS}&limit=5",
    "exact repeat": f"{CALLS}&limit=5",
}
SCOPES = ["calls", "personal", "recordings"]
SETTLE = 0.05  # seconds; the server finishes its bookkeeping after the last byte

Functions = set[tuple[str, int, str]]  # file, line, name


class Tracer:
    """Collect the functions of the package that run in traced threads."""

    def __init__(self) -> None:
        self.functions: Functions | None = None

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        """Record a call. The hook of `sys.setprofile`."""
        code = frame.f_code
        if self.functions is not None and event == "call" and code.co_filename.startswith(ROOT):
            name = code.co_filename.removeprefix(ROOT)
            if not name.startswith("simulator/"):
                self.functions.add((name, code.co_firstlineno, code.co_qualname))


def trace() -> dict[str, Functions]:
    """Send each request once, on one connection, and return the functions it ran."""
    found: dict[str, Functions] = {}
    tracer = Tracer()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        key, path = new_key(), folder / "keys.toml"
        rate = "1000/second"
        path.write_text(with_key("", "all", f'{{ sha256 = "{fingerprint(key)}" }}', ["*"], SCOPES, rate), "utf-8")
        upstream = stack.enter_context(serving(create(Options(), time.time)))
        settings = Settings(
            upstream_url=f"http://127.0.0.1:{upstream}{PATH}", keys_file=str(path), log_level="critical"
        )
        threading.setprofile(tracer)
        try:
            port = stack.enter_context(serving(app.create(settings)))
        finally:
            threading.setprofile(None)
        client = stack.enter_context(
            httpx.Client(base_url=f"http://127.0.0.1:{port}", headers={"X-API-Key": key}, timeout=60)
        )
        client.get("/healthz").raise_for_status()  # opens the connection and loads modules
        client.get(REQUESTS["cold"].replace("2026-09", "2026-08")).raise_for_status()
        for name, request in REQUESTS.items():
            functions = tracer.functions = Functions()
            client.get(request).raise_for_status()
            time.sleep(SETTLE)
            tracer.functions = None
            found[name] = functions
    return found


def main() -> None:
    """Print the counts, and with `--list` every file with its functions."""
    for name, functions in trace().items():
        files = sorted({file for file, _, _ in functions})
        print(f"{name}: {len(files)} files, {len(functions)} functions")
        for file in files if "--list" in sys.argv[1:] else ():
            print(f"  {file}: {', '.join(name for where, _, name in sorted(functions) if where == file)}")


if __name__ == "__main__":
    main()
