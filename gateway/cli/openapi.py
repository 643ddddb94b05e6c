"""`openapi`: prints the OpenAPI document of the settings."""

from __future__ import annotations

import argparse
import json
import os
import sys

HELP = "Print the OpenAPI document."
EXAMPLE = "callbutton-gateway openapi > openapi.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to the parser."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of YAML")


def run(arguments: argparse.Namespace) -> int:
    """Print the OpenAPI document, and return the exit code."""
    from gateway.api.routes import document, document_yaml
    from gateway.app import build_extras
    from gateway.settings import parse_settings

    extras = build_extras(parse_settings(os.environ))
    sys.stdout.write(json.dumps(document(extras), indent=2) + "\n" if arguments.json else document_yaml(extras))
    return 0
