"""A partition that is open: where it is, what fences it, and what of it may still be said. One way to open it.

    the checkpoint   where the state is, and whose commits count           moved by a commit, in the store
    the log          [begin, end): what can still be folded                moved by producers and retention
    the committed    what has been said: nothing up to it is said again    moved by the worker, in Kafka
    offset

The worker and a rebuild open a partition by the same rules; only what is said differs (`Suppression`).
"""

import asyncio
from dataclasses import dataclass, field, replace

from ebbtide.featurestore.errors import Fenced
from ebbtide.featurestore.store.checkpoint import (
    REBUILD,
    Checkpoint,
    TimerCursor,
    check_checkpoint,
    draw_nonce,
)
from ebbtide.featurestore.store.commit import Commit, HourCounts
from ebbtide.featurestore.store.protocol import Store
from ebbtide.stream.batch import ADOPT, CommittedOffset, FetchedBatch, Source, lost_tail
from ebbtide.stream.decision.suppression import Suppression
from ebbtide.stream.errors import AnotherLog, BrokerUnavailable, CheckpointOutsideLog
from ebbtide.stream.turn.due import DuePage
from ebbtide.stream.turn.flood import FloodGuard
from ebbtide.stream.turn.volume import Volume

COMMITTED_POLL_S = 0.05
COMMITTED_POLL_S_MAX = 30.0


@dataclass(frozen=True, slots=True)
class LogState:
    """What Kafka says of a partition: its topic has `partitions` and is `topic_id` ("": unknown), it holds offsets
    [begin, end), and the group has committed `committed` (None: never)."""

    partitions: int
    begin: int
    end: int
    committed: CommittedOffset | None
    topic_id: str = ""


@dataclass(slots=True, eq=False)
class Opened:
    """One open partition, as its turns see it.

    stored: the checkpoint that the fence compares with; None when the partition never began. checkpoint: where it is.
    hours: records of its log by hour, of those that have ended. due: who is due next. newest_ms: Kafka timestamp of the
    last record applied, 0 before the first. acked: outbox entries that Kafka has, and the outbox does not know of yet.
    seek_id: what its batches carry. owned: False once the partition was given away; then nothing more of it is applied
    or sent.
    """

    partition: int
    stored: Checkpoint | None
    checkpoint: Checkpoint
    suppression: Suppression
    flood: FloodGuard
    hours: HourCounts = ()
    due: DuePage = field(default_factory=DuePage)
    newest_ms: int = 0
    acked: list[bytes] = field(default_factory=list)
    seek_id: int = 0
    owned: bool = True

    def check_follows(self, batch: FetchedBatch) -> None:
        """Raises Fenced for a batch that does not begin where the last one ended: something was lost on the way.

        A gap; or a later seek, when somebody else sought, whose batches would never be ours again.
        """
        if not batch.follows(self.seek_id, self.checkpoint.offset):
            raise Fenced(f"a batch begins at {batch.start}, expected {self.checkpoint.offset}: seeking back")

    def beyond_history(self, batch: FetchedBatch) -> FetchedBatch:
        """The batch without the records that a backfilled file held: they had arrived before it ended, and lie behind
        later ones, since a producer's timestamps need not be in order. A tombstone is never left out."""
        history = self.checkpoint.history
        if history is None or batch.start >= history.until_offset:
            return batch
        kept = [
            record for record in batch.records
            if record.value is None or record.offset >= history.until_offset
            or not 0 <= record.timestamp < history.until_ms
        ]  # fmt: skip
        return batch if len(kept) == len(batch.records) else replace(batch, records=kept)

    def advance(self, commit: Commit) -> None:
        """It was applied."""
        self.stored = self.checkpoint = commit.checkpoint
        self.hours = self.hours if commit.hours is None else commit.hours
        self.acked = []

    @property
    def volume(self) -> Volume:
        """What its log brought, up to the checkpoint."""
        return Volume(self.checkpoint.hour, self.hours)

    def counted(self, batch: FetchedBatch | None, now_ms: int) -> Volume:
        """What it will have brought with this batch, as of the wall time."""
        if batch is None:
            return self.volume
        return self.volume.counted([record.timestamp for record in batch.records], now_ms)

    @property
    def committed(self) -> CommittedOffset:
        """How far this partition is, as Kafka is to remember it."""
        return self.suppression.committed_at(self.checkpoint)

    def timers_until(self, clock_ms: int) -> TimerCursor | None:
        """How far timers may be taken now; None when they may not."""
        if self.suppression.timers_behind(self.checkpoint):
            return self.suppression.timers_from  # they had been taken so far before
        return None if self.rebuilding else (clock_ms, "")

    @property
    def rebuilding(self) -> tuple[int, int] | None:
        """(position, until) while it makes a state again of which all was sent already; None when it does not."""
        position, until = self.checkpoint.offset, self.suppression.alerts_from
        return (position, until) if position < until else None


