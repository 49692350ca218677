"""The transport on three brokers that are killed one after the other, the group's coordinator among them; and on none.

feed ─▶ 3 brokers, one of them dead ─▶ receivers come and go ─▶ what was folded
                      └──────────────── the log as it is at the end ──┘ the same, offset by offset
"""

import asyncio
from collections.abc import AsyncIterator

import pytest
from aiokafka import AIOKafkaProducer

from ebbtide.ops.stack.local import LocalKafka
from ebbtide.stream.kafka.reader import read_topic
from ebbtide.stream.kafka.settings import KafkaSettings
from ebbtide.stream.kafka.topics import TopicSpec, ensure_topics
from tests.support.receiver import MemoryChain, Receiver, check_chain, until

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
PARTITIONS = 4


@pytest.fixture
async def cluster() -> AsyncIterator[LocalKafka]:
    kafka = LocalKafka(brokers=3)
    await asyncio.to_thread(kafka.start)
    yield kafka
    await asyncio.to_thread(kafka.stop)


async def feed(url: str, topic: str, over: asyncio.Event) -> int:
    """Numbered values until told to stop; returns how many Kafka has acknowledged, which is all."""
    producer = AIOKafkaProducer(bootstrap_servers=url, enable_idempotence=True, linger_ms=5)
    await producer.start()
    count, acks = 0, []
    while not over.is_set():
        for _ in range(50):
            acks.append(await producer.send(topic, str(count).encode(), partition=count % PARTITIONS))
            count += 1
        await asyncio.sleep(0.05)
    await asyncio.gather(*acks)
    await producer.stop()
    return count


async def test_brokers_die_while_events_flow(cluster: LocalKafka, unique_name: str) -> None:
    """No record of the final log is skipped or folded twice, and the workers live through all of it."""
    settings = KafkaSettings(
        url=cluster.url, group=unique_name, topic=unique_name, session_timeout_s=3.0, heartbeat_interval_s=0.5,
        request_timeout_s=5.0, commit_interval_s=0.2, fetch_records_max=200,
    )  # fmt: skip
    await ensure_topics(settings, [TopicSpec(unique_name, PARTITIONS, "partitions")])
    chain, over = MemoryChain(), asyncio.Event()
    receivers = [Receiver(settings, chain, work_s=0.002) for _ in range(2)]
    failing = [asyncio.create_task(receiver.app.failed()) for receiver in receivers]
    feeding = asyncio.create_task(feed(cluster.url, unique_name, over))
    guest: Receiver | None = None
    try:
        for receiver in receivers:
            await receiver.app.start()
        await until(lambda: chain.head(0), "the first step")
        for node in cluster.nodes:
            await asyncio.to_thread(node.kill)
            if guest is None:  # joins while a broker is dead
                guest = Receiver(settings, chain)
                await guest.app.start()
                await asyncio.sleep(2.0)
            else:  # and leaves while the next one is
                await guest.stop()
                guest = None
                await asyncio.sleep(2.0)
            await asyncio.to_thread(node.restart)
            await asyncio.sleep(1.0)
        over.set()
        sent = await feeding
        log: dict[int, dict[int, str]] = {partition: {} for partition in range(PARTITIONS)}
        async for record in read_topic(settings, unique_name):
            log[record.partition][record.offset] = (record.value or b"").decode()
        assert sorted(int(v) for values in log.values() for v in values.values()) == list(range(sent))

        async def folded() -> bool:
            checkpoints = [await chain.head(p) for p in range(PARTITIONS)]
            return all(checkpoint == max(log[p]) + 1 for p, checkpoint in enumerate(checkpoints))

        await until(folded, "all folded")
        for partition in range(PARTITIONS):
            check_chain(await chain.entries(partition), log[partition])
        assert not any(task.done() for task in failing), "a worker gave up"
    finally:
        over.set()
        for task in failing:
            task.cancel()
        for receiver in [*receivers, *([guest] if guest else [])]:
            await receiver.stop()
        feeding.cancel()
        await asyncio.gather(feeding, *failing, return_exceptions=True)
        print([dict(receiver.seen) for receiver in receivers])


async def test_a_worker_outlives_its_only_broker(unique_name: str) -> None:
    """An outage longer than the session ends no worker. Without any broker, SIGTERM must not take minutes."""
    kafka = LocalKafka()
    await asyncio.to_thread(kafka.start)
    settings = KafkaSettings(
        url=kafka.url, group=unique_name, topic=unique_name, session_timeout_s=1.5, heartbeat_interval_s=0.3
    )
    chain, over = MemoryChain(), asyncio.Event()
    receiver = Receiver(settings, chain)
    failing = asyncio.create_task(receiver.app.failed())
    try:
        await ensure_topics(settings, [TopicSpec(unique_name, PARTITIONS, "partitions")])
        await receiver.app.start()
        feeding = asyncio.create_task(feed(kafka.url, unique_name, over))
        await until(lambda: chain.head(0), "the first step")
        await asyncio.to_thread(kafka.nodes[0].kill)
        await asyncio.sleep(3.0)
        await asyncio.to_thread(kafka.nodes[0].restart)
        over.set()
        sent = await feeding

        async def folded() -> bool:
            entries = [entry for p in range(PARTITIONS) for entry in await chain.entries(p)]
            return sum(len(rows) for _, _, rows in entries) == sent

        await until(folded, "all folded")
        assert not failing.done()
        await asyncio.to_thread(kafka.nodes[0].kill)
        await asyncio.sleep(0.5)
        began = asyncio.get_running_loop().time()
        await receiver.stop()
        assert asyncio.get_running_loop().time() - began < 10.0
    finally:
        failing.cancel()
        await receiver.stop()
        await asyncio.to_thread(kafka.stop)
