"""A forest of boosted trees as tensors: one walk by gathers for all trees at once.

    node i of a tree ──x[feature[i]] > threshold[i]?──▶ 2 i + 1 (no)  or  2 i + 2 (yes)        DEPTH times, then a leaf

                  0                 Every tree is a complete one: DEPTH questions to each leaf. Where a tree ended
              ╱       ╲             sooner, its node asks whether x is above infinity, and the leaf's value stands in
            1           2           all nodes below. So all trees of all versions have one shape, and one graph.
          ╱   ╲       ╱   ╲
         3     4     5     6        value[i] of an inner node: the mean of what ended below it, by rows of training

It knows numbers; how trees are grown is the trainer's affair (`model/fitting/trees.py`). The invariants:

  * a row reaches the leaf that it reached when the trees were grown: thresholds are rounded *down* to float32, and
    for a float32 x the question `x > threshold` has the same answer then.
  * a row's sum has the same bits however many rows travel with it: values are added by halves, one operation an
    element, and not by a reduction, whose order is the compiler's.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ebbtide.model.explaining.shapley import shapley

DEPTH = 5
"""Questions to a leaf. Depth 5 costs a quarter of what the recurrent part costs; depth 12 as much as all of it."""
TREES = 128
"""At most so many; a power of two, so that they are added by halves."""
NODES = 2 ** (DEPTH + 1) - 1
INNER = 2**DEPTH - 1


@dataclass(frozen=True, slots=True)
class Forest:
    """At most TREES trees, the others all zeros.

    feature: int32[TREES, INNER]    threshold: float32[TREES, INNER]    value: float32[TREES, NODES], nats
    base: what the sum begins with, in nats
    """

    feature: NDArray[np.int32]
    threshold: NDArray[np.float32]
    value: NDArray[np.float32]
    base: float

    @classmethod
    def empty(cls) -> "Forest":
        """A forest that says nothing."""
        return cls(
            np.zeros((TREES, INNER), np.int32),
            np.full((TREES, INNER), np.inf, np.float32),
            np.zeros((TREES, NODES), np.float32),
            0.0,
        )


class ForestGraph(tf.Module):
    """The walk in a TensorFlow graph. The forest's numbers are variables: weights like all others. They are read before
    they are gathered from: a gather on a variable is an op of its own, which `serving/graph.py` need not know."""

    def __init__(self, forest: Forest) -> None:
        super().__init__(name="forest")

        def weight(column: NDArray[Any], name: str) -> Any:
            return tf.Variable(column.reshape(-1), trainable=False, name=f"forest_{name}")

        self.feature = weight(forest.feature, "feature")
        self.threshold = weight(forest.threshold, "threshold")
        self.value = weight(forest.value, "value")
        self.base = tf.Variable(np.float32(forest.base), trainable=False, name="forest_base")
        trees = np.arange(TREES, dtype=np.int32)
        self._inner, self._nodes = trees * INNER, trees * NODES

    def logit(self, values: Any) -> Any:
        """features float32[n, F] in natural units -> float32[n], nats."""
        return self._sum(self._value(self._walk(values))) + self.base

    def contributions(self, values: Any, baseline: Any) -> Any:
        """float32[n, F], nats: Shapley values of float32[n, F] against the baseline float32[F]; a row's sum to its
        `logit` less the baseline's."""
        feature, threshold, value = (
            tf.reshape(tf.convert_to_tensor(weights), (TREES, -1))
            for weights in (self.feature, self.threshold, self.value)
        )
        return shapley(feature, threshold, value, values, baseline, DEPTH)

    def _walk(self, values: Any) -> Any:
        """The leaf of each tree, int32[n, TREES]."""
        here = tf.zeros((tf.shape(values)[0], TREES), tf.int32)
        for _ in range(DEPTH):
            place = here + self._inner
            x = tf.gather(values, tf.gather(tf.convert_to_tensor(self.feature), place), axis=1, batch_dims=1)
            above = tf.cast(x > tf.gather(tf.convert_to_tensor(self.threshold), place), tf.int32)
            here = 2 * here + 1 + above
        return here

    def _value(self, node: Any) -> Any:
        return tf.gather(tf.convert_to_tensor(self.value), node + self._nodes)

    def _sum(self, each: Any) -> Any:
        """[n, TREES] -> [n], by halves."""
        half = TREES // 2
        while half:
            each = each[:, :half] + each[:, half:]
            half //= 2
        return each[:, 0]
