"""Which log it is, and what lies in it, on a real Kafka: identity, poison, and where it ends now.

What a batch of one partition does to the others is asked everywhere: nothing.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from ebbtide.ops.stack.local import LocalKafka
from ebbtide.ops.stack.server import free_ports
from ebbtide.stream.clock import SystemClock
from ebbtide.stream.errors import AnotherLog, UnreadableBatch
from ebbtide.stream.kafka.client import admin
from ebbtide.stream.kafka.reader import read_topic
from ebbtide.stream.kafka.settings import KafkaSettings
from ebbtide.stream.kafka.topics import TopicSpec, ensure_topics
from tests.support.raw_batches import batch_of, produce_raw, replaced
from tests.support.receiver import MemoryChain, Receiver, until
from tests.support.servers.listener import proxied_listener
from tests.support.servers.proxy import Proxy

pytestmark = pytest.mark.kafka
PARTITIONS = 2


@pytest.fixture(scope="module")
def kafka() -> Iterator[LocalKafka]:
    """One broker of our own, whose files may be damaged."""
    with LocalKafka() as kafka:
        yield kafka


def settings_of(url: str, name: str) -> KafkaSettings:
    return KafkaSettings(
        url=url, group=name, topic=name, session_timeout_s=5.0, heartbeat_interval_s=0.5,
        request_timeout_s=10.0, commit_interval_s=0.2, fetch_uncompressed_bytes_max=1 << 20,
    )  # fmt: skip


@pytest.fixture
async def settings(kafka: LocalKafka, unique_name: str) -> KafkaSettings:
    settings = settings_of(kafka.url, unique_name)
    await ensure_topics(settings, [TopicSpec(unique_name, PARTITIONS, "partitions")])
    return settings


@pytest.fixture
async def producer(kafka: LocalKafka) -> AsyncIterator[AIOKafkaProducer]:
    async with AIOKafkaProducer(bootstrap_servers=kafka.url, acks="all") as producer:
        yield producer


class Working:
    """A receiver at work; `folded` is what it has of a partition."""

    def __init__(self, settings: KafkaSettings) -> None:
        self.chain = MemoryChain()
        self.receiver = Receiver(settings, self.chain)
        self.source = self.receiver.source

    async def __aenter__(self) -> "Working":
        await self.receiver.app.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.receiver.stop()

    async def folded(self, partition: int) -> list[str]:
        return [value for _, _, rows in await self.chain.entries(partition) for _, value in rows]

    async def has(self, partition: int, count: int) -> None:
        async def enough() -> bool:
            return len(await self.folded(partition)) == count

        await until(enough, f"{count} folded of {partition}")

    async def goes_on(self, producer: AIOKafkaProducer, topic: str) -> None:
        """Partition 1 works, and nobody was asked to join the group again."""
        before = len(await self.folded(1))
        await producer.send_and_wait(topic, b"more", partition=1)
        await self.has(1, before + 1)
        assert self.receiver.seen["assigned"] == 1


async def test_a_header_name_that_is_not_utf8_stops_nobody(
    settings: KafkaSettings, producer: AIOKafkaProducer
) -> None:
    """Neither a worker nor a command that reads the topic."""
    odd = replaced(batch_of([(b"jane", b"odd", [("??", b"v")])]), b"??", b"\xff\xfe")
    await producer.send_and_wait(settings.topic, b"before", partition=0)
    await produce_raw(producer, settings.topic, 0, odd)
    await producer.send_and_wait(settings.topic, b"after", partition=0)
    async with Working(settings) as working:
        await working.has(0, 3)
        assert await working.folded(0) == ["before", "odd", "after"]
    read = [record async for record in read_topic(settings, settings.topic)]
    assert [(r.topic, r.partition, r.value) for r in read] == [
        (settings.topic, 0, value) for value in (b"before", b"odd", b"after")
    ]
    assert list(read[1].headers) == [("\\xff\\xfe", b"v")]


async def test_a_batch_too_large_once_decompressed_stops_its_partition(
    settings: KafkaSettings, producer: AIOKafkaProducer
) -> None:
    """17 MiB of blanks are 17 kB for the broker. With a larger bound they are a record like any other."""
    await producer.send_and_wait(settings.topic, b"before", partition=0)
    bomb = batch_of([(b"jane", b" " * (17 << 20), [])], codec="zstd")
    assert len(bomb) < 100_000
    assert await produce_raw(producer, settings.topic, 0, bomb) == 1
    await producer.send_and_wait(settings.topic, b"after", partition=0)
    async with Working(settings) as working:
        await until(lambda: working.receiver.faults, "a fault")
        fault = working.receiver.faults[0]
        assert isinstance(fault.error, UnreadableBatch)
        assert (fault.position, await working.folded(0)) == (1, ["before"])
        assert "[0] at offset 1 cannot be read" in str(fault.error)
        assert "fetch_uncompressed_bytes_max" in fault.error.hint
        await working.goes_on(producer, settings.topic)
    wide = settings.model_copy(update={"fetch_uncompressed_bytes_max": 64 << 20})
    async with Working(wide) as working:
        await working.has(0, 3)


def segment(kafka: LocalKafka, topic: str, partition: int) -> Path:
    """The one segment file of a partition's log."""
    folder = kafka.nodes[0].server.folder / "data" / f"{topic}-{partition}"
    return next(folder.glob("*.log"))


