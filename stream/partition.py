"""One partition of ours, from its assignment to its end: open, serve, and after any trouble open again.

    assigned ─▶ open: read checkpoint, resend outbox, seek ─▶ serve: batch after batch ─▶ … ─▶ revoked or drained
                  ▲                                        │
                  └──── back off ◀── fenced, a gap, the store, Kafka or the model away
    stopped ◀── most of what arrives is bad, or cannot be read: this partition only, until a person has looked

A checkpoint behind the group's committed offset is a state to be made again: the same steps from there, which say
nothing that was said (`stream/suppression.py`). So a failover that lost its tail, a store that was lost altogether and
a first start on an old topic are no cases of their own.

One way back for every trouble: drop what is in hand, read the stored checkpoint, seek there. It is safe because a step
changes nothing before it is applied, and what was applied is behind the checkpoint; a write whose answer was lost shows
as a checkpoint that moved. So nothing is retried in place, and nothing waits for ever but here, where waiting costs one
partition and no more. It refuses to know what a step does (`stream/pipeline.py`).
"""

import asyncio
import logging
import random
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from ebbtide.featurestore.errors import Fenced, StoreUnavailable
from ebbtide.featurestore.store.checkpoint import REBUILD, Checkpoint, check_checkpoint
from ebbtide.stream.batch import CommittedOffset, Fetched, FetchFault, Source
from ebbtide.stream.errors import (
    BrokerUnavailable,
    HeadOutsideLog,
    PartitionFault,
    PartitionRevoked,
    ScorerUnavailable,
)
from ebbtide.stream.outputs.dead_letter import FloodGuard
from ebbtide.stream.pipeline import Pipeline, Tools
from ebbtide.stream.queue import Inbox
from ebbtide.stream.retry import Backoff
from ebbtide.stream.suppression import NO_SUPPRESSION, Suppression

log = logging.getLogger(__name__)

RETRIED = (Fenced, StoreUnavailable, BrokerUnavailable, ScorerUnavailable)
MARK_POLL_S = 0.05
REBUILD_LOG_S = 10.0
"""How often a partition that makes its state again says how far it is."""
TIDY_AFTER_S = 0.5
"""An idle partition acknowledges its outbox after this, so that a restart sends nothing twice."""


REBUILDING = "its state is being made again from the log"


@dataclass(frozen=True, slots=True)
class Limits:
    """Named bounds of one partition. `queued_batches_max`: fetched and not begun; beyond it the fetch pauses.
    `step_records_max`: batches that had to wait are joined up to so many records, since a step costs a millisecond
    before its first event. `dead_letter_share_max`: more bad records than this share are a flood. `look_s`: how long a
    partition may be idle and not look whether its state is still there; lost at night, it is made again at night."""

    queued_batches_max: int = 4
    step_records_max: int = 1000
    dead_letter_share_max: float = 1.0
    idle_check_s: float = 5.0


