"""A whole log through the fold: history as the service would have lived it.

It knows a log that fits in memory as columns, in arrival order; it holds one record a customer and works through the
log in chunks, so that what it needs beyond the log is the state and the points of one chunk. It refuses to know what a
label or a model is. The invariant: after the same events the rows are the same bytes as a live store's, and the points
are the same points, because there is one fold and it does not depend on how the log is cut.

What was known as of t is a *prefix* of the log in arrival order: everything that arrived before the first event later
than t. An event that came late is therefore not known in a snapshot that lies before its arrival, as in service.

    rows as of t      state_at(layout, log, t + 1)                 "t" itself has happened
    decision points   for points in replay(layout, log, until)     ends with the silences due before `until`
    snapshots         replay(..., snapshots=(t, ...))              and each eligible customer once as of each t
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.customer import first_of
from ebbtide.featurestore.events.event import TOMBSTONE, EventBatch
from ebbtide.featurestore.record import fold
from ebbtide.featurestore.record.fold import Folder, Points
from ebbtide.featurestore.record.layout import Layout, Rows
from ebbtide.featurestore.spec import Spec

SNAPSHOT = 6
"""Cause of a point that a stated date brought about, not the customer; beside the causes of `fold`."""
CAUSES = {**fold.CAUSES, SNAPSHOT: "snapshot"}
"""A point's cause in words."""
CHUNK_EVENTS = 65_536
"""Events folded at once: tens of megabytes of points for a schedule of 15 silences, and no time lost to Python."""


def replay(
    layout: Layout,
    log: EventBatch,
    until_ms: int,
    *,
    snapshots: Sequence[int] = (),
    chunk: int = CHUNK_EVENTS,
    reached: NDArray[np.int64] | None = None,
) -> Iterator[Points]:
    """All points of a log before `until_ms`, chunk by chunk; `customer` is the index into `log.customers`.

    A customer's decision points come in the order in which they were decided. `event` is the index into the log, -1
    for a silence after the customer's last event and for snapshots. `snapshots`: times in ms UTC; those before
    `until_ms` give a point of cause SNAPSHOT for every customer eligible then. `chunk` bounds the events and the
    customers taken at once (>= 1); the points do not depend on it. `reached`: int64[n], `reached_ms` of a larger log of
    which this is the part of some customers (`only`), so that the parts stop where the whole would; default: its own.
    """
    folder, rows = Folder(layout), layout.empty(len(log.customers))
    reached = reached_ms(log) if reached is None else reached
    start = 0
    for as_of in sorted({int(t) for t in snapshots if t < until_ms}):
        end = int(np.searchsorted(reached, as_of + 1, side="left"))
        yield from _fold_chunks(folder, rows, log, start, end, chunk)
        yield from _snapshot(folder, rows, as_of, chunk)
        start = end
    end = int(np.searchsorted(reached, until_ms, side="left"))
    yield from _fold_chunks(folder, rows, log, start, end, chunk)
    for first in range(0, len(rows), chunk):
        part = slice(first, first + chunk)
        rows[part], points = folder.elapse(rows[part], until_ms)
        yield replace(points, customer=points.customer + np.int32(first))


def state_at(
    layout: Layout,
    log: EventBatch,
    before_ms: int,
    *,
    chunk: int = CHUNK_EVENTS,
    reached: NDArray[np.int64] | None = None,
) -> Rows:
    """Rows of all `log.customers` after every event that arrived before `before_ms`; unseen customers are zero bytes.
    `reached`: as in `replay`.

    Silences not followed by an event are left untaken, as in a store whose timers have not run.
    """
    rows = layout.empty(len(log.customers))
    reached = reached_ms(log) if reached is None else reached
    end = int(np.searchsorted(reached, before_ms, side="left"))
    for _ in _fold_chunks(Folder(layout), rows, log, 0, end, chunk):
        pass
    return rows


def arrived_before(log: EventBatch, before_ms: int) -> int:
    """How many events, from the log's start, had arrived when the first one of `before_ms` or later came."""
    return int(np.searchsorted(reached_ms(log), before_ms, side="left"))


def reached_ms(log: EventBatch) -> NDArray[np.int64]:
    """int64[n], ms UTC, never decreasing: the latest event time that had arrived with each event."""
    return np.maximum.accumulate(log.time)


def only(log: EventBatch, customers: NDArray[np.bool_]) -> EventBatch:
    """The log of some customers: bool[m] over `log.customers`, whose indices stay as they are."""
    return log.take(customers[log.customer])


def before(log: EventBatch, end_ms: int) -> EventBatch:
    """The log without events of `end_ms` or later, wherever they stand in it."""
    return log.take(log.time < end_ms)


def remembered(log: EventBatch, spec: Spec) -> EventBatch:
    """The log without what its customers had forgotten: no event up to a customer's last tombstone is left, of theirs
    or of their first part."""
    last = np.full(len(log.customers), -1, np.int64)
    tombstones = np.flatnonzero(log.kind == TOMBSTONE)
    last[log.customer[tombstones]] = tombstones  # ascending, so the last one stays
    if spec.customer is not None and len(tombstones):
        number = {name: i for i, name in enumerate(log.customers)}
        firsts = [number.get(first_of(name), i) for i, name in enumerate(log.customers)]
        last = np.maximum(last, last[firsts])
    return log.take(np.arange(len(log)) > last[log.customer])


def _fold_chunks(
    folder: Folder, rows: Rows, log: EventBatch, start: int, end: int, chunk: int
) -> Iterator[Points]:
    """Fold events [start, end) into `rows`, in place; points with the customers and events of the whole log."""
    for first in range(start, end, chunk):
        part = slice(first, min(first + chunk, end))
        touched, local = np.unique(log.customer[part], return_inverse=True)
        customers = [log.customers[i] for i in touched]
        events = replace(log.take(part), customers=customers, customer=local.astype(np.int32))
        rows[touched], points = folder.fold(rows[touched], events)
        event = np.where(points.event >= 0, points.event + np.int32(first), points.event)
        yield replace(
            points, customer=touched[points.customer].astype(np.int32), event=event.astype(np.int32)
        )


def _snapshot(folder: Folder, rows: Rows, as_of: int, chunk: int) -> Iterator[Points]:
    for first in range(0, len(rows), chunk):
        part = rows[first : first + chunk]
        chosen = np.flatnonzero((part["last_seen"] != 0) & folder.eligible(part, as_of))
        n = len(chosen)
        yield Points(
            part[chosen],
            (chosen + first).astype(np.int32),
            np.full(n, as_of, np.int64),
            np.full(n, SNAPSHOT, np.uint8),
            np.full(n, -1, np.int32),
        )