async def open_partition(
    store: Store,
    layout_id: str,
    partition: int,
    log: LogState,
    stored: Checkpoint | None,
    suppression: Suppression,
    flood: FloodGuard,
) -> Opened:
    """Hold the stored checkpoint against the log. `log`: as of a moment when the checkpoint and the committed offset
    had been read: of a moment before, a log that grows could seem to end below them.

    Raises LayoutError for state of another layout or number of partitions, CheckpointOutsideLog when the log no longer
    has what comes next, StoreUnavailable.
    """
    check_checkpoint(stored, layout_id, log.partitions)
    check_log(partition, stored, log)
    # Of a later checkpoint, if another owner commits meanwhile: then our first commit is fenced.
    hours = () if stored is None else await store.hours(partition)
    start = stored or Checkpoint(log.begin, 0, 0, layout_id, log.partitions)
    # No sequence twice: what of an outbox is above the committed one is sent again.
    start = start._replace(sequence=max(start.sequence, suppression.sequence))
    start = start._replace(layout=layout_id)  # the policy's section may be another one (`check_checkpoint`)
    if log.topic_id:
        start = start._replace(topic_id=log.topic_id)
    # Drawn anew, so that two histories of equal numbers (a failover that lost its tail) never have equal checkpoints.
    return Opened(partition, stored, start._replace(nonce=draw_nonce()), suppression, flood, hours)


async def commit_first(source: Source, partition: int, asked: CommittedOffset) -> None:
    """Have Kafka know a partition's first committed offset, or the first one with timers, before anything is applied:
    else whoever opens it next would take the past for news. Raises BrokerUnavailable."""
    source.advance_committed(partition, *asked)
    try:
        async with asyncio.timeout(COMMITTED_POLL_S_MAX):
            while await source.committed(partition) != asked:  # noqa: ASYNC110 - no event tells it; it is once
                await asyncio.sleep(COMMITTED_POLL_S)
    except TimeoutError:
        raise BrokerUnavailable("Kafka has not taken the group's first committed offset") from None


def check_tail(opened: Opened, epoch_end: int | None) -> None:
    """Raises AnotherLog when the log lost what the state was folded from; `epoch_end` is of the checkpoint's epoch."""
    at = opened.checkpoint
    if lost := lost_tail(opened.partition, at.offset, at.leader_epoch, epoch_end):
        raise lost


def check_log(partition: int, stored: Checkpoint | None, log: LogState) -> None:
    """Raises AnotherLog or CheckpointOutsideLog when state or committed offset belong to a log that is gone."""
    if stored is not None and stored.topic_id and log.topic_id and stored.topic_id != log.topic_id:
        raise AnotherLog(
            f"partition {partition}: the topic was deleted and made again: it is {log.topic_id} now,"
            f" the state was folded from {stored.topic_id}",
            hint=ADOPT,
        )
    if stored is not None and not log.begin <= stored.offset <= log.end:
        raise CheckpointOutsideLog(
            f"partition {partition} is at offset {stored.offset}, the log holds [{log.begin}, {log.end})",
            hint=f"what is missing cannot be folded: {REBUILD}",
        )
    if log.committed is not None and log.committed.offset > log.end:
        raise CheckpointOutsideLog(
            f"partition {partition} was sent up to offset {log.committed.offset}, the log ends at {log.end}",
            hint="the topic was made anew: use another kafka.group, and another redis.prefix",
        )