class Partition:
    """The task of one partition. `offer` hands it a batch, `run` works, `drain` lets it finish what it has."""

    def __init__(
        self,
        number: int,
        tools: Tools,
        source: Source,
        *,
        alerts_from: Literal["now", "start"],
        limits: Limits,
    ) -> None:
        self.number = number
        self.trouble = "it is being opened"
        """Why it is not ready, in words; empty when it is."""
        self._tools, self._source, self._alerts_from, self._limits = tools, source, alerts_from, limits
        self._inbox = Inbox(limits.queued_batches_max, limits.step_records_max, self._pause, self._resume)
        self._stopping = asyncio.Event()
        self.finished = False
        """`run` has returned with nothing left in hand; false when it gave up, or was given away."""
        self._backoff = Backoff()  # until the next step: to open and to fail again is no success
        self._said_s = 0.0
        self._flood = FloodGuard(limits.dead_letter_share_max)

    def offer(self, fetched: Fetched) -> None:
        """Take a batch in order of arrival. A full queue pauses the fetch; what is on its way is still taken."""
        self._inbox.put(fetched)

    def drain(self) -> None:
        """Take nothing more, finish the queue, tidy the outbox, then let `run` return. Not bounded: cancel it.

        Whatever goes wrong from now on ends it, too: what was not applied is the next owner's.
        """
        self._inbox.close()
        self._stopping.set()

    async def run(self) -> None:
        """Until revoked (PartitionRevoked ends it quietly), drained or cancelled. Raises what asks for a crash."""
        while True:
            try:
                pipeline, seek_id = await self._open()
                await self._serve(pipeline, seek_id)
                self.finished = not self._backoff.troubles
                return
            except PartitionRevoked:
                return
            except PartitionFault as error:
                await self._stop(error)
                self.finished = True
                return
            except RETRIED as error:
                self._tools.cache.clear(self.number)  # a tombstone may have been applied, and its answer lost
                reason = type(error).__name__
                self.trouble = f"{reason}: {error}"
                self._tools.telemetry.reopened(self.number, reason)
                log.warning(
                    "partition reopens",
                    extra={"partition": self.number, "reason": reason, "error": str(error)},
                )
                if self._inbox.closed:
                    return
                await self._drains(self._backoff.next_s())

    async def _drains(self, timeout_s: float | None) -> None:
        """Wait, but not when everything is to end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._stopping.wait()

    async def _stop(self, error: PartitionFault) -> None:
        """Stay ours and do nothing: another owner would do the same, and the other partitions have done no wrong."""
        self.trouble = f"it has stopped: {error}"
        self._source.pause(self.number)
        self._inbox.clear()
        self._tools.telemetry.stopped(self.number, type(error).__name__)
        log.error("partition stopped", extra={"partition": self.number, "error": str(error)})
        await self._drains(None)

    async def _open(self) -> tuple[Pipeline, int]:
        """Read where the partition is, finish what an earlier owner left, and have it fetched from there."""
        tools, source, number = self._tools, self._source, self.number
        partitions = await source.partition_count()
        stored = await tools.store.checkpoint(number)
        check_checkpoint(stored, tools.layout.id, partitions)
        begin, end = await source.log_range(number)
        committed = await source.committed(number)
        self._check_log(stored, committed, begin, end)
        if committed is None and stored is None:
            muted = await self._begin(begin, end)
        else:
            muted = NO_SUPPRESSION if committed is None else Suppression.by(committed)
        start = stored or Checkpoint(begin, 0, 0, tools.layout.id, partitions)
        pipeline = Pipeline(tools, number, stored, start, muted, self._flood)
        await pipeline.send_outbox()
        if stored is not None:
            # Applied and, just now, sent: the owner that applied it may not have lived to say so. Unless the outbox was
            # lost after the checkpoint was read, and what is empty is another one: marked, its alerts would stay
            # unsaid.
            await pipeline.verify_fence()
            source.advance_committed(number, *pipeline.committed)
        self._inbox.clear()
        seek_id = await source.seek(number, start.offset)
        self._inbox.resume()
        log.info(
            "partition opened",
            extra={"partition": number, "offset": start.offset, "end": end, "mark": muted.outputs_from},
        )
        self._said_s = tools.clock.monotonic_s()
        if pipeline.rebuilding and stored is None:
            log.warning(
                "state is made from the log",
                extra={
                    "partition": number,
                    "from": start.offset,
                    "until": muted.alerts_from,
                    "sent": muted.outputs_from,
                },
            )
        if start.offset == end:
            self._backoff.over()
        if not self._backoff.troubles:
            self._tell_progress(pipeline)
        # else the next step has to show that it is over: to open takes neither the scorer nor a way out
        return pipeline, seek_id

    def _check_log(
        self, stored: Checkpoint | None, committed: CommittedOffset | None, begin: int, end: int
    ) -> None:
        """Raises HeadOutsideLog when state or mark belong to a log that is no longer there."""
        if stored is not None and not begin <= stored.offset <= end:
            raise HeadOutsideLog(
                f"partition {self.number} is at offset {stored.offset}, the log holds [{begin}, {end})",
                hint=f"what is missing cannot be folded: {REBUILD}",
            )
        if committed is not None and committed.offset > end:
            raise HeadOutsideLog(
                f"partition {self.number} was sent up to offset {committed.offset}, the log ends at {end}",
                hint="the topic was made anew: use another kafka.group, and another redis.prefix",
            )

    async def _begin(self, begin: int, end: int) -> Suppression:
        """The committed offset of a partition that nobody has worked on: an old topic must not flood the consumers of
        alerts."""
        if self._alerts_from == "start":
            return NO_SUPPRESSION
        muted = Suppression(begin, end)
        self._source.advance_committed(self.number, *muted.committed_at(begin, 0))
        # Kafka has to know before anything is applied: else whoever opens next would take the past for news.
        while await self._source.committed(self.number) is None:  # noqa: ASYNC110 - no event tells it; it is once
            await asyncio.sleep(MARK_POLL_S)
        return muted

    def _tell_progress(self, pipeline: Pipeline) -> None:
        """Say how far a rebuild is; ready is who has nothing to make again."""
        rebuilding = pipeline.rebuilding
        if rebuilding is None:
            if self.trouble.startswith(REBUILDING):
                log.info("state is made again", extra={"partition": self.number, "offset": pipeline.position})
            self.trouble = ""
            self._tools.telemetry.rebuilding(self.number, 0)
            return
        position, until = rebuilding
        self.trouble = f"{REBUILDING}: at offset {position:,} of {until:,}"
        self._tools.telemetry.rebuilding(self.number, until - position)
        now_s = self._tools.clock.monotonic_s()
        if now_s - self._said_s >= REBUILD_LOG_S:
            self._said_s = now_s
            log.info("rebuilding", extra={"partition": self.number, "offset": position, "until": until})

    async def _serve(self, pipeline: Pipeline, seek_id: int) -> None:
        while True:
            batch = await self._next(pipeline)
            if batch is None:
                return
            if batch.seek_id < seek_id:
                continue  # left over from a position that was given up
            if isinstance(batch, FetchFault):
                raise batch.error
            if not batch.follows(seek_id, pipeline.position):
                # A gap; or a later epoch, when somebody else sought. Whose batches would never be ours again.
                raise Fenced(f"a batch begins at {batch.start}, expected {pipeline.position}: seeking back")
            for piece in batch.cut_before_tombstones():
                self._source.advance_committed(self.number, *await pipeline.process(piece))
                self._backoff.over()
                if self.trouble:
                    self._tell_progress(pipeline)

    async def _next(self, pipeline: Pipeline) -> Fetched | None:
        """The next batch, with those that have queued behind it; None when draining and all is done."""
        while not self._inbox:
            self._inbox.resume()
            if pipeline.has_unacked_outbox:
                if self._inbox.closed or not await self._inbox.arrives(TIDY_AFTER_S):
                    await pipeline.ack_outbox()
            elif self._inbox.closed:
                return None
            elif not await self._inbox.arrives(random.uniform(0.5, 1.0) * self._limits.idle_check_s):
                await pipeline.verify_fence()  # no step would tell us that the state has been lost
        return self._inbox.take()

    def _pause(self) -> None:
        self._source.pause(self.number)
        self._tools.telemetry.paused(self.number)

    def _resume(self) -> None:
        self._source.resume(self.number)
        self._tools.telemetry.resumed(self.number)
