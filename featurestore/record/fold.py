"""The fold: events into records, and the points at which a customer is scored.

    fold(rows, events) -> rows', points

It is pure and deterministic: a function of the events in offset order and of nothing else. No clock, no randomness, no
dependence on how the log was cut into batches; so a replay, a catch-up and live traffic all end in the same bytes and
decide at the same points. It does no I/O and knows no model; what a decision *is* belongs to `stream/decision/`.

One event of a customer, in the order of the steps in `fold_events`:

    time ──●────────────●──────┬─────────┬───────────────────────────●──▶
         event        event   silence   silence  (schedule after      next event: 1. the silences that lie before it
                               point     point    the last activity)               2. a fresh row after `memory`
                                                                                   3. counters, tiles, decays, rhythm
                                                                                   4. its own decision point

What time alone brings about, silences and at last the expiry, `elapse` takes as of the same times, to the same bytes
and the same points: whether a timer or the next event notices makes no difference.

`row_watermark` is the latest time the row has been looked at (an event folded, or a silence taken). Decision points of
a row never move back: an event that comes late is folded where it belongs (its tiles, its counts), and decided as of
`row_watermark`. It moves `first_seen` back by no more than `memory` before the latest event.

The loop itself is in `loop.py`, the arrays it works on in `arrays.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.record.arguments import PointBuffer
from ebbtide.featurestore.record.arrays import column, grow, point_buffer, writable_fields
from ebbtide.featurestore.record.layout import Layout, Rows
from ebbtide.featurestore.record.loop import (
    EVENT,
    EXPIRED,
    EXPIRY_GRACE_MS,
    RESET,
    RETURNED,
    SILENCE,
    TERMINAL,
    armed_at,
    elapse_rows,
    eligible,
    fold_events,
)

__all__ = [
    "CAUSES",
    "EVENT",
    "EXPIRED",
    "EXPIRY_GRACE_MS",
    "RESET",
    "RETURNED",
    "SILENCE",
    "TERMINAL",
    "FoldCounts",
    "Folder",
    "Points",
]

CAUSES = {
    EVENT: "event",
    SILENCE: "silence",
    TERMINAL: "terminal",
    RESET: "reset",
    RETURNED: "returned",
    EXPIRED: "expired",
}
"""A point's cause in words, as alerts, scores, metrics and tables name it."""


@dataclass(frozen=True, slots=True)
class Points:
    """m points of the batch, in the order in which they are to be decided.

    rows:     records[m], a copy of the customer's record as it was at the point (RESET, RETURNED and EXPIRED: the
              last time before it was forgotten)
    customer: int32[m], index into the batch's customers (or into the rows that were elapsed)
    as_of:    int64[m], ms UTC, the row's watermark, or when it returned or expired; never decreasing for one customer,
              save over a tombstone
    cause:    uint8[m], of CAUSES
    event:    int32[m], index of the event that brought the point about, -1 when time alone did
    """

    rows: Rows
    customer: NDArray[np.int32]
    as_of: NDArray[np.int64]
    cause: NDArray[np.uint8]
    event: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.as_of)

    @property
    def scored(self) -> NDArray[np.bool_]:
        """bool[m]: the points that a model is asked about."""
        return self.cause <= SILENCE

    def take(self, chosen: NDArray[Any]) -> "Points":
        """The points of a mask bool[m] or of indices, copied."""
        return Points(*(getattr(self, f.name)[chosen] for f in fields(self)))

    @property
    def of_time(self) -> NDArray[np.bool_]:
        """bool[m]: the points that time alone brings about, whoever notices: a timer or the next event."""
        brought: NDArray[np.bool_] = (self.cause == SILENCE) | (self.cause == EXPIRED)
        return brought

    @classmethod
    def joined(cls, layout: Layout, parts: Sequence["Points"]) -> "Points":
        """Points of one layout one after the other; none of them when there is no part."""
        none = np.zeros(0, np.int32)
        parts = [cls(layout.empty(0), none, none.astype(np.int64), none.astype(np.uint8), none), *parts]
        rows = np.concatenate(
            [points.rows.view(f"V{layout.itemsize}") for points in parts]
        )  # else field by field
        columns = (np.concatenate([getattr(points, f.name) for points in parts]) for f in fields(cls)[1:])
        return cls(rows.view(layout.dtype), *columns)


class FoldCounts(NamedTuple):
    """Events of one fold that are no news: `late`, older than the longest window behind the customer's latest;
    `duplicates`, skipped by their id; `behind_watermark`, older than the last time the row was looked at (late ones
    among them)."""

    late: int
    duplicates: int
    behind_watermark: int


