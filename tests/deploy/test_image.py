"""The image, built without a registry and run as in production. `make image` runs these tests.

The base image is a substitute made of Debian packages, with the tag that the Dockerfile names. The settings with which
this machine reaches its package indexes are in the substitute, never in the Dockerfile.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway import __version__
from tests.support.paths import ROOT
from tests.support.processes import answers, free_port, wait_for
from tests.support.tools import need, tool

BASE = "docker.io/library/python:3.11-slim"
SOURCE = "https://git.example/callbutton-gateway"
IMAGE = f"localhost/callbutton-gateway:{__version__}"
MAX_ADDED = 120e6  # bytes, uncompressed, above the base
HARDENED = ["--read-only", "--tmpfs=/tmp", "--cap-drop=all", "--security-opt=no-new-privileges", "--network=host"]
PROGRAM = """
import importlib.util, json, os, ssl, zoneinfo
def writable(path):
    try:
        open(path, "w")
    except OSError:
        return False
    return True
print(json.dumps({
    "user": os.getuid(),
    "pip": [name for name in ("pip", "setuptools", "wheel", "ensurepip") if importlib.util.find_spec(name)],
    "zone": str(zoneinfo.ZoneInfo("America/Chicago")),
    "certificates": ssl.create_default_context().cert_store_stats()["x509_ca"] > 0,
    "tracing": importlib.util.find_spec("opentelemetry.sdk") is not None,
    "bytecode": os.path.exists(importlib.util.cache_from_source(importlib.util.find_spec("gateway.app").origin)),
    "writable": writable("/opt/gateway/x"),
}))
"""


def run(*words: str | Path) -> str:
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def pip_settings() -> tuple[str, set[str]]:
    """Return the pip configuration file of this machine, and the folders that it names."""
    listed = run(sys.executable, "-m", "pip", "config", "list").splitlines()
    pairs = [line.removeprefix("global.").partition("=") for line in listed if line.startswith("global.")]
    options = {name: text.strip("'").replace("\\n", " ") for name, _, text in pairs}
    kept = {name: text for name, text in options.items() if name in ("index-url", "extra-index-url", "find-links")}
    words = {word.removeprefix("file://") for text in kept.values() for word in text.split()}
    text = "\n".join(["[global]", *(f"{name} = {text}" for name, text in kept.items())]) + "\n"
    return text, {word.removesuffix("/simple") for word in words if word.startswith("/")}


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Build the image and return its name."""
    if not os.environ.get("BUILD_IMAGE"):
        pytest.skip("building takes a minute and root: make image does it")
    for name in ("buildah", "podman", "runc", "conmon", "mmdebstrap"):
        tool(name)
    need(os.geteuid() == 0, "root, to build an image")
    folder = tmp_path_factory.mktemp("image")
    (folder / "containers.conf").write_text('[engine]\nruntime = "runc"\n[containers]\ndefault_ulimits = []\n')
    os.environ["CONTAINERS_CONF"] = str(folder / "containers.conf")
    configuration, folders = pip_settings()
    (folder / "pip.conf").write_text(configuration)
    if subprocess.run(["podman", "image", "exists", BASE], check=False, capture_output=True).returncode:
        hooks = [
            'ln -s /usr/bin/python3 "$1/usr/local/bin/python"',
            'rm -rf "$1"/usr/lib/python3*/EXTERNALLY-MANAGED "$1"/usr/share/doc "$1"/usr/share/man',
            f'cp {folder}/pip.conf "$1/etc/pip.conf"',
            'cat /etc/ssl/certs/ca-certificates.crt > "$1/etc/ssl/certs/ca-certificates.crt"',
        ]
        packages = "--include=ca-certificates,python3,python3-pip,python3-venv"
        run("mmdebstrap", "--variant=minbase", packages, *(f"--customize-hook={hook}" for hook in hooks), "bookworm",
            folder / "base.tar")  # fmt: skip
        run("podman", "import", folder / "base.tar", BASE)
    options = [f"--volume={path}:{path}:ro" for path in sorted(folders)]
    options += [f"--build-arg=VERSION={__version__}", f"--build-arg=SOURCE={SOURCE}"]
    run("buildah", "bud", "--isolation=chroot", "--network=host", "--pull-never", "--layers", "--format=docker",
        *options, f"--tag={IMAGE}", ".")  # fmt: skip
    size, base = (json.loads(run("podman", "image", "inspect", name))[0]["Size"] for name in (IMAGE, BASE))
    assert size - base < MAX_ADDED
    print(f"\nimage: {size / 1e6:.0f} MB, of which {(size - base) / 1e6:.0f} MB are not the base's")
    return IMAGE


@pytest.fixture
def served(image: str) -> Iterator[tuple[str, str]]:
    """Run the image as in production. Yields the name of the container and the address of the gateway."""
    port, name = free_port(), f"callbutton-gateway-{os.getpid()}"
    settings = {"UPSTREAM_URL": "http://127.0.0.1:9/xml.jsp", "AUTH": "none", "PORT": str(port)}
    variables = [f"--env=GATEWAY_{name}={text}" for name, text in settings.items()]
    began = time.monotonic()
    run("podman", "run", "--detach", "--no-healthcheck", f"--name={name}", *HARDENED, *variables, image)
    created = time.monotonic()
    try:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/readyz"), "the container is ready")
        print(f"\nready {time.monotonic() - created:.2f} s after podman's {created - began:.2f} s")
        yield name, f"http://127.0.0.1:{port}"
        run("podman", "stop", "--time=20", name)
        state = json.loads(run("podman", "inspect", name))[0]["State"]
        assert state["ExitCode"] == 0
    finally:
        subprocess.run(["podman", "rm", "--force", name], check=False, capture_output=True)


def test_the_image_runs_hardened_and_holds_what_it_needs_and_no_more(served: tuple[str, str]):
    name, _ = served
    assert json.loads(run("podman", "exec", name, "python", "-c", PROGRAM)) == {
        "user": 65532,
        "pip": [],
        "zone": "America/Chicago",
        "certificates": True,
        "tracing": True,
        "bytecode": True,
        "writable": False,
    }


def test_the_health_check_is_a_program_and_tells_the_living_from_the_dead(served: tuple[str, str]):
    name, _ = served
    check = json.loads(run("podman", "image", "inspect", IMAGE))[0]["Healthcheck"]["Test"]
    assert check == ["CMD", "callbutton-gateway", "healthy"]
    for variables, code in (([], 0), ([f"--env=GATEWAY_PORT={free_port()}"], 1)):
        words = ["podman", "exec", *variables, name, *check[1:]]
        assert subprocess.run(words, check=False, capture_output=True).returncode == code


def test_the_image_says_what_it_is(image: str):
    labels = json.loads(run("podman", "image", "inspect", image))[0]["Config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["org.opencontainers.image.licenses"] == "MIT"
    assert labels["org.opencontainers.image.source"] == SOURCE