async def test_a_batch_that_rotted_on_disk_stops_its_partition(
    kafka: LocalKafka, settings: KafkaSettings, producer: AIOKafkaProducer
) -> None:
    """Its owner used to ask to join again once a second, which took all other partitions with it."""
    for value in (b"before", b"rotten", b"after"):
        await producer.send_and_wait(settings.topic, value, partition=0)
    await producer.send_and_wait(settings.topic, b"well", partition=1)
    await asyncio.to_thread(kafka.nodes[0].terminate)  # cleanly, or it would find out by itself
    path = segment(kafka, settings.topic, 0)
    path.write_bytes(path.read_bytes().replace(b"rotten", b"r0tten"))
    await asyncio.to_thread(kafka.nodes[0].restart)
    async with Working(settings) as working:
        await until(lambda: working.receiver.faults, "a fault")
        fault = working.receiver.faults[0]
        assert (fault.position, await working.folded(0)) == (1, ["before"])
        assert "its checksum is wrong" in str(fault.error)
        await asyncio.sleep(2.5)  # two more requests to join, as it was
        await working.goes_on(producer, settings.topic)
        assert list(working.receiver.faults) == [0]


async def test_a_topic_made_anew_has_another_id(settings: KafkaSettings, producer: AIOKafkaProducer) -> None:
    """Under its old name, with more records than before, and with the group's offsets gone: only the id tells."""
    for _ in range(13):
        await producer.send_and_wait(settings.topic, b"old", partition=0)
    async with Working(settings) as working:
        await working.has(0, 13)
        before = await working.source.topic_id()
        assert before == await working.source.topic_id()
    async with admin(settings) as client:
        await client.delete_topics([settings.topic])
    spec = TopicSpec(settings.topic, PARTITIONS, "partitions")

    async def made_anew() -> bool:
        async with admin(settings) as client:
            return settings.topic not in await client.list_topics()

    await until(made_anew, "the topic is gone")
    await ensure_topics(settings, [spec])
    await producer.client.force_metadata_update()
    for _ in range(60):
        await producer.send_and_wait(settings.topic, b"new", partition=0)
    async with Working(settings) as working:
        await working.has(0, 60)
        after = await working.source.topic_id()
    assert len(before) == len(after) == 36
    assert before != after


