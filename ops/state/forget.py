"""A customer erased: a tombstone into every partition of the input that may hold them; then, whether it was obeyed.

Nobody but a partition's owner writes its state, so nothing is deleted here: the owner reads the tombstone behind all
that came before it, deletes the record, and passes the null on to the output topics. A customer lies in one partition
where all producers use Kafka's default partitioner, else in several; a tombstone in another one erases nothing.
"""

import asyncio
from collections.abc import Sequence

from ebbtide.featurestore.store.protocol import Store
from ebbtide.stream.kafka.topics import partition_for
from ebbtide.stream.outputs.message import Message, Sink

POLL_S = 0.2


async def holders(store: Store, customer: str) -> list[int]:
    """The partitions that hold a record of theirs, ascending."""
    return [partition for partition, _ in await store.find(customer)]


async def forget(
    store: Store, sink: Sink, topic: str, customer: str, *, everywhere: bool = False
) -> Sequence[int]:
    """Produce the tombstones; returns the partitions that got one, when Kafka has them all.

    Those that hold a record, and the one that Kafka's default partitioner gives the customer, where events may lie
    that nobody has folded yet; with `everywhere` every one of the topic. Raises StoreUnavailable, StreamError.
    """
    count = store.partitions
    home = partition_for(customer.encode(), count)
    to = range(count) if everywhere else sorted({home, *await holders(store, customer)})
    await sink.send_all([Message(topic, customer.encode(), None, partition=partition) for partition in to])
    return to


async def obeyed(store: Store, customer: str, wait_s: float) -> list[int]:
    """Wait until no partition holds them, at most so long; returns those that still do."""
    left = await holders(store, customer)
    try:
        async with asyncio.timeout(wait_s):
            while left:
                await asyncio.sleep(POLL_S)
                left = await holders(store, customer)
    except TimeoutError:
        pass
    return left
