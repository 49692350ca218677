"""The scorer: one model version, resident, compiled for a few sizes, asked for many rows at a time.

    rows structured[n], as_of ─▶ chunks ─▶ padded to 8 | 32 | 128 | 512 ─▶ one compiled program ─▶ p f4[n]

It knows a verified model and the record layout; it knows nothing of customers, partitions or thresholds. Not
for two threads at once: one thread scores, and a newer version is a new Scorer (`slot.py`).

Invariants:
  * *Nothing compiles in service.* Each size is one program with a fixed signature, compiled by XLA in `warm`; whatever
    n is, it is padded to one of them. `traces` counts, and a test holds it still.
  * *A row's bits depend on that row alone*, not on the size, its position or its neighbours. Matrix products are where
    that breaks: the library chooses another kernel, which adds in another order, from 64 rows on (measured:
    22 to 24 % of rows differed by up to 1.8e-7 between 32 and 128 rows; without XLA 57 %). So no product ever
    has more than BLOCK rows: larger sizes are a loop over blocks *inside* the program, which costs nothing,
    since a block stays in cache. `warm` compares the sizes on the warm-up rows and leaves out one that
    disagrees.
  * *One copy in.* A record is one run of bytes, so a batch is one uint8 tensor [size, itemsize], cut into fields in the
    graph: 24 tensors less to make for every dispatch, which at 8 rows was most of the time.

On a GPU the fixed cost of a dispatch dwarfs the rows, and its libraries choose kernels by shape: there one
size serves all.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from featurestore.layout import Layout, Rows
from model import runtime, warmup
from model.errors import ModelDamaged
from model.features import Tensor
from model.manifest import Manifest, verify

log = logging.getLogger("ebbtide.model")

BLOCK = 32
"""Rows a matrix product. The library's small kernels serve up to 32 rows; 64 rows took another."""

Program = Callable[[NDArray[np.uint8], NDArray[np.int64]], dict[str, NDArray[np.float32]]]


