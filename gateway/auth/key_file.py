"""The keys file, reloaded when it changes.

Rules:
- If the file cannot be read or is not valid, the earlier keys remain in force; a log line and a metric report it.
- Requests do not wait for the file: it is read in a thread, and the keys are then replaced in one step.
"""

from __future__ import annotations

import asyncio
import logging
import math
from pathlib import Path

from gateway.auth.access_keys import KeysError, parse_keys
from gateway.metrics import Metrics

LOGGER = logging.getLogger(__name__)
POLL_INTERVAL = 1.0  # seconds; a revoked key works that much longer
MAX_FILE_SIZE = 16 * 1024**2  # bytes; bounds the memory, for a wrong path


class KeyFile:
    """The access keys in force, as `keyring`."""

    def __init__(self, path: str, metrics: Metrics) -> None:
        """Read the file. Raises KeysError."""
        self._path = Path(path)
        self._metrics = metrics
        self._last_error = ""
        self._content: bytes | None = self._read()
        self.keyring = parse_keys(self._content)
        self._report_expiry()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start watching the file: check it for changes every POLL_INTERVAL."""
        self._task = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Stop watching the file."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(POLL_INTERVAL)
            try:
                await asyncio.to_thread(self.reload)
            except Exception:
                LOGGER.exception("keys file check failed")

    def reload(self) -> None:
        """Replace the keys if the file has changed. An error is logged once."""
        try:
            content = self._read()
            if content == self._content:
                return
            self._content = content
            self.keyring = parse_keys(content)
        except KeysError as error:
            if str(error) != self._last_error:
                fields = {"why": str(error)}
                LOGGER.error("keys file cannot be used, earlier keys remain in force", extra={"fields": fields})
            self._last_error = str(error)
            self._metrics.keys_file_broken.set(1)
        else:
            self._last_error = ""
            self._metrics.keys_file_broken.set(0)
            self._report_expiry()
            LOGGER.info("keys file reloaded", extra={"fields": {"consumers": len(self.keyring.consumers)}})

    def _report_expiry(self) -> None:
        self._metrics.key_expiry.clear()
        for name, end in self.keyring.ends.items():
            if math.isfinite(end):
                self._metrics.key_expiry.labels(name).set(end)

    def _read(self) -> bytes:
        """Read the file. Raises KeysError."""
        try:
            with self._path.open("rb") as file:
                content = file.read(MAX_FILE_SIZE + 1)
        except OSError as error:
            self._content = None  # so that a file that returns unchanged is reloaded
            raise KeysError(error.strerror or "cannot be read") from error
        if len(content) > MAX_FILE_SIZE:
            raise KeysError(f"is larger than {MAX_FILE_SIZE} bytes")
        return content
