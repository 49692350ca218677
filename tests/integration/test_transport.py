"""The transport against a real Kafka: by position, no record is skipped and none is folded twice, whatever happens.

feed ─▶ topic ─▶ receivers (tests.support.receiver) ─▶ per partition: the list of what was folded
sent: offset → value, as the broker acknowledged it ──────────────────────┘ compared at the end
"""

import asyncio
import contextlib
import random
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import NewPartitions, RecordsToDelete
from aiokafka.errors import GroupAuthorizationFailedError, KafkaError
from redis.asyncio import Redis

from ebbtide.stream.batch import CommittedOffset, Fetched, FetchedBatch
from ebbtide.stream.errors import BrokerMisconfigured, CheckpointOutsideLog, PartitionRevoked
from ebbtide.stream.kafka.client import admin
from ebbtide.stream.kafka.settings import KafkaSettings
from ebbtide.stream.kafka.topics import TopicSpec, ensure_topics
from tests.support.receiver import MemoryChain, Receiver, RedisChain, check_chain, until
from tests.support.servers.services import Services

pytestmark = pytest.mark.kafka
ROOT = Path(__file__).resolve().parents[2]


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


@pytest.fixture
async def feed(stack: Services, unique_name: str) -> AsyncIterator[Feed]:
    await ensure_topics(settings_for(stack, unique_name), [TopicSpec(unique_name, 4, "partitions")])
    producer = AIOKafkaProducer(bootstrap_servers=stack.kafka_url, acks="all", linger_ms=5)
    await producer.start()
    yield Feed(producer, unique_name, 4)
    await producer.stop()


Join = Callable[..., Awaitable[Receiver]]


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
    await until(lambda: len(second.partitions) == 4, "the second owns all", timeout_s=5.0)
    await feed.send(100)
    await until(lambda: folded(chain, feed), "the rest folded", timeout_s=5.0)
    await check(chain, feed)


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
    await asyncio.sleep(0.3)  # fetched, and stuck before the gate
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
    settings = settings_for(stack, unique_name, poll_interval_max_s=2.0, fetch_records_max=100)
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
    began = asyncio.get_running_loop().time()
    for _ in range(5):  # a resume ends the wait of a fetch, which may be a second long
        for partition in range(4):
            receiver.source.resume(partition)
        await until(lambda: folded(chain, feed), "resumed")
        for partition in range(4):
            receiver.source.pause(partition)
        await feed.send(4)
        await asyncio.sleep(0.05)
    assert asyncio.get_running_loop().time() - began < 2.0
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

    await until(lambda: is_committed((end, f"at {end}")), "committed by the timer", timeout_s=5.0)
    receiver.source.advance_committed(1, end - 10, "older")
    await asyncio.sleep(0.5)
    assert await is_committed((end, f"at {end}")), "an older committed offset was committed"
    receiver.source.advance_committed(1, end, "a later timer clock")
    await until(lambda: is_committed((end, "a later timer clock")), "metadata alone", timeout_s=5.0)
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

    await until(lambda: holds(1, end, f"at {end}"), "committed by the timer", timeout_s=5.0)
    assert await source.hold_commits({1, 99}) == {1}
    source.advance_committed(1, end, "held")
    source.advance_committed(2, other_end, "free")
    await until(lambda: holds(2, other_end, "free"), "the other is committed", timeout_s=5.0)
    assert await holds(1, end, f"at {end}")
    source.note_committed(1, CommittedOffset(end, "by a transaction"))
    source.release_commits(1)
    source.forget_committed(2)
    source.advance_committed(2, other_end, "of nobody knows when")
    await asyncio.sleep(0.5)
    assert await holds(1, end, f"at {end}") and await holds(2, other_end, "free")
    assert await source.committed(2) == CommittedOffset(other_end, "free")
    source.advance_committed(1, end, "again")
    await until(lambda: holds(1, end, "again"), "released", timeout_s=5.0)


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
        await asyncio.wait_for(receiver.app.failed(), 10)
    await receiver.stop()
    assert [await committed(settings, p) for p in range(4)] == [None] * 4


async def test_a_head_that_the_log_no_longer_has(
    stack: Services, unique_name: str, feed: Feed, join: Join
) -> None:
    """Retention has passed the checkpoint: a fault of that partition, never a jump to what is left."""
    settings, chain = settings_for(stack, unique_name), MemoryChain()
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


PUSHED = set[asyncio.Future[None]]()  # a task that nobody holds may vanish


async def push_error(receiver: Receiver, error: KafkaError) -> None:
    """What aiokafka's coordinator does with an answer it did not expect: it keeps the error for the next to ask."""
    thread = receiver.app.source._thread

    async def push() -> None:
        coordinator = thread._ensure_consumer()._coordinator
        PUSHED.add(asyncio.ensure_future(coordinator._push_error_to_user(error)))

    await thread.call_thread(push)


