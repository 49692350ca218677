"""Which version serves, and how the next one takes its place without a pause.

    Watcher thread:  folder ─▶ newer version? ─▶ verify ─▶ load ─▶ warm (seconds) ─┐
    ScorerSlot:      ════════════ version 3 ═══════════════════════════════════════╪═ version 4 ═══▶
    scoring thread:   [batch]   [batch]      [batch]   [batch]     [batch] [batch]   [batch]

It knows versions and threads; it knows nothing of what a score means. Two invariants: *a batch is scored by
one version* (whoever dispatches takes `slot.current` once, for scores and reasons alike), and *a bad version
changes nothing* (it is refused by name, once, and the running one stays until a still newer one appears).
"""

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

from model.artifact import versions
from model.errors import ModelError
from model.scorer import Scorer

log = logging.getLogger("ebbtide.model")

WATCH_NICENESS = 10
"""The thread that compiles the next version yields to those that serve the present one."""


class ScorerSlot:
    """Holds the scorer in use. Reading `current` and `swap` are atomic: one reference is read or replaced."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    @property
    def current(self) -> Scorer:
        """Take it once a dispatch, and score and explain with what was taken."""
        return self._scorer

    def swap(self, scorer: Scorer) -> Scorer:
        """Serve a warm `scorer` from the next dispatch on. Returns the one before; a batch under way ends with it."""
        before, self._scorer = self._scorer, scorer
        return before


class Watcher:
    """Looks for versions newer than the one in the slot, loads and warms them in its own thread, and swaps them in.

    home: the model's folder, whose children are versions. load: path -> a *warm* scorer, e.g.
    `partial(Scorer.ready, layout=layout)`. refused: version -> why it was refused; a refused version is not
    tried again.
    """

    def __init__(self, slot: ScorerSlot, home: Path, load: Callable[[Path], Scorer]) -> None:
        self.slot = slot
        self.home = home
        self.refused: dict[int, str] = {}
        self._load = load
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def look(self) -> bool:
        """One look: try newer versions, latest first, until one serves. True when the slot was swapped."""
        for version in reversed(versions(self.home)):
            if version <= self.slot.current.version:
                return False
            if version in self.refused:
                continue
            try:
                scorer = self._load(self.home / str(version))
            except ModelError as error:
                self.refused[version] = str(error)
                told = {"model": f"{self.home.name}/{version}", "error": str(error)}
                log.warning("model refused", extra={**told, "serving": self.slot.current.version})
                continue
            before = self.slot.swap(scorer)
            log.info("model swapped", extra={"model": scorer.manifest.title, "before": before.version})
            return True
        return False

    def start(self, every_s: float) -> None:
        """Look every `every_s` seconds in a thread of low priority, until `stop`."""
        self._thread = threading.Thread(
            target=self._watch, args=(every_s,), name="model-watcher", daemon=True
        )
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Ask the thread to end and wait for it, at most `timeout_s`: a version being compiled is not waited for."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _watch(self, every_s: float) -> None:
        if hasattr(os, "setpriority"):
            # On Linux a thread has its own niceness; threads that it starts inherit it.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), WATCH_NICENESS)
        while not self._stopped.wait(every_s):
            try:
                self.look()
            except OSError as error:
                log.warning(
                    "model folder not readable", extra={"folder": self.home.name, "error": str(error)}
                )
