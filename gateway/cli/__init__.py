"""The commands of the command line, one module for each. `gateway/__main__.py` parses arguments and calls them.

Rules:
- A module has `HELP`, `EXAMPLE`, `add_arguments`, and `run`, which returns the exit code.
- `run` imports the modules that it needs, so that `--help` is fast. Only the module of the given command is loaded.
- `run` raises SettingsError or ValueError for an invalid setting or option (exit code 2), OSError for a failure (1).
- Results go to standard output; logs and errors go to standard error.

Begin with `serve`. `exporter`, `parquet` and `partial_file` belong to `fetch`, `mirror_…` to `mirror`,
`conformance_report` to `check`, and `gateway_client` and `progress` to several. Commands contain no logic of the API or
the cache.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import Protocol, cast


class Command(Protocol):
    """The interface of a module."""

    HELP: str
    EXAMPLE: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the options of the command to a parser."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Run the command, and return its exit code."""


INTERRUPTED = 130  # exit code; 128 and the number of SIGINT, as in shells
COMMANDS = ("serve", "healthy", "demo", "simulate", "check", "fetch", "mirror", "keys", "openapi")


def load(name: str) -> Command:
    """Import the module of a command."""
    return cast(Command, import_module(f"gateway.cli.{name}"))
