"""The fold's loop, compiled: a plain loop over the events, a step a function, as the definition reads.

The simplest form won the measurement. It is compiled by Numba once for every spec, because the layout keeps its field
names and only shapes differ; times are int64 milliseconds, counts saturate rather than wrap. What it is to mean is said
in `fold.py`; its arguments are described in `arguments.py` and made in `arrays.py`.

What a value's cells take is the stores' own affair (`featurestore/aggregations.py`): `compiled.py` chains their
functions, so a new aggregation is an entry there and no line here.

Whoever changes what the record holds after an event raises FOLD_VERSION in `layout.py`.
"""

import numpy as np

from ebbtide.featurestore.aggregations import COUNT_MAX
from ebbtide.featurestore.events.event import TOMBSTONE
from ebbtide.featurestore.record.arguments import (
    BEHIND_WATERMARK,
    DUPLICATE,
    LATE,
    NOT_IN_RING,
    ROLES,
    SCORES,
)
from ebbtide.featurestore.record.compiled import add_to_tile, clear_tile, compiled, inlined, set_latest
from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.featurestore.times.zones import MONDAY_MS, WEEK_MS

EVENT, SILENCE, TERMINAL, RESET, RETURNED, EXPIRED = range(6)
"""Causes of a point. EVENT and SILENCE are scored; the others tell the policy that an episode is over: the customer
left, is to be forgotten (RESET: a tombstone), came back after `memory`, or did not before the record's expiry."""
EXPIRY_GRACE_MS = 7 * DAY_MS
"""A record outlives `memory` by a week, so that an event that comes late finds its row rather than a new one."""

_ACTIVITY, _TERMINAL = ROLES["activity"], ROLES["terminal"]
_AUTO, _ALWAYS = SCORES["auto"], SCORES["always"]
_U4_MAX = 2**32 - 1
_WEEK_MAX = 255
"""Parts of the week count in one byte: once one is full, all are halved, so that what is old counts less."""


@compiled
def fold_events(f, plan, as_u64, out, most, start, customer, kind, time, value, event_id, position):
    """Fold the events from `start` on; returns the first that was not folded, since its points might lack room.

    f: Fields of n rows. plan: Plan. as_u64: uint64[n, itemsize / 8], the memory of `f`. out: PointBuffer, appended to.
    most: points that one event may bring. customer int32[e] (row), kind uint8[e] (or TOMBSTONE), time int64[e] (ms UTC,
    >= 1), value float64[e, C] (NaN = none), event_id uint64[e] (0 = none), position int64[e] (offset, -1 = of
    a file). No bound is checked: what is out of range is undefined behaviour. Raises nothing, holds no lock, needs no
    GIL.
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
            # 1. the silences that lie before this event, at last the expiry
            _pass_time(f, plan, as_u64, out, i, t, e)
            # 2. a fresh row after `memory`; an event older than one already folded ends no gap
            if f.event_time[i] != 0 and t - _anchor(f, plan, i) > plan.memory and t > f.row_watermark[i]:
                _emit(as_u64, out, i, t, RETURNED, e)
                as_u64[i, :] = 0
        # 3. counters, tiles, decays, rhythm
        if event_id[e] != 0:
            _remember(f, plan, i, event_id[e])
        _count(f, plan, out, i, k, t, value, position, e)
        # 4. its own decision point
        if plan.role[k] == _TERMINAL and t >= f.last_seen[i]:
            f.terminated_at[i] = t
            _emit(as_u64, out, i, f.row_watermark[i], TERMINAL, e)
        elif plan.score[k] == _ALWAYS or (
            plan.score[k] == _AUTO and f.row_watermark[i] - f.decided_at[i] >= plan.score_every
        ):
            _decide(f, plan, as_u64, out, i, f.row_watermark[i], EVENT, e)
    return len(kind)


@compiled
def elapse_rows(f, plan, as_u64, out, most, start, until):
    """Take what is due of the rows from `start` on before until int64[n], ms UTC: silences, at last the expiry. The
    other arguments and what is returned, by row, as in `fold_events`."""
    for i in range(start, len(until)):
        if out.used[0] + most > len(out.as_of):
            return i
        _pass_time(f, plan, as_u64, out, i, until[i], -1)
    return len(until)


@inlined
def _emit(as_u64, out, i, as_of, cause, event):
    m = out.used[0]
    for w in range(as_u64.shape[1]):
        out.as_u64[m, w] = as_u64[i, w]
    out.customer[m] = i
    out.as_of[m] = as_of
    out.cause[m] = cause
    out.event[m] = event
    out.used[0] = m + 1


@inlined
def armed_at(plan, last_seen, target_last):
    """When silence was last armed: by the target's last event where it has its own, else by the last activity."""
    return target_last if plan.target_apart != 0 else last_seen


@inlined
def _armed(f, plan, i):
    return armed_at(plan, f.last_seen[i], f.target_last[i, 0] if plan.target_apart != 0 else 0)


