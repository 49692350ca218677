"""What the transport hands over: one partition, one contiguous piece of its log.

    positions     start                                  end
    log         ····|r r · r r r × × · r r|····
                     └── records ────────┘   gaps (·) are compaction and transaction markers, × is aborted

`start` and `end` are the consumer's *positions* before and after the fetch, not offsets of records: gaps
belong to the piece they lie in, and a piece may hold no record at all (an aborted transaction longer than a
fetch). So `end` of one batch equals `start` of the next one, always, or something was lost; whoever folds
checks that and nothing else. `seek_id` numbers the seeks: a batch of an older one is a left-over of a position that
has been given up. What cannot be read arrives as a `FetchFault` in the place of a batch, so that it stops its own
partition and no other.

This module knows the shape of that promise and refuses to know who keeps it: no Faust, no Kafka client. The
pipeline depends on `Source`; `stream/consumer/transport.py` is the real one, and a list of batches in a test is
another.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from ebbtide.featurestore.store.checkpoint import REBUILD
from ebbtide.stream.errors import AnotherLog, BrokerUnavailable, PartitionFault

ADOPT = f"if it holds the same events on purpose (a restore, a mirror), `ebbtide adopt`; else {REBUILD}"


class Record(Protocol):
    """One Kafka record, as aiokafka's `ConsumerRecord` has it."""

    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...  # ms UTC, Kafka's own (create or append time, by the topic's setting)
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...  # None is a tombstone
    @property
    def headers(self) -> Sequence[tuple[str, bytes]]: ...


def first_timestamp(records: Sequence[Record]) -> int | None:
    """The Kafka timestamp of the first record that has one: -1 is none, and no age follows from it."""
    return next((record.timestamp for record in records if record.timestamp >= 0), None)


@dataclass(frozen=True, slots=True)
class FetchedBatch:
    """A contiguous piece of one partition: every committed record with `start` <= offset < `end`, in offset
    order."""

    topic: str
    partition: int
    seek_id: int  # of the seek that this piece descends from
    start: int
    end: int  # > start
    records: Sequence[Record]  # may be empty
    log_end: int = -1  # where the log ended when this was fetched: end < log_end means we lag; -1 is unknown
    leader_epoch: int = -1
    """Of the last batch passed on the way to `end`, control and aborted ones included: which leader wrote it. -1 is
    unknown (a log older than Kafka 0.11)."""

    def follows(self, seek_id: int, position: int) -> bool:
        """True when this is the piece that begins at `position` under `seek_id`: the continuity rule, whole."""
        return self.seek_id == seek_id and self.start == position

    def cut_at(self, *offsets: int) -> Iterator["FetchedBatch"]:
        """The same piece of the log, cut at those of the offsets that lie within it."""
        batch = self
        for offset in sorted(offsets):
            if batch.start < offset < batch.end:
                n = sum(record.offset < offset for record in batch.records)
                yield replace(batch, end=offset, records=batch.records[:n])
                batch = replace(batch, start=offset, records=batch.records[n:])
        yield batch

    def joined(self, following: Sequence["FetchedBatch"]) -> "FetchedBatch":
        """This piece and those that follow it, each one the one before: a longer piece, still contiguous."""
        if not following:
            return self
        records = [record for piece in (self, *following) for record in piece.records]
        last = following[-1]
        return replace(
            self, end=last.end, records=records, log_end=last.log_end, leader_epoch=last.leader_epoch
        )

    def cut_before_tombstones(self) -> Iterator["FetchedBatch"]:
        """The same piece of the log, cut before every tombstone whose customer has records in it already.

        So what was decided of a customer is sent before the word that forgets them, however the log was fetched.
        Customers are told apart by their keys' first part, which a composite one may be forgotten by: where customers
        are none, it is cut once more than it needs be, at most.
        """
        start, first, seen = self.start, 0, set[bytes]()
        if any(record.value is None for record in self.records):
            for i, record in enumerate(self.records):
                who = (record.key or b"").partition(b"/")[0]
                if record.value is None and who in seen:
                    yield replace(self, start=start, end=record.offset, records=self.records[first:i])
                    start, first = record.offset, i
                    seen.clear()
                seen.add(who)
        yield replace(self, start=start, records=self.records[first:]) if first else self


@dataclass(frozen=True, slots=True)
class FetchFault:
    """In the place of a batch: the partition cannot be read at `position`. Nothing more comes until it is sought."""

    topic: str
    partition: int
    seek_id: int
    position: int
    # Says what, where and what to do, of this partition only; BrokerUnavailable: that could not be asked.
    error: PartitionFault | BrokerUnavailable


