"""Room for state in a Redis: what is used, what there is, and what a second state beside the first would need.

The numbers are the server's own: `used_memory` counts what `maxmemory` bounds. What a state needs is estimated from a
sample of the state that is there: what Redis says each record costs, times the customers.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ebbtide.featurestore.errors import StoreUnavailable
from ebbtide.featurestore.store.redis.store import RedisStore
from ebbtide.ops.errors import OpsError

HIGH_SHARE, STOP_SHARE, FULL_SHARE = 0.8, 0.9, 0.95
"""Of maxmemory: from here on somebody should know; here a second state is made no further; and from here on a busy hour
fills the rest."""
SAMPLE_CUSTOMERS = 200
SAMPLE_ERROR = 0.05
"""Two samples of one state differ by so much."""
LOOK_EVERY_S = 2.0


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes of one server. max_bytes: maxmemory, None where there is no limit."""

    used_bytes: int
    max_bytes: int | None

    @property
    def share(self) -> float:
        """Used of the maximum, 0 without one."""
        return self.used_bytes / self.max_bytes if self.max_bytes else 0.0

    @property
    def is_high(self) -> bool:
        return self.share >= HIGH_SHARE

    @property
    def is_full(self) -> bool:
        return self.share >= FULL_SHARE

    def holds(self, more_bytes: float) -> bool:
        """It would stay below the high-water mark with so much more."""
        return self.max_bytes is None or self.used_bytes + more_bytes < HIGH_SHARE * self.max_bytes

    def words(self) -> str:
        used = _mebibytes(self.used_bytes)
        if self.max_bytes is None:
            return f"{used} used, and no maxmemory"
        return f"{used} of {_mebibytes(self.max_bytes)} used ({self.share:.0%})"


def room_of(info: Mapping[str, Any]) -> Room:
    """What a server's INFO says."""
    return Room(int(info.get("used_memory", 0)), int(info.get("maxmemory", 0)) or None)


class NoRoom(OpsError):
    """A second state does not fit beside the first: workers would be refused their writes, and every partition stop."""


async def state_bytes(store: RedisStore) -> float:
    """What the state costs its servers, estimated from up to SAMPLE_CUSTOMERS of each partition."""
    total = 0.0
    for partition in range(store.partitions):
        customers = await store.customers(partition)
        if names := await store.sample(partition, SAMPLE_CUSTOMERS):
            usage = await store.memory_usage(partition, names)
            total += customers * (float(usage.records.mean()) + usage.due)
    return total


async def check_room(store: RedisStore, in_use: RedisStore) -> None:
    """Raises NoRoom when a second state as large as the one `in_use` would take a server beyond HIGH_SHARE of its
    maxmemory. What lies in `store` already is not needed again."""
    whole = await state_bytes(in_use)
    needed = whole - await state_bytes(store)
    if needed < SAMPLE_ERROR * whole:
        return
    servers = await store.infos()
    for where, info in servers:
        room = room_of(info)
        if not room.holds(needed / len(servers)):
            raise NoRoom(
                f"a second state needs about {_mebibytes(needed / len(servers))} more at {where}, where"
                f" {room.words()}: the running workers would be refused when it is full",
                hint="raise maxmemory, drop a prefix that nobody uses, or say --force",
            )


async def watch_room(store: RedisStore, stop: Callable[[], None], every_s: float = LOOK_EVERY_S) -> None:
    """Look again and again; at STOP_SHARE of a server's maxmemory call `stop` and raise NoRoom. Cancel it."""
    while True:
        with suppress(StoreUnavailable):  # the rebuild waits for it, and so do we
            for where, info in await store.infos():
                room = room_of(info)
                if room.share >= STOP_SHARE:
                    stop()
                    raise NoRoom(
                        f"stopped at {room.words()} at {where}, before the running workers are refused",
                        hint="raise maxmemory and call it again: it goes on where it stopped",
                    )
        await asyncio.sleep(every_s)


def _mebibytes(count: float) -> str:
    return f"{count / (1 << 20):,.0f} MiB"
