"""All partitions of ours, the turns that serve them, the scorer they share, and the end of all: what a worker runs.

It takes note of what the source says (assigned, revoked, batches) without waiting, and keeps a task a partition for its
opening. What waits in open partitions is taken into turns, as many at once as `turns_in_flight`: one is judged while
another is committed. Whose turn it is, `schedule.py` says.

A turn takes out its partitions, not the worker: an error of one is told to that one, an error of all to all. Only what
is wrong for every partition (a setting, a right) ends the worker: `run` raises it, and the process exits with a message
that says what to do. It knows neither Faust nor TensorFlow; `ebbtide.ops.worker` puts the real ones in.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Literal

from ebbtide.featurestore.store.commit import DUE_AT_ALL_MS
from ebbtide.stream.batch import Fetched, Source
from ebbtide.stream.consumer.pulse import Pulse
from ebbtide.stream.ending import END_S_MAX, end
from ebbtide.stream.partition import ACK_AFTER_S, RETRIED, Partition
from ebbtide.stream.pipeline import MISPLACED, Pipeline, Tools
from ebbtide.stream.schedule import Schedule, Taken
from ebbtide.stream.telemetry import Lag
from ebbtide.stream.turn.answers import answers
from ebbtide.stream.turn.limits import Limits
from ebbtide.stream.turn.opened import Opened
from ebbtide.stream.turn.queue import Budget
from ebbtide.stream.turn.state import describe
from ebbtide.stream.turn.timers import SourceWatch

log = logging.getLogger(__name__)

HOUSEKEEPING_S = 0.05
"""How often idle partitions are looked through: for alerts to acknowledge, and for a state that may have been lost."""
TIMERS_S = 0.2
"""How often it is looked whether the clock has passed somebody; a log's end is seen twice a second."""
QUIET = "timers hold: no record came to the whole topic for {seconds:,} s, so a silence may be the producers'"
LOW = (
    "partition {number}: timers hold: its log brought {share:.0%} of what is usual at this hour of the week, so a"
    " silence may be its producers'"
)
LOOK_S = 1.0
"""How often it is noted where the logs end: `/readyz` and the lag tell what stands still, also when nothing arrives."""


