"""`serve`: the gateway, from the environment."""

from __future__ import annotations

import argparse
import logging
import os

from gateway import __version__, logs, tracing
from gateway.commands.environment import reachable_settings
from gateway.server import address_of, listen, make_server

LOGGER = logging.getLogger("gateway")
TEXT = "Serve the gateway; settings come from GATEWAY_ variables."
EXAMPLE = (
    "GATEWAY_UPSTREAM_URL=http://callbutton.example/cb/main/jsp/xml/xml.jsp GATEWAY_KEYS_FILE=keys.toml "
    "callbutton-gateway serve"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are no options."""


def run(chosen: argparse.Namespace) -> int:  # noqa: ARG001
    """Serve until told to stop. Raises SettingsError, OSError."""
    from gateway import app
    from gateway.api import problems

    settings = reachable_settings()
    logs.configure(settings.log_format, settings.log_level)
    application = app.create(settings)
    stop = tracing.start() if tracing.wanted(os.environ) else None
    if settings.auth == "none":
        LOGGER.warning("GATEWAY_AUTH is none: whoever reaches this address sees every client")
    if not os.environ.get("GATEWAY_SIGNING_KEY"):
        LOGGER.warning(
            "GATEWAY_SIGNING_KEY is not set: cursors end with this process, and replicas refuse each other's"
        )
    opened = [
        listen(settings.host, port) for port in (settings.port, settings.metrics_port or None) if port is not None
    ]
    LOGGER.info("serving", extra={"fields": {"address": address_of(opened[0]), "version": __version__}})
    make_server(
        application, drain=settings.drain_delay, stopping=application.door.stop, problem=problems.bare_problem
    ).run(sockets=opened)
    if stop is not None:
        stop()
    return 0
