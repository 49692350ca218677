"""Whether a partition gets on: where it is, where its log ends, and since when something waits.

It outlives the partition's closing and opening again: to come back to the same place again and again is no progress,
and what waited then still waits.
"""

from ebbtide.stream.batch import LogPosition
from ebbtide.stream.telemetry import Lag

STALLED_S = 30.0
"""A partition whose log holds more than it has committed, and that commits nothing for so long, is not ready."""


class Progress:
    """`since_s` on the monotonic clock: when something was last committed, or there was last nothing to commit.
    `waiting_since_ms`: Kafka's timestamp of the oldest record that was fetched and is not committed; None without one.
    `position`: the offset that it was last known to be at; -1 before the first opening. `log`: where its log ends."""

    def __init__(self, now_s: float) -> None:
        self.since_s = now_s
        self.waiting_since_ms: int | None = None
        self.position = -1
        self.log = LogPosition(-1, -1, -1)

    def opened(self, position: int, now_s: float) -> None:
        """It was opened at `position`."""
        if self.position != position:
            self.since_s = now_s
        self.position = position

    def fetched(self, oldest_ms: int | None, now_s: float) -> None:
        """Something came; `oldest_ms`: of the oldest record in hand."""
        if self.waiting_since_ms is None:
            self.since_s, self.waiting_since_ms = now_s, oldest_ms

    def committed(self, position: int, oldest_ms: int | None, now_s: float) -> None:
        """It moved to `position`; `oldest_ms`: of what is in hand still."""
        self.position, self.waiting_since_ms, self.since_s = position, oldest_ms, now_s

    def look(self, log: LogPosition, now_s: float, *, is_open: bool) -> None:
        """Note where its log ends: who is there makes progress by waiting."""
        self.log = log
        if is_open and log.high_watermark <= self.position:
            self.since_s, self.waiting_since_ms = now_s, None

    def lag(self, now_s: float, now_ms: int) -> Lag | None:
        """As of now, also while it is closed; None before its place or its log's end is known."""
        _, high, stable, _ = self.log
        if self.position < 0 or high < 0:
            return None
        blocked = max(high - stable, 0) if stable >= 0 else 0
        records, stalled_s = max(high - self.position, 0), now_s - self.since_s
        if not records:
            return Lag(0, blocked, 0.0, 0.0)
        since_ms = self.waiting_since_ms
        return Lag(
            records, blocked, stalled_s, stalled_s if since_ms is None else max(now_ms - since_ms, 0) / 1000
        )

    def stalled(self, now_s: float) -> str:
        """Why it stands still, in words; empty when it moves, or has nothing to do."""
        still_s = now_s - self.since_s
        if still_s < STALLED_S:
            return ""
        _, high, stable, _ = self.log
        if self.position >= stable >= 0 and high > stable:
            return f"an open transaction of a producer has held back {high - stable:,} records for {still_s:.0f} s"
        return f"nothing of it was committed for {still_s:.0f} s, and something waits"
