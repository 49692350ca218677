"""A published version as one LiteRT file, and what that file says.

    version ─rebuilt─▶ graph of one row ─convert─▶ float32 file ─quantise by a recipe─▶ file
                                                                                          │
    record uint8[1, size], as_of int64[1] ────────────────────────────▶ LiteRT ───────────┘──▶ probability, logit, …

The record is the whole of it, as it is before a store packs it (`featurestore/record/packing.py`). The file needs the
LiteRT runtime and nothing of ours, no TensorFlow ops among its own.
"""

import gzip
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from ebbtide.featurestore.record.layout import Layout, Rows
from ebbtide.model.errors import ModelDamaged
from ebbtide.model.exporting.rebuilt import rebuilt
from ebbtide.model.exporting.recipes import OFF_MAX, recipe
from ebbtide.model.graph.record_bytes import Tensor, fields
from ebbtide.model.graph.served import Served
from ebbtide.model.serving import warmup
from ebbtide.model.serving.graph import check_graph
from ebbtide.model.serving.manifest import Manifest

SIGNATURE = "score"
FLOAT_BYTES, INT64_BYTES = 4, 8
"""Of a scale, and of its zero point."""


class Sizes(NamedTuple):
    """Bytes of a file, of the same gzipped, of the constants in it (weights, thresholds, tables), and of what says how
    its tensors are quantised (scales and zero points)."""

    file: int
    gzipped: int
    weights: int
    scales: int


class _Edge(tf.Module):
    """One row from its bytes, weights as constants: LiteRT's own variables begin as zeros."""

    def __init__(self, served: Served) -> None:
        super().__init__(name="edge")
        specs = (
            tf.TensorSpec((1, served.layout.itemsize), tf.uint8, name="record"),
            tf.TensorSpec((1,), tf.int64, name="as_of"),
        )

        def score(record: Tensor, as_of: Tensor) -> dict[str, Tensor]:
            found = {name: _widened(column) for name, column in fields(served.layout, record).items()}
            return served.score(**found, as_of=as_of)

        traced = tf.function(score).get_concrete_function(*specs)
        frozen, names = convert_variables_to_constants_v2(traced), sorted(traced.structured_outputs)
        self.score = tf.function(
            lambda record, as_of: dict(zip(names, frozen(record, as_of), strict=True))
        ).get_concrete_function(*specs)


def _widened(column: Tensor) -> Tensor:
    """LiteRT gathers no uint16. The maximum changes nothing: without it TensorFlow's optimizer puts the cast behind the
    gather, where fewer bytes move."""
    return tf.maximum(tf.cast(column, tf.int32), 0) if column.dtype == tf.uint16 else column


def in_litert(path: Path, manifest: Manifest) -> bytes:
    """The verified version in `path` as a float32 LiteRT file. Raises ModelUntrusted, ModelDamaged."""
    check_graph(path, manifest.title)
    edge = _Edge(rebuilt(path, manifest))
    with tempfile.TemporaryDirectory(prefix="ebbtide-export-") as folder:
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(edge, folder, signatures={SIGNATURE: edge.score}, options=options)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[SIGNATURE])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        try:
            return bytes(converter.convert())
        except Exception as error:  # whatever the converter makes of an op that it does not know
            raise ModelDamaged(
                f"model {manifest.title} has no form in LiteRT: {str(error).splitlines()[0][-300:]}",
                hint="this is a defect of this release: report it with the spec",
            ) from error


def quantised(model: bytes, precision: str, rows: Rows, as_of: NDArray[np.int64]) -> bytes:
    """A float32 file in another of PRECISIONS. rows, as_of: on which the scales of `int8` are found."""
    asked = recipe(precision)
    if not asked:
        return model
    from ai_edge_quantizer.quantizer import Quantizer  # noqa: PLC0415 - of the extra `edge`, which float32 needs not

    quantizer = Quantizer(bytearray(model), asked)
    found = None
    if quantizer.need_calibration:
        found = quantizer.calibrate({SIGNATURE: list(inputs(rows, as_of))}, num_threads=1)
    done = quantizer.quantize(found, enable_progress_bar=False, enable_progress_report=False)
    return bytes(done.quantized_model)


def inputs(rows: Rows, as_of: NDArray[np.int64]) -> Iterator[dict[str, NDArray[Any]]]:
    """What a file's signature takes, a row at a time."""
    raw = np.ascontiguousarray(rows).view(np.uint8).reshape(len(rows), 1, rows.dtype.itemsize)
    for record, time in zip(raw, np.asarray(as_of, np.int64), strict=True):
        yield {"record": record, "as_of": time[None]}


class Runner:
    """A file in the LiteRT runtime, one thread."""

    def __init__(self, model: bytes) -> None:
        from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415 - of the extra `edge`

        self._interpreter = Interpreter(model_content=model, num_threads=1)
        self._score = self._interpreter.get_signature_runner(SIGNATURE)

    def score(self, rows: Rows, as_of: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
        """What `score` of the version says of n >= 1 rows, one after the other: [n, …] each."""
        out = [self._score(**each) for each in inputs(rows, as_of)]
        return {name: np.concatenate([each[name] for each in out]) for name in out[0]}


def sizes(model: bytes) -> Sizes:
    """How large a file is."""
    from ai_edge_litert.schema_py_generated import Model  # noqa: PLC0415 - of the extra `edge`

    found = Model.GetRootAs(model, 0)
    buffers = [found.Buffers(i) for i in range(found.BuffersLength())]
    # In a file that the quantizer writes, what is large lies behind the model: such a buffer has a place and a size.
    weights = sum(max(buffer.DataLength(), buffer.Size()) for buffer in buffers)
    graphs = [found.Subgraphs(i) for i in range(found.SubgraphsLength())]
    tensors = [graph.Tensors(i) for graph in graphs for i in range(graph.TensorsLength())]
    told = [tensor.Quantization() for tensor in tensors if tensor.Quantization() is not None]
    scales = sum(FLOAT_BYTES * each.ScaleLength() + INT64_BYTES * each.ZeroPointLength() for each in told)
    return Sizes(len(model), len(gzip.compress(model, 9, mtime=0)), weights, scales)


def apart(path: Path, manifest: Manifest, model: bytes, precision: str) -> float:
    """The largest difference between a file's probabilities and its version's, over the version's warm-up rows. Raises
    ModelDamaged where it is above OFF_MAX: the file would say something else."""
    layout = Layout(manifest.parsed_spec())
    rows, as_of = warmup.read(path, layout)
    own = tf.saved_model.load(str(path)).signatures["score"]
    record = {name: tf.constant(rows[name]) for name in layout.model_fields}
    right = own(**record, as_of=tf.constant(as_of))["probability"].numpy()
    off = float(np.abs(Runner(model).score(rows, as_of)["probability"] - right).max())
    if not off <= OFF_MAX[precision]:
        raise ModelDamaged(
            f"model {manifest.title} in {precision} is up to {off:.3f} off in its probabilities, above "
            f"{OFF_MAX[precision]:g}: nothing is written",
            hint="take a finer --precision",
        )
    return off
