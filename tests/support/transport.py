"""What tests of the transport share: short times, a feed that knows what it sent, whether all of it was folded."""

import asyncio
from collections.abc import Awaitable, Callable

from aiokafka import AIOKafkaProducer, TopicPartition

from ebbtide.stream.kafka.client import admin
from ebbtide.stream.kafka.settings import KafkaSettings
from tests.support.receiver import MemoryChain, Receiver, RedisChain, check_chain
from tests.support.servers.services import Services


def settings_for(stack: Services, name: str, **changes: object) -> KafkaSettings:
    """Short times, so that a dead worker is noticed in a second and a half."""
    quick = {"session_timeout_s": 1.5, "heartbeat_interval_s": 0.3, "commit_interval_s": 0.2}
    return KafkaSettings.model_validate(
        {"url": stack.kafka_url, "group": name, "topic": name, **quick, **changes}
    )


class Feed:
    """Sends numbered values and knows which offset each got."""

    def __init__(self, producer: AIOKafkaProducer, topic: str, partitions: int) -> None:
        self.producer, self._topic, self._partitions = producer, topic, partitions
        self.sent: dict[int, dict[int, str]] = {p: {} for p in range(partitions)}
        self._count = 0

    async def send(
        self, count: int, partition: int | None = None, *, size: int = 1, kept: bool = True
    ) -> None:
        acks = []
        for _ in range(count):
            self._count += 1
            where = self._count % self._partitions if partition is None else partition
            value = f"{self._count}".ljust(size, ".")
            acks.append((value, await self.producer.send(self._topic, value.encode(), partition=where)))
        for value, ack in acks:
            answer = await ack
            if kept:
                self.sent[answer.partition][answer.offset] = value

    async def stream(self, per_second: int, until_set: asyncio.Event) -> None:
        while not until_set.is_set():
            await self.send(per_second // 20)
            await asyncio.sleep(0.05)


Join = Callable[..., Awaitable[Receiver]]


async def folded(chain: MemoryChain | RedisChain, feed: Feed) -> bool:
    """All that was sent has been folded."""
    for partition, sent in feed.sent.items():
        entries = await chain.entries(partition)
        if sum(len(rows) for _, _, rows in entries) < len(sent):
            return False
    return True


async def check(chain: MemoryChain | RedisChain, feed: Feed) -> None:
    for partition, sent in feed.sent.items():
        check_chain(await chain.entries(partition), sent)


async def committed(settings: KafkaSettings, partition: int) -> tuple[int, str] | None:
    """What Kafka holds, asked by somebody else."""
    async with admin(settings) as client:
        offsets = await client.list_consumer_group_offsets(settings.group)
    found = offsets.get(TopicPartition(settings.topic, partition))
    return None if found is None or found.offset < 0 else (found.offset, found.metadata)
