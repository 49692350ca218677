"""Second, real implementations of the stream's seams, in memory, with faults as inputs.

`LogSource` hands out pieces of a list of records by the rules of `Source`, and can lose a piece on its way as a
rebalance does. `ListSink` keeps what was produced. `Faults` says, by a seeded draw, what fails next; the faulty store
and sink fail before or after they acted, which from outside look the same.
"""

import asyncio
import copy
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.errors import StoreUnavailable
from ebbtide.featurestore.record.layout import Rows
from ebbtide.featurestore.store.commit import Commit, DueCustomers, OutboxEntry
from ebbtide.featurestore.store.memory import MemoryStore
from ebbtide.stream.batch import CommittedOffset, FetchedBatch, Hold, LogPosition, OnFetched
from ebbtide.stream.errors import BrokerUnavailable
from ebbtide.stream.outputs.message import AtLeastOnce, Message


@dataclass(frozen=True, slots=True)
class LogRecord:
    """A Kafka record."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]] = ()


IDLE_S = 0.001


class Faults:
    """Draws "does this fail?" from a seed; `rate` 0 is a world without faults, and `calm()` makes it one."""

    def __init__(self, seed: int, rate: float) -> None:
        self._rng, self._rate = np.random.default_rng(seed), rate
        self.drawn = 0

    def strike(self) -> bool:
        """Now?"""
        hit = bool(self._rng.random() < self._rate)
        self.drawn += hit
        return hit

    def some(self, n: int) -> int:
        """How many of n got through, 0 to n: lost acknowledgements may be of all that arrived."""
        return int(self._rng.integers(n + 1))

    def calm(self) -> None:
        """No faults from now on."""
        self._rate = 0.0


class FaultyStore(MemoryStore):
    """A store whose answers get lost: before it acted, or after."""

    def __init__(self, dtype: np.dtype[np.void], partitions: int, faults: Faults) -> None:
        super().__init__(dtype, partitions)
        self._faults = faults
        self.applied = 0
        self.lost_before_outbox = False
        """Lost altogether just before the next outbox is read, when its checkpoint has been read already."""
        self.due_refusals: list[Exception] = []
        """What the next questions for who is due meet."""

    def saved(self) -> "FaultyStore":
        """What a disk or a replica holds of it by now."""
        return copy.deepcopy(self)

    def fall_back(self, saved: "FaultyStore | None") -> None:
        """Lose what came after `saved`, or everything: a failover, a restart from an old file, FLUSHALL."""
        lost = MemoryStore(self.dtype, len(self._partitions))
        self._partitions = copy.deepcopy((saved or lost)._partitions)

    async def load(self, partition: int, customers: Sequence[str]) -> tuple[Rows, NDArray[np.bool_]]:
        if self._faults.strike():
            raise StoreUnavailable("lost on the way")
        return await super().load(partition, customers)

    async def due(self, partition: int, until_ms: int, customers_max: int) -> DueCustomers:
        if self.due_refusals:
            raise self.due_refusals.pop(0)
        return await super().due(partition, until_ms, customers_max)

    async def outbox(self, partition: int) -> list[OutboxEntry]:
        if self.lost_before_outbox:
            self.lost_before_outbox = False
            self.fall_back(None)
        return await super().outbox(partition)

    async def apply(self, commit: Commit) -> None:
        if self._faults.strike():
            raise StoreUnavailable("lost on the way there")
        await super().apply(commit)
        self.applied += 1
        if self._faults.strike():
            raise StoreUnavailable("lost on the way back")


@dataclass(slots=True)
class ListSink(AtLeastOnce):
    """Keeps messages by topic; may fail with some of them already out."""

    faults: Faults = field(default_factory=lambda: Faults(0, 0.0))
    sent: dict[str, list[Message]] = field(default_factory=dict)

    async def send_all(self, messages: Sequence[Message]) -> None:
        await asyncio.sleep(0)
        lost = self.faults.strike() if messages else False
        out = messages[: self.faults.some(len(messages))] if lost else messages
        for message in out:
            self.sent.setdefault(message.topic, []).append(message)
        if lost:
            raise BrokerUnavailable("no acknowledgement")

    def abandon(self) -> None:
        """It holds nothing."""


class MuteSink(ListSink):
    """Acknowledges nothing that goes to `topic`, and says nothing of it: whoever sends there waits."""

    def __init__(self, topic: str) -> None:
        super().__init__()
        self._topic = topic

    async def send_all(self, messages: Sequence[Message]) -> None:
        if any(message.topic == self._topic for message in messages):
            await asyncio.Event().wait()
        await super().send_all(messages)


class LogSource:
    """A `Source` over lists of records, one list a partition. `pump` delivers until told to stop."""

    def __init__(
        self,
        topic: str,
        logs: Sequence[Sequence[LogRecord]],
        *,
        seed: int,
        faults: Faults,
        records_max: int = 50,
    ) -> None:
        self._topic, self._logs, self._faults, self._records_max = topic, logs, faults, records_max
        self._rng = np.random.default_rng(seed)
        self._places: dict[int, tuple[int, int]] = {}
        self._paused: set[int] = set()
        self._epoch = 0
        self.marks: dict[int, CommittedOffset] = {}
        self.named, self.leader_epoch = "", -1
        """What it says of itself, as a Kafka too old to say more does; a test may set them."""
        self.epoch_ends: dict[tuple[int, int], int] = {}
        self.now_ms: Callable[[], int] = lambda: 0
        """When its logs were last fetched, wall time; by default nothing is known of that, and timers hold."""
        self.open_records: dict[int, int] = {}
        """By partition: what an open transaction holds back."""

    def assigned(self) -> frozenset[int]:
        return frozenset(range(len(self._logs)))

    async def partition_count(self) -> int:
        return len(self._logs)

    async def log_range(self, partition: int) -> tuple[int, int]:
        await asyncio.sleep(0)
        return 0, len(self._logs[partition])

    async def committed(self, partition: int) -> CommittedOffset | None:
        return self.marks.get(partition)

    async def topic_id(self) -> str:
        return self.named

    async def epoch_end(self, partition: int, leader_epoch: int) -> int | None:
        return self.epoch_ends.get((partition, leader_epoch))

    def positions(self) -> Mapping[int, LogPosition]:
        return {
            n: LogPosition(
                self._places[n][1] if n in self._places else -1,
                len(log) + self.open_records.get(n, 0),
                len(log),
                self.now_ms(),
            )
            for n, log in enumerate(self._logs)
        }

    def topic_end(self) -> int:
        return sum(map(len, self._logs))

    async def seek(self, partition: int, offset: int) -> int:
        await asyncio.sleep(0)
        self._epoch += 1
        self._places[partition] = (self._epoch, offset)
        return self._epoch

    def pause(self, partition: int) -> None:
        self._paused.add(partition)

    def resume(self, partition: int) -> None:
        self._paused.discard(partition)

    def advance_committed(self, partition: int, offset: int, metadata: str = "") -> None:
        if offset >= self.offset(partition):
            self.marks[partition] = CommittedOffset(offset, metadata)

    async def hold_commits(self, partitions: Set[int]) -> Hold:
        return Hold(frozenset(partitions), 0)

    def release_commits(self, hold: Hold, partition: int) -> None:
        """Nothing here is committed but when it is noted."""

    def note_committed(self, partition: int, committed: CommittedOffset) -> None:
        self.marks[partition] = committed

    def forget_committed(self, partition: int) -> None:
        """It is Kafka itself."""

    def offset(self, partition: int) -> int:
        """The committed offset, 0 when there is none."""
        return self.marks.get(partition, CommittedOffset(0, "")).offset

    def revoke(self) -> None:
        """Nothing is open any more."""
        self._places.clear()
        self._paused.clear()

    async def pump(self, deliver: OnFetched) -> None:
        """Deliver pieces of random size for ever; one in so many is lost after its position has moved."""
        idle = True
        while True:
            # Spinning, it would keep the interpreter from the scorer's thread: 5 ms for each of its calls.
            await asyncio.sleep(IDLE_S if idle else 0)
            fetched = []
            for partition, (seek_id, start) in list(self._places.items()):
                end = min(start + int(self._rng.integers(1, self._records_max)), len(self._logs[partition]))
                if partition in self._paused or start == end:
                    continue
                self._places[partition] = (seek_id, end)
                log = self._logs[partition]
                batch = FetchedBatch(
                    self._topic,
                    partition,
                    seek_id,
                    start,
                    end,
                    log[start:end],
                    leader_epoch=self.leader_epoch,
                )
                # The last piece arrives: a loss is noticed by the next one, or by the rebalance that caused it.
                if end == len(log) or not self._faults.strike():
                    fetched.append(batch)
            idle = not fetched
            if fetched:
                await deliver(fetched)

    def done(self) -> bool:
        """Everything is marked as applied and sent."""
        return all(
            self.marks.get(partition, CommittedOffset(0, "")).offset == len(log)
            for partition, log in enumerate(self._logs)
        )
