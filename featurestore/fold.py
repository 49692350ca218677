"""The fold: events into records, and the points at which a customer is scored.

    fold(rows, events) -> rows', points

It is pure and deterministic: a function of the events in offset order and of nothing else. No clock, no randomness, no
dependence on how the log was cut into batches; so a replay, a catch-up and live traffic all end in the same bytes and
decide at the same points. It does no I/O and knows no model; what a decision *is* belongs to `stream/decisions.py`.

One event of a customer, in the order of the steps in `_fold`:

    time ──●────────────●──────┬─────────┬───────────────────────────●──▶
         event        event   silence   silence  (schedule after      next event: 1. the silences that lie before it
                               point     point    the last activity)               2. a fresh row after `memory`
                                                                                   3. counters, tiles, decays, rhythm
                                                                                   4. its own decision point

`clock` is the latest time the row has been looked at (an event folded, or a silence taken). Decision points of a row
never move back: an event that comes late is folded where it belongs (its tiles, its counts), and decided as of `clock`.

The simplest form won the measurement: a plain loop over the events, compiled by Numba once for every spec, because the
layout keeps its field names and only shapes differ.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from featurestore.event import TOMBSTONE, EventBatch
from featurestore.layout import Layout, Rows
from featurestore.spec import DAY_MS

EVENT, SILENCE, TERMINAL, RESET = 0, 1, 2, 3
"""Causes of a point. EVENT and SILENCE are scored; TERMINAL and RESET tell the policy that an episode is over."""

_ACTIVITY, _CONTACT, _TERMINAL, _ATTRIBUTE = 0, 1, 2, 3
_ROLES = {"activity": _ACTIVITY, "contact": _CONTACT, "terminal": _TERMINAL, "attribute": _ATTRIBUTE}
_NEVER, _AUTO, _ALWAYS = 0, 1, 2
_SCORE = {"never": _NEVER, "auto": _AUTO, "always": _ALWAYS}
_TILE_MAX = 65_535
EXPIRY_GRACE_MS = 7 * DAY_MS
"""A record outlives `memory` by a week, so that an event that comes late finds its row rather than a new one."""


@dataclass(frozen=True, slots=True)
class Points:
    """m points of the batch, in the order in which they are to be decided.

    rows:     records[m], a copy of the customer's record as it was at the point
    customer: int32[m], index into the batch's customers (or into the rows that were elapsed)
    as_of:    int64[m], ms UTC; for one customer never decreasing
    cause:    uint8[m], EVENT, SILENCE, TERMINAL or RESET
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


class _Fields(NamedTuple):
    """Views of the record fields the fold touches, as arrays over rows; they share the rows' memory."""

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


class _Plan(NamedTuple):
    """The spec as the loop wants it; durations in ms."""

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
    memory: int
    longest_window: int
    coalesce: int
    score_every: int
    min_events: int
    min_tenure: int
    max_silence: int


class _Out(NamedTuple):
    """Where points are written: raw[m, bytes], customer[m], as_of[m], cause[m], event[m], used[1]."""

    raw: Any
    customer: Any
    as_of: Any
    cause: Any
    event: Any
    used: Any


