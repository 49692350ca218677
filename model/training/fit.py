"""Training the network: columns in, weights out.

It knows Keras, `tf.data` and devices; it refuses to know where examples come from and what is done with the network.
Small data are the rule (thousands of customers), so what matters is restraint:

  * the wide path begins as the logistic regression of the same rows, and the deep path begins at zero beside it: what
    training adds is what the sequence and the interactions say beyond a linear model, from the first step on
  * a short cosine of the learning rate down to zero, weight decay, dropout
  * the epoch with the lowest weighted log loss on rows that are later in time (or of other customers)
  * shrinkage back to the linear model: the logit is `linear + share * (trained - linear)`, with the share from 0 to 1
    that those rows want. It is exact, since only the last layer's weights are scaled; a share of 0 is the linear model

Same seed, same machine, same examples: the same weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from scipy.special import expit

from ebbtide.featurestore.spec import Spec
from ebbtide.model.config import TrainConfig
from ebbtide.model.examples.examples import Examples
from ebbtide.model.graph.network import adapt, build_network, in_float32
from ebbtide.model.judging.metrics import log_loss
from ebbtide.model.training.baselines import fit_logistic
from ebbtide.model.training.curves import Curves

PREDICT_ROWS = 4_096
SHRINKAGE_GRID = tuple(np.linspace(0.0, 1.0, 11).tolist())
"""How much of what training added is kept, in steps far below what a validation slice can tell apart."""
XLA_ROWS_MIN = 100_000
"""Rows times epochs from which compiling pays: 9 s once (two cores), then 0.1 ms a row instead of 0.28."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A trained network in float32; the epochs it took, and its share beside the linear model it began as, 0 to 1; the
    training loss of each epoch, and the log loss on the validation rows, at the best share, before the first and after
    each epoch (empty without such rows)."""

    network: keras.Model
    epochs: int
    shrinkage: float
    loss: list[float]
    validation: list[float]


class Trainer:
    """One network, compiled once, trained as often as asked, each time from the same beginning.

    rows: about how many rows each training has, to choose the batch and whether XLA pays.
    """

    def __init__(self, spec: Spec, config: TrainConfig, rows: int) -> None:
        keras.utils.set_random_seed(config.seed)
        self._spec, self._config = spec, config
        self._sizes = config.network.model_copy(update={"seed": config.seed})
        self._batch = max(1, min(config.batch, rows))
        with strategy().scope():
            self._network = build_network(spec, self._sizes)
            self._optimizer = keras.optimizers.AdamW(
                config.learning_rate, weight_decay=config.weight_decay, global_clipnorm=1.0
            )
            # Decay pulls towards zero, and the wide path does not begin there.
            self._optimizer.exclude_from_weight_decay(var_list=self._last_layer()[:1])
            self._optimizer.build(self._network.trainable_variables)
            self._network.compile(
                self._optimizer,
                loss=keras.losses.BinaryCrossentropy(from_logits=True),
                jit_compile=rows * config.epochs_max >= XLA_ROWS_MIN,
            )
        # All of it: weights, the seeds that dropout draws from, and the optimizer's moments and step.
        self._variables = [*self._network.variables, *self._optimizer.variables]
        self._first = [np.asarray(variable) for variable in self._variables]

    def fit(
        self,
        train: Examples,
        validation: Examples | None,
        epochs: int,
        shrinkage: float = 1.0,
        progress: Callable[[float], None] = lambda _: None,
    ) -> Fit:
        """Train on usable rows for `epochs`. With `validation`, its best epoch and share are kept, and training stops
        `patience` epochs after the best; without, `share` is used. `progress`: share done, 0 to 1."""
        self._begin(train)
        linear = [np.asarray(weights) for weights in self._last_layer()]
        watch = _Watch(validation, self._config, epochs, len(train) // self._batch, progress)
        if epochs:
            data = batches(train, self._batch, self._config.seed)
            self._network.fit(data, epochs=epochs, verbose=0, callbacks=[watch], shuffle=False)
        if validation is not None:
            self._network.set_weights(watch.best)
            epochs, shrinkage = watch.best_epoch, watch.best_share
        for weights, start in zip(self._last_layer(), linear, strict=True):
            weights.assign(start + shrinkage * (np.asarray(weights) - start))
        served = in_float32(self._network, self._spec, self._sizes)
        return Fit(served, epochs, shrinkage, watch.loss, watch.validation)

    def _last_layer(self) -> list[Any]:
        """The weights in which the logit is linear: wide kernel, then the deep path's last kernel and bias."""
        head = self._network.get_layer("head")
        return [*head.get_layer("wide").trainable_variables, *head.get_layer("deep").trainable_variables]

    def _begin(self, train: Examples) -> None:
        """The same first state each time, then: scales from these rows, the wide path their logistic regression, the
        deep path's last layer zero."""
        for variable, value in zip(self._variables, self._first, strict=True):
            variable.assign(value)
        adapt(self._network, train.inputs)
        x = np.asarray(self._network.get_layer("standardise")(train.features))
        linear = fit_logistic(x, train.churned, train.weights())
        wide, deep, bias = self._last_layer()
        wide.assign(linear.coef_.T.astype(np.float32))
        deep.assign(np.zeros(deep.shape, np.float32))
        bias.assign(linear.intercept_.astype(np.float32))


