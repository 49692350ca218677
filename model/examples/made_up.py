"""Customers who never lived: records for a model's warm-up, which travel with every published version.

    seeded random events under the spec ──fold──▶ decision points ──▶ rows, as_of

A program is compiled and its padded sizes are compared on a few records. Real ones would carry somebody's history into
every copy of the model, beyond the reach of any erasure, so these are made up: the spec is all they are made of, no log
is read. The fold makes them, so they are records as a store holds them, and every field that a model reads is in use.
"""

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.kinds import Value
from ebbtide.featurestore.record.fold import Folder
from ebbtide.featurestore.record.layout import Layout, Rows
from ebbtide.featurestore.spec import Spec
from ebbtide.featurestore.times.durations import DAY_MS

ROWS = 32
CUSTOMERS = 128
START_MS = 19_000 * DAY_MS
"""2022-01-08: any day does, and this one is no log's."""
GAP_MIN_MS = 1_000


def made_up(layout: Layout, n: int = ROWS, seed: int = 0) -> tuple[Rows, NDArray[np.int64]]:
    """rows[n], as_of[n] in ms UTC: decision points of made-up customers, of one event and of more than the ring holds,
    just after an event and long silent. The same for the same layout, n and seed."""
    rng = np.random.default_rng(seed)
    events = _events(layout, rng)
    _, points = Folder(layout).fold(layout.empty(len(events.customers)), events)
    asked = points.take(np.flatnonzero(points.scored) if points.scored.any() else np.arange(len(points)))
    # Half of the rows are as full as their customers get, the other half from anywhere in their lives.
    ordered = asked.take(np.lexsort((asked.as_of, asked.customer)))
    last = np.flatnonzero(np.diff(ordered.customer, append=-1) != 0)
    chosen = np.concatenate([rng.permutation(last)[: n // 2], rng.permutation(len(ordered))])
    chosen = np.resize(chosen, n)  # over again, should a strict eligibility leave fewer
    silence = rng.integers(0, layout.spec.horizon_ms, n) * (rng.random(n) < 0.5)
    return ordered.rows[chosen], ordered.as_of[chosen] + silence.astype(np.int64)


def _events(layout: Layout, rng: np.random.Generator) -> EventBatch:
    """Events in order of time: gaps from seconds to a few horizons, every kind, values where a kind has them."""
    spec = layout.spec
    most = 3 * spec.sequence.length + len(spec.kinds)
    counts = rng.integers(1, most + 1, CUSTOMERS)
    customer = np.repeat(np.arange(CUSTOMERS, dtype=np.int32), counts)
    n = len(customer)
    slowest = max(spec.horizon_ms, 4 * spec.sequence.coalesce_ms, 2 * GAP_MIN_MS)
    pace = np.exp(rng.uniform(np.log(GAP_MIN_MS), np.log(slowest), CUSTOMERS))
    gaps = np.minimum(rng.exponential(pace[customer]), spec.memory_ms / 2).astype(np.int64) + 1
    passed = np.cumsum(gaps)
    begin = np.concatenate([[0], np.cumsum(counts)[:-1]])
    time = START_MS + passed - np.repeat(passed[begin] - gaps[begin], counts)
    kind = _kinds(spec, counts, rng)
    values = np.full((n, spec.value_columns), np.nan)
    for code, each in enumerate(spec.kinds):
        mine = np.flatnonzero(kind == code)
        for c, reading in enumerate(each.readings):
            values[mine, c] = _values(reading, len(mine), rng)
    order = np.argsort(time, kind="stable")
    return EventBatch(
        [f"made-up-{i}" for i in range(CUSTOMERS)], customer[order], kind[order], time[order], values[order, 0],
        rng.integers(1, 2**63, n).astype(np.uint64), np.arange(n, dtype=np.int64), values[order, 1:],
    )  # fmt: skip


def _kinds(spec: Spec, counts: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A kind an event, of each customer's: nobody who has left for good is scored, so a leave is rare."""
    kinds = spec.kinds
    leaves = np.array([kind.role == "terminal" for kind in kinds])
    weight = np.where(leaves, 0.02, 1.0)
    kind = rng.choice(len(kinds), int(counts.sum()), p=weight / weight.sum()).astype(np.uint8)
    active = [code for code, each in enumerate(kinds) if each.role == "activity"]
    if spec.arms_apart:
        active = np.flatnonzero(spec.target_events.kinds).tolist()
    ends = np.cumsum(counts) - 1
    kind[ends] = rng.choice(
        active, len(ends)
    )  # the last word is a sign of life, or there is nothing to score
    return kind


def _values(reading: Value, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """float64[n], NaN where one is missing: amounts of two orders of magnitude, some below zero; codes; hashes."""
    if reading.reads == "category":
        return rng.integers(0, len(reading.categories) + 1, n).astype(np.float64)
    if reading.reads == "text":
        return rng.integers(0, 2**53, n).astype(np.float64)
    if reading.reads == "date":
        return START_MS / DAY_MS + rng.integers(-400, 400, n).astype(np.float64)
    amounts = np.round(rng.lognormal(3.0, 1.0, n) * np.where(rng.random(n) < 0.1, -1.0, 1.0), 2)
    return np.where(rng.random(n) < 0.1, np.nan, amounts)
