"""The network: what the features and the sequence of a customer say about churn, as one logit.

        features f4[n, F] ──▶ standardise ──▶ x f4[n, F+T] ─────────────┬──▶ wide: linear ────┐
                                                                        ▼                     ▼
        kind count value gap [n, L] ──▶ recurrent: embed, GRU ──▶ s ──▶ deep: [s, x] ──▶ + ──▶ logit f4[n]

It knows shapes and weights; it knows nothing of records, files or how it is trained. Three parts, each to be
had by name (`network.get_layer("standardise")`, `"recurrent"`, `"head"`), because the explanation takes them
apart.

The invariant that shapes it: *the recurrent part reads the ring and nothing else*. Elapsed time (silence, its
ratio to the usual gap, days since each kind) is among the features and enters after it, so while a customer
is silent only the head's answer moves, and what the GRU made of the history holds.
"""

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

import keras
import numpy as np

from ebbtide.featurestore.record.features import features
from ebbtide.featurestore.spec import Spec
from ebbtide.model.graph.features import SEQUENCE_FIELDS
from ebbtide.model.graph.sizes import NetworkConfig
from ebbtide.model.graph.standard import STANDARD_MAX, in_seconds, logs, moments, squeeze, times


@keras.saving.register_keras_serializable("ebbtide")
class Standardise(keras.layers.Layer):
    """[..., C] -> [..., C + T]: the columns, and those that `time` names in seconds beside their days; then
    sign(x) * log1p|x| where `log[c]`, then to mean 0, deviation 1, clipped to ±STANDARD_MAX.

    A column that never varied in training says nothing: its scale is 0, so it stays 0 whatever comes later.
    """

    def __init__(self, log: Iterable[bool], time: Iterable[int] = (), **kwargs: Any) -> None:
        super().__init__(trainable=False, **{"dtype": "float32", **kwargs})
        self.log = [bool(flag) for flag in log]
        self.time = [int(column) for column in time]

    def build(self, _shape: Any) -> None:
        self.mean = self.add_weight(shape=(len(self.log),), initializer="zeros", name="mean")
        self.scale = self.add_weight(shape=(len(self.log),), initializer="ones", name="scale")

    def call(self, x: Any) -> Any:
        x = squeeze(in_seconds(x, self.time, keras.ops), self.log, keras.ops)
        return keras.ops.clip((x - self.mean) * self.scale, -STANDARD_MAX, STANDARD_MAX)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "log": self.log, "time": self.time}


def build_network(spec: Spec, config: NetworkConfig | None = None, *, unrolled: bool = False) -> keras.Model:
    """The network of a spec, weights drawn from `config.seed`. unrolled: the GRU's steps one after the other instead of
    a loop, for runtimes that know none of ours.

    Inputs, a dict as `FeatureLayer` makes it: features f4[n, F], kind i4[n, L], count, value, gap f4[n, L].
    Output: logit f4[n], not calibrated. Call `adapt` on training data before the first fit.
    """
    config = config or NetworkConfig()
    precision = config.precision
    listed, length = features(spec), spec.sequence.length
    dense = keras.Input((len(listed),), name="features", dtype="float32")
    ring = {
        name: keras.Input((length,), name=name, dtype="int32" if name == "kind" else "float32")
        for name in SEQUENCE_FIELDS
    }
    standardise = Standardise(logs(spec), times(spec), name="standardise")
    head, x = _head(len(standardise.log), config, precision), standardise(dense)
    if not config.sequence:
        return keras.Model({"features": dense, **ring}, head(x), name=spec.name)
    recurrent = _recurrent(len(spec.kinds), length, config, precision, unrolled)
    return keras.Model({"features": dense, **ring}, head([recurrent(ring), x]), name=spec.name)


def has_sequence(network: keras.Model) -> bool:
    """Whether the network reads the ring."""
    return any(layer.name == "recurrent" for layer in network.layers)


