"""What a record says and what the oracle says, in the same words, so that a test can lay one beside the other.

`recorded` decodes the bytes by the drawing in `featurestore/record/layout.py` and by nothing else.
"""

import math
from typing import Any

import numpy as np

from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.times.durations import DAY_MS
from tests.support.oracle.oracle import Entry, Life

Facts = dict[str, Any]
EXACT = (
    "first_seen", "last_seen", "last_offset", "clock", "decided_at", "terminated", "activity_count", "late_count",
    "gap_count", "kind_last", "kind_count", "counts", "days", "armed_at", "week", "bits", "shares",
    "further_last",
)  # fmt: skip


def recorded(layout: Layout, row: np.void, as_of: int) -> Facts:
    """What the record knows as of a time (>= its clock)."""
    spec = layout.spec
    names = ("first_seen", "last_seen", "decided_at", "activity_count", "late_count", "gap_count")
    facts: Facts = {name: int(row[name]) for name in names}
    facts["clock"] = int(row["row_watermark"])
    facts["last_offset"] = int(row["last_seen_offset"])
    facts["terminated"] = bool(row["terminated_at"])
    facts["kind_last"] = row["kind_last"].tolist()
    facts["kind_count"] = row["kind_count"].tolist()
    facts["gap_mean"] = float(row["gap_mean"])
    facts["gap_sd"] = math.sqrt(max(0.0, row["gap_m2"]) / max(1, facts["gap_count"]))
    facts["armed_at"] = int(row["target_last"][0] if layout.spec.arms_apart else row["last_seen"])
    facts["further_last"] = row["further_last"].tolist()
    facts["week"] = row["week_count"].tolist()
    facts["counts"], facts["sums"], facts["largest"] = {}, {}, {}
    facts["bits"], facts["shares"], facts["values"] = {}, {}, {}
    for w, window in enumerate(spec.windows):
        live = _live_cells(layout, row, w, as_of // window.hop_ms)
        for k, slot in enumerate(layout.count_slot):
            if slot >= 0:
                facts["counts"][k, w] = int(row["tile_count"][slot, live].sum(dtype=np.int64))
        for (field, k, c), (first, many) in _rows(layout).items():
            cells = row[field][first : first + many]
            if field == "tile_sum":
                facts["sums"][k, c, w] = float(cells[0, live].sum(dtype=np.float64))
            elif field == "tile_max":
                facts["largest"][k, c, w] = float(max(cells[0, live], default=-np.inf))
            elif field == "tile_distinct":
                facts["bits"][k, c, w] = int(np.bitwise_or.reduce(cells[0, live], initial=0)) & (2**64 - 1)
            elif field == "tile_share":
                facts["shares"][k, c, w] = cells[:, live].sum(axis=1, dtype=np.int64).tolist()
            else:
                facts["values"][k, c] = float(cells[0])
    back = as_of // DAY_MS - int(row["day_head"])
    days = [
        back + 64 * word + bit
        for word, bits in enumerate(row["day_bits"])
        for bit in range(64)
        if int(bits) >> bit & 1
    ]
    facts["days"] = {n: sum(age < n for age in days) for n in spec.days_active}
    facts["decays"] = {
        (k, half_life): float(row["decay"][slot, h]) * 2.0 ** (-(as_of - int(row["event_time"])) / half_life)
        for k, slot in enumerate(layout.decay_slot)
        for h, half_life in enumerate(spec.half_lives_ms)
        if slot >= 0
    }
    facts["attributes"] = {
        k: float(row["attribute_value"][slot]) if row["attribute_at"][slot] else None
        for k, slot in enumerate(layout.attribute_slot)
        if slot >= 0
    }
    length = spec.sequence.length
    order = [(int(row["ring_head"]) + 1 + j) % length for j in range(length)]
    ring = [(name, row[f"ring_{name}"]) for name in ("kind", "count", "value", "gap")]
    entries = [{name: float(cells[j]) for name, cells in ring} for j in order]
    facts["sequence"] = [
        Entry(int(cell["kind"]) - 1, int(cell["count"]), cell["value"], cell["gap"])
        for cell in entries
        if cell["kind"]
    ]
    return facts


def expected(life: Life, as_of: int) -> Facts:
    """The same, from the list of events."""
    spec, kinds = life.spec, range(len(life.spec.kinds))
    gaps = life.log_gaps
    mean = math.fsum(gaps) / len(gaps) if gaps else 0.0
    counted = [k for k in kinds if spec.kinds[k].role in ("activity", "contact") and spec.kinds[k].features]
    decayed = [k for k in counted if spec.kinds[k].decay]
    windows = range(len(spec.windows))

    def asking(*names: str) -> list[tuple[int, int]]:
        return [
            (k, c)
            for k in counted
            for c, reading in enumerate(spec.kinds[k].readings)
            if set(names) & set(reading.aggregate)
        ]

    largest = {(k, c, w): life.largest(k, w, as_of, c) for k, c in asking("max") for w in windows}
    return {
        "first_seen": life.first_seen,
        "last_seen": life.last_seen,
        "last_offset": life.last_offset,
        "clock": life.clock,
        "decided_at": life.decided_at,
        "terminated": life.terminated,
        "activity_count": len(life.activity),
        "late_count": life.late,
        "gap_count": len(gaps),
        "kind_last": [max((event.time for event in life.of(k)), default=0) for k in kinds],
        "kind_count": [len(life.of(k)) for k in kinds],
        "gap_mean": mean,
        "gap_sd": math.sqrt(math.fsum((gap - mean) ** 2 for gap in gaps) / len(gaps)) if gaps else 0.0,
        "armed_at": life.armed_at,
        "further_last": [life.last_of(target) for target in spec.targets[1:]],
        "week": life.week if spec.week else [],
        "counts": {(k, w): life.count(k, w, as_of) for w in windows for k in counted},
        "sums": {(k, c, w): life.sum(k, w, as_of, c) for w in windows for k, c in asking("sum", "mean")},
        "largest": {key: -math.inf if value is None else value for key, value in largest.items()},
        "bits": {
            (k, c, w): sum(1 << bit for bit in {int(v) % 64 for v in life.distinct(k, w, as_of, c)})
            for w in windows
            for k, c in asking("distinct")
        },
        "shares": {
            (k, c, w): [
                life.of_category(k, w, as_of, c, 1 + code)
                for code in range(len(spec.kinds[k].readings[c].categories))
            ]
            for w in windows
            for k, c in asking("share")
        },
        "days": {n: life.days_active(n, as_of) for n in spec.days_active},
        "decays": {(k, h): life.decay(k, h, as_of) for k in decayed for h in spec.half_lives_ms},
        "values": {(k, c): life.last_value(k, c) or 0.0 for k, c in asking("last")},
        "attributes": {k: life.last_value(k) for k in kinds if spec.kinds[k].role == "attribute"},
        "sequence": life.sequence,
    }


def differences(got: Facts, want: Facts) -> list[str]:
    """What differs: times and counts at all, floats by more than 32-bit sums may."""
    wrong = [f"{name}: {got[name]} != {want[name]}" for name in EXACT if got[name] != want[name]]
    rest = sorted(want.keys() - set(EXACT))
    wrong += [
        f"{name}: {got[name]} is not near {want[name]}" for name in rest if not _close(got[name], want[name])
    ]
    return wrong


def _close(got: Any, want: Any) -> bool:
    if isinstance(want, dict):
        return got.keys() == want.keys() and all(_close(got[key], want[key]) for key in want)
    if isinstance(want, (list, tuple)):
        return len(got) == len(want) and all(_close(a, b) for a, b in zip(got, want, strict=True))
    if want is None or got is None:
        return got is want
    return math.isclose(got, want, rel_tol=2e-5, abs_tol=1e-3)


def _live_cells(layout: Layout, row: np.void, w: int, newest: int) -> list[int]:
    """The cells of window w whose tile lies in (newest - n, newest]."""
    n, head = layout.spec.windows[w].tiles, int(row["tile_head"][w])
    if head == 0:
        return []  # nothing was ever counted
    return [int(layout.tile_start[w]) + s for s in range(n) if head - (head - s) % n > newest - n]


def _rows(layout: Layout) -> dict[tuple[str, int, int], tuple[int, int]]:
    """(field, kind, column) -> first row and how many: dealt out by field, in the order of the kinds and values."""
    fields = {"sum": "tile_sum", "mean": "tile_sum", "max": "tile_max", "distinct": "tile_distinct",
              "share": "tile_share", "last": "value_last"}  # fmt: skip
    used: dict[str, int] = dict.fromkeys(fields.values(), 0)
    found = {}
    for k, kind in enumerate(layout.spec.kinds):
        for c, reading in enumerate(kind.readings):
            for field in dict.fromkeys(fields[name] for name in reading.aggregate):
                many = len(reading.categories) if field == "tile_share" else 1
                found[field, k, c] = used[field], many
                used[field] += many
    assert all(layout.dtype[field].shape[0] == rows for field, rows in used.items())
    return found
