"""The command line: `callbutton-gateway`, the same as `python -m gateway`.

Exit codes: 0 done, 1 the upstream does not work, 2 the command or a setting cannot be used.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Sequence

from gateway import __version__, logs
from gateway.settings import Settings, SettingsError, read_settings
from gateway.simulator import command as simulator

LOGGER = logging.getLogger("gateway")
HOUR = 3600
ADVICE = {
    "UpstreamUnauthorized": "ask Callbutton to allow the address above, or go out through one that it allows "
    "(GATEWAY_UPSTREAM_PROXY)",
    "UpstreamRejected": "the server refuses a window of one hour: it may not be an xml.jsp of 2009",
    "UpstreamFailed": "the server is there but fails; try again later, then ask Callbutton",
    "UpstreamMalformed": "this is not a Callbutton XML service: check GATEWAY_UPSTREAM_URL, which ends in xml.jsp",
    "UpstreamUnreachable": "check GATEWAY_UPSTREAM_URL, name resolution and firewalls",
    "UpstreamTimeout": "the server is too slow; try again, or raise GATEWAY_UPSTREAM_TIMEOUT",
}


def parser() -> argparse.ArgumentParser:
    """Describe the commands."""
    root = argparse.ArgumentParser(prog="callbutton-gateway", description="A REST/JSON gateway to Callbutton.")
    root.add_argument("--version", action="version", version=__version__)
    commands = root.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, example: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    add(
        "serve",
        "Serve the gateway; settings come from GATEWAY_ variables.",
        "GATEWAY_UPSTREAM_URL=http://192.0.2.1/cb/main/jsp/xml/xml.jsp GATEWAY_AUTH=none callbutton-gateway serve",
    )
    demo = add("demo", "Run simulator and gateway together, with nothing to set.", "callbutton-gateway demo")
    demo.add_argument("--port", type=int, default=8080, help="of the gateway (default: %(default)s)")
    demo.add_argument("--simulator-port", type=int, default=8081, help="default: %(default)s")
    simulate = add("simulate", "Run a stand-in Callbutton server.", "callbutton-gateway simulate --fault drip:0.1")
    simulator.add_arguments(simulate)
    add("check", "Ask the upstream for one hour, and say what is wrong.", "callbutton-gateway check")
    contract = add("openapi", "Print the OpenAPI document.", "callbutton-gateway openapi > openapi.yaml")
    contract.add_argument("--json", action="store_true", help="as JSON rather than YAML")
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    chosen = parser().parse_args(arguments)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            if chosen.command == "simulate":
                return simulator.run(chosen)
            if chosen.command == "openapi":
                return openapi(as_json=chosen.json)
            if chosen.command == "demo":
                return demo(chosen.port, chosen.simulator_port)
            settings = read_settings(os.environ)
            if not settings.upstream_url:
                raise SettingsError("GATEWAY_UPSTREAM_URL is not set: it is the address of the server's xml.jsp")
            return asyncio.run(check(settings)) if chosen.command == "check" else serve(settings)
    except ValueError as error:
        print(f"callbutton-gateway: {error}", file=sys.stderr)
        return 2
    return 0


def serve(settings: Settings) -> int:
    """Serve until told to stop."""
    import uvicorn

    from gateway import app

    if settings.auth != "none":
        raise SettingsError(
            "GATEWAY_AUTH: this version has no access keys yet; GATEWAY_AUTH=none serves every client to whoever asks"
        )
    logs.configure(settings.log_format, settings.log_level)
    LOGGER.warning("no access control: whoever reaches this gateway sees every client's calls")
    if not os.environ.get("GATEWAY_SIGNING_KEY"):
        LOGGER.warning("GATEWAY_SIGNING_KEY is not set: cursors end with this process")
    uvicorn.run(
        app.create(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
    )
    return 0


def demo(port: int, simulator_port: int) -> int:
    """Run both until told to stop."""
    import uvicorn

    from gateway import app
    from gateway.simulator.server import PATH, Options, create

    logs.configure("", "warning")
    upstream = f"http://127.0.0.1:{simulator_port}{PATH}"
    applications = [
        (create(Options()), simulator_port),
        (app.create(Settings(upstream_url=upstream, auth="none", port=port)), port),
    ]
    year = time.gmtime().tm_year - (time.gmtime()[1:3] < (11, 9))
    change = next(day for day in range(1, 8) if time.gmtime(_noon(year, day)).tm_wday == 6)
    window = f"start={year}-11-{change:02}T05:00:00Z&end={year}-11-{change:02}T09:00:00Z"

    async def both() -> None:
        servers = [
            uvicorn.Server(uvicorn.Config(application, port=at, log_config=None, access_log=False))  # type: ignore[arg-type]
            for application, at in applications
        ]
        running = [asyncio.create_task(server.serve()) for server in servers]
        while not all(server.started for server in servers):
            if any(task.done() for task in running):
                raise SettingsError(f"port {port} or {simulator_port} is taken: choose with --port, --simulator-port")
            await asyncio.sleep(0.02)
        base = f"http://127.0.0.1:{port}"
        print(f"Gateway on {base}, a simulated Callbutton server behind it. Stop with Ctrl-C. Try:\n")
        print("# across the autumn change of clocks: times are UTC, those of the repeated hour are marked")
        print(f"curl -s '{base}/clients/8005550100/calls?{window}&limit=3'")
        print("# two clients, today by Chicago's clock, with what people said of the calls")
        print(f"curl -s '{base}/calls?client=8005550100&client=8005550101&include=status&limit=5'")
        print("# what the gateway counts")
        print(f"curl -s {base}/metrics | grep ^callbutton_gateway_upstream", flush=True)
        await asyncio.gather(*running)

    try:
        asyncio.run(both())
    except SystemExit as error:  # how uvicorn says that a port is taken
        raise SettingsError(
            f"port {port} or {simulator_port} is taken: choose with --port, --simulator-port"
        ) from error
    return 0


def _noon(year: int, day: int) -> float:
    return time.mktime((year, 11, day, 12, 0, 0, 0, 0, 0))


async def check(settings: Settings) -> int:
    """Ask for the last hour with and without status; explain what fails."""
    from prometheus_client import CollectorRegistry

    from gateway.app import build_service
    from gateway.errors import UpstreamError, UpstreamUnauthorized
    from gateway.metrics import Metrics
    from gateway.model import Window

    logs.configure(settings.log_format, "error")
    service = build_service(settings, Metrics(CollectorRegistry()))
    now = time.time()
    window = Window(int(now) - HOUR, int(now) - 60)
    try:
        plain = await service.fetch(["*"], window, status=False, now=now)
        count = sum(map(len, plain.calls.values()))
        print(f"The Callbutton server answers: {len(plain.calls)} clients, {count} calls in the last hour.")
        with_status = await service.fetch(["*"], window, status=True, now=now)
        if with_status.status_ignored:
            print(
                f"It ignores the status flag <{settings.status_flag_element}>: set GATEWAY_STATUS_FLAG_ELEMENT to the "
                "name that Callbutton tells you."
            )
        else:
            print(
                "The status flag works." if any(with_status.calls.values()) else "No calls to try the status flag on."
            )
    except UpstreamError as error:
        print(f"It does not work: {error}.")
        if isinstance(error, UpstreamUnauthorized):
            print(f"The server saw the user {error.username!r} at the address {error.address!r}.")
        print(f"What to do: {ADVICE[type(error).__name__]}.")
        return 1
    finally:
        await service.close()
    return 0


def openapi(*, as_json: bool) -> int:
    """Print the contract."""
    from gateway.api.routes import document, document_yaml

    sys.stdout.write(json.dumps(document(), indent=2) + "\n" if as_json else document_yaml())
    return 0


if __name__ == "__main__":
    sys.exit(main())
