"""The master that Sentinels watch: every new connection asks them where it is.

Knows how a Sentinel is asked; refuses to know why one master followed another. What redis-py's own `Sentinel` and its
pool do stays theirs: a connection that meets READONLY is given up, and so are the idle ones when the master's address
has changed. Ours are the bounds (a pool that waits for a connection instead of failing, a Sentinel that hangs leaves
time for the next), the least rights (one command, `sentinel get-master-addr-by-name`), and the difference between a
Sentinel that is away and one that never heard of this master.
"""

from collections.abc import Callable
from typing import Any

from redis import exceptions as refused
from redis.asyncio import BlockingConnectionPool, Redis, SSLConnection
from redis.asyncio.sentinel import (
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)

from ebbtide.featurestore.errors import StoreMisconfigured
from ebbtide.featurestore.store.redis.errors import Refusals
from ebbtide.featurestore.store.redis.url import SETTING, Address, RedisTarget


class _Sentinels(Sentinel):
    """Sentinels, in the order in which they are asked."""

    def __init__(self, refusals: Refusals) -> None:
        super().__init__([])  # type: ignore[no-untyped-call]  # redis-py says nothing of its types here
        self._refusals = refusals

    async def discover_master(self, service_name: str) -> Address:
        """Host and port of the master. Raises StoreError: nobody answered, or nobody knows it."""
        errors: list[Exception] = []
        sentinels: list[Any] = list(self.sentinels)
        for sentinel in sentinels:
            try:
                asked = await sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service_name)
            except (refused.RedisError, OSError) as error:
                errors.append(error)
                continue
            self.sentinels.remove(sentinel)
            self.sentinels.insert(0, sentinel)  # who answers is asked first the next time
            if asked is None:
                errors.append(LookupError(service_name))
                continue
            return asked[0].decode(), int(asked[1])
        refusals = [error for error in errors if not isinstance(error, LookupError)]
        if len(refusals) < len(errors):
            hint = f"the path of {SETTING} is the name in their `sentinel monitor` line"
            raise StoreMisconfigured(
                f"{self._refusals.where}: the Sentinels know no master of that name", hint=hint
            )
        raise self._refusals.most_telling(refusals)


class _WatchedPool(BlockingConnectionPool, SentinelConnectionPool):
    """Waits for a free connection, as the one does; connects to the present master, as the other does."""


def watched_pool(
    place: RedisTarget, packing: Callable[[type[Any]], type[Any]], refusals: Refusals
) -> tuple[Any, Any]:
    """A pool of connections to the master, and the Sentinels behind it, both to be closed. `packing` changes the
    connection class."""
    timeout_s = place.options["timeout"] / (len(place.hosts) + 1)
    options = {
        **place.sentinel,
        "connection_class": place.connection,
        "max_connections": place.options["max_connections"],
        "timeout": timeout_s,
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
    }
    sentinels: Any = _Sentinels(refusals)
    sentinels.sentinels = [
        Redis.from_pool(BlockingConnectionPool(host=host, port=port, **options)) for host, port in place.hosts
    ]
    tls = issubclass(place.connection, SSLConnection)
    kind = packing(SentinelManagedSSLConnection if tls else SentinelManagedConnection)
    pool = _WatchedPool(
        service_name=place.service, sentinel_manager=sentinels, connection_class=kind, **place.options
    )
    return pool, sentinels
