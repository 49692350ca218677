"""A log's points gathered by several processes, each with the customers of one hash: the same bytes as by one.

    log ──hash of the customer's id──▶ part 0 ─▶ process ─gather─▶ ┐
                                       part 1 ─▶ process ─gather─▶ ├─merged─▶ Gathered
                                       …                           ┘

Customers share nothing in the fold, and what is kept of them is chosen by a hash of each point, so how they are dealt
out shows in nothing but the time it takes. Processes are spawned, not forked: the caller may have TensorFlow's threads,
and a fork in the middle of one would hang. A process ends with its work or with ours, whichever is first.
"""

import multiprocessing
import signal
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.hashing import hash_texts
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.record.replay import reached_ms
from ebbtide.featurestore.spec import Spec
from ebbtide.model.errors import ModelError
from ebbtide.model.examples.sample import Gathered, Part, Wanted, gather, merged

EVENTS_A_JOB_MIN = 50_000
"""A process costs some seconds to start: a part of fewer events is sooner folded than started."""


class JobFailed(ModelError):
    """A process that gathers examples ended without them."""


def gather_by(
    jobs: int, layout: Layout, log: EventBatch, wanted: Wanted, progress: Callable[[float], None]
) -> Gathered:
    """`gather` of the whole log by `jobs` processes, by this one if 1 or the log is small. Raises JobFailed."""
    jobs = min(jobs, max(1, len(log) // EVENTS_A_JOB_MIN))
    if jobs == 1:
        return gather(layout, Part.whole(log), wanted, progress)
    return merged(layout, _in_processes(parts_of(log, jobs), layout.spec, wanted, progress), wanted)


def parts_of(log: EventBatch, jobs: int) -> list[Part]:
    """The log in `jobs` parts by a hash of the customers' ids."""
    part_of = (hash_texts(log.customers) % np.uint64(jobs)).astype(np.int64)
    reached = reached_ms(log)
    return [_part(log, np.flatnonzero(part_of == number), reached) for number in range(jobs)]


def _part(log: EventBatch, customers: NDArray[np.int64], reached: NDArray[np.int64]) -> Part:
    local = np.full(len(log.customers), -1, np.int32)
    local[customers] = np.arange(len(customers), dtype=np.int32)
    keep = local[log.customer] >= 0
    names = [log.customers[i] for i in customers.tolist()]
    events = replace(log.take(keep), customers=names, customer=local[log.customer[keep]])
    return Part(events, customers.astype(np.int32), reached[keep])


def _in_processes(
    parts: list[Part], spec: Spec, wanted: Wanted, progress: Callable[[float], None]
) -> list[Gathered]:
    context = multiprocessing.get_context("spawn")
    running = []
    for part in parts:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(theirs, spec, part, wanted), daemon=True)
        process.start()
        theirs.close()  # so that the end of the process is the end of the pipe
        running.append((process, ours))
    found: list[Gathered] = []
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


def _answer(process: multiprocessing.process.BaseProcess, ours: Connection) -> Gathered:
    try:
        answer = ours.recv()
    except EOFError:
        process.join()
        raise JobFailed(
            f"a process that gathers examples ended with status {process.exitcode}",
            hint="is there memory for so many? take fewer --jobs",
        ) from None
    if isinstance(answer, Gathered):
        return answer
    raise JobFailed("a process that gathers examples failed", hint="take --jobs 1 to see where") from answer


def _work(theirs: Connection, spec: Spec, part: Part, wanted: Wanted) -> None:
    """What a process does: no TensorFlow is loaded here."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that was asked
    try:
        theirs.send(gather(Layout(spec), part, wanted))
    except Exception as error:  # noqa: BLE001 - carried to the process that waits, and raised there
        theirs.send(error)
