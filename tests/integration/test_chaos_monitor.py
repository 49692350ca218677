"""The chaos run's monitor on a real Kafka: an open transaction hides no lag from it."""

import asyncio
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from ebbtide.featurestore.store.checkpoint import Checkpoint
from ebbtide.featurestore.store.commit import Commit
from ebbtide.featurestore.store.memory import MemoryStore
from ebbtide.stream.kafka.settings import KafkaSettings
from ebbtide.stream.kafka.topics import TopicSpec, ensure_topics
from tests.chaos.monitor import Monitor
from tests.support.patience import PATIENCE_S
from tests.support.seams.scoring import LAYOUT
from tests.support.servers.services import Services

pytestmark = pytest.mark.kafka
LOOKS_S = 1.0


class Watched:
    """A topic of one partition, a state of it that is moved by hand, and the monitor that looks at both."""

    def __init__(self, stack: Services, name: str) -> None:
        self.name, self.settings = name, KafkaSettings(url=stack.kafka_url, topic=name, group=name)
        self.store = MemoryStore(LAYOUT.dtype, 1)
        self.monitor = Monitor(self.store, stack.kafka_url, name, name, 1)

    async def folded(self, offset: int) -> None:
        """The state is there, and the group's committed offset, too."""
        before = await self.store.checkpoint(0)
        after = Checkpoint(offset, 0 if before is None else before.sequence + 1, 0, LAYOUT.id, 1)
        await self.store.apply(Commit(0, before, after, [], LAYOUT.empty(0), np.empty(0, np.int64)))
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.settings.url, group_id=self.name, enable_auto_commit=False
        )
        await consumer.start()
        consumer.assign([TopicPartition(self.name, 0)])
        await consumer.commit({TopicPartition(self.name, 0): offset})
        await consumer.stop()

    async def until(self, happened: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not happened():  # noqa: ASYNC110 -- a look tells nobody
                await asyncio.sleep(0.02)


@pytest.fixture
async def watched(stack: Services, unique_name: str) -> AsyncIterator[Watched]:
    watched = Watched(stack, unique_name)
    await ensure_topics(watched.settings, [TopicSpec(unique_name, 1, "partitions")])
    await watched.monitor.start()
    yield watched
    await watched.monitor.stop()


async def test_an_open_transaction_hides_no_lag(watched: Watched) -> None:
    """
    log         |── 10 records ──|── 5 more, nobody knows whether they count ──| marker
    may be read                  10                                                   16
    """
    monitor, name = watched.monitor, watched.name
    async with AIOKafkaProducer(
        bootstrap_servers=watched.settings.url, acks="all", transactional_id=name
    ) as producer:
        async with producer.transaction():
            for _ in range(9):  # and the marker
                await producer.send(name, b"said", partition=0)
        await watched.folded(10)
        assert await monitor.caught_up(PATIENCE_S)
        await producer.begin_transaction()
        for _ in range(5):
            await producer.send_and_wait(name, b"open", partition=0)
        await watched.until(lambda: monitor.high[0] == 15)
        assert monitor.ends[0] == 10
        assert (monitor.lag, monitor.stuck) == (5, {0: (10, 15)})
        assert not await monitor.caught_up(LOOKS_S)
        monitor.began()
        monitor.over("redis")
        await asyncio.sleep(LOOKS_S)
        assert [fault.kind for fault in monitor.open] == ["redis"], "nobody has read what the fault held up"
        assert monitor.pause_s_max == 0.0, "nobody may read on, so nobody pauses"
        await producer.abort_transaction()
    await watched.folded(16)
    assert await monitor.caught_up(PATIENCE_S)
    await watched.until(lambda: not monitor.open)
