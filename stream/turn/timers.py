"""What time it is for a partition's customers, as far as its log can prove; told the time.

    events   ──●──●───●──●──|        the log's end, seen reached at wall time w
    clock    ─────────|              w - lateness_max: whoever was silent until then will stay so

The timer clock never runs ahead of a backlog that would disprove a silence: while the log's end is not reached, it is
the Kafka timestamp of the last record folded, never above the wall; so also while an open transaction hides what lies
behind the last stable offset, which producers who work in transactions may never let reach the log's end. It holds
while nobody says where the log ends (a fetch, or who asks every two seconds), and while a partition is opened or made
again. It holds for all partitions when the whole topic has been quiet for `source_quiet_max`, and for
one whose log brings less than `source_share_min` of what it usually does (`volume.py`): silence of the producers is not
silence of the customers.

Under the logical clock, of a replay, time is the log's own: the last Kafka timestamp folded, wherever the log ends.
"""

import logging
from dataclasses import dataclass
from typing import Literal

from ebbtide.stream.batch import LogPosition
from ebbtide.stream.turn.opened import Opened

log = logging.getLogger(__name__)

MINUTE_MS = 60_000


@dataclass(frozen=True, slots=True)
class TimerLimits:
    """lateness_max_ms: how late an event may come before its customer's silence is taken. source_quiet_max_ms: a topic
    without a record for so long has lost its producers. customers_per_s_max: who is due is taken no faster by one
    worker, after downtime. clock: the wall's, or of a replay the log's own ("event"); "off": only events tell who was
    silent, and nothing is deleted of who does not come back. source_share_min: a partition whose log brings less than
    this share of what is usual at that hour of the week has lost some of its producers; 0: as little as it likes."""

    lateness_max_ms: int = 5 * MINUTE_MS
    source_quiet_max_ms: int = 30 * MINUTE_MS
    customers_per_s_max: int = 2_000
    clock: Literal["wall", "event", "off"] = "wall"
    source_share_min: float = 0.2


NO_TIMERS = TimerLimits(clock="off")


def timer_clock(log: LogPosition, offset: int, newest_ms: int, limits: TimerLimits) -> int:
    """The timer clock of a partition that has applied its log up to `offset`, ms UTC; 0 when nothing is known.

    newest_ms: Kafka timestamp of the last record applied. It may be below an earlier one: the partition's clock holds
    then, since its checkpoint never moves back.
    """
    if limits.clock == "off":
        return 0
    if limits.clock == "event":
        return newest_ms - limits.lateness_max_ms
    reached = offset >= log.high_watermark
    return (log.seen_ms if reached else min(newest_ms, log.seen_ms)) - limits.lateness_max_ms


class SourceWatch:
    """Is the whole topic quiet? Told where all of its logs end, together. Until a record was seen to come nobody knows,
    and timers hold: a worker that starts while the producers are away must not take that for silence."""

    def __init__(self, quiet_max_ms: int) -> None:
        self._quiet_max_ms = quiet_max_ms
        self._end, self._moved_ms, self._began_ms = -1, 0, 0

    def look(self, end: int, now_ms: int, newest_ms: int) -> None:
        """`end`: the sum of all partitions' log ends, -1 when it is not known; `newest_ms`: the Kafka timestamp of the
        newest record that was applied, 0 when there is none."""
        if end > self._end >= 0:
            self._moved_ms = now_ms
        self._end = max(self._end, end)
        self._began_ms = self._began_ms or now_ms
        self._moved_ms = max(self._moved_ms, min(newest_ms, now_ms))

    def holds(self, now_ms: int) -> bool:
        """A silence cannot be told from the source's."""
        return now_ms - self._moved_ms > self._quiet_max_ms

    def quiet_ms(self, now_ms: int) -> int:
        """For how long no record came, as far as was seen; 0 while that is no longer than it may be."""
        quiet_ms = now_ms - max(self._moved_ms, self._began_ms or now_ms)
        return quiet_ms if quiet_ms > self._quiet_max_ms else 0


class VolumeWatch:
    """Does a partition's log bring enough to take a silence for its customer's own?

    low_share: what it brings, as a share of what is usual, while that is too little; else None. A replay, whose clock
    is the log's own, waits for nobody.
    """

    def __init__(self, partition: int, limits: TimerLimits) -> None:
        self._partition, self._limits = partition, limits
        self._share_min = limits.source_share_min if limits.clock == "wall" else 0.0
        self.low_share: float | None = None

    def look(self, opened: Opened | None, position: LogPosition) -> None:
        """Several times a second. None: it is not open, and nobody knows."""
        share = None
        if opened is not None and self._share_min:
            clock_ms = timer_clock(position, opened.checkpoint.offset, opened.newest_ms, self._limits)
            if clock_ms <= 0:
                return  # nothing known: as it was
            share = opened.volume.share(clock_ms + self._limits.lateness_max_ms)
        low = share is not None and share < self._share_min
        if opened is not None and low != (self.low_share is not None):
            what = "timers hold: its log brings too little" if low else "timers go on: its log brings enough"
            log.warning(what, extra={"partition": self._partition, "share": share})
        self.low_share = share if low else None


class Allowance:
    """A bound of customers a second, in portions: a turn has its price, however few it takes, and one that takes many
    keeps events waiting. What is not used up is kept, no more than a portion beyond the one that is due."""

    PORTIONS_PER_S = 50

    def __init__(self, per_s: int) -> None:
        self._per_s, self._portion = per_s, max(per_s / self.PORTIONS_PER_S, 1.0)
        self._left, self._at_s = self._portion, 0.0

    def left(self, now_s: float) -> int:
        """How many may be taken now: none before there is a portion."""
        self._left = min(2 * self._portion, self._left + (now_s - self._at_s) * self._per_s)
        self._at_s = now_s
        return int(self._left) if self._left >= self._portion else 0

    def wait_s(self, now_s: float) -> float:
        """How long until there is a portion, seconds; 0 when there is one."""
        return 0.0 if self.left(now_s) else max(self._portion - self._left, 0.001) / self._per_s

    def spend(self, customers: int) -> None:
        """So many were taken."""
        self._left -= customers
