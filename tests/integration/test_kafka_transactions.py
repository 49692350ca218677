"""What Kafka itself promises of transactions, which exactly-once alerts stand on: asked with aiokafka's own producer.

InitProducerId of the next owner     aborts what the last owner left open, and refuses what it still sends
the committed offset, read after it  is what the last owner's last *committed* transaction said
TxnOffsetCommit without a member     is taken while the group has members of its own
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import ProducerFenced
from aiokafka.structs import OffsetAndMetadata

from ebbtide.stream.kafka.settings import KafkaSettings
from ebbtide.stream.kafka.topics import TopicSpec, ensure_topics
from tests.support.servers.services import Services


@asynccontextmanager
async def transactional(settings: KafkaSettings, name: str) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.url, transactional_id=name, transaction_timeout_ms=10_000
    )
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


async def committed(settings: KafkaSettings, tp: TopicPartition) -> tuple[int, str] | None:
    """Asked anew each time."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.url, group_id=settings.group, enable_auto_commit=False
    )
    await consumer.start()
    consumer.assign([tp])
    found = (await consumer._coordinator.fetch_committed_offsets([tp])).get(tp)
    await consumer.stop()
    return None if found is None or found.offset < 0 else (found.offset, found.metadata)


async def values(settings: KafkaSettings, topic: str, isolation: str) -> list[bytes]:
    async with AIOKafkaConsumer(
        topic, bootstrap_servers=settings.url, auto_offset_reset="earliest", isolation_level=isolation
    ) as consumer:
        found: list[bytes] = []
        while got := await consumer.getmany(timeout_ms=1000):
            found += [record.value for records in got.values() for record in records]
        return found


async def begin(producer: AIOKafkaProducer, settings: KafkaSettings, value: bytes, offset: int) -> None:
    """A transaction with one record and one offset, left open."""
    tp = TopicPartition(settings.topic, 0)
    await producer.begin_transaction()
    await producer.send_and_wait(f"{settings.topic}-out", value, partition=0)
    await producer.send_offsets_to_transaction(
        {tp: OffsetAndMetadata(offset, f"at {offset}")}, settings.group
    )


async def test_the_next_owner_ends_what_was_left_open(stack: Services, unique_name: str) -> None:
    """Nothing of an open transaction counts once the next owner has its producer id, neither record nor offset; what
    was committed counts, and its offset is read at once; and the last owner is told that it is fenced."""
    settings = KafkaSettings(url=stack.kafka_url, topic=unique_name, group=unique_name)
    await ensure_topics(settings, [TopicSpec(unique_name, 1, "s"), TopicSpec(f"{unique_name}-out", 1, "s")])
    tp = TopicPartition(unique_name, 0)
    async with transactional(settings, unique_name) as first:
        await begin(first, settings, b"said", 19)
        await first.commit_transaction()
        await begin(first, settings, b"never", 100)
        async with transactional(settings, unique_name) as second:
            assert await committed(settings, tp) == (19, "at 19")
            with pytest.raises(ProducerFenced):
                await first.commit_transaction()
            await begin(second, settings, b"last", 101)
            await second.commit_transaction()
            async with transactional(settings, unique_name):
                assert await committed(settings, tp) == (101, "at 101")
    assert await values(settings, f"{unique_name}-out", "read_committed") == [b"said", b"last"]
    assert await values(settings, f"{unique_name}-out", "read_uncommitted") == [b"said", b"never", b"last"]


async def test_a_commit_is_visible_to_the_next_owner(stack: Services, unique_name: str) -> None:
    """Its producer id is given out only once the markers of the last transaction are written: the offset is there."""
    settings = KafkaSettings(url=stack.kafka_url, topic=unique_name, group=unique_name)
    await ensure_topics(settings, [TopicSpec(unique_name, 1, "s"), TopicSpec(f"{unique_name}-out", 1, "s")])
    tp = TopicPartition(unique_name, 0)
    for n in range(10):
        async with transactional(settings, unique_name) as owner:
            if n:
                assert await committed(settings, tp) == (n - 1, f"at {n - 1}")
            await begin(owner, settings, b"%d" % n, n)
            ending = asyncio.ensure_future(owner.commit_transaction())
            await asyncio.sleep(0)  # sent, and perhaps not answered, when the next one asks for its id
            await ending


async def test_an_offset_needs_no_membership(stack: Services, unique_name: str) -> None:
    """A group with a living member takes the offsets of a transaction that names the group alone."""
    settings = KafkaSettings(url=stack.kafka_url, topic=unique_name, group=unique_name)
    await ensure_topics(settings, [TopicSpec(unique_name, 1, "s"), TopicSpec(f"{unique_name}-out", 1, "s")])
    tp = TopicPartition(unique_name, 0)
    async with (
        AIOKafkaConsumer(unique_name, bootstrap_servers=settings.url, group_id=unique_name) as member,
        transactional(settings, unique_name) as owner,
    ):
        assert member.assignment() == {tp}
        await begin(owner, settings, b"1", 7)
        assert await committed(settings, tp) is None
        await owner.commit_transaction()
        async with transactional(settings, unique_name):
            assert await committed(settings, tp) == (7, "at 7")
