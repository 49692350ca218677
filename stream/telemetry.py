"""What the data path tells about itself, as a protocol: it knows no Prometheus, and a test listens with a list."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ebbtide.stream.batch import FetchedBatch, Record

Stage = Literal["parse", "load", "fold", "score", "decide", "store", "emit"]
"""The parts of a turn whose seconds are told apart; `score` includes waiting for the scorer."""

Reason = Literal["idle", "full", "deadline", "linger"]
"""Why a dispatch went when it went, with the rows that it took."""


@dataclass(frozen=True, slots=True)
class Dispatched:
    """One call of the model. Seconds; `events` counts the events behind the rows; `padding` is rows of nothing."""

    reason: Reason
    version: int
    rows: int
    events: int
    size: int
    queue_age_s: float
    predicted_s: float
    actual_s: float

    @property
    def padding(self) -> int:
        return self.size - self.rows


class PieceDone(NamedTuple):
    """One partition's share of a turn that was applied: it is at offset `position` now. `rejected` of its `records` are
    bad. `lag`: offsets to the log's end when it was fetched, None where that is not known."""

    partition: int
    position: int
    records: int
    rejected: int
    lag: int | None


class AlertSent(NamedTuple):
    """One alert of a turn, acknowledged: what it is about is `offset` of `partition`, by the model's `version`.

    band: of risk, as the policy names it. probability: in [0, 1], None for who was not scored. record_age_s: since the
    Kafka timestamp of the record that it was decided at, None where a timer decided it. decision_age_s: since the
    moment as of which it was decided.
    """

    transition: str
    band: str
    cause: str
    probability: float | None
    version: int
    partition: int
    offset: int
    record_age_s: float | None
    decision_age_s: float


class Judged(NamedTuple):
    """The points of a turn that the model scored, all by `version`. p: float32[n] in [0, 1]. event_age_s: float64[k],
    of those that an event brought about, how old the event was."""

    version: int
    p: NDArray[np.float32]
    event_age_s: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class TurnDone:
    """A turn, applied and sent: what its pieces brought, all together, by name where there are kinds of it.

    `late`, `duplicates`, `behind_watermark`, `misplaced`: events, of the whole turn, also of a piece that was not
    applied. `forgotten`: of the `tombstones`, those that found a record and deleted it. `latency_s`: from the oldest
    record's Kafka timestamp to the last acknowledgement, None for a turn without records. `due`: customers whom timers
    took; `held`: transitions that nobody was told of, by why; `expired`: records that nobody renewed in time and that
    were deleted, `expired_bytes` of them before packing.
    """

    pieces: Sequence[PieceDone]
    records: int
    events: int
    rejected: dict[str, int]
    ignored: int
    late: int
    duplicates: int
    behind_watermark: int
    misplaced: int
    tombstones: int
    forgotten: int
    points: dict[str, int]
    held: dict[str, int]
    seconds: dict[Stage, float]
    latency_s: float | None
    sent: Sequence[AlertSent] = ()
    judged: Judged | None = None
    due: int = 0
    expired: int = 0
    expired_bytes: int = 0


class Lag(NamedTuple):
    """What a partition's log holds beyond what is committed. `records`: offsets to the high watermark; `blocked`: of
    them, behind an open transaction; `stalled_s`: seconds since it last committed something, 0 when nothing is left;
    `behind_s`: age of the oldest record that is not committed, by its Kafka timestamp once it was fetched, since it was
    first seen to be there before that; 0 when nothing is left."""

    records: int
    blocked: int
    stalled_s: float
    behind_s: float = 0.0


class Telemetry:
    """Where the data path reports; every call is made on the event loop, is cheap and must not raise.

    This class ignores all of it: whoever listens overrides what it wants to hear.
    """

    def dispatched(self, dispatch: Dispatched) -> None:
        """The model was called."""

    def turn_done(self, turn: TurnDone) -> None:
        """A turn was applied and sent."""

    def in_history(self, records: int) -> None:
        """So many records, often none, were left out: the file of a backfill held them."""

    def assigned(self, partitions: frozenset[int]) -> None:
        """These are ours now, and no others."""

    def paused(self, partition: int) -> None:
        """Its queue is full: it is fetched no more."""

    def resumed(self, partition: int) -> None:
        """It is fetched again."""

    def reopened(self, partition: int, reason: str) -> None:
        """It failed by an error of the class `reason`, and will be opened again."""

    def rebuilding(self, partition: int, remaining: int) -> None:
        """Offsets that remain until its state is where it was; 0 when it is."""

    def stopped(self, partition: int, reason: str) -> None:
        """It stopped by an error that only a person can mend."""

    def timers(self, hold: bool, low: int, late_s: float) -> None:
        """Several times a second. `hold`: nobody's silence is taken, since the whole topic has been quiet too long;
        `low`: in how many partitions nobody's is, since their logs bring less than is usual; `late_s`: for how long
        somebody has been due by the timer clock, and was not taken; 0 when nobody is."""

    def explained(self, rows: int, inexact: int, failed: int) -> None:
        """So many rows were to be explained; of `inexact` the parts did not add up, of `failed` there are none: neither
        are sent."""

    def queued(self, rows: int) -> None:
        """Rows wait for the scorer."""


class TurnTrace(Protocol):
    """One turn under way as a trace; the same manners as `Telemetry`: on the event loop, cheap, raising nothing."""

    def stage(self, stage: Stage, seconds: float) -> None:
        """A part of it has just ended, and took so long. A stage may come twice."""
        ...

    def alert(self, record: Record | None) -> Sequence[tuple[str, bytes]]:
        """Headers by which whoever reads an alert goes on with the trace: of the record that it was decided at, None
        where there is none (a silence)."""
        ...

    def done(self, turn: TurnDone | None, outcomes: Mapping[int, Exception | None]) -> None:
        """What it came to, None when nothing was applied; by partition, why that left the turn."""
        ...


Tracer = Callable[[Sequence[FetchedBatch]], AbstractContextManager[TurnTrace]]
"""Begins the trace of a turn over these batches; it ends with the block, also by an error."""