async def test_an_unexpected_answer_of_the_coordinator_is_survived(
    stack: Services, unique_name: str, feed: Feed, join: Join
) -> None:
    """The worker joins the group again. Left alone, aiokafka would be a silent member that nobody misses."""
    settings, chain = settings_for(stack, unique_name), MemoryChain()
    receiver = await join(settings, chain)
    await feed.send(400)
    await until(lambda: folded(chain, feed), "all folded")
    await push_error(receiver, KafkaError("unexpected"))
    await until(lambda: receiver.seen["assigned"] > 1, "joined again")
    await feed.send(400)
    await until(lambda: folded(chain, feed), "all folded")
    await check(chain, feed)


async def test_a_refusal_of_the_coordinator_ends_the_worker(
    stack: Services, unique_name: str, feed: Feed, join: Join
) -> None:
    """No right to the group will not pass by asking again."""
    receiver = await join(settings_for(stack, unique_name), MemoryChain())
    await until(lambda: len(receiver.partitions) == 4, "assigned")
    await push_error(receiver, GroupAuthorizationFailedError(unique_name))
    with pytest.raises(BrokerMisconfigured, match=r"forbids our membership.*READ on group"):
        await asyncio.wait_for(receiver.app.failed(), 10)


class Workers:
    """Worker processes, to be killed, stopped past their session and woken."""

    def __init__(self, settings: KafkaSettings, redis_url: str) -> None:
        self._settings, self._redis_url = settings, redis_url
        self.running: list[asyncio.subprocess.Process] = []

    async def add(self) -> asyncio.subprocess.Process:
        arguments = [self._settings.model_dump_json(), self._redis_url, "--work-s", "0.002"]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.support.receiver",
            *arguments,
            cwd=ROOT,
            stdout=asyncio.subprocess.PIPE,
        )
        self.running.append(process)
        return process

    async def kill(self, process: asyncio.subprocess.Process) -> None:
        process.kill()
        await process.wait()
        self.running.remove(process)

    async def stop(self, process: asyncio.subprocess.Process) -> int:
        """SIGTERM, once it has come so far as to handle it. Returns its exit code."""
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 30) == b"started\n"
        process.terminate()
        self.running.remove(process)
        return await asyncio.wait_for(process.wait(), 15)


@pytest.mark.slow
async def test_workers_come_and_die_while_events_flow(stack: Services, unique_name: str, feed: Feed) -> None:
    """Kills, joins, leaves and a worker that sleeps past its session and wakes as a second owner."""
    settings = settings_for(stack, unique_name, fetch_records_max=200)
    redis = Redis.from_url(stack.redis_url)
    chain = RedisChain(redis, unique_name)
    workers, over, rng = Workers(settings, stack.redis_url), asyncio.Event(), random.Random(7)
    streaming = asyncio.create_task(feed.stream(3000, over))
    try:
        for _ in range(3):
            await workers.add()
        await until(lambda: chain.head(0), "the first step")
        for _ in range(4):
            await asyncio.sleep(rng.uniform(0.3, 1.2))
            await workers.kill(rng.choice(workers.running))
            await asyncio.sleep(rng.uniform(0.0, 0.8))
            await workers.add()
        sleeper = rng.choice(workers.running)
        sleeper.send_signal(signal.SIGSTOP)
        await asyncio.sleep(2.5)  # past its session: its partitions are another's by now
        sleeper.send_signal(signal.SIGCONT)
        await workers.add()
        await asyncio.sleep(1.5)
        assert await workers.stop(workers.running[0]) == 0, "SIGTERM ends a worker cleanly"
        over.set()
        await streaming
        await until(lambda: folded(chain, feed), "all folded")
        codes = [await workers.stop(worker) for worker in list(workers.running)]
        assert codes == [0] * len(codes)
        await check(chain, feed)
        assert all(len(sent) > 500 for sent in feed.sent.values())
    finally:
        over.set()
        for worker in list(workers.running):
            with contextlib.suppress(ProcessLookupError):
                await workers.kill(worker)
        seen = await redis.hgetall(f"{unique_name}:seen")
        print(seen)
        await redis.aclose()


async def test_one_record_a_message(stack: Services, unique_name: str, feed: Feed, join: Join) -> None:
    """The benchmark's other worker: the same positions, cut finer."""
    settings, chain = settings_for(stack, unique_name, fetch_records_max=1), MemoryChain()
    await feed.send(400)
    receiver = await join(settings, chain)
    await until(lambda: folded(chain, feed), "all folded")
    await check(chain, feed)
    assert receiver.seen["batches"] == 400


