"""Real models without training: small networks of random weights, adapted to real records, published as any other.

What is tested with them (bits, signatures, files, swaps) does not depend on whether a model has learned anything.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ebbtide.featurestore.record.fold import Folder
from ebbtide.featurestore.record.layout import Layout, Rows
from ebbtide.featurestore.spec import Spec, parse_spec
from ebbtide.model.graph.calibrator import KNOTS_S, Calibrator
from ebbtide.model.graph.features import FeatureLayer
from ebbtide.model.graph.forest import Forest
from ebbtide.model.graph.network import adapt, build_network
from ebbtide.model.graph.sizes import NetworkConfig
from ebbtide.model.serving.artifact import SIZES, Facts, export
from tests.support.oracle.histories import START, columns, random_history

SPEC = parse_spec(
    {
        "name": "corner_shop",
        "horizon": "14d",
        "memory": "180d",
        "kinds": [
            {"name": "visit"},
            {"name": "purchase", "aggregate": ["sum", "mean", "last"]},
            {"name": "mail", "role": "contact"},
            {"name": "goodbye", "role": "terminal"},
            {"name": "plan", "role": "attribute", "attribute": "category", "categories": ["free", "plus"]},
            {"name": "renewal", "role": "attribute", "attribute": "date"},
        ],
        "windows": {"24h": 6, "7d": 7, "90d": 6},
        "half_lives": ["3d", "21d"],
        "days_active": [7, 90],
    }
)
LAYOUT = Layout(SPEC)
TINY = parse_spec(
    {
        "name": "kiosk", "horizon": "7d", "memory": "30d", "kinds": [{"name": "visit"}], "windows": {"7d": 7},
        "sequence": {"length": 4},
    }
)  # fmt: skip
"""Compiles in a fraction of the time, for tests of what happens around a model."""
FACTS = Facts(
    created=datetime(2024, 5, 1, tzinfo=UTC), enter=0.6, exit=0.4, alert_rate=0.05, data_hash="0" * 64
)  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """Records at decision points, as a scorer gets them: rows structured[n], as_of int64[n]."""

    rows: Rows
    as_of: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def of(self, chosen: NDArray[np.int64] | slice) -> "Sample":
        return Sample(self.rows[chosen], self.as_of[chosen])


def sample(n: int, *, spec: Spec = SPEC, seed: int = 0) -> Sample:
    """n rows of random customers at their decision points, of every age; one in fifty a record of zero bytes."""
    rng = np.random.default_rng(seed)
    layout = Layout(spec)
    rows, as_of = layout.empty(n), np.full(n, START, np.int64)
    filled = 0
    while filled < n:
        batch = columns(random_history(spec, int(rng.integers(2**31)), 300, customers=8))
        _, points = Folder(layout).fold(layout.empty(len(batch.customers)), batch)
        chosen = rng.permutation(np.flatnonzero(points.scored))[: n - filled]
        rows[filled : filled + len(chosen)] = points.rows[chosen]
        as_of[filled : filled + len(chosen)] = points.as_of[chosen]
        filled += len(chosen)
    as_of += rng.integers(0, 5 * 86_400_000, n) * (rng.random(n) < 0.5)
    rows[::50] = layout.empty(1)[0]
    return Sample(rows, as_of)


def network_of(spec: Spec = SPEC, seed: int = 0) -> keras.Model:
    """A network of the default sizes whose every weight matters, adapted to real records."""
    data, layout = sample(256, spec=spec, seed=seed), Layout(spec)
    network = build_network(spec, NetworkConfig(seed=seed))
    record = {name: tf.constant(data.rows[name]) for name in layout.model_fields}
    adapt(network, FeatureLayer(layout)(record, tf.constant(data.as_of)))
    # Weights that start at zero (biases, the wide path) would hide the terms they belong to.
    rng = np.random.default_rng(seed)
    network.set_weights(
        [w if w.any() else rng.normal(0.0, 0.05, w.shape).astype(w.dtype) for w in network.get_weights()]
    )
    return network


def forest_of(spec: Spec = SPEC, seed: int = 0) -> Forest:
    """A forest of random questions and values, of which every feature is asked."""
    rng, empty = np.random.default_rng(seed), Forest.empty()
    data, layout = sample(64, spec=spec, seed=seed), Layout(spec)
    record = {name: tf.constant(data.rows[name]) for name in layout.model_fields}
    values = FeatureLayer(layout)(record, tf.constant(data.as_of))["features"].numpy()
    feature = rng.integers(0, values.shape[1], empty.feature.shape).astype(np.int32)
    threshold = values[rng.integers(0, len(values), feature.shape), feature]
    value = rng.normal(0.0, 0.1, empty.value.shape).astype(np.float32)
    return Forest(feature, threshold, value, -0.2)


def publish(
    directory: Path,
    *,
    spec: Spec = SPEC,
    seed: int = 0,
    forest: bool = False,
    version: int | None = None,
    sizes: tuple[int, ...] = SIZES,
    key: str | None = None,
) -> Path:
    """A published model of random weights, drawn from `seed`, that uses every part of the graph (a forest, if asked).
    Returns its folder."""
    warm_up = sample(16, spec=spec, seed=seed)
    return export(
        directory,
        spec,
        network_of(spec, seed),
        Calibrator(a=0.9, b=1.2, c=-0.3 - seed / 100, by_silence=tuple(np.linspace(-0.2, 0.3, len(KNOTS_S)))),
        FACTS,
        (warm_up.rows, warm_up.as_of),
        forest=forest_of(spec, seed) if forest else None,
        share=0.4,
        version=version,
        sizes=sizes,
        key=key,
    )
