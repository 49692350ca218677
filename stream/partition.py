"""One partition of ours, from its assignment to its end: open, serve, and after any trouble open again.

    assigned ─▶ open: read head, resend outbox, seek ─▶ serve: a batch, a step, a mark ─▶ … ─▶ revoked or drained
                  ▲                                        │
                  └──── back off ◀── fenced, a gap, the store, Kafka or the model away

One way back for every trouble: drop what is in hand, read the stored head, seek there. It is safe because a step
changes nothing before it is applied, and what was applied is behind the head; a write whose answer was lost shows as a
head that moved. So nothing is retried in place, and nothing waits for ever but here, where waiting costs one partition
and no more. It refuses to know what a step does (`stream/pipeline.py`).
"""

import asyncio
import logging
import random
from collections import deque
from dataclasses import dataclass
from typing import Literal

from featurestore.errors import Fenced, StoreUnavailable
from featurestore.store import Head, check_head
from stream.dead_letter import FloodGuard
from stream.errors import BrokerUnavailable, HeadOutsideLog, PartitionRevoked, ScorerUnavailable
from stream.fetched import FetchedBatch, Source
from stream.pipeline import Pipeline, Tools

log = logging.getLogger(__name__)

RETRIED = (Fenced, StoreUnavailable, BrokerUnavailable, ScorerUnavailable)
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.05, 5.0
"""A fence or a blip is over in milliseconds; five seconds keep a long outage's reconnects from being a load."""
MARK_POLL_S = 0.05
TIDY_AFTER_S = 0.5
"""An idle partition acknowledges its outbox after this, so that a restart sends nothing twice."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Named bounds of one partition. `queued_batches_max`: fetched and not begun; beyond it the fetch pauses.
    `step_records_max`: batches that had to wait are joined up to so many records, since a step costs a millisecond
    before its first event. `dead_letter_share_max`: more bad records than this share are a flood."""

    queued_batches_max: int = 4
    step_records_max: int = 1000
    dead_letter_share_max: float = 1.0


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
        self.ready = False
        self._tools, self._source, self._alerts_from, self._limits = tools, source, alerts_from, limits
        self._queue: deque[FetchedBatch] = deque()
        self._arrived = asyncio.Event()
        self._draining = False
        self._paused = False
        self._flood = FloodGuard(limits.dead_letter_share_max)

    def offer(self, batch: FetchedBatch) -> None:
        """Take a batch in order of arrival. A full queue pauses the fetch; what is on its way is still taken."""
        if self._draining:
            return  # the next owner fetches it again
        self._queue.append(batch)
        self._arrived.set()
        if len(self._queue) >= self._limits.queued_batches_max and not self._paused:
            self._paused = True
            self._source.pause(self.number)
            self._tools.telemetry.paused(self.number)

    def drain(self) -> None:
        """Take nothing more, finish the queue, tidy the outbox, then let `run` return. Not bounded: cancel it."""
        self._draining = True
        self._source.pause(self.number)
        self._arrived.set()

    async def run(self) -> None:
        """Until revoked (PartitionRevoked ends it quietly), drained or cancelled. Raises what asks for a crash."""
        attempt = 0
        while True:
            try:
                pipeline, epoch = await self._open()
                attempt = 0
                await self._serve(pipeline, epoch)
                return
            except PartitionRevoked:
                return
            except RETRIED as error:
                self.ready = False
                reason = type(error).__name__
                self._tools.telemetry.reopened(self.number, reason)
                log.warning(
                    "partition reopens",
                    extra={"partition": self.number, "reason": reason, "error": str(error)},
                )
                attempt += 1
                await asyncio.sleep(
                    random.uniform(0.5, 1.0) * min(BACKOFF_FIRST_S * 2**attempt, BACKOFF_MAX_S)
                )

    async def _open(self) -> tuple[Pipeline, int]:
        """Read where the partition is, finish what an earlier owner left, and have it fetched from there."""
        tools, source, number = self._tools, self._source, self.number
        partitions = await source.partition_count()
        stored = await tools.store.head(number)
        check_head(stored, tools.layout.id, partitions)
        begin, end = await source.log_range(number)
        mark = await source.committed(number)
        if stored is not None and not begin <= stored.offset <= end:
            raise HeadOutsideLog(
                f"partition {number} is at offset {stored.offset}, the log holds [{begin}, {end})",
                hint="what is missing cannot be folded: make the state again under another redis.prefix, by "
                "`ebbtide backfill` and what the topic retains",
            )
        if mark is None and stored is None and self._alerts_from == "now":
            # An old topic must not flood the consumers: what was decided before now is state, not news.
            mute_until = end
            source.mark(number, end)
            # Kafka has to know before anything is applied: else whoever opens next would take the past for news.
            while end > begin and await source.committed(number) is None:  # noqa: ASYNC110 - no event tells it; it is once
                await asyncio.sleep(MARK_POLL_S)
        else:
            mute_until = mark.offset if mark is not None else 0
        start = stored or Head(begin, 0, 0, tools.layout.id, partitions)
        pipeline = Pipeline(tools, number, stored, start, mute_until, self._flood)
        await pipeline.send_outbox()
        if stored is not None:
            # Applied and, just now, sent: the owner that applied it may not have lived to say so.
            source.mark(number, *pipeline.mark)
        self._queue.clear()
        epoch = await source.seek(number, start.offset)
        self._resume()
        self.ready = True
        log.info(
            "partition opened",
            extra={"partition": number, "offset": start.offset, "end": end, "mark": mute_until},
        )
        return pipeline, epoch

    async def _serve(self, pipeline: Pipeline, epoch: int) -> None:
        while True:
            batch = await self._next(pipeline)
            if batch is None:
                return
            if batch.epoch < epoch:
                continue  # left over from a position that was given up
            if not batch.follows(epoch, pipeline.position):
                # A gap; or a later epoch, when somebody else sought. Whose batches would never be ours again.
                raise Fenced(f"a batch begins at {batch.start}, expected {pipeline.position}: seeking back")
            for piece in batch.cut_before_tombstones():
                self._source.mark(self.number, *await pipeline.step(piece))

    async def _next(self, pipeline: Pipeline) -> FetchedBatch | None:
        """The next batch, with those that have queued behind it; None when draining and all is done."""
        while not self._queue:
            self._resume()
            if pipeline.has_acked:
                if self._draining or not await self._arrives(TIDY_AFTER_S):
                    await pipeline.tidy()
            elif self._draining:
                return None
            else:
                await self._arrives(None)
        batch = self._queue.popleft()
        following: list[FetchedBatch] = []
        end, records = batch.end, len(batch.records)
        while self._queue and self._queue[0].follows(batch.epoch, end):
            records += len(self._queue[0].records)
            if records > self._limits.step_records_max:
                break
            following.append(self._queue.popleft())
            end = following[-1].end
        if len(self._queue) < self._limits.queued_batches_max // 2:
            self._resume()
        return batch.joined(following)

    async def _arrives(self, timeout_s: float | None) -> bool:
        self._arrived.clear()
        if self._queue or self._draining:
            return True
        try:
            # Not wait_for: before Python 3.12 it loses a cancellation that comes together with the arrival, and a
            # partition that was given away would live on, seeking under its successor.
            async with asyncio.timeout(timeout_s):
                await self._arrived.wait()
        except TimeoutError:
            return False
        return True

    def _resume(self) -> None:
        if self._paused and not self._draining:
            self._paused = False
            self._source.resume(self.number)
            self._tools.telemetry.resumed(self.number)
