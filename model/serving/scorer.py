"""The scorer: one model version, resident, compiled for a few sizes, asked for many rows at a time.

    rows structured[n], as_of ─▶ chunks ─▶ padded to 8 | 32 | 128 | 512 ─▶ one compiled program ─▶ p f4[n]

It knows a verified model and the record layout; it knows nothing of customers, partitions or thresholds. One
thread scores at a time; a newer version is a new Scorer, and the slot says which one serves:

    refresh (any thread):  newer version? ─▶ verify ─▶ load ─▶ warm (seconds) ──────┐
    ScorerSlot.current:    ══════════ version 3 ════════════════════════════════════╪═ version 4 ═══▶
    scoring thread:         [batch]   [batch]      [batch]   [batch]     [batch] [batch]   [batch]

Invariants:
  * *Nothing compiles in service.* Each size is one program with a fixed signature, compiled in `warm`; whatever n
    is, it is padded to one of them. `traces` counts, and a test holds it still.
  * *A row's bits depend on that row alone*, not on the size, its position or its neighbours (`program.py` says
    how). `warm` compares the sizes on the warm-up rows and leaves out one that disagrees.
  * *A batch is scored by one version*: whoever dispatches takes `slot.current` once, for scores and reasons
    alike.
  * *A bad version changes nothing*: it is refused by name, once, and the running one stays.
"""

import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from ebbtide.featurestore.record.layout import Layout, Rows
from ebbtide.model.errors import ModelDamaged, ModelError
from ebbtide.model.serving import runtime, warmup
from ebbtide.model.serving.artifact import locate, versions
from ebbtide.model.serving.manifest import Manifest, verify
from ebbtide.model.serving.program import BLOCK, Program

log = logging.getLogger(__name__)

START_THREADS = 2
"""Programs compiled at a time while nothing is served yet. Beside a version that serves it is one."""
REFRESH_NICENESS = 5
"""The thread that compiles the next version yields to those that serve the present one."""


