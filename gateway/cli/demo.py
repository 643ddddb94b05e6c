"""`demo`: a simulated Callbutton server, and a gateway in front of it, without configuration."""

from __future__ import annotations

import argparse
import tempfile
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

from gateway import logs
from gateway.access import SCOPES
from gateway.cli.keys import with_key
from gateway.settings import Settings

HELP = "Run a simulated Callbutton server and a gateway in front of it, without configuration."
EXAMPLE = "callbutton-gateway demo --port 9090"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to the parser."""
    parser.add_argument("--port", type=int, default=8080, help="port of the gateway (default: %(default)s)")
    parser.add_argument(
        "--simulator-port", type=int, default=8081, help="port of the simulated server (default: %(default)s)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve until Ctrl-C. Raises OSError."""
    from gateway import app
    from gateway.api import problems
    from gateway.auth.access_keys import fingerprint, new_key
    from gateway.server import address_of, listen, make_server
    from gateway.simulator.server import PATH, Options, create

    logs.configure("", "info")
    with (
        listen("127.0.0.1", arguments.simulator_port) as upstream,
        listen("127.0.0.1", arguments.port) as listener,
        tempfile.TemporaryDirectory() as folder,
    ):
        key, keys_file = new_key(), Path(folder) / "keys.toml"
        keys_file.write_text(with_key("", "demo", f'{{ sha256 = "{fingerprint(key)}" }}', ["*"], SCOPES, None), "utf-8")
        simulator = make_server(create(Options()), lifespan="off")
        thread = threading.Thread(target=simulator.run, kwargs={"sockets": [upstream]})
        thread.start()
        try:
            settings = Settings(upstream_url=f"{address_of(upstream)}{PATH}", keys_file=str(keys_file))
            print(
                f"The gateway listens on {address_of(listener)}. Its upstream is a simulated Callbutton server. Try:\n"
            )
            for path in demo_paths(datetime.now(UTC)):
                print(f"  curl -H 'X-API-Key: {key}' '{address_of(listener)}{path}'")
            print("\nStop with Ctrl-C. A log line for each request follows.", flush=True)
            application = app.create(settings)
            make_server(application, shutdown=application.shutdown, problem=problems.bare_problem).run(
                sockets=[listener]
            )
        finally:
            simulator.should_exit = True
            thread.join()
    return 0


def demo_paths(now: datetime) -> list[str]:
    """Paths to try: calls of the last night with repeated wall times, the newest calls of two clients, the metrics."""
    night = next(
        night
        for year in (now.year, now.year - 1)
        if (night := _first_sunday_of_november(year) + timedelta(hours=5)) + timedelta(hours=4) < now
    )
    window = f"start={night:%Y-%m-%dT%H:%M:%SZ}&end={night + timedelta(hours=4):%Y-%m-%dT%H:%M:%SZ}"
    return [
        f"/clients/8005550100/calls?{window}&limit=1",
        "/calls?client=8005550100&client=8005550101&include=status&limit=5",
        "/metrics",
    ]


def _first_sunday_of_november(year: int) -> datetime:
    first = datetime(year, 11, 1, tzinfo=UTC)
    return first + timedelta(days=(6 - first.weekday()) % 7)
