"""Training the network: columns in, weights out.

It knows Keras, `tf.data` and devices; it refuses to know where examples come from and what is done with the network.
Small data are the rule (thousands of customers), so what matters is restraint:

  * the wide path begins as the logistic regression of the same rows, and the deep path begins at zero beside it: what
    training adds is what the sequence and the interactions say beyond a linear model, from the first step on
  * a warm-up of the learning rate, since the first steps of a cold Adam made many a good beginning worse; then a cosine
    down to zero, weight decay, dropout
  * pruning, where asked for (`prune.py`): after the epochs of the recipe, and some more under masks
  * shrinkage back to the linear model: the logit is `linear + shrinkage * (trained - linear)`. It is exact, since only
    the last layer's weights are scaled; 0 is the linear model

How many epochs and how much shrinkage is for `recipe.py` to say, from the logits of watched rows after each epoch.
The learning rate follows `epochs_max` whatever the number of epochs, so that a training that ends sooner has seen the
same rates as the one that was watched.

Same seed, same machine, same examples: the same weights.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from scipy.special import expit

from ebbtide.featurestore.spec import Spec
from ebbtide.model.config import TrainConfig
from ebbtide.model.examples.examples import Examples
from ebbtide.model.examples.shards import Shards, epochs_of, in_our_words
from ebbtide.model.fitting.backup import Backup, Progress
from ebbtide.model.fitting.board import Board
from ebbtide.model.fitting.distribute import (
    ClusterUnfit,
    Steps,
    clip_of,
    is_asynchronous,
    is_plain,
    leads,
    row_losses,
    strategy_of,
)
from ebbtide.model.fitting.linear import fit_logistic
from ebbtide.model.fitting.prune import Pruned
from ebbtide.model.graph.network import adapt, build_network, copy_trunk, has_sequence, in_float32
from ebbtide.model.judging.metrics import Ranking, log_loss

PREDICT_ROWS = 4_096
SHRINKAGES = tuple(np.linspace(0.0, 1.0, 11).tolist())
"""How much of what training added is kept, in steps far below what a validation slice can tell apart."""
WARM_UP_EPOCHS = 0.5
"""Over so much of an epoch the learning rate rises from zero."""
XLA_ROWS_MIN = 100_000
"""Rows times epochs from which compiling pays: 9 s once (two cores), then 0.1 ms a row instead of 0.28."""


@dataclass(frozen=True, slots=True)
class Fit:
    """A trained network in float32, and the training loss of each epoch. watched: float32[epochs + 1, m], the logits of
    the m watched rows before the first and after each epoch, without shrinkage; m = 0 without such rows. taken: rows of
    all steps, those of pruning too: by worker, the most first, where steps are asynchronous; one number elsewhere."""

    network: keras.Model
    loss: list[float]
    watched: NDArray[np.float32]
    taken: list[int] = field(default_factory=list)


class Trainer:
    """One network, compiled once, trained as often as asked, each time from the same beginning.

    rows: about how many rows each training has, to choose the batch and whether XLA pays. head_only: for a further
    target: the trunk is one that `fit` is given, and only the head learns.
    """

    def __init__(self, spec: Spec, config: TrainConfig, rows: int, *, head_only: bool = False) -> None:
        keras.utils.set_random_seed(config.seed)
        self.spec, self.config = spec, config
        self._sizes = config.network.model_copy(update={"seed": config.seed})
        self._batch = max(1, min(config.batch, rows))
        self._strategy = strategy_of(config.strategy)
        self._plain = is_plain(self._strategy)
        with self._strategy.scope():
            self._network = build_network(spec, self._sizes)
            if head_only and has_sequence(self._network):
                self._network.get_layer("recurrent").trainable = False
            self._optimizer = keras.optimizers.AdamW(
                config.learning_rate,
                weight_decay=config.weight_decay,
                global_clipnorm=clip_of(self._strategy),
            )
            # Decay pulls towards zero, and the wide path does not begin there.
            self._optimizer.exclude_from_weight_decay(var_list=self._last_layer()[:1])
            if config.network.precision == "mixed_float16":
                self._optimizer = keras.optimizers.LossScaleOptimizer(self._optimizer)
            self._optimizer.build(self._network.trainable_variables)
            self._network.compile(
                self._optimizer,
                loss=row_losses,
                jit_compile=rows * config.epochs_max >= XLA_ROWS_MIN,
            )
        # What a person or a check may ask at once, where the trained one lies on several devices.
        self._shown = self._network if self._plain else build_network(spec, self._sizes)
        # All of it: weights, the seeds that dropout draws from, and the optimizer's moments and step.
        self._variables = [*self._network.variables, *self._optimizer.variables]
        self._first = [np.asarray(variable) for variable in self._variables]

    def fit(
        self,
        train: Examples,
        epochs: int,
        shrinkage: float = 1.0,
        watched: Examples | None = None,
        run: str = "training",
        progress: Callable[[float], None] = lambda _: None,
        trunk: keras.Model | None = None,
        stream: Shards | None = None,
        seen: Callable[[int, float], None] = lambda _epoch, _loss: None,
    ) -> Fit:
        """Train on usable rows for `epochs`, at most `epochs_max`. With `watched`, their logits are kept after each
        epoch, and training stops once `patience` epochs have not made the best one better. `run` names the curves;
        `progress`: share done, 0 to 1. `trunk`: a trained network whose trunk this one has. stream: more rows than fit
        into memory; `train` is then a sample of them, for what needs rows at once, and the steps read the stream. seen:
        called with each epoch and what the watched rows lost there; what it raises ends the training. Raises
        ClusterUnfit for a stream over a parameter server: its workers could not call what reads shards here; SpecError
        for a shard that cannot be read."""
        if stream is not None and is_asynchronous(self._strategy):
            raise ClusterUnfit(
                "the workers of a parameter server cannot read shards", hint="take strategy: multi_worker"
            )
        self._begin(train, trunk)
        linear = [np.asarray(weights) for weights in self._last_layer()]
        rows = len(train if stream is None else stream)
        batch = min(self._batch, rows)  # only whole batches are taken
        board = Board(self.config.log_dir, run, train)
        watch = _Watch(watched, self.config, epochs, rows // batch, board, progress, seen, self._now)
        backup = Backup(self.config, run, train, epochs)
        across = None if self._plain else Steps(self._strategy, self._network, self._optimizer, batch)
        data = self._data(train, stream, batch)
        with in_our_words(stream):
            if epochs and across is None:
                self._fit_plain(train, stream, batch, self.config.seed, epochs, watch)
            elif epochs and across is not None:
                self._fit_across(across, data, epochs, rows // batch, watch, backup)
            # Watched rows choose the recipe, by epoch: what they watch is the network as it would be without pruning.
            more = self.config.prune_epochs if epochs and self.config.prune and watched is None else 0
            if more:
                pruned = Pruned(
                    self._network, self.config.prune, self.config.learning_rate, more * (rows // batch)
                )
                if across is None:
                    self._fit_plain(train, stream, batch, self.config.seed + epochs, more, pruned)
                else:
                    self._prune_across(across, data, range(epochs, epochs + more), rows // batch, pruned)
        for weights, start in zip(self._last_layer(), linear, strict=True):
            weights.assign(start + shrinkage * (np.asarray(weights) - start))
        steps = (across and across.by_worker) or [(len(watch.loss) + more) * (rows // batch)]
        network = in_float32(self._network, self.spec, self._sizes)
        return Fit(network, watch.loss, watch.logits, [batch * each for each in steps])

    def _fit_plain(
        self,
        train: Examples,
        stream: Shards | None,
        batch: int,
        seed: int,
        epochs: int,
        callback: keras.callbacks.Callback,
    ) -> None:
        """Keras' own, of rows in memory or of a stream."""
        data = batches(train, batch, seed) if stream is None else epochs_of(stream, batch, seed, epochs)
        self._network.fit(
            data, epochs=epochs, steps_per_epoch=None if stream is None else stream.steps(batch), verbose=0,
            callbacks=[callback], shuffle=False,
        )  # fmt: skip

    def _data(self, train: Examples, stream: Shards | None, batch: int) -> Callable[[int], tf.data.Dataset]:
        """The dataset of an epoch, a function of the seed and its number; for workers elsewhere, who wait for no
        epoch's end, one that shuffles anew each time it is gone through, and is made there."""
        seed = self.config.seed
        if stream is not None:
            return lambda epoch: stream.batches(batch, seed, epoch)
        if is_asynchronous(self._strategy):
            return lambda _: batches(train, batch, seed)
        return lambda epoch: batches(train, batch, seed, epoch)

    def _fit_across(
        self,
        taken: Steps,
        data: Callable[[int], tf.data.Dataset],
        epochs: int,
        steps: int,
        watch: "_Watch",
        backup: Backup,
    ) -> None:
        """The same over several replicas: the callbacks are called as Keras' `fit` calls them. data: of an epoch. It
        goes on where `backup` says that it was."""
        self._network.stop_training = False
        watch.set_model(self._network)
        before, after = watch.on_train_batch_begin, watch.on_train_batch_end
        watch.on_train_begin()
        if kept := backup.read():
            for variable, value in zip(self._variables, kept.variables, strict=True):
                variable.assign(value)
            watch.go_on(kept)
        over = kept is not None and kept.over
        for epoch in range(len(watch.loss), 0 if over else epochs):
            if is_asynchronous(self._strategy):
                lost = taken.scheduled(lambda: data(0), steps, before, after)
            else:
                lost = taken.epoch(data(epoch), before, after)
            watch.on_epoch_end(epoch, {"loss": lost})
            over = self._network.stop_training or epoch + 1 == epochs
            if backup.keeps and leads(self.config.strategy):
                backup.write(watch.progress([np.asarray(variable) for variable in self._variables], over))
            if over:
                break
        watch.on_train_end()

    def _prune_across(
        self, taken: Steps, data: Callable[[int], tf.data.Dataset], epochs: range, steps: int, pruned: Pruned
    ) -> None:
        """Let what has been pruned learn on, over several replicas."""
        pruned.set_model(self._network)
        before, after = pruned.on_train_batch_begin, pruned.on_train_batch_end
        for epoch in epochs:
            if is_asynchronous(self._strategy):
                taken.scheduled(lambda: data(0), steps, before, after)
            else:
                taken.epoch(data(epoch), before, after)
        pruned.on_train_end()

    def _now(self) -> keras.Model:
        """The network as it is, in one place."""
        if not self._plain:
            self._shown.set_weights([np.asarray(weight) for weight in self._network.weights])
        return self._shown

    def _last_layer(self) -> list[Any]:
        """The weights in which the logit is linear: wide kernel, then the deep path's last kernel and bias."""
        head = self._network.get_layer("head")
        return [*head.get_layer("wide").trainable_variables, *head.get_layer("deep").trainable_variables]

    def _begin(self, train: Examples, trunk: keras.Model | None) -> None:
        """The same first state each time, then: scales from these rows, or the trunk that was given; the wide path
        their logistic regression, the deep path's last layer zero."""
        for variable, value in zip(self._variables, self._first, strict=True):
            variable.assign(value)
        if trunk is None:
            adapt(self._network, train.inputs)
        else:
            copy_trunk(trunk, self._network)
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


