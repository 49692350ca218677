"""The transport: one Faust message for each fetched partition batch, and never a record skipped.

                    Faust's consumer thread                         the event loop
    broker ─▶ aiokafka's fetcher ─▶ BatchThread.fetch ─▶ BatchConsumer._drain_messages ─▶ conductor ─▶ agent
                                     places: where each open partition stands

Faust hands on a record at a time, at 200 µs each, and counts acknowledgements to know what may be committed. Here a
batch states the consumer's position before and after it, and whoever folds it checks that it begins where the last
one ended. So nothing on the way has to be trusted: a batch dropped anywhere is noticed with the next one.

Invariants, all kept in the consumer thread, which alone touches aiokafka's consumer:
- A batch begins where the last one of its place ended; a place begins with a seek, under a new epoch.
- Taking records out of the fetcher and moving the place on is one step of the thread's loop: no await between.
- A rebalance empties all places before anything else happens in it. Nothing is fetched until the next seek.
- A fetch that moved the position without records (an aborted transaction) is a batch like any other.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.consumer.fetcher import Fetcher, FetchError
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError, OffsetOutOfRangeError
from aiokafka.structs import OffsetAndMetadata
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, AppT, ConsumerMessage
from mode import ServiceT
from yarl import URL

from stream.errors import BrokerMisconfigured, BrokerUnavailable, HeadOutsideLog, PartitionRevoked
from stream.fetched import FetchedBatch, Mark, OnPartitions
from stream.kafka import KafkaSettings, ms

NEVER = Mark(-1, "")  # what Kafka holds for a partition that was never committed
POLL_S = 1.0  # how long a fetch waits for data before it reports that there is none
# A revocation commits what is marked, which saves its next owner a repetition; but the group waits for it.
LAST_COMMIT_S = 1.0


@dataclass(slots=True)
class Place:
    """Where an open partition stands: the next batch begins at `position`, under `epoch`."""

    epoch: int
    position: int


class Listener(ConsumerRebalanceListener):
    """Called by aiokafka in the consumer thread. Everything waits for it, so it waits for nothing of ours."""

    def __init__(self, thread: "BatchThread") -> None:
        self._thread = thread

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:
        last = self._thread.close_all()  # before the first await: from here on nothing is fetched
        await self._thread.commit_marks(last, LAST_COMMIT_S)

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        self._thread.own(frozenset(assigned))


class BatchThread(driver.AIOKafkaConsumerThread):
    """Owns aiokafka's consumer. Methods without a note run in the thread; the loop asks through `call_thread`."""

    consumer: "BatchConsumer"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._settings: KafkaSettings = self.transport.settings
        self._owned: frozenset[TopicPartition] = frozenset()
        self._places: dict[TopicPartition, Place] = {}
        self._epochs = itertools.count(1)
        self._waiter: asyncio.Future[None] | None = None

    def _create_consumer(self, loop: asyncio.AbstractEventLoop) -> AIOKafkaConsumer:
        s = self._settings
        return AIOKafkaConsumer(
            **s.client(),
            group_id=s.group,
            partition_assignment_strategy=[RoundRobinPartitionAssignor],
            enable_auto_commit=False,
            # Never moves the position by itself: a place that the log no longer has is an error, not a jump.
            auto_offset_reset="none",
            isolation_level="read_committed",
            fetch_max_wait_ms=ms(s.fetch_wait_max_s),
            max_partition_fetch_bytes=s.fetch_partition_bytes_max,
            session_timeout_ms=ms(s.session_timeout_s),
            heartbeat_interval_ms=ms(s.heartbeat_interval_s),
            rebalance_timeout_ms=ms(max(s.session_timeout_s, 10.0)),
            max_poll_interval_ms=ms(s.poll_interval_max_s),
        )

    async def call_thread(self, fun: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """From the loop: run `fun` in the thread.

        Not through Faust's queue, whose two workers a long fetch and a slow commit would fill: a seek would wait for
        them. A call that the end of the thread cut short says PartitionRevoked, since nothing is ours any more.
        """

        async def call() -> Any:
            result = fun(*args, **kwargs)
            return await result if isinstance(result, Awaitable) else result

        coroutine = call()
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self.thread_loop)
        except RuntimeError as error:  # the loop is closed
            coroutine.close()
            raise PartitionRevoked("the consumer has stopped") from error
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise PartitionRevoked("the consumer has stopped") from None

    # -- fetching

    async def fetch(self, paused: Set[TopicPartition]) -> list[FetchedBatch]:
        """What has arrived of open partitions that are not paused, waiting up to a second for it."""
        consumer = self._ensure_consumer()
        consumer._coordinator.check_errors()  # else a coordination error is never consumed, and the group is left
        fetcher = consumer._fetcher
        if fetcher.error_future.done():
            fetcher.error_future.result()
        batches = self._take(fetcher, paused)
        if batches:
            return batches
        with fetcher._subscriptions.fetch_context():  # a consumer that waits here is alive, paused or not
            self._waiter = waiter = fetcher._create_fetch_waiter()
            await asyncio.wait([waiter], timeout=POLL_S)
            self._waiter = None
        if waiter.done():
            waiter.result()  # a critical error of the coordinator comes this way, too
        else:
            waiter.cancel()
        return self._take(fetcher, paused)

    def _take(self, fetcher: Fetcher, paused: Set[TopicPartition]) -> list[FetchedBatch]:
        """Take fetched records and move their places on: one step, in which nothing else can happen."""
        batches: list[FetchedBatch] = []
        left = self._settings.fetch_records_max
        for tp in list(fetcher._records):
            place = self._places.get(tp)
            if place is None or tp in paused:
                continue
            held = fetcher._records[tp]
            if isinstance(held, FetchError):
                self._drop(fetcher, tp)
                self._refuse(tp, place, held._error)
                continue
            records = held.getall(left)
            if held.has_more():
                fetcher._records.move_to_end(tp)  # what was cut short goes behind the others
            else:
                self._drop(fetcher, tp)
            state = fetcher._subscriptions.subscription.assignment.state_value(tp)
            if state.position != place.position:
                start, place.position = place.position, state.position
                log_end = -1 if state.lso is None else state.lso
                batch = FetchedBatch(
                    tp.topic, tp.partition, place.epoch, start, place.position, records, log_end
                )
                batches.append(batch)
                left -= len(records)
                if left <= 0:
                    break
        return batches

    @staticmethod
    def _drop(fetcher: Fetcher, tp: TopicPartition) -> None:
        del fetcher._records[tp]
        fetcher._notify(fetcher._wait_consume_future)  # so that its next piece is asked for

    @staticmethod
    def _refuse(tp: TopicPartition, place: Place, error: Exception) -> None:
        where = f"{tp.topic}[{tp.partition}] at offset {place.position}"
        if isinstance(error, OffsetOutOfRangeError):
            raise HeadOutsideLog(
                f"{where}: Kafka no longer has it", hint="the state has to be rebuilt from what is retained"
            ) from error
        raise BrokerMisconfigured(f"{where} cannot be read: {error!r}") from error

    def wake(self) -> None:
        """End a fetch that waits: what it may take has changed."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # -- places

    def open(self, tp: TopicPartition, offset: int) -> int:
        """Seek, and let the partition be fetched. Returns the epoch."""
        consumer = self._own_consumer(tp)
        try:
            consumer.seek(tp, offset)
            consumer.resume(tp)
        except IllegalStateError as error:
            raise PartitionRevoked(f"{tp.topic}[{tp.partition}] is not ours") from error
        epoch = next(self._epochs)
        self._places[tp] = Place(epoch, offset)
        return epoch

    def close_all(self) -> dict[TopicPartition, Mark]:
        """The group is about to change: nothing is fetched, and no seek succeeds. Returns what is to commit."""
        self._places.clear()
        revoked, self._owned = self._owned, frozenset()
        self._tell(self.consumer.revoked, revoked)
        return self.consumer.uncommitted()

    def own(self, assigned: frozenset[TopicPartition]) -> None:
        """These are ours now. aiokafka pauses them, so that it fetches nothing before `open` said from where."""
        self._ensure_consumer().pause(*assigned)
        self._owned = assigned
        self._tell(self.consumer.assigned, assigned)

    def _tell(
        self, note: Callable[[frozenset[TopicPartition]], None], partitions: frozenset[TopicPartition]
    ) -> None:
        # Not awaited: however busy the loop is, the group does not wait for it. Order is kept.
        self.parent_loop.call_soon_threadsafe(note, partitions)

    def _own_consumer(self, tp: TopicPartition) -> AIOKafkaConsumer:
        if tp not in self._owned:
            raise PartitionRevoked(f"{tp.topic}[{tp.partition}] is not ours")
        return self._ensure_consumer()

    # -- what the broker knows

    async def log_range(self, tp: TopicPartition) -> tuple[int, int]:
        consumer = self._own_consumer(tp)
        begin, end = await self._ask(
            asyncio.gather(consumer.beginning_offsets([tp]), consumer.end_offsets([tp]))
        )
        return begin[tp], end[tp]

    async def committed(self, tp: TopicPartition) -> Mark | None:
        coordinator = self._own_consumer(tp)._coordinator
        found = (await self._ask(coordinator.fetch_committed_offsets([tp]))).get(tp)
        return None if found is None else Mark(found.offset, found.metadata)

    async def commit_marks(self, marks: Mapping[TopicPartition, Mark], timeout_s: float) -> bool:
        """True when Kafka has them. False when it may not: the group moved on, or the answer took too long."""
        try:
            async with asyncio.timeout(timeout_s):
                offsets = {tp: OffsetAndMetadata(*mark) for tp, mark in marks.items()}
                await self._ensure_consumer().commit(offsets)
        except (CommitFailedError, IllegalStateError):
            return False  # a rebalance is under way: whoever owns the partition next commits it
        except TimeoutError:
            self.log.warning("Kafka did not take a commit within %s s", timeout_s)
            return False
        except KafkaError as error:
            raise BrokerMisconfigured(f"Kafka refuses a commit: {error!r}") from error
        return True

    async def _ask(self, question: Awaitable[Any]) -> Any:
        try:
            async with asyncio.timeout(self._settings.request_timeout_s):
                return await question
        except (KafkaError, TimeoutError) as error:
            raise BrokerUnavailable(f"Kafka at {self._settings.url} did not answer: {error!r}") from error


class BatchConsumer(driver.Consumer):
    """The loop's side: hands batches to Faust's conductor, remembers marks and pauses, commits."""

    RebalanceListener = Listener
    _thread: BatchThread

    def __init__(self, transport: "BatchTransport", *args: Any, **kwargs: Any) -> None:
        super().__init__(transport, *args, **kwargs)
        self._settings = transport.settings
        self._on_assigned, self._on_revoked = transport.on_assigned, transport.on_revoked
        self.owned: frozenset[TopicPartition] = frozenset()
        self.changes = 0  # of what is ours
        # Written by the loop alone; the thread reads them, one atomic look at a time.
        self._paused: set[TopicPartition] = set()
        self._marks: dict[TopicPartition, Mark] = {}
        self._in_kafka: dict[TopicPartition, Mark] = {}

    def _new_consumer_thread(self) -> BatchThread:
        return BatchThread(self, loop=self.loop, beacon=self.beacon)

    async def _drain_messages(self, fetcher: ServiceT) -> None:
        """Run by Faust as long as the worker lives: from the thread to the conductor, a message a batch.

        The conductor's queue is bounded; when it is full this waits, and fetches nothing meanwhile.
        """
        size, indexed = self._settings.records_per_message, -1
        while not (self.should_stop or fetcher.should_stop):
            batches = await self._thread.call_thread(self._thread.fetch, self._paused)
            if indexed != self.changes:  # the conductor keeps an index of who gets which partition
                indexed = self.changes
                await self.app.topics.on_partitions_assigned(set(self.owned))
            for batch in batches:
                for piece in batch.pieces(size) if size else (batch,):
                    await self.callback(self._message(piece))

    def _message(self, batch: FetchedBatch) -> ConsumerMessage:
        # Faust drops what carries another generation than the app's. Ours never changes: epochs do that work.
        return ConsumerMessage(
            batch.topic,
            batch.partition,
            offset=batch.start,
            timestamp=0.0,  # of a batch there is no one time
            timestamp_type=0,
            headers=None,
            key=None,
            value=batch,
            checksum=None,
            serialized_key_size=0,
            serialized_value_size=0,
            tp=TP(batch.topic, batch.partition),
            generation_id=self.app.consumer_generation_id,
        )

    # -- the group

    def revoked(self, partitions: frozenset[TopicPartition]) -> None:
        """Nothing is ours until the next assignment: forget all, so that nothing old leaks into what comes."""
        self.owned = frozenset()
        self.changes += 1
        self._paused.clear()
        self._marks.clear()
        self._in_kafka.clear()
        self._on_revoked(frozenset(tp.partition for tp in partitions))

    def assigned(self, partitions: frozenset[TopicPartition]) -> None:
        """These are ours, and silent until they are sought."""
        self.owned = partitions
        self.changes += 1
        self._on_assigned(frozenset(tp.partition for tp in partitions))

    # -- what the pipeline asks for (stream.app.FaustSource)

    async def seek(self, tp: TopicPartition, offset: int) -> int:
        """Open `tp` at `offset`; returns the epoch."""
        await self.committed(tp)  # the mark never moves back: know where it stands before anyone moves it
        epoch: int = await self._thread.call_thread(self._thread.open, tp, offset)
        return epoch

    async def committed(self, tp: TopicPartition) -> Mark | None:
        """The group's mark, as Kafka holds it."""
        if tp not in self._in_kafka:
            changes = self.changes
            found = await self._thread.call_thread(self._thread.committed, tp)
            if changes != self.changes:
                raise PartitionRevoked(f"{tp.topic}[{tp.partition}] changed hands")
            self._marks[tp] = self._in_kafka[tp] = found or NEVER
        found = self._in_kafka[tp]
        return None if found is NEVER else found

    async def log_range(self, tp: TopicPartition) -> tuple[int, int]:
        """First retained offset, and the one after the last that may be read."""
        begin, end = await self._thread.call_thread(self._thread.log_range, tp)
        return begin, end

    def pause(self, tp: TopicPartition) -> None:
        """Fetch nothing more of it; what is on its way arrives."""
        if tp in self.owned:
            self._paused.add(tp)

    def resume(self, tp: TopicPartition) -> None:
        """Undo `pause`, at once."""
        self._paused.discard(tp)
        self._thread.thread_loop.call_soon_threadsafe(self._thread.wake)

    def mark(self, tp: TopicPartition, mark: Mark) -> None:
        """Let the committed offset advance to `mark`, if it is an advance; and only of what we opened."""
        known = self._marks.get(tp)
        if known is not None and mark.offset >= known.offset:
            self._marks[tp] = mark

    # -- committing: Faust calls `commit` on its timer and when it stops

    def uncommitted(self) -> dict[TopicPartition, Mark]:
        """Marks that Kafka does not have yet."""
        in_kafka = self._in_kafka
        return {tp: mark for tp, mark in self._marks.copy().items() if mark != in_kafka.get(tp)}

    async def force_commit(self, topics: object = None, start_new_transaction: bool = True) -> bool:  # noqa: ARG002 -- Faust's signature
        """In place of Faust's acknowledgement lists, which can pass an unfinished message: commit the marks."""
        marks = self.uncommitted()
        timeout_s = LAST_COMMIT_S if self.should_stop else self._settings.request_timeout_s
        if not marks or not await self._thread.call_thread(self._thread.commit_marks, marks, timeout_s):
            return False
        self._in_kafka.update((tp, mark) for tp, mark in marks.items() if tp in self._marks)
        return True

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
