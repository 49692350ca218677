"""A topic's log, read outside of any group: from one end to the other, or as it grows.

For commands and tests: the dead letters there are, the alerts as they come, how far a partition goes. Nothing here
commits anything, and only what a transaction committed is seen. The worker's own input is
`stream/consumer/transport.py`.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple, Protocol

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from ebbtide.stream.batch import Record
from ebbtide.stream.ending import closed
from ebbtide.stream.errors import BrokerMisconfigured
from ebbtide.stream.kafka.diagnose import require_metadata, unreachable
from ebbtide.stream.kafka.errors import failure, forbidden
from ebbtide.stream.kafka.protocol.metadata import Operation, describe
from ebbtide.stream.kafka.records import read_safely
from ebbtide.stream.kafka.settings import KafkaSettings, ms


class LogRecord(Record, Protocol):
    """A record that says where it lies."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...


@asynccontextmanager
async def reader(
    settings: KafkaSettings, topic: str, *, reset: bool = True
) -> AsyncIterator[tuple[AIOKafkaConsumer, list[TopicPartition]]]:
    """A consumer outside of any group on all partitions of `topic`; reads only what was committed.

    A position that the log no longer has begins anew at what is left of it, or is an error without `reset`."""
    consumer = AIOKafkaConsumer(
        **settings.client(),
        enable_auto_commit=False,
        auto_offset_reset="earliest" if reset else "none",
        isolation_level="read_committed",
        fetch_max_wait_ms=ms(settings.fetch_wait_max_s),
        max_partition_fetch_bytes=settings.fetch_partition_bytes_max,
    )
    try:
        try:
            await consumer.start()
            require_metadata(consumer._client)  # noqa: SLF001 -- its cluster is private
            read_safely(consumer, settings.fetch_uncompressed_bytes_max)
        except (KafkaError, OSError, TimeoutError) as error:
            raise await unreachable(settings, error) from error
        try:
            found = (await describe(consumer._client, [topic]))[topic]  # noqa: SLF001 -- consumer.topics() returns names only
        except KafkaError as error:
            raise failure(settings, f"to describe {topic!r}", error) from error
        if found.forbidden or (found.there and not found.allows(Operation.READ)):
            raise forbidden(settings, "to read a topic", [f"READ on topic {topic!r}"])
        if not found.there:
            raise BrokerMisconfigured(f"there is no topic {topic!r} at {settings.url}")
        partitions = [TopicPartition(topic, number) for number in range(found.partitions)]
        consumer.assign(partitions)
        yield consumer, partitions
    finally:
        await closed(consumer.stop(), "a reader")


async def log_ranges(settings: KafkaSettings, topic: str) -> dict[int, tuple[int, int]]:
    """By partition: the first retained offset, and the one after the last record that may be read."""
    async with reader(settings, topic) as (consumer, partitions):
        try:
            begin = await consumer.beginning_offsets(partitions)
            end = await consumer.end_offsets(partitions)
        except KafkaError as error:
            raise failure(settings, "to tell the offsets", error) from error
    return {tp.partition: (begin[tp], end[tp]) for tp in partitions}


class LogAt(NamedTuple):
    """A partition's log at some time: it holds [begin, end), its first record is of `begin_ms` (None: there is none
    with a timestamp), and `offset` is the first record from that time on, `end` when there is none."""

    begin: int
    end: int
    begin_ms: int | None
    offset: int


async def log_at(settings: KafkaSettings, topic: str, at_ms: int) -> dict[int, LogAt]:
    """By partition: where the first record lies whose own timestamp is `at_ms` (ms UTC) or later."""
    async with reader(settings, topic) as (consumer, partitions):
        try:
            begin = await consumer.beginning_offsets(partitions)
            end = await consumer.end_offsets(partitions)
            first = await consumer.offsets_for_times(dict.fromkeys(partitions, 0))
            found = await consumer.offsets_for_times(dict.fromkeys(partitions, at_ms))
        except KafkaError as error:
            raise failure(settings, "to tell the offsets of a time", error) from error
    return {
        tp.partition: LogAt(
            begin[tp],
            end[tp],
            first[tp].timestamp if first[tp] else None,
            min(found[tp].offset, end[tp]) if found[tp] else end[tp],
        )
        for tp in partitions
    }


async def read_topic(
    settings: KafkaSettings,
    topic: str,
    *,
    last: int | None = None,
    follow: bool = False,
    following: asyncio.Event | None = None,
) -> AsyncGenerator[LogRecord, None]:
    """Every record of `topic`, in order within a partition: up to what is there now, or for ever with
    `follow`, which begins at the log's end as of now. `following` is set once it is known where that is: what is
    produced from then on will be seen. `last`: of each partition only those in so many offsets before its end.
    """
    async with reader(settings, topic) as (consumer, partitions):
        try:
            end = await consumer.end_offsets(partitions)
            if follow:
                for tp in partitions:
                    consumer.seek(tp, end[tp])
                if following is not None:
                    following.set()
            else:
                begin = await consumer.beginning_offsets(partitions)
                for tp in partitions:
                    consumer.seek(tp, begin[tp] if last is None else max(begin[tp], end[tp] - last))
            left = set(partitions)
            while follow or left:
                fetched = await consumer.getmany(timeout_ms=100, max_records=1000)
                for tp, records in fetched.items():
                    for record in records:
                        if follow or record.offset < end[tp]:
                            yield record
                if not follow:
                    # By position, not by the last record: transaction markers have none.
                    left = {tp for tp in left if await consumer.position(tp) < end[tp]}
        except KafkaError as error:
            raise failure(settings, f"to let us read {topic!r}", error) from error
