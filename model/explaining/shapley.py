"""Shapley values of a forest against one baseline row, exactly, as tensors: gradients through trees are 0.

v(S) is the forest's answer for a row that has the features in S from x and all others from the baseline z. A feature's
Shapley value is its mean gain v(S + i) - v(S) over all orders in which features may come. Trees are taken leaf by leaf
(Lundberg et al. 2020, with one background row): a leaf is reached under S when each feature on its way passes,

    A   features whose x passes all questions that the way asks of them, and whose z does not     must be in S
    B   features whose z passes, and whose x does not                                             must not be
        passes with both: no matter          passes with neither: the leaf is never reached

so of all orders it is reached in the share where all of A and none of B have come, and its value goes to

    each of A   + value (|A|-1)! |B|! / (|A|+|B|)!          each of B   - value |A|! (|B|-1)! / (|A|+|B|)!

There are 2^depth leaves a tree, whatever the row, so the cost is fixed. A question that a padded tree asks (x above
infinity) passes for both or for neither, and so changes nothing.
"""

from math import factorial
from typing import Any

import numpy as np
import tensorflow as tf


def shapley(feature: Any, threshold: Any, value: Any, x: Any, z: Any, depth: int) -> Any:
    """float32[n, F]: a row sums to forest(x) - forest(z).

    Complete trees in heap order: feature int32[T, 2^depth - 1], threshold float32 alike (a row goes to node 2 i + 2
    where x > threshold, else to 2 i + 1), value float32[T, 2^(depth + 1) - 1]. x: float32[n, F]; z: float32[F].
    """
    leaf, step = np.arange(2**depth)[:, None], np.arange(depth)[None, :]
    node = 2**step - 1 + (leaf >> (depth - step))  # on the way to each leaf, at each step
    goes_up = (leaf >> (depth - 1 - step)) & 1 == 1
    asked = tf.gather(feature, node, axis=1)  # [T, leaves, depth]
    inner = tf.reshape(feature, (-1,))
    above_x = tf.reshape(tf.gather(x, inner, axis=1), (-1, *feature.shape)) > threshold
    above_z = tf.reshape(tf.gather(z, inner), feature.shape) > threshold
    # Questions on one way that ask the same feature count as one, which passes where all of them do.
    same = asked[..., :, None] == asked[..., None, :]

    def passes(above: Any, axis: int) -> Any:
        each = tf.gather(above, node, axis=axis) == goes_up
        return tf.reduce_all(each[..., None, :] | ~same, axis=-1)

    of_x, of_z = passes(above_x, 2), passes(above_z, 1)
    first = ~tf.reduce_any(same & np.tri(depth, k=-1, dtype=bool), axis=-1)
    in_a, in_b = of_x & ~of_z & first, of_z & ~of_x & first
    reached = tf.reduce_all(of_x | of_z, axis=-1)
    a = tf.reduce_sum(tf.cast(in_a, tf.int32), axis=-1)
    b = tf.reduce_sum(tf.cast(in_b, tf.int32), axis=-1)
    place = a * (depth + 1) + b
    worth = tf.where(reached, value[:, 2**depth - 1 :], 0.0)
    gained = (worth * tf.gather(_shares(depth), place))[..., None] * tf.cast(in_a, tf.float32)
    lost = (worth * tf.gather(_shares(depth, of_a=False), place))[..., None] * tf.cast(in_b, tf.float32)
    flat = tf.reshape(gained - lost, (-1, int(np.prod(asked.shape))))
    parts = tf.math.unsorted_segment_sum(tf.transpose(flat), tf.reshape(asked, (-1,)), x.shape[1])
    return tf.transpose(parts)


def _shares(depth: int, *, of_a: bool = True) -> Any:
    """float32[(depth + 1)²] by |A| (depth + 1) + |B|: the share of a leaf's value that goes to each of A, or of B."""
    size = depth + 1
    table = np.zeros((size, size), np.float32)
    for a in range(size):
        for b in range(size - a):
            if of_a and a:
                table[a, b] = factorial(a - 1) * factorial(b) / factorial(a + b)
            if not of_a and b:
                table[a, b] = factorial(a) * factorial(b - 1) / factorial(a + b)
    return tf.constant(table.reshape(-1))