@inlined
def _anchor(f, plan, i):
    """When life was last renewed: from here `memory` counts."""
    anchor = max(f.last_seen[i], _armed(f, plan, i))
    return anchor if anchor != 0 else f.event_time[i]


@inlined
def eligible(plan, terminated_at, activity_count, first_seen, armed, as_of):
    """The one rule of eligibility: of a row here, of columns in `Folder.eligible`."""
    return (
        (terminated_at == 0)
        & (activity_count >= plan.min_events)
        & (as_of - first_seen >= plan.min_tenure)
        & (as_of - first_seen <= plan.max_tenure)
        & (armed != 0)
        & (as_of - armed <= plan.max_silence)
    )


@inlined
def _decide(f, plan, as_u64, out, i, as_of, cause, event):
    """A decision point, if the customer is eligible then."""
    armed = _armed(f, plan, i)
    if eligible(plan, f.terminated_at[i], f.activity_count[i], f.first_seen[i], armed, as_of):
        f.decided_at[i] = as_of
        _emit(as_u64, out, i, as_of, cause, event)


@inlined
def _pass_time(f, plan, as_u64, out, i, until, event):
    """What time brings about before `until`, whoever notices: a timer or the next event."""
    if f.event_time[i] == 0:
        return
    # What came late may have left an anchor far behind the watermark, and no point of a row moves back.
    at = max(_anchor(f, plan, i) + plan.memory + EXPIRY_GRACE_MS, f.row_watermark[i])
    _take_silences(f, plan, as_u64, out, i, min(until, at), event)
    if at < until:
        _emit(as_u64, out, i, at, EXPIRED, event)
        as_u64[i, :] = 0


@inlined
def _take_silences(f, plan, as_u64, out, i, until, event):
    """Take the points of row i that time alone brings before `until`, in order: the silences of each target, and those
    so long after the first activity. One behind the row's watermark was disproved, or taken: skipped."""
    if f.last_seen[i] == 0 or f.terminated_at[i] != 0:
        return
    armed = _armed(f, plan, i)
    while True:
        due = until
        if armed != 0 and f.silence_index[i] < len(plan.silence):
            due = armed + plan.silence[f.silence_index[i]]
        at = due
        for g in range(len(plan.further_arms)):
            at = min(at, _further_due(f, plan, i, g, at))
        for a in range(len(plan.after_first)):
            stated = f.first_seen[i] + plan.after_first[a]
            if f.row_watermark[i] < stated < at:
                at = stated
        if at >= until:
            return
        if at == due:
            f.silence_index[i] += 1
        for g in range(len(plan.further_arms)):
            if _further_due(f, plan, i, g, until) == at:
                f.further_index[i, g] += 1
        if at > f.row_watermark[i]:
            f.row_watermark[i] = at
            _decide(f, plan, as_u64, out, i, at, SILENCE, event)


@inlined
def _further_due(f, plan, i, g, otherwise):
    """When the next silence of a further target is due; `otherwise` where it has none."""
    if plan.further_arms[g] == 0 or f.further_last[i, g] == 0 or f.further_index[i, g] >= len(plan.silence):
        return otherwise
    return f.further_last[i, g] + plan.silence[f.further_index[i, g]]


@inlined
def _is_recent(f, plan, i, event_id):
    for j in range(plan.dedupe):  # noqa: SIM110 - Numba compiles loops, not generators
        if f.recent_id[i, j] == event_id:
            return True
    return False


@inlined
def _remember(f, plan, i, event_id):
    """In place of the oldest; `recent_head` is the slot written next."""
    if plan.dedupe > 0:
        f.recent_id[i, f.recent_head[i]] = event_id
        f.recent_head[i] = (f.recent_head[i] + 1) % plan.dedupe


@inlined
def _count(f, plan, out, i, k, t, value, position, e):
    """All that an event changes, but its own decision point."""
    if t < f.event_time[i] - plan.longest_window:
        out.counts[LATE] += 1
        _add_one(f.late_count, i)
    _decay(f, plan, i, k, t)
    _count_tiles(f, plan, i, k, t, value, e)
    if plan.role[k] == _ACTIVITY:
        _live(f, plan, i, k, t, value, position, e)
    if plan.target_apart != 0 and _is_target(plan, k, value, e) and t >= f.target_last[i, 0]:
        f.target_last[i, 0] = t
        f.silence_index[i] = 0
    for g in range(len(plan.further_arms)):
        if _is_further(plan, g, k, value, e) and t >= f.further_last[i, g]:
            f.further_last[i, g] = t
            f.further_index[i, g] = 0
    if f.kind_count[i, k] < _U4_MAX:
        f.kind_count[i, k] += 1
    if t >= f.kind_last[i, k]:
        f.kind_last[i, k] = t
        for c in range(value.shape[1]):
            if not np.isnan(value[e, c]):
                set_latest(f, plan, i, k, c, 0, value[e, c])
    slot = plan.attribute_slot[k]
    if slot >= 0 and not np.isnan(value[e, 0]) and t >= f.attribute_at[i, slot]:
        f.attribute_value[i, slot] = np.float32(value[e, 0])
        f.attribute_at[i, slot] = t
    f.event_time[i] = max(f.event_time[i], t)
    f.row_watermark[i] = max(f.row_watermark[i], t)


