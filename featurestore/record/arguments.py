"""The arguments of the compiled fold: what each array holds, its shape, dtype and unit.

n rows, m places for points, e events; K kinds, W windows, T tiles of all windows, V kinds with a value, D kinds with
decays, H half-lives, A attributes, B 64-day words, L sequence entries, R remembered ids, S silences. Times are int64
milliseconds UTC, durations int64 milliseconds. `arrays.py` makes them; the loop is compiled once for these types.
"""

from typing import Any, NamedTuple

ROLES = {"activity": 0, "contact": 1, "terminal": 2, "attribute": 3}
SCORES = {"never": 0, "auto": 1, "always": 2}


class Plan(NamedTuple):
    """The spec as plain numbers; read only. It is part of the layout's id: a number that is added later gets a default
    that means *as before*, and does not count in the id where it has it.

    role:           uint8[K], of ROLES           score:          uint8[K], of SCORES
    hop:            int64[W], length of a tile   tiles:          int64[W], tiles of a window
    tile_start:     int64[W], first tile of each window among the T
    value_slot, decay_slot, attribute_slot: int64[K], a kind's index among the V, D, A, or -1
    half_life:      float64[H], ms               silence:        int64[S], gaps after the last activity, ascending
    values, decays, day_words, dedupe: V, D, B, R, since a field of no entries is stood in for by one of another size
    memory, longest_window, coalesce, score_every: durations
    min_events:     activities, and min_tenure, max_silence: durations, of who is scored at all
    """

    role: Any
    score: Any
    hop: Any
    tiles: Any
    tile_start: Any
    value_slot: Any
    decay_slot: Any
    attribute_slot: Any
    half_life: Any
    silence: Any
    values: int
    decays: int
    day_words: int
    dedupe: int
    memory: int
    longest_window: int
    coalesce: int
    score_every: int
    min_events: int
    min_tenure: int
    max_silence: int


class Fields(NamedTuple):
    """The record fields that the fold reads and writes, as strided views of the rows' memory: shape [n] or [n, …], the
    rest and the dtype as `Layout` draws them."""

    first_seen: Any
    last_seen: Any
    event_time: Any
    row_watermark: Any
    decided_at: Any
    terminated_at: Any
    gap_mean: Any
    gap_m2: Any
    kind_last: Any
    tile_head: Any
    day_bits: Any
    attribute_at: Any
    recent_id: Any
    kind_count: Any
    decay: Any
    value_last: Any
    tile_sum: Any
    attribute_value: Any
    ring_value: Any
    ring_gap: Any
    activity_count: Any
    gap_count: Any
    late_count: Any
    day_head: Any
    tile_count: Any
    ring_count: Any
    ring_head: Any
    ring_kind: Any
    recent_head: Any
    silence_index: Any


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
