"""`check`: requests the calls of the last hour from the upstream in three ways, and explains failures.

With `--report` it finds out more with up to 40 POSTs; `conformance_report` has the rules.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import time
from pathlib import Path

from gateway import errors, logs
from gateway.errors import Obstacle
from gateway.settings import Settings, parse_upstream_settings

HOUR = 3600  # seconds
MARGIN = 60  # seconds before now; the upstream's clock may be behind
HELP = "Request the calls of the last hour from the upstream, and explain failures."
EXAMPLE = (
    "GATEWAY_UPSTREAM_URL=http://callbutton.example/cb/main/jsp/xml/xml.jsp callbutton-gateway check\n"
    "  callbutton-gateway check --report --watch 1h --json report.json\n"
    "  callbutton-gateway check --report --client 8005550100 --json - | jq '.findings[] | {name, value, setting}'"
)
ADVICE: dict[type[errors.UpstreamError], str] = {
    errors.UpstreamUnauthorized: "ask Callbutton to allow that address, or use a proxy with an allowed address "
    "(GATEWAY_UPSTREAM_PROXY)",
    errors.UpstreamRejected: "the server refuses the dates or a client code: `callbutton-gateway check --report` finds "
    "out which dates it accepts; if it accepts none, check that GATEWAY_UPSTREAM_URL ends in xml.jsp",
    errors.UpstreamFailed: "the server responds but fails: try again later, then ask Callbutton",
    errors.UpstreamMalformed: "this is not a Callbutton XML service: check GATEWAY_UPSTREAM_URL, which ends in xml.jsp",
    errors.UpstreamUnreachable: "check the host and port in GATEWAY_UPSTREAM_URL, routes and firewalls",
    errors.UpstreamTimeout: "the server is too slow: try again, or raise GATEWAY_UPSTREAM_TIMEOUT",
    errors.NotSent: "no request was sent: try again in a moment",
}
PLAIN, WITH_STATUS, UP_TO_NOW = "without status", "with status", "up to now"  # the requests
REFUSAL_ADVICE = {
    WITH_STATUS: "the same request without the status flag works: `callbutton-gateway check --report` finds out "
    "whether the element has another name (GATEWAY_STATUS_FLAG_ELEMENT)",
    UP_TO_NOW: "the same request with an EndDate works: set GATEWAY_UPSTREAM_NULL_END=off",
}
TRUNCATED = "the server, or a proxy, closed the connection in the middle of a reply: try again, then ask Callbutton"
TOO_LARGE = "ask for less at a time, or raise GATEWAY_UPSTREAM_MAX_BYTES"
NO_SUCH_PATH = (301, 302, 303, 307, 308, 404, 405, 410, 501)  # HTTP status codes
OBSTACLES = {
    Obstacle.NAME: "check the host in GATEWAY_UPSTREAM_URL, and DNS on this machine",
    Obstacle.REFUSED: "check the port in GATEWAY_UPSTREAM_URL; if it is correct the server is down: ask Callbutton",
    Obstacle.TLS: "check the scheme in GATEWAY_UPSTREAM_URL, as servers of 2009 use http; or the server's certificate",
    Obstacle.PROXY: "check GATEWAY_UPSTREAM_PROXY, and the rules of the proxy",
    Obstacle.CLOSED: "check that GATEWAY_UPSTREAM_URL is the Callbutton server; if so try again, then ask Callbutton",
}


def advice_on(error: errors.UpstreamError) -> str:
    """The advice to the operator for an error."""
    if isinstance(error, errors.UpstreamUnreachable) and error.obstacle in OBSTACLES:
        return OBSTACLES[error.obstacle]
    if isinstance(error, errors.UpstreamMalformed) and (error.truncated or error.too_large):
        return TRUNCATED if error.truncated else TOO_LARGE
    if isinstance(error, errors.UpstreamMalformed) and error.start_time_form:
        return f"ask Callbutton to send StartTime as MM/DD/YYYY HH:MM:SS, not as {error.start_time_form} (0: any digit)"
    if isinstance(error, errors.UpstreamFailed) and error.status in NO_SUCH_PATH:
        return "check the path of GATEWAY_UPSTREAM_URL, which ends in xml.jsp"
    return next(ADVICE[kind] for kind in type(error).__mro__ if kind in ADVICE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to the parser."""
    parser.add_argument(
        "--report",
        action="store_true",
        help="find out how the server reads the open points of the protocol document, with at most 40 POSTs, none for "
        "more than a day of calls: findings with their evidence, and the settings that follow",
    )
    parser.add_argument(
        "--client",
        action="append",
        default=[],
        metavar="CODE",
        help="client code that the report asks for (repeatable; default: all clients)",
    )
    parser.add_argument(
        "--watch",
        metavar="DURATION",
        help="how long the report waits for calls that appear late, such as 1h, at most 22h (default: not at all)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON; - is standard output")


def run(arguments: argparse.Namespace) -> int:
    """Check the upstream, and return the exit code. Raises SettingsError, ValueError, OSError."""
    if not arguments.report and (arguments.client or arguments.watch or arguments.json):
        raise ValueError("--client, --watch and --json are options of the report: add --report")
    settings = parse_upstream_settings(os.environ)
    logs.configure(settings.log_format, "error")
    if arguments.report:
        from gateway.cli import conformance_report

        return conformance_report.run(settings, arguments.client, arguments.watch or "0s", arguments.json)
    return asyncio.run(check(settings))


async def check(settings: Settings) -> int:
    """Request the last hour without status, with it, and up to now. Prints the results; returns the exit code."""
    from prometheus_client import CollectorRegistry

    from gateway.app import build_upstream
    from gateway.metrics import Metrics
    from gateway.model import Window

    upstream = build_upstream(settings, Metrics(CollectorRegistry()))
    now = time.time()
    hour, until_now = Window(int(now) - HOUR, int(now) - MARGIN), Window(int(now) - HOUR, math.ceil(now))
    try:
        for kind, window, status in ((PLAIN, hour, False), (WITH_STATUS, hour, True), (UP_TO_NOW, until_now, False)):
            try:
                fetched = await upstream.fetch(["*"], window, status=status, now=now)
            except errors.UpstreamError as error:
                print_failure(error, kind)
                return 1
            calls = sum(map(len, fetched.calls.values()))
            if fetched.status_ignored:
                print(
                    f"works without status only: the server ignores <{settings.status_flag_element}>\n"
                    "what to do: find the name of the element with `callbutton-gateway check --report`, "
                    "or ask Callbutton, and set GATEWAY_STATUS_FLAG_ELEMENT; without it the gateway serves calls "
                    "without status"
                )
            else:
                unproven = (
                    "" if calls or not status else "; whether the server sends the status is unknown without a call"
                )
                print(f"works: calls {kind}: {calls} of {len(fetched.calls)} clients in the last hour{unproven}")
    finally:
        await upstream.close()
    return 0


def print_failure(error: errors.UpstreamError, kind: str) -> None:
    """Print the failed request, and advice."""
    print(f"does not work: calls {kind}: {failure_of(error)}")
    refused = isinstance(error, errors.UpstreamRejected) or (
        isinstance(error, errors.UpstreamFailed) and error.reported
    )
    advice = REFUSAL_ADVICE.get(kind) if refused else None
    print(f"what to do: {advice or advice_on(error)}")


def failure_of(error: errors.UpstreamError) -> str:
    """An error in words, with the address that the server reports."""
    if isinstance(error, errors.UpstreamUnauthorized):
        return f"{error}\nthe server reports: username {error.username}, address {error.address}"
    return str(error)
