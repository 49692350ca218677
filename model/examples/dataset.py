"""The examples of a log: points of its replay, seen through the very layer that the SavedModel carries.

Two sorts are drawn, because the service asks two sorts of question:

    decision points   just after an event, and at the silences that followed: where alerts are decided. They crowd
                      around the active, and end one horizon after the last activity.
    snapshots         every eligible customer once as of dates `snapshot_every` apart: where the model is judged. Most
                      of a snapshot has long been silent, beyond the last silence of the schedule.

Measured on the two public logs, examples of both sorts rank each sort as well as examples of it alone, and calibrate
better. `examples_max` bounds them, half each, by a seeded bottom-k sample: the k points of smallest hash. It depends on
the points alone, not on their order nor on chunks, and holds at most twice k records, however long the log is.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.record.fold import SILENCE, Points
from ebbtide.featurestore.record.layout import Layout, Rows
from ebbtide.featurestore.record.replay import SNAPSHOT, replay
from ebbtide.featurestore.spec import Spec
from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.model.examples.examples import Examples
from ebbtide.model.examples.labels import Labeller
from ebbtide.model.graph.features import FeatureLayer

FEATURE_CHUNK_ROWS = 8_192
"""Rows through the feature layer at once: some 10 MB of records."""
SNAPSHOTS_A_HORIZON = 8
"""Dates nearer than an eighth of the horizon find nearly the same customers in nearly the same state."""


class Inputs:
    """Records to network inputs: the feature layer, traced once for a fixed chunk so that any number of rows fits."""

    def __init__(self, spec: Spec) -> None:
        layer = FeatureLayer(spec)
        self._fields = Layout(spec).model_fields
        self._compute = tf.function(layer)

    def __call__(self, rows: Rows, as_of: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """rows: records[n], as_of: int64[n] -> the layer's outputs by name, [n, ...]."""
        n, parts = len(rows), []
        for start in range(0, max(n, 1), FEATURE_CHUNK_ROWS):
            chosen = np.arange(start, start + FEATURE_CHUNK_ROWS) % max(n, 1)
            record = rows[chosen] if n else np.zeros(FEATURE_CHUNK_ROWS, rows.dtype)
            times = as_of[chosen] if n else np.zeros(FEATURE_CHUNK_ROWS, np.int64)
            fields = {name: tf.constant(np.ascontiguousarray(record[name])) for name in self._fields}
            outputs = self._compute(fields, tf.constant(times))
            parts.append({name: value.numpy()[: n - start] for name, value in outputs.items()})
        return {name: np.concatenate([part[name] for part in parts])[:n] for name in parts[0]}


class Sample:
    """At most `k` of all points offered: those of smallest hash of (customer, as_of, cause, seed)."""

    def __init__(self, layout: Layout, k: int, seed: int) -> None:
        self._k, self._seed = max(k, 1), seed
        self._keys = [np.zeros(0, np.uint64)]
        self._parts = [_points(layout.empty(0))]
        self._below = np.uint64(np.iinfo(np.uint64).max)
        self.offered = 0

    def offer(self, points: Points, chosen: NDArray[np.bool_]) -> None:
        """Offer the chosen ones, bool[m]. Only what can still be among the k smallest is copied."""
        keys = _hash(points, self._seed)
        kept = np.flatnonzero(chosen & (keys <= self._below))
        self.offered += int(chosen.sum())
        self._keys.append(keys[kept])
        self._parts.append(take(points, kept))
        if sum(map(len, self._keys)) > 2 * self._k:
            self._shrink()

    def points(self) -> Points:
        """The sample, in order of customer, then time."""
        self._shrink()
        points = self._parts[0]
        return take(points, np.lexsort((points.as_of, points.customer)))

    def _shrink(self) -> None:
        keys, joined = np.concatenate(self._keys), join(self._parts)
        if len(keys) > self._k:
            smallest = np.argpartition(keys, self._k - 1)[: self._k]
            keys, joined = keys[smallest], take(joined, smallest)
            self._below = keys.max()
        self._keys, self._parts = [keys], [joined]


