"""Training the network: columns in, weights out.

It knows Keras, `tf.data` and devices; it refuses to know where examples come from and what is done with the network.
Small data are the rule (thousands of customers), so what matters is restraint:

  * the wide path begins as the logistic regression of the same rows, and the deep path begins at zero beside it: what
    training adds is what the sequence and the interactions say beyond a linear model, from the first step on
  * a short cosine of the learning rate down to zero, weight decay, dropout
  * the epoch with the lowest weighted log loss on rows that are later in time (or of other customers)

Same seed, same machine, same examples: the same weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from featurestore.spec import Spec
from model.baselines import fit_logistic
from model.config import TrainConfig
from model.examples import Examples
from model.metrics import log_loss
from model.network import adapt, build_network, in_float32

PREDICT_ROWS = 4_096
SHUFFLE_SEED = 1


@dataclass(frozen=True, slots=True)
class Fit:
    """A trained network in float32, the epochs it took, the training loss of each epoch, and the log loss on the
    validation rows before the first and after each (empty without such rows)."""

    network: keras.Model
    epochs: int
    loss: list[float]
    validation: list[float]


def fit(
    spec: Spec,
    train: Examples,
    validation: Examples | None,
    config: TrainConfig,
    epochs: int,
    progress: Callable[[float], None] = lambda _: None,
) -> Fit:
    """Train on usable rows. With `validation`, the weights of its best epoch are kept and training stops `patience`
    epochs after it; without, all `epochs` are run. `progress`: share done, 0 to 1."""
    keras.utils.set_random_seed(config.seed)
    batch = min(config.batch, len(train))
    network_config = config.network.model_copy(update={"seed": config.seed})
    with strategy().scope():
        network = build_network(spec, network_config)
        adapt(network, [train.inputs])
        _begin_linear(network, train)
        steps = max(1, len(train) // batch)
        rate = keras.optimizers.schedules.CosineDecay(config.learning_rate, steps * config.epochs_max)
        network.compile(
            keras.optimizers.AdamW(rate, weight_decay=config.weight_decay, global_clipnorm=1.0),
            loss=keras.losses.BinaryCrossentropy(from_logits=True),
            jit_compile=True,
        )
    watch = _Watch(validation, config, epochs, steps, progress)
    callbacks: list[Any] = [watch]
    if config.log_dir is not None:
        callbacks.append(keras.callbacks.TensorBoard(str(config.log_dir)))
    network.fit(batches(train, batch, config.seed), epochs=epochs, verbose=0, callbacks=callbacks)
    if watch.best is not None:
        network.set_weights(watch.best)
    kept = watch.best_epoch if validation is not None else epochs
    return Fit(in_float32(network, spec, network_config), kept, watch.loss, watch.validation)


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
    """Shuffled, seeded, whole batches of (inputs, churned, weight), forever different from epoch to epoch.

    Indices are shuffled and batched, columns gathered a batch at a time: a thousand times fewer dataset elements than
    slicing rows. The columns lie in memory, so there is nothing to cache.
    """
    columns = {name: tf.constant(column) for name, column in examples.inputs.items()}
    churned, weight = tf.constant(examples.churned), tf.constant(examples.weights())

    def gather(rows: Any) -> Any:
        return (
            {k: tf.gather(v, rows) for k, v in columns.items()},
            tf.gather(churned, rows),
            tf.gather(weight, rows),
        )

    indices = tf.data.Dataset.range(len(examples)).shuffle(len(examples), seed=seed + SHUFFLE_SEED)
    return indices.batch(batch, drop_remainder=True).map(gather, num_parallel_calls=2).prefetch(4)


def strategy() -> tf.distribute.Strategy:
    """All visible GPUs, mirrored; the one there is; or the CPU."""
    gpus = tf.config.list_logical_devices("GPU")
    if len(gpus) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.OneDeviceStrategy("/GPU:0" if gpus else "/CPU:0")


def _begin_linear(network: keras.Model, train: Examples) -> None:
    """Set the wide path to the logistic regression of the same rows, and the deep path's last layer to zero."""
    x = np.asarray(network.get_layer("standardise")(train.features))
    linear = fit_logistic(x, train.churned, train.weights())
    head = network.get_layer("head")
    head.get_layer("wide").kernel.assign(linear.coef_.T.astype(np.float32))
    last = head.get_layer("deep")
    last.kernel.assign(np.zeros(last.kernel.shape, np.float32))
    last.bias.assign(linear.intercept_.astype(np.float32))


class _Watch(keras.callbacks.Callback):
    """After each epoch: the weighted log loss on the validation rows, the best weights so far, and when to stop."""

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
        self.best: list[Any] | None = None
        self.best_epoch = 0
        self._rows, self._patience, self._progress = validation, config.patience, progress
        self._batches, self._done = epochs * steps, 0

    def on_train_begin(self, logs: Any = None) -> None:  # noqa: ARG002 - Keras calls it with logs
        """Epoch 0 is the linear model: if nothing improves on it, it stays."""
        self._judge(0)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002 - as Keras calls it
        self._done += 1
        self._progress(self._done / self._batches)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.loss.append(float(logs["loss"]))
        self._judge(epoch + 1)
        if self.validation:
            logs["val_loss"] = self.validation[-1]

    def _judge(self, epoch: int) -> None:
        rows = self._rows
        if rows is None:
            return
        p = 1 / (1 + np.exp(-logits(self.model, rows.inputs).astype(np.float64)))
        loss = log_loss(p, rows.churned, rows.weights())
        if loss < min(self.validation, default=np.inf):
            self.best, self.best_epoch = self.model.get_weights(), epoch
        elif epoch - self.best_epoch >= self._patience:
            self.model.stop_training = True
        self.validation.append(loss)
