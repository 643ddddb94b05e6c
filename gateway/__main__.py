"""The command line: `callbutton-gateway`, the same as `python -m gateway`.

Exit codes: 0 done, 1 the upstream does not work or the port is taken, 2 the command or a setting cannot be used.
What is asked for goes to standard output, logs and complaints go to standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from gateway import __version__, errors, logs
from gateway.settings import Settings, SettingsError, read_settings

if TYPE_CHECKING:
    import uvicorn

LOGGER = logging.getLogger("gateway")
HOUR = 3600
EXAMPLES = {
    "serve": "GATEWAY_UPSTREAM_URL=http://callbutton.example/cb/main/jsp/xml/xml.jsp GATEWAY_AUTH=none "
    "callbutton-gateway serve",
    "demo": "callbutton-gateway demo --port 9090",
    "simulate": "callbutton-gateway simulate --fault drip:0.1 --fault error@8005550101",
    "check": "GATEWAY_UPSTREAM_URL=http://callbutton.example/cb/main/jsp/xml/xml.jsp callbutton-gateway check",
    "openapi": "callbutton-gateway openapi > openapi.yaml",
}
ADVICE: dict[type[errors.UpstreamError], str] = {
    errors.UpstreamUnauthorized: "ask Callbutton to allow that address, or go out through one that it allows "
    "(GATEWAY_UPSTREAM_PROXY)",
    errors.UpstreamRejected: "the server refuses a window of one hour: is it an xml.jsp of 2009?",
    errors.UpstreamFailed: "the server is there but fails: try again later, then ask Callbutton",
    errors.UpstreamMalformed: "this is not a Callbutton XML service: check GATEWAY_UPSTREAM_URL, which ends in xml.jsp",
    errors.UpstreamUnreachable: "check GATEWAY_UPSTREAM_URL, name resolution and firewalls",
    errors.UpstreamTimeout: "the server is too slow: try again, or raise GATEWAY_UPSTREAM_TIMEOUT",
}


def parser() -> argparse.ArgumentParser:
    """Describe the commands."""
    from gateway.simulator import command as simulator

    root = argparse.ArgumentParser(
        prog="callbutton-gateway",
        description="A REST/JSON gateway in front of a Callbutton XML server. COMMAND --help shows an example of each.",
    )
    root.add_argument("--version", action="version", version=__version__)
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"example:\n  {EXAMPLES[name]}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    add("serve", "Serve the gateway; settings come from GATEWAY_ variables.")
    demo = add("demo", "Run simulator and gateway together, with nothing to set.")
    demo.add_argument("--port", type=int, default=8080, help="of the gateway (default: %(default)s)")
    demo.add_argument("--simulator-port", type=int, default=8081, help="default: %(default)s")
    simulator.add_arguments(add("simulate", "Run a stand-in Callbutton server."))
    add("check", "Ask the upstream for one hour, and say what is wrong.")
    contract = add("openapi", "Print the OpenAPI document.")
    contract.add_argument("--json", action="store_true", help="as JSON rather than YAML")
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    chosen = parser().parse_args(arguments)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            return run(chosen)
    except OSError as error:
        print(f"callbutton-gateway: {error.strerror or error}", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"callbutton-gateway: {error}", file=sys.stderr)
        return 2
    return 0


def run(chosen: argparse.Namespace) -> int:
    """Run the command that was chosen. Raises SettingsError, ValueError, OSError."""
    match chosen.command:
        case "simulate":
            from gateway.simulator import command as simulator

            return simulator.run(chosen)
        case "openapi":
            return openapi(as_json=chosen.json)
        case "demo":
            return demo(chosen.port, chosen.simulator_port)
        case "check":
            return asyncio.run(check(reachable_settings()))
        case _:
            return serve(reachable_settings())


def reachable_settings() -> Settings:
    """Read the settings of a command that needs the upstream. Raises SettingsError."""
    settings = read_settings(os.environ)
    if not settings.upstream_url:
        raise SettingsError("GATEWAY_UPSTREAM_URL is not set: it is the address of the server's xml.jsp")
    return settings


def listen(host: str, port: int) -> socket.socket:
    """Open a listening socket. Raises OSError, which names the address."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise OSError(error.errno, f"{host} port {port}: {os.strerror(error.errno or 0)}") from error


