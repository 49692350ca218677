"""The group's ordinary commits against a real Kafka: none of them ever takes a committed offset back."""

import asyncio
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.client import CoordinationType
from aiokafka.protocol.commit import OffsetCommitRequest
from aiokafka.protocol.group import LeaveGroupRequest
from aiokafka.structs import OffsetAndMetadata

from ebbtide.stream.batch import CommittedOffset
from ebbtide.stream.kafka.client import admin
from tests.chaos.marks import moved_back
from tests.support.receiver import MemoryChain, until
from tests.support.servers.services import Services
from tests.support.transport import Feed, Join, check, committed, folded, settings_for

pytestmark = pytest.mark.kafka


async def test_a_worker_folds_all_commits_its_marks_and_leaves_at_once(
    stack: Services, unique_name: str, feed: Feed, join: Join
) -> None:
    """Whole batches arrive; marks reach Kafka with their metadata; whoever joins next need not wait for a session."""
    settings = settings_for(stack, unique_name, session_timeout_s=30.0, commit_interval_s=60.0)
    chain = MemoryChain()
    await feed.send(8000)
    first = await join(settings, chain)
    await until(lambda: folded(chain, feed), "all folded")
    assert first.seen["batches"] < 100, "a batch is many records"
    end = max(feed.sent[2]) + 1
    await first.stop()
    assert await committed(settings, 2) == (end, f"at {end}"), (
        "committed on leaving, long before the interval"
    )
    second = await join(settings, chain)
    await until(lambda: len(second.partitions) == 4, "the second owns all", timeout_s=20.0)
    await feed.send(100)
    await until(lambda: folded(chain, feed), "the rest folded")
    await check(chain, feed)


async def test_marks_never_go_back(stack: Services, unique_name: str, feed: Feed, join: Join) -> None:
    """Nor by an older committed offset of this worker, nor by one below what another has committed. Metadata may
    change alone."""
    settings, chain = settings_for(stack, unique_name), MemoryChain()
    receiver = await join(settings, chain)
    await until(lambda: len(receiver.partitions) == 4, "assigned")
    await feed.send(400)
    await until(lambda: folded(chain, feed), "all folded")
    end = max(feed.sent[1]) + 1

    async def is_committed(expected: tuple[int, str]) -> bool:
        return await committed(settings, 1) == expected

    await until(lambda: is_committed((end, f"at {end}")), "committed by the timer")
    receiver.source.advance_committed(1, end - 10, "older")
    await asyncio.sleep(0.5)
    assert await is_committed((end, f"at {end}")), "an older committed offset was committed"
    receiver.source.advance_committed(1, end, "a later timer clock")
    await until(lambda: is_committed((end, "a later timer clock")), "metadata alone")
    await receiver.stop()

    # A state that lost everything folds from the start again, below what was sent long ago.
    slow = settings_for(stack, unique_name, fetch_records_max=10)
    chain = MemoryChain()
    other = await join(slow, chain, work_s=0.1)
    while not await folded(chain, feed):
        await asyncio.sleep(0.1)
        found = await committed(settings, 1)
        assert found is not None
        assert found[0] == end
    known = await other.source.committed(1)
    assert known is not None
    assert known.offset == end


async def test_no_ordinary_commit_crosses_a_transaction(
    stack: Services, unique_name: str, feed: Feed, join: Join
) -> None:
    """What is held is not committed, and the others are; what a transaction moved is not committed once more; and of
    what was forgotten nothing is, before Kafka has been asked what it holds."""
    settings, chain = settings_for(stack, unique_name), MemoryChain()
    receiver = await join(settings, chain)
    await until(lambda: len(receiver.partitions) == 4, "assigned")
    await feed.send(400)
    await until(lambda: folded(chain, feed), "all folded")
    source, (end, other_end) = receiver.source, [max(feed.sent[p]) + 1 for p in (1, 2)]

    async def holds(partition: int, offset: int, metadata: str) -> bool:
        return await committed(settings, partition) == (offset, metadata)

    await until(lambda: holds(1, end, f"at {end}"), "committed by the timer")
    hold = await source.hold_commits({1, 99})
    assert hold.partitions == {1}
    source.advance_committed(1, end, "held")
    source.advance_committed(2, other_end, "free")
    await until(lambda: holds(2, other_end, "free"), "the other is committed")
    assert await holds(1, end, f"at {end}")
    source.note_committed(1, CommittedOffset(end, "by a transaction"))
    source.release_commits(hold, 1)
    source.forget_committed(2)
    source.advance_committed(2, other_end, "of nobody knows when")
    await asyncio.sleep(0.5)
    assert await holds(1, end, f"at {end}") and await holds(2, other_end, "free")
    assert await source.committed(2) == CommittedOffset(other_end, "free")
    source.advance_committed(1, end, "again")
    await until(lambda: holds(1, end, "again"), "released")


async def test_a_committed_offset_that_moved_back_shows(
    stack: Services, unique_name: str, feed: Feed
) -> None:
    """In the topic where Kafka keeps them, as the chaos run's verdict reads it: also when a later one covers it up."""
    settings = settings_for(stack, unique_name)
    consumer = AIOKafkaConsumer(
        bootstrap_servers=stack.kafka_url, group_id=settings.group, enable_auto_commit=False
    )
    await consumer.start()
    consumer.assign([tp := TopicPartition(settings.topic, 1)])
    for offset, sequence, timers in ((10, 1, 5), (20, 2, 5), (20, 2, 7), (20, 1, 7), (30, 3, 6), (40, 4, 9)):
        metadata = f"sequence={sequence} timers={timers}:" + "x" * 200
        await consumer.commit({tp: OffsetAndMetadata(offset, metadata)})
    await consumer.stop()
    found = [(before, after) for _, _, before, after in await moved_back(settings)]
    assert [(a.offset, a.sequence, b.offset, b.sequence) for a, b in found] == [
        (20, 2, 20, 1),
        (20, 1, 30, 3),
    ]
    assert [b.timers[0] for _, b in found] == [7, 6]


async def test_who_was_put_out_of_the_group_commits_nothing(
    stack: Services, unique_name: str, feed: Feed, join: Join
) -> None:
    """A worker that slept past its session hears of it when others have come, done more, and died: the group is empty,
    and Kafka takes from anybody what names no generation. So what it has not committed, it commits no more."""
    settings = settings_for(
        stack, unique_name, session_timeout_s=10.0, heartbeat_interval_s=3.0, commit_interval_s=60.0
    )
    chain = MemoryChain()
    receiver = await join(settings, chain)
    await feed.send(40)
    await until(lambda: folded(chain, feed), "all folded")
    source: Any = receiver.source
    member = source._thread._consumer._coordinator.member_id
    later = CommittedOffset(max(feed.sent[1]) + 1, "of another worker, since")
    async with admin(settings) as client:
        kafka = client._client
        coordinator = await kafka.coordinator_lookup(CoordinationType.GROUP, settings.group)
        answer = await kafka.send(coordinator, LeaveGroupRequest(settings.group, member))
        assert answer.error_code == 0
        offsets = [(settings.topic, [(1, *later)])]
        answer = await kafka.send(coordinator, OffsetCommitRequest(settings.group, -1, "", -1, offsets))
        assert answer.topics[0][1][0][1] == 0, "it is not empty: the test shows nothing"
    assert source.committable(source._owned) != source.in_kafka(), "nothing to commit: the test shows nothing"
    await until(lambda: receiver.seen["assigned"] > 1, "it heard, and joined anew")
    assert await committed(settings, 1) == later
