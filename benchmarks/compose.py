"""compose.yaml, and its nginx run by hand on a port of 127.0.0.1 with its own configuration. Also used by the tests."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks.support import running, wait_for

ROOT = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
CONFIGS: dict[str, dict[str, str]] = COMPOSE["configs"]


def answers(url: str) -> bool:
    """Return whether a URL answers with success."""
    try:
        return httpx.get(url, timeout=2).is_success
    except httpx.TransportError:
        return False


@contextmanager
def nginx(folder: Path, front: int, ports: list[int]) -> Iterator[None]:
    """Run nginx on the port `front`, before replicas on these ports: addresses in place of host names."""
    servers = "\n".join(f"server 127.0.0.1:{port} max_fails=1 fail_timeout=2s;" for port in ports)
    text = CONFIGS["nginx"]["content"].replace("$$", "$")
    text, found = re.subn(r"server gateway:8080 resolve (.*);", servers, text)
    assert found == 1
    text, found = re.subn(r"listen 8080;", f"listen 127.0.0.1:{front};", text)
    assert found == 1
    with running_nginx(folder, front, re.sub(r"resolver .*;", "", text)):
        yield


@contextmanager
def running_nginx(folder: Path, front: int, text: str) -> Iterator[None]:
    """Run nginx with a configuration that listens on the port `front`, and its files in a writable folder."""
    paths = "\n".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    configuration = folder / "nginx.conf"
    configuration.write_text(f"pid {folder}/nginx.pid;\n" + text.replace("http {", f"http {{\n{paths}", 1), "utf-8")
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin")
    assert program, "needs nginx, from the Debian package nginx-light"
    words: list[str | Path] = [program, "-p", folder, "-c", configuration, "-e", "stderr", "-g", "daemon off;"]
    with running(words, folder / "nginx.log"):
        wait_for(lambda: answers(f"http://127.0.0.1:{front}/readyz"), "nginx answers", 120)
        yield