class Scorer:
    """A loaded model version.

    sizes: padded sizes in use, ascending. manifest, version: what is being served. path: the version's folder.
    """

    def __init__(self, loaded: Any, path: Path, manifest: Manifest, layout: Layout) -> None:
        self.path = path
        self.manifest = manifest
        self.version = manifest.version
        self.layout = layout
        self.device = runtime.device()
        sizes = tuple(sorted(manifest.sizes))
        self.sizes = sizes if self.device == "/CPU:0" else sizes[-1:]
        self._loaded = loaded  # the graph's functions do not keep their variables alive
        self._programs: dict[tuple[str, int], Program] = {}

    @classmethod
    def load(cls, path: Path, layout: Layout, *, warm: bool = True, threads: int = START_THREADS) -> Self:
        """Verify, load and `warm` a version. `path`: its folder, or one above it, which means the latest. `threads`:
        how many programs are compiled at a time.

        Raises ModelError. Takes some seconds, nearly all of them in `warm`.
        """
        path = locate(path)
        manifest = verify(path, layout.id)
        try:
            with tf.device(runtime.device()):
                loaded = tf.saved_model.load(str(path))
            scorer = cls(loaded, path, manifest, layout)
            if warm:
                scorer.warm(threads)
        except (OSError, ValueError, KeyError, tf.errors.OpError) as error:
            raise ModelDamaged(
                f"model {manifest.title} cannot be loaded: {error}", hint="publish it again with this release"
            ) from error
        return scorer

    def padded(self, n: int) -> int:
        """The size that n rows travel in: the smallest that holds them, or the largest, again and again."""
        return next((size for size in self.sizes if size >= n), self.sizes[-1])

    def traces(self) -> int:
        """How often a program was traced so far. After `warm` it stands still."""
        return sum(program.traces for program in self._programs.values())

    def score(self, rows: Rows, as_of: NDArray[np.int64]) -> NDArray[np.float32]:
        """Probability of churn within the horizon, float32[n] in [0, 1], of rows[n] as of as_of[n] (ms UTC)."""
        return self._run("score", rows, as_of, self.sizes)["probability"]

    def explain(
        self, rows: Rows, as_of: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Features float32[n, F] in natural units and their contributions float32[n, F] in logit units.

        A row's contributions add up to its calibrated logit less that of the same sequence with mean features.
        For the few rows that become alerts: it has one program, of the smallest size.
        """
        out = self._run("explain", rows, as_of, self.sizes[:1])
        return out["features"], out["contributions"]

    def warm(self, threads: int = 1) -> None:
        """Compile every program and run it once, 1 to 2 s of a core each. Sizes that give other bits are left out.

        Raises OSError, KeyError or ValueError when the warm-up records are not what `warmup.write` wrote.
        """
        rows, as_of = warmup.read(self.path, self.layout)
        jobs = [*(("score", size) for size in reversed(self.sizes)), ("explain", self.sizes[0])]

        def run(job: tuple[str, int]) -> dict[str, NDArray[np.float32]]:
            return self._run(job[0], rows, as_of, (job[1],))

        if threads == 1:  # a pool's thread would keep the process that wants to end, however it was started
            outs = [run(job) for job in jobs]
        else:
            with ThreadPoolExecutor(threads, thread_name_prefix="compile") as pool:
                outs = list(pool.map(run, jobs))
        bits = {
            size: out["probability"].tobytes() for (_, size), out in zip(jobs[:-1], outs[:-1], strict=True)
        }
        # The largest is the reference: every size above a block is made of the same blocks.
        kept = tuple(size for size in self.sizes if bits[size] == bits[self.sizes[-1]])
        if kept != self.sizes:
            told = {"model": self.manifest.title, "sizes": self.sizes, "kept": kept}
            log.warning("padded sizes that give other bits are left out", extra=told)
            self.sizes = kept
            self.explain(rows[:1], as_of[:1])

    def _run(
        self, name: str, rows: Rows, as_of: NDArray[np.int64], sizes: tuple[int, ...]
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
            out = self._program(name, size)(chunk, times)
            parts.append({key: value[:m] for key, value in out.items()})
        if len(parts) == 1:
            return parts[0]
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def _program(self, name: str, size: int) -> Program:
        if (name, size) not in self._programs:
            signature = self._loaded.signatures[name]
            block = BLOCK if self.device == "/CPU:0" else size
            self._programs[name, size] = Program(signature, self.layout, size, self.device, block)
        return self._programs[name, size]


class ScorerSlot:
    """Which scorer serves. Reading `current` and `swap` are atomic: one reference is read or replaced.

    refused: version -> why. It is not tried again until its files change (it may have been copied there by hand, and be
    half there when first looked at).
    """

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self.refused: dict[int, str] = {}
        self._refused_files: dict[int, frozenset[tuple[str, int, int]]] = {}

    @property
    def current(self) -> Scorer:
        """Take it once a dispatch, and score and explain with what was taken."""
        return self._scorer

    def swap(self, scorer: Scorer) -> Scorer:
        """Serve a warm `scorer` from the next dispatch on. Returns the one before; a batch under way ends with it."""
        before, self._scorer = self._scorer, scorer
        return before

    def refresh(self) -> bool:
        """Look once for versions newer than the one in service, latest first; load, warm and swap in the first that is
        good. True when it swapped. Blocks for as long as that takes: call it from a thread that serves nobody."""
        serving = self.current
        for version in reversed(versions(serving.path.parent)):
            if version <= serving.version:
                break
            path = serving.path.parent / str(version)
            try:
                files = _files(path)
            except OSError:
                continue  # it is being copied: a file that was listed has gone; the next look sees more
            if self._refused_files.get(version) == files:
                continue
            try:
                scorer = _load_quietly(path, serving.layout)
            except (ModelError, OSError) as error:
                self.refused[version], self._refused_files[version] = str(error), files
                told = {"model": f"{serving.manifest.name}/{version}", "error": str(error)}
                log.warning("model refused", extra={**told, "serving": serving.version})
                continue
            self.swap(scorer)
            log.info("model swapped", extra={"model": scorer.manifest.title, "before": serving.version})
            return True
        return False


def _files(path: Path) -> frozenset[tuple[str, int, int]]:
    """Name, size and time of every file: what changes while a version is still being copied."""
    found = [(file.as_posix(), file.stat()) for file in path.rglob("*") if file.is_file()]
    return frozenset((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)


def _load_quietly(path: Path, layout: Layout) -> Scorer:
    """`Scorer.load` in a thread of low priority, since compiling takes a core for seconds."""
    done: list[Scorer | BaseException] = []

    def load() -> None:
        if hasattr(os, "setpriority"):
            # On Linux niceness belongs to a thread, and the threads it starts inherit it.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), REFRESH_NICENESS)
        try:
            done.append(Scorer.load(path, layout, threads=1))
        except BaseException as error:  # noqa: BLE001 - carried to the thread that waits, and raised there
            done.append(error)

    # A daemon: a process that ends does not wait for it.
    thread = threading.Thread(target=load, name="model-loader", daemon=True)
    thread.start()
    thread.join()
    if isinstance(done[0], BaseException):
        raise done[0]
    return done[0]


def _pad(column: NDArray[Any], size: int) -> NDArray[Any]:
    padded = np.zeros((size, *column.shape[1:]), column.dtype)
    padded[: len(column)] = column
    return padded
