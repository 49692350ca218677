"""Magnitude pruning: of each matrix the smallest weights become zero, and stay so while the others learn on.

    trained ─▶ mask: the largest (1 - share) of each matrix ─▶ some epochs more, a mask after every step ─▶ sparse

What is masked are the matrices of the GRU and of the dense layers. The embedding is small, and the last layer is what
the wide path begins with: their weights stay. Zeros take as many bytes as other numbers; what they save is what a file
takes once it is compressed.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

RATE_SHARE = 0.1
"""Of the learning rate, for what the remaining weights have to mend: it falls to zero by a cosine."""


class Pruned(keras.callbacks.Callback):
    """A fine-tuning of `steps` steps under masks. share: of each matrix, to become zero, 0 < share < 1."""

    def __init__(self, network: keras.Model, share: float, rate: float, steps: int) -> None:
        super().__init__()
        self._rate, self._steps, self._done = rate * RATE_SHARE, max(steps, 1), 0
        self._masks = [
            (weights, tf.constant(_mask(np.asarray(weights), share))) for weights in masked(network)
        ]
        self._apply()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002 - as Keras calls it
        rate = self._rate * (1 + np.cos(np.pi * min(self._done / self._steps, 1.0))) / 2
        self.model.optimizer.learning_rate.assign(rate)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002 - as Keras calls it
        self._done += 1
        self._apply()

    def on_train_end(self, logs: Any = None) -> None:  # noqa: ARG002 - as Keras calls it
        self._apply()  # where steps are asynchronous, one may have ended since

    def _apply(self) -> None:
        for weights, mask in self._masks:
            weights.assign(weights * mask)


def masked(network: keras.Model) -> list[Any]:
    """The matrices that pruning is about, of those that learn."""
    return [
        weights
        for weights in network.trainable_variables
        if weights.name.endswith("kernel") and len(weights.shape) == 2 and weights.shape[1] > 1
    ]


def _mask(weights: Any, share: float) -> Any:
    """1 for the largest, 0 for the `share` of the smallest."""
    order = np.argsort(np.abs(weights), axis=None, kind="stable")
    mask = np.ones(weights.size, np.float32)
    mask[order[: int(share * weights.size)]] = 0.0
    return mask.reshape(weights.shape)