class Worker:
    """`assigned`, `revoked` and `deliver` are the source's callbacks; `run` lasts until `stop` or a fatal error."""

    def __init__(
        self, tools: Tools, *, alerts_from: Literal["now", "start"] = "now", limits: Limits | None = None
    ) -> None:
        self._tools, self._alerts_from, self._limits = tools, alerts_from, limits or Limits()
        self._pipeline = Pipeline(tools)
        self._budget = Budget(self._limits.queued_bytes_max)
        self._partitions: dict[int, Partition] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()  # sees to it that what was given away ends
        self._schedule = Schedule(self._limits, tools.clock)
        self._own_clock = self._limits.timers.clock != "wall"
        self._source_watch = SourceWatch(self._limits.timers.source_quiet_max_ms)
        self._fatal: asyncio.Future[None] | None = None
        self._source: Source | None = None
        self._pulse = Pulse(tools.store)
        self._draining = self._joined = False

    def attach(self, source: Source) -> None:
        """The source whose callbacks will come; before `run`."""
        self._source = source
        self._tools.sink.attach(source)

    @property
    def partitions(self) -> dict[int, Partition]:
        """The partitions of ours, by number."""
        return dict(self._partitions)

    @property
    def not_ready_reasons(self) -> list[str]:
        """Why this worker is not ready, a sentence each; empty when every partition of ours is open, up to date and
        moving, and both servers answer. A worker to whom the group gave no partition is ready: it is a standby."""
        unreachable = [f"{server}: {why}" for server, why in self._pulse.away.items()]
        now_s = self._tools.clock.monotonic_s()
        reasons = []
        for number, partition in sorted(self._partitions.items()):
            why = describe(partition.state)
            if why := why or partition.stalled(now_s):
                reasons.append(f"partition {number}: {why}")
        if not self._joined:
            reasons.append("the group is forming")
        return unreachable + reasons

    @property
    def warnings(self) -> list[str]:
        """What a person should mend, although this worker does its work."""
        found = [f"{self._pipeline.misplaced:,} {MISPLACED}"] if self._pipeline.misplaced else []
        if not self._own_clock and (quiet_ms := self._source_watch.quiet_ms(self._tools.clock.now_ms())):
            found.append(QUIET.format(seconds=quiet_ms // 1000))
        found += [
            LOW.format(number=number, share=partition.volume.low_share)
            for number, partition in sorted(self._partitions.items())
            if partition.volume.low_share is not None
        ]
        return found

    def lags(self) -> dict[int, Lag]:
        """By partition of ours, as of now, also of one that is closed: what its log holds beyond what is committed."""
        positions = self._source.positions() if self._source is not None else {}
        now_s, found = self._tools.clock.monotonic_s(), dict[int, Lag]()
        for number, partition in self._partitions.items():
            position = positions.get(number)
            if position is not None and (lag := partition.lag(position, now_s)) is not None:
                found[number] = lag
        return found

    @property
    def away(self) -> dict[str, str]:
        """The servers that did not answer the last small question, with what is wrong."""
        return dict(self._pulse.away)

    def assigned(self, partitions: frozenset[int]) -> None:
        """These are ours now. Only takes note: checkpoints are read in each partition's own task."""
        if self._source is None:
            raise RuntimeError("attach a source before partitions are assigned")
        self._joined = True
        if self._draining:
            return  # we are about to leave: they are the next owner's
        for number in partitions - self._partitions.keys():
            partition = Partition(
                number, self._pipeline, self._tools, self._source, alerts_from=self._alerts_from, limits=self._limits,
                budget=self._budget, on_ready=self._schedule.waits,
            )  # fmt: skip
            self._partitions[number] = partition
            task = asyncio.create_task(partition.run(), name=f"partition-{number}")
            task.add_done_callback(self._ended)
            self._tasks[number] = task
        self._tools.telemetry.assigned(frozenset(self._partitions))

    def revoked(self, partitions: frozenset[int]) -> None:
        """No longer ours: work before its apply is dropped, not awaited. The next owner starts from the checkpoint.

        Until the next assignment, which comes also when it is empty, nobody knows what is ours: the group forms."""
        self._joined = False
        for number in partitions & self._partitions.keys():
            self._partitions.pop(number).give_away()
            self._schedule.forget(number)
            ending = asyncio.create_task(end([self._tasks.pop(number)]), name=f"end of partition-{number}")
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)
        self._tools.sink.abandon()  # delivered later, it could lie behind a tombstone that the next owner passes on
        self._tools.telemetry.assigned(frozenset(self._partitions))

    async def deliver(self, fetched: Sequence[Fetched]) -> None:
        """Hand what a fetch brought to its partitions; what is of one that is gone is dropped, as it has to be."""
        for each in fetched:
            partition = self._partitions.get(each.partition)
            if partition is not None:
                partition.offer(each)

    async def run(self) -> None:
        """Score for whoever asks, until cancelled. Raises what is wrong for all partitions."""
        self._fatal = asyncio.get_running_loop().create_future()
        if self._source is None:
            raise RuntimeError("attach a source before the worker runs")
        working = {
            asyncio.create_task(self._tools.batcher.run(), name="batcher"),
            asyncio.create_task(self._pulse.run(self._source), name="pulse"),
            asyncio.create_task(self._take_turns(), name="turns"),
            asyncio.create_task(self._run_timers(self._source), name="timers"),
            asyncio.create_task(self._keep_house(), name="housekeeping"),
        }
        try:
            await asyncio.wait({*working, self._fatal}, return_when=asyncio.FIRST_COMPLETED)
            for future in (*working, self._fatal):
                if future.done():
                    future.result()
        finally:
            # The store and the sink are closed after us: nobody may use them any more.
            await end([*working, *self._schedule.turns, *self._tasks.values()])
            if self._ending:
                await asyncio.wait(self._ending, timeout=END_S_MAX)

    async def drain(self, grace_s: float) -> bool:
        """Finish what is in hand. Returns whether all of it was finished within `grace_s` seconds."""
        self._draining = True
        partitions, tasks = list(self._partitions.values()), list(self._tasks.values())
        for partition in partitions:
            partition.drain()
        if not tasks:
            return True
        _, late = await asyncio.wait(tasks, timeout=grace_s)
        await end(late)
        return all(partition.finished for partition in partitions)

    # -- turns

    async def _take_turns(self) -> None:
        while True:
            taken = await self._schedule.next()
            turn = asyncio.create_task(self._turn(taken), name="turn")
            self._schedule.begun(turn, taken)
            turn.add_done_callback(self._turned)

    async def _run_timers(self, source: Source) -> None:
        """Ask the store who is due, wherever a clock has passed somebody."""
        clock = self._tools.clock
        while True:
            await asyncio.sleep(TIMERS_S)
            positions = source.positions()
            newest_ms = max((p.opened.newest_ms for p in self._partitions.values() if p.opened), default=0)
            self._source_watch.look(source.topic_end(), clock.now_ms(), newest_ms)
            lives = self._own_clock or not self._source_watch.holds(clock.now_ms())
            asked = list[Opened]()
            late_ms = 0
            for number, partition in self._partitions.items():
                if number in positions:
                    partition.lag(positions[number], clock.monotonic_s())
                partition.source_lives = lives
                partition.volume.look(partition.opened, partition.progress.log)
                until, opened = partition.timers_until, partition.opened
                if opened is None or until is None:
                    continue
                late_ms = max(late_ms, until[0] - (opened.due.next_ms or until[0]))
                # Also of a partition that is in a turn: one that always has events is hardly ever met outside of one.
                if opened.due.ready(until, partition.timers_first):
                    self._schedule.is_due(partition)
                elif opened.due.asks(until) and not partition.takes_due:
                    asked.append(opened)
            quiet = not self._own_clock and self._source_watch.quiet_ms(clock.now_ms()) > 0
            low = sum(partition.volume.low_share is not None for partition in self._partitions.values())
            self._tools.telemetry.timers(quiet, low, late_ms / 1000)
            await self._ask_due(asked)

    async def _ask_due(self, opened: Sequence[Opened]) -> None:
        asked = [(each.partition, DUE_AT_ALL_MS, each.due.ask()) for each in opened]
        for each, found in zip(opened, await answers(self._tools.store.due_each(asked)), strict=True):
            failed = isinstance(found, Exception)
            if failed:
                each.due.unanswered()  # it is asked again; an outage shows elsewhere
            else:
                each.due.answer(*found)
            partition = self._partitions.get(each.partition)
            if partition is None or partition.opened is not each:
                continue  # nobody's any more, or opened anew meanwhile
            if not failed:
                self._schedule.is_due(partition)
            elif not isinstance(found, RETRIED):
                # Asked again and again it would hold its timers, and nobody would know.
                partition.fail(found)

    async def _turn(self, taken: Sequence[Taken]) -> None:
        errors: dict[int, Exception | None]
        try:
            errors = await self._pipeline.turn([piece for _, piece in taken])
        except RETRIED as error:
            errors = {partition.number: error for partition, _ in taken}
        except Exception as error:
            if len(taken) == 1:
                errors = {taken[0].partition.number: error}
            else:
                log.exception("a turn failed: its partitions are tried one by one")
                errors = {}
                for partition, piece in taken:
                    partition.retry_alone(piece)
                return
        for partition, piece in taken:
            partition.settle(piece, errors[partition.number])
            if piece.due is not None and self._partitions.get(partition.number) is partition:
                self._schedule.is_due(partition)  # there may be more of the page

    def _turned(self, turn: asyncio.Task[None]) -> None:
        self._schedule.ended(turn)
        self._ended(turn)

    async def _keep_house(self) -> None:
        """Idle partitions acknowledge their outboxes, and look whether their state is still there."""
        looked_s = 0.0
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            now_s = self._tools.clock.monotonic_s()
            if now_s - looked_s >= LOOK_S:
                looked_s = now_s
                self.lags()
            idle = [p for p in self._partitions.values() if p.opened is not None and not p.waits]
            acks = [
                Taken(p, piece)
                for p in idle
                if now_s - p.idle_since_s >= ACK_AFTER_S and (piece := p.take_acknowledgement())
            ]
            for at in range(0, len(acks), self._limits.turn_partitions_max):
                await self._turn(acks[at : at + self._limits.turn_partitions_max])
            asked = [p for p in idle if p.idle_check_is_due(now_s)]
            if asked:
                await self._verify(asked)

    async def _verify(self, partitions: Sequence[Partition]) -> None:
        opened = [p.opened for p in partitions if p.opened is not None]
        expected = [each.stored for each in opened]
        try:
            wrong: dict[int, Exception] = await self._pipeline.verify_fence(opened)
        except RETRIED as error:
            wrong = dict.fromkeys(range(len(opened)), error)
        for i, why in wrong.items():
            partition = self._partitions.get(opened[i].partition)
            # A turn of ours may have moved it while we asked.
            unmoved = partition is not None and partition.opened is opened[i] and not partition.in_turn
            if partition is not None and unmoved and opened[i].stored == expected[i]:
                partition.fail(why)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or self._fatal is None or self._fatal.done():
            return
        error = task.exception()
        if error is not None:
            self._fatal.set_exception(error)
