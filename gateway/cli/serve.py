"""`serve`: runs the gateway with the settings of the environment, in one process."""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gateway import __version__, logs, tracing
from gateway.settings import Settings, SettingsError, parse_upstream_settings, removed_settings, variable

if TYPE_CHECKING:
    from gateway.guard import Limits

LOGGER = logging.getLogger("gateway")
HELP = "Run the gateway. Its settings are environment variables; see docs/settings.md."
EXAMPLE = (
    "GATEWAY_UPSTREAM_URL=http://callbutton.example/cb/main/jsp/xml/xml.jsp GATEWAY_KEYS_FILE=keys.toml "
    "callbutton-gateway serve"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add no options: all settings are environment variables."""


def run(arguments: argparse.Namespace, limits: Limits | None = None) -> int:  # noqa: ARG001 - there are no options
    """Serve until a signal. Raises SettingsError, OSError."""
    settings = parse_upstream_settings(os.environ)
    logs.configure(settings.log_format, settings.log_level)
    with loading():
        from gateway import app, server
        from gateway.api import problems
        from gateway.guard import Limits

        application = app.create(settings)
    stop_tracing = tracing.start() if tracing.is_enabled(os.environ) else None
    tls = load_tls(settings)
    warn(settings)
    listener = server.listen(settings.host, settings.port)
    fields = {"address": server.address_of(listener, "https" if tls else "http"), "version": __version__}
    others = {}
    if settings.metrics_port:
        metrics_listener = server.listen(settings.host, settings.metrics_port)
        few = Limits(connections=100, shutdown_timeout=1)  # scrapes and probes are few, and take milliseconds
        others[server.make_server(application.operator, lifespan="off", limits=few, signals=False)] = metrics_listener
        fields["metricsAddress"] = server.address_of(metrics_listener)
    main = server.make_server(
        application,
        drain=settings.drain_delay,
        shutdown=application.shutdown,
        problem=problems.bare_problem,
        limits=limits,
        tls=tls,
        on_started=lambda: LOGGER.info("serving", extra={"fields": fields}),
    )
    with asyncio.Runner(loop_factory=main.config.get_loop_factory()) as runner:
        runner.run(server.serve_with(main, listener, others))
    if stop_tracing is not None:
        stop_tracing()
    return 0


@contextmanager
def loading() -> Iterator[None]:
    """Pause the garbage collector while importing (10 % of start-up time), then freeze the heap."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def load_tls(settings: Settings) -> ssl.SSLContext | None:
    """The TLS context of GATEWAY_TLS_CERT and GATEWAY_TLS_KEY; None if they are not set. Raises SettingsError."""
    from gateway.server import tls_context

    if not settings.tls_cert and not settings.tls_key:
        return None
    files = {"tls_cert": settings.tls_cert, "tls_key": settings.tls_key}
    if unset := next((name for name, path in files.items() if not path), None):
        text = f"{variable(unset)} is not set: set both GATEWAY_TLS_CERT and GATEWAY_TLS_KEY, or neither"
        raise SettingsError(text, unset)
    for name, path in files.items():
        try:
            Path(path).read_bytes()
            if name == "tls_cert":
                ssl.create_default_context(cafile=path)  # fails if there is no certificate in it
        except OSError as error:
            raise SettingsError(f"{variable(name)} cannot be used: {path}: {error.strerror}", name) from error
    try:
        return tls_context(settings.tls_cert, settings.tls_key)
    except OSError as error:
        is_other = getattr(error, "reason", "") == "KEY_VALUES_MISMATCH"
        reason = "is not the key of GATEWAY_TLS_CERT" if is_other else "has no private key without a passphrase"
        raise SettingsError(f"GATEWAY_TLS_KEY cannot be used: {settings.tls_key} {reason}", "tls_key") from error


def warn(settings: Settings) -> None:
    """Log warnings about removed settings and unsafe defaults."""
    for text in removed_settings(os.environ):
        LOGGER.warning(text)
    if settings.auth == "none":
        LOGGER.warning("GATEWAY_AUTH is none: every consumer that can reach this address sees every client")
    if not os.environ.get("GATEWAY_SIGNING_KEY"):
        LOGGER.warning(
            "GATEWAY_SIGNING_KEY is not set: cursors, tokens of the change feed, links and values in Redis end with "
            "this process"
        )
