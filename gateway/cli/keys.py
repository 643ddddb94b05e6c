"""`keys`: make access keys and show who has which. The file gets hashes; a key is printed once and is nowhere else."""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.auth.access_keys import ConsumerEntry

HELP = "Make an access key, or list those of the keys file."
EXAMPLE = "callbutton-gateway keys new dashboard --client '800777*' --scope calls --file keys.toml"
VARIABLE = "GATEWAY_KEYS_FILE"
BLOCK = re.compile(r"^[ \t]*\[\[[ \t]*consumer[ \t]*\]\]", re.MULTILINE)
KEYS = re.compile(r"^([ \t]*keys[ \t]*=[ \t]*\[)", re.MULTILINE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe what can be done with keys."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    new = actions.add_parser("new", help="make a key, write its hash to the file, and print it once")
    new.add_argument("name", help="of the consumer; one that the file has gets a further key")
    new.add_argument("--client", action="append", default=[], help="a code, 800777*, or * (repeatable)")
    new.add_argument("--scope", action="append", default=[], help="calls, personal, status, recordings or refresh")
    new.add_argument("--rate", help="such as 600/minute; without: no limit")
    new.add_argument("--expires", type=date.fromisoformat, metavar="DATE", help="the last day on which the key works")
    shown = actions.add_parser("list", help="show consumers and keys")
    for action in (new, shown):
        action.add_argument("--file", default=os.environ.get(VARIABLE), help=f"default: {VARIABLE}")


def run(arguments: argparse.Namespace) -> int:
    """Do it. Raises ValueError, OSError."""
    if not arguments.file:
        raise ValueError(f"which file? Give --file, or set {VARIABLE}")
    path = Path(arguments.file)
    if arguments.action == "list":
        show(path)
        return 0
    from gateway.auth.access_keys import fingerprint, new_key

    key = new_key()
    text = path.read_text("utf-8") if path.exists() else ""
    entry = f'{{ sha256 = "{fingerprint(key)}"{f", expires = {arguments.expires}" if arguments.expires else ""} }}'
    rights = arguments.client, arguments.scope, arguments.rate
    write(path, with_key(text, arguments.name, entry, *rights))
    print(key)
    print(f"The key of {arguments.name}, shown this once; {path} holds its hash.", file=sys.stderr)
    return 0


def with_key(text: str, name: str, entry: str, clients: Sequence[str], scopes: Sequence[str], rate: str | None) -> str:
    """The file with a further key in it, all else as it was. Raises ValueError."""
    from gateway.auth.access_keys import parse_keys

    before = parse_keys(text).entries if text.strip() else ()
    if any(consumer.name == name for consumer in before):
        if clients or scopes or rate:
            raise ValueError(f"{name} is in the file with its rights: change them there, and leave them out here")
        changed = _insert(text, [consumer.name for consumer in before].index(name), entry)
    else:
        if not clients or not scopes:
            raise ValueError(f"{name} is new: give at least one --client and one --scope")
        lines = ["[[consumer]]", f"name = {_quoted([name])[1:-1]}", f"clients = {_quoted(clients)}"]
        lines += [f"scopes = {_quoted(scopes)}", *([f"rate = {_quoted([rate])[1:-1]}"] if rate else [])]
        changed = "\n".join([*([text.rstrip("\n"), ""] if text.strip() else []), *lines, f"keys = [{entry}]", ""])
    after = parse_keys(changed).entries
    expected = _counts(before)
    expected[name] = expected.get(name, 0) + 1
    if _counts(after) != expected or _without_keys(after[: len(before)]) != _without_keys(before):
        raise ValueError(f"the file is laid out unusually: add to the keys of {name}, by hand: {entry}")
    return changed


def _insert(text: str, place: int, entry: str) -> str:
    """Put a key before the others of the consumer at this place; the text itself if there is no such place."""
    starts = [match.start() for match in BLOCK.finditer(text)]
    if len(starts) <= place:
        return text
    end = starts[place + 1] if place + 1 < len(starts) else len(text)
    block = text[starts[place] : end]
    empty = re.search(r"^[ \t]*keys[ \t]*=[ \t]*\[\s*\]", block, re.MULTILINE)
    block = KEYS.sub(lambda match: f"{match[1]}{entry}{'' if empty else ', '}", block, count=1)
    return text[: starts[place]] + block + text[end:]


def _without_keys(entries: Sequence[ConsumerEntry]) -> list[tuple[object, ...]]:
    return [(entry.name, entry.clients, entry.scopes, entry.rate) for entry in entries]


def _counts(entries: Sequence[ConsumerEntry]) -> dict[str, int]:
    return {entry.name: len(entry.keys) for entry in entries}


def _quoted(texts: Sequence[str]) -> str:
    if any(re.search(r"[\"\\\x00-\x1f\x7f]", text) for text in texts):
        raise ValueError("names, clients, scopes and rates have no quotation marks, backslashes or line breaks")
    return "[" + ", ".join(f'"{text}"' for text in texts) + "]"


def write(path: Path, text: str) -> None:
    """Replace the file in one step, readable by its owner alone unless it was there with other rights."""
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    target = path.resolve()
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(mode)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def show(path: Path) -> None:
    """Print consumers and their keys, by the beginning of their hashes. Raises ValueError, OSError."""
    from gateway.auth.access_keys import parse_keys

    now = time.time()
    for entry in parse_keys(path.read_text("utf-8")).entries:
        rate = f", {entry.rate}" if entry.rate else ""
        print(f"{entry.name}: clients {' '.join(entry.clients)}; scopes {' '.join(entry.scopes)}{rate}")
        for key in entry.keys:
            until = key.expiry()
            last = "" if until is None else f"{datetime.fromtimestamp(until, UTC):%Y-%m-%dT%H:%M:%SZ}"
            state = "does not expire" if until is None else f"{'expired' if now >= until else 'expires'} {last}"
            print(f"  {key.sha256[:12]}…  {state}")