class Folder:
    """The fold of one layout. Instances are cheap, hold no state and may be shared between threads."""

    def __init__(self, layout: Layout) -> None:
        spec = layout.spec
        self.layout = layout
        self._plan = _Plan(
            role=np.array([_ROLES[kind.role] for kind in spec.kinds], np.uint8),
            score=np.array([_SCORE[kind.score] for kind in spec.kinds], np.uint8),
            hop=np.array([window.hop_ms for window in spec.windows], np.int64),
            tiles=np.array([window.tiles for window in spec.windows], np.int64),
            tile_start=layout.tile_start,
            value_slot=layout.value_slot,
            decay_slot=layout.decay_slot,
            attribute_slot=layout.attribute_slot,
            half_life=np.array(spec.half_lives_ms, np.float64),
            silence=np.array(spec.silences_ms, np.int64),
            memory=spec.memory_ms,
            longest_window=spec.longest_window_ms,
            coalesce=spec.sequence.coalesce_ms,
            score_every=spec.score_every_ms,
            min_events=spec.eligibility.min_events,
            min_tenure=spec.eligibility.min_tenure_ms,
            max_silence=spec.eligibility.max_silence_ms or spec.memory_ms,
        )

    def fold(self, rows: Rows, events: EventBatch) -> tuple[Rows, Points]:
        """Fold n events into the m rows of `events.customers`. `rows` is left as it was; a new array is returned."""
        rows = rows.copy()
        points = self._room(len(events) * (len(self._plan.silence) + 3))
        raw = _raw(rows)
        _fold(self._fields(rows), self._plan, raw, points, events.customer, events.kind, events.time, events.value, events.event_id)  # fmt: skip
        return rows, self._points(points)

    def elapse(self, rows: Rows, until_ms: NDArray[np.int64] | int) -> tuple[Rows, Points]:
        """Take every silence that is due before `until_ms` (one time, or int64[n], one a row)."""
        rows = rows.copy()
        points = self._room(len(rows) * len(self._plan.silence))
        until = np.broadcast_to(np.asarray(until_ms, np.int64), len(rows)).copy()
        _elapse(self._fields(rows), self._plan, _raw(rows), points, until)
        return rows, self._points(points)

    def due(self, rows: Rows) -> NDArray[np.int64]:
        """int64[n], ms UTC: each row's next silence, or at last its expiry, when the record is to be deleted."""
        due = np.empty(len(rows), np.int64)
        _due(self._fields(rows), self._plan, EXPIRY_GRACE_MS, due)
        return due

    def eligible(self, rows: Rows, as_of: NDArray[np.int64] | int) -> NDArray[np.bool_]:
        """bool[n]: would this row be scored as of then? The rule of the spec's `eligibility`."""
        times = np.broadcast_to(np.asarray(as_of, np.int64), len(rows)).copy()
        result = np.empty(len(rows), np.bool_)
        _eligible_rows(self._fields(rows), self._plan, times, result)
        return result

    def _fields(self, rows: Rows) -> _Fields:
        return _Fields(*(rows[name] for name in _Fields._fields))

    def _room(self, m: int) -> _Out:
        # np.empty of megabytes maps memory without touching it: only what is written costs anything.
        return _Out(
            np.empty((m, self.layout.itemsize), np.uint8), np.empty(m, np.int32), np.empty(m, np.int64),
            np.empty(m, np.uint8), np.empty(m, np.int32), np.zeros(1, np.int64),
        )  # fmt: skip

    def _points(self, out: _Out) -> Points:
        m = int(out.used[0])
        rows = out.raw[:m].reshape(-1).view(self.layout.dtype)
        return Points(rows, out.customer[:m], out.as_of[:m], out.cause[:m], out.event[:m])


def _raw(rows: Rows) -> NDArray[np.uint8]:
    return rows.view(np.uint8).reshape(len(rows), rows.dtype.itemsize)


@numba.njit(cache=True, nogil=True, inline="never")
def _emit(raw, out, i, as_of, cause, event):  # type: ignore[no-untyped-def]  # compiled: types are Numba's
    m = out.used[0]
    out.raw[m, :] = raw[i, :]
    out.customer[m] = i
    out.as_of[m] = as_of
    out.cause[m] = cause
    out.event[m] = event
    out.used[0] = m + 1


@numba.njit(cache=True, nogil=True, inline="never")
def _eligible(f, plan, i, as_of):  # type: ignore[no-untyped-def]
    """The one rule of eligibility."""
    return (
        f.terminated_at[i] == 0
        and f.activity_count[i] >= plan.min_events
        and as_of - f.first_seen[i] >= plan.min_tenure
        and as_of - f.last_seen[i] <= plan.max_silence
    )


@numba.njit(cache=True, nogil=True, inline="never")
def _take_silences(f, plan, raw, out, i, until, event):  # type: ignore[no-untyped-def]
    """Take the silences of row i due before `until`. One that lies before the row's clock was disproved: skipped."""
    if f.last_seen[i] == 0 or f.terminated_at[i] != 0:
        return
    while f.silence_index[i] < len(plan.silence):
        due = f.last_seen[i] + plan.silence[f.silence_index[i]]
        if due >= until:
            return
        f.silence_index[i] += 1
        if due > f.clock[i]:
            f.clock[i] = due
            if _eligible(f, plan, i, due):
                f.decided_at[i] = due
                _emit(raw, out, i, due, SILENCE, event)


@numba.njit(cache=True, nogil=True, inline="never")
def _anchor(f, i):  # type: ignore[no-untyped-def]
    """When the row's life was last renewed: by activity, or by any event before the first activity."""
    return f.last_seen[i] if f.last_seen[i] != 0 else f.event_time[i]


