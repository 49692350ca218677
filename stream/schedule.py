"""Whose turn it is: which partitions the next turn takes, of what, and when.

    fair   whoever has waited longest is first; a piece a partition and turn, so a backlog never holds up the others
    half   under a backlog a turn takes half of the waiting partitions, so that there is work for the second place
    pace   without one, what comes while a turn is under way waits for its end, at most GATHER_S: a turn costs nearly
           the same for one event as for ten. An idle worker answers at once
    time   customers who are due have turns of their own, one at a time, no more a second than is allowed: when no event
           waits, after three turns of events, and of a partition that always has events after three of its own

It begins no turn and knows none but by its task. Invariant: no more turns at once than `turns_in_flight`, and whoever
was noted is taken, or forgotten, in the end.
"""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from ebbtide.featurestore.store.commit import CUSTOMERS_MAX
from ebbtide.stream.clock import Clock
from ebbtide.stream.partition import Partition
from ebbtide.stream.turn.limits import Limits
from ebbtide.stream.turn.timers import Allowance
from ebbtide.stream.turn.work import Piece

BACKLOG_RECORDS = 256
"""More than this waiting is a backlog: then two turns of half the partitions overlap, and take less time than one."""
GATHER_S = 0.005
"""How long what waits, and is no backlog, may wait for the turn under way to end before a second begins beside it."""
EVENTS_IN_A_ROW_MAX = 3
"""Timers get at least one turn in four of a partition."""


class Taken(NamedTuple):
    """A piece in a turn, and whose it is."""

    partition: Partition
    piece: Piece


class Schedule:
    """`waits`, `is_due` and `forget` note what there is; `next` takes the pieces of a turn, and `begun` and `ended` say
    that it runs."""

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self._limits, self._clock = limits, clock
        self._waiting: dict[int, Partition] = {}
        """Who has a piece of its log to give, longest first."""
        self._due: dict[int, Partition] = {}
        """Who has customers who are due."""
        self._allowance = Allowance(limits.timers.customers_per_s_max)
        self.turns: set[asyncio.Task[None]] = set()
        """Those under way."""
        self._timers_turn: asyncio.Task[None] | None = None
        """The one of them, or the last one, that took customers who are due."""
        self._log_turns = 0  # since one took customers who are due
        self._began_s = 0.0  # the last of them that took what waited
        self._wake = asyncio.Event()
        self._alarm: asyncio.TimerHandle | None = None

    def waits(self, partition: Partition) -> None:
        """It has a piece of its log to give."""
        self._waiting.setdefault(partition.number, partition)
        self._wake.set()

    def is_due(self, partition: Partition) -> None:
        """It has customers who are due."""
        self._due.setdefault(partition.number, partition)
        self._wake.set()

    def forget(self, number: int) -> None:
        """It is no longer ours."""
        self._waiting.pop(number, None)
        self._due.pop(number, None)

    async def next(self) -> list[Taken]:
        """The pieces of the next turn, one at least, as soon as something waits and there is a place for it."""
        while not (taken := self._take()):
            await self._wake.wait()
            self._wake.clear()
        return taken

    def begun(self, turn: asyncio.Task[None], taken: Sequence[Taken]) -> None:
        """A turn took them."""
        if taken[0].piece.due is None:
            self._began_s = self._clock.monotonic_s()
            self._log_turns += 1
        else:
            self._timers_turn, self._log_turns = turn, 0
        self.turns.add(turn)

    def ended(self, turn: asyncio.Task[None]) -> None:
        """Its place is free."""
        self.turns.discard(turn)
        self._wake.set()

    def _take(self) -> list[Taken]:
        """The pieces of a turn that may begin now: of the logs, or of who is due, never of both. What is due may be
        hundreds of alerts; an event that shared a turn with them would wait for all of them to be sent."""
        if not (self._waiting or self._due) or len(self.turns) >= self._limits.turns_in_flight:
            return []
        backlog = self._backlog()
        if self.turns - {self._timers_turn} and not backlog:
            early_s = self._began_s + GATHER_S - self._clock.monotonic_s()
            if early_s > 0:
                self._wake_in(early_s)
                return []
        pressing = self._take_due(after=0 if self._log_turns >= EVENTS_IN_A_ROW_MAX else EVENTS_IN_A_ROW_MAX)
        taken = pressing or self._take_waiting(backlog) or self._take_due()
        if not taken and self._due and (wait_s := self._allowance.wait_s(self._clock.monotonic_s())):
            self._wake_in(wait_s)
        return taken

    def _take_waiting(self, backlog: bool) -> list[Taken]:
        """Pieces of the logs, whoever has waited longest first."""
        limits, taken, records = self._limits, list[Taken](), 0
        room = limits.turn_partitions_max
        if backlog and not self.turns:
            room = min(room, -(-len(self._waiting) // 2))
        for number, partition in list(self._waiting.items()):
            if len(taken) == room or records >= limits.turn_records_max or (taken and partition.alone):
                break
            del self._waiting[number]
            piece = partition.take() or (partition.take_acknowledgement() if partition.draining else None)
            if piece is None:
                continue
            taken.append(Taken(partition, piece))
            records += 0 if piece.batch is None else len(piece.batch.records)
            if partition.alone:
                break
        return taken

    def _take_due(self, after: int = 0) -> list[Taken]:
        """Customers who are due, of partitions that gave `after` pieces of their logs since they last had a turn for
        it; of as few partitions as there is allowance for, and one such turn at a time, since no event of theirs is
        taken meanwhile."""
        taken, allowed = list[Taken](), self._allowance.left(self._clock.monotonic_s())
        if self._timers_turn is not None and not self._timers_turn.done():
            return taken
        for number, partition in list(self._due.items()):
            if len(taken) == self._limits.turn_partitions_max or not allowed or (taken and partition.alone):
                break
            if partition.in_turn or partition.turns_without_timers < after:
                continue  # afterwards
            del self._due[number]
            # A state that is made again has to be where it was before anything else happens.
            if piece := partition.take_due(CUSTOMERS_MAX if partition.timers_first else allowed):
                taken.append(Taken(partition, piece))
                allowed = max(allowed - piece.customers_due, 0)
                self._allowance.spend(piece.customers_due)
                if partition.alone:
                    break
        return taken

    def _backlog(self) -> bool:
        """Nobody knows how much waits without looking; a queue of more than one batch is a backlog."""
        return sum(partition.queued_records for partition in self._waiting.values()) > BACKLOG_RECORDS

    def _wake_in(self, seconds: float) -> None:
        """Look again then, or before."""
        loop = asyncio.get_running_loop()
        when = loop.time() + seconds
        if self._alarm is None or not loop.time() < self._alarm.when() <= when:
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm = loop.call_at(when, self._wake.set)
