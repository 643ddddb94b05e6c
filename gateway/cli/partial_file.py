"""A file that is written in parts, and goes on after an interruption.

Rules:
- The file has its name only when it is whole. Until then what is there stands beside it, as `NAME.part`, and what is
  needed to go on, as `NAME.part.json`.
- What was written after the last mark is dropped when it goes on.
- One process at a time writes it.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
from msgspec import Struct


class Checkpoint(Struct, frozen=True):
    """How far an export has come: `window` and `upto` in seconds since 1970, `size` in bytes.

    `recent` are the calls, by client code and id, of the span before `upto`: a call is written once.
    """

    asked: dict[str, str]
    window: tuple[int, int]
    upto: int
    size: int = 0
    calls: int = 0
    unreadable: int = 0
    as_of: float | None = None
    oldest_fetch: float | None = None
    recent: list[tuple[str, str]] = []


class PartialFile:
    """The parts of a file. Raises ValueError for parts of another export, OSError for what is in the way."""

    def __init__(self, target: Path, first: Checkpoint, *, restart: bool) -> None:
        self._target = target
        self._part = target.with_name(f"{target.name}.part")
        self._state = target.with_name(f"{target.name}.part.json")
        self._file = self._part.open("ab")
        try:
            _lock(self._file.fileno(), self._part)
            self.checkpoint = first if restart else self._found(first)
        except BaseException:
            self._file.close()
            raise
        self._file.truncate(self.checkpoint.size)

    @property
    def continued(self) -> bool:
        """Whether something is there already."""
        return self.checkpoint.size > 0

    def write(self, data: bytes) -> None:
        """Write at the end."""
        self._file.write(data)

    def save(self, checkpoint: Checkpoint) -> None:
        """Note how far it has come, once what was written is on the disk."""
        self._sync()
        self.checkpoint = msgspec.structs.replace(checkpoint, size=self._file.tell())
        new = self._state.with_name(f"{self._state.name}.new")
        new.write_bytes(msgspec.json.encode(self.checkpoint))
        new.replace(self._state)

    def finish(self) -> None:
        """Give the file its name."""
        self._sync()
        self._file.close()
        self._part.replace(self._target)
        self._state.unlink(missing_ok=True)

    def close(self) -> None:
        """Leave what is there for another time; if that is nothing, leave nothing."""
        self._file.close()
        if not self.continued:
            self._part.unlink(missing_ok=True)

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def _found(self, first: Checkpoint) -> Checkpoint:
        """Find the mark of an interrupted export, or begin with the first."""
        try:
            checkpoint = msgspec.json.decode(self._state.read_bytes(), type=Checkpoint)
        except FileNotFoundError:
            return first
        except msgspec.MsgspecError:
            raise ValueError(f"{self._state} cannot be read; --restart begins anew") from None
        if checkpoint.asked != first.asked:
            asked = " ".join(f"{name}={value}" for name, value in checkpoint.asked.items())
            raise ValueError(f"{self._part} is of another export ({asked}); --restart begins anew")
        if self._part.stat().st_size < checkpoint.size:
            return first
        return checkpoint


def _lock(number: int, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # not on Windows
        return
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise OSError(error.errno, f"{path} is being written by another process") from error
