"""The graph that is published: record fields in, features, probability or reasons out.

    record fields, as_of ──▶ FeatureLayer ─┬─▶ trunk ──┬──▶ head of each target ──▶ probability, survival
                                           │           └──▶ the first one's parts taken apart ──▶ contributions
                                           └────────────────────────────▶ features

It ties the parts together as three functions of the same inputs, the record's fields by name and `as_of`, and is what
`model/serving/artifact.py` writes as a SavedModel. It knows no files, no batches and no compilation; whoever loads it
(the worker, TF Serving, a notebook) needs no code of ours.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from ebbtide.featurestore.record.layout import Layout
from ebbtide.model.graph.features import DAY_S, FeatureLayer, Tensor
from ebbtide.model.graph.head import Head, HeadGraph
from ebbtide.model.graph.network import has_sequence

EXPLAIN_STEPS = 8
"""Gauss-Legendre nodes: exact for polynomials of degree 15, where a Riemann sum needs hundreds of steps."""
SILENCE = 0
"""The first feature of every spec: days since the last activity."""
STRETCH_MIN = 1e-6
"""Raw logits nearer than this differ by rounding."""

SIGNATURES: dict[str, tuple[str, ...]] = {
    "features": ("features",),
    "score": ("probability", "logit", "survival"),
    "explain": ("features", "contributions", "logit", "reference"),
}
"""Signature -> its outputs. All are float32: [n, F] for features and contributions, [n] for the rest; of `score` [n,
targets] where there are several, and [n, horizons] or [n, targets, horizons] for survival, if the model has it."""


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
    """`Served(layout, heads)`: the functions of a model, with a head for each target of the spec, the primary one
    first. The trunk is that of the first one's network.

    Each takes the record's fields by name, `layout.model_fields` in their dtypes and shapes [n, …], and `as_of`
    int64[n], ms UTC; n is any number of rows. Row i of an answer depends on row i alone, and every figure is finite.
    They are pure, so they may be called from any thread; a missing or misshapen field is TensorFlow's own error.
    """

    def __init__(
        self,
        layout: Layout,
        heads: Sequence[Head],
    ) -> None:
        super().__init__(name="ebbtide")
        self.layout = layout
        self._layer = FeatureLayer(layout)
        self._networks = [head.network for head in heads]
        network = heads[0].network
        self._standardise = network.get_layer("standardise")
        self._recurrent = network.get_layer("recurrent") if has_sequence(network) else None
        self._heads = [HeadGraph(head) for head in heads]
        self._own = self._heads[0]
        nodes, weights = np.polynomial.legendre.leggauss(EXPLAIN_STEPS)
        self._steps = ((nodes + 1.0) / 2.0).astype(np.float32)
        self._step_weights = (weights / 2.0).astype(np.float32)

    def features(self, **inputs: Tensor) -> dict[str, Tensor]:
        """features: float32[n, F], natural units, in the order of `featurestore.record.features.features(spec)`."""
        return {"features": self._parts(inputs)["features"]}

    def score(self, **inputs: Tensor) -> dict[str, Tensor]:
        """probability: float32[n] in [0, 1], calibrated: churn within the horizon after `as_of`, by default that no
        activity comes, given that no leave is stated in it. logit: float32[n], `probability` before the sigmoid, in
        nats. survival: float32[n, K] in [0, 1], falling: that nothing of the target has come by each of
        `spec.horizons_ms`. Of several targets each figure has an axis of targets behind the rows'."""
        parts = self._parts(inputs)
        values = parts["features"]
        state, x = self._encode(parts)
        found = [head.score(state, x, values, _silence_s(values)) for head in self._heads]
        if len(found) == 1:
            return found[0]
        return {name: tf.stack([each[name] for each in found], axis=1) for name in found[0]}

    def explain(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Why a row's logit is what it is: for the few rows that become alerts, some EXPLAIN_STEPS times as dear as
        `score`.

        features       float32[n, F]  as `features` gives them
        contributions  float32[n, F]  nats, > 0 towards churn. The network's part: integrated gradients (Sundararajan,
                                      Taly & Yan 2017) along the straight line from the training mean to the row in
                                      the space of standardised features, the sequence's part held fixed. The
                                      forest's: what each question on the row's way changed, see
                                      `ForestGraph.contributions`. The calibrator stretches both alike; its shift by
                                      silence is the silence's
        logit          float32[n]     as `score` gives it
        reference      float32[n]     the calibrated logit of this sequence with mean features, in the trees of a row
                                      of which nothing was asked; a row's contributions sum to `logit - reference`, to
                                      within what EXPLAIN_STEPS nodes can integrate
        """
        parts = self._parts(inputs)
        values = parts["features"]
        state, x = self._encode(parts)
        row = self._own.mixed(self._own.of(state, x), self._own.trees(values))
        mean = self._own.mixed(self._own.of(state, tf.zeros_like(x)), self._own.roots(values))
        raw = self._by_feature(x * self._mean_slope(state, x))
        if self._own.forest is not None:
            raw = self._own.shares[0] * raw + self._own.shares[1] * self._own.forest.contributions(values)
        apart = row - mean
        stretched = self._own.beta(row) - self._own.beta(mean)
        near = tf.abs(apart) < STRETCH_MIN  # both are next to nothing: what the map does there is all one
        stretch = tf.where(near, 1.0, stretched / tf.where(near, 1.0, apart))
        usual_s = tf.fill(tf.shape(row), self._usual_silence_s())
        shifted = self._own.shift(_silence_s(values)) - self._own.shift(usual_s)
        contributions = raw * stretch[:, None]
        return {
            "features": values,
            "contributions": tf.concat(
                [(contributions[:, SILENCE] + shifted)[:, None], contributions[:, SILENCE + 1 :]], axis=1
            ),
            "logit": self._own.calibrated(row, _silence_s(values)),
            "reference": self._own.calibrated(mean, usual_s),
        }

    def _mean_slope(self, state: Tensor, x: Tensor) -> Tensor:
        """[n, F + T]: the head's gradient, averaged along the way from mean features to x."""
        width = x.shape[1]
        path = tf.reshape(self._steps[:, None, None] * x[None], (-1, width))
        states = None if state is None else tf.tile(state, (EXPLAIN_STEPS, 1))
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(path)
            logits = self._own.of(states, path)
        slopes = tf.reshape(tape.gradient(logits, path), (EXPLAIN_STEPS, -1, width))
        return tf.reduce_sum(slopes * self._step_weights[:, None, None], axis=0)

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

    def _encode(self, parts: dict[str, Tensor]) -> tuple[Tensor | None, Tensor]:
        ring = {name: column for name, column in parts.items() if name != "features"}
        state = None if self._recurrent is None else self._recurrent(ring, training=False)
        return state, self._standardise(parts["features"])

    def _usual_silence_s(self) -> Tensor:
        """The training mean of the standardised silence, back in seconds."""
        return tf.math.expm1(self._standardise.mean[SILENCE]) * DAY_S


def _silence_s(values: Tensor) -> Tensor:
    return values[:, SILENCE] * DAY_S
