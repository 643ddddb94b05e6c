"""A client of the Redis or Valkey server that replicas share, with timeouts and a circuit breaker.

Rules:
- Every failure is `Unavailable`. Callers continue without Redis.
- A command fails after 100 ms. One failure opens the circuit breaker, so that requests do not wait for a server that is
  down.
- A script runs only if the clocks of gateway and server differ by at most a second: extents are compared by time.
- Scripts are atomic. They use several keys, so a Redis Cluster is not supported.
- The driver is imported only if GATEWAY_CACHE_URL is set.
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
TIMEOUT = 0.1  # seconds; the POST that a lookup may save takes ten times as long
BLOCK = 1.0  # seconds that the server may hold the reply of `wait`
MAX_SKEW = 1.0  # seconds between the clocks; the time of an extent has this precision
MAX_COMMANDS = 16  # in flight, each on a connection; bounds the connections to the server
MAX_WAITS = 64  # in flight, each on a connection
SCRIPT_END = "\nend\nreturn {1, run()}"


def load_script(*names: str) -> str:
    """The script whose body is the concatenation of files in `gateway/lua`."""
    return make_script("\n".join(map(_read_lua, names)))


def make_script(body: str) -> str:
    """The script that compares the clocks, then runs a body. `prelude.lua` defines the names that a body may use."""
    return f"{_read_lua('prelude')}{body}{SCRIPT_END}"


def _read_lua(name: str) -> str:
    return (files("gateway") / "lua" / f"{name}.lua").read_text("utf-8")


class Unavailable(Exception):  # noqa: N818 - an outcome that every caller expects
    """The command failed or was not sent."""


class RedisClient:
    """The client. The clocks may differ by `skew` seconds, and a reply may take `timeout` seconds."""

    def __init__(
        self,
        url: str,
        metrics: Metrics,
        clock: Callable[[], float],
        skew: float = MAX_SKEW,
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
        """Run a script made by `make_script`. `operation` is a label of metrics. Raises Unavailable."""
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
        """Wait at most BLOCK seconds for an entry in a stream. Returns whether there is one. Raises Unavailable.

        The stream need not exist yet.
        """
        if self._waiting >= MAX_WAITS:
            raise Unavailable("too many waits")
        self._waiting += 1
        try:
            read = self._waits.xread
            return bool(await self._try("wait", lambda: read({stream: "0"}, count=1, block=int(BLOCK * 1000))))
        finally:
            self._waiting -= 1

    async def _try(self, operation: str, command: Callable[[], Awaitable[Any]]) -> Any:  # noqa: ANN401
        """Run a command through the circuit breaker, and translate its errors. Raises Unavailable."""
        from redis import exceptions

        began = self._monotonic()
        permit = self._breaker.admit(began)
        if permit is None:
            raise Unavailable("the circuit is open")
        try:
            answer = await command()
            self._breaker.succeed(permit)
        # uvloop raises RuntimeError for a write to a closed connection.
        except (exceptions.ConnectionError, exceptions.TimeoutError, OSError, RuntimeError) as error:
            self._breaker.fail(permit, self._monotonic())
            kind = "timeout" if isinstance(error, exceptions.TimeoutError) else "connection"
            self._metrics.shared_errors.labels(operation, kind).inc()
            raise Unavailable("no reply") from error
        except exceptions.RedisError as error:
            self._breaker.succeed(permit)
            self._metrics.shared_errors.labels(operation, "refused").inc()
            raise Unavailable("refused") from error
        except Exception as error:
            self._breaker.fail(permit, self._monotonic())
            self._metrics.shared_errors.labels(operation, "bug").inc()
            LOGGER.error("the Redis driver failed", extra={"fields": {"error": type(error).__name__}})
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
    """A client without retries: the circuit breaker decides when to try again."""
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
