"""The examples of a log: points of its replay, seen through the very layer that the SavedModel carries.

Two sorts are drawn, because the service asks two sorts of question:

    decision points   just after an event, and at the silences that followed: where alerts are decided. They crowd
                      around the active, and end one horizon after the last activity.
    snapshots         every eligible customer once as of dates `snapshot_every` apart: where the model is judged. Most
                      of a snapshot has long been silent, beyond the last silence of the schedule.

Measured on the two public logs, examples of both sorts rank each sort as well as examples of it alone, and calibrate
better. `examples_max` bounds them, half each, by a seeded bottom-k sample (`sample.py`): the k points of smallest hash.
It depends on the points alone, not on their order nor on chunks, and holds at most twice k records, however long the
log is.
"""

from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ebbtide.featurestore.customer import people
from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.parts.part import Part
from ebbtide.featurestore.record.fold import Points
from ebbtide.featurestore.record.layout import Layout, Rows
from ebbtide.model.examples.examples import Examples, Outcomes
from ebbtide.model.examples.labels import Labeller
from ebbtide.model.examples.sample import Panel, Wanted, gather, snapshot_dates
from ebbtide.model.graph.features import FeatureLayer

FEATURE_CHUNK_ROWS = 8_192
"""Rows through the feature layer at once: some 10 MB of records."""


class Inputs:
    """Records to network inputs: the feature layer, traced once for a fixed chunk so that any number of rows fits."""

    def __init__(self, layout: Layout) -> None:
        self._fields = layout.model_fields
        self._compute = tf.function(FeatureLayer(layout))

    def __call__(self, rows: Rows, as_of: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """rows: records[n], as_of: int64[n], ms UTC -> the layer's outputs by name, [n, ...]; see `FeatureLayer`."""
        n, parts = len(rows), []
        for start in range(0, max(n, 1), FEATURE_CHUNK_ROWS):
            chosen = np.arange(start, start + FEATURE_CHUNK_ROWS) % max(n, 1)
            record = rows[chosen] if n else np.zeros(FEATURE_CHUNK_ROWS, rows.dtype)
            times = as_of[chosen] if n else np.zeros(FEATURE_CHUNK_ROWS, np.int64)
            fields = {name: tf.constant(np.ascontiguousarray(record[name])) for name in self._fields}
            outputs = self._compute(fields, tf.constant(times))
            parts.append({name: value.numpy()[: n - start] for name, value in outputs.items()})
        return {name: np.concatenate([part[name] for part in parts])[:n] for name in parts[0]}


class History:
    """A log known up to, not including, `known_until_ms`, with the one labeller and the one feature layer that a whole
    run reads it with: both are dear to make (a sort of the log, a trace of the graph) and cheap to ask."""

    def __init__(
        self, layout: Layout, log: EventBatch, known_until_ms: int, inputs: Inputs | None = None
    ) -> None:
        self.layout, self.log, self.known_until_ms = layout, log, known_until_ms
        self.labeller = Labeller(layout.spec, log, known_until_ms)
        self._people = people(log.customers, layout.spec.customer)
        self.inputs = inputs or Inputs(layout)

    def examples(self, points: Points) -> Examples:
        """Points of the log as examples of the primary target, in the same order; `label` is UNKNOWN where the horizon
        is not over."""
        at = points.customer, points.as_of
        outcomes = Outcomes(self.labeller.labels(*at), self.labeller.wait_ms(*at), self.labeller.seen_ms(*at))
        inputs = self.inputs(points.rows, points.as_of)
        return Examples(
            *at, points.cause, outcomes.labels[:, 0], inputs, outcomes, person=self.people(points.customer)
        )

    def people(self, customer: NDArray[np.integer[Any]]) -> NDArray[np.int32] | None:
        """customer: int[n], index into the log's customers -> `Examples.person` of such rows."""
        return None if self._people is None else self._people[customer]


def wanted_of(
    layout: Layout,
    log: EventBatch,
    known_until_ms: int,
    examples_max: int,
    every_ms: int | None,
    seed: int,
    panels: tuple[Panel, ...] = (),
) -> Wanted:
    """Labelled examples: at most `examples_max`, half of them snapshots `every_ms` apart, drawn by `seed`."""
    dates = snapshot_dates(layout.spec, log, known_until_ms - layout.spec.horizon_ms, every_ms)
    return Wanted(known_until_ms, dates, examples_max, seed, panels)


def draw(history: History, *, examples_max: int, every_ms: int | None = None, seed: int = 0) -> Examples:
    """Labelled examples of a log: at most `examples_max`, half of them snapshots; fewer when the log has fewer.
    CANCELLED rows are among them."""
    layout, log = history.layout, history.log
    wanted = wanted_of(layout, log, history.known_until_ms, examples_max, every_ms, seed)
    found = gather(layout, Part.whole(log), wanted)
    return history.examples(Points.joined(layout, [found.decisions, found.snapshots]))
