"""The keys file, read again when it changes.

Rules: a file that cannot be read or used leaves the keys as they were, and the log and a metric say so. Requests never
wait for the file: it is read in a thread, and the new keys are there from one request to the next.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from gateway.auth.access_keys import Keyring, KeysError, parse_keys
from gateway.metrics import Metrics

LOGGER = logging.getLogger(__name__)
POLL_INTERVAL = 1.0  # seconds between looks
MAX_FILE_SIZE = 16 * 1024**2


class KeyFile:
    """The keys that are in force."""

    def __init__(self, path: str, metrics: Metrics) -> None:
        """Read the file. Raises KeysError."""
        self._path = Path(path)
        self._metrics = metrics
        self._complaint = ""
        self._seen: bytes | None = self._read()
        self.keys = self._parse(self._seen)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Look for changes from now on."""
        self._task = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Look no longer."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(POLL_INTERVAL)
            try:
                await asyncio.to_thread(self.reload)
            except Exception:
                LOGGER.exception("looking at the keys file failed")

    def reload(self) -> None:
        """Take over the file if it has changed."""
        try:
            content = self._read()
            if content == self._seen:
                return
            self._seen = content
            self.keys = self._parse(content)
        except KeysError as error:
            if str(error) != self._complaint:
                fields = {"why": str(error)}
                LOGGER.error("the keys file cannot be used; the keys read before stay", extra={"fields": fields})
            self._complaint = str(error)
            self._metrics.keys_file_broken.set(1)
        else:
            self._complaint = ""
            self._metrics.keys_file_broken.set(0)
            LOGGER.info("the keys file was read again", extra={"fields": {"consumers": len(self.keys.consumers)}})

    def _read(self) -> bytes:
        """Read the file's bytes. Raises KeysError."""
        try:
            with self._path.open("rb") as file:
                content = file.read(MAX_FILE_SIZE + 1)
        except OSError as error:
            self._seen = None  # the same content counts as read again
            raise KeysError(error.strerror or "cannot be read") from error
        if len(content) > MAX_FILE_SIZE:
            raise KeysError(f"is larger than {MAX_FILE_SIZE} bytes")
        return content

    def _parse(self, content: bytes) -> Keyring:
        try:
            return parse_keys(content.decode())
        except UnicodeDecodeError as error:
            raise KeysError("is not UTF-8") from error
