"""A customer erased: a tombstone into every partition of the input that may hold them; then, whether it was obeyed.
Of composite customers (`featurestore/customer.py`) a first part stands for all who begin with it.

Nobody but a partition's owner writes its state, so nothing is deleted here: the owner reads the tombstone behind all
that came before it, deletes the record, and passes the null on to the output topics. A customer lies in one partition
where all producers use Kafka's default partitioner, else in several; a tombstone in another one erases nothing.
"""

import asyncio
from collections.abc import Sequence

from ebbtide.featurestore.spec import Spec
from ebbtide.featurestore.store.protocol import Store
from ebbtide.stream.kafka.topics import partition_for
from ebbtide.stream.outputs.message import Message, Sink

POLL_S = 0.2


async def holders(store: Store, spec: Spec, customer: str) -> list[int]:
    """The partitions that hold a record of theirs, ascending."""
    if not spec.names_first(customer):
        return [partition for partition, _ in await store.find(customer)]
    asked = store.of_first_each([(partition, customer, 1) for partition in range(store.partitions)])
    return [partition for partition, found in enumerate(await asyncio.gather(*asked)) if found]


async def forget(
    store: Store, spec: Spec, sink: Sink, topic: str, customer: str, *, everywhere: bool = False
) -> Sequence[int]:
    """Produce the tombstones; returns the partitions that got one, when Kafka has them all.

    Those that hold a record, and the one that Kafka's default partitioner gives the customer, where events may lie
    that nobody has folded yet; with `everywhere`, and of a first part whose customers lie anywhere, every one of the
    topic. Raises StoreUnavailable, StreamError.
    """
    count = store.partitions
    home = partition_for(spec.keys_of([customer])[0], count)
    scattered = spec.names_first(customer) and spec.customer is not None and spec.customer.key == "whole"
    every = everywhere or scattered
    to = range(count) if every else sorted({home, *await holders(store, spec, customer)})
    await sink.send_all([Message(topic, customer.encode(), None, partition=partition) for partition in to])
    return to


async def obeyed(store: Store, spec: Spec, customer: str, wait_s: float) -> list[int]:
    """Wait until no partition holds them, at most so long; returns those that still do."""
    left = await holders(store, spec, customer)
    try:
        async with asyncio.timeout(wait_s):
            while left:
                await asyncio.sleep(POLL_S)
                left = await holders(store, spec, customer)
    except TimeoutError:
        pass
    return left