def batches(examples: Examples, batch: int, seed: int, epoch: int | None = None) -> tf.data.Dataset:
    """Whole batches of (inputs, churned, weight), seeded: of one epoch, or each time in another order.

    Indices are shuffled and batched, columns gathered a batch at a time: hundreds of times fewer elements pass through
    the dataset than if rows were sliced. The columns lie in memory already, so there is nothing to cache.
    """
    columns = {name: tf.constant(column) for name, column in examples.inputs.items()}
    churned, weight = tf.constant(examples.churned), tf.constant(examples.weights())

    def gather(rows: Any) -> Any:
        inputs = {name: tf.gather(column, rows) for name, column in columns.items()}
        return inputs, tf.gather(churned, rows), tf.gather(weight, rows)

    if epoch is None:
        indices = tf.data.Dataset.range(len(examples)).shuffle(len(examples), seed=seed + 1)
    else:
        order = np.random.default_rng((seed + 1, epoch)).permutation(len(examples))
        indices = tf.data.Dataset.from_tensor_slices(order)
    return indices.batch(batch, drop_remainder=True).map(gather, num_parallel_calls=2).prefetch(4)


class _Watch(keras.callbacks.Callback):
    """The learning rate before each batch; before the first and after each epoch the watched rows' logits, and when to
    stop."""

    def __init__(
        self,
        rows: Examples | None,
        config: TrainConfig,
        epochs: int,
        steps: int,
        board: Board,
        progress: Callable[[float], None],
        seen: Callable[[int, float], None],
        now: Callable[[], keras.Model],
    ) -> None:
        super().__init__()
        self._now = now
        self.loss: list[float] = []
        self._logits: list[NDArray[np.float32]] = []
        self._losses: list[float] = []
        self._rows, self._config, self._progress, self._seen = rows, config, progress, seen
        self._board = board
        self._epochs, self._steps, self._done = epochs, max(steps, 1), 0

    def progress(self, variables: list[NDArray[Any]], over: bool) -> Progress:
        """What a backup keeps."""
        return Progress(variables, list(self.loss), list(self._logits), list(self._losses), over)

    def go_on(self, kept: Progress) -> None:
        """As if these epochs had been seen here."""
        self.loss, self._logits, self._losses = list(kept.loss), list(kept.logits), list(kept.losses)
        self._done = len(self.loss) * self._steps

    @property
    def logits(self) -> NDArray[np.float32]:
        return np.stack(self._logits) if self._logits else np.zeros((len(self.loss) + 1, 0), np.float32)

    def on_train_begin(self, logs: Any = None) -> None:  # noqa: ARG002 - Keras calls it with logs
        self._board.begins(self._now())
        self._look()

    def on_train_end(self, logs: Any = None) -> None:  # noqa: ARG002 - Keras calls it with logs
        self._board.ends()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002 - as Keras calls it
        warm = min(1.0, (self._done + 1) / (WARM_UP_EPOCHS * self._steps))
        passed = self._done / (self._config.epochs_max * self._steps)
        rate = self._config.learning_rate * warm * (1 + np.cos(np.pi * min(passed, 1.0))) / 2
        self.model.optimizer.learning_rate.assign(rate)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002 - as Keras calls it
        self._done += 1
        self._board.step(self._done)
        self._progress(self._done / (self._epochs * self._steps))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.loss.append(float(logs["loss"]))
        self._look()
        watched = {}
        if self._rows is not None:
            ranking = Ranking(self._logits[-1], self._rows.churned)
            watched = {"validation": self._losses[-1], "auroc": ranking.auroc(self._rows.weights())}
            self._seen(epoch + 1, self._losses[-1])
        rate = float(np.asarray(self.model.optimizer.learning_rate))
        self._board.histograms(epoch + 1, self._now())
        self._board.scalars(epoch + 1, loss=self.loss[-1], learning_rate=rate, **watched)

    def _look(self) -> None:
        """The watched rows, at the shrinkage that suits them best: that is what is judged, so that is what counts."""
        if self._rows is None:
            return
        self._logits.append(logits(self._now(), self._rows.inputs))
        linear, trained = (self._logits[at].astype(np.float64) for at in (0, -1))
        y, weight = self._rows.churned, self._rows.weights()
        mixed = (linear + shrinkage * (trained - linear) for shrinkage in SHRINKAGES)
        self._losses.append(min(log_loss(expit(z), y, weight) for z in mixed))
        best = int(np.argmin(self._losses))
        if len(self._losses) - 1 - best >= self._config.patience:
            self.model.stop_training = True