def snapshot_dates(spec: Spec, log: EventBatch, until_ms: int, every_ms: int | None = None) -> list[int]:
    """Dates before `until_ms` whose snapshots are examples; whole days where `every_ms` is at least a day.

    `every_ms`: default an eighth of the horizon, rounded down to whole days.
    """
    every = every_ms or spec.horizon_ms // SNAPSHOTS_A_HORIZON
    grain = DAY_MS if every >= DAY_MS else 1
    every = max(every // grain * grain, 1)
    first = int(log.time.min()) // grain * grain
    return list(range(first + every, until_ms, every))


def labelled_points(
    spec: Spec, log: EventBatch, known_until_ms: int, snapshots: Sequence[int] = ()
) -> Iterator[tuple[Points, NDArray[np.bool_]]]:
    """Points of the replay, and which of them are examples: bool[m], scored or a snapshot, and the whole horizon lies
    before `known_until_ms`."""
    # A point whose horizon is not over has no label: the walk may end where the last labelled points lie.
    for points in replay(Layout(spec), log, known_until_ms - spec.horizon_ms, snapshots=snapshots):
        asked = (points.cause <= SILENCE) | (points.cause == SNAPSHOT)
        yield points, asked & (points.as_of + spec.horizon_ms < known_until_ms)


def draw(
    spec: Spec,
    log: EventBatch,
    known_until_ms: int,
    *,
    examples_max: int,
    every_ms: int | None = None,
    seed: int = 0,
    progress: Callable[[float], None] = lambda _: None,
) -> Examples:
    """Labelled examples of a log whose events are known up to, not including, `known_until_ms`: at most
    `examples_max`, half of them snapshots; fewer when the log has fewer. LEFT rows are among them."""
    layout, dates = Layout(spec), snapshot_dates(spec, log, known_until_ms - spec.horizon_ms, every_ms)
    decisions, snapshots = (Sample(layout, examples_max // 2, seed) for _ in range(2))
    first = int(log.time.min())
    for points, asked in labelled_points(spec, log, known_until_ms, dates):
        snapshot = points.cause == SNAPSHOT
        decisions.offer(points, asked & ~snapshot)
        snapshots.offer(points, asked & snapshot)
        if len(points):
            progress(min(1.0, (int(points.as_of.max()) - first) / max(known_until_ms - first, 1)))
    return examples_of(spec, log, known_until_ms, join([decisions.points(), snapshots.points()]))


def examples_of(spec: Spec, log: EventBatch, known_until_ms: int, points: Points) -> Examples:
    """Points of a log as examples, in the same order; `label` is UNKNOWN where the horizon is not over."""
    labels = Labeller(spec, log, known_until_ms).label(points.customer, points.as_of)
    inputs = Inputs(spec)(points.rows, points.as_of)
    return Examples(points.customer, points.as_of, points.cause, labels, inputs)


def take(points: Points, rows: NDArray[Any]) -> Points:
    """The points of a mask or of indices, copied."""
    return Points(*(getattr(points, f.name)[rows] for f in fields(Points)))


def join(parts: Sequence[Points]) -> Points:
    """Points one after the other."""
    return Points(*(np.concatenate([getattr(points, f.name) for points in parts]) for f in fields(Points)))


def _points(rows: Rows) -> Points:
    empty = np.zeros(0, np.int32)
    return Points(rows, empty, np.zeros(0, np.int64), np.zeros(0, np.uint8), empty)


def _hash(points: Points, seed: int) -> NDArray[np.uint64]:
    """uint64[n]: splitmix64 (Steele, Lea & Flood 2014) of what identifies a point."""
    mixed: NDArray[np.uint64] = points.as_of.astype(np.uint64) + (
        points.customer.astype(np.uint64) << np.uint64(36)
    )
    salt = np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
    mixed ^= (points.cause.astype(np.uint64) << np.uint64(60)) + salt
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return mixed
