"""The transport: one Faust message a fetch, with the batches of all its partitions, and never a record skipped.

         consumer thread                               event loop
    broker ─▶ BatchThread.fetch ─▶ BatchConsumer._drain_messages ─▶ Faust's conductor ─▶ agent ─▶ on_fetched
                (stream.consumer.thread)        ▲ seek, pause, advance_committed: it is the `Source` of the pipeline

Faust hands on a record at a time, at 200 µs each, and counts acknowledgements to know what may be committed. Here a
batch states the consumer's position before and after it, and whoever folds it checks that it begins where the last
one ended. So nothing on the way has to be trusted: a batch lost anywhere shows with the next one, and is sought back.

What may be committed is what the pipeline said is done, no more. Faust's own count can pass an unfinished message (its
issue 606), counts a raising agent as done and is blocked by gaps (378, 596); its way through a rebalance waits for
agents, pauses, seeks to committed offsets and resumes (175, 532, 640). None of that runs here: a rebalance is two
notes, taken on the loop.
"""

import asyncio
from collections.abc import Callable, Collection, Set
from contextlib import suppress
from functools import partial
from typing import Any

from aiokafka import TopicPartition
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, AppT, ConsumerMessage
from mode import Service, ServiceT
from mode.threads import ServiceThread, WorkerThread
from yarl import URL

from ebbtide.stream.batch import CommittedOffset, Fetched, Hold, LogPosition, OnPartitions
from ebbtide.stream.consumer import offsets
from ebbtide.stream.consumer.commits import Offsets
from ebbtide.stream.consumer.thread import BatchThread, Listener
from ebbtide.stream.consumer.together import Together
from ebbtide.stream.errors import BrokerUnavailable, PartitionRevoked
from ebbtide.stream.kafka.settings import KafkaSettings

NEVER = CommittedOffset(-1, "")  # what Kafka holds for a partition that was never committed


class DyingThread(WorkerThread):
    """Dies with the process: a worker that failed halfway must not live on as a member of the group."""

    def __init__(self, service: ServiceThread, **kwargs: Any) -> None:
        super().__init__(service, **kwargs)
        self.daemon = True

    def run(self) -> None:
        with suppress(Exception):  # the service has been told already, and through it the app
            super().run()


