"""What the data path tells about itself, as a protocol: it knows no Prometheus, and a test listens with a list."""

from dataclasses import dataclass
from typing import Literal, Protocol

Stage = Literal["parse", "load", "fold", "score", "decide", "store", "emit"]
"""The parts of a batch whose seconds are told apart; `score` includes waiting for the scorer."""

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


@dataclass(frozen=True, slots=True)
class BatchDone:
    """One batch of a partition, applied and sent. `latency_s`: from the oldest record's Kafka timestamp to the last
    acknowledgement, or None for a batch without records. `lag`: offsets to the log's end when it was fetched."""

    partition: int
    position: int
    records: int
    events: int
    rejected: dict[str, int]
    ignored: int
    forgotten: int
    points: dict[str, int]
    alerts: dict[str, int]
    customers: int
    seconds: dict[Stage, float]
    latency_s: float | None
    lag: int | None


class Telemetry(Protocol):
    """Where the data path reports; every call is cheap and cannot fail."""

    def dispatched(self, dispatch: Dispatched) -> None: ...
    def batch_done(self, step: BatchDone) -> None: ...
    def assigned(self, partitions: frozenset[int]) -> None: ...
    def paused(self, partition: int) -> None: ...
    def resumed(self, partition: int) -> None: ...
    def reopened(self, partition: int, reason: str) -> None: ...
    def rebuilding(
        self, partition: int, remaining: int
    ) -> None: ...  # records until the state is where it was; 0: it is
    def stopped(self, partition: int, reason: str) -> None: ...  # by an error that only a person can mend
    def queued(self, rows: int) -> None: ...


class NullTelemetry:
    """Telemetry that goes nowhere: the default of tools and tests that do not ask."""

    def dispatched(self, dispatch: Dispatched) -> None: ...
    def batch_done(self, step: BatchDone) -> None: ...
    def assigned(self, partitions: frozenset[int]) -> None: ...
    def paused(self, partition: int) -> None: ...
    def resumed(self, partition: int) -> None: ...
    def reopened(self, partition: int, reason: str) -> None: ...
    def rebuilding(self, partition: int, remaining: int) -> None: ...
    def stopped(self, partition: int, reason: str) -> None: ...
    def queued(self, rows: int) -> None: ...
