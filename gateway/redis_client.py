"""The Redis or Valkey server that replicas share: scripts on it, its timeouts, its circuit breaker.

Rules:
- Every failure is `Unavailable`, and every caller can do without the answer.
- No answer within 100 ms is a failure, and one failure opens the circuit breaker: nothing waits while it is open.
- A gateway whose clock is more than a second off the server's takes no part: the script does not run.
- Scripts run whole or not at all, on one server; a cluster is not supported.
- The driver is imported when there is a server to talk to.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from gateway.circuit_breaker import CircuitBreaker, State
from gateway.metrics import Metrics

if TYPE_CHECKING:
    from redis.asyncio import Redis

LOGGER = logging.getLogger(__name__)
TIMEOUT = 0.1  # seconds; a POST takes ten times as long
BLOCK = 1.0  # seconds that `wait` lets the server hold its answer
SKEW = 1.0  # seconds
MAX_COMMANDS = 16  # in flight, on as many connections
MAX_WAITS = 64  # in flight, on as many connections
CODA = "\nend\nreturn {1, run()}"


def load_script(*names: str) -> str:
    """The script of files in `gateway/lua`, one after another."""
    return make_script("\n".join(map(_read_lua, names)))


def make_script(body: str) -> str:
    """The script that compares the clocks, then runs a body; `prelude.lua` says which names the body may use."""
    return f"{_read_lua('prelude')}{body}{CODA}"


def _read_lua(name: str) -> str:
    return (files("gateway") / "lua" / f"{name}.lua").read_text("utf-8")


class Unavailable(Exception):  # noqa: N818 - an outcome that every caller expects
    """The server did not do it, or was not asked; it may be asked later."""


class RedisClient:
    """A client of the server. Clocks may differ by `skew` seconds; an answer may take `timeout` seconds."""

    def __init__(
        self,
        url: str,
        metrics: Metrics,
        clock: Callable[[], float],
        skew: float = SKEW,
        monotonic: Callable[[], float] = time.monotonic,
        timeout: float = TIMEOUT,
    ) -> None:
        self.timeout = timeout
        self._metrics = metrics
        self._clock = clock
        self._skew = skew
        self._monotonic = monotonic
        self._breaker = CircuitBreaker(1, random.random)
        self._commands = _client(url, timeout, timeout)
        self._waits = _client(url, BLOCK + timeout, timeout)
        self._slots = asyncio.Semaphore(MAX_COMMANDS)
        self._waiting = 0
        metrics.shared_up.set(1)

    async def close(self) -> None:
        """Close the connections."""
        await self._commands.aclose()
        await self._waits.aclose()

    async def run(
        self, operation: str, script: str, keys: Sequence[str], arguments: Sequence[str | bytes | float]
    ) -> Any:  # noqa: ANN401 - the script decides
        """Run a script of `make_script`.

        `operation` is the metrics' label. Raises Unavailable.
        """
        try:
            async with asyncio.timeout(self.timeout):
                await self._slots.acquire()
        except TimeoutError:
            raise Unavailable("too many commands") from None
        try:
            answer = await self._try(
                operation,
                lambda: self._commands.eval(
                    script,
                    len(keys),
                    *keys,
                    repr(self._clock()),
                    repr(self._skew) if math.isfinite(self._skew) else "1e300",
                    *arguments,
                ),
            )
        finally:
            self._slots.release()
        if answer[0] == 0:
            self._metrics.shared_errors.labels(operation, "skew").inc()
            raise Unavailable("the clocks differ")
        return answer[1] if len(answer) > 1 else None

    async def wait(self, stream: str) -> bool:
        """Wait for an entry in a stream, a second at most: it need not exist yet. Raises Unavailable."""
        if self._waiting >= MAX_WAITS:
            raise Unavailable("too many waits")
        self._waiting += 1
        try:
            read = self._waits.xread
            return bool(await self._try("wait", lambda: read({stream: "0"}, count=1, block=int(BLOCK * 1000))))
        finally:
            self._waiting -= 1

    async def _try(self, operation: str, command: Callable[[], Awaitable[Any]]) -> Any:  # noqa: ANN401
        from redis import exceptions

        began = self._monotonic()
        permit = self._breaker.admit(began)
        if permit is None:
            raise Unavailable("the circuit is open")
        try:
            answer = await command()
            self._breaker.succeed(permit)
        # uvloop raises RuntimeError for writing to a connection that is closed.
        except (exceptions.ConnectionError, exceptions.TimeoutError, OSError, RuntimeError) as error:
            self._breaker.fail(permit, self._monotonic())
            kind = "timeout" if isinstance(error, exceptions.TimeoutError) else "connection"
            self._metrics.shared_errors.labels(operation, kind).inc()
            raise Unavailable("no answer") from error
        except exceptions.RedisError as error:
            self._breaker.succeed(permit)
            self._metrics.shared_errors.labels(operation, "refused").inc()
            raise Unavailable("refused") from error
        except Exception as error:
            self._breaker.fail(permit, self._monotonic())
            self._metrics.shared_errors.labels(operation, "bug").inc()
            LOGGER.error("the driver of the shared cache failed", extra={"fields": {"error": type(error).__name__}})
            raise Unavailable("the driver failed") from error
        except BaseException:
            self._breaker.withdraw(permit, self._monotonic())
            raise
        finally:
            self._metrics.shared_up.set(self._breaker.state is State.CLOSED)
            if operation != "wait":
                self._metrics.shared_seconds.labels(operation).observe(self._monotonic() - began)
        return answer


def _client(url: str, timeout: float, connect_timeout: float) -> Redis:
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    scheme, _, rest = url.partition("://")
    return Redis.from_url(
        f"{'redis' if scheme == 'valkey' else scheme}://{rest}",
        socket_timeout=timeout,
        socket_connect_timeout=connect_timeout,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        driver_info=None,
    )