def logits(network: keras.Model, inputs: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Raw logits float32[n] of the feature layer's outputs. Rows are padded to one size: one program for any n."""
    n = len(inputs["features"])
    if not n:
        return np.zeros(0, np.float32)
    order = np.arange(-(-n // PREDICT_ROWS) * PREDICT_ROWS) % n
    parts = [
        np.asarray(network.predict_on_batch({k: v[order[i : i + PREDICT_ROWS]] for k, v in inputs.items()}))
        for i in range(0, len(order), PREDICT_ROWS)
    ]
    return np.concatenate(parts)[:n].astype(np.float32)


def batches(examples: Examples, batch: int, seed: int) -> tf.data.Dataset:
    """Whole batches of (inputs, churned, weight), seeded, in another order each epoch.

    Indices are shuffled and batched, columns gathered a batch at a time: hundreds of times fewer elements pass through
    the dataset than if rows were sliced. The columns lie in memory already, so there is nothing to cache.
    """
    columns = {name: tf.constant(column) for name, column in examples.inputs.items()}
    churned, weight = tf.constant(examples.churned), tf.constant(examples.weights())

    def gather(rows: Any) -> Any:
        inputs = {name: tf.gather(column, rows) for name, column in columns.items()}
        return inputs, tf.gather(churned, rows), tf.gather(weight, rows)

    indices = tf.data.Dataset.range(len(examples)).shuffle(len(examples), seed=seed + 1)
    return indices.batch(batch, drop_remainder=True).map(gather, num_parallel_calls=2).prefetch(4)


def strategy() -> tf.distribute.Strategy:
    """All visible GPUs, mirrored; the one there is; or the CPU."""
    gpus = tf.config.list_logical_devices("GPU")
    if len(gpus) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.OneDeviceStrategy("/GPU:0" if gpus else "/CPU:0")


class _Watch(keras.callbacks.Callback):
    """The learning rate before each batch; after each epoch the log loss on the validation rows, the best weights so
    far, and when to stop."""

    def __init__(
        self,
        validation: Examples | None,
        config: TrainConfig,
        epochs: int,
        steps: int,
        progress: Callable[[float], None],
    ) -> None:
        super().__init__()
        self.loss: list[float] = []
        self.validation: list[float] = []
        self.best: list[Any] = []
        self.best_epoch, self.best_share = 0, 0.0
        self._rows, self._config, self._progress = validation, config, progress
        self._linear: NDArray[np.float64] = np.zeros(0)
        self._curves = Curves(config.log_dir, "evaluation" if validation is not None else "refit")
        self._batches, self._done = max(1, epochs * steps), 0

    def on_train_begin(self, logs: Any = None) -> None:  # noqa: ARG002 - Keras calls it with logs
        if self._rows is not None:
            self._linear = logits(self.model, self._rows.inputs).astype(np.float64)
            self._judge(0)

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002 - as Keras calls it
        rate = self._config.learning_rate * (1 + np.cos(np.pi * self._done / self._batches)) / 2
        self.model.optimizer.learning_rate.assign(rate)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002 - as Keras calls it
        self._done += 1
        self._progress(self._done / self._batches)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.loss.append(float(logs["loss"]))
        self._judge(epoch + 1)
        judged = {"validation": self.validation[-1]} if self.validation else {}
        self._curves.add(epoch + 1, loss=self.loss[-1], **judged)

    def _judge(self, epoch: int) -> None:
        """Epoch 0 is the linear model: if nothing improves on it, it stays."""
        rows = self._rows
        if rows is None:
            return
        trained, y, weight = logits(self.model, rows.inputs).astype(np.float64), rows.churned, rows.weights()
        mixed = [self._linear + shrinkage * (trained - self._linear) for shrinkage in SHRINKAGE_GRID]
        losses = [log_loss(expit(z), y, weight) for z in (mixed if epoch else mixed[:1])]
        best = int(np.argmin(losses))
        if losses[best] < min(self.validation, default=np.inf):
            self.best, self.best_epoch, self.best_share = (
                self.model.get_weights(),
                epoch,
                SHRINKAGE_GRID[best],
            )
        elif epoch - self.best_epoch >= self._config.patience:
            self.model.stop_training = True
        self.validation.append(losses[best])