@numba.njit(cache=True, nogil=True)
def _elapse(f, plan, raw, out, until):  # type: ignore[no-untyped-def]
    for i in range(len(until)):
        _take_silences(f, plan, raw, out, i, until[i], -1)


@numba.njit(cache=True, nogil=True)
def _due(f, plan, grace, due):  # type: ignore[no-untyped-def]
    for i in range(len(due)):
        due[i] = _anchor(f, i) + plan.memory + grace
        if f.last_seen[i] != 0 and f.terminated_at[i] == 0:
            for s in range(f.silence_index[i], len(plan.silence)):
                if f.last_seen[i] + plan.silence[s] > f.clock[i]:
                    due[i] = f.last_seen[i] + plan.silence[s]
                    break


@numba.njit(cache=True, nogil=True)
def _eligible_rows(f, plan, as_of, result):  # type: ignore[no-untyped-def]
    for i in range(len(as_of)):
        result[i] = _eligible(f, plan, i, as_of[i])


@numba.njit(cache=True, nogil=True, inline="never")
def _seen_before(f, i, event_id):  # type: ignore[no-untyped-def]
    """Is this a recent duplicate? If not, remember it in place of the oldest."""
    size = f.recent_id.shape[1]
    for j in range(size):
        if f.recent_id[i, j] == event_id:
            return True
    if size > 0:
        f.recent_id[i, f.recent_head[i]] = event_id
        f.recent_head[i] = (f.recent_head[i] + 1) % size
    return False


@numba.njit(cache=True, nogil=True, inline="never")
def _count_tiles(f, plan, i, k, t, value):  # type: ignore[no-untyped-def]
    """Add the event to its tile in every window that still holds it; tiles the head passes are emptied first."""
    slot = plan.value_slot[k]
    for w in range(len(plan.hop)):
        n = plan.tiles[w]
        tile = t // plan.hop[w]
        head = f.tile_head[i, w]
        if tile > head:
            for step in range(min(tile - head, n)):
                cell = plan.tile_start[w] + (head + 1 + step) % n
                f.tile_count[i, :, cell] = 0
                f.tile_sum[i, :, cell] = 0
            f.tile_head[i, w] = tile
        elif tile <= head - n:
            continue
        cell = plan.tile_start[w] + tile % n
        if f.tile_count[i, k, cell] < _TILE_MAX:
            f.tile_count[i, k, cell] += 1
        if slot >= 0 and not np.isnan(value):
            f.tile_sum[i, slot, cell] += np.float32(value)


