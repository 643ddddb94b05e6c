"""`mirror`: keeps a database equal to the upstream, through the change feed of a gateway.

Rules:
- Pages of the feed are applied one after the other, each in one transaction. A signal takes effect between them.
- With `--follow`, transient failures are repeated for as long as they last. Without it, the command ends after
  MAX_FAILURES in a row, or when the database fails; the next one continues after the last page.
- A copy that has another number of calls than the gateway says begins again, which repairs it.
- Exit codes: 0 up to date, or `--follow` was stopped; 1 the gateway, the upstream or the database failed, or `--verify`
  found differences; 2 the command or a setting is not valid; 130 interrupted before the copy was up to date.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from gateway import logs
from gateway.cli import INTERRUPTED, gateway_client
from gateway.cli.gateway_client import RequestError
from gateway.cli.mirror_database import Applied, DatabaseError, Feed, Key, MirrorDatabase
from gateway.cli.mirror_feed import Page, parse_page
from gateway.cli.progress import Progress, print_error
from gateway.settings import Settings, parse_settings, parse_upstream_settings

if TYPE_CHECKING:
    import httpx

LOGGER = logging.getLogger(__name__)
PAGE_LIMIT = 10_000  # calls of a page; the maximum of the feed
LONG_POLL = 60  # seconds; the longest wait of the feed
MAX_FAILURES = 5  # in a row, without `--follow`
MAX_PAUSE = 15.0  # seconds between repetitions; they begin with one second and double
LOG_INTERVAL = 10  # seconds between log lines while pages follow each other
MAX_DAYS = 399  # before now at which a copy begins again; the feed allows 400
HELP = "Keep a table of calls in a database equal to the upstream: late calls, edits and deletions included."
EXAMPLE = (
    "callbutton-gateway mirror sqlite:///calls.db --client 8005550100 --start 2026-10-01\n"
    "  callbutton-gateway mirror postgresql://reports@127.0.0.1/calls --follow --gateway http://127.0.0.1:8080 "
    "--key-file key.txt"
)
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to the parser."""
    parser.add_argument("database", metavar="DATABASE", help="sqlite:///FILE or postgresql://USER@HOST/NAME")
    parser.add_argument(
        "--client", action="append", default=[], metavar="CODE", help="client code (repeatable; default: all clients)"
    )
    parser.add_argument(
        "--start",
        metavar="DATE",
        help="date (UTC) at which the copy begins, at most 400 days ago (default: 30 days ago)",
    )
    parser.add_argument("--status", action="store_true", help="include the status of calls")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--once", action="store_true", help="end when the copy is up to date (the default)")
    mode.add_argument("--follow", action="store_true", help="keep the copy up to date until a signal")
    mode.add_argument(
        "--verify", action="store_true", help="bring the copy up to date, and compare every call with the gateway's"
    )
    parser.add_argument(
        "--keep-removed", action="store_true", help="set removed_at of calls that are gone instead of deleting them"
    )
    parser.add_argument("--restart", action="store_true", help="read everything again, which repairs every difference")
    parser.add_argument("--name", default="calls", help="name of the feed in the database (default: %(default)s)")
    gateway_client.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Mirror, and return the exit code. Raises ValueError, OSError."""
    database = MirrorDatabase(arguments.database, keep_removed=arguments.keep_removed)
    headers = gateway_client.headers_of(arguments)
    settings = (parse_settings if arguments.gateway else parse_upstream_settings)(os.environ)
    logs.configure(settings.log_format, "warning" if sys.stderr.isatty() else "info")
    try:
        return asyncio.run(Mirror(arguments, database, settings, headers).run())
    except (asyncio.CancelledError, KeyboardInterrupt):
        return 0 if arguments.follow else INTERRUPTED


class Mirror:
    """One run of the command."""

    def __init__(
        self, arguments: argparse.Namespace, database: MirrorDatabase, settings: Settings, headers: dict[str, str]
    ) -> None:
        self._arguments = arguments
        self._settings = settings
        self._headers = headers
        self._database = database
        self._progress = Progress()
        self._calls, self._covered, self._logged = 0, 0.0, -float(LOG_INTERVAL)

    async def run(self) -> int:
        """Mirror, and return the exit code. Raises ValueError, OSError."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - this is a coroutine
        with suppress(NotImplementedError):  # Windows
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        try:
            feed = self._begin(self._open())
            settings = self._settings
            if not os.environ.get("GATEWAY_SIGNING_KEY"):
                settings = dataclasses.replace(settings, signing_key=feed.signing_key)
            async with gateway_client.connect(self._arguments.gateway, self._headers, settings) as client:
                feed = await self._follow(client, feed)
                return await self._verify(client, feed) if self._arguments.verify else 0
        finally:
            self._progress.clear()
            self._database.close()

    def _open(self) -> Feed:
        """Open the database, and return the feed in it. Raises ValueError, DatabaseError."""
        self._database.open()
        clients = ",".join(sorted(set(self._arguments.client))) or "*"
        return self._database.feed(self._arguments.name, self._address(), clients, status=self._arguments.status)

    def _address(self) -> str:
        """The address of the gateway, or of the upstream, without credentials."""
        import httpx

        return str(httpx.URL(self._arguments.gateway or self._settings.upstream_url).copy_with(userinfo=b""))

    def _begin(self, feed: Feed) -> Feed:
        """Begin the feed again if the options require it. Raises ValueError if it belongs to another gateway."""
        arguments, address = self._arguments, self._address()
        if feed.gateway != address and not arguments.restart:
            text = f"the feed {feed.name} is of {feed.gateway}: use --name for another feed in this database"
            raise ValueError(f"{text}, or --restart if the same gateway has another address now")
        start = arguments.start or feed.requested_start
        if arguments.restart or start != feed.requested_start:
            return self._database.restart(feed._replace(start=None), address, start)._replace(start=None)
        return feed

    async def _follow(self, client: httpx.AsyncClient, feed: Feed | None) -> Feed:
        """Apply pages until the copy is up to date; with `--follow`, without end. Raises OSError, ValueError."""
        failures, begun_again, waits = 0, False, False
        while True:
            try:
                if feed is None:
                    feed = await _to_the_end(self._open)
                page = await self._page(client, feed, feed.token, wait=waits)
                applied = await _to_the_end(self._database.apply, feed, page)
            except RequestError as error:
                if error.parameter == "since" and feed is not None and feed.token:
                    LOGGER.warning("the token is not accepted, the feed begins again")
                    feed = feed._replace(token=None)
                    continue
                failures += 1
                await self._pause(error, failures)
            except DatabaseError as error:
                failures += 1
                await self._pause(error, failures)
                self._database.close()
                feed = None
            else:
                failures, feed = 0, applied.feed
                self._show(page, applied)
                waits = page.up_to_date and applied.exact
                if not applied.exact:
                    if begun_again:
                        raise DatabaseError(f"the copy does not have the {page.calls} calls that it must have")
                    LOGGER.warning("the number of calls differs, the feed begins again")
                begun_again = not applied.exact or (begun_again and not page.up_to_date)
                if waits and not self._arguments.follow:
                    return feed

    async def _page(self, client: httpx.AsyncClient, feed: Feed, token: str | None, *, wait: bool = False) -> Page:
        """The page of the feed after a token, or the first one. Raises RequestError."""
        parameters = [("client", code) for code in feed.clients.split(",")]
        parameters += [("limit", str(PAGE_LIMIT)), ("format", "ndjson")]
        if feed.status:
            parameters.append(("include", "status"))
        if token:
            parameters += [("since", token), *([("wait", str(LONG_POLL))] if wait else [])]
        elif start := _clamped(feed.start) or feed.requested_start:
            parameters.append(("start", start))
        body = await gateway_client.get(client, "/changes", parameters)
        try:
            return parse_page(body)
        except ValueError as error:
            raise RequestError(f"the response is incomplete: {error}", "incomplete", transient=True) from error

    async def _pause(self, error: RequestError | DatabaseError, failures: int) -> None:
        """Wait before a repetition. Raises the error if it is to end the command."""
        pause, reason = min(MAX_PAUSE, 2.0 ** (failures - 1)), "database"
        if isinstance(error, RequestError):
            pause, reason = max(pause, error.retry_after), error.reason
            ends = not error.transient or (failures >= MAX_FAILURES and not self._arguments.follow)
        else:
            ends = not self._arguments.follow
        if isinstance(error, RequestError) and error.parameter in ("start", "client"):
            raise ValueError(f"--{error.parameter}: {error.detail}") from error
        if ends:
            raise error
        self._progress.clear()
        if sys.stderr.isatty():
            print_error(f"{error}; trying again in {pause:.0f} s")
        else:
            LOGGER.warning("failed", extra={"fields": {"reason": reason, "retryIn": pause}})
        await asyncio.sleep(pause)

    def _show(self, page: Page, applied: Applied) -> None:
        """Show the progress on a terminal, else log it, at most every LOG_INTERVAL while pages follow each other."""
        self._calls += applied.told
        self._covered += applied.seconds
        whole = datetime.now(UTC) - datetime.fromisoformat(page.start)
        done = 1.0 if page.up_to_date else self._covered / max(1.0, whole.total_seconds())
        self._progress.show(done, self._calls, page.as_of)
        now = time.monotonic()
        changed = applied.told + applied.removed > 0
        ends = page.up_to_date and not self._arguments.follow
        if ends or (changed and (page.up_to_date or now - self._logged >= LOG_INTERVAL)):
            self._logged = now
            fields = {"told": applied.told, "removed": applied.removed, "upToDate": page.up_to_date, "asOf": page.as_of}
            LOGGER.info("applied", extra={"fields": fields | {"done": round(done, 3)}})
        if ends:
            self._progress.finish(self._calls)

    async def _verify(self, client: httpx.AsyncClient, feed: Feed) -> int:
        """Compare the copy with a complete reading, report the differences, and return the exit code."""
        different = await self._differences(client, feed)
        if different:  # calls may have changed between the two readings
            feed = await self._follow(client, feed)
            different &= await self._differences(client, feed)
        if different:
            print_error(f"{len(different):,} calls differ from the gateway's; --restart repairs them")
            return 1
        print("verified: every call is equal to the gateway's")
        return 0

    async def _differences(self, client: httpx.AsyncClient, feed: Feed) -> set[Key]:
        """The calls that differ from those of a complete reading, from the first page on."""
        different: set[Key] = set()
        token, up_to_date = None, False
        while not up_to_date:
            page = await self._page(client, feed, token)
            different |= await _to_the_end(self._database.different, feed, page)
            token, up_to_date = page.next, page.up_to_date
        return different


def _clamped(start: str | None) -> str | None:
    """A start that the feed still accepts."""
    if start is None:
        return None
    earliest = datetime.now(UTC) - timedelta(days=MAX_DAYS)
    return f"{max(earliest, datetime.fromisoformat(start)):%Y-%m-%d}"


async def _to_the_end(
    function: Callable[Arguments, Result], *arguments: Arguments.args, **options: Arguments.kwargs
) -> Result:
    """Run a function in a thread. A cancellation waits for its end, so that no transaction is cut."""
    task = asyncio.ensure_future(asyncio.to_thread(function, *arguments, **options))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with suppress(OSError):
            await task
        raise
