"""Processes of this machine, one a part.

They are spawned, not forked: the caller may have TensorFlow's threads, and a fork in the middle of one would hang. A
process ends with its work or with ours, whichever is first.
"""

import multiprocessing
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from ebbtide.featurestore.parts.engine import JobFailed, Outcome, Progress, R, T, attempt

EVENTS_A_JOB_MIN = 50_000
"""A process costs some seconds to start: a part of fewer events is sooner folded than started."""


@dataclass(frozen=True, slots=True)
class Processes:
    """`jobs` of them at most; 1 is the caller's own process."""

    jobs: int = 1

    def parts(self, events: int) -> int:
        return min(self.jobs, max(1, events // EVENTS_A_JOB_MIN))

    def map(self, work: Callable[[T], R], items: Sequence[T], progress: Progress = lambda _: None) -> list[R]:
        """A process an item, all at once: whoever calls makes no more items than `parts` says."""
        context = multiprocessing.get_context("spawn")
        running = []
        for item in items:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(theirs, work, item), daemon=True)
            process.start()
            theirs.close()  # so that the end of the process is the end of the pipe
            running.append((process, ours))
        found: list[R] = []
        try:
            for done, (process, ours) in enumerate(running, 1):
                found.append(_answer(process, ours))
                progress(done / len(running))
        finally:
            for process, ours in running:
                ours.close()
                if len(found) < len(running):
                    process.terminate()
                process.join()
        return found


HERE = Processes()


def _answer(process: multiprocessing.process.BaseProcess, ours: Connection) -> Any:
    try:
        outcome: Outcome = ours.recv()
    except EOFError:
        process.join()
        raise JobFailed(
            f"a process that works on a part ended with status {process.exitcode}",
            hint="is there memory for so many? take fewer --jobs",
        ) from None
    return outcome.settled("take --jobs 1 to see where")


def _work(theirs: Connection, work: Callable[[Any], Any], item: Any) -> None:
    """What a process does: no TensorFlow is loaded here."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that was asked
    theirs.send(attempt(work, item))
