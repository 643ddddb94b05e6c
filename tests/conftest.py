"""Fixtures for all tests: gateways in front of simulators, with chosen settings."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import settings as hypothesis_settings

from gateway import app
from gateway.settings import Settings
from gateway.simulator.server import PATH, Options, create
from tests.support import servers
from tests.support.databases import Database
from tests.support.stand import Clock, Make, Stand, serving

hypothesis_settings.register_profile("any machine", deadline=None)  # no test may fail because of speed
hypothesis_settings.load_profile("any machine")


@pytest.fixture
def stand() -> Iterator[Make]:
    """Return a function that creates stands; its keywords are settings."""
    with ExitStack() as stack:

        def make(options: Options | None = None, **changes: Any) -> Stand:
            clock = Clock()
            simulator = create(options or Options(), clock)
            upstream = f"http://127.0.0.1:{stack.enter_context(serving(simulator))}{PATH}"
            settings = Settings(**({"upstream_url": upstream, "auth": "none", "signing_key": "k" * 32} | changes))
            port = stack.enter_context(serving(app.create(settings, clock=clock)))
            client = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120))
            return Stand(simulator, client, clock)

        yield make


@pytest.fixture
def server() -> Iterator[servers.Server]:
    """A Valkey server."""
    with servers.running(servers.valkey()) as one:
        yield one


@pytest.fixture(scope="module")
def postgresql() -> Iterator[servers.Postgres]:
    """A PostgreSQL server."""
    with servers.postgres() as one:
        yield one


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    """An empty database for `mirror`, SQLite and PostgreSQL in turn."""
    return Database(tmp_path, request.getfixturevalue("postgresql") if request.param == "postgresql" else None)
