"""Programs that tests need and Python cannot bring: absent ones skip a test with the reason, or fail it in CI."""

import os
import shutil

import pytest


def need(there: bool, what: str) -> None:
    """Skip a test for which something is missing; `.ci/run` installs all and sets REQUIRE_TOOLS, which fails it."""
    if not there:
        assert not os.environ.get("REQUIRE_TOOLS"), f"missing: {what}"
        pytest.skip(f"needs {what}; .ci/run installs it")


def tool(name: str, package: str = "") -> str:
    """The path of a program, from the Debian package of this name or of the same one."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    need(path is not None, f"{name}, from the Debian package {package or name}")
    return path or ""