def address_of(opened: socket.socket) -> str:
    """Write the address of a listening socket as consumers use it."""
    host, port = opened.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_server(application: Any, *, lifespan: str = "on") -> uvicorn.Server:  # noqa: ANN401 - either kind of ASGI
    """Make an HTTP server that logs nothing of its own but warnings."""
    import uvicorn

    return uvicorn.Server(
        uvicorn.Config(
            application,
            lifespan=lifespan,  # type: ignore[arg-type]
            log_config=None,
            access_log=False,
            server_header=False,
        )
    )


def serve(settings: Settings) -> int:
    """Serve until told to stop. Raises SettingsError, OSError."""
    from gateway import app

    if settings.auth != "none":
        raise SettingsError(
            f"GATEWAY_AUTH is {settings.auth!r}, but access keys are not built yet: only none, which lets every "
            "consumer see every client, starts"
        )
    logs.configure(settings.log_format, settings.log_level)
    LOGGER.warning("no access control: every consumer sees every client")
    if not os.environ.get("GATEWAY_SIGNING_KEY"):
        LOGGER.warning(
            "GATEWAY_SIGNING_KEY is not set: cursors end with this process, and replicas refuse each other's"
        )
    opened = listen(settings.host, settings.port)
    LOGGER.info("serving", extra={"fields": {"address": address_of(opened), "version": __version__}})
    make_server(app.create(settings)).run(sockets=[opened])
    return 0


def demo(port: int, simulator_port: int) -> int:
    """Run both until told to stop. Raises OSError."""
    from gateway import app
    from gateway.simulator.server import PATH, Options, create

    logs.configure("", "info")
    with listen("127.0.0.1", simulator_port) as behind, listen("127.0.0.1", port) as front:
        simulator = make_server(create(Options()), lifespan="off")
        thread = threading.Thread(target=simulator.run, kwargs={"sockets": [behind]})
        thread.start()
        try:
            settings = Settings(upstream_url=f"{address_of(behind)}{PATH}", auth="none")
            print(f"A simulated Callbutton server, and on {address_of(front)} the gateway in front of it. Try:\n")
            for path in demo_paths(datetime.now(UTC)):
                print(f"  curl '{address_of(front)}{path}'")
            print("\nStop with Ctrl-C. A log line for each request follows.", flush=True)
            make_server(app.create(settings)).run(sockets=[front])
        finally:
            simulator.should_exit = True
            thread.join()
    return 0


def demo_paths(now: datetime) -> list[str]:
    """Find what to try: the last night in which clocks went back, the newest calls of two clients, the metrics."""
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


async def check(settings: Settings) -> int:
    """Ask for the last hour with and without status; explain what fails. Returns the exit code."""
    from prometheus_client import CollectorRegistry

    from gateway.app import build_service
    from gateway.metrics import Metrics
    from gateway.model import Window

    logs.configure(settings.log_format, "error")
    service = build_service(settings, Metrics(CollectorRegistry()))
    now = time.time()
    window = Window(int(now) - HOUR, int(now) - 60)
    try:
        for status in (False, True):
            kind = "with" if status else "without"
            try:
                fetched = await service.fetch(["*"], window, status=status, now=now)
            except errors.UpstreamError as error:
                print_failure(error, status=status)
                return 1
            calls = sum(map(len, fetched.calls.values()))
            if fetched.status_ignored:
                print(
                    f"does not work: calls with status: the server ignores <{settings.status_flag_element}>\n"
                    "what to do: ask Callbutton for the element's name and set GATEWAY_STATUS_FLAG_ELEMENT; without "
                    "it the gateway serves calls, but no status"
                )
            else:
                proof = "" if calls or not status else "; no call to tell by whether the flag is understood"
                print(f"works: calls {kind} status: {calls} of {len(fetched.calls)} clients in the last hour{proof}")
    finally:
        await service.close()
    return 0


def print_failure(error: errors.UpstreamError, *, status: bool) -> None:
    """Print what does not work, and what to do."""
    print(f"does not work: calls {'with' if status else 'without'} status: {error}")
    if isinstance(error, errors.UpstreamUnauthorized):
        print(f"the server saw: username {error.username}, address {error.address}")
    print(f"what to do: {ADVICE[type(error)]}")


def openapi(*, as_json: bool) -> int:
    """Print the contract."""
    from gateway.api.routes import document, document_yaml

    sys.stdout.write(json.dumps(document(), indent=2) + "\n" if as_json else document_yaml())
    return 0


if __name__ == "__main__":
    sys.exit(main())