class Scorer:
    """A loaded model version. `Scorer.load(path, layout)` verifies and loads; `warm()` compiles; then `score`.

    sizes: padded sizes in use, ascending. manifest, version: what is being served.
    """

    def __init__(
        self, loaded: Any, manifest: Manifest, layout: Layout, warm_up: tuple[Rows, NDArray[np.int64]]
    ) -> None:
        self.manifest = manifest
        self.version = manifest.version
        self.layout = layout
        self.device = runtime.device()
        self.sizes = tuple(sorted(manifest.sizes)) if self.device == "/CPU:0" else (max(manifest.sizes),)
        self._loaded = loaded  # the graph's functions do not keep their variables alive
        self._warm_up = warm_up
        self._programs: dict[tuple[str, int], Program] = {}
        self._traces = 0

    @classmethod
    def load(cls, path: Path, layout: Layout) -> "Scorer":
        """Verify and load the version in the folder `path`. Raises ModelError; compiles nothing yet."""
        manifest = verify(path, layout.id)
        try:
            with tf.device(runtime.device()):
                loaded = tf.saved_model.load(str(path))
            warm_up = warmup.read(path, layout)
        except (OSError, ValueError, KeyError, tf.errors.OpError) as error:
            raise ModelDamaged(
                f"model {manifest.title} cannot be loaded: {error}", hint="publish it again with this release"
            ) from error
        return cls(loaded, manifest, layout, warm_up)

    @classmethod
    def ready(cls, path: Path, layout: Layout) -> "Scorer":
        """`load` and `warm` in one: what a watcher does off the hot path."""
        scorer = cls.load(path, layout)
        scorer.warm()
        return scorer

    def padded(self, n: int) -> int:
        """The size that n rows travel in: the smallest that holds them, or the largest, again and again."""
        return next((size for size in self.sizes if size >= n), self.sizes[-1])

    def traces(self) -> int:
        """How many programs were traced so far. After `warm` it stands still."""
        return self._traces

    def score(self, rows: Rows, as_of: NDArray[np.int64]) -> NDArray[np.float32]:
        """Probability of churn within the horizon, float32[n] in [0, 1], of rows[n] as of as_of[n] (ms UTC)."""
        return self._run("score", rows, as_of, self.sizes)["probability"]

    def explain(
        self, rows: Rows, as_of: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Features float32[n, F] in natural units and their contributions float32[n, F] in logit units.

        A row's contributions add up to its calibrated logit less that of the same sequence with mean
        features. For the few rows that become alerts: it has one program, of the smallest size.
        """
        out = self._run("explain", rows, as_of, self.sizes[:1])
        return out["features"], out["contributions"]

    def features(self, rows: Rows, as_of: NDArray[np.int64]) -> NDArray[np.float32]:
        """Features float32[n, F] in natural units, as `explain` gives them."""
        return self.explain(rows, as_of)[0]

    def warm(self) -> None:
        """Compile every program and run it once. Sizes whose bits differ on the warm-up rows are left out.

        Takes 1 to 2 s a size; call it off the hot path.
        """
        rows, as_of = self._warm_up
        found = {size: self._run("score", rows, as_of, (size,))["probability"] for size in self.sizes}
        # The largest is the reference: every size above a block is made of the same blocks.
        right = found[self.sizes[-1]].tobytes()
        agree = tuple(size for size in self.sizes if found[size].tobytes() == right)
        if agree != self.sizes:
            log.warning(
                "sizes left out: they give other bits",
                extra={"model": self.manifest.title, "sizes": self.sizes, "kept": agree},
            )
            self.sizes = agree
        self.explain(rows[:1], as_of[:1])

    def _run(
        self, name: str, rows: Rows, as_of: NDArray[np.int64], sizes: tuple[int, ...]
    ) -> dict[str, NDArray[np.float32]]:
        """Cut into chunks of the largest size, pad the last one, run, drop the padding, join."""
        n, width = len(rows), self.layout.itemsize
        raw = np.ascontiguousarray(rows).view(np.uint8).reshape(n, width)
        as_of = np.ascontiguousarray(as_of, np.int64)
        parts = []
        for start in range(0, max(n, 1), sizes[-1]):
            chunk, times = raw[start : start + sizes[-1]], as_of[start : start + sizes[-1]]
            m = len(chunk)
            size = next(size for size in sizes if size >= m)
            if m < size:
                # New customers, all zero bytes: valid rows whose scores nobody reads.
                chunk, times = _pad(chunk, size), _pad(times, size)
            out = self._program(name, size)(chunk, times)
            parts.append({key: value[:m] for key, value in out.items()})
        if len(parts) == 1:
            return parts[0]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def _program(self, name: str, size: int) -> Program:
        if (name, size) not in self._programs:
            self._programs[name, size] = self._compile(name, size)
        return self._programs[name, size]

    def _compile(self, name: str, size: int) -> Program:
        signature = self._loaded.signatures[name]
        block = BLOCK if self.device == "/CPU:0" else size

        def whole(raw: Tensor, as_of: Tensor) -> dict[str, Tensor]:
            out: dict[str, Tensor] = signature(**_fields(self.layout, raw), as_of=as_of)
            return out

        def program(raw: Tensor, as_of: Tensor) -> dict[str, Tensor]:
            self._traces += 1
            if size <= block:
                return whole(raw, as_of)
            shape = {
                key: tf.TensorSpec((block, *spec.shape[1:]), spec.dtype)
                for key, spec in signature.structured_outputs.items()
            }
            blocks = tf.reshape(raw, (-1, block, raw.shape[1])), tf.reshape(as_of, (-1, block))
            out = tf.map_fn(lambda each: whole(*each), blocks, fn_output_signature=shape)
            return {key: tf.reshape(value, (size, *value.shape[2:])) for key, value in out.items()}

        inputs = [tf.TensorSpec((size, self.layout.itemsize), tf.uint8), tf.TensorSpec((size,), tf.int64)]
        with tf.device(self.device):
            traced = tf.function(program, input_signature=inputs, jit_compile=True).get_concrete_function()

        def run(raw: NDArray[np.uint8], as_of: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
            with tf.device(self.device):
                out = traced(tf.constant(raw), tf.constant(as_of))
            return {key: value.numpy() for key, value in out.items()}

        return run


def _fields(layout: Layout, raw: Tensor) -> dict[str, Tensor]:
    """uint8[n, itemsize] -> {field: tensor[n, …]}: the record's bytes, cut where the layout says."""
    fields = {}
    for name in layout.model_fields:
        kind, offset = layout.dtype.fields[name][:2]  # type: ignore[index]  # a structured dtype has fields
        cut, width = raw[:, offset : offset + kind.itemsize], kind.base.itemsize
        if width > 1:
            cut = tf.bitcast(tf.reshape(cut, (-1, kind.itemsize // width, width)), tf.as_dtype(kind.base))
        fields[name] = tf.reshape(cut, (-1, *kind.shape))
    return fields


def _pad(column: NDArray[Any], size: int) -> NDArray[Any]:
    padded = np.zeros((size, *column.shape[1:]), column.dtype)
    padded[: len(column)] = column
    return padded