def _recurrent(kinds: int, length: int, config: NetworkConfig, precision: str, unrolled: bool) -> keras.Model:
    """kind, count, value, gap [n, L] -> state [n, units]. Entries of kind 0 are padding: the state passes over them."""
    ring = {
        name: keras.Input((length,), name=name, dtype="int32" if name == "kind" else "float32")
        for name in SEQUENCE_FIELDS
    }
    numbers = keras.ops.stack([ring["count"], ring["value"], ring["gap"]], axis=-1)
    numbers = Standardise([True] * 3, name="standardise_ring")(numbers)
    embedding = keras.layers.Embedding(
        kinds + 1,
        config.embed,
        embeddings_initializer=keras.initializers.RandomUniform(seed=config.seed),
        dtype=precision,
        name="kind_embedding",
    )
    entries = keras.layers.Concatenate(dtype=precision)([embedding(ring["kind"]), numbers])
    gru = keras.layers.GRU(
        config.units,
        kernel_initializer=keras.initializers.GlorotUniform(seed=config.seed + 1),
        recurrent_initializer=keras.initializers.Orthogonal(seed=config.seed + 2),
        unroll=unrolled,
        use_cudnn=False,  # cuDNN's kernels are opaque to XLA, and want the padding last
        dtype=precision,
        name="gru",
    )
    return keras.Model(ring, gru(entries, mask=ring["kind"] > 0), name="recurrent")


def _head(width: int, config: NetworkConfig, precision: str) -> keras.Model:
    """state [n, units], standardised features [n, F + T] -> logit f4[n]: deep over both, wide over the features. Of no
    sequence there is no state."""
    state = keras.Input((config.units,), name="state", dtype="float32")
    x = keras.Input((width,), name="x", dtype="float32")
    deep = keras.layers.Concatenate(dtype=precision)([state, x]) if config.sequence else x
    for i, units in enumerate(config.dense):
        # Smooth, so that the integrated gradients of `explain` need few steps.
        deep = keras.layers.Dense(
            units,
            activation="silu",
            kernel_initializer=keras.initializers.GlorotUniform(seed=config.seed + 10 + i),
            dtype=precision,
            name=f"deep_{i}",
        )(deep)
        deep = keras.layers.Dropout(config.dropout, seed=config.seed + 20 + i, dtype=precision)(deep)
    out = keras.layers.Dense(
        1,
        kernel_initializer=keras.initializers.GlorotUniform(seed=config.seed + 30),
        dtype="float32",
        name="deep",
    )
    wide = keras.layers.Dense(
        1,
        use_bias=False,
        kernel_initializer="zeros",
        kernel_regularizer=keras.regularizers.L2(config.wide_l2),
        dtype="float32",
        name="wide",
    )
    logit = (out(deep) + wide(x))[:, 0]
    return keras.Model([state, x] if config.sequence else x, logit, name="head")


def multiplications(spec: Spec, config: NetworkConfig) -> int:
    """How many a scored row takes in the matrix products, which is nearly all of a network's price."""
    columns, units = len(logs(spec)), config.units if config.sequence else 0
    layers = [units + columns, *config.dense, 1]
    head = columns + sum(a * b for a, b in pairwise(layers))
    entry = 3 * config.units * (config.embed + 3 + config.units)
    return head + (spec.sequence.length * entry if config.sequence else 0)


def adapt(network: keras.Model, inputs: Mapping[str, Any]) -> None:
    """Set means and scales from training data. `inputs`: as `FeatureLayer` makes them, arrays or tensors of n rows.
    The ring's figures are averaged over its real entries, not over padding."""
    found = [(network.get_layer("standardise"), np.asarray(inputs["features"]))]
    if has_sequence(network):
        ring = np.stack([np.asarray(inputs[name]) for name in ("count", "value", "gap")], axis=-1)
        entries = ring[np.asarray(inputs["kind"]) > 0]
        found.append((network.get_layer("recurrent").get_layer("standardise_ring"), entries))
    for layer, figures in found:
        if len(figures):
            mean, scale = moments(squeeze(in_seconds(figures.astype(np.float64), layer.time), layer.log))
            layer.mean.assign(mean)
            layer.scale.assign(scale)


def copy_trunk(source: keras.Model, target: keras.Model) -> None:
    """Give `target` the trunk of a network of the same spec and sizes: what reads the ring and scales the features."""
    for name in ("standardise", "recurrent"):
        if any(layer.name == name for layer in target.layers):
            target.get_layer(name).set_weights(source.get_layer(name).get_weights())


def in_float32(network: keras.Model, spec: Spec, config: NetworkConfig) -> keras.Model:
    """The network to be served: the same weights, float32 throughout, no dropout left to chance."""
    served = build_network(spec, config.model_copy(update={"precision": "float32", "dropout": 0.0}))
    served.set_weights(network.get_weights())
    return served
