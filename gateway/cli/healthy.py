"""`healthy`: requests `/healthz` from the gateway that runs with the same settings, for health checks."""

from __future__ import annotations

import argparse
import os
import ssl
import sys
from http.client import HTTPConnection, HTTPException, HTTPSConnection

from gateway.settings import parse_settings

HELP = "Ask the gateway that runs here with the same settings whether it is alive: exit code 0 or 1."
EXAMPLE = "GATEWAY_PORT=8080 callbutton-gateway healthy"
TIMEOUT = 2.0  # seconds; health checks of containers commonly allow 3
LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1", "[::]": "::1"}  # noqa: S104 - the keys are not listened on


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add no options: all settings are environment variables."""


def run(arguments: argparse.Namespace) -> int:  # noqa: ARG001 - there are no options
    """Request `/healthz`, and return the exit code. Raises SettingsError, OSError."""
    settings = parse_settings(os.environ)
    host = LOOPBACK.get(settings.host, settings.host).strip("[]")
    connection = HTTPConnection(host, settings.port, timeout=TIMEOUT)
    if settings.tls_cert:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # the certificate is for other names
        connection = HTTPSConnection(host, settings.port, timeout=TIMEOUT, context=context)
    try:
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
    except HTTPException as error:
        raise OSError(f"{host} port {settings.port} does not speak HTTP") from error
    except OSError as error:
        raise OSError(error.errno, f"{host} port {settings.port}: {error.strerror or error}") from error
    finally:
        connection.close()
    if status != 200:
        print(f"callbutton-gateway: /healthz answers {status}", file=sys.stderr)
    return int(status != 200)