Fetched = FetchedBatch | FetchFault
OnFetched = Callable[[Sequence[Fetched]], Awaitable[None]]
"""Called on the event loop with what one fetch brought, of as many partitions as it did. It takes it in and returns."""


class CommittedOffset(NamedTuple):
    """How far a partition's effects have been applied *and* sent: Kafka's committed offset and its metadata."""

    offset: int
    metadata: str


class Hold(NamedTuple):
    """Partitions whose committed offsets move in transactions, and the assignment, by number, in which they do."""

    partitions: frozenset[int]
    assignment: int


OnPartitions = Callable[[frozenset[int]], None]
"""Called with partition numbers on the event loop. It may only take note: whatever waits belongs in a task."""


class LogPosition(NamedTuple):
    """Where the fetch of a partition stands in its log. Offsets; -1 is unknown."""

    position: int  # the next record to fetch; -1 while it is not open
    high_watermark: int  # where the log ends, open transactions included
    last_stable: int  # where what may be read ends: below the high watermark while a transaction is open
    seen_ms: int = 0  # wall time of the last answer to a fetch of it, ms UTC; 0 is none


def lost_tail(partition: int, read: int, leader_epoch: int, epoch_end: int | None) -> AnotherLog | None:
    """What is wrong if a log no longer has what was read of it up to `read` from the leader of `leader_epoch` (an
    unclean election, a power cut); None if nothing is. epoch_end: as `Source.epoch_end` has it."""
    if epoch_end is None or epoch_end >= read:
        return None
    return AnotherLog(
        f"partition {partition} was read up to offset {read} from leader epoch {leader_epoch}, but the log of that"
        f" epoch ends at {max(epoch_end, 0)}: its tail was lost",
        hint=ADOPT,
    )


class Source(Protocol):
    """One input topic, of which some partitions are ours for a while.

    A partition is silent until `seek` opens it, and again after it was revoked or came to a `FetchFault`. Every
    coroutine raises `PartitionRevoked` when the partition is not ours (any more), `BrokerUnavailable` when Kafka does
    not answer.
    """

    def assigned(self) -> frozenset[int]:
        """The partitions that are ours now."""
        ...

    async def partition_count(self) -> int:
        """How many partitions the topic has."""
        ...

    async def log_range(self, partition: int) -> tuple[int, int]:
        """First retained offset, and the offset the next record will get."""
        ...

    async def committed(self, partition: int) -> CommittedOffset | None:
        """The group's committed offset as Kafka holds it; None if there never was one."""
        ...

    async def topic_id(self) -> str:
        """Which topic of this name it is: another one when it was deleted and made again. "" when Kafka cannot say."""
        ...

    async def epoch_end(self, partition: int, leader_epoch: int) -> int | None:
        """Where the log of `leader_epoch` ends: at or above every offset that was fetched of it, or the log has lost
        its tail since. -1 when this log has never had such an epoch; None when Kafka cannot say."""
        ...

    def positions(self) -> Mapping[int, LogPosition]:
        """Of each partition of ours, as last seen, without waiting; a log's end is a few seconds old at most."""
        ...

    def topic_end(self) -> int:
        """The sum of the high watermarks of *all* partitions of the topic, a few seconds old at most; -1 when it is not
        known."""
        ...

    async def seek(self, partition: int, offset: int) -> int:
        """Open the partition at `offset`: returns the seek id that its next batches carry, beginning at `offset`.

        Batches of earlier seeks may still arrive and are to be refused. Does not undo `pause`.
        """
        ...

    def pause(self, partition: int) -> None:
        """Fetch nothing more of it until `resume`. A batch or two on their way may still arrive, and count."""
        ...

    def resume(self, partition: int) -> None:
        """Undo `pause`."""
        ...

    def advance_committed(self, partition: int, offset: int, metadata: str = "") -> None:
        """All before `offset` has been applied and sent: let the committed offset advance to it, soon, never back."""
        ...

    async def hold_commits(self, partitions: Set[int]) -> Hold:
        """No ordinary commit of these is under way, and none begins, until `release_commits`: their committed offsets
        move in transactions meanwhile, and what Kafka wrote last would stand. Of those that are ours. Raises
        BrokerUnavailable when it is not known whether a commit is still under way."""
        ...

    def release_commits(self, hold: Hold, partition: int) -> None:
        """End a hold of one of its partitions."""
        ...

    def note_committed(self, partition: int, committed: CommittedOffset) -> None:
        """Kafka holds this, by a transaction."""
        ...

    def forget_committed(self, partition: int) -> None:
        """It is not known what Kafka holds: ask, the next time; and commit nothing before that."""
        ...
