"""A log folded from end to end, for a notebook: what was known of whom, and when they came up for a decision.

    Arrow table, EventLog or EventBatch ──one fold──▶ FoldedLog: points, and the record of each customer at the end

The fold, the validation and the records are the service's own. It knows no model; pyarrow is needed for tables alone.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.events.known import known_until
from ebbtide.featurestore.files.event_log import EventLog
from ebbtide.featurestore.files.reader import read_log
from ebbtide.featurestore.record.fold import Points
from ebbtide.featurestore.record.layout import Layout, Rows
from ebbtide.featurestore.record.replay import replay, state_at
from ebbtide.featurestore.spec import Spec, load_spec

OWN_COLUMNS = ["user_id", "kind", "time", "arrival", "value", "event_id", "position"]
"""Of a table that `EventLog.to_arrow` made: read already, and checked."""


@dataclass(frozen=True)
class FoldedLog:
    """A folded log.

    layout: of the records; `layout.dtype` names their fields     events: what was folded, in arrival order
    until_ms: where the fold ended, ms UTC, not included
    points: every decision point, and a snapshot of each eligible customer as of each date asked for; `points.customer`
            is an index into `customers`, `points.cause` is worded by `record.replay.CAUSES`
    """

    layout: Layout
    events: EventBatch
    until_ms: int
    points: Points

    @property
    def customers(self) -> list[str]:
        """The m customers' ids, in order of first appearance."""
        return self.events.customers

    @cached_property
    def rows(self) -> Rows:
        """records[m]: what a store would hold of each customer; zero bytes for whom it has forgotten."""
        return state_at(self.layout, self.events, self.until_ms)


def fold_log(
    log: "EventLog | EventBatch | Any",
    spec: Spec | Path | str,
    *,
    until: datetime | None = None,
    snapshots: Sequence[datetime] = (),
) -> FoldedLog:
    """Fold a whole log under a spec.

        folded = fold_log(read_log("events.csv.gz", "spec.yaml"), "spec.yaml")
        folded.points.rows["activity_count"], folded.points.as_of

    log: as `read_log` gives it; or a pyarrow Table, either `log.to_arrow()` or some rows of it, or events as a file has
    them, with the columns that the spec's mapping names, in any order of time. until: fold what arrived before, and
    take the silences due before; default: just after the last event, one far ahead of all others not counted.
    snapshots: dates before it, each with a point for every eligible customer. Times without a zone are an error. Holds
    one record a point: some KiB times ten points an event.

    Raises SpecError when the table does not fit the spec, ValueError for a time without a zone.
    """
    layout = Layout(spec if isinstance(spec, Spec) else load_spec(spec))
    events = _events(log, layout.spec)
    until_ms = known_until(events.time) if until is None else _ms(until)
    dates = [_ms(date) for date in snapshots]
    points = Points.joined(layout, list(replay(layout, events, until_ms, snapshots=dates)))
    return FoldedLog(layout, events, until_ms, points)


def _events(log: object, spec: Spec) -> EventBatch:
    if isinstance(log, EventBatch):
        return log
    if isinstance(log, EventLog):
        return log.events
    import pyarrow as pa  # noqa: PLC0415 - for tables alone
    from pyarrow import parquet  # noqa: PLC0415 - for tables alone

    if not isinstance(log, pa.Table):
        raise SpecError(
            f"{type(log).__name__} is no log",
            hint="read_log a file, or give a pyarrow Table: pa.table(frame)",
        )
    if [name for name in log.column_names if not name.startswith("value_")] == OWN_COLUMNS:
        return EventLog.from_arrow(log).events
    # As the Parquet file that it would be, so that there is one reader and one set of rules.
    with tempfile.TemporaryDirectory(prefix="ebbtide-") as folder:
        path = Path(folder) / "table.parquet"
        parquet.write_table(log, path, compression="none")
        return read_log(path, spec).events


def _ms(time: datetime) -> int:
    if time.tzinfo is None:
        raise ValueError(f"{time} has no time zone: say datetime(..., tzinfo=UTC)")
    return round(time.timestamp() * 1000)
