"""Faust's consumer thread, ours: it alone touches aiokafka's consumer, and says for each fetch from where to where.

aiokafka keeps a *position* for each partition and moves it when records are taken out of its fetcher. Everything that
can go wrong with a batch transport goes wrong between those two facts: a fetch that is dropped after its position has
moved (a rebalance, a stopped loop), a position that moved without records (an aborted transaction), one that was reset
behind our back. So here each open partition has a *place*, which says where the next batch begins, whatever aiokafka
does; and the invariants are

- A batch begins where the last one of its place ended; a place begins with a seek, under a new epoch.
- Taking records out of the fetcher and moving the place on is one step of the thread's loop: no await between.
- A rebalance empties all places before anything else happens in it, so nothing is fetched until the next seek.
- The position is never reset for us: a place that the log no longer has is a fault of its partition.
- A fault ends its place and pauses its partition, so that nothing is fetched again and again; the others go on.

It refuses to know what becomes of a batch. Most of what it needs of aiokafka is private there, as it is to Faust's own
driver, and pinned by `tests/integration/test_transport.py` and `tests/unit/test_private_names.py`.
"""

# ruff: noqa: SLF001 -- positions and fetched pieces are private to aiokafka; Faust's driver reaches for the same names

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Collection, Mapping, Set
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.consumer.fetcher import Fetcher, FetchError
from aiokafka.errors import IllegalStateError, KafkaError, OffsetOutOfRangeError
from faust.transport.drivers.aiokafka import AIOKafkaConsumerThread

from ebbtide.featurestore.store.checkpoint import REBUILD
from ebbtide.stream.batch import CommittedOffset, Fetched, FetchedBatch, FetchFault, LogPosition
from ebbtide.stream.consumer import offsets
from ebbtide.stream.consumer.commits import Commits, Offsets
from ebbtide.stream.consumer.membership import Membership, group_consumer
from ebbtide.stream.consumer.watch import TopicWatch
from ebbtide.stream.errors import (
    BrokerMisconfigured,
    CheckpointOutsideLog,
    PartitionFault,
    PartitionRevoked,
    UnreadableBatch,
)
from ebbtide.stream.kafka.diagnose import require_metadata, unreachable
from ebbtide.stream.kafka.errors import failure
from ebbtide.stream.kafka.records import RecordBatches, read_safely
from ebbtide.stream.kafka.settings import KafkaSettings, ms

FETCH_SHARE_BYTES_MIN = 16 << 10  # less of a partition at a time costs more requests than it saves memory
PACE_S = 0.004
"""Of a trickle, records are handed on at most so often: a fetch costs nearly the same for one record as for ten. The
first after a pause goes at once, and a fetch of PACED_RECORDS is no trickle."""
PACED_RECORDS = 256
POLL_S = 1.0  # how long a fetch waits for data before it reports that there is none
STOP_S = 5.0


Answer = TypeVar("Answer")


class Owner(Protocol):
    """The event loop's side of it (stream.consumer.transport). All of it only takes note, or tells what it noted."""

    def note_revoked(self, partitions: frozenset[TopicPartition]) -> None: ...  # on the loop
    def note_assigned(self, partitions: frozenset[TopicPartition]) -> None: ...  # on the loop
    def committable(self, owned: frozenset[TopicPartition]) -> Offsets: ...  # in the thread
    def in_kafka(self) -> Offsets: ...  # in the thread


@dataclass(slots=True)
class FetchPosition:
    """Where an open partition stands: the next batch begins at `position`, under `seek_id`."""

    seek_id: int
    position: int
    leader_epoch: int = -1  # of the last batch passed


class Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka publishes no types
    """Called by aiokafka in the consumer thread. Everything waits for it, so it waits for nothing of ours."""

    def __init__(self, thread: "BatchThread") -> None:
        self._thread = thread

    async def on_partitions_revoked(self, revoked: set[TopicPartition]) -> None:  # noqa: ARG002 -- it is all we own
        last = self._thread.close_all()  # before the first await: from here on nothing is fetched
        if last:
            await self._thread.commit_last(last)
        await self._thread.keep_membership()

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        self._thread.own(frozenset(assigned))