@inlined
def _add_one(counts, i):
    if counts[i] < _U4_MAX:
        counts[i] += 1


@inlined
def _is_target(plan, k, value, e):
    """Is the event one of the target's?"""
    c = plan.target_column[k]
    if plan.target[k] == 0 or c < 0:
        return plan.target[k] != 0
    return plan.target_low[k] < value[e, c] < plan.target_high[k]


@inlined
def _is_further(plan, g, k, value, e):
    """Is the event one of a further target's?"""
    c = plan.further_column[g, k]
    if plan.further[g, k] == 0 or c < 0:
        return plan.further[g, k] != 0
    return plan.further_low[g, k] < value[e, c] < plan.further_high[g, k]


@inlined
def _count_tiles(f, plan, i, k, t, value, e):
    """Add the event to its tile in every window that still holds it; tiles the head passes are emptied first."""
    slot = plan.count_slot[k]
    for w in range(len(plan.hop)):
        n = plan.tiles[w]
        tile = t // plan.hop[w]
        head = f.tile_head[i, w]
        if tile > head:
            for step in range(min(tile - head, n)):
                cell = plan.tile_start[w] + (head + 1 + step) % n
                for row in range(plan.counted):
                    f.tile_count[i, row, cell] = 0
                clear_tile(f, plan, i, cell)
            f.tile_head[i, w] = tile
        elif tile <= head - n:
            continue
        cell = plan.tile_start[w] + tile % n
        if slot >= 0 and f.tile_count[i, slot, cell] < COUNT_MAX:
            f.tile_count[i, slot, cell] += 1
        for c in range(value.shape[1]):
            if not np.isnan(value[e, c]):
                add_to_tile(f, plan, i, k, c, cell, value[e, c])


@inlined
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


@inlined
def _count_week(f, plan, i, t):
    """The part of the week, in the zone's time, that an activity falls into."""
    if plan.week_buckets == 0:
        return
    zone = max(0, np.searchsorted(plan.week_since, t, "right") - 1)
    local = (t + plan.week_offset[zone] - MONDAY_MS) % WEEK_MS
    bucket = local // (WEEK_MS // plan.week_buckets)
    if f.week_count[i, bucket] == _WEEK_MAX:
        for b in range(plan.week_buckets):
            f.week_count[i, b] //= 2
    f.week_count[i, bucket] += 1


@inlined
def _push_ring(f, plan, i, k, t, value):
    """Append to the sequence; `ring_head` is the slot written last. Gaps in seconds; a repeat shares its entry."""
    head = f.ring_head[i]
    amount = np.float32(0.0) if np.isnan(value) else np.float32(value)
    gap_ms = t - f.last_seen[i] if f.last_seen[i] != 0 else 0
    repeat = f.ring_kind[i, head] == k + 1 and gap_ms <= plan.coalesce
    if repeat and f.ring_count[i, head] < COUNT_MAX:
        f.ring_count[i, head] += 1
        f.ring_value[i, head] += amount
        return
    head = (head + 1) % f.ring_kind.shape[1]
    f.ring_kind[i, head] = k + 1
    f.ring_count[i, head] = 1
    f.ring_value[i, head] = amount
    f.ring_gap[i, head] = np.float32(gap_ms / 1000.0)
    f.ring_head[i] = head


@inlined
def _live(f, plan, i, k, t, value, position, e):
    """An activity: the sequence, the rhythm of gaps, the active days, last seen; silence is armed anew."""
    if t >= f.last_seen[i]:
        if plan.ring_slot[k] != NOT_IN_RING:
            c = plan.ring_slot[k]
            _push_ring(f, plan, i, k, t, value[e, c] if c >= 0 else np.nan)
        gap = t - f.last_seen[i]
        if f.last_seen[i] != 0 and gap > plan.coalesce:
            # Welford 1962, on log1p(seconds): gaps are heavy-tailed, and a burst is no rhythm.
            _add_one(f.gap_count, i)
            log_gap = np.log1p(gap / 1000.0)
            delta = log_gap - f.gap_mean[i]
            f.gap_mean[i] += delta / f.gap_count[i]
            f.gap_m2[i] += delta * (log_gap - f.gap_mean[i])
        f.last_seen[i] = t
        f.last_seen_offset[i] = position[e]
        if plan.target_apart == 0:
            f.silence_index[i] = 0
        f.terminated_at[i] = 0
    # What lies beyond `memory` is forgotten, also as the beginning: one wrong time would make a customer old for good.
    if f.first_seen[i] == 0 or f.event_time[i] - plan.memory <= t < f.first_seen[i]:
        f.first_seen[i] = t
    _add_one(f.activity_count, i)
    _count_day(f, plan, i, t)
    _count_week(f, plan, i, t)


@inlined
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
