"""The listeners of `serve` as a process: addresses, ports in use, TLS, the metrics port."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from cryptography.hazmat.primitives import serialization

from gateway.cli.serve import load_tls
from gateway.settings import Settings, SettingsError
from tests.process.served import REAL, Serve, Served, request
from tests.support.certificates import Certificate
from tests.support.commands import run
from tests.support.processes import free_port, wait_for

SETTINGS = {"GATEWAY_UPSTREAM_URL": "http://127.0.0.1:1/", "GATEWAY_AUTH": "none", "GATEWAY_SIGNING_KEY": "k" * 32}


def healthy(gateway: Served, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run `healthy` with the port of a gateway, and further settings."""
    variables = {"port": str(urlsplit(gateway.address).port)} | settings
    return run("healthy", **{f"GATEWAY_{name.upper()}": text for name, text in variables.items()})


@pytest.mark.parametrize(
    ("host", "shown"),
    [("127.0.0.1", "http://127.0.0.1:"), ("localhost", "http://127.0.0.1:"), ("0.0.0.0", "http://0.0.0.0:")],
)
def test_an_ipv4_address_or_a_name_is_listened_on(serve: Serve, host: str, shown: str):
    gateway = serve(host=host)
    assert gateway.address.startswith(shown)
    assert urlsplit(gateway.address).port != 0
    assert httpx.get(gateway.address.replace("0.0.0.0", "127.0.0.1") + "/healthz", timeout=60).status_code == 200
    assert healthy(gateway, host=host).returncode == 0


@pytest.mark.skipif(not socket.has_ipv6, reason="this Python has no IPv6")
@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_an_ipv6_address_is_listened_on_with_or_without_brackets(serve: Serve, host: str):
    gateway = serve(host=host)
    assert gateway.address.startswith("http://[::1]:")
    assert httpx.get(f"{gateway.address}/healthz", timeout=60).status_code == 200
    assert healthy(gateway, host=host).returncode == 0


def test_healthy_ends_with_1_and_one_line_where_no_gateway_answers(serve: Serve):
    gateway = serve()
    assert (healthy(gateway).returncode, healthy(gateway).stderr) == (0, "")
    gateway.stop(signal.SIGTERM)
    dead = healthy(gateway)
    port = urlsplit(gateway.address).port
    assert (dead.returncode, dead.stdout) == (1, "")
    assert dead.stderr == f"callbutton-gateway: 127.0.0.1 port {port}: Connection refused\n"


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"220 mail.example\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "/healthz answers 404"),
    ],
    ids=["SMTP", "another website"],
)
def test_healthy_ends_with_1_for_another_program(sent: bytes, said: str):
    with socket.create_server(("127.0.0.1", 0)) as other, ThreadPoolExecutor() as pool:

        def answer() -> None:
            connection, _ = other.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(sent)

        answered = pool.submit(answer)
        done = run("healthy", GATEWAY_PORT=str(other.getsockname()[1]))
        answered.result()
    assert done.returncode == 1
    assert said in done.stderr


def test_a_name_that_is_none_ends_with_1_and_one_line():
    done = run("serve", GATEWAY_HOST="no.such.host.invalid", **SETTINGS)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("callbutton-gateway: no.such.host.invalid port 8080: ")
    assert "Unknown error" not in done.stderr


def test_a_port_of_another_program_ends_with_1_and_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run("serve", GATEWAY_PORT=port, **SETTINGS)
    assert done.returncode == 1
    assert done.stderr.splitlines()[1:] == [
        f"callbutton-gateway: 127.0.0.1 port {port}: Address already in use: choose another port"
    ]


@pytest.mark.parametrize("variable", ["GATEWAY_PORT", "GATEWAY_METRICS_PORT"])
def test_a_port_of_another_gateway_ends_with_1_and_one_line(serve: Serve, variable: str):
    port = str(urlsplit(serve().address).port)
    done = run("serve", **{"GATEWAY_PORT": "0", **SETTINGS, variable: port})
    assert done.returncode == 1
    assert (
        done.stderr.splitlines()[-1]
        == f"callbutton-gateway: 127.0.0.1 port {port}: Address already in use: choose another port"
    )


def test_a_port_can_be_had_again_at_once(serve: Serve):
    first = serve()
    client = first.connect()
    client.sendall(request())
    client.recv(1)
    first.stop(signal.SIGTERM)
    client.close()
    second = serve(port=str(urlsplit(first.address).port))
    assert second.address == first.address


@pytest.fixture
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return Certificate(tmp_path_factory.mktemp("certificate"))


