"""What a group has committed, asked of a real Kafka: never "nothing" where there is something."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.structs import OffsetAndMetadata

from ebbtide.ops.stack.local import LocalKafka
from ebbtide.ops.stack.server import free_ports
from ebbtide.stream.batch import CommittedOffset
from ebbtide.stream.consumer import offsets
from ebbtide.stream.consumer.offsets import Member
from ebbtide.stream.errors import BrokerUnavailable
from ebbtide.stream.kafka.bookmarks import Bookmarks
from ebbtide.stream.kafka.settings import KafkaSettings
from ebbtide.stream.kafka.topics import TopicSpec, ensure_topics
from tests.support.servers.listener import proxied_listener
from tests.support.servers.proxy import Proxy
from tests.support.servers.services import Services

pytestmark = pytest.mark.kafka


@asynccontextmanager
async def consumer_of(settings: KafkaSettings) -> AsyncIterator[AIOKafkaConsumer]:
    """Of the group, without being a member of it."""
    consumer = AIOKafkaConsumer(**settings.client(), group_id=settings.group, enable_auto_commit=False)
    await consumer.start()
    consumer.assign([TopicPartition(settings.topic, 0)])
    try:
        yield consumer
    finally:
        await consumer.stop()


async def test_another_coordinator_is_no_empty_group(unique_name: str) -> None:
    """A broker that does not coordinate the group, any more or yet, says so of the group as a whole: of no partition,
    as if none had ever been committed. A partition would begin as on its first start."""
    with LocalKafka(brokers=2) as kafka:
        settings = KafkaSettings(url=kafka.url, topic=unique_name, group=unique_name)
        await ensure_topics(settings, [TopicSpec(unique_name, 1, "s")])
        tp = TopicPartition(unique_name, 0)
        async with (
            consumer_of(settings) as consumer,
            Bookmarks(settings, unique_name, unique_name) as bookmarks,
        ):
            await consumer.commit({tp: OffsetAndMetadata(7, '{"all": 7}')})
            for coordinator in (consumer._coordinator, bookmarks._consumer._coordinator):
                await coordinator.ensure_coordinator_known()
                coordinator.coordinator_id = 3 - coordinator.coordinator_id
            assert await bookmarks.read(1) == {0: {"all": 7}}
            assert await offsets.committed(settings, consumer, [tp]) == {tp: CommittedOffset(7, '{"all": 7}')}
            assert await offsets.committed(settings, consumer, []) == {}


async def test_an_open_transaction_has_its_offset_told_after_it(stack: Services, unique_name: str) -> None:
    """Read while it may still be committed, the offset would be the one before."""
    settings = KafkaSettings(url=stack.kafka_url, topic=unique_name, group=unique_name)
    hasty = settings.model_copy(update={"request_timeout_s": 1.0})
    await ensure_topics(settings, [TopicSpec(unique_name, 1, "s")])
    tp = TopicPartition(unique_name, 0)
    async with (
        consumer_of(settings) as consumer,
        AIOKafkaProducer(bootstrap_servers=settings.url, transactional_id=unique_name) as producer,
    ):
        await consumer.commit({tp: OffsetAndMetadata(7, "before")})
        await producer.begin_transaction()
        await producer.send_offsets_to_transaction({tp: OffsetAndMetadata(9, "after")}, settings.group)
        with pytest.raises(BrokerUnavailable):
            await offsets.committed(hasty, consumer, [tp])
        asking = asyncio.create_task(offsets.committed(settings, consumer, [tp]))
        await asyncio.sleep(0.3)
        await producer.commit_transaction()
        assert await asking == {tp: CommittedOffset(9, "after")}


async def test_a_commit_does_not_outlive_its_connection(unique_name: str) -> None:
    """
    behind   commits 7 ─▶ [the network hangs: given up, the connection closed] ······· heals: 7 must not arrive
    there                                               commits 9 by another connection
    """
    (inner,) = free_ports(1)
    with Proxy(inner) as proxy, LocalKafka(settings=proxied_listener(inner, proxy)) as kafka:
        there = KafkaSettings(url=kafka.url, topic=unique_name, group=unique_name)
        behind = there.model_copy(update={"url": f"127.0.0.1:{proxy.port}", "request_timeout_s": 1.0})
        await ensure_topics(there, [TopicSpec(unique_name, 1, "s")])
        tp, nobody = TopicPartition(unique_name, 0), Member(-1, "")
        async with consumer_of(behind) as mine, consumer_of(there) as theirs:
            assert await offsets.commit(behind, mine, nobody, {tp: CommittedOffset(5, "")}, 5.0)
            proxy.hang()
            assert not await offsets.commit(behind, mine, nobody, {tp: CommittedOffset(7, "")}, 2.0)
            await asyncio.sleep(0.5)
            assert await offsets.commit(there, theirs, nobody, {tp: CommittedOffset(9, "")}, 5.0)
            proxy.heal()
            await asyncio.sleep(1.0)
            assert await offsets.committed(there, theirs, [tp]) == {tp: CommittedOffset(9, "")}
