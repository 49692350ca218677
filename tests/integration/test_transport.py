"""The transport against a real Kafka: by position, no record is skipped and none is folded twice, whatever happens.

feed ─▶ topic ─▶ receivers (tests.support.receiver) ─▶ per partition: the list of what was folded
sent: offset → value, as the broker acknowledged it ──────────────────────┘ compared at the end
"""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import RecordsToDelete

from ebbtide.ops.stack.local import LocalKafka
from ebbtide.ops.stack.server import free_ports
from ebbtide.stream.batch import Fetched, FetchedBatch, LogPosition
from ebbtide.stream.clock import SystemClock
from ebbtide.stream.errors import CheckpointOutsideLog, PartitionRevoked
from ebbtide.stream.kafka.client import admin
from ebbtide.stream.kafka.settings import KafkaSettings
from ebbtide.stream.kafka.topics import TopicSpec, ensure_topics
from tests.support.patience import PATIENCE_S
from tests.support.receiver import MemoryChain, Receiver, until
from tests.support.servers.listener import proxied_listener
from tests.support.servers.proxy import Proxy
from tests.support.servers.services import Services
from tests.support.transport import Feed, Join, check, committed, folded, settings_for

pytestmark = pytest.mark.kafka


async def test_many_partitions_share_one_bound_of_fetched_bytes(
    stack: Services, unique_name: str, feed: Feed, join: Join
) -> None:
    """Four of them may hold a MiB together, so each is asked for a quarter; all arrives."""
    settings = settings_for(stack, unique_name, fetch_bytes_max=1 << 20)
    chain = MemoryChain()
    await feed.send(4000)
    receiver = await join(settings, chain)
    await until(lambda: folded(chain, feed), "all folded")
    source: Any = receiver.source
    assert source._thread._consumer._fetcher._max_partition_fetch_bytes == 256 << 10


async def test_a_fetch_that_straddles_a_rebalance(
    stack: Services, unique_name: str, feed: Feed, join: Join
) -> None:
    """Batches fetched before a rebalance arrive after it, when their position has long moved: refused, sought back.

    first   fetch ──▶ [gate closed: batches on their way] ───── gate opens ──▶ old seek, refused
    second                        joins ─▶ all partitions change hands
    """
    settings, chain = settings_for(stack, unique_name, fetch_records_max=50), MemoryChain()
    first = await join(settings, chain)
    await feed.send(400)
    await until(lambda: folded(chain, feed), "the first batches")
    first.gate.clear()
    await feed.send(4000)
    places = first.app.source._thread._places
    await until(
        lambda: sum(place.position for place in places.values()) > 400, "fetched, and stuck before the gate"
    )
    second = await join(settings, chain)
    await until(lambda: first.partitions and second.partitions, "both own partitions")
    assert len(first.partitions) + len(second.partitions) == 4
    first.gate.set()
    await feed.send(400)
    await until(lambda: folded(chain, feed), "all folded")
    await check(chain, feed)
    assert first.seen["old seek"] > 0, "nothing straddled: the test shows nothing"
    assert first.seen["fenced"] + second.seen["fenced"] == 0


async def test_a_receiver_that_loses_a_batch_seeks_back(
    stack: Services, unique_name: str, feed: Feed, join: Join
) -> None:
    """A batch lost on its way shows with the next one, which does not begin where the last one ended."""
    settings, chain = settings_for(stack, unique_name, fetch_records_max=50), MemoryChain()

    class Forgetful(Receiver):
        def take(self, batch: FetchedBatch) -> None:
            if batch.start > 0 and not self.seen[f"lost of {batch.partition}"]:
                self.seen[f"lost of {batch.partition}"] += 1
            else:
                super().take(batch)

    await feed.send(2000)
    receiver = Forgetful(settings, chain)
    await receiver.app.start()
    try:
        await until(lambda: folded(chain, feed), "all folded")
    finally:
        await receiver.stop()
    await check(chain, feed)
    assert receiver.seen["gap"] == 4


