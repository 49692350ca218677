"""What the compiled fold reads and writes: the spec as plain numbers, the records as arrays, the room for points.

The loop in `loop.py` is compiled once, for one set of array types. NumPy would give it others as chance has it: a
batch of one customer, a field of no entries and a read-only column each make another type, and each new type costs
seconds of compiling in the middle of service. So everything that enters the loop passes here, and is of the same types
whatever the spec and whatever the batch.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ebbtide.featurestore.record.layout import Layout, Rows
from ebbtide.featurestore.record.loop import ROLES, SCORES

SPARE_ROWS = 2
"""Of one row, NumPy calls a strided column contiguous: with two more rows than asked for, a column never is."""


class Plan(NamedTuple):
    """The spec as the loop wants it; durations in ms. Sizes of the fields that a spec may leave empty are here, since
    an empty field is stood in for by an array of another size."""

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
    """The record fields that the fold touches, as arrays over rows; they share the rows' memory."""

    first_seen: Any
    last_seen: Any
    event_time: Any
    clock: Any
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
    """Where points are written: words uint64[m, itemsize / 8], the columns of Points [m], and how many are used[0]."""

    as_u64: Any
    customer: Any
    as_of: Any
    cause: Any
    event: Any
    used: Any


def plan_of(layout: Layout) -> Plan:
    spec, dtype = layout.spec, layout.dtype
    return Plan(
        role=np.array([ROLES[kind.role] for kind in spec.kinds], np.uint8),
        score=np.array([SCORES[kind.score] for kind in spec.kinds], np.uint8),
        hop=np.array([window.hop_ms for window in spec.windows], np.int64),
        tiles=np.array([window.tiles for window in spec.windows], np.int64),
        tile_start=layout.tile_start,
        value_slot=layout.value_slot,
        decay_slot=layout.decay_slot,
        attribute_slot=layout.attribute_slot,
        half_life=np.array(spec.half_lives_ms, np.float64),
        silence=np.array(spec.silences_ms, np.int64),
        values=dtype["value_last"].shape[0],
        decays=dtype["decay"].shape[0],
        day_words=dtype["day_bits"].shape[0],
        dedupe=dtype["recent_id"].shape[0],
        memory=spec.memory_ms,
        longest_window=spec.longest_window_ms,
        coalesce=spec.sequence.coalesce_ms,
        score_every=spec.score_every_ms,
        min_events=spec.eligibility.min_events,
        min_tenure=spec.eligibility.min_tenure_ms,
        max_silence=spec.eligibility.max_silence_ms or spec.memory_ms,
    )


def writable_fields(layout: Layout, rows: Rows) -> tuple[Rows, Fields, NDArray[np.uint64]]:
    """A copy of the rows, its fields, and the same memory as words uint64[n, itemsize / 8]."""
    n, width = len(rows), layout.itemsize // 8
    as_u64 = np.empty((n + SPARE_ROWS, width), np.uint64)
    as_u64[:n] = np.ascontiguousarray(rows).view(np.uint64).reshape(n, width)
    copy = as_u64.reshape(-1).view(layout.dtype)
    return copy[:n], Fields(*(_field(copy, name) for name in Fields._fields)), as_u64


def column(values: Any, dtype: DTypeLike) -> NDArray[Any]:
    """The same values, contiguous, writeable and of the dtype; a copy only where they are not."""
    return np.require(values, dtype, ["C", "W"])


def point_buffer(layout: Layout, m: int) -> PointBuffer:
    """Room for m points; memory that is never written to costs nothing."""
    return PointBuffer(
        np.empty((m, layout.itemsize // 8), np.uint64), np.empty(m, np.int32), np.empty(m, np.int64),
        np.empty(m, np.uint8), np.empty(m, np.int32), np.zeros(1, np.int64),
    )  # fmt: skip


def grow(layout: Layout, room: PointBuffer) -> PointBuffer:
    """Twice the room, with the points there are."""
    m = int(room.used[0])
    larger = point_buffer(layout, 2 * len(room.as_of))
    for old, new in zip(room[:-1], larger[:-1], strict=True):
        new[:m] = old[:m]
    larger.used[0] = m
    return larger


def _field(rows: Rows, name: str) -> NDArray[Any]:
    field = rows[name]
    if field.size:
        return field
    # Never read nor written: only its type matters, which has to be that of a field with entries.
    return np.zeros((2,) * field.ndim, field.dtype)[:, :1]
