"""A file that is written in parts and can be resumed after an interruption.

Rules:
- The file gets its name when it is complete. Until then its data is in `NAME.part`, and its checkpoint in
  `NAME.part.json`.
- Data written after the last checkpoint is discarded when the file is resumed.
- A file whose name ends in `.gz` is one gzip member. Each checkpoint ends a block that needs nothing before it.
- A lock prevents two processes from writing the same file.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import msgspec
from msgspec import Struct, field

GZIP = ".gz"  # the ending of compressed files
GZIP_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"  # RFC 1952: deflate, without time and system


class Checkpoint(Struct, frozen=True):
    """The state of an export. `window` and `reached` are in seconds since 1970, `size` is in bytes.

    `recent` are the calls of the span before `reached`, by client code and id: an export writes each call once.
    `length` (bytes) and `crc` are of the data before compression.
    """

    parameters: dict[str, str] = field(name="asked")
    window: tuple[int, int]
    reached: int = field(name="upto")
    size: int = 0
    calls: int = 0
    unreadable: int = 0
    as_of: float | None = None
    oldest_fetch: float | None = None
    recent: list[tuple[str, str]] = []
    length: int = 0
    crc: int = 0


class PartialFile:
    """A file in progress. `checkpoint` is the one to continue from; `first` is used if there is none.

    Raises ValueError if the checkpoint is of another export or not valid, OSError if the file cannot be written.
    """

    def __init__(self, target: Path, first: Checkpoint, *, restart: bool) -> None:
        self._target = target
        self._part = target.with_name(f"{target.name}.part")
        self._state = target.with_name(f"{target.name}.part.json")
        try:
            self._file = self._part.open("ab")
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(target)) from error
        try:
            _lock(self._file.fileno(), self._part)
            self.checkpoint = first if restart else self._load_checkpoint(first)
        except BaseException:
            self._file.close()
            raise
        if self.checkpoint is first:
            self._state.unlink(missing_ok=True)  # of data that is discarded
        self._file.truncate(self.checkpoint.size)
        self._deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS) if target.suffix.lower() == GZIP else None
        self._length, self._crc = self.checkpoint.length, self.checkpoint.crc
        if self._deflate and not self.checkpoint.size:
            self._file.write(GZIP_HEADER)

    def write(self, data: bytes) -> None:
        """Append data."""
        if self._deflate:
            self._length, self._crc = self._length + len(data), zlib.crc32(data, self._crc)
            data = self._deflate.compress(data)
        self._file.write(data)

    def save(self, checkpoint: Checkpoint) -> None:
        """Save a checkpoint, after the data before it has been written to disk."""
        if self._deflate:
            self._file.write(self._deflate.flush(zlib.Z_FULL_FLUSH))
        self._sync()
        self.checkpoint = msgspec.structs.replace(
            checkpoint, size=self._file.tell(), length=self._length, crc=self._crc
        )
        new = self._state.with_name(f"{self._state.name}.new")
        new.write_bytes(msgspec.json.encode(self.checkpoint))
        new.replace(self._state)

    def finish(self) -> None:
        """Give the complete file its name."""
        if self._deflate:
            self._file.write(self._deflate.flush() + struct.pack("<LL", self._crc, self._length % 2**32))
        self._sync()
        self._file.close()
        self._part.replace(self._target)
        self._state.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file, and delete it if it has no checkpoint to continue from."""
        self._file.close()
        if not self.checkpoint.size:
            self._part.unlink(missing_ok=True)

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())

    def _load_checkpoint(self, first: Checkpoint) -> Checkpoint:
        """The saved checkpoint; `first` if there is none, or if the data is shorter. Raises ValueError."""
        try:
            checkpoint = msgspec.json.decode(self._state.read_bytes(), type=Checkpoint)
        except FileNotFoundError:
            return first
        except msgspec.MsgspecError:
            raise ValueError(f"{self._state} is not valid; use --restart to discard it") from None
        if checkpoint.parameters != first.parameters:
            parameters = " ".join(f"{name}={value}" for name, value in checkpoint.parameters.items())
            raise ValueError(f"{self._part} is of another export ({parameters}); use --restart to discard it")
        return first if self._part.stat().st_size < checkpoint.size else checkpoint


def _lock(descriptor: int, path: Path) -> None:
    """Lock an open file until it is closed. Raises OSError if another process has locked it."""
    try:
        import fcntl
    except ImportError:  # Windows has no fcntl
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise OSError(error.errno, f"{path} is being written by another process") from error