async def test_the_group_is_gone_when_the_last_has_left(
    stack: Services, unique_name: str, feed: Feed, join: Join
) -> None:
    """A stopped worker holds no member id, so a plain consumer gets all partitions without waiting."""
    settings = settings_for(stack, unique_name, session_timeout_s=30.0)
    receiver = await join(settings, MemoryChain())
    await until(lambda: len(receiver.partitions) == 4, "assigned")
    await receiver.stop()
    plain = AIOKafkaConsumer(unique_name, bootstrap_servers=stack.kafka_url, group_id=unique_name)
    await asyncio.wait_for(plain.start(), 5.0)
    await plain.stop()


async def test_a_static_member_restarts_without_a_rebalance(
    stack: Services, unique_name: str, feed: Feed, join: Join
) -> None:
    """It finds its partitions as it left them; the others are not asked to join again. Not even for the leader."""
    settings = settings_for(stack, unique_name, session_timeout_s=10.0)
    chain = MemoryChain()
    receivers = {
        name: await join(settings.model_copy(update={"instance": name}), chain)
        for name in ("worker-0", "worker-1")
    }
    await until(lambda: [len(r.partitions) for r in receivers.values()] == [2, 2], "two each")
    await feed.send(400)
    await until(lambda: folded(chain, feed), "all folded")
    for name, other in (("worker-0", "worker-1"), ("worker-1", "worker-0")):
        before, owned = receivers[other].seen["assigned"], receivers[name].partitions
        await receivers[name].stop()
        await feed.send(400)
        receivers[name] = await join(settings.model_copy(update={"instance": name}), chain)
        await until(lambda: folded(chain, feed), "what came meanwhile", timeout_s=8.0)
        assert receivers[name].partitions == owned
        assert receivers[other].seen["assigned"] == before, "the other one was asked to join again"
    await check(chain, feed)


async def test_a_static_member_that_stays_away_is_replaced(
    stack: Services, unique_name: str, feed: Feed, join: Join
) -> None:
    """And is a member again when it comes back."""
    settings, chain = settings_for(stack, unique_name), MemoryChain()
    first = await join(settings.model_copy(update={"instance": "a"}), chain)
    second = await join(settings.model_copy(update={"instance": "b"}), chain)
    await until(lambda: len(first.partitions) == len(second.partitions) == 2, "two each")
    await second.stop()
    await feed.send(400)
    await until(lambda: len(first.partitions) == 4, "all are the first one's", timeout_s=8.0)
    second = await join(settings.model_copy(update={"instance": "b"}), chain)
    await until(lambda: len(first.partitions) == len(second.partitions) == 2, "two each again")
    await feed.send(400)
    await until(lambda: folded(chain, feed), "all folded")
    await check(chain, feed)


async def test_a_group_that_did_not_know_its_topic_shares_it_out(
    stack: Services, unique_name: str, join: Join
) -> None:
    """As when its leader joined while Kafka could hardly be reached: seconds later, not the client's five minutes."""
    settings = settings_for(stack, unique_name)
    receivers = [await join(settings, MemoryChain()) for _ in range(2)]
    await until(lambda: all(receiver.seen["assigned"] for receiver in receivers), "a group of two")
    assert not any(receiver.partitions for receiver in receivers)
    await ensure_topics(settings, [TopicSpec(unique_name, 4, "partitions")])
    await until(
        lambda: [len(receiver.partitions) for receiver in receivers] == [2, 2], "two partitions each", 10.0
    )


async def test_two_workers_by_one_name_are_told_so(
    stack: Services, unique_name: str, feed: Feed, join: Join
) -> None:
    """The one that joined first ends, and the other keeps what is its own now: neither takes it back for ever."""
    settings, chain = settings_for(stack, unique_name, instance="worker-0"), MemoryChain()
    first = await join(settings, chain)
    await until(lambda: len(first.partitions) == 4, "assigned")
    second = await join(settings, chain)
    with pytest.raises(BrokerMisconfigured, match=r"worker-0.*own kafka\.instance"):
        await asyncio.wait_for(first.app.failed(), 10)
    await first.stop()
    await until(lambda: len(second.partitions) == 4, "the second owns all")
    assigned = second.seen["assigned"]
    await feed.send(400)
    await until(lambda: folded(chain, feed), "all folded")
    await asyncio.sleep(2.0)  # longer than a session
    assert second.seen["assigned"] == assigned, "it was disturbed again"
    await check(chain, feed)


@pytest.mark.slow
async def test_partitions_that_were_added_are_noticed_soon(
    stack: Services, unique_name: str, feed: Feed, join: Join
) -> None:
    """The client's own clock would let five minutes pass, in which others fold customers without their history."""
    receiver = await join(settings_for(stack, unique_name), MemoryChain())
    await until(lambda: len(receiver.partitions) == 4, "assigned")
    async with admin(settings_for(stack, unique_name)) as client:
        await client.create_partitions({unique_name: NewPartitions(6)})

    async def counted() -> bool:
        return await receiver.source.partition_count() == 6

    await until(counted, "six partitions", 40.0)
    await until(lambda: len(receiver.partitions) == 6, "they are shared out", 10.0)