@numba.njit(cache=True, nogil=True, inline="never")
def _count_day(f, i, t):  # type: ignore[no-untyped-def]
    """Bit j of the words says whether day `day_head - j` was active."""
    words = f.day_bits.shape[1]
    if words == 0:
        return
    day = np.int32(t // DAY_MS)
    shift = day - f.day_head[i]
    if shift > 0:
        for word in range(words - 1, -1, -1):
            bits = np.uint64(0)
            whole, part = shift // 64, shift % 64
            if word - whole >= 0:
                bits = np.uint64(f.day_bits[i, word - whole]) << np.uint64(part)
            if part > 0 and word - whole - 1 >= 0:
                bits |= np.uint64(f.day_bits[i, word - whole - 1]) >> np.uint64(64 - part)
            f.day_bits[i, word] = np.int64(bits)
        f.day_head[i] = day
        shift = 0
    back = -shift
    if back < 64 * words:
        f.day_bits[i, back // 64] |= np.int64(np.uint64(1) << np.uint64(back % 64))


@numba.njit(cache=True, nogil=True, inline="never")
def _push_ring(f, plan, i, k, t, value):  # type: ignore[no-untyped-def]
    """Append to the sequence; `ring_head` is the slot written last. Gaps in seconds; a repeat shares its entry."""
    length = f.ring_kind.shape[1]
    head = f.ring_head[i]
    amount = np.float32(0.0) if np.isnan(value) else np.float32(value)
    gap_ms = t - f.last_seen[i] if f.last_seen[i] != 0 else 0
    repeat = f.ring_kind[i, head] == k + 1 and gap_ms <= plan.coalesce
    if repeat and f.ring_count[i, head] < _TILE_MAX:
        f.ring_count[i, head] += 1
        f.ring_value[i, head] += amount
        return
    head = (head + 1) % length
    f.ring_kind[i, head] = k + 1
    f.ring_count[i, head] = 1
    f.ring_value[i, head] = amount
    f.ring_gap[i, head] = np.float32(gap_ms / 1000.0)
    f.ring_head[i] = head


@numba.njit(cache=True, nogil=True, inline="never")
def _live(f, plan, i, k, t, value):  # type: ignore[no-untyped-def]
    """An activity: the sequence, the rhythm of gaps, the active days, last seen; silence is armed anew."""
    if t >= f.last_seen[i]:
        _push_ring(f, plan, i, k, t, value)
        gap = t - f.last_seen[i]
        if f.last_seen[i] != 0 and gap > plan.coalesce:
            # Welford 1962, on log1p(seconds): gaps are heavy-tailed, and a burst is no rhythm.
            f.gap_count[i] += 1
            log_gap = np.log1p(gap / 1000.0)
            delta = log_gap - f.gap_mean[i]
            f.gap_mean[i] += delta / f.gap_count[i]
            f.gap_m2[i] += delta * (log_gap - f.gap_mean[i])
        f.last_seen[i] = t
        f.silence_index[i] = 0
        f.terminated_at[i] = 0
    if f.first_seen[i] == 0 or t < f.first_seen[i]:
        f.first_seen[i] = t
    f.activity_count[i] += 1
    _count_day(f, i, t)


@numba.njit(cache=True, nogil=True, inline="never")
def _decay(f, plan, i, k, t):  # type: ignore[no-untyped-def]
    """Exponentially decayed counts, all kinds kept as of `event_time`."""
    slot = plan.decay_slot[k]
    passed = t - f.event_time[i]
    for h in range(len(plan.half_life)):
        if passed > 0:
            keep = 2.0 ** (-passed / plan.half_life[h])
            for d in range(f.decay.shape[1]):
                f.decay[i, d, h] = np.float32(f.decay[i, d, h] * keep)
        if slot >= 0:
            f.decay[i, slot, h] += np.float32(2.0 ** (min(passed, 0) / plan.half_life[h]))


@numba.njit(cache=True, nogil=True)
def _fold(f, plan, raw, out, customer, kind, time, value, event_id):  # type: ignore[no-untyped-def]
    for e in range(len(kind)):
        i, k, t = customer[e], kind[e], time[e]
        known = f.event_time[i] != 0
        if k == TOMBSTONE:
            if known:
                _emit(raw, out, i, f.clock[i], RESET, e)
                raw[i, :] = 0
            continue
        if event_id[e] != 0 and _seen_before(f, i, event_id[e]):
            continue
        if known:
            # 1. the silences that lie before this event
            _take_silences(f, plan, raw, out, i, t, e)
            # 2. a fresh row after `memory`
            if t - _anchor(f, i) > plan.memory:
                _emit(raw, out, i, f.clock[i], RESET, e)
                raw[i, :] = 0
                if event_id[e] != 0:
                    _seen_before(f, i, event_id[e])
        # 3. counters, tiles, decays, rhythm
        if t < f.event_time[i] - plan.longest_window:
            f.late_count[i] += 1
        _decay(f, plan, i, k, t)
        _count_tiles(f, plan, i, k, t, value[e])
        role = plan.role[k]
        if role == _ACTIVITY:
            _live(f, plan, i, k, t, value[e])
        newest = t >= f.kind_last[i, k]
        if newest:
            f.kind_last[i, k] = t
        f.kind_count[i, k] += 1
        if newest and not np.isnan(value[e]):
            if plan.value_slot[k] >= 0:
                f.value_last[i, plan.value_slot[k]] = np.float32(value[e])
            if role == _ATTRIBUTE:
                f.attribute_value[i, plan.attribute_slot[k]] = np.float32(value[e])
                f.attribute_at[i, plan.attribute_slot[k]] = t
        f.event_time[i] = max(f.event_time[i], t)
        f.clock[i] = max(f.clock[i], t)
        # 4. its own decision point
        if role == _TERMINAL:
            if t >= f.last_seen[i]:
                f.terminated_at[i] = t
                _emit(raw, out, i, f.clock[i], TERMINAL, e)
        elif plan.score[k] == _ALWAYS or (
            plan.score[k] == _AUTO and f.clock[i] - f.decided_at[i] >= plan.score_every
        ):
            if _eligible(f, plan, i, f.clock[i]):
                f.decided_at[i] = f.clock[i]
                _emit(raw, out, i, f.clock[i], EVENT, e)
