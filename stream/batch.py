"""What the transport hands over: one partition, one contiguous piece of its log.

    positions     start                                  end
    log         ····|r r · r r r × × · r r|····
                     └── records ────────┘   gaps (·) are compaction and transaction markers, × is aborted

`start` and `end` are the consumer's *positions* before and after the fetch, not offsets of records: gaps
belong to the piece they lie in, and a piece may hold no record at all (an aborted transaction longer than a
fetch). So `end` of one batch equals `start` of the next one, always, or something was lost; whoever folds
checks that and nothing else. `epoch` numbers the seeks: a batch of an older epoch is a left-over of a
position that has been given up.

This module knows the shape of that promise and refuses to know who keeps it: no Faust, no Kafka client. The
pipeline depends on `Source`; `stream/consumer/transport.py` is the real one, and a list of batches in a test is
another.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol


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

    def follows(self, seek_id: int, position: int) -> bool:
        """True when this is the piece that begins at `position` under `epoch`: the continuity rule, whole."""
        return self.seek_id == seek_id and self.start == position

    def pieces(self, records_max: int) -> Iterator["FetchedBatch"]:
        """The same piece of the log, cut so that none holds more than `records_max` records. Still contiguous."""
        start = self.start
        for cut in range(records_max, len(self.records), records_max):
            end = self.records[cut - 1].offset + 1
            yield replace(self, start=start, end=end, records=self.records[cut - records_max : cut])
            start = end
        done = (len(self.records) - 1) // records_max * records_max if self.records else 0
        yield replace(self, start=start, records=self.records[done:])

    def joined(self, following: Sequence["FetchedBatch"]) -> "FetchedBatch":
        """This piece and those that follow it, each one the one before: a longer piece, still contiguous."""
        if not following:
            return self
        records = [record for piece in (self, *following) for record in piece.records]
        return replace(self, end=following[-1].end, records=records, log_end=following[-1].log_end)

    def cut_before_tombstones(self) -> Iterator["FetchedBatch"]:
        """The same piece of the log, cut before every tombstone whose customer has records in it already.

        So what was decided of a customer is sent before the word that forgets them, however the log was fetched.
        """
        start, first, seen = self.start, 0, set[bytes | None]()
        if any(record.value is None for record in self.records):
            for i, record in enumerate(self.records):
                if record.value is None and record.key in seen:
                    yield replace(self, start=start, end=record.offset, records=self.records[first:i])
                    start, first = record.offset, i
                    seen.clear()
                seen.add(record.key)
        yield replace(self, start=start, records=self.records[first:]) if first else self


class CommittedOffset(NamedTuple):
    """How far a partition's effects have been applied *and* sent: Kafka's committed offset and its
    metadata."""

    offset: int
    metadata: str


OnPartitions = Callable[[frozenset[int]], None]
"""Called with partition numbers on the event loop. It may only take note: whatever waits belongs in a
task."""


class Source(Protocol):
    """One input topic, of which some partitions are ours for a while.

    A partition is silent until `seek` opens it, and again after it was revoked. Every coroutine raises
    `PartitionRevoked` when the partition is not ours (any more), `BrokerUnavailable` when Kafka does not
    answer.
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
        """The group's mark as Kafka holds it; None if there never was one."""
        ...

    async def seek(self, partition: int, offset: int) -> int:
        """Open the partition at `offset`: returns the epoch that its next batches carry, beginning at
        `offset`.

        Batches of earlier epochs may still arrive and are to be refused. Does not undo `pause`.
        """
        ...

    def pause(self, partition: int) -> None:
        """Fetch nothing more of it until `resume`. A batch or two on their way may still arrive, and
        count."""
        ...

    def resume(self, partition: int) -> None:
        """Undo `pause`."""
        ...

    def advance_committed(self, partition: int, offset: int, metadata: str = "") -> None:
        """All before `offset` has been applied and sent: let the committed offset advance to it, soon,
        never back."""
        ...
