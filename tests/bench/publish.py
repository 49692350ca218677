"""The bench's model, in two forms of the same network: `python -m tests.bench.publish DIR START_MS`.

    DIR/models/bench/1   as the trainer publishes it: record fields in, features in the graph
    DIR/plain            the network alone, as a service that computes features itself would save it
    DIR/thresholds.json  {"ours": enter, "plain": enter}: for each, where ALERT_SHARE of the events make an alert

Weights are random, standardisation is adapted to the bench's own records: what is measured does not depend on
whether the network has learned anything. Thresholds differ because the plain form gets fewer features; both alert
about equally often, since an alert costs more than an event.
"""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.record.fold import Folder, Points
from ebbtide.featurestore.record.layout import Layout
from ebbtide.ops.tensorflow import load_tensorflow
from tests.bench.plain import filled_columns
from tests.bench.traffic import SPEC, batch_of, clicks

ALERT_SHARE = 0.02  # of events: far more than in life, so that a p99 stands on a thousand alerts
HISTORY = 500_000
SETTLED = 160_000  # the events before are every customer's first, and say little about the rest
SEED = 7
"""Of the weights. With these newcomers stay below the threshold, so that alerts come evenly from early on."""
SCORED_AT_ONCE = 4_096


def main(directory: Path, start_ms: int) -> None:
    load_tensorflow()
    import tensorflow as tf

    from ebbtide.model.graph.calibrator import Calibrator
    from ebbtide.model.graph.features import FeatureLayer
    from ebbtide.model.graph.network import adapt, build_network
    from ebbtide.model.graph.sizes import NetworkConfig
    from ebbtide.model.serving.artifact import Facts, export

    layout, points = Layout(SPEC), _points(start_ms)
    layer = FeatureLayer(layout)
    network = build_network(SPEC, NetworkConfig(units=48, dense=(64, 32), seed=SEED))

    def inputs(part: slice) -> dict[str, Any]:
        rows = np.ascontiguousarray(points.rows[part])
        record = {name: tf.constant(rows[name]) for name in layout.model_fields}
        made: dict[str, Any] = layer(record, tf.constant(points.as_of[part]))
        return made

    parts = [slice(at, at + SCORED_AT_ONCE) for at in range(0, len(points), SCORED_AT_ONCE)]
    adapted = [inputs(part) for part in parts]
    adapt(network, {name: np.concatenate([part[name] for part in adapted]) for name in adapted[0]})
    rng = np.random.default_rng(SEED)  # weights that start at zero: biases, the wide path
    network.set_weights(
        [w if w.any() else rng.normal(0.0, 0.05, w.shape).astype(w.dtype) for w in network.get_weights()]
    )
    filled = filled_columns()
    ours, plain = [], []
    for part in parts:
        made = inputs(part)
        ours.append(tf.sigmoid(network(made, training=False)).numpy())
        made["features"] = tf.where(filled, made["features"], 0.0)
        plain.append(tf.sigmoid(network(made, training=False)).numpy())
    enter = {"ours": _enter(points, np.concatenate(ours)), "plain": _enter(points, np.concatenate(plain))}
    facts = Facts(
        created=datetime.fromtimestamp(start_ms / 1000, UTC), enter=enter["ours"], exit=enter["ours"],
        alert_rate=ALERT_SHARE, data_hash="0" * 64,
    )  # fmt: skip
    warm_up = points.rows[-64:], points.as_of[-64:]
    export(directory / "models", SPEC, network, Calibrator(), facts, warm_up)
    _save_plain(tf, network, directory / "plain")
    (directory / "thresholds.json").write_text(json.dumps(enter))


def _points(start_ms: int) -> Points:
    """Where the stream's customers are scored, once it has settled."""
    layout = Layout(SPEC)
    events = batch_of(clicks(0, HISTORY, start_ms))
    _, points = Folder(layout).fold(layout.empty(len(events.customers)), events)
    kept = np.flatnonzero(points.scored & (points.event >= SETTLED))
    p = points
    return Points(p.rows[kept], p.customer[kept], p.as_of[kept], p.cause[kept], p.event[kept])


def _enter(points: Points, p: NDArray[np.float32]) -> float:
    """The threshold at which openings and resolutions together are ALERT_SHARE of the events."""
    wanted = ALERT_SHARE * (HISTORY - SETTLED)
    order = np.argsort(points.customer, kind="stable")
    first = np.diff(points.customer[order], prepend=-1) != 0
    for quantile in np.linspace(0.99, 0.5, 50):
        enter = float(np.quantile(p, quantile))
        is_open = (p >= enter)[order]
        before = np.where(first, False, np.roll(is_open, 1))
        if int((is_open != before).sum()) >= wanted:
            break
    return enter


def _save_plain(tf: Any, network: Any, path: Path) -> None:
    """A SavedModel over the network's own inputs, any number of rows."""

    class Plain(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

    module = Plain()
    specs = {tensor.name: tf.TensorSpec(tensor.shape, tensor.dtype, tensor.name) for tensor in network.inputs}
    score = tf.function(lambda **made: {"probability": tf.sigmoid(network(made, training=False))})
    tf.saved_model.save(module, str(path), signatures={"score": score.get_concrete_function(**specs)})


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
