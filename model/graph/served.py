"""The graph that is published: record fields in, features, probability or reasons out.

    record fields, as_of ──▶ FeatureLayer ─┬─▶ trunk ──▶ head of each target ─┬──▶ probability, survival
                                           │                                  └── taken apart ──▶ contributions
                                           └──▶ features

It ties the parts together as three functions of the same inputs, the record's fields by name and `as_of`, and a fourth,
`serving_default`, of what a store holds; it is what `model/serving/artifact.py` writes as a SavedModel. It knows no
files, no batches and no compilation; whoever loads it (the worker, TF Serving, a notebook) needs no code of ours.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from ebbtide.featurestore.record.layout import Layout
from ebbtide.model.explaining.gradients import integrated
from ebbtide.model.graph.features import DAY_S, FeatureLayer
from ebbtide.model.graph.head import Head, HeadGraph
from ebbtide.model.graph.network import has_sequence
from ebbtide.model.graph.record_bytes import Tensor, fields, unpack

SILENCE = 0
"""The first feature of every spec: days since the last activity."""
SIGNATURES: dict[str, tuple[str, ...]] = {
    "features": ("features",),
    "score": ("probability", "logit", "survival"),
    "explain": ("features", "contributions", "sequence", "logit", "reference", "survival"),
}
"""Signature -> its outputs. All are float32: [n, F] for features and contributions, [n, K] for survival at K horizons,
where the model knows more than one, and [n] for the rest. Of several targets all but the features have an axis of them
behind the rows'."""
SERVING_DEFAULT = "serving_default"
"""`score` of records as a store keeps them: record string[n], what `GET` returns for a customer's key; as_of int64[n].
The name is the one that loaders of SavedModels take when none is given."""


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
        wide: str = "float64",
    ) -> None:
        """wide: of the features, see `FeatureLayer`."""
        super().__init__(name="ebbtide")
        self.layout = layout
        self._layer = FeatureLayer(layout, wide)
        self._networks = [head.network for head in heads]
        network = heads[0].network
        self._standardise = network.get_layer("standardise")
        self._recurrent = network.get_layer("recurrent") if has_sequence(network) else None
        self._heads = [HeadGraph(head) for head in heads]

    def features(self, **inputs: Tensor) -> dict[str, Tensor]:
        """features: float32[n, F], natural units, in the order of `featurestore.record.features.features(spec)`."""
        return {"features": self._parts(inputs)["features"]}

    def score(self, **inputs: Tensor) -> dict[str, Tensor]:
        """probability: float32[n] in [0, 1], calibrated: churn within the horizon after `as_of`, by default that no
        activity comes, given that no leave is stated in it. logit: float32[n], `probability` before the sigmoid, in
        nats. survival: float32[n, K] in [0, 1], falling: that nothing of the target has come by each of
        `spec.horizons_ms`."""
        parts = self._parts(inputs)
        values = parts["features"]
        state, x = self._encode(parts)
        return _by_target([head.score(state, x, values, _silence_s(values)) for head in self._heads])

    def explain(self, **inputs: Tensor) -> dict[str, Tensor]:
        """Why a row's logit is what it is, beside the baseline's: for the few rows that become alerts.

        The baseline is one row: every feature at its training mean (of the squeezed figure, so a flag may be a share),
        the sequence empty. Each learner is taken apart against it, and each part is mixed as the logits are.

        features       float32[n, F]  as `features` gives them
        contributions  float32[n, F]  nats, > 0 towards churn. The network's part: integrated gradients along the
                                      straight line in the space of standardised features and the recurrent part's
                                      state. The forest's: Shapley values. The calibrator stretches all parts alike;
                                      its shift by silence is the silence's
        sequence       float32[n]     nats: what the recurrent part's state brought, on the same line, from the empty
                                      sequence's; 0 where the network has none
        logit          float32[n]     as `score` gives it
        reference      float32[n]     the baseline's calibrated logit, the same for every row: contributions and
                                      sequence sum to `logit - reference`, but for what quadrature and float32 lose
        survival       float32[n, K]  as `score` gives it
        """
        parts = self._parts(inputs)
        values = parts["features"]
        state, x = self._encode(parts)
        baseline = self._baseline()
        nowhere = self._standardise(baseline)
        # The state passes over padding, so that of an empty sequence is what it begins as.
        nothing = None if state is None else tf.zeros_like(state[:1])
        found = [self._explained(head, values, state, x, baseline, nothing, nowhere) for head in self._heads]
        return {"features": values, **_by_target(found)}

    def _explained(
        self,
        head: HeadGraph,
        values: Tensor,
        state: Tensor | None,
        x: Tensor,
        baseline: Tensor,
        nothing: Tensor | None,
        nowhere: Tensor,
    ) -> dict[str, Tensor]:
        """One head's, of rows with a state and standardised features, against the baseline's."""
        row = head.mixed(head.of(state, x), head.trees(values))
        usual = head.mixed(head.of(nothing, nowhere), head.trees(baseline))
        if state is None:
            (of_features,) = integrated(lambda each: head.of(None, each), [nowhere], [x])
            of_state = tf.zeros_like(row)
        else:
            of_state, of_features = integrated(head.of, [nothing, nowhere], [state, x])
            of_state = head.shares[0] * tf.reduce_sum(of_state, axis=1)
        raw = head.shares[0] * self._by_feature(of_features)
        if head.forest is not None:
            raw += head.shares[1] * head.forest.contributions(values, baseline[0])
        stretch = head.stretch(row, usual)
        shifted = head.shift(_silence_s(values)) - head.shift(_silence_s(baseline))
        contributions = raw * stretch[:, None]
        logit = head.calibrated(row, _silence_s(values))
        explained = {
            "contributions": tf.concat(
                [(contributions[:, SILENCE] + shifted)[:, None], contributions[:, SILENCE + 1 :]], axis=1
            ),
            "sequence": of_state * stretch,
            "logit": logit,
            "reference": tf.zeros_like(row) + head.calibrated(usual, _silence_s(baseline)),
        }
        if head.hazard is not None:
            explained["survival"] = head.hazard.survival(x, logit, tf.sigmoid(logit))
        return explained

    def _baseline(self) -> Tensor:
        """float32[1, F]: the training mean of each squeezed feature, back in natural units."""
        mean = self._standardise.mean[: self._layer.feature_count]
        log = np.array(self._standardise.log[: self._layer.feature_count])
        return tf.where(log, tf.sign(mean) * tf.math.expm1(tf.abs(mean)), mean)[None, :]

    def _by_feature(self, contributions: Tensor) -> Tensor:
        """[n, F + T] -> [n, F]: what a time says in seconds belongs to the feature that says it in days."""
        listed, time = self._layer.feature_count, list(self._standardise.time)
        of = [time.index(i) if i in time else len(time) for i in range(listed)]
        seconds = tf.pad(contributions[:, listed:], [[0, 0], [0, 1]])
        return contributions[:, :listed] + tf.gather(seconds, of, axis=1)

    def signatures(self) -> dict[str, Any]:
        """{name: concrete function} over any number of rows, as `tf.saved_model.save` takes them."""
        specs = input_specs(self.layout)
        made = {name: tf.function(getattr(self, name)).get_concrete_function(**specs) for name in SIGNATURES}

        def stored(record: Tensor, as_of: Tensor) -> dict[str, Tensor]:
            tf.debugging.Assert(
                tf.equal(tf.size(record), tf.size(as_of)),
                ["as_of has another length than record:", tf.size(as_of), tf.size(record)],
            )
            # The function itself: the same nodes, hence the same bits, and the graph is there once.
            found: dict[str, Tensor] = made["score"](
                **fields(self.layout, unpack(self.layout, record)), as_of=as_of
            )
            return found

        text, time = tf.TensorSpec((None,), tf.string, name="record"), specs["as_of"]
        made[SERVING_DEFAULT] = tf.function(stored).get_concrete_function(record=text, as_of=time)
        return made

    def _parts(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        record = {name: inputs[name] for name in self.layout.model_fields}
        parts: dict[str, Tensor] = self._layer(record, inputs["as_of"])
        return parts

    def _encode(self, parts: dict[str, Tensor]) -> tuple[Tensor | None, Tensor]:
        ring = {name: column for name, column in parts.items() if name != "features"}
        state = None if self._recurrent is None else self._recurrent(ring, training=False)
        return state, self._standardise(parts["features"])


def _by_target(found: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """What each head says, with an axis of targets behind the rows' where there are several."""
    if len(found) == 1:
        return found[0]
    return {name: tf.stack([each[name] for each in found], axis=1) for name in found[0]}


def _silence_s(values: Tensor) -> Tensor:
    return values[:, SILENCE] * DAY_S
