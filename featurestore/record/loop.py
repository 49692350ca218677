"""The fold's loop, compiled: a plain loop over the events, a step a function, as the definition reads.

The simplest form won the measurement. It is compiled by Numba once for every spec, because the layout keeps its field
names and only shapes differ; times are int64 milliseconds, counts saturate rather than wrap. What it is to mean is said
in `fold.py`; its arguments are described in `arguments.py` and made in `arrays.py`.

Numba keeps what it compiled beside this file, under the function's name, and forgets it when this file changes; but not
when another one does, and a class of `arguments.py` that it no longer finds breaks the start. So the names bear a hash
of both files' text: an upgrade never looks at what an older release has compiled.

Whoever changes what the record holds after an event raises FOLD_VERSION in `layout.py`.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np

from ebbtide.featurestore.events.event import TOMBSTONE
from ebbtide.featurestore.record.arguments import BEHIND_WATERMARK, DUPLICATE, LATE, ROLES, SCORES
from ebbtide.featurestore.times.durations import DAY_MS

EVENT, SILENCE, TERMINAL, RESET = 0, 1, 2, 3
"""Causes of a point. EVENT and SILENCE are scored; TERMINAL and RESET tell the policy that an episode is over."""

_ACTIVITY, _TERMINAL = ROLES["activity"], ROLES["terminal"]
_AUTO, _ALWAYS = SCORES["auto"], SCORES["always"]
_U4_MAX = 2**32 - 1
_COUNT_MAX = 65_535
"""Tiles and ring entries count in two bytes. A full tile stays full; a full entry of the ring starts another."""

# Nothing here allocates, so nothing needs its references counted: without _nrt=False each use of a field counts up and
# down, atomically, which is nine tenths of the loop's time.
_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy", "_nrt": False}
SOURCE = hashlib.blake2b(
    b"".join(Path(__file__).with_name(name).read_bytes() for name in ("loop.py", "arguments.py")),
    digest_size=8,
).hexdigest()


def _compiled(step: Callable[..., Any], **more: Any) -> Any:
    step.__qualname__ += f"_{SOURCE}"
    return numba.njit(**_OPTIONS, **more)(step)


def _inlined(step: Callable[..., Any]) -> Any:
    """The steps are inlined by LLVM: a call would copy thirty array descriptors."""
    return _compiled(step, forceinline=True)


@_compiled
def fold_events(f, plan, as_u64, out, most, start, customer, kind, time, value, event_id):
    """Fold the events from `start` on; returns the first that was not folded, since its points might lack room.

    f: Fields of n rows. plan: Plan. as_u64: uint64[n, itemsize / 8], the memory of `f`. out: PointBuffer, appended to.
    most: points that one event may bring. customer int32[e] (row), kind uint8[e] (or TOMBSTONE), time int64[e] (ms UTC,
    >= 1), value float64[e] (NaN = none), event_id uint64[e] (0 = none). No bound is checked: what is out of range is
    undefined behaviour. Raises nothing, holds no lock, needs no GIL.
    """
    for e in range(start, len(kind)):
        if out.used[0] + most > len(out.as_of):
            return e
        i, k, t = customer[e], kind[e], time[e]
        if k == TOMBSTONE:
            if f.event_time[i] != 0:
                _emit(as_u64, out, i, f.row_watermark[i], RESET, e)
                as_u64[i, :] = 0
            continue
        if event_id[e] != 0 and _is_recent(f, plan, i, event_id[e]):
            out.counts[DUPLICATE] += 1
            continue
        if t < f.row_watermark[i]:
            out.counts[BEHIND_WATERMARK] += 1
        if f.event_time[i] != 0:
            # 1. the silences that lie before this event
            _take_silences(f, plan, as_u64, out, i, t, e)
            # 2. a fresh row after `memory`; an event older than one already folded ends no gap
            anchor = f.last_seen[i] if f.last_seen[i] != 0 else f.event_time[i]
            if t - anchor > plan.memory and t > f.row_watermark[i]:
                _emit(as_u64, out, i, f.row_watermark[i], RESET, e)
                as_u64[i, :] = 0
        # 3. counters, tiles, decays, rhythm
        if event_id[e] != 0:
            _remember(f, plan, i, event_id[e])
        _count(f, plan, out, i, k, t, value[e])
        # 4. its own decision point
        if plan.role[k] == _TERMINAL and t >= f.last_seen[i]:
            f.terminated_at[i] = t
            _emit(as_u64, out, i, f.row_watermark[i], TERMINAL, e)
        elif plan.score[k] == _ALWAYS or (
            plan.score[k] == _AUTO and f.row_watermark[i] - f.decided_at[i] >= plan.score_every
        ):
            _decide(f, plan, as_u64, out, i, f.row_watermark[i], EVENT, e)
    return len(kind)


@_compiled
def elapse_rows(f, plan, as_u64, out, most, start, until):
    """Take the silences of the rows from `start` on that are due before until int64[n], ms UTC; the other arguments
    and what is returned, by row, as in `fold_events`."""
    for i in range(start, len(until)):
        if out.used[0] + most > len(out.as_of):
            return i
        _take_silences(f, plan, as_u64, out, i, until[i], -1)
    return len(until)


@_inlined
def _emit(as_u64, out, i, as_of, cause, event):
    m = out.used[0]
    for w in range(as_u64.shape[1]):
        out.as_u64[m, w] = as_u64[i, w]
    out.customer[m] = i
    out.as_of[m] = as_of
    out.cause[m] = cause
    out.event[m] = event
    out.used[0] = m + 1


@_inlined
def eligible(plan, terminated_at, activity_count, first_seen, last_seen, as_of):
    """The one rule of eligibility: of a row here, of columns in `Folder.eligible`."""
    return (
        (terminated_at == 0)
        & (activity_count >= plan.min_events)
        & (as_of - first_seen >= plan.min_tenure)
        & (as_of - last_seen <= plan.max_silence)
    )


@_inlined
def _decide(f, plan, as_u64, out, i, as_of, cause, event):
    """A decision point, if the customer is eligible then."""
    if eligible(plan, f.terminated_at[i], f.activity_count[i], f.first_seen[i], f.last_seen[i], as_of):
        f.decided_at[i] = as_of
        _emit(as_u64, out, i, as_of, cause, event)


@_inlined
def _take_silences(f, plan, as_u64, out, i, until, event):
    """Take the silences of row i due before `until`. One behind the row's watermark was disproved: skipped."""
    if f.last_seen[i] == 0 or f.terminated_at[i] != 0:
        return
    while f.silence_index[i] < len(plan.silence):
        due = f.last_seen[i] + plan.silence[f.silence_index[i]]
        if due >= until:
            return
        f.silence_index[i] += 1
        if due > f.row_watermark[i]:
            f.row_watermark[i] = due
            _decide(f, plan, as_u64, out, i, due, SILENCE, event)


