"""The arguments of the compiled fold: what each array holds, its shape, dtype and unit.

n rows, m places for points, e events; K kinds, C values an event, G further targets, W windows, T tiles of all windows,
D kinds with decays, H half-lives, A attributes, B 64-day words, L sequence entries, R remembered ids, S silences, F
points after the first activity, Z changes of a zone's offset, X stores of values (`featurestore/aggregations.py`).
Times are int64 milliseconds UTC, durations int64 milliseconds.
`arrays.py` makes them; the loop is compiled once for these types.
"""

from collections import namedtuple
from typing import Any, NamedTuple

import numpy as np

from ebbtide.featurestore.aggregations import STORES

ROLES = {"activity": 0, "contact": 1, "terminal": 2, "attribute": 3}
SCORES = {"never": 0, "auto": 1, "always": 2}

NOT_IN_RING = -2


class Plan(NamedTuple):
    """The spec as plain numbers; read only. It is part of the layout's id: a number that is added later gets a default
    that means *as before*, and does not count in the id where it has it.

    role:           uint8[K], of ROLES           score:          uint8[K], of SCORES
    hop:            int64[W], length of a tile   tiles:          int64[W], tiles of a window
    tile_start:     int64[W], first tile of each window among the T
    count_slot, decay_slot, attribute_slot: int64[K], a kind's row in `tile_count`, `decay`, the attributes, or -1
    ring_slot:      int64[K], which of a kind's values the sequence holds, -1 for none, -2 for a kind that is not in it
    row:            int64[X, K, C], the first row of each value in each store, or -1
    rows:           int64[X], rows of each store
    half_life:      float64[H], ms               silence:        int64[S], gaps after the last activity, ascending
    after_first:    int64[F], gaps after the first activity at which a customer is scored
    counted, decays, day_words, dedupe: rows of `tile_count`, D, B, R, since a field of no entries is stood in for by
    one of another size
    target:         uint8[K], 1 for kinds whose events arm silence
    target_column:  int64[K], the value that is compared, or -1     target_low, target_high: float64[K], its bounds
    target_apart:   whether the target's last event is kept apart from the last activity
    further:        uint8[G, K], 1 for kinds whose events are a further target's; further_column, further_low,
                    further_high: [G, K], as those of the primary one above
    further_arms:   uint8[G], whether its absence is churn, so that it arms a schedule of silences of its own
    week_since, week_offset: int64[Z], the zone's offsets and since when      week_buckets: of a week, or 0
    memory, longest_window, coalesce, score_every: durations
    min_events:     activities, and min_tenure, max_tenure, max_silence: durations, of who is scored at all
    """

    role: Any
    score: Any
    hop: Any
    tiles: Any
    tile_start: Any
    count_slot: Any
    decay_slot: Any
    attribute_slot: Any
    ring_slot: Any
    row: Any
    rows: Any
    half_life: Any
    silence: Any
    after_first: Any
    target: Any
    target_column: Any
    target_low: Any
    target_high: Any
    target_apart: int
    week_since: Any
    week_offset: Any
    week_buckets: int
    counted: int
    decays: int
    day_words: int
    dedupe: int
    memory: int
    longest_window: int
    coalesce: int
    score_every: int
    min_events: int
    min_tenure: int
    max_tenure: int
    max_silence: int
    further: Any = np.zeros((0, 0), np.uint8)
    further_column: Any = np.zeros((0, 0), np.int64)
    further_low: Any = np.zeros((0, 0), np.float64)
    further_high: Any = np.zeros((0, 0), np.float64)
    further_arms: Any = np.zeros(0, np.uint8)


_OWN_FIELDS = (
    "first_seen", "last_seen", "last_seen_offset", "event_time", "row_watermark", "decided_at", "terminated_at",
    "gap_mean", "gap_m2",
    "kind_last", "tile_head", "day_bits", "target_last", "attribute_at", "recent_id", "kind_count", "decay",
    "attribute_value", "ring_value", "ring_gap", "activity_count", "gap_count", "late_count", "day_head", "tile_count",
    "ring_count", "ring_head", "ring_kind", "week_count", "recent_head", "silence_index",
    "further_last", "further_index",
)  # fmt: skip
FIRST_STORE = len(_OWN_FIELDS)
"""Index into `Fields` of the first store; the others follow it."""
FIELDS = (*_OWN_FIELDS, *(store.field for store in STORES))
Fields: Any = namedtuple("Fields", FIELDS)  # type: ignore[misc]  # its names are the table's
"""The record fields that the fold reads and writes, as strided views of the rows' memory: shape [n] or [n, …], the rest
and the dtype as `Layout` draws them."""


class PointBuffer(NamedTuple):
    """Where points and counts are written.

    as_u64:   uint64[m, itemsize / 8], the record at the point     customer: int32[m], its row
    as_of:    int64[m], ms UTC          cause: uint8[m]            event: int32[m], index of the event, -1 = time alone
    used:     int64[1], how many points there are
    counts:   int64[3], events of LATE, DUPLICATE, BEHIND_WATERMARK
    """

    as_u64: Any
    customer: Any
    as_of: Any
    cause: Any
    event: Any
    used: Any
    counts: Any


LATE, DUPLICATE, BEHIND_WATERMARK = range(3)
