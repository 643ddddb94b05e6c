"""The commands, one module each.

Rules:
- A module has `HELP` and `EXAMPLE` for its help, `add_arguments` and `run`, which returns the exit code.
- What it needs to run it imports in `run`, so that `--help` is quick. The one that is asked for is loaded alone.
- It raises SettingsError or ValueError for what cannot be used (exit code 2), OSError for what is in the way (1).
- What is asked for goes to standard output, logs and complaints go to standard error.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import Protocol, cast


class Command(Protocol):
    """What a module of a command has."""

    HELP: str
    EXAMPLE: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Describe the options."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Do it; returns the exit code."""


COMMANDS = ("serve", "demo", "simulate", "check", "fetch", "keys", "openapi")


def load(name: str) -> Command:
    """The module of a command."""
    return cast(Command, import_module(f"gateway.cli.{name}"))
