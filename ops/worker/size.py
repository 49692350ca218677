"""How much is stored, told to the metrics now and then: customers of our partitions, memory of the store's servers."""

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress

from ebbtide.featurestore.errors import StoreUnavailable
from ebbtide.featurestore.store.redis.store import RedisStore
from ebbtide.ops.observe.metrics import Metrics
from ebbtide.ops.state.room import room_of

COUNT_EVERY_S = 15.0
"""A question a partition that Redis answers at once; Prometheus looks as often."""


async def watch_size(
    store: RedisStore,
    partitions: Callable[[], Collection[int]],
    metrics: Metrics,
    every_s: float = COUNT_EVERY_S,
) -> None:
    """Count again and again, `partitions` being ours. Cancel it. An outage of the store leaves the figures as they
    were."""
    while True:
        with suppress(StoreUnavailable):
            ours = sorted(partitions())
            counted = dict(zip(ours, await store.customers_each(ours), strict=True))
            rooms = {where: room_of(info) for where, info in await store.infos()}
            metrics.stored(
                counted, {where: (room.used_bytes, room.max_bytes or 0) for where, room in rooms.items()}
            )
        await asyncio.sleep(every_s)