class BatchConsumer(driver.Consumer):
    """The loop's side, and the worker's `Source` (see there for what each method promises): hands what was fetched to
    Faust's conductor, remembers pauses and what may be committed, commits."""

    RebalanceListener = Listener
    _thread: BatchThread

    def __init__(self, transport: "BatchTransport", *args: Any, **kwargs: Any) -> None:
        self._settings = transport.settings
        self._on_assigned, self._on_revoked = transport.on_assigned, transport.on_revoked
        self._owned: frozenset[TopicPartition] = frozenset()
        self._changes = 0  # of what is ours
        self._topic_id: asyncio.Future[str] | None = None  # asked for just now
        self._log_ranges = Together[tuple[int, int] | None](partial(self._ask_all, offsets.log_ranges))
        self._committed = Together[CommittedOffset | None](partial(self._ask_all, offsets.committed))
        # Written by the loop alone; the thread reads them, one atomic look at a time.
        self._paused: set[TopicPartition] = set()
        self._to_commit: dict[TopicPartition, CommittedOffset] = {}
        self._in_kafka: dict[TopicPartition, CommittedOffset] = {}
        super().__init__(transport, *args, **kwargs)  # makes the thread, which reads the above

    def _new_consumer_thread(self) -> BatchThread:
        return BatchThread(self, self._settings, self, loop=self.loop, beacon=self.beacon, Worker=DyingThread)

    async def _drain_messages(self, fetcher: ServiceT) -> None:
        """Run by Faust as long as the worker lives: from the thread to the conductor, a message a fetch.

        The conductor's queue is bounded; when it is full this waits, and fetches nothing meanwhile.
        """
        indexed: frozenset[TopicPartition] | None = None
        while not (self.should_stop or fetcher.should_stop):
            fetched = await self._thread.call_thread(self._thread.fetch, self._paused)
            if indexed is not self._owned:  # the conductor keeps an index of who gets which partition
                indexed = self._owned
                await self.app.topics.on_partitions_assigned(set(indexed))
            # What was revoked while it was fetched is in no index, and its worker would drop it anyway.
            fetched = [each for each in fetched if TopicPartition(each.topic, each.partition) in indexed]
            if fetched:
                await self.callback(self._message(fetched))

    def _message(self, fetched: list[Fetched]) -> ConsumerMessage:
        first = fetched[0]  # its address, for Faust; there is one agent for all
        # Faust drops what carries another generation than the app's. Ours never changes: seek ids do that work.
        return ConsumerMessage(
            first.topic,
            first.partition,
            offset=0,  # of a fetch there is no one offset, nor time
            timestamp=0.0,
            timestamp_type=0,
            headers=None,
            key=None,
            value=fetched,  # type: ignore[arg-type]  # Faust only carries it
            checksum=None,
            serialized_key_size=0,
            serialized_value_size=0,
            tp=TP(first.topic, first.partition),
            generation_id=self.app.consumer_generation_id,
        )

    # -- the group

    def note_revoked(self, partitions: frozenset[TopicPartition]) -> None:
        """Nothing is ours until the next assignment: forget all, so that nothing old leaks into what comes."""
        self._owned = frozenset()
        self._changes += 1
        self._paused.clear()
        self._to_commit.clear()
        self._in_kafka.clear()
        self._on_revoked(frozenset(tp.partition for tp in partitions))

    def note_assigned(self, partitions: frozenset[TopicPartition]) -> None:
        """These are ours, and silent until they are sought."""
        self._owned = partitions
        self._changes += 1
        self._on_assigned(frozenset(tp.partition for tp in partitions))

    # -- Source

    def _tp(self, partition: int) -> TopicPartition:
        return TopicPartition(self._settings.topic, partition)

    def assigned(self) -> frozenset[int]:
        return frozenset(tp.partition for tp in self._owned)

    def topic_partitions(self, topic: str) -> int | None:
        """As the cluster says. Faust asks the group's coordinator, which tells a follower nothing for minutes."""
        consumer = self._thread._consumer  # noqa: SLF001 -- a look from outside its thread, which changes nothing
        found = consumer.partitions_for_topic(topic) if consumer is not None else None
        return len(found) if found else None

    async def partition_count(self) -> int:
        count = self.topic_partitions(self._settings.topic)
        if count is None:
            # It was there when we started. Assigned before its first answer about the topic, the client knows none.
            raise BrokerUnavailable(
                f"Kafka has not said yet how many partitions {self._settings.topic!r} has"
            )
        return count

    async def _ask_all(self, question: Callable[..., Any], tps: Collection[TopicPartition]) -> Any:
        return await self._thread.call_thread(self._thread.ask_all, question, tps)

    async def log_range(self, partition: int) -> tuple[int, int]:
        found = await self._log_ranges.ask(self._tp(partition))
        if found is None:
            found = await self._thread.call_thread(self._thread.ask, offsets.log_range, self._tp(partition))
        return found

    async def committed(self, partition: int) -> CommittedOffset | None:
        tp = self._tp(partition)
        if tp not in self._in_kafka:
            changes = self._changes
            found = await self._committed.ask(tp)
            if changes != self._changes:
                raise PartitionRevoked(f"{tp.topic}[{tp.partition}] changed hands")
            self._to_commit[tp] = self._in_kafka[tp] = found or NEVER
        known = self._in_kafka[tp]
        return None if known is NEVER else known

    async def topic_id(self) -> str:
        # A thousand partitions that open at once are one question, not a thousand.
        if self._topic_id is None or self._topic_id.done():
            self._topic_id = asyncio.ensure_future(self._thread.call_thread(self._thread.topic_id))
        found: str = await asyncio.shield(self._topic_id)
        return found

    async def epoch_end(self, partition: int, leader_epoch: int) -> int | None:
        question = partial(offsets.epoch_end, leader_epoch=leader_epoch)
        end: int | None = await self._thread.call_thread(self._thread.ask, question, self._tp(partition))
        return end

    def positions(self) -> dict[int, LogPosition]:
        return self._thread.positions()

    def topic_end(self) -> int:
        return self._thread.topic_end()

    async def seek(self, partition: int, offset: int) -> int:  # type: ignore[override]  # Faust's own, which nobody calls here, takes a TP
        await self.committed(partition)  # it never moves back: know where it stands before anyone moves it
        seek_id: int = await self._thread.call_thread(self._thread.open, self._tp(partition), offset)
        return seek_id

    def pause(self, partition: int) -> None:
        if (tp := self._tp(partition)) in self._owned:
            self._paused.add(tp)

    def resume(self, partition: int) -> None:
        self._paused.discard(self._tp(partition))
        with suppress(RuntimeError):  # the thread has ended: there is no fetch to wake
            self._thread.thread_loop.call_soon_threadsafe(self._thread.wake)

    def advance_committed(self, partition: int, offset: int, metadata: str = "") -> None:
        known = self._to_commit.get(tp := self._tp(partition))
        if known is not None and offset >= known.offset:  # an advance, of a partition that we opened
            self._to_commit[tp] = CommittedOffset(offset, metadata)

    async def hold_commits(self, partitions: Set[int]) -> Hold:
        tps = frozenset(map(self._tp, partitions))
        held, assignment = await self._thread.call_thread(self._thread.hold, tps, self._owned)
        return Hold(frozenset(tp.partition for tp in held), assignment)

    def release_commits(self, hold: Hold, partition: int) -> None:
        with suppress(RuntimeError):  # the thread has ended: there is no commit
            loop = self._thread.thread_loop
            loop.call_soon_threadsafe(self._thread.release, self._tp(partition), hold.assignment)

    def note_committed(self, partition: int, committed: CommittedOffset) -> None:
        if (tp := self._tp(partition)) in self._in_kafka:
            self._in_kafka[tp] = self._to_commit[tp] = committed

    def forget_committed(self, partition: int) -> None:
        self._to_commit.pop(tp := self._tp(partition), None)
        self._in_kafka.pop(tp, None)

    # -- committing: Faust calls `commit` on its timer and when it stops

    def committable(self, owned: frozenset[TopicPartition]) -> Offsets:
        """What may be committed, as noted while `owned` was ours."""
        if owned is not self._owned:
            return {}
        return {tp: committed for tp, committed in self._to_commit.copy().items() if committed is not NEVER}

    def in_kafka(self) -> Offsets:
        """What Kafka has of it."""
        return self._in_kafka

    async def commit_and_end_transactions(self) -> None:
        """The last commit, on leaving. Faust would be content with one under way, which knows nothing of what was done
        since it began."""
        await self.maybe_wait_for_commit_to_finish()
        await self.commit()

    @Service.task
    async def _commit_handler(self) -> None:
        """Faust's, less a warning on its timer for every commit that an outage delays."""
        while not self.should_stop:
            await self.sleep(self.commit_interval)
            await self.commit()

    async def force_commit(self, topics: object = None, start_new_transaction: bool = True) -> bool:  # noqa: ARG002 -- Faust's signature
        """In place of Faust's acknowledgement lists, which can pass an unfinished message: commit the committed
        offsets."""
        owned = self._owned
        if self._to_commit == self._in_kafka:
            return False
        try:
            done = await self._thread.call_thread(self._thread.commit_done, owned)
        except PartitionRevoked:
            return False
        if owned is self._owned:
            # Of one that was forgotten meanwhile, Kafka may hold more.
            self._in_kafka.update({tp: at for tp, at in done.items() if tp in self._in_kafka})
        return bool(done)

    # -- what Faust would do, and must not

    async def verify_all_partitions_active(self) -> None:
        """Faust's livelock detector looks for acknowledgements, of which we have none: it would cry all day."""

    def on_buffer_full(self, tp: TopicPartition) -> None:
        """Faust would pause and resume by the length of its queue; ours waits for it, and pausing is `pause`."""

    def on_buffer_drop(self, tp: TopicPartition) -> None:
        """See `on_buffer_full`."""

    def close(self) -> None:
        """Faust would close the consumer from the wrong loop; `stop` does it in the thread."""


class BatchTransport(driver.Transport):
    """What `app.transport` is set to. Both callbacks run on the event loop and may only take note."""

    Consumer = BatchConsumer

    def __init__(
        self, settings: KafkaSettings, app: AppT, on_assigned: OnPartitions, on_revoked: OnPartitions
    ) -> None:
        super().__init__([URL(f"kafka://{host}") for host in settings.url.split(",")], app)
        self.settings, self.on_assigned, self.on_revoked = settings, on_assigned, on_revoked
