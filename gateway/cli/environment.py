"""The settings of commands that need the upstream."""

from __future__ import annotations

import os

from gateway.settings import Settings, SettingsError, parse_settings


def reachable_settings() -> Settings:
    """Read the settings of a command that needs the upstream. Raises SettingsError."""
    settings = parse_settings(os.environ)
    if not settings.upstream_url:
        text = "GATEWAY_UPSTREAM_URL is not set: it is the address of the server's xml.jsp"
        raise SettingsError(text, "upstream_url")
    return settings