class BatchThread(AIOKafkaConsumerThread):
    """Owns aiokafka's consumer. Methods without a note run in the thread; the loop asks through `call_thread`."""

    def __init__(self, consumer: Any, settings: KafkaSettings, owner: Owner, **kwargs: Any) -> None:
        self._settings, self._owner = settings, owner
        super().__init__(consumer, **kwargs)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._owned: frozenset[TopicPartition] = frozenset()
        self._places: dict[TopicPartition, FetchPosition] = {}
        self._seek_ids = itertools.count(1)
        self._waiter: asyncio.Future[None] | None = None
        # Of what is ours now: of an assignment that the loop has not heard of yet, it has noted nothing.
        self._commits = Commits(
            self._settings, lambda: self._owner.committable(self._owned), self._owner.in_kafka
        )
        # By what was just taken: the epoch of the leader before.
        self._new_leaders: dict[TopicPartition, int] = {}
        self._watch = TopicWatch(self._settings, self.wake)
        self._membership = Membership(self._settings)
        self._next_s = 0.0  # not earlier are records handed on, by the thread's loop
        self._asked_ms: Mapping[TopicPartition, int] = {}  # the fetch whose answer came last, wall time

    def _create_consumer(self, loop: asyncio.AbstractEventLoop) -> AIOKafkaConsumer:  # noqa: ARG002 -- it runs on this one
        return group_consumer(self._settings)

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

    async def fetch(self, paused: Set[TopicPartition]) -> list[Fetched]:
        """What has arrived of open partitions that are not paused, waiting up to a second for it."""
        consumer = self._ensure_consumer()
        fetcher, coordinator = consumer._fetcher, consumer._coordinator
        self._membership.look(consumer)
        try:
            if fetcher.error_future.done():
                fetcher.error_future.result()
            coordinator.check_errors()
            await asyncio.sleep(max(self._next_s - self.thread_loop.time(), 0.0))
            fetched = self._take(fetcher, paused)
            if not fetched:
                await self._wait_for_data(fetcher)
                fetched = self._take(fetcher, paused)
            fetched = [await self._same_log(each) for each in fetched] if self._new_leaders else fetched
            records = sum(len(each.records) for each in fetched if isinstance(each, FetchedBatch))
            self._next_s = self.thread_loop.time() + PACE_S if records < PACED_RECORDS else 0.0
        except KafkaError as error:
            problem = await self._membership.check(consumer) or failure(
                self._settings, "our membership of the group", error
            )
            over = fetcher.error_future.done() or coordinator._coordination_task.done()
            if over or isinstance(problem, BrokerMisconfigured):
                raise problem from error
            # aiokafka leaves the group for good here, unless the error is taken from it and it is told to join again.
            self.log.warning("joining the group again after %r", error)
            coordinator.request_rejoin()
            await asyncio.sleep(POLL_S)
            return []
        return fetched

    async def _wait_for_data(self, fetcher: Fetcher) -> None:
        with fetcher._subscriptions.fetch_context():  # a consumer that waits here is alive, paused or not
            self._waiter = waiter = fetcher._create_fetch_waiter()
            await asyncio.wait([waiter], timeout=POLL_S)
            self._waiter = None
        if not waiter.cancel():
            waiter.result()  # a critical error of the coordinator comes this way, too

    def _take(self, fetcher: Fetcher, paused: Set[TopicPartition]) -> list[Fetched]:
        """Take fetched records and move their places on: one step, in which nothing else can happen."""
        fetched: list[Fetched] = []
        if self._watch.is_another:
            another_log = self._watch.another_log
            return [self._fault(tp, place, another_log(tp)) for tp, place in list(self._places.items())]
        left = self._settings.fetch_records_max
        for tp in list(fetcher._records):
            place = self._places.get(tp)
            if place is None or tp in paused:
                continue
            held = fetcher._records[tp]
            if isinstance(held, FetchError):
                self._drop(fetcher, tp)
                fetched.append(self._fault(tp, place, self._refusal(tp, place, held._error)))
                continue
            reader: RecordBatches | None = held._partition_records
            try:
                records = held.getall(left)
            except UnreadableBatch as error:
                self._drop(fetcher, tp)
                fetched.append(self._fault(tp, place, error))
                continue
            if held.has_more():
                fetcher._records.move_to_end(tp)  # what was cut short goes behind the others
            else:
                self._drop(fetcher, tp)
            state = held._assignment.state_value(tp)
            if state.position != place.position:
                start, place.position = place.position, state.position
                if reader is not None:
                    if reader.leader_epoch > place.leader_epoch >= 0:
                        self._new_leaders[tp] = place.leader_epoch
                    place.leader_epoch = reader.leader_epoch
                log_end = -1 if state.lso is None else state.lso
                fetched.append(
                    FetchedBatch(
                        tp.topic, tp.partition, place.seek_id, start, place.position, records, log_end,
                        place.leader_epoch,
                    )
                )  # fmt: skip
                left -= len(records)
                if left <= 0:
                    break
        return fetched

    async def _same_log(self, fetched: Fetched) -> Fetched:
        """The batch, or a fault if the log lost the records before it: the leader that it comes from may have been
        elected without them, and its log have grown past that since (KIP-320)."""
        tp = TopicPartition(fetched.topic, fetched.partition)
        last = self._new_leaders.pop(tp, None)
        if last is None or isinstance(fetched, FetchFault):
            return fetched
        error = await offsets.ask_tail(self._settings, self._ensure_consumer(), tp, last, fetched.start)
        if error is None:
            return fetched
        if (place := self._places.get(tp)) is not None and place.seek_id == fetched.seek_id:
            del self._places[tp]  # else it was sought anew while we asked
        return FetchFault(tp.topic, tp.partition, fetched.seek_id, fetched.start, error)

    @staticmethod
    def _drop(fetcher: Fetcher, tp: TopicPartition) -> None:
        del fetcher._records[tp]
        fetcher._notify(fetcher._wait_consume_future)  # so that its next piece is asked for

    def _fault(self, tp: TopicPartition, place: FetchPosition, error: PartitionFault) -> FetchFault:
        """Nothing more is fetched of it, until it is sought: what cannot be read would be fetched for ever."""
        del self._places[tp]
        self._ensure_consumer().pause(tp)
        return FetchFault(tp.topic, tp.partition, place.seek_id, place.position, error)

    def _refusal(self, tp: TopicPartition, place: FetchPosition, error: Exception) -> PartitionFault:
        """The partition's fault; raises what is about all of them, which is a right that we lack."""
        where = f"{tp.topic}[{tp.partition}] at offset {place.position}"
        if isinstance(error, OffsetOutOfRangeError):
            fault: PartitionFault = CheckpointOutsideLog(
                f"{where}: the log no longer has it: retention passed it, or the log's end was lost",
                hint=f"what is missing cannot be folded: {REBUILD}",
            )
        else:
            problem = failure(self._settings, f"to read {where}", error)
            if isinstance(problem, BrokerMisconfigured):
                raise problem from error
            fault = UnreadableBatch(f"{where} cannot be read: {error!r}")
        fault.__cause__ = error
        return fault

    def wake(self) -> None:
        """End a fetch that waits: what it may take has changed."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # -- places

    def open(self, tp: TopicPartition, offset: int) -> int:
        """Seek, and let the partition be fetched. Returns the seek id."""
        consumer = self._own_consumer(tp)
        try:
            consumer.seek(tp, offset)
            consumer.resume(tp)
        except IllegalStateError as error:
            raise PartitionRevoked(f"{tp.topic}[{tp.partition}] is not ours") from error
        seek_id = next(self._seek_ids)
        self._places[tp] = FetchPosition(seek_id, offset)
        return seek_id

    def close_all(self) -> Mapping[TopicPartition, CommittedOffset]:
        """The group is about to change: nothing is fetched, and no seek succeeds. Returns what is to commit."""
        self._places.clear()
        last = self._commits.cut_short()
        revoked, self._owned = self._owned, frozenset()
        # Not awaited: however busy the loop is, the group does not wait for it. The order of notes is kept.
        self.parent_loop.call_soon_threadsafe(self._owner.note_revoked, revoked)
        return last

    async def commit_last(self, committed: Mapping[TopicPartition, CommittedOffset]) -> None:
        await self._commits.commit_last(self._ensure_consumer(), committed)

    async def keep_membership(self) -> None:
        """Before the next generation is joined."""
        await self._membership.keep(self._ensure_consumer())

    def own(self, assigned: frozenset[TopicPartition]) -> None:
        """These are ours now. aiokafka pauses them, so that it fetches nothing before `open` said from where."""
        consumer = self._ensure_consumer()
        consumer.pause(*assigned)
        member = self._membership.joined(consumer)
        self._owned = assigned
        self._commits.begin_anew(member)
        self._share_fetch_bytes()
        self._watch.begin(consumer)
        self.parent_loop.call_soon_threadsafe(self._owner.note_assigned, assigned)

    def _own_consumer(self, tp: TopicPartition) -> AIOKafkaConsumer:
        if tp not in self._owned:
            raise PartitionRevoked(f"{tp.topic}[{tp.partition}] is not ours")
        return self._ensure_consumer()

    # -- what the broker knows

    async def ask(self, question: Callable[..., Awaitable[Answer]], tp: TopicPartition) -> Answer:
        """One of `stream.consumer.offsets` about a partition of ours."""
        return await question(self._settings, self._own_consumer(tp), tp)

    async def ask_all(
        self, question: Callable[..., Awaitable[Answer]], tps: Collection[TopicPartition]
    ) -> Answer:
        """One about several; what is not ours is left out."""
        ours = [tp for tp in tps if tp in self._owned]
        return await question(self._settings, self._ensure_consumer(), ours)

    def _share_fetch_bytes(self) -> None:
        """The fetcher keeps an answer a partition until it is taken: their sum is bounded, whatever their number.

        A broker sends the first batch also when it is larger, so that nothing is stuck (KIP-74).
        """
        settings, count = self._settings, max(len(self._owned), 1)
        share = max(settings.fetch_bytes_max // count, FETCH_SHARE_BYTES_MIN)
        fetcher = self._ensure_consumer()._fetcher
        fetcher._max_partition_fetch_bytes = min(settings.fetch_partition_bytes_max, share)

    async def topic_id(self) -> str:
        return await self._watch.topic_id(self._ensure_consumer())

    def positions(self) -> dict[int, LogPosition]:
        """Of what is ours. Looked at from the loop: it changes nothing here, and waits for nothing."""
        consumer, found = self._consumer, dict[int, LogPosition]()
        subscription = consumer._subscription.subscription if consumer is not None else None
        assignment = subscription.assignment if subscription is not None else None
        for tp in self._owned:
            # When an end was seen, before the end itself: one that is newer than its time does no harm.
            place, state, seen_ms = self._places.get(tp), None, self._watch.seen_ms(tp)
            if assignment is not None and tp in assignment.tps:
                state = assignment.state_value(tp)
                # An answer may lie unread for as long as this process, or its machine, stands still.
                held_ms = ms(self._settings.fetch_wait_max_s)
                seen_ms = max(seen_ms, min(state.timestamp or 0, self._asked_ms.get(tp, 0) + held_ms))
            ends = [(-1, -1), self._watch.ends(tp)]
            if state is not None and state.highwater is not None:
                ends[0] = (state.highwater, -1 if state.lso is None else state.lso)
            high_watermark, last_stable = map(max, *ends)
            position = -1 if place is None else place.position
            found[tp.partition] = LogPosition(position, high_watermark, last_stable, seen_ms)
        return found

    def topic_end(self) -> int:
        """As `Source.topic_end`; looked at from the loop."""
        return self._watch.topic_end

    async def commit_done(self, owned: frozenset[TopicPartition]) -> Mapping[TopicPartition, CommittedOffset]:
        """Commit what may be, as noted by now while `owned` was ours. Returns what Kafka has; what it may not have
        stays to be committed.

        A commit does not outlive its assignment: delayed past two rebalances, it could take a committed offset back.
        """
        if owned is not self._owned:
            return {}
        return await self._commits.commit(self._ensure_consumer())

    async def hold(
        self, tps: frozenset[TopicPartition], owned: frozenset[TopicPartition]
    ) -> tuple[frozenset[TopicPartition], int]:
        """As `Source.hold_commits`, while `owned` is ours."""
        mine = tps & owned if owned is self._owned else frozenset()
        return mine, await self._commits.hold(self._ensure_consumer(), mine)

    def release(self, tp: TopicPartition, assignment: int) -> None:
        """As `Source.release_commits`."""
        self._commits.release(tp, assignment)

    # -- start and stop

    async def on_start(self) -> None:
        try:
            await super().on_start()
            require_metadata(self._ensure_consumer()._client)
            # Nothing is subscribed yet, so nothing has been fetched.
            answers = read_safely(
                self._ensure_consumer(), self._settings.fetch_uncompressed_bytes_max, bare=True
            )
            self._asked_ms = answers.asked_ms
        except (KafkaError, OSError) as error:
            raise await unreachable(self._settings, error) from error

    async def on_thread_stop(self) -> None:
        """Leave the group, if that goes quickly: a worker must end without a broker, too."""
        self._watch.end()
        try:
            async with asyncio.timeout(STOP_S):
                await super().on_thread_stop()
        except (KafkaError, TimeoutError, asyncio.CancelledError) as error:
            # aiokafka's fetcher lets the cancellation of its own pending fetch out; Faust waits a minute for us then.
            self.log.warning("the consumer did not close properly: %r", error)
            await self._ensure_consumer()._client.close()

    def on_crash(self, msg: str, *fmt: Any, **kwargs: Any) -> None:
        """Faust prints a traceback. The error is raised where the worker was started, or in `failed`."""
