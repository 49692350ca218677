"""How many rows go to the model next: a pure decision of the queue, the clock and the learned cost of each size.

latency contract of one row: (dispatch under way) + (dispatches of older rows) + its own dispatch
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ebbtide.stream.telemetry import Reason

COST_MEMORY = 0.1
"""Weight of the newest measurement in a size's learned cost: about the last ten dispatches count."""


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Send the `rows` oldest rows now, padded to `size`."""

    rows: int
    size: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do for `seconds`, or until a row arrives when None."""

    seconds: float | None


@dataclass(frozen=True, slots=True)
class Waiting:
    """The queue as the decision sees it; all times on one monotonic clock, seconds."""

    rows: int
    oldest_deadline_s: float
    first_queued_s: float


class CostModel:
    """Seconds a dispatch of each padded size takes: an exponential average, seeded by a straight line through zero."""

    def __init__(self, sizes: Sequence[int], *, row_seconds: float = 5e-5) -> None:
        self.sizes = tuple(sizes)
        self._seconds = {size: size * row_seconds for size in sizes}

    def learn(self, size: int, seconds: float) -> None:
        """Take one measured dispatch into account."""
        self._seconds[size] += COST_MEMORY * (seconds - self._seconds[size])

    def seconds(self, size: int) -> float:
        """What a dispatch of that padded size is expected to take."""
        return self._seconds[size]

    def padded(self, rows: int) -> int:
        """The smallest size that holds `rows`, or the largest there is."""
        return next((size for size in self.sizes if size >= rows), self.sizes[-1])

    def first(self, rows: int) -> tuple[int, float]:
        """The size to send first of `rows` >= 1 rows, and the seconds until the last of at most the largest size is
        scored: padded up in one dispatch, or one that is full and the rest after it, whichever clears them sooner."""
        up = self.padded(rows)
        filled = next((size for size in reversed(self.sizes) if size <= rows), up)
        if filled < up:
            seconds = self._seconds[filled] + self.first(rows - filled)[1]
            if seconds < self._seconds[up]:
                return filled, seconds
        return up, self._seconds[up]


def decide(waiting: Waiting, now_s: float, costs: CostModel, linger_s: float) -> Dispatch | Wait:
    """What to do now that the scorer is free. Pure.

    Nothing waits -> Wait(None). Too few for the largest size and younger than `linger_s` -> Wait. Otherwise a
    Dispatch: of the sizes that the waiting rows could fill or be padded to, the largest that still meets the oldest
    deadline; when none can meet it any more the largest, which clears a backlog fastest. Padding up is refused where
    filling smaller sizes, one after the other, costs less (`CostModel.first`).
    """
    if waiting.rows == 0:
        return Wait(None)
    largest = costs.sizes[-1]
    age = now_s - waiting.first_queued_s
    if waiting.rows < largest and age < linger_s:
        return Wait(linger_s - age)
    size, _ = costs.first(waiting.rows)
    slack = waiting.oldest_deadline_s - now_s
    if costs.seconds(size) > slack:
        in_time = [s for s in costs.sizes if s < size and costs.seconds(s) <= slack]
        if in_time:
            return Dispatch(min(in_time[-1], waiting.rows), in_time[-1], "deadline")
    rows = min(size, waiting.rows)
    if rows == size:
        return Dispatch(rows, size, "full")
    return Dispatch(rows, size, "linger" if linger_s > 0 else "idle")
