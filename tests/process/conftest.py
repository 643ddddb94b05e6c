"""Gateways in front of a simulator, as processes."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gateway.simulator.server import PATH, Options, create
from tests.process.served import Serve, Served, served
from tests.support.stand import serving


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add an option that tests the connections of another checkout with its real bounds, which takes minutes."""
    parser.addoption("--checkout", default="", help="a checkout of the gateway, with a .venv, to test instead of this")


@pytest.fixture(scope="session")
def checkout(pytestconfig: pytest.Config) -> str:
    """The checkout to test; empty for this one."""
    return str(pytestconfig.getoption("--checkout"))


@pytest.fixture(scope="session")
def upstream() -> Iterator[str]:
    """The address of a simulator with many calls."""
    with serving(create(Options(calls_per_day=2000))) as port:
        yield f"http://127.0.0.1:{port}{PATH}"


@pytest.fixture(scope="session")
def slow_upstream() -> Iterator[str]:
    """The address of a simulator that takes longer than a short idle timeout."""
    with serving(create(Options(latency=1.5))) as port:
        yield f"http://127.0.0.1:{port}{PATH}"


@pytest.fixture(scope="session")
def silent_upstream() -> Iterator[str]:
    """The address of a simulator that does not answer."""
    with serving(create(Options(latency=600))) as port:
        yield f"http://127.0.0.1:{port}{PATH}"


@pytest.fixture
def serve(upstream: str, checkout: str, tmp_path: Path) -> Iterator[Serve]:
    """Return a function that starts gateways; its keywords are settings."""
    with ExitStack() as stack:

        def start(where: str = upstream, **settings: Any) -> Served:
            folder = tmp_path / str(len(list(tmp_path.iterdir())))
            folder.mkdir()
            return stack.enter_context(served(where, folder, checkout, **settings))

        yield start


@pytest.fixture(scope="module")
def gateway(upstream: str, checkout: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One gateway for all tests of a module."""
    with served(upstream, tmp_path_factory.mktemp("gateway"), checkout) as one:
        yield one
