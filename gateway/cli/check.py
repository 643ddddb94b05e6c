"""`check`: ask the upstream for one hour, and say in plain words what is wrong."""

from __future__ import annotations

import argparse
import asyncio
import os
import time

from gateway import errors, logs
from gateway.errors import Obstacle
from gateway.settings import Settings, parse_upstream_settings

HOUR = 3600
HELP = "Ask the upstream for one hour, and say what is wrong."
EXAMPLE = "GATEWAY_UPSTREAM_URL=http://callbutton.example/cb/main/jsp/xml/xml.jsp callbutton-gateway check"
ADVICE: dict[type[errors.UpstreamError], str] = {
    errors.UpstreamUnauthorized: "ask Callbutton to allow that address, or go out through one that it allows "
    "(GATEWAY_UPSTREAM_PROXY)",
    errors.UpstreamRejected: "the server refuses a window of one hour: is it an xml.jsp of 2009?",
    errors.UpstreamFailed: "the server is there but fails: try again later, then ask Callbutton",
    errors.UpstreamMalformed: "this is not a Callbutton XML service: check GATEWAY_UPSTREAM_URL, which ends in xml.jsp",
    errors.UpstreamUnreachable: "check GATEWAY_UPSTREAM_URL, routes and firewalls",
    errors.UpstreamTimeout: "the server is too slow: try again, or raise GATEWAY_UPSTREAM_TIMEOUT",
    errors.NotSent: "the server was not asked: try again in a moment",
}
OBSTACLES = {
    Obstacle.NAME: "check the host in GATEWAY_UPSTREAM_URL, and name resolution where the gateway runs",
    Obstacle.REFUSED: "check the port in GATEWAY_UPSTREAM_URL; if it is right, nothing listens there: ask Callbutton",
    Obstacle.TLS: "servers of 2009 speak http: check the scheme in GATEWAY_UPSTREAM_URL, or the server's certificate",
    Obstacle.PROXY: "check GATEWAY_UPSTREAM_PROXY, and what the proxy allows",
    Obstacle.CLOSED: "something listens there, but is it the Callbutton server? If so, try again, then ask Callbutton",
}


def advice_on(error: errors.UpstreamError) -> str:
    """Say what to do about an error."""
    if isinstance(error, errors.UpstreamUnreachable) and error.obstacle in OBSTACLES:
        return OBSTACLES[error.obstacle]
    return next(ADVICE[kind] for kind in type(error).__mro__ if kind in ADVICE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are no options."""


def run(arguments: argparse.Namespace) -> int:  # noqa: ARG001
    """Check. Raises SettingsError."""
    return asyncio.run(check(parse_upstream_settings(os.environ)))


async def check(settings: Settings) -> int:
    """Ask for the last hour with and without status; explain what fails. Returns the exit code."""
    from prometheus_client import CollectorRegistry

    from gateway.app import build_upstream
    from gateway.metrics import Metrics
    from gateway.model import Window

    logs.configure(settings.log_format, "error")
    upstream = build_upstream(settings, Metrics(CollectorRegistry()))
    now = time.time()
    window = Window(int(now) - HOUR, int(now) - 60)
    try:
        for status in (False, True):
            kind = "with" if status else "without"
            try:
                fetched = await upstream.fetch(["*"], window, status=status, now=now)
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
        await upstream.close()
    return 0


def print_failure(error: errors.UpstreamError, *, status: bool) -> None:
    """Print what does not work, and what to do."""
    print(f"does not work: calls {'with' if status else 'without'} status: {error}")
    if isinstance(error, errors.UpstreamUnauthorized):
        print(f"the server saw: username {error.username}, address {error.address}")
    print(f"what to do: {advice_on(error)}")
