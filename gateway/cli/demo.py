"""`demo`: run the gateway in front of a simulated Callbutton server, without any configuration.

Rule: the settings of the environment apply, with these exceptions. The upstream is the simulator, a generated access
key is the only credential, there is no TLS, and metrics are on the port of the API.
"""

from __future__ import annotations

import argparse
import os
import socket
import tempfile
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from gateway import logs
from gateway.access import SCOPES
from gateway.callbutton.central_time import HOUR, fold_near
from gateway.cli.keys import with_key
from gateway.settings import parse_settings

HELP = "Run the gateway in front of a simulated Callbutton server, without any configuration."
EXAMPLE = "callbutton-gateway demo --port 9090"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to the parser."""
    parser.add_argument("--port", type=int, help="port of the gateway (default: GATEWAY_PORT, or 8080)")
    parser.add_argument("--simulator-port", type=int, help="default: 8081, or a free port if that is taken")


def run(arguments: argparse.Namespace) -> int:
    """Run simulator and gateway until a signal stops them. Raises SettingsError, OSError."""
    from gateway import app
    from gateway.api import problems
    from gateway.auth.access_keys import fingerprint, new_key
    from gateway.server import address_of, listen, make_server
    from gateway.simulator.server import PATH, Options, create

    settings = parse_settings(os.environ)
    logs.configure(settings.log_format, settings.log_level)
    with (
        listen_for_simulator(arguments.simulator_port) as simulator_socket,
        listen(settings.host, settings.port if arguments.port is None else arguments.port) as gateway_socket,
        tempfile.TemporaryDirectory() as folder,
    ):
        key, keys_file = new_key(), Path(folder) / "keys.toml"
        keys_file.write_text(with_key("", "demo", f'{{ sha256 = "{fingerprint(key)}" }}', ["*"], SCOPES, None), "utf-8")
        simulator, simulator_url = (
            make_server(create(Options()), lifespan="off"),
            f"{address_of(simulator_socket)}{PATH}",
        )
        thread = threading.Thread(target=simulator.run, kwargs={"sockets": [simulator_socket]})
        thread.start()
        try:
            application = app.create(
                replace(
                    settings,
                    upstream_url=simulator_url,
                    upstream_proxy=None,
                    auth="keys",
                    keys_file=str(keys_file),
                    metrics_port=0,
                )
            )
            address = address_of(gateway_socket)
            print(f"The gateway is at {address}, in front of a simulated Callbutton server:\n{simulator_url}")
            print(f"Console: {address}/console\nAPI reference: {address}/docs\nAccess key: {key}\n\nTry:\n")
            for path in demo_paths(datetime.now(UTC)):
                print(f"  curl -H 'X-API-Key: {key}' '{address}{path}'")
            print("\nWatch calls arrive, about one in a few minutes (docs/changes.md):\n")
            stream = f"{address}/changes?client=*&start={datetime.now(UTC):%Y-%m-%d}"
            print(f"  curl -N -H 'X-API-Key: {key}' -H 'Accept: text/event-stream' '{stream}'")
            print("\nPress Ctrl-C to stop. The log follows, with a line for each request.", flush=True)
            gateway = make_server(application, shutdown=application.shutdown, problem=problems.bare_problem)
            gateway.run(sockets=[gateway_socket])
        finally:
            simulator.should_exit = True
            thread.join()
    return 0


def listen_for_simulator(port: int | None) -> socket.socket:
    """Listen on a port, or without one on 8081, and if that is taken on any. Raises OSError."""
    from gateway.server import listen

    if port is not None:
        return listen("127.0.0.1", port)
    try:
        return listen("127.0.0.1", 8081)
    except OSError:
        return listen("127.0.0.1", 0)


def demo_paths(now: datetime) -> list[str]:
    """Paths to try: the night of the last autumn clock change, the newest calls of two clients, the metrics."""
    folds = (fold_near(int(day.timestamp())) for day in (now, now - timedelta(days=365)))
    edges = ((fold.start - HOUR, fold.end + HOUR) for fold in folds if fold is not None)
    night = next((start, end) for start, end in edges if end < now.timestamp())
    start, end = (f"{datetime.fromtimestamp(edge, UTC):%Y-%m-%dT%H:%M:%SZ}" for edge in night)
    return [
        f"/clients/8005550100/calls?start={start}&end={end}&limit=1",
        "/calls?client=8005550100&client=8005550101&include=status&limit=5",
        "/metrics",
    ]