@_inlined
def _is_recent(f, plan, i, event_id):
    for j in range(plan.dedupe):  # noqa: SIM110 - Numba compiles loops, not generators
        if f.recent_id[i, j] == event_id:
            return True
    return False


@_inlined
def _remember(f, plan, i, event_id):
    """In place of the oldest; `recent_head` is the slot written next."""
    if plan.dedupe > 0:
        f.recent_id[i, f.recent_head[i]] = event_id
        f.recent_head[i] = (f.recent_head[i] + 1) % plan.dedupe


@_inlined
def _count(f, plan, out, i, k, t, value):
    """All that an event changes, but its own decision point."""
    if t < f.event_time[i] - plan.longest_window:
        out.counts[LATE] += 1
        _add_one(f.late_count, i)
    _decay(f, plan, i, k, t)
    _count_tiles(f, plan, i, k, t, value)
    if plan.role[k] == _ACTIVITY:
        _live(f, plan, i, k, t, value)
    if f.kind_count[i, k] < _U4_MAX:
        f.kind_count[i, k] += 1
    if t >= f.kind_last[i, k]:
        f.kind_last[i, k] = t
        if plan.value_slot[k] >= 0 and not np.isnan(value):
            f.value_last[i, plan.value_slot[k]] = np.float32(value)
    slot = plan.attribute_slot[k]
    if slot >= 0 and not np.isnan(value) and t >= f.attribute_at[i, slot]:
        f.attribute_value[i, slot] = np.float32(value)
        f.attribute_at[i, slot] = t
    f.event_time[i] = max(f.event_time[i], t)
    f.row_watermark[i] = max(f.row_watermark[i], t)


