"""A head: what one target makes of the trunk's state and the features, from the logit to a calibrated probability.

    state, x ──▶ head layer ─┐
    features ──▶ forest ─────┴─ mixed ──▶ calibrator ──▶ logit, probability ──▶ survival by horizon

Of several targets each has one; the trunk, what the ring and the features are read with, is there once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import keras
import tensorflow as tf

from ebbtide.model.graph.calibrator import Calibrator
from ebbtide.model.graph.forest import Forest, ForestGraph
from ebbtide.model.graph.hazard import Hazard
from ebbtide.model.graph.record_bytes import Tensor
from ebbtide.model.graph.standard import STANDARD_MAX

STRETCH_MIN = 0.01
"""Between raw logits nearer than this the calibrator is straight to within 1e-5 of their distance, and a quotient of
float32 differences is not."""


@dataclass(frozen=True, slots=True)
class Head:
    """What a head is made of. network: the whole of it, in float32, of which the head is taken. share: of the logit the
    forest's, 0 to 1. hazard: None where only the spec's horizon is asked about."""

    network: keras.Model
    calibrator: Calibrator
    forest: Forest | None = None
    share: float = 0.5
    hazard: Hazard | None = None


class HeadGraph(tf.Module):
    """A head in a TensorFlow graph. Without a forest nothing of one is in the graph."""

    def __init__(self, head: Head) -> None:
        super().__init__(name="head")
        self._calibrator = head.calibrator
        self._numbers = tf.Variable(
            head.calibrator.numbers, trainable=False, dtype=tf.float32, name="calibrator"
        )
        self._layer = head.network.get_layer("head")
        self.forest = None if head.forest is None else ForestGraph(head.forest)
        mixed = [1.0, 0.0] if head.forest is None else [1.0 - head.share, head.share]
        self.shares = tf.Variable(mixed, trainable=False, dtype=tf.float32, name="shares")
        self.hazard = None if head.hazard is None else HazardGraph(head.hazard)

    def score(self, state: Tensor | None, x: Tensor, values: Tensor, silence_s: Tensor) -> dict[str, Tensor]:
        """probability, logit: float32[n]; survival: float32[n, K] where the head has one."""
        logit = self.calibrated(self.mixed(self.of(state, x), self.trees(values)), silence_s)
        found = {"probability": tf.sigmoid(logit), "logit": logit}
        if self.hazard is not None:
            found["survival"] = self.hazard.survival(x, logit, found["probability"])
        return found

    def of(self, state: Tensor | None, x: Tensor) -> Tensor:
        """The network's part of the logit, [n], before calibration."""
        return self._layer(x if state is None else [state, x], training=False)

    def trees(self, values: Tensor) -> Tensor:
        """The forest's, None without one."""
        return None if self.forest is None else self.forest.logit(values)

    def mixed(self, network: Tensor, trees: Tensor) -> Tensor:
        """Both parts, each by its share."""
        return network if trees is None else self.shares[0] * network + self.shares[1] * trees

    def beta(self, raw: Tensor) -> Tensor:
        """The calibrator's part without silence."""
        return self._calibrator.beta_in_graph(raw, self._numbers)

    def stretch(self, row: Tensor, usual: Tensor) -> Tensor:
        """By how much the calibrator stretches the way from one raw logit to another, [n]."""
        apart = row - usual
        near = tf.abs(apart) < STRETCH_MIN
        slope = self._calibrator.slope_in_graph((row + usual) / 2.0, self._numbers)
        return tf.where(near, slope, (self.beta(row) - self.beta(usual)) / tf.where(near, 1.0, apart))

    def shift(self, silence_s: Tensor) -> Tensor:
        """The calibrator's shift by silence."""
        return self._calibrator.shift_in_graph(silence_s, self._numbers)

    def calibrated(self, raw: Tensor, silence_s: Tensor) -> Tensor:
        """The calibrated logit, [n]."""
        return self.beta(raw) + self.shift(silence_s)


class HazardGraph(tf.Module):
    """`Hazard` in a TensorFlow graph; its numbers are weights like all others."""

    def __init__(self, hazard: Hazard) -> None:
        super().__init__(name="hazard")
        self._absence, self._at = hazard.absence, hazard.at
        self._kernel = tf.Variable(hazard.kernel, trainable=False, dtype=tf.float32, name="hazard_kernel")
        self._bias = tf.Variable(hazard.bias, trainable=False, dtype=tf.float32, name="hazard_bias")

    def survival(self, x: Tensor, logit: Tensor, probability: Tensor) -> Tensor:
        """float32[n, K]: S by rising horizon, never rising. x [n, C]; logit, probability [n]: of churn, calibrated."""
        z = logit if self._absence else -logit
        inputs = tf.concat([x, tf.clip_by_value(z, -STANDARD_MAX, STANDARD_MAX)[:, None]], axis=1)
        steps = tf.unstack(tf.math.softplus(tf.matmul(inputs, self._kernel) + self._bias), axis=1)
        own = probability if self._absence else 1.0 - probability
        below = _walked(z, own, list(reversed(steps[: self._at])), tf.maximum)
        above = _walked(z, own, [-step for step in steps[self._at :]], tf.minimum)
        return tf.stack([*reversed(below), own, *above], axis=1)


def _walked(
    z: Tensor, last: Tensor, steps: list[Tensor], beyond: Callable[[Tensor, Tensor], Tensor]
) -> list[Tensor]:
    """S after each step from the logit z, one after the other: no reduction, so a row's bits are its own, and never
    back over the one before, whatever rounding does."""
    told = []
    for step in steps:
        z = z + step
        last = beyond(tf.sigmoid(z), last)
        told.append(last)
    return told
