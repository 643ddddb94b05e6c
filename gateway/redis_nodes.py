"""The nodes of the Redis or Valkey that replicas share: one server, the primary that Sentinels name, or a cluster.

Rules:
- A key belongs to a slot and a slot to a node. A single server, or the primary of Sentinels, is one node with one slot.
  In a cluster the text in braces, the hash tag, decides the slot of a key: keys with the same one are on one node.
- There are SPREAD hash tags for client codes, evenly spaced over the slots. All that is known of a client is in one
  slot, and a command for any number of clients is at most SPREAD commands of a cluster.
- A command has keys of one slot. It is sent once, and again to the node to which the slot has moved. While the slot is
  moving it is refused: a miss.
- The slots of a cluster are read in the background, at most once a second, when a node fails. No command waits for
  that, except for the first time.
- The driver's cluster client keeps the connections and the slots. Commands go to its nodes directly: its own dispatch
  reads the slots before the next command of any node, and closes all connections when the cluster is down.
- The driver is imported only when it is needed.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from binascii import crc32, crc_hqx
from collections.abc import Awaitable, Callable
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, unquote

if TYPE_CHECKING:
    from redis.asyncio import Redis, Sentinel
    from redis.asyncio.cluster import RedisCluster
    from redis.exceptions import MovedError

LOGGER = logging.getLogger(__name__)
REFRESH_INTERVAL = 1.0  # seconds; a failover takes some seconds
SLOTS = 2**14
SPREAD = 16  # hash tags; a cluster of more nodes would use 16 of them
MAX_CONNECTIONS = 100  # to a node; more than the commands and waits that are sent at a time
PORT, SENTINEL_PORT = 6379, 26379
HOST = r"(?:\[[0-9a-fA-F:.]+\]|[^/?#@:,\[\]\s]+)(?::\d{1,5})?"
URL = re.compile(
    rf"(?:redis|valkey)(s?)(?:\+(sentinel|cluster))?://(?:([^/?#\s]*)@)?({HOST}(?:,{HOST})*)(/[^?#\s]*)?(?:\?(\S+))?"
)


def _tag(place: int) -> str:
    """The smallest number in braces whose slot is in one of SPREAD equal parts of all slots."""
    width = SLOTS // SPREAD
    return next(f"{{{n}}}" for n in count() if crc_hqx(str(n).encode(), 0) % SLOTS // width == place)


TAGS = [_tag(place) for place in range(SPREAD)]


def hash_tag(code: str) -> str:
    """The hash tag for keys of a client code."""
    return TAGS[crc32(code.encode()) % SPREAD]


class Address(NamedTuple):
    """The address of a server, of Sentinels or of nodes of a cluster. `primary` is the name that Sentinels know.

    `login` and `sentinel_login` have the user name and the password, or None.
    """

    kind: str  # empty, sentinel or cluster
    tls: bool
    hosts: list[tuple[str, int]]
    login: dict[str, Any]
    database: int
    primary: str
    sentinel_login: dict[str, Any]


def parse_redis_url(text: str) -> Address:
    """Parse the URL of a server, of Sentinels or of a cluster. Raises ValueError.

        redis://[user:password@]host[:port][/database]
        redis+sentinel://[user:password@]host[:port][,host[:port]]/name[/database][?sentinel_password=…]
        redis+cluster://[user:password@]host[:port][,host[:port]]

    The scheme may begin with `rediss`, `valkey` or `valkeys`. The database may be the parameter `db` instead.
    """
    match = URL.fullmatch(text)
    if match is None:
        raise ValueError(text)
    tls, kind, login, hosts, path, query = match.groups("")
    port = SENTINEL_PORT if kind == "sentinel" else PORT
    user, _, password = login.partition(":")
    parameters = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    words = path.removeprefix("/").split("/")
    primary = unquote(words.pop(0)) if kind == "sentinel" else ""
    database = parameters.pop("db", "/".join(words)) or "0"
    names = ("username", "password") if kind == "sentinel" else ()
    found = Address(
        kind,
        bool(tls),
        [(host.strip("[]"), int(number or port)) for host, number in re.findall(r"(\[.+?\]|[^,:]+):?(\d*)", hosts)],
        {"username": unquote(user) or None, "password": unquote(password) or None},
        int(database) if re.fullmatch("[0-9]{1,9}", database) else -1,
        primary,
        {name: parameters.pop(f"sentinel_{name}", None) for name in names},
    )
    databases = range(1 if kind == "cluster" else 10**9)
    possible = found.database in databases and all(0 < number < 2**16 for _, number in found.hosts)
    if not possible or parameters or bool(primary) != (kind == "sentinel") or (len(found.hosts) > 1 and not kind):
        raise ValueError(text)
    return found


class Node(NamedTuple):
    """A node: its name, empty if it is the only one, and the function that sends a command to it."""

    name: str
    send: Callable[..., Awaitable[Any]]


class SingleNode:
    """A server, or the primary of Sentinels, as the only node. `closing` are the clients to close."""

    def __init__(self, client: Redis, *closing: Sentinel) -> None:
        self._node = Node("", client.execute_command)
        self._closing: tuple[Redis | Sentinel, ...] = (client, *closing)

    def slot(self, key: str) -> int:  # noqa: ARG002
        """The slot of a key."""
        return 0

    def names(self) -> set[str]:
        """The names of the nodes."""
        return {""}

    async def find(self, key: str) -> Node | None:  # noqa: ARG002
        """The node of a key; None if no node is known to have it."""
        return self._node

    async def moved(self, error: MovedError) -> Node | None:  # noqa: ARG002
        """The node to which a slot has moved."""
        return None

    def refresh(self) -> None:
        """Find the nodes of slots again. The driver asks the Sentinels each time it connects."""

    async def aclose(self) -> None:
        """Close the connections."""
        for client in self._closing:
            await client.aclose()


class ClusterNodes:
    """The nodes of a cluster. The first command waits at most `timeout` seconds until they are found."""

    def __init__(self, cluster: RedisCluster, timeout: float) -> None:
        self._cluster = cluster
        self._topology = cluster.nodes_manager
        self._timeout = timeout
        self._tried = False
        self._begun = 0.0
        self._task: asyncio.Task[None] | None = None

    def slot(self, key: str) -> int:
        """The slot of a key."""
        return self._cluster.keyslot(key)

    def names(self) -> set[str]:
        """The names of the nodes."""
        return {node.name for node in self._cluster.get_nodes()}

    async def find(self, key: str) -> Node | None:
        """The node of a key; None if no node is known to have it."""
        if not self._tried:
            self.refresh()
            if self._task is not None:
                await asyncio.wait({self._task}, timeout=self._timeout)
        return self._owner(self.slot(key))

    def _owner(self, slot: int) -> Node | None:
        owners = self._topology.slots_cache.get(slot)
        if not owners:
            self.refresh()
            return None
        return Node(owners[0].name, owners[0].execute_command)

    async def moved(self, error: MovedError) -> Node | None:
        """The node to which a slot has moved, as another node says; None if it is not known yet."""
        if not error.host or error.slot_id not in self._topology.slots_cache:
            self.refresh()
            return None
        await self._topology.move_slot(error)
        return self._owner(error.slot_id)

    def refresh(self) -> None:
        """Read the slots again in the background."""
        now = time.monotonic()
        if self._task is None or (self._task.done() and now - self._begun >= REFRESH_INTERVAL):
            self._begun = now
            self._task = asyncio.create_task(self._read_slots())

    async def _read_slots(self) -> None:
        try:
            await self._topology.initialize()
        except Exception as error:  # noqa: BLE001 - many kinds, some of the driver's own
            LOGGER.debug("the cluster cannot be read", extra={"fields": {"error": type(error).__name__}})
            for node in self._cluster.startup_nodes:  # a name may have other addresses by now
                self._topology.startup_nodes.setdefault(node.name, node)
        finally:
            self._tried = True

    async def aclose(self) -> None:
        """Close the connections."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        for nodes in ("nodes_cache", "startup_nodes"):
            await self._topology.aclose(nodes)


Nodes = SingleNode | ClusterNodes


def connect(address: Address, timeout: float, connect_timeout: float) -> Nodes:
    """The nodes at an address. Without retries: the circuit breakers decide when to try again."""
    from redis.asyncio import Redis, Sentinel
    from redis.asyncio.cluster import ClusterNode, RedisCluster
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    options: dict[str, Any] = {
        "ssl": address.tls,
        "socket_timeout": timeout,
        "socket_connect_timeout": connect_timeout,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "driver_info": None,
    }
    own = options | address.login
    if address.kind == "cluster":
        nodes = [ClusterNode(*host) for host in address.hosts]
        cluster = RedisCluster(startup_nodes=nodes, require_full_coverage=False, max_connections=MAX_CONNECTIONS, **own)
        return ClusterNodes(cluster, connect_timeout)
    if address.kind == "sentinel":
        sentinel = Sentinel(  # type: ignore[no-untyped-call]
            address.hosts, sentinel_kwargs=options | address.sentinel_login | {"socket_timeout": connect_timeout}
        )
        return SingleNode(sentinel.master_for(address.primary, db=address.database, **own), sentinel)
    host, port = address.hosts[0]
    return SingleNode(Redis(host=host, port=port, db=address.database, **own))
