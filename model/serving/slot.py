"""Which version serves, and the one before it: model and policy as one value, made and checked when it is loaded.

    refresh (any thread):  newer, or pinned? ─▶ verify ─▶ policy ─▶ load ─▶ compile (seconds) ─┐
    ScorerSlot.current:    ══════════ version 3 ══════════════════════════════════════════════╪═ version 4 ═══▶
    scoring thread:         [batch]   [batch]      [batch]   [batch]     [batch]   [batch] [batch]    [batch]

It knows folders of versions and loaded scorers; it refuses to know what a policy is: the caller makes one of a
manifest, and raises ValueError for a version that does not fit the settings.

Invariants:
  * *A row is judged and explained by the version that scored it*: `by_version` gives that version whole, or nothing.
    The last VERSIONS_KEPT are there.
  * *A bad version changes nothing*: whatever is wrong with it, it is refused by name, once, and the running one
    stays. A worker that starts takes the highest good one.
  * *Pinned means pinned* (`folder.py`): a worker that was given a version's folder never swaps; one that finds a pin
    takes that version or none.
"""

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import tensorflow as tf

from ebbtide.featurestore.record.layout import Layout
from ebbtide.model.errors import ModelDamaged, ModelError
from ebbtide.model.serving import xla_cache
from ebbtide.model.serving.folder import home_of, is_version, listing, pinned, versions
from ebbtide.model.serving.manifest import Manifest, read_manifest
from ebbtide.model.serving.scorer import START_THREADS, Programs, Scorer

log = logging.getLogger(__name__)

VERSIONS_KEPT = 2
"""The one in service and the one before it: turns in flight as it is swapped, and a way back that needs no loading."""
REFRESH_NICENESS = 5
"""The thread that compiles the next version yields to those that serve the present one."""

P = TypeVar("P")


@dataclass(frozen=True, slots=True, eq=False)
class ServedVersion(Generic[P]):
    """A version with what it takes to judge by it. name, version: as alerts name it."""

    name: str
    version: int
    model: Scorer
    policy: P


