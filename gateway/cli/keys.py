"""`keys`: makes and lists access keys. A key is printed once; the keys file contains its hash only."""

from __future__ import annotations

import argparse
import errno
import os
import re
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.auth.access_keys import ConsumerEntry

HELP = "Make an access key, or list the keys in the keys file."
EXAMPLE = "callbutton-gateway keys new dashboard --client '800777*' --scope calls --file keys.toml"
VARIABLE = "GATEWAY_KEYS_FILE"
CONSUMER = re.compile(r"^[ \t]*\[\[[ \t]*consumer[ \t]*\]\]", re.MULTILINE)
KEYS = re.compile(r"^([ \t]*keys[ \t]*=[ \t]*\[)", re.MULTILINE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the actions and their options to the parser."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    new = actions.add_parser("new", help="make a key, add its hash to the file, and print the key once")
    new.add_argument("name", help="name of the consumer; an existing consumer gets another key")
    new.add_argument(
        "--client", action="append", default=[], help="client code, prefix such as 800777*, or * (repeatable)"
    )
    new.add_argument(
        "--scope", action="append", default=[], help="calls, personal, status, recordings or refresh (repeatable)"
    )
    new.add_argument("--rate", help="rate limit such as 600/minute (default: no limit)")
    new.add_argument("--expires", type=last_day, metavar="DATE", help="the last day on which the key works")
    listing = actions.add_parser("list", help="list consumers and keys")
    for action in (new, listing):
        action.add_argument("--file", default=os.environ.get(VARIABLE), help=f"keys file (default: {VARIABLE})")


def last_day(text: str) -> date:
    """Parse the last day of a key. Raises ArgumentTypeError."""
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not a date such as 2027-06-30") from None
    if day < datetime.now(UTC).date():
        raise argparse.ArgumentTypeError(f"{text} has passed: the key would never work")
    return day


def run(arguments: argparse.Namespace) -> int:
    """Run the action, and return the exit code. Raises ValueError, OSError."""
    if not arguments.file:
        raise ValueError(f"no keys file: use --file, or set {VARIABLE}")
    path = Path(arguments.file)
    if arguments.action == "list":
        show(path)
        return 0
    from gateway.auth.access_keys import NAME, fingerprint, new_key

    if not NAME.fullmatch(arguments.name):
        raise ValueError("the name is not 1 to 64 letters, digits, underscores, full stops or hyphens")
    key = new_key()
    text, _ = read(path) if path.exists() else ("", ())
    entry = f'{{ sha256 = "{fingerprint(key)}"{f", expires = {arguments.expires}" if arguments.expires else ""} }}'
    rights = arguments.client, arguments.scope, arguments.rate
    write(path, with_key(text, arguments.name, entry, *rights))
    print(key)
    print(f"This is the only time that the key of {arguments.name} is shown. {path} has its hash.", file=sys.stderr)
    return 0


def with_key(text: str, name: str, entry: str, clients: Sequence[str], scopes: Sequence[str], rate: str | None) -> str:
    """The text of a keys file with another key, `entry`, and otherwise unchanged. Raises ValueError.

    `clients`, `scopes` and `rate` are the rights of a new consumer, and empty for an existing one.
    """
    from gateway.auth.access_keys import KeysError, parse_keys

    before = parse_keys(text).entries if tomllib.loads(text) else ()
    if any(consumer.name == name for consumer in before):
        if clients or scopes or rate:
            raise ValueError(f"{name} is in the file already: edit its rights there, and leave out the options")
        changed = _insert(text, [consumer.name for consumer in before].index(name), entry)
    else:
        if not clients or not scopes:
            raise ValueError(f"{name} is new: add at least one --client and one --scope")
        lines = ["[[consumer]]", f"name = {_quoted([name])[1:-1]}", f"clients = {_quoted(clients)}"]
        lines += [f"scopes = {_quoted(scopes)}", *([f"rate = {_quoted([rate])[1:-1]}"] if rate else [])]
        changed = "\n".join([*([text.rstrip("\n"), ""] if text.strip() else []), *lines, f"keys = [{entry}]", ""])
    try:
        after = parse_keys(changed).entries
    except KeysError as error:
        raise ValueError(f"--client, --scope or --rate is not valid: {error}") from error
    expected = _counts(before)
    expected[name] = expected.get(name, 0) + 1
    if _counts(after) != expected or _without_keys(after[: len(before)]) != _without_keys(before):
        raise ValueError(f"the layout of the file is not supported: add this to the keys of {name} by hand: {entry}")
    return changed


def _insert(text: str, index: int, entry: str) -> str:
    """Insert a key before the other keys of the consumer at an index. Returns the text unchanged if it is not found."""
    starts = [match.start() for match in CONSUMER.finditer(text)]
    if len(starts) <= index:
        return text
    end = starts[index + 1] if index + 1 < len(starts) else len(text)
    block = text[starts[index] : end]
    empty = re.search(r"^[ \t]*keys[ \t]*=[ \t]*\[\s*\]", block, re.MULTILINE)
    block = KEYS.sub(lambda match: f"{match[1]}{entry}{'' if empty else ', '}", block, count=1)
    return text[: starts[index]] + block + text[end:]


def _without_keys(entries: Sequence[ConsumerEntry]) -> list[tuple[object, ...]]:
    return [(entry.name, entry.clients, entry.scopes, entry.rate) for entry in entries]


def _counts(entries: Sequence[ConsumerEntry]) -> dict[str, int]:
    return {entry.name: len(entry.keys) for entry in entries}


def _quoted(texts: Sequence[str]) -> str:
    if any(re.search(r"[\"\\\x00-\x1f\x7f]", text) for text in texts):
        raise ValueError(
            "quotation marks, backslashes and line breaks are not allowed in names, clients, scopes and rates"
        )
    return "[" + ", ".join(f'"{text}"' for text in texts) + "]"


def write(path: Path, text: str) -> None:
    """Replace the file atomically. The mode of an existing file is kept; a new one is readable by its owner only."""
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    target = path.resolve()
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "the folder does not exist", str(path))
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


def read(path: Path) -> tuple[str, Sequence[ConsumerEntry]]:
    """The text and the consumers of a keys file, which may be empty. Raises ValueError with the path, OSError."""
    from gateway.auth.access_keys import parse_keys

    try:
        text = path.read_bytes().decode()
        return text, parse_keys(text).entries if tomllib.loads(text) else ()
    except ValueError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error


def show(path: Path) -> None:
    """Print the consumers, and the beginnings of their keys' hashes. Raises ValueError, OSError."""
    now = time.time()
    for entry in read(path)[1]:
        rate = f", {entry.rate}" if entry.rate else ""
        print(f"{entry.name}: clients {' '.join(entry.clients)}; scopes {' '.join(entry.scopes)}{rate}")
        for key in entry.keys:
            until = key.expiry()
            last = "" if until is None else f"{datetime.fromtimestamp(until, UTC):%Y-%m-%dT%H:%M:%SZ}"
            state = "does not expire" if until is None else f"{'expired' if now >= until else 'expires'} {last}"
            print(f"  {key.sha256[:12]}…  {state}")
