"""The scorer: one model version, resident, compiled for a few sizes, asked for many rows at a time.

    rows structured[n], as_of ─▶ chunks ─▶ padded to 8 | 32 | 128 | 512 ─▶ one compiled program ─▶ p f4[n]

It knows a verified model and the record layout; it knows nothing of customers, partitions or thresholds. One thread
scores at a time; a newer version is a new Scorer, and the slot (`slot.py`) says which one serves.

Invariants:
  * *Nothing compiles in service.* Each size is one program with a fixed signature, compiled before it is in `sizes`;
    whatever n is, it is padded to one of them. `traces` counts, and a test holds it still.
  * *A row's bits depend on that row alone*, not on the size, its position or its neighbours (`program.py` says how).
    Each size is compared with the first one on the warm-up rows, and one that disagrees is left out.
  * *What is loaded was looked at*: its bytes are what was published, and its graph only computes (`graph.py`).

A worker may begin before all sizes are there: the first is a block of rows, of which all larger sizes are made; `wider`
adds one at a time.
"""

import copy
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ebbtide.featurestore.record.layout import Layout, Rows
from ebbtide.model.errors import ModelDamaged
from ebbtide.model.explaining.explained import Explained
from ebbtide.model.serving import runtime, warmup
from ebbtide.model.serving.folder import locate
from ebbtide.model.serving.graph import check_graph
from ebbtide.model.serving.manifest import Manifest, verify
from ebbtide.model.serving.program import BLOCK, Program, Weights, graph_of, weights_of

log = logging.getLogger(__name__)

START_THREADS = 2
"""Programs compiled at a time while nothing is served yet. Beside a version that serves it is one."""

Job = tuple[str, int]
"""A signature and a padded size."""
Programs = dict[tuple[str, str, int], Program]
"""(graph, signature, size) -> program: of all versions of a process, since XLA keeps for good what it has compiled."""


class Signature(NamedTuple):
    """One function of a version: its graph, by fingerprint, and the weights that are the version's own."""

    function: Any
    graph: str
    weights: Weights