@pytest.mark.slow
async def test_a_log_that_lost_its_tail_ends_its_epoch_earlier(
    kafka: LocalKafka, settings: KafkaSettings, producer: AIOKafkaProducer
) -> None:
    """A power cut with one replica, and producers that fill the log past where the worker was: offsets tell nothing.

    before   |───────── epoch 0, 200 records ─────────|  a checkpoint at 200, epoch 0
    after    |── epoch 0, 100 ──|── epoch 1, 300 more ───────────|
    """
    for _ in range(200):
        await producer.send_and_wait(settings.topic, b"old", partition=0)
    async with Working(settings) as working:
        await working.has(0, 200)
        epoch = working.receiver.epochs[0]
        assert epoch >= 0
        assert await working.source.epoch_end(0, epoch) == 200
        assert await working.source.epoch_end(0, epoch + 7) == -1, "an epoch that this log never had"
    await asyncio.to_thread(kafka.nodes[0].kill)
    path = segment(kafka, settings.topic, 0)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    await asyncio.to_thread(kafka.nodes[0].restart)
    for _ in range(300):
        await producer.send_and_wait(settings.topic, b"new", partition=0)
    async with Working(settings) as working:
        await working.has(0, 400)
        assert await working.source.epoch_end(0, epoch) == 100
        assert working.receiver.epochs[0] > epoch


@pytest.mark.slow
async def test_a_tail_lost_under_a_worker_stops_its_partition(unique_name: str) -> None:
    """It hears nothing while the broker loses records and takes others, past where it was: the first batch of the new
    leader makes it ask. The other partition, which lost nothing, goes on."""
    (inner,) = free_ports(1)
    with Proxy(inner) as proxy:
        kafka = LocalKafka(settings=proxied_listener(inner, proxy))
        url = await asyncio.to_thread(kafka.start)
        try:
            there = settings_of(url, unique_name)
            await ensure_topics(there, [TopicSpec(unique_name, PARTITIONS, "partitions")])
            async with (
                AIOKafkaProducer(bootstrap_servers=url, acks="all") as producer,
                Working(settings_of(f"127.0.0.1:{proxy.port}", unique_name)) as working,
            ):
                for partition in (0, 1):
                    for _ in range(200):
                        await producer.send_and_wait(unique_name, b"old", partition=partition)
                    await working.has(partition, 200)
                proxy.cut()
                await asyncio.to_thread(kafka.nodes[0].kill)
                path = segment(kafka, unique_name, 0)
                whole = path.read_bytes()
                path.write_bytes(whole[: len(whole) // 2])
                await asyncio.to_thread(kafka.nodes[0].restart)
                for partition in (0, 1):
                    for _ in range(300):
                        await producer.send_and_wait(unique_name, b"new", partition=partition)
                proxy.heal()
                await until(lambda: 0 in working.receiver.faults, "the tail is missed")
                assert isinstance(working.receiver.faults[0].error, AnotherLog)
                assert await working.folded(0) == ["old"] * 200
                await working.has(1, 500)
                assert 1 not in working.receiver.faults
        finally:
            await asyncio.to_thread(kafka.stop)


async def test_positions_tell_what_waits_though_nothing_is_fetched(
    settings: KafkaSettings, producer: AIOKafkaProducer
) -> None:
    """Paused, behind an open transaction, or not opened at all: the log's end is that of now, not of the last fetch."""
    await producer.send_and_wait(settings.topic, b"one", partition=0)
    async with Working(settings) as working:
        await working.has(0, 1)
        working.source.pause(0)
        for _ in range(20):
            await producer.send_and_wait(settings.topic, b"more", partition=0)
        await until(lambda: working.source.positions()[0].high_watermark == 21, "what waits")
        position = working.source.positions()[0].position
        assert position < 21
        working.source.resume(0)
        await working.has(0, 21)
        assert working.source.positions()[0][:3] == (21, 21, 21)
        seen_ms = working.source.positions()[0].seen_ms
        assert 0 <= SystemClock().now_ms() - seen_ms < 5_000
        await until(lambda: working.source.positions()[0].seen_ms > seen_ms, "an empty answer")
        await until(lambda: working.source.topic_end() == 21, "where all logs end")
        async with AIOKafkaProducer(
            bootstrap_servers=settings.url, transactional_id=settings.topic
        ) as hanging:
            await hanging.begin_transaction()
            for _ in range(5):
                await hanging.send_and_wait(settings.topic, b"open", partition=0)
            await until(lambda: working.source.positions()[0][:3] == (21, 26, 21), "an open transaction")
            await hanging.abort_transaction()
        await until(lambda: working.source.positions()[0].position == 27, "it is over")
        assert working.source.positions()[1].high_watermark == 0