class ScorerSlot(Generic[P]):
    """Which version serves. Reading `current` and swapping are atomic: one reference is read or replaced.

    refused: name of a folder -> why it is not served, for what lies there now above the version in service. A version
    is not tried again until its files change (it may have been copied there by hand, and be half there when first
    looked at). trouble: why the last look at the folder came to nothing, empty when it did not.
    """

    def __init__(
        self,
        path: Path,
        layout: Layout,
        policy_of: Callable[[Manifest], P],
        *,
        key: str | None = None,
        programs: Programs | None = None,
        compiled: Path | None = None,
        whole: bool = False,
    ) -> None:
        """Load the version that `path` means. key: signs manifests. programs: compiled already, in this process.
        compiled: XLA's own cache (`xla_cache.py`). whole: in all sizes, else in the first: `widen` adds the others.

        Raises ModelError when there is none that is good: the error of the pinned or the highest one.
        """
        self.refused: dict[str, str] = {}
        self.trouble = ""
        self._layout, self._policy_of, self._key, self._compiled = layout, policy_of, key, compiled
        self._programs: Programs = {} if programs is None else programs
        self._seen: dict[str, frozenset[tuple[str, int, int]]] = {}
        self._fixed = is_version(path)
        self._home = path.parent if self._fixed else home_of(path)
        self._current = self._first(path, whole)
        self._kept = {self._current.version: self._current}

    @property
    def current(self) -> ServedVersion[P]:
        """Take it once a dispatch, and score, judge and explain with what was taken."""
        return self._current

    def by_version(self, version: int) -> ServedVersion[P] | None:
        """The version that scored a row; None when it is not one of the last VERSIONS_KEPT: no other may speak for
        it."""
        return self._kept.get(version)

    def widen(self) -> None:
        """Compile the sizes that the version in service still lacks, one after the other; each is used as it comes.
        Blocks for seconds: call it from a thread that serves nobody, as `refresh`."""
        while self._current.model.missing:
            version = self._current
            try:
                model = _quietly(version.model.wider)
            except Exception as error:  # noqa: BLE001 - it serves in the sizes that it has
                log.warning("no more sizes", extra={"model": version.name, "error": str(error)})
                return
            self._serve(replace(version, model=model))

    def refresh(self) -> bool:
        """Look once whether another version is to serve: the pinned one, else the highest good one above the present.
        Load it, and swap it in. True when it swapped. Blocks for as long as that takes: call it from a thread that
        serves nobody. Raises nothing: what is wrong stands in `refused` and `trouble`, and in the log."""
        try:
            wanted = self._wanted()
        except (OSError, ModelError) as error:
            if str(error) != self.trouble:
                told = {"folder": str(self._home), "error": str(error), "serving": self._current.version}
                log.warning("the folder of models cannot be looked at", extra=told)
            self.trouble = str(error)
            return False
        self.trouble = ""
        for number in wanted:
            if (kept := self._kept.get(number)) is not None:
                self._swap(kept)
                return True
            path = self._home / str(number)
            try:
                files = _files(path)
            except OSError:
                continue  # it is being copied: a file that was listed has gone; the next look sees more
            if self._seen.get(path.name) == files:
                continue
            try:
                loaded = _quietly(lambda path=path: self._load(path, whole=True, threads=1))  # type: ignore[misc]  # bound now
            except ModelError as error:
                self._seen[path.name] = files
                self._refuse(path.name, error)
                continue
            self._swap(loaded)
            return True
        return False

    def _wanted(self) -> list[int]:
        """Versions that should rather serve than the present one, best first."""
        if self._fixed:
            return []
        found = listing(self._home)
        self._name_odd(found.misnamed)
        serving, one = self._current.version, pinned(self._home)
        # A pinned version that is not there is refused for as long as it is pinned.
        present = {*map(str, found.versions), *found.misnamed, str(one)}
        self.refused = {name: why for name, why in self.refused.items() if name in present}
        self._seen = {name: files for name, files in self._seen.items() if name in present}
        if one is not None:
            return [one] if one != serving else []
        return [number for number in reversed(found.versions) if number > serving]

    def _first(self, path: Path, whole: bool) -> ServedVersion[P]:
        if self._fixed:
            return self._load(path, whole, START_THREADS)
        one = pinned(self._home)
        if one is not None:
            return self._load(self._home / str(one), whole, START_THREADS)
        self._name_odd(listing(self._home).misnamed)
        first: ModelError | None = None
        for number in reversed(versions(self._home)):
            version = self._home / str(number)
            try:
                files = _files(version)
                return self._load(version, whole, START_THREADS)
            except ModelError as error:
                self._seen[version.name] = files
                self._refuse(version.name, error)
                first = first or error
            except OSError as error:
                first = first or ModelDamaged(f"model {version} cannot be read: {error}")
                self._refuse(version.name, error)
        raise first or ModelDamaged(f"{self._home} is changing", hint="start again")

    def _load(self, path: Path, whole: bool, threads: int) -> ServedVersion[P]:
        """Raises ModelError, whatever is wrong."""
        try:
            self._policy_of(read_manifest(path))  # before seconds of compiling
            scorer = self._scorer(path, whole, threads)
            policy = self._policy_of(scorer.manifest)
        except ModelError:
            raise
        except ValueError as error:
            said = "; ".join(line.strip() for line in str(error).splitlines() if line)
            raise ModelDamaged(
                f"model {path.parent.name}/{path.name} does not fit the settings: {said}",
                hint="change policy.enter and policy.exit, or train it again",
            ) from error
        except Exception as error:
            raise ModelDamaged(
                f"model {path} cannot be loaded: {error!r}", hint="publish it again"
            ) from error
        return ServedVersion(scorer.manifest.name, scorer.version, scorer, policy)

    def _scorer(self, path: Path, whole: bool, threads: int) -> Scorer:
        load = partial(
            Scorer.load,
            path,
            self._layout,
            key=self._key,
            programs=self._programs,
            whole=whole,
            threads=threads,
        )
        try:
            return load()
        except ModelDamaged as error:
            # It may be the cache that is damaged, and not the model: once more without.
            failed = isinstance(error.__cause__, tf.errors.OpError)
            if not failed or self._compiled is None or not xla_cache.clear(self._compiled):
                raise
            log.warning("compiled programs could not be used and were cleared", extra={"error": str(error)})
            return load()

    def _swap(self, to: ServedVersion[P]) -> None:
        before = self._current.version
        self._serve(to)
        log.info("model swapped", extra={"model": f"{to.name}/{to.version}", "before": before})

    def _serve(self, to: ServedVersion[P]) -> None:
        """From the next dispatch on; a batch under way ends with the one before."""
        others = [each for each in self._kept.values() if each.version != to.version]
        self._kept = {each.version: each for each in (*others[1 - VERSIONS_KEPT :], to)}
        self._current = to
        self.refused = {name: why for name, why in self.refused.items() if not _below(name, to.version)}

    def _refuse(self, name: str, error: Exception) -> None:
        self.refused[name] = str(error)
        told = {"model": f"{self._home.name}/{name}", "error": str(error)}
        log.warning("model refused", extra=told)

    def _name_odd(self, misnamed: tuple[str, ...]) -> None:
        for name in misnamed:
            if name not in self.refused:
                self._refuse(
                    name,
                    ModelDamaged("its name is no version's: rename it to an integer without leading zeros"),
                )


def _below(name: str, version: int) -> bool:
    return name.isascii() and name.isdecimal() and int(name) <= version


def _files(path: Path) -> frozenset[tuple[str, int, int]]:
    """Name, size and time of every file: what changes while a version is still being copied."""
    found = [(file.as_posix(), file.lstat()) for file in path.rglob("*")]
    return frozenset((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)


R = TypeVar("R")


def _quietly(work: Callable[[], R]) -> R:
    """`work()` in a thread of low priority, since compiling takes a core for seconds."""
    done: list[R] = []
    failed: list[BaseException] = []

    def run() -> None:
        if hasattr(os, "setpriority"):
            # On Linux niceness belongs to a thread, and the threads it starts inherit it.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), REFRESH_NICENESS)
        try:
            done.append(work())
        except BaseException as error:  # noqa: BLE001 - carried to the thread that waits, and raised there
            failed.append(error)

    # A daemon: a process that ends does not wait for it.
    thread = threading.Thread(target=run, name="model-loader", daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]
