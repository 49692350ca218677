"""Servers that several files here start for each test; a topic that is fed, and receivers that join its group."""

from collections.abc import AsyncIterator, Iterator

import pytest
from aiokafka import AIOKafkaProducer

from ebbtide.ops.stack.local import LocalValkey
from ebbtide.stream.kafka.settings import KafkaSettings
from ebbtide.stream.kafka.topics import TopicSpec, ensure_topics
from tests.support.receiver import MemoryChain, Receiver
from tests.support.servers.redis import LocalCluster, eventually
from tests.support.servers.services import Services
from tests.support.transport import Feed, Join, settings_for


@pytest.fixture
def stack_redis() -> Iterator[LocalValkey]:
    with LocalValkey(appendonly=False) as server:
        yield server


@pytest.fixture(scope="module")
def valkeys() -> Iterator[LocalCluster]:
    with LocalCluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(valkeys: LocalCluster) -> LocalCluster:
    """The Cluster, whole and empty."""
    eventually(valkeys.whole)
    valkeys.everywhere("FLUSHALL")
    return valkeys


@pytest.fixture
async def feed(stack: Services, unique_name: str) -> AsyncIterator[Feed]:
    await ensure_topics(settings_for(stack, unique_name), [TopicSpec(unique_name, 4, "partitions")])
    producer = AIOKafkaProducer(bootstrap_servers=stack.kafka_url, acks="all", linger_ms=5)
    await producer.start()
    yield Feed(producer, unique_name, 4)
    await producer.stop()


@pytest.fixture
async def join() -> AsyncIterator[Join]:
    """Makes receivers in this process, and sees to it that they leave."""
    receivers: list[Receiver] = []

    async def make(settings: KafkaSettings, chain: MemoryChain, **kwargs: float) -> Receiver:
        receiver = Receiver(settings, chain, **kwargs)  # type: ignore[arg-type]  # one is an int, all are numbers
        receivers.append(receiver)
        await receiver.app.start()
        return receiver

    yield make
    for receiver in receivers:
        await receiver.stop()