async def test_aborted_transactions_longer_than_a_fetch(
    stack: Services, unique_name: str, feed: Feed, join: Join
) -> None:
    """What was aborted is not seen, the fetches that hold nothing else are batches all the same."""
    settings = settings_for(stack, unique_name, fetch_partition_bytes_max=2048)
    chain = MemoryChain()
    doubtful = AIOKafkaProducer(
        bootstrap_servers=stack.kafka_url, transactional_id=unique_name, max_batch_size=2048, linger_ms=5
    )
    await doubtful.start()
    await feed.send(50, 0)
    writer = Feed(doubtful, unique_name, 4)
    for kept in (False, True, False):
        await doubtful.begin_transaction()
        await writer.send(300, 0, size=200, kept=kept)
        await (doubtful.commit_transaction() if kept else doubtful.abort_transaction())
    await doubtful.begin_transaction()
    await writer.send(100, 0, size=200, kept=False)  # open: it hides what comes after it until it is over
    await feed.send(50, 0)
    feed.sent[0] |= writer.sent[0]
    receiver = await join(settings, chain)
    await until(lambda: _count(chain, 0, 350), "what lies before the open transaction")
    await asyncio.sleep(0.3)
    assert await _count(chain, 0, 350), "records behind an open transaction were delivered"
    await doubtful.abort_transaction()
    await doubtful.stop()
    await until(lambda: folded(chain, feed), "all folded")
    await check(chain, feed)
    assert receiver.seen["empty"] > 10
    assert receiver.seen["gap"] == 0


async def _count(chain: MemoryChain, partition: int, count: int) -> bool:
    return sum(len(rows) for _, _, rows in await chain.entries(partition)) == count


async def test_paused_partitions_wait_in_the_group(
    stack: Services, unique_name: str, feed: Feed, join: Join
) -> None:
    """A pause holds one partition, not the others; with all of them paused the poll clock goes on."""
    settings = settings_for(
        stack, unique_name, session_timeout_s=2.0, poll_interval_max_s=2.0, fetch_records_max=100
    )
    chain = MemoryChain()
    receiver = await join(settings, chain)
    await until(lambda: len(receiver.partitions) == 4, "assigned")
    await feed.send(40)
    await until(lambda: folded(chain, feed), "all folded")
    receiver.source.pause(1)
    await feed.send(2000)
    await until(lambda: _count(chain, 0, len(feed.sent[0])), "the others go on")
    assert await _count(chain, 1, 10)
    for partition in range(4):
        receiver.source.pause(partition)
    await asyncio.sleep(3.0)  # longer than the poll interval
    assert receiver.seen["assigned"] == 1, "a paused worker left the group"
    assert not await folded(chain, feed)
    loop, waits = asyncio.get_running_loop(), []
    for _ in range(5):  # a resume ends the wait of a fetch, which may be a second long
        began = loop.time()
        for partition in range(4):
            receiver.source.resume(partition)
        await until(lambda: folded(chain, feed), "resumed")
        waits.append(loop.time() - began)
        for partition in range(4):
            receiver.source.pause(partition)
        await feed.send(4)
        await asyncio.sleep(0.05)
    assert sorted(waits)[2] < 0.4, waits
    for partition in range(4):
        receiver.source.resume(partition)
    await until(lambda: folded(chain, feed), "resumed")
    await check(chain, feed)


async def test_a_slow_receiver_bounds_what_is_fetched(
    stack: Services, unique_name: str, feed: Feed, join: Join
) -> None:
    """Backpressure by pausing: what is fetched and not folded stays within the bounds that have names."""
    settings = settings_for(stack, unique_name, fetch_records_max=50, fetched_batches_max=4)
    chain = MemoryChain()
    await feed.send(6000)
    receiver = await join(settings, chain, work_s=0.01, inbox_max=2)
    backlog_max = 0
    while not await folded(chain, feed):
        done = sum([len(await chain.entries(p)) for p in range(4)])
        backlog_max = max(backlog_max, receiver.seen["batches"] - done)
        await asyncio.sleep(0.01)
    # An inbox of 2 for each partition, one in work, and what was on its way when the pause came.
    assert backlog_max <= 4 * (2 + 1) + 4 + 2
    assert receiver.seen["records_max"] <= settings.fetch_records_max
    await check(chain, feed)


async def test_a_receiver_that_takes_nothing_bounds_what_is_fetched(
    stack: Services, unique_name: str, feed: Feed, join: Join
) -> None:
    """It never pauses: `fetched_batches_max` wait for it, one is at its door and one is behind them, and no more."""
    settings = settings_for(stack, unique_name, fetch_records_max=50, fetched_batches_max=3)
    chain = MemoryChain()
    receiver = await join(settings, chain)
    await until(lambda: len(receiver.partitions) == 4, "assigned")
    receiver.gate.clear()
    await feed.send(6000)
    places = receiver.app.source._thread._places
    taken = -1
    while taken != (taken := sum(place.position for place in places.values())):  # noqa: ASYNC110 -- no event tells it
        await asyncio.sleep(1.5)  # longer than a fetch waits
    assert 0 < taken <= (settings.fetched_batches_max + 2) * settings.fetch_records_max
    receiver.gate.set()
    await until(lambda: folded(chain, feed), "all folded")
    await check(chain, feed)


