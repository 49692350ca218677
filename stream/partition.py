"""One partition of ours, from its assignment to its end: opened, served by turns, and after any fault opened again.

    assigned ─▶ open: read the checkpoint, resend the outbox, seek ─▶ pieces for turns ─▶ … ─▶ revoked or drained
                  ▲                                                     │
                  └──── back off ◀── fenced, a gap, the store, Kafka or the model away
    stopped ◀── a fault that waiting does not mend: this partition only, until a person has looked

It gives out pieces of its log, and customers who are due (`take_due`), whenever its clock has passed them.

A checkpoint behind the group's committed offset is a state to be made again: the same turns from there, which say
nothing that was said (`stream/decision/suppression.py`). So a failover that lost its tail, a store that was lost
altogether and a first start on an old topic are no cases of their own.

One way back from every fault: drop what is in hand, read the stored checkpoint, seek there. It is safe because a turn
changes nothing before it is applied, and what was applied is behind the checkpoint; a write whose answer was lost shows
as a checkpoint that moved. So nothing is retried in place, and waiting costs one partition and no more.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

from ebbtide.featurestore.errors import Fenced, StoreMisconfigured, StoreUnavailable
from ebbtide.featurestore.store.checkpoint import TimerCursor
from ebbtide.stream.batch import Fetched, FetchedBatch, FetchFault, LogPosition, Source, first_timestamp
from ebbtide.stream.errors import (
    BrokerMisconfigured,
    BrokerUnavailable,
    PartitionRevoked,
    ScorerUnavailable,
    TopicRepartitioned,
)
from ebbtide.stream.opening import open_from_store
from ebbtide.stream.pipeline import Pipeline, Tools
from ebbtide.stream.retry import Backoff
from ebbtide.stream.telemetry import Lag
from ebbtide.stream.turn.flood import FloodGuard
from ebbtide.stream.turn.limits import Limits
from ebbtide.stream.turn.opened import Opened
from ebbtide.stream.turn.progress import Progress
from ebbtide.stream.turn.queue import Budget, Queue
from ebbtide.stream.turn.state import (
    Done,
    Draining,
    Live,
    Opening,
    Rebuilding,
    Retrying,
    State,
    Stopped,
)
from ebbtide.stream.turn.timers import VolumeWatch, timer_clock
from ebbtide.stream.turn.work import Piece

log = logging.getLogger(__name__)

RETRIED = (Fenced, StoreUnavailable, BrokerUnavailable, ScorerUnavailable)
"""What waiting mends."""
FATAL = (StoreMisconfigured, BrokerMisconfigured, TopicRepartitioned)
"""What is wrong for every partition, until a person changes a setting: the worker ends."""
REBUILD_LOG_S = 10.0
"""How often a partition that makes its state again says how far it is."""
ACK_AFTER_S = 0.5
"""An idle partition acknowledges its outbox after this, so that a restart sends nothing twice."""


class Partition:
    """`offer` hands it a batch, `take` gives out a piece for a turn, `settle` hears what became of it; `run` opens it,
    and opens it again. `on_ready` is called whenever a piece can be taken."""

    def __init__(
        self,
        number: int,
        pipeline: Pipeline,
        tools: Tools,
        source: Source,
        *,
        alerts_from: Literal["now", "start"],
        limits: Limits,
        budget: Budget,
        on_ready: Callable[["Partition"], None],
    ) -> None:
        self.number = number
        self.state: State = Opening()
        self.opened: Opened | None = None
        self.in_turn = False
        """A piece of it is in a turn: it gives out no other one."""
        self.alone = False
        """Its last turn failed in a way that nobody foresaw: it takes the next one by itself."""
        self.turns_without_timers = 0
        """How many pieces of its log it has given out since it gave out customers who are due."""
        self.source_lives = False
        """The whole topic is not quiet: a silence is its customer's own."""
        self.volume = VolumeWatch(number, limits.timers)
        self.idle_since_s = 0.0
        self.progress = Progress(tools.clock.monotonic_s())
        self._pipeline, self._tools, self._source = pipeline, tools, source
        self._alerts_from, self._limits, self._on_ready = alerts_from, limits, on_ready
        self._budget = budget
        self._queue = Queue(limits.queued_batches_max, budget, self._pause, self._resume)
        self._pieces: deque[FetchedBatch] = deque()
        """What is left of a batch that was cut before tombstones."""
        self._wake = asyncio.Event()
        self._fault: Exception | None = None
        self._backoff = Backoff()  # until the next commit: to open and to fail again is no success
        self._logged_s = 0.0
        self._flood = FloodGuard(limits.dead_letter_share_max)

    @property
    def has_work(self) -> bool:
        """A piece of its log can be taken now."""
        return (
            self.opened is not None
            and not self.in_turn
            and not self.timers_first
            and bool(self._pieces or self._queue)
        )

    @property
    def timers_first(self) -> bool:
        """A state that is made again: its log is folded as far as it was, its timers are not taken so far."""
        opened = self.opened
        return opened is not None and opened.suppression.timers_behind(opened.checkpoint)

    @property
    def takes_due(self) -> bool:
        """Customers who are due are in a turn; the store, if it is asked, still has them as due."""
        return self.in_turn and not self.turns_without_timers

    @property
    def timers_until(self) -> TimerCursor | None:
        """How far its timers may be taken, once it is in no turn; None when they hold."""
        if self.opened is None or self.draining:
            return None
        # What was taken before is taken again, whatever the log brings by now.
        if not self.timers_first and (not self.source_lives or self.volume.low_share is not None):
            return None
        opened, log = self.opened, self.progress.log
        clock_ms = timer_clock(log, opened.checkpoint.offset, opened.newest_ms, self._limits.timers)
        return opened.timers_until(clock_ms)

    @property
    def waits(self) -> bool:
        """Something was fetched and is not committed."""
        return self.in_turn or bool(self._pieces or self._queue)

    @property
    def queued_records(self) -> int:
        """Records that were fetched and are in no turn."""
        return sum(len(piece.records) for piece in self._pieces) + self._queue.records

    @property
    def draining(self) -> bool:
        """It takes nothing more."""
        return self._queue.closed

    @property
    def finished(self) -> bool:
        """It has ended with nothing left in hand; false when it gave up, or was given away."""
        return isinstance(self.state, Done | Stopped)

    def lag(self, position: LogPosition, now_s: float) -> Lag | None:
        """How far it is behind, where its log ends so; None while nobody knows."""
        self.progress.look(position, now_s, is_open=self.opened is not None)
        return self.progress.lag(now_s, self._tools.clock.now_ms())

    def stalled(self, now_s: float) -> str:
        """Why it stands still, in words; empty when it moves, or has nothing to do."""
        return "" if self.opened is None else self.progress.stalled(now_s)

    def offer(self, fetched: Fetched) -> None:
        """Take a batch in order of arrival. A full queue pauses the fetch; what is on its way is still taken."""
        if isinstance(self.state, Stopped):
            return
        waited = self.waits
        self._queue.put(fetched)
        if not waited:
            self.progress.fetched(self._oldest_ms(), self._tools.clock.monotonic_s())
        if self.has_work:
            self._on_ready(self)

    def take(self) -> Piece | None:
        """The next piece, for one turn; None when there is none, or what came does not continue the partition."""
        opened = self.opened
        while opened is not None and not self.in_turn and not self.timers_first:
            if self._pieces:
                self.in_turn = True
                self.turns_without_timers += 1
                return Piece(opened, self._pieces.popleft())
            batch = self._queue.take(self._limits.piece_records_max)
            if batch is None:
                return None
            if batch.seek_id < opened.seek_id:
                continue  # left over from a position that was given up
            if isinstance(batch, FetchFault):
                self.fail(batch.error)
                return None
            try:
                opened.check_follows(batch)
                known = opened.checkpoint.leader_epoch
                if 0 <= batch.leader_epoch < known:
                    raise Fenced(f"leader epoch {batch.leader_epoch} after {known}: is it another log?")
            except Fenced as error:
                self.fail(error)
                return None
            fresh = opened.beyond_history(batch)
            self._tools.telemetry.in_history(len(batch.records) - len(fresh.records))
            limits = opened.suppression.outputs_from, opened.suppression.alerts_from
            for part in fresh.cut_at(*limits):
                self._pieces.extend(part.cut_before_tombstones())
        return None

    def take_due(self, customers_max: int) -> Piece | None:
        """The next customers who are due, for one turn; None when it is in one, or there are none, or the store has to
        be asked first."""
        until = None if self.in_turn else self.timers_until
        if self.opened is None or until is None or not self.opened.due.ready(until, self.timers_first):
            return None
        due = self.opened.due.take(until, customers_max)
        self.in_turn, self.turns_without_timers = True, 0
        return Piece(self.opened, None, due)

    def take_acknowledgement(self) -> Piece | None:
        """A piece that only takes acknowledged alerts out of the outbox, when no batch comes to do it on its way."""
        if self.opened is None or self.in_turn or not self.opened.acked:
            return None
        self.in_turn = True
        return Piece(self.opened, None)

    def settle(self, piece: Piece, error: Exception | None) -> None:
        """What became of a piece that was taken."""
        if piece.opened is not self.opened:
            return  # of a time before it was opened anew
        self.in_turn = False
        if error is not None:
            self.fail(error)
            return
        self._source.advance_committed(self.number, *piece.opened.committed)
        if piece.batch is not None and piece.batch.records:
            piece.opened.newest_ms = max(piece.opened.newest_ms, piece.batch.records[-1].timestamp)
        self.alone = False
        self._backoff.reset()
        self._tell_progress(piece.opened)
        self.idle_since_s = self._tools.clock.monotonic_s()
        self.progress.committed(piece.opened.checkpoint.offset, self._oldest_ms(), self.idle_since_s)
        if self.has_work:
            self._on_ready(self)
        else:
            self._wake.set()

    def _oldest_ms(self) -> int | None:
        """The Kafka timestamp of the oldest record that was fetched and is in no turn."""
        waiting = next((piece for piece in self._pieces if piece.records), None) or self._queue.first
        return first_timestamp(waiting.records) if waiting is not None else None

    def retry_alone(self, piece: Piece) -> None:
        """Its turn failed in a way that nobody foresaw: whose it is shows when each takes the next one alone."""
        if piece.opened is self.opened:
            self.alone = True
            self.fail(Fenced("its turn failed for a reason of nobody yet"))

    def fail(self, error: Exception) -> None:
        """Open it again, or stop it: what is in hand is dropped. Heard by `run`."""
        self._close()
        self._fault = error
        self._wake.set()

    def drain(self) -> None:
        """Take nothing more, finish what is queued, acknowledge the outbox, then let `run` return. Not bounded: cancel
        it. Whatever goes wrong from now on ends it, too: what was not applied is the next owner's."""
        self._queue.close()
        if not isinstance(self.state, Stopped | Retrying):
            self.state = Draining()
        self._wake.set()
        if self.has_work:
            self._on_ready(self)

    def give_away(self) -> None:
        """It is another worker's now: nothing more of it is applied or sent, and nobody waits for that."""
        self._close()
        self._queue.close()

    async def run(self) -> None:
        """Until revoked, drained or cancelled. Raises what concerns the whole worker."""
        while True:
            try:
                await self._open()
                await self._served()
                if not self._backoff.attempts:
                    self.state = Done()
                return
            except PartitionRevoked:
                return
            except FATAL:
                raise
            except RETRIED as error:
                self._close()
                reason = type(error).__name__
                wait_s = self._backoff.next_s()
                self.state = Retrying(reason, str(error), self._backoff.attempts)
                self._tools.telemetry.reopened(self.number, reason)
                log.warning(
                    "partition reopens",
                    extra={"partition": self.number, "reason": reason, "error": str(error)},
                )
                if self._queue.closed:
                    return
                await self._until_closed(wait_s)
            except Exception as error:  # noqa: BLE001 - the supervised border of a partition
                await self._stop(error)
                return

    async def _served(self) -> None:
        """Until all is done after a drain. Raises what a turn failed of."""
        while True:
            self._wake.clear()
            if self._fault is not None:
                error, self._fault = self._fault, None
                raise error
            if self._queue.closed and not self.waits:
                if self.opened is None or not self.opened.acked:
                    return
                self._on_ready(self)  # for its acknowledgement
            await self._wake.wait()

    async def _until_closed(self, timeout_s: float | None) -> None:
        """Wait, but not when everything is to end."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not self._queue.closed:
                    self._wake.clear()
                    await self._wake.wait()

    async def _stop(self, error: Exception) -> None:
        """Stay ours and do nothing: another owner would do the same, and the other partitions have done no wrong."""
        self._close()
        self.state = Stopped(type(error).__name__, str(error))
        self._source.pause(self.number)
        self._tools.telemetry.stopped(self.number, type(error).__name__)
        log.error("partition stopped", extra={"partition": self.number, "error": str(error)}, exc_info=error)
        await self._until_closed(None)

    def _close(self) -> None:
        """Drop what is in hand. A turn under way keeps what it has, and what it says of us is not heard."""
        if self.opened is not None:
            self.opened.owned = False
            self.opened = None
        self.in_turn = False
        self._pieces.clear()
        self._queue.clear()
        self._tools.cache.clear(self.number)  # a tombstone may have been applied, and its answer lost

    async def _open(self) -> None:
        """Read where the partition is, finish what an earlier owner left, and have it fetched from there."""
        tools, source, number = self._tools, self._source, self.number
        self._fault = None
        opened, end = await open_from_store(
            number, self._pipeline, tools, source, self._alerts_from, self._flood,
            timers_off=self._limits.timers.clock == "off",
        )  # fmt: skip
        self._queue.clear()
        opened.seek_id = await source.seek(number, opened.checkpoint.offset)
        self._queue.resume()
        log.info(
            "partition opened",
            extra={
                "partition": number,
                "offset": opened.checkpoint.offset,
                "end": end,
                "committed": opened.suppression.outputs_from,
            },
        )
        self._logged_s = self.idle_since_s = tools.clock.monotonic_s()
        self.progress.opened(opened.checkpoint.offset, self._logged_s)
        if opened.rebuilding and opened.stored is None:
            log.warning(
                "state is made from the log",
                extra={
                    "partition": number,
                    "from": opened.checkpoint.offset,
                    "until": opened.suppression.alerts_from,
                    "sent": opened.suppression.outputs_from,
                },
            )
        if opened.checkpoint.offset == end:
            self._backoff.reset()
        if not self._backoff.attempts:
            self._tell_progress(opened)
        # else the next commit has to show that it is over: to open takes neither the scorer nor a way out
        self.opened = opened

    def _tell_progress(self, opened: Opened) -> None:
        """Say how far a rebuild is; ready is who has nothing to make again."""
        rebuilding = opened.rebuilding
        if rebuilding is None:
            if isinstance(self.state, Live):
                return
            if isinstance(self.state, Rebuilding):
                log.info(
                    "state is made again",
                    extra={"partition": self.number, "offset": opened.checkpoint.offset},
                )
            self.state = Draining() if self._queue.closed else Live()
            self._tools.telemetry.rebuilding(self.number, 0)
            return
        position, until = rebuilding
        self.state = Rebuilding(position, until)
        self._tools.telemetry.rebuilding(self.number, until - position)
        now_s = self._tools.clock.monotonic_s()
        if now_s - self._logged_s >= REBUILD_LOG_S:
            self._logged_s = now_s
            log.info("rebuilding", extra={"partition": self.number, "offset": position, "until": until})

    def idle_check_is_due(self, now_s: float) -> bool:
        """Time to look whether the state is still there, since no commit would tell; then not for a while again."""
        if self.opened is None or self.waits or now_s < self.idle_since_s + self._limits.idle_check_s:
            return False
        self.idle_since_s = now_s - random.uniform(0.0, 0.5) * self._limits.idle_check_s
        return True

    def _pause(self) -> None:
        self._source.pause(self.number)
        self._tools.telemetry.paused(self.number)

    def _resume(self) -> None:
        self._source.resume(self.number)
        self._tools.telemetry.resumed(self.number)
