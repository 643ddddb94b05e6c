"""Consumers with keys, for gateways under test."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from gateway.auth.access_keys import fingerprint


class Member(NamedTuple):
    """A consumer, and the key that it holds."""

    name: str
    clients: tuple[str, ...] = ("*",)
    scopes: tuple[str, ...] = ("calls",)
    rate: str | None = None
    expires: str | None = None

    @property
    def key(self) -> str:
        return f"cbg_key-of-{self.name}"

    @property
    def headers(self) -> dict[str, str]:
        return {"X-API-Key": self.key}


def written(*members: Member) -> str:
    """Return the text of a keys file."""
    blocks = []
    for member in members:
        expires = f", expires = {member.expires}" if member.expires else ""
        rate = [f'rate = "{member.rate}"'] if member.rate else []
        blocks.append(
            "\n".join(
                [
                    "[[consumer]]",
                    f'name = "{member.name}"',
                    f"clients = {list(member.clients)}",
                    f"scopes = {list(member.scopes)}",
                    *rate,
                    f'keys = [{{ sha256 = "{fingerprint(member.key)}"{expires} }}]',
                ]
            )
        )
    return "\n\n".join(blocks) + "\n"


def keys_file(folder: Path, *members: Member) -> str:
    """Write a keys file and return its path."""
    path = folder / "keys.toml"
    path.write_text(written(*members), "utf-8")
    return str(path)
