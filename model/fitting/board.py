"""A training as TensorBoard shows it, written without TensorBoard.

    <log_dir>/<run>/        scalars by epoch: loss, validation, auroc, learning_rate
                            histograms by epoch: every weight, and its gradient on the first PROBE_ROWS rows
                            the network's graph; a trace of a few steps (plugins/profile)
    <log_dir>/embeddings/   the projector's: each kind's embedding, and customers' states, see `project`

TensorFlow no longer brings TensorBoard along, and its `tf.summary.scalar` is TensorBoard's; what writes event files is
TensorFlow's own. So only whoever looks at the pages installs the viewer. Nothing here changes a training: gradients are
taken beside it, without dropout.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ebbtide.featurestore.spec import Spec
from ebbtide.model.examples.examples import Examples
from ebbtide.model.graph.features import SEQUENCE_FIELDS
from ebbtide.model.graph.network import has_sequence

BINS = 30
PROBE_ROWS = 1_024
TRACED = (3, 6)
"""Steps of the first epoch that are traced; the first ones compile."""
STATES_MAX = 2_000
EMBEDDINGS = "embeddings"


class Board:
    """What one run says, in `folder/<run>`; with `folder` None, nowhere."""

    def __init__(self, folder: Path | None, run: str, probe: Examples | None = None) -> None:
        """probe: usable rows, of which the first PROBE_ROWS say what the gradients are."""
        self._folder = None if folder is None else folder / run
        self._writer: Any = None if folder is None else tf.summary.create_file_writer(str(folder / run))
        rows = None if probe is None or folder is None else probe.take(np.arange(min(len(probe), PROBE_ROWS)))
        self._probe, self._tracing = rows, False

    def scalars(self, epoch: int, **values: float) -> None:
        """One point of each curve. Raises OSError-like `tf.errors.OpError` when the folder cannot be written."""
        for name, value in values.items():
            self._write("scalars", name, tf.constant(value, tf.float32), epoch)
        self._flush()

    def begins(self, network: keras.Model) -> None:
        """The graph, and the weights before the first step."""
        if self._writer is None:
            return
        called = tf.function(lambda inputs: network(inputs, training=False))
        specs = {name: tf.TensorSpec((None, *x.shape[1:]), x.dtype) for name, x in network.input.items()}
        graph = called.get_concrete_function(specs).graph
        with self._writer.as_default():
            tf.summary.graph(graph.as_graph_def())
        self.histograms(0, network)

    def histograms(self, epoch: int, network: keras.Model) -> None:
        """Every weight that is trained, and its gradient on the probe."""
        if self._writer is None:
            return
        weights = network.trainable_variables
        gradients = self._gradients(network) if self._probe is not None else []
        for at, weight in enumerate(weights):
            self._histogram(f"weights/{weight.path}", np.asarray(weight), epoch)
            if at < len(gradients):
                self._histogram(f"gradients/{weight.path}", gradients[at], epoch)
        self._flush()

    def step(self, done: int) -> None:
        """Called after each step, of which there have been `done`: a few of them are traced."""
        if self._folder is None:
            return
        if done == TRACED[0]:
            tf.profiler.experimental.start(str(self._folder))
            self._tracing = True
        elif done == TRACED[1]:
            self.ends()

    def ends(self) -> None:
        """Nothing more comes."""
        if self._tracing:
            tf.profiler.experimental.stop()
            self._tracing = False
        self._flush()

    def _gradients(self, network: keras.Model) -> list[NDArray[Any]]:
        assert self._probe is not None
        y, weight = tf.constant(self._probe.churned), tf.constant(self._probe.weights())
        with tf.GradientTape() as tape:
            logit = network({k: tf.constant(v) for k, v in self._probe.inputs.items()}, training=False)
            loss = tf.reduce_mean(
                weight * tf.nn.sigmoid_cross_entropy_with_logits(y, tf.cast(logit, tf.float32))
            )
        variables = [weight.value for weight in network.trainable_variables]
        found = tape.gradient(loss, variables)
        return [np.asarray(tf.convert_to_tensor(g) if g is not None else tf.zeros(1)) for g in found]

    def _histogram(self, name: str, values: NDArray[Any], epoch: int) -> None:
        counts, edges = np.histogram(values.astype(np.float64), BINS)
        buckets = np.stack([edges[:-1], edges[1:], counts], axis=1)
        self._write("histograms", name, tf.constant(buckets, tf.float64), epoch)

    def _write(self, plugin: str, name: str, value: Any, epoch: int) -> None:
        if self._writer is None:
            return
        metadata = tf.compat.v1.SummaryMetadata()
        metadata.plugin_data.plugin_name = plugin
        with self._writer.as_default():
            tf.summary.write(name, value, step=epoch, metadata=metadata)

    def _flush(self) -> None:
        if self._writer is not None:
            self._writer.flush()


def project(log_dir: Path, spec: Spec, network: keras.Model, rows: Examples, seed: int = 0) -> None:
    """Write the projector's pages: the embedding of each kind by its name, and the recurrent states of at most
    STATES_MAX of `rows`, each with its outcome and its days of silence. No customer's id is among them; but a state is
    data of a customer, so a log folder is to be kept as history is, and is never a published one."""
    if not has_sequence(network):
        return
    folder = log_dir / EMBEDDINGS
    folder.mkdir(parents=True, exist_ok=True)
    recurrent = network.get_layer("recurrent")
    kinds = np.asarray(recurrent.get_layer("kind_embedding").embeddings)
    _table(folder / "kinds.tsv", kinds.tolist())
    _table(folder / "kinds_labels.tsv", [["(none)"], *([kind.name] for kind in spec.kinds)])
    chosen = np.sort(np.random.default_rng(seed).permutation(len(rows))[:STATES_MAX])
    some = rows.take(chosen)
    states = np.asarray(
        recurrent({name: tf.constant(some.inputs[name]) for name in SEQUENCE_FIELDS}, training=False)
    )
    _table(folder / "states.tsv", states.tolist())
    said = [
        ["churned" if churned else "stayed", f"{days:.0f}"]
        for churned, days in zip(some.churned.tolist(), some.silence_days.tolist(), strict=True)
    ]
    _table(folder / "states_labels.tsv", [["outcome", "days of silence"], *said])
    text = "".join(
        f'embeddings {{ tensor_name: "{name}" tensor_path: "{EMBEDDINGS}/{name}.tsv" '
        f'metadata_path: "{EMBEDDINGS}/{name}_labels.tsv" }}\n'
        for name in ("kinds", "states")
    )
    (log_dir / "projector_config.pbtxt").write_text(text, encoding="utf-8")


def _table(path: Path, rows: Iterable[Iterable[Any]]) -> None:
    path.write_text("".join("\t".join(map(str, row)) + "\n" for row in rows), encoding="utf-8")


def hparams(log_dir: Path, run: str, choices: Mapping[str, float | int | str], log_loss: float) -> None:
    """A trial's choices and what it came to, on the HParams page. Needs TensorBoard."""
    from tensorboard.plugins.hparams import api  # noqa: PLC0415 - the viewer's own, asked for by a search alone

    with tf.summary.create_file_writer(str(log_dir / run)).as_default():
        api.hparams(dict(choices), trial_id=run)
        metadata = tf.compat.v1.SummaryMetadata()
        metadata.plugin_data.plugin_name = "scalars"
        tf.summary.write("log_loss", tf.constant(log_loss, tf.float32), step=0, metadata=metadata)
    with tf.summary.create_file_writer(str(log_dir)).as_default():
        api.hparams_config(
            hparams=[api.HParam(name) for name in choices],
            metrics=[api.Metric("log_loss", display_name="log loss")],
        )
