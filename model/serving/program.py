"""A signature of a model, compiled for one number of rows.

    uint8[size, itemsize], as_of ─▶ cut into fields ─▶ blocks of at most 32 rows ─▶ signature ─▶ float32 arrays

It knows XLA and the record's bytes; it knows nothing of versions or of what the numbers mean. Two measurements
shaped it:

  * *One copy in.* A record is one run of bytes, so a batch is one uint8 tensor that the graph cuts into fields:
    24 tensors less to make for every dispatch, which at 8 rows was more than half of the time.
  * *No matrix product has more than BLOCK rows.* From 64 rows on the library chooses another kernel, which adds
    in another order: 22 to 27 % of rows then differed in their last bits (by up to 1.8e-7) between 32 and 128
    rows. So a larger size is a loop over blocks inside the program, and a row's bits don't depend on how many
    travel with it. It costs nothing: a block's intermediate results stay in cache, so 512 rows take no longer than
    in one piece.

On a GPU a dispatch costs much and a row nearly nothing, and its libraries choose kernels by shape: there a
program has one block of its whole size, and one size serves all (see `scorer.py`).
"""

import threading
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ebbtide.featurestore.record.layout import Layout
from ebbtide.model.graph.record_bytes import Tensor, fields
from ebbtide.model.serving.graph import fingerprint

Weights = tuple[Any, ...]
"""Captured tensors of a signature, in its order. The version's loaded SavedModel keeps the variables behind them."""

BLOCK = 32
"""Rows a matrix product, on the CPU: the largest size at which the library still adds as it does for 8 rows."""


class Program:
    """`program(raw, as_of, weights)` -> {output: float32[size, …]}, for exactly `size` rows; compiled at the first
    call.

    signature: a SavedModel's function over any number of rows. device: "/CPU:0" or "/GPU:0". block: rows a matrix
    product, which divides any larger size.

    It serves every version whose signature has the same graph (`graph.fingerprint`): `weights` are what that version's
    signature captures, `weights_of(signature)`; None: of the one it was made from. So a version that differs in its
    weights alone compiles nothing, and costs no memory that XLA would never give back: 8 MiB a program. Calls of
    several threads follow each other.
    """

    def __init__(self, signature: Any, layout: Layout, size: int, device: str, block: int = BLOCK) -> None:
        if size > block and size % block:
            raise ValueError(f"size {size} is not a multiple of {block}")
        self.traces = 0
        self._device = device
        self._turn = threading.Lock()
        block = min(size, block)

        def whole(raw: Tensor, as_of: Tensor) -> dict[str, Tensor]:
            out: dict[str, Tensor] = signature(**fields(layout, raw), as_of=as_of)
            return out

        def program(raw: Tensor, as_of: Tensor) -> dict[str, Tensor]:
            self.traces += 1  # Python runs here while tracing, and never again
            if size == block:
                return whole(raw, as_of)
            # In order of name: as loaded they have one that differs between processes, and XLA's cache sees it.
            outputs = sorted(signature.structured_outputs.items())
            blocked = {name: tf.TensorSpec((block, *spec.shape[1:]), spec.dtype) for name, spec in outputs}
            pieces = tf.reshape(raw, (-1, block, layout.itemsize)), tf.reshape(as_of, (-1, block))
            out = tf.map_fn(lambda piece: whole(*piece), pieces, fn_output_signature=blocked)
            return {name: tf.reshape(out[name], (size, *out[name].shape[2:])) for name, _ in outputs}

        inputs = [tf.TensorSpec((size, layout.itemsize), tf.uint8), tf.TensorSpec((size,), tf.int64)]
        with tf.device(device):
            # The graph is the signature's: no Python of ours is left to be made a graph of, which took a second.
            self._traced = tf.function(
                program, input_signature=inputs, jit_compile=True, autograph=False
            ).get_concrete_function()
        # The program captures what the signature did, each once, in an order of its own.
        places = {id(weight): place for place, weight in enumerate(weights_of(signature))}
        self._order = [places[id(captured)] for captured in self._traced.captured_inputs]
        self._own = self._bound = weights_of(signature)

    def __call__(
        self, raw: NDArray[np.uint8], as_of: NDArray[np.int64], weights: Weights | None = None
    ) -> dict[str, NDArray[np.float32]]:
        weights = self._own if weights is None else weights
        with self._turn, tf.device(self._device):
            if self._bound is not weights:
                self._traced.set_external_captures([weights[place] for place in self._order])
                self._bound = weights
            out = self._traced(tf.constant(raw), tf.constant(as_of))
        return {name: value.numpy() for name, value in out.items()}


def weights_of(signature: Any) -> Weights:
    """What a signature computes with besides its inputs: handles of its version's variables, and constants."""
    return tuple(signature.captured_inputs)


def graph_of(signature: Any) -> str:
    """The fingerprint of a signature's graph: equal for versions that differ in their weights alone."""
    inputs = [tensor.name.partition(":")[0] for tensor in signature.inputs]
    results = zip(sorted(signature.structured_outputs), signature.outputs, strict=True)
    described = "".join(f"{tensor.dtype} {tensor.shape} " for tensor in signature.inputs)
    graph = signature.graph.as_graph_def()
    named = ",".join(inputs[: len(inputs) - len(signature.captured_inputs)])
    return f"{named} {described}" + fingerprint(
        graph, inputs, {name: tensor.name for name, tensor in results}
    )