class Scorer:
    """A loaded model version.

    sizes: padded sizes in use, ascending. missing: those that `wider` may add. manifest, version: what is being served.
    path: the version's folder.
    """

    def __init__(
        self, loaded: Any, path: Path, manifest: Manifest, layout: Layout, programs: Programs | None = None
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.version = manifest.version
        self.layout = layout
        self.device = runtime.device()
        sizes = tuple(sorted(manifest.sizes))
        self._explained = sizes[0]
        if self.device == "/CPU:0":
            first = next((size for size in sizes if size >= BLOCK), sizes[-1])
        else:
            sizes, first = sizes[-1:], sizes[-1]
        self.sizes: tuple[int, ...] = (first,)
        self.missing = tuple(size for size in reversed(sizes) if size != first)
        self._bits = b""  # of the warm-up rows
        self._loaded = loaded  # the graph's functions do not keep their variables alive
        self._signatures: dict[str, Signature] = {}
        self._programs: Programs = {} if programs is None else programs

    @classmethod
    def load(
        cls,
        path: Path,
        layout: Layout,
        *,
        key: str | None = None,
        programs: Programs | None = None,
        whole: bool = True,
        threads: int = START_THREADS,
    ) -> Self:
        """Verify, load and compile a version.

        path: its folder, or one above it, which means the pinned or else the latest one. key: signs manifests; None
        asks for no signature. programs: of versions loaded before, shared with them. whole: in all sizes, else in the
        first only. threads: how many programs are compiled at a time.

        Raises ModelError, whatever is wrong with the version. Takes some seconds, nearly all of them in XLA.
        """
        path = locate(path)
        manifest = verify(path, layout.id, key)
        check_graph(path, manifest.title)
        programs = {} if programs is None else programs
        before = set(programs)
        try:
            with tf.device(runtime.device()):
                loaded = tf.saved_model.load(str(path))
            scorer = cls(loaded, path, manifest, layout, programs)
            scorer.start(threads)
            while whole and scorer.missing:
                scorer = scorer.wider()
        except Exception as error:  # whatever a graph or a file of somebody else's makes them raise
            for made in programs.keys() - before:  # what has failed once fails for ever
                del programs[made]
            raise ModelDamaged(
                f"model {manifest.title} cannot be loaded: {error}", hint="publish it again with this release"
            ) from error
        return scorer

    def start(self, threads: int) -> None:
        """Compile the first size and the explanation, and run both once: 2 s of a core each, 0.2 s where XLA's cache
        has them. Raises OSError, KeyError or ValueError when the warm-up records are not what `warmup.write` wrote."""
        rows, as_of = warmup.read(self.path, self.layout)
        jobs: list[Job] = [("score", self.sizes[0]), ("explain", self._explained)]
        # All of them now, in one thread and in this order: names in XLA's cache are numbered as functions are traced
        # and tensors made. Traced beside a worker's first scores, the larger sizes would be compiled at every start.
        for job in [*jobs, *(("score", size) for size in self.missing)]:
            self._program(*job)

        def run(job: Job) -> dict[str, NDArray[np.float32]]:
            return self._run(job[0], rows, as_of, (job[1],))

        if threads == 1:  # a pool's thread would keep the process that wants to end, however it was started
            outs = [run(job) for job in jobs]
        else:
            with ThreadPoolExecutor(threads, thread_name_prefix="compile") as pool:
                outs = list(pool.map(run, jobs))
        self._bits = _bits(outs[0])

    def wider(self) -> Self:
        """The same version with one missing size more, the largest, unless it gives other bits. Blocks for seconds."""
        if not self.missing:
            return self
        size, *rest = self.missing
        rows, as_of = warmup.read(self.path, self.layout)
        bits = _bits(self._run("score", rows, as_of, (size,)))
        wider = copy.copy(self)
        wider.missing = tuple(rest)
        if bits == self._bits:
            wider.sizes = tuple(sorted((*self.sizes, size)))
        else:
            told = {"model": self.manifest.title, "size": size}
            log.warning("a padded size that gives other bits is left out", extra=told)
        return wider

    def padded(self, n: int) -> int:
        """The size that n rows travel in: the smallest that holds them, or the largest, again and again."""
        return next((size for size in self.sizes if size >= n), self.sizes[-1])

    def traces(self) -> int:
        """How often programs were traced so far, those of other versions with this graph included."""
        return sum(program.traces for program in self._programs.values())

    def score(self, rows: Rows, as_of: NDArray[np.int64]) -> NDArray[np.float32]:
        """Probability of churn within the horizon, float32[n] in [0, 1], of rows[n] as of as_of[n] (ms UTC); of several
        targets float32[n, targets]."""
        return self._run("score", rows, as_of, self.sizes)["probability"]

    def survival(self, rows: Rows, as_of: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """S at each of the spec's `horizons_ms`, float32[n, targets, K] in [0, 1], falling; None for a model that knows
        one horizon. By the program of `score`: nothing is compiled for it."""
        found = self._run("score", rows, as_of, self.sizes).get("survival")
        return None if found is None else found.reshape(len(rows), -1, found.shape[-1])

    def explain(self, rows: Rows, as_of: NDArray[np.int64]) -> Explained:
        """Why rows[n] as of as_of[n] (ms UTC) are scored as they are; `holds` says of which that may be believed.

        For the few rows that become alerts: it has one program, of the smallest size.
        """
        out = self._run("explain", rows, as_of, (self._explained,))
        # A version of an earlier release holds the sequence fixed: its reference is of the row's own.
        sequence = out.get("sequence", np.zeros(len(rows), np.float32))
        logit, survival = out["logit"], out.get("survival")
        columns: dict[str, Any] = {
            "contributions": out["contributions"],
            "sequence": sequence,
            "logit": logit,
            "reference": out["reference"],
            **({} if survival is None else {"survival": survival}),
        }
        if logit.ndim == 1:
            return Explained(values=out["features"], **columns)
        parts = [
            Explained(values=out["features"], **{name: column[:, t] for name, column in columns.items()})
            for t in range(logit.shape[1])
        ]
        return parts[0]._replace(further=tuple(parts[1:]))

    def _run(
        self, name: str, rows: Rows, as_of: NDArray[np.int64], sizes: Sequence[int]
    ) -> dict[str, NDArray[np.float32]]:
        """Cut into chunks of the largest size, pad the last one, run, drop the padding, join."""
        n = len(rows)
        raw = np.ascontiguousarray(rows).view(np.uint8).reshape(n, self.layout.itemsize)
        as_of = np.ascontiguousarray(as_of, np.int64)
        parts = []
        for start in range(0, max(n, 1), sizes[-1]):
            chunk, times = raw[start : start + sizes[-1]], as_of[start : start + sizes[-1]]
            m = len(chunk)
            size = next(size for size in sizes if size >= m)
            if m < size:
                # New customers, all zero bytes: valid rows whose scores nobody reads.
                chunk, times = _pad(chunk, size), _pad(times, size)
            out = self._program(name, size)(chunk, times, self._signatures[name].weights)
            parts.append({key: value[:m] for key, value in out.items()})
        if len(parts) == 1:
            return parts[0]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def _program(self, name: str, size: int) -> Program:
        if name not in self._signatures:
            function = self._loaded.signatures[name]
            self._signatures[name] = Signature(function, graph_of(function), weights_of(function))
        function, graph, _ = self._signatures[name]
        program = self._programs.get((graph, name, size))
        if program is None:
            block = BLOCK if self.device == "/CPU:0" else size
            program = Program(function, self.layout, size, self.device, block)
            self._programs[graph, name, size] = program
        return program


def of_target(p: NDArray[np.float32], target: int) -> NDArray[np.float32]:
    """float32[n]: what `Scorer.score` said for one target, by its index."""
    return p if p.ndim == 1 else p[:, target]


def _bits(scored: dict[str, NDArray[np.float32]]) -> bytes:
    """Of all that must be the same in every padded size."""
    return b"".join(scored[name].tobytes() for name in ("probability", "survival") if name in scored)


def _pad(column: NDArray[Any], size: int) -> NDArray[Any]:
    padded = np.zeros((size, *column.shape[1:]), column.dtype)
    padded[: len(column)] = column
    return padded