async def test_a_fetch_brings_so_many_bytes_of_a_partition(
    stack: Services, unique_name: str, feed: Feed, join: Join
) -> None:
    """Kafka cuts between the batches of a producer (16 KiB here), so one of them may come on top."""
    settings = settings_for(stack, unique_name, fetch_records_max=10_000, fetch_partition_bytes_max=64 << 10)
    chain = MemoryChain()
    await feed.send(600, partition=0, size=1_000)
    receiver = await join(settings, chain)
    await until(lambda: folded(chain, feed), "all folded")
    assert 16 < receiver.seen["records_max"] <= (64 + 16 << 10) // 1_000
    await check(chain, feed)


async def test_an_error_of_the_receiver_stops_the_worker(
    stack: Services, unique_name: str, feed: Feed
) -> None:
    """Faust alone would count the batch as done and start the agent anew behind it."""

    class Failing(Receiver):
        async def deliver(self, fetched: Sequence[Fetched]) -> None:
            raise ZeroDivisionError("no")

    settings = settings_for(stack, unique_name)
    receiver = Failing(settings, MemoryChain())
    await feed.send(400)
    await receiver.app.start()
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(receiver.app.failed(), PATIENCE_S)
    await receiver.stop()
    assert [await committed(settings, p) for p in range(4)] == [None] * 4


async def test_a_head_that_the_log_no_longer_has(
    stack: Services, unique_name: str, feed: Feed, join: Join
) -> None:
    """Retention has passed the checkpoint: a fault of that partition, never a jump to what is left."""
    settings, chain = settings_for(stack, unique_name, session_timeout_s=30.0), MemoryChain()
    await feed.send(400)
    async with admin(settings) as client:
        await client.delete_records({TopicPartition(unique_name, 0): RecordsToDelete(before_offset=50)})
    await chain.apply(0, 0, (0, 10, []))
    receiver = await join(settings, chain)
    await until(lambda: receiver.faults, "a fault")
    assert isinstance(receiver.faults[0].error, CheckpointOutsideLog)
    assert re.search(r"\[0\] at offset 10", str(receiver.faults[0].error))
    await feed.send(400)
    feed.sent[0].clear()
    await until(lambda: folded(chain, feed), "the others go on")
    assert receiver.seen["assigned"] == 1
    assert list(receiver.faults) == [0]


async def test_what_is_not_ours_cannot_be_sought(
    stack: Services, unique_name: str, feed: Feed, join: Join
) -> None:
    """Before an assignment, after a revocation, and when the worker has stopped."""
    settings, chain = settings_for(stack, unique_name), MemoryChain()
    receiver = await join(settings, chain)
    await until(lambda: len(receiver.partitions) == 4, "assigned")
    assert await receiver.source.partition_count() == 4
    assert receiver.source.assigned() == {0, 1, 2, 3}
    with pytest.raises(PartitionRevoked):
        await receiver.source.seek(7, 0)
    await receiver.stop()
    with pytest.raises(PartitionRevoked):
        await receiver.source.seek(0, 0)
    receiver.source.pause(0)
    receiver.source.resume(0)
    receiver.source.advance_committed(0, 1)


async def test_one_record_a_message(stack: Services, unique_name: str, feed: Feed, join: Join) -> None:
    """The benchmark's other worker: the same positions, cut finer."""
    settings, chain = settings_for(stack, unique_name, fetch_records_max=1), MemoryChain()
    await feed.send(400)
    receiver = await join(settings, chain)
    await until(lambda: folded(chain, feed), "all folded")
    await check(chain, feed)
    assert receiver.seen["batches"] == 400


def seen(receiver: Receiver) -> LogPosition:
    """What is known of partition 0; -1 of what is not."""
    return receiver.source.positions().get(0, LogPosition(-1, -1, -1))


