"""A client of the Redis or Valkey that replicas share, with timeouts and circuit breakers.

Rules:
- A script that fails has None as its result; a wait that fails is `Unavailable`. Callers continue without Redis.
- A command fails after 100 ms. One failure opens the circuit breaker of its node, so that requests do not wait for a
  node that is down. The other nodes of a cluster are used meanwhile.
- A script treats each of its keys alone, so that the keys of one call may be on several nodes of a cluster: it is run
  once for each slot, with all keys of the slot, and is atomic for these. A single server has one slot.
- A script runs only if the clocks of gateway and node differ by at most a second: extents are compared by time.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from importlib.resources import files
from itertools import chain
from typing import Any

from gateway.circuit_breaker import CircuitBreaker, State
from gateway.metrics import Metrics
from gateway.redis_nodes import SPREAD, Node, Nodes, connect, parse_redis_url

LOGGER = logging.getLogger(__name__)
TIMEOUT = 0.1  # seconds; the POST that a lookup may save takes ten times as long
BLOCK = 1.0  # seconds that the server may hold the reply of `wait`
MAX_SKEW = 1.0  # seconds between the clocks; the time of an extent has this precision
MAX_COMMANDS = SPREAD  # in flight, each on a connection; bounds the connections to a node
MAX_WAITS = 64  # in flight, each on a connection
MAX_MOVES = 2  # of the slot of one command: it has moved, and may move once more
Argument = str | bytes | float
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
        self._breakers: dict[str, CircuitBreaker] = {}  # by the name of the node
        address = parse_redis_url(url)
        self._commands = connect(address, timeout, timeout)
        self._waits = connect(address, BLOCK + timeout, timeout)
        self._slots = asyncio.Semaphore(MAX_COMMANDS)
        self._waiting = 0
        metrics.shared_up.set(1)

    async def close(self) -> None:
        """Close the connections."""
        await self._commands.aclose()
        await self._waits.aclose()

    async def run(
        self,
        operation: str,
        script: str,
        keys: Sequence[str],
        common: Sequence[Argument] = (),
        own: Sequence[Sequence[Argument]] = (),
    ) -> list[Any]:
        """Run a script made by `make_script`, and return its result for each key; None if the key's node failed.

        Its arguments are the `common` ones, then the `own` ones of each key. `operation` is a label of metrics.
        """
        places: dict[int, list[int]] = defaultdict(list)
        for place, key in enumerate(keys):
            places[self._commands.slot(key)].append(place)
        results: list[Any] = [None] * len(keys)

        async def run_for(group: list[int]) -> None:
            arguments = *common, *chain.from_iterable(own[place] for place in group if own)
            try:
                found = await self._run(operation, script, [keys[place] for place in group], arguments)
            except Unavailable:
                return
            for place, result in zip(group, found, strict=True):
                results[place] = result

        if len(places) == 1:
            await run_for(list(range(len(keys))))
        else:
            await asyncio.gather(*map(run_for, places.values()))
        return results

    async def _run(
        self, operation: str, script: str, keys: Sequence[str], arguments: Sequence[Argument]
    ) -> Sequence[Any]:
        """Run a script on keys of one slot. Raises Unavailable."""
        try:
            async with asyncio.timeout(self.timeout):
                await self._slots.acquire()
        except TimeoutError:
            raise Unavailable("too many commands") from None
        skew = repr(self._skew) if math.isfinite(self._skew) else "1e300"
        try:
            command = "EVAL", script, len(keys), *keys, repr(self._clock()), skew, *arguments
            answer = await self._send(operation, self._commands, keys[0], command)
        finally:
            self._slots.release()
        if answer[0] == 0:
            self._metrics.shared_errors.labels(operation, "skew").inc()
            raise Unavailable("the clocks differ")
        found: Sequence[Any] = answer[1] if len(answer) > 1 else [True] * len(keys)
        return found

    async def wait(self, stream: str) -> bool:
        """Wait at most BLOCK seconds for an entry in a stream. Returns whether there is one. Raises Unavailable.

        The stream need not exist yet.
        """
        if self._waiting >= MAX_WAITS:
            raise Unavailable("too many waits")
        self._waiting += 1
        command = "XREAD", "COUNT", 1, "BLOCK", int(BLOCK * 1000), "STREAMS", stream, "0"
        try:
            return bool(await self._send("wait", self._waits, stream, command))
        finally:
            self._waiting -= 1

    async def _send(self, operation: str, nodes: Nodes, key: str, command: Sequence[Argument]) -> Any:  # noqa: ANN401
        """Send a command to the node of a key, also if its slot has moved. Raises Unavailable."""
        from redis.exceptions import MovedError

        node = await nodes.find(key)
        for _ in range(1 + MAX_MOVES):
            if node is None:
                break
            answer = await self._try(operation, nodes, node, command)
            if not isinstance(answer, MovedError):
                return answer
            node = await nodes.moved(answer)
        self._record_up()
        self._metrics.shared_errors.labels(operation, "connection").inc()
        raise Unavailable("no node has the slot")

    async def _try(self, operation: str, nodes: Nodes, node: Node, command: Sequence[Argument]) -> Any:  # noqa: ANN401
        """Send a command through the circuit breaker of a node, and translate its errors. Raises Unavailable.

        That the slot has moved is an answer.
        """
        from redis import exceptions

        breaker = self._breaker(node.name)
        began = self._monotonic()
        permit = breaker.admit(began)
        if permit is None:
            nodes.refresh()  # another node may have taken its place
            raise Unavailable("the circuit is open")
        try:
            answer = await node.send(*command)
            breaker.succeed(permit)
        except exceptions.MovedError as moved:
            breaker.succeed(permit)
            answer = moved
        # uvloop raises RuntimeError for a write to a closed connection. A node may answer that the cluster is down.
        except (
            exceptions.ConnectionError,
            exceptions.TimeoutError,
            exceptions.ClusterDownError,
            OSError,
            RuntimeError,
        ) as error:
            breaker.fail(permit, self._monotonic())
            nodes.refresh()
            kind = "timeout" if isinstance(error, exceptions.TimeoutError) else "connection"
            self._metrics.shared_errors.labels(operation, kind).inc()
            raise Unavailable("no reply") from error
        except exceptions.RedisError as error:
            breaker.succeed(permit)
            self._metrics.shared_errors.labels(operation, "refused").inc()
            raise Unavailable("refused") from error
        except Exception as error:
            breaker.fail(permit, self._monotonic())
            self._metrics.shared_errors.labels(operation, "bug").inc()
            LOGGER.error("the Redis driver failed", extra={"fields": {"error": type(error).__name__}})
            raise Unavailable("the driver failed") from error
        except BaseException:
            breaker.withdraw(permit, self._monotonic())
            raise
        finally:
            self._record_up()
            if operation != "wait":
                self._metrics.shared_seconds.labels(operation).observe(self._monotonic() - began)
        return answer

    def _record_up(self) -> None:
        known = [breaker for name, breaker in self._breakers.items() if name in self._commands.names()]
        self._metrics.shared_up.set(sum(one.state is State.CLOSED for one in known) / max(1, len(known)))

    def _breaker(self, name: str) -> CircuitBreaker:
        """The circuit breaker of a node. Those of nodes that have left the cluster are forgotten."""
        if name not in self._breakers:
            names = self._commands.names() | self._waits.names()
            self._breakers = {one: found for one, found in self._breakers.items() if one in names}
            self._breakers[name] = CircuitBreaker(1, random.random)
        return self._breakers[name]