class Folder:
    """The fold of one layout. Instances are cheap, hold no state and may be shared between threads."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._plan = layout.plan
        schedules = 1 + int(self._plan.further_arms.sum())
        self._by_time = schedules * len(self._plan.silence) + len(self._plan.after_first)

    def fold(self, rows: Rows, events: EventBatch) -> tuple[Rows, Points]:
        """Fold n events into the m rows of `events.customers`. `rows` is left as it was; a new array is returned."""
        folded, points, _ = self.fold_counted(rows, events)
        return folded, points

    def fold_counted(self, rows: Rows, events: EventBatch) -> tuple[Rows, Points, FoldCounts]:
        """`fold`, and what was late or twice among the events."""
        folded, fields, words = writable_fields(self.layout, rows)
        columns = (
            column(events.customer, np.int32), column(events.kind, np.uint8), column(events.time, np.int64),
            column(events.values, np.float64), column(events.event_id, np.uint64), column(events.position, np.int64),
        )  # fmt: skip
        # One event may bring every silence of the schedule, a fresh row and its own point.
        n, most = len(events), self._by_time + 2
        room, done = point_buffer(self.layout, 2 * n + most), 0
        while (done := fold_events(fields, self._plan, words, room, most, done, *columns)) < n:
            room = grow(self.layout, room)
        return folded, self._points(room), FoldCounts(*room.counts.tolist())

    def elapse(self, rows: Rows, until_ms: NDArray[np.int64] | int) -> tuple[Rows, Points]:
        """Take every silence, and at last the expiry, that is due before `until_ms` (one time, or int64[n], one a
        row). Who has expired is zero bytes."""
        elapsed, fields, words = writable_fields(self.layout, rows)
        n, most = len(rows), self._by_time + 1
        until = np.broadcast_to(np.asarray(until_ms, np.int64), n).copy()
        room, done = point_buffer(self.layout, n + most), 0
        while (done := elapse_rows(fields, self._plan, words, room, most, done, until)) < n:
            room = grow(self.layout, room)
        return elapsed, self._points(room)

    def due(self, rows: Rows) -> NDArray[np.int64]:
        """int64[n], ms UTC: each row's next silence, or at last its expiry, when the record is to be deleted."""
        last_seen, armed = rows["last_seen"], self.armed_at(rows)
        renewed = np.maximum(last_seen, armed)
        anchor = np.where(renewed != 0, renewed, rows["event_time"])
        expiry = np.maximum(anchor + self._plan.memory + EXPIRY_GRACE_MS, rows["row_watermark"])
        # A time of 0 is never: what would count from it lies behind every watermark.
        further = rows["further_last"][:, self._plan.further_arms != 0]
        points = np.concatenate(
            [
                armed[:, None] + self._plan.silence,
                rows["first_seen"][:, None] + self._plan.after_first,
                (further[:, :, None] + self._plan.silence).reshape(
                    len(rows), further.shape[1] * len(self._plan.silence)
                ),
            ],
            axis=1,
        )
        here = (last_seen != 0) & (rows["terminated_at"] == 0)
        ahead = here[:, None] & (points > rows["row_watermark"][:, None])
        due: NDArray[np.int64] = np.where(ahead, points, expiry[:, None]).min(axis=1)
        return due

    def eligible(self, rows: Rows, as_of: NDArray[np.int64] | int) -> NDArray[np.bool_]:
        """bool[n]: would this row be scored as of then? The rule of the spec's `eligibility`."""
        fields = (rows[name] for name in ("terminated_at", "activity_count", "first_seen"))
        # The very rule of the loop, run by NumPy on columns.
        chosen: NDArray[np.bool_] = eligible.py_func(self._plan, *fields, self.armed_at(rows), as_of)
        return chosen

    def armed_at(self, rows: Rows) -> NDArray[np.int64]:
        """int64[n], ms UTC: from when each row's silence counts, the last event of what the spec's target is made of;
        0 where there is none yet."""
        apart = rows["target_last"][:, 0] if self._plan.target_apart else None
        armed: NDArray[np.int64] = armed_at.py_func(self._plan, rows["last_seen"], apart)
        return armed

    def last_target(self, rows: Rows) -> NDArray[np.int64]:
        """int64[n, targets], ms UTC: each target's last event, of the primary one from when silence counts; 0 where
        there is none yet."""
        return np.concatenate([self.armed_at(rows)[:, None], rows["further_last"]], axis=1)

    def _points(self, room: PointBuffer) -> Points:
        m = int(room.used[0])
        rows = room.as_u64[:m].reshape(-1).view(self.layout.dtype)
        return Points(rows, room.customer[:m], room.as_of[:m], room.cause[:m], room.event[:m])