@asynccontextmanager
async def at_its_end(receiver: Receiver, kafka_url: str, topic: str) -> AsyncIterator[AIOKafkaProducer]:
    """At work, the one record that partition 0 holds seen, to be stopped after the block. Yields who sends more."""
    async with AIOKafkaProducer(bootstrap_servers=kafka_url) as producer:
        await producer.send_and_wait(topic, b"1", partition=0)
        await receiver.app.start()
        try:
            await until(
                lambda: seen(receiver).position == seen(receiver).high_watermark == 1, "the end was reached"
            )
            yield producer
        finally:
            await receiver.stop()


async def test_what_was_revoked_while_it_was_fetched_is_dropped(stack: Services, unique_name: str) -> None:
    """The group is heard of in the loop before the thread's next batch comes there: Faust knows no callback for it."""
    settings = settings_for(stack, unique_name)
    await ensure_topics(settings, [TopicSpec(unique_name, 1, "s")])
    chain = MemoryChain()
    receiver: Any = Receiver(settings, chain)
    async with at_its_end(receiver, stack.kafka_url, unique_name) as producer:
        source, conductor = receiver.source, receiver.app.topics
        conductor._tp_to_callback.clear()  # it never forgets: as of a partition whose first batch this is
        source.note_revoked(frozenset({TopicPartition(unique_name, 0)}))
        await producer.send_and_wait(unique_name, b"2", partition=0)
        places = source._thread._places
        await until(lambda: places[TopicPartition(unique_name, 0)].position == 2, "the thread fetched it")
        await asyncio.sleep(0.5)
        assert receiver.app.crash_reason is None
        assert await chain.entries(0) == [(0, 1, [(0, "1")])]


async def test_a_log_s_end_is_seen_without_a_fetch(stack: Services, unique_name: str) -> None:
    """A partition whose fetch stands, for whatever reason, is asked about all the same: who is silent there is silent,
    and what is there and does not come shows as lag."""
    settings = settings_for(stack, unique_name)
    await ensure_topics(settings, [TopicSpec(unique_name, 1, "s")])
    receiver = Receiver(settings, MemoryChain())
    async with at_its_end(receiver, stack.kafka_url, unique_name) as producer:
        thread: Any = receiver.source._thread  # type: ignore[attr-defined]  # what aiokafka fetches is private
        consumer = thread._ensure_consumer()
        await thread.call_thread(consumer.pause, TopicPartition(unique_name, 0))
        await asyncio.sleep(1.0)  # a fetch that was under way
        stood_ms = SystemClock().now_ms()
        await until(lambda: seen(receiver).seen_ms > stood_ms, "the end was seen again")
        await producer.send_and_wait(unique_name, b"2", partition=0)
        await until(lambda: seen(receiver).high_watermark == 2, "what does not come is known of")
        assert seen(receiver).position == 1


async def test_an_answer_that_came_late_is_not_of_now(unique_name: str) -> None:
    """What a log's end was when the broker answered says nothing of the time until somebody reads it: a network that
    is slow, a machine that was suspended. Silence would be proved by what nobody has looked at.

    answers   asked ──2 s──▶ broker ──2 s──▶ read: "the log ends at 1"
    producer                        ▲ a record
    """
    (inner,) = free_ports(1)
    with (
        Proxy(inner) as proxy,
        LocalKafka(settings=proxied_listener(inner, proxy)) as kafka,
    ):
        quick = KafkaSettings(url=kafka.url, group=unique_name, topic=unique_name, session_timeout_s=30.0)
        settings = quick.model_copy(update={"url": f"127.0.0.1:{proxy.port}"})
        await ensure_topics(quick, [TopicSpec(unique_name, 1, "s")])
        receiver = Receiver(settings, MemoryChain())

        async with at_its_end(receiver, kafka.url, unique_name) as producer:
            try:
                proxy.slow(2.0)
                await asyncio.sleep(0.5)
                first_ms = seen(receiver).seen_ms
                await until(lambda: seen(receiver).seen_ms > first_ms, "an answer through the slow network")
                last_ms = seen(receiver).seen_ms
                await asyncio.sleep(3.0)  # the next one is on its way back now
                await producer.send_and_wait(unique_name, b"2", partition=0)
                produced_ms = SystemClock().now_ms()
                await until(lambda: seen(receiver).seen_ms > last_ms, "the next one")
                while (position := seen(receiver)).high_watermark == 1:
                    assert position.seen_ms < produced_ms + 500
                    await asyncio.sleep(0.05)
            finally:
                proxy.heal()
