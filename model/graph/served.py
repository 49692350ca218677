"""The graph that is published: record fields in, features, probability or reasons out.

    record fields, as_of ──▶ FeatureLayer ──▶ network ──▶ Calibrator ──▶ probability
                                  │              └── integrated gradients ──▶ contributions
                                  └─────────────────────────────────────────▶ features

It ties the parts together as three functions of the same inputs, the record's fields by name and `as_of`, and is what
`model/serving/artifact.py` writes as a SavedModel. It knows no files, no batches and no compilation; whoever loads it
(the worker, TF Serving, a notebook) needs no code of ours.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from ebbtide.featurestore.record.layout import Layout
from ebbtide.model.graph.calibrator import Calibrator
from ebbtide.model.graph.features import FeatureLayer, Tensor

EXPLAIN_STEPS = 8
"""Gauss-Legendre nodes: exact for polynomials of degree 15, where a Riemann sum needs hundreds of steps."""

SIGNATURES: dict[str, tuple[str, ...]] = {
    "features": ("features",),
    "score": ("probability", "logit"),
    "explain": ("features", "contributions", "logit", "reference"),
}
"""Signature -> its outputs. All are float32: [n, F] for features and contributions, [n] for the rest."""


def input_specs(layout: Layout, size: int | None = None) -> dict[str, Any]:
    """{name: tf.TensorSpec} of the graph's inputs: `layout.model_fields` and `as_of`, for `size` rows or any number."""
    specs = {
        name: tf.TensorSpec(
            (size, *layout.dtype[name].shape), tf.as_dtype(layout.dtype[name].base), name=name
        )
        for name in layout.model_fields
    }
    return {**specs, "as_of": tf.TensorSpec((size,), tf.int64, name="as_of")}


class Served(tf.Module):
    """`Served(layout, network, calibrator)`: the functions of a model. `network` is in float32 (`network.in_float32`).

    Each takes the record's fields by name, `layout.model_fields` in their dtypes and shapes [n, …], and `as_of`
    int64[n], ms UTC; n is any number of rows. Row i of an answer depends on row i alone, and every figure is finite.
    They are pure, so they may be called from any thread; a missing or misshapen field is TensorFlow's own error.
    """

    def __init__(self, layout: Layout, network: keras.Model, calibrator: Calibrator) -> None:
        super().__init__(name="ebbtide")
        self.layout = layout
        self._calibrator = calibrator
        numbers = [calibrator.a, calibrator.b, calibrator.c]
        self._numbers = tf.Variable(numbers, trainable=False, dtype=tf.float32, name="calibrator")
        self._layer = FeatureLayer(layout)
        self._network = network
        self._standardise = network.get_layer("standardise")
        self._recurrent = network.get_layer("recurrent")
        self._head = network.get_layer("head")
        nodes, weights = np.polynomial.legendre.leggauss(EXPLAIN_STEPS)
        self._steps = ((nodes + 1.0) / 2.0).astype(np.float32)
        self._step_weights = (weights / 2.0).astype(np.float32)

    def features(self, **inputs: Tensor) -> dict[str, Tensor]:
        """features: float32[n, F], natural units, in the order of `featurestore.record.features.features(spec)`."""
        return {"features": self._parts(inputs)["features"]}

    def score(self, **inputs: Tensor) -> dict[str, Tensor]:
        """probability: float32[n] in [0, 1], calibrated: no activity within the horizon after `as_of`, given that no
        leave is stated in it. logit: float32[n], `probability` before the sigmoid, in nats."""
        parts = self._parts(inputs)
        state, x = self._encode(parts)
        logit = self._logit(state, x)
        return {"probability": tf.sigmoid(logit), "logit": logit}

    def explain(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Why a row's logit is what it is: for the few rows that become alerts, some EXPLAIN_STEPS times as dear as
        `score`.

        features       float32[n, F]  as `features` gives them
        contributions  float32[n, F]  nats, > 0 towards churn: integrated gradients (Sundararajan, Taly & Yan 2017)
                                      along the straight line from the training mean to the row in the space of
                                      standardised features, the sequence's part held fixed
        logit          float32[n]     as `score` gives it
        reference      float32[n]     the calibrated logit of this sequence with mean features; a row's contributions
                                      sum to `logit - reference`, to within what EXPLAIN_STEPS nodes can integrate
        """
        parts = self._parts(inputs)
        state, x = self._encode(parts)
        width = x.shape[1]  # F + T: a time is there in days and in seconds
        path = tf.reshape(self._steps[:, None, None] * x[None], (-1, width))
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(path)
            logits = self._logit(tf.tile(state, (EXPLAIN_STEPS, 1)), path)
        slopes = tf.reshape(tape.gradient(logits, path), (EXPLAIN_STEPS, -1, width))
        mean_slope = tf.reduce_sum(slopes * self._step_weights[:, None, None], axis=0)
        return {
            "features": parts["features"],
            "contributions": self._by_feature(x * mean_slope),
            "logit": self._logit(state, x),
            "reference": self._logit(state, tf.zeros_like(x)),
        }

    def _by_feature(self, contributions: Tensor) -> Tensor:
        """[n, F + T] -> [n, F]: what a time says in seconds belongs to the feature that says it in days."""
        listed, time = self._layer.feature_count, list(self._standardise.time)
        of = [time.index(i) if i in time else len(time) for i in range(listed)]
        seconds = tf.pad(contributions[:, listed:], [[0, 0], [0, 1]])
        return contributions[:, :listed] + tf.gather(seconds, of, axis=1)

    def signatures(self) -> dict[str, Any]:
        """{name: concrete function} over any number of rows, as `tf.saved_model.save` takes them."""
        specs = input_specs(self.layout)
        return {name: tf.function(getattr(self, name)).get_concrete_function(**specs) for name in SIGNATURES}

    def _parts(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        record = {name: inputs[name] for name in self.layout.model_fields}
        parts: dict[str, Tensor] = self._layer(record, inputs["as_of"])
        return parts

    def _encode(self, parts: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        ring = {name: column for name, column in parts.items() if name != "features"}
        return self._recurrent(ring, training=False), self._standardise(parts["features"])

    def _logit(self, state: Tensor, x: Tensor) -> Tensor:
        return self._calibrator.in_graph(self._head([state, x], training=False), self._numbers)
