"""`openapi`: the contract on standard output."""

from __future__ import annotations

import argparse
import json
import sys

HELP = "Print the OpenAPI document."
EXAMPLE = "callbutton-gateway openapi > openapi.yaml"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the options."""
    parser.add_argument("--json", action="store_true", help="as JSON rather than YAML")


def run(arguments: argparse.Namespace) -> int:
    """Print the contract."""
    from gateway.api.routes import document, document_yaml

    sys.stdout.write(json.dumps(document(), indent=2) + "\n" if arguments.json else document_yaml())
    return 0