def test_tls_is_served_and_the_metrics_stay_plain(serve: Serve, certificate: Certificate):
    gateway = serve(
        bounds=REAL, tls_cert=str(certificate.cert), tls_key=str(certificate.key), metrics_port=str(free_port())
    )
    assert gateway.address.startswith("https://")
    metrics = gateway.events("serving")[0]["metricsAddress"]
    assert metrics.startswith("http://")
    context = ssl.create_default_context(cafile=certificate.cert)
    with httpx.Client(base_url=gateway.address, verify=context, timeout=60) as client:
        assert client.get("/readyz").json() == {"status": "ok"}
        page = client.get("/clients/8005550100/calls?start=2026-09-01&end=2026-09-02&limit=1000")
        assert len(page.json()["data"]) == 1000
    assert httpx.get(f"{metrics}/readyz", timeout=60).json() == {"status": "ok"}
    assert b"200 OK" not in gateway.ask(request())  # plain HTTP to the TLS port
    assert healthy(gateway, tls_cert=str(certificate.cert), tls_key=str(certificate.key)).returncode == 0
    assert healthy(gateway).returncode == 1
    assert httpx.get(f"{metrics}/readyz", timeout=60).status_code == 200
    gateway.stop(signal.SIGTERM)
    assert gateway.process.returncode == 0


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated:DeprecationWarning")
def test_tls_is_1_2_at_least(serve: Serve, certificate: Certificate):
    gateway = serve(bounds=REAL, tls_cert=str(certificate.cert), tls_key=str(certificate.key))
    context = ssl.create_default_context(cafile=certificate.cert)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1_1
    for newest, expected in ((ssl.TLSVersion.TLSv1_1, None), (ssl.TLSVersion.TLSv1_2, "TLSv1.2")):
        context.maximum_version = newest
        assert version_of(gateway, context) == expected


def version_of(gateway: Served, context: ssl.SSLContext) -> str | None:
    """Return the negotiated TLS version, or None if the handshake fails."""
    with gateway.connect() as plain:
        try:
            with context.wrap_socket(plain, server_hostname="127.0.0.1") as client:
                return client.version()
        except (ssl.SSLError, ConnectionError):
            return None


@pytest.mark.parametrize("half", ["GATEWAY_TLS_CERT", "GATEWAY_TLS_KEY"])
def test_half_of_tls_ends_with_2_and_one_line(half: str):
    done = run("serve", **SETTINGS, **{half: "/nothing.pem"})
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "GATEWAY_TLS_CERT and GATEWAY_TLS_KEY" in done.stderr


def test_tls_files_that_cannot_be_used_end_with_2_and_one_line(certificate: Certificate, tmp_path: Path):
    other = Certificate(tmp_path)
    empty = tmp_path / "empty.pem"
    empty.touch()
    locked = tmp_path / "locked.pem"
    secret = serialization.load_pem_private_key(certificate.key.read_bytes(), None)
    form, scheme = serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret")
    locked.write_bytes(secret.private_bytes(serialization.Encoding.PEM, form, scheme))
    for cert, key, said in (
        ("/nothing.pem", certificate.key, "GATEWAY_TLS_CERT cannot be used: /nothing.pem: No such file or directory"),
        (empty, certificate.key, f"GATEWAY_TLS_CERT cannot be used: {empty}: "),
        (certificate.key, certificate.key, f"GATEWAY_TLS_CERT cannot be used: {certificate.key}: "),
        (certificate.cert, "/nothing.pem", "GATEWAY_TLS_KEY cannot be used: /nothing.pem: No such file or directory"),
        (certificate.cert, tmp_path, f"GATEWAY_TLS_KEY cannot be used: {tmp_path}: Is a directory"),
        (certificate.cert, empty, f"GATEWAY_TLS_KEY cannot be used: {empty} has no private key without a passphrase"),
        (certificate.cert, locked, f"GATEWAY_TLS_KEY cannot be used: {locked} has no private key without a passphrase"),
        (
            certificate.cert,
            other.key,
            f"GATEWAY_TLS_KEY cannot be used: {other.key} is not the key of GATEWAY_TLS_CERT",
        ),
    ):
        with pytest.raises(SettingsError) as caught:
            load_tls(Settings(tls_cert=str(cert), tls_key=str(key)))
        assert str(caught.value).startswith(said)
        assert len(str(caught.value).splitlines()) == 1
    done = run("serve", **SETTINGS, GATEWAY_TLS_CERT=str(certificate.cert), GATEWAY_TLS_KEY=str(locked))
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1), done.stderr


def test_the_metrics_port_has_metrics_and_probes_and_the_main_port_no_metrics(serve: Serve):
    gateway = serve(metrics_port=str(free_port()), drain_delay="60s", bounds=REAL)
    metrics = gateway.events("serving")[0]["metricsAddress"]
    found = {
        path: tuple(httpx.get(f"{address}{path}", timeout=60).status_code for address in (gateway.address, metrics))
        for path in ("/metrics", "/healthz", "/readyz", "/openapi.json", "/calls")
    }
    expected = {"/metrics": (404, 200), "/healthz": (200, 200), "/readyz": (200, 200)}
    assert found == expected | {"/openapi.json": (200, 404), "/calls": (400, 404)}
    missing = httpx.get(f"{metrics}/calls", timeout=60)
    assert (missing.headers["content-type"], json.loads(missing.text)["type"]) == (
        "application/problem+json",
        "/problems/not-found",
    )
    assert 'route="/metrics",status="200"' in httpx.get(f"{metrics}/metrics", timeout=60).text
    gateway.process.send_signal(signal.SIGTERM)
    wait_for(lambda: httpx.get(f"{gateway.address}/readyz", timeout=60).status_code == 503, "readiness fails")
    assert httpx.get(f"{metrics}/readyz", timeout=60).status_code == 503
    for address in (gateway.address, metrics):
        assert httpx.get(f"{address}/healthz", timeout=60).status_code == 200
    assert httpx.get(f"{metrics}/metrics", timeout=60).status_code == 200
    gateway.stop(signal.SIGTERM)
    assert gateway.process.returncode == 0