@_inlined
def _add_one(counts, i):
    if counts[i] < _U4_MAX:
        counts[i] += 1


@_inlined
def _count_tiles(f, plan, i, k, t, value):
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
                for v in range(plan.values):
                    f.tile_sum[i, v, cell] = 0
            f.tile_head[i, w] = tile
        elif tile <= head - n:
            continue
        cell = plan.tile_start[w] + tile % n
        if f.tile_count[i, k, cell] < _COUNT_MAX:
            f.tile_count[i, k, cell] += 1
        if slot >= 0 and not np.isnan(value):
            f.tile_sum[i, slot, cell] += np.float32(value)


@_inlined
def _count_day(f, plan, i, t):
    """Bit j of the words says whether day `day_head - j` was active."""
    words = plan.day_words
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


@_inlined
def _push_ring(f, plan, i, k, t, value):
    """Append to the sequence; `ring_head` is the slot written last. Gaps in seconds; a repeat shares its entry."""
    head = f.ring_head[i]
    amount = np.float32(0.0) if np.isnan(value) else np.float32(value)
    gap_ms = t - f.last_seen[i] if f.last_seen[i] != 0 else 0
    repeat = f.ring_kind[i, head] == k + 1 and gap_ms <= plan.coalesce
    if repeat and f.ring_count[i, head] < _COUNT_MAX:
        f.ring_count[i, head] += 1
        f.ring_value[i, head] += amount
        return
    head = (head + 1) % f.ring_kind.shape[1]
    f.ring_kind[i, head] = k + 1
    f.ring_count[i, head] = 1
    f.ring_value[i, head] = amount
    f.ring_gap[i, head] = np.float32(gap_ms / 1000.0)
    f.ring_head[i] = head


@_inlined
def _live(f, plan, i, k, t, value):
    """An activity: the sequence, the rhythm of gaps, the active days, last seen; silence is armed anew."""
    if t >= f.last_seen[i]:
        _push_ring(f, plan, i, k, t, value)
        gap = t - f.last_seen[i]
        if f.last_seen[i] != 0 and gap > plan.coalesce:
            # Welford 1962, on log1p(seconds): gaps are heavy-tailed, and a burst is no rhythm.
            _add_one(f.gap_count, i)
            log_gap = np.log1p(gap / 1000.0)
            delta = log_gap - f.gap_mean[i]
            f.gap_mean[i] += delta / f.gap_count[i]
            f.gap_m2[i] += delta * (log_gap - f.gap_mean[i])
        f.last_seen[i] = t
        f.silence_index[i] = 0
        f.terminated_at[i] = 0
    # What lies beyond `memory` is forgotten, also as the beginning: one wrong time would make a customer old for good.
    if f.first_seen[i] == 0 or f.event_time[i] - plan.memory <= t < f.first_seen[i]:
        f.first_seen[i] = t
    _add_one(f.activity_count, i)
    _count_day(f, plan, i, t)


@_inlined
def _decay(f, plan, i, k, t):
    """Exponentially decayed counts, all kinds kept as of `event_time`."""
    slot = plan.decay_slot[k]
    passed = t - f.event_time[i]
    for h in range(len(plan.half_life)):
        if passed > 0:
            keep = 2.0 ** (-passed / plan.half_life[h])
            for d in range(plan.decays):
                f.decay[i, d, h] = np.float32(f.decay[i, d, h] * keep)
        if slot >= 0:
            f.decay[i, slot, h] += np.float32(2.0 ** (min(passed, 0) / plan.half_life[h]))
