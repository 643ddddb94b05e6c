"""Programs that are not Python packages. If one is missing, the test is skipped with the reason, or fails in CI."""

import os
import shutil

import pytest


def need(there: bool, what: str) -> None:
    """Skip a test if a tool is missing, or fail it if REQUIRE_TOOLS is set. `.ci/run` sets it."""
    if not there:
        assert not os.environ.get("REQUIRE_TOOLS"), f"missing: {what}"
        pytest.skip(f"needs {what}; .ci/run installs it")


def tool(name: str, package: str = "") -> str:
    """Return the path of a program. `package` is its Debian package if the name differs."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    need(path is not None, f"{name}, from the Debian package {package or name}")
    return path or ""
