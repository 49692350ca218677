"""What the fold costs: µs an event, and what a call costs before its first event.

    python -m tests.bench.bench_fold [--json FILE]

A stream like a busy partition's: batches of 1,024 events of 600 customers, four windows of eight tiles, eight kinds, a
ring, decays, a value; half of the events belong to a tenth of the customers. The rows stay in memory between batches,
as in the worker's cache. Times are of one core; a figure is the median over batches and the least of five rounds,
since a neighbour can only make it longer. "Row copies" is what copying the rows in and the points out costs by itself.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.record.arrays import writable_fields
from ebbtide.featurestore.record.fold import Folder
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import Spec, parse_spec
from ebbtide.featurestore.times.durations import DAY_MS

EVENTS, CUSTOMERS, BATCHES, ROUNDS = 1_024, 600, 100, 5
START = 20_000 * DAY_MS


def spec_of(score_every: str) -> Spec:
    kinds = [{"name": f"kind_{n}"} for n in range(6)]
    kinds += [{"name": "purchase", "aggregate": ["sum", "mean"]}, {"name": "mail", "role": "contact"}]  # type: ignore[dict-item]  # YAML's kind of data
    return parse_spec(
        {
            "name": "bench",
            "horizon": "14d",
            "memory": "180d",
            "kinds": kinds,
            "windows": {"1h": 8, "24h": 8, "8d": 8, "32d": 8},
            "half_lives": ["3d", "21d"],
            "days_active": [7, 30],
            "sequence": {"length": 64},
            "score_every": score_every,
        }
    )


def batches(spec: Spec, batch_span_ms: int) -> list[EventBatch]:
    """In offset order, a twentieth a few minutes late."""
    rng = np.random.default_rng(11)
    popular = CUSTOMERS // 10
    made = []
    for n in range(BATCHES):
        start = START + n * batch_span_ms
        times = np.sort(rng.integers(start, start + batch_span_ms, EVENTS))
        times -= np.where(rng.random(EVENTS) < 0.05, rng.integers(0, 300_000, EVENTS), 0)
        busy = rng.random(EVENTS) < 0.5
        customer = np.where(busy, rng.integers(0, popular, EVENTS), rng.integers(0, CUSTOMERS, EVENTS))
        kind = rng.choice(len(spec.kinds), EVENTS, p=[0.5, 0.2, 0.1, 0.05, 0.05, 0.02, 0.03, 0.05])
        made.append(
            EventBatch(
                [f"c{i}" for i in range(CUSTOMERS)],
                customer.astype(np.int32),
                kind.astype(np.uint8),
                times,
                np.where(kind == 6, rng.gamma(2.0, 20.0, EVENTS), np.nan),
                rng.integers(1, 2**63, EVENTS).astype(np.uint64),
                np.arange(EVENTS, dtype=np.int64),
            )
        )
    return made


def measure(spec: Spec, stream: list[EventBatch]) -> tuple[float, float]:
    """µs an event, points an event."""
    layout = Layout(spec)
    folder, best, found = Folder(layout), float("inf"), 0
    for _ in range(ROUNDS):
        rows, spent, found = layout.empty(CUSTOMERS), [], 0
        for batch in stream:
            start = time.perf_counter()
            rows, points = folder.fold(rows, batch)
            spent.append(time.perf_counter() - start)
            found += len(points)
        best = min(best, float(np.median(spent)))
    return best / EVENTS * 1e6, found / len(stream) / EVENTS


def least_us(act: Callable[[], object], times: int = 300) -> float:
    spent = []
    for _ in range(times):
        start = time.perf_counter()
        act()
        spent.append(time.perf_counter() - start)
    return min(spent) * 1e6


def figures() -> dict[str, float]:
    often, seldom = spec_of("0s"), spec_of("30d")
    layout = Layout(often)
    folder, rows = Folder(layout), layout.empty(CUSTOMERS)
    nothing = EventBatch(["c"], *(np.zeros(0, t) for t in ("i4", "u1", "i8", "f8", "u8", "i8")))
    hours, days = batches(often, 60_000), batches(often, DAY_MS)
    folder.fold(rows, hours[0])
    out: dict[str, float] = {"record_bytes": float(layout.itemsize)}
    out["us_per_event"], _ = measure(seldom, hours)
    out["us_per_event_with_points"], out["points_per_event"] = measure(often, hours)
    out["us_per_event_day_batches"], out["points_per_event_day_batches"] = measure(often, days)
    out["us_per_event_row_copies"] = least_us(lambda: writable_fields(layout, rows)) / EVENTS
    out["us_per_call"] = least_us(lambda: folder.fold(rows[:1], nothing))
    out["us_per_call_elapse"] = least_us(lambda: folder.elapse(rows[:1], 0))
    return {name: round(figure, 3) for name, figure in out.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="µs an event of the fold")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    measured = figures()
    print("\n".join(f"{name:32} {figure:9.3f}" for name, figure in measured.items()))
    if arguments.json:
        arguments.json.write_text(json.dumps(measured))


if __name__ == "__main__":
    main()
