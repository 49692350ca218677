"""Where a topic goes on after a file: the first record that the file does not hold, in each partition.

    file      ══════════════════════════╗ until: its end, by arrival
    log       begin · · · · · · · · · · ║ ▶ first record with a timestamp from then on ─ ─ ─ ▶ end
    or             (retention) ╳ ╳ ╳ ╳ ╳║╳ ╳ ╳ begin ─ ─ ─ ▶     a gap: nobody has what lay there

Arrival is Kafka's timestamp of a record, and the file's `arrival` column, or its times where none is mapped. The offset
is the *first* whose record is that late, so nothing behind the file's end is passed over, in whatever order the
timestamps are; what lies behind it and had arrived before is in the file, and the checkpoint says so (`History`).

It knows times and offsets; it refuses to ask Kafka, and to fold.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.events.known import known_until
from ebbtide.featurestore.files.event_log import EventLog
from ebbtide.featurestore.record.replay import before
from ebbtide.featurestore.store.checkpoint import History
from ebbtide.featurestore.times.timestamps import format_time
from ebbtide.ops.errors import OpsError
from ebbtide.stream.kafka.reader import LogAt


class Junction(NamedTuple):
    """One partition: the stream goes on at `offset`; `history` is what the file held of what lies there."""

    offset: int
    history: History


@dataclass(frozen=True, slots=True)
class FilePart:
    """What is taken of a file. events: in arrival order. known_ms: the times of its events end here, ms UTC. until_ms:
    what arrived before this is in it, ms UTC. outliers: events left out since they lie beyond all that is known."""

    events: EventBatch
    known_ms: int
    until_ms: int
    outliers: int


class Gap(NamedTuple):
    """Records of `partition` that arrived from `from_ms` to `to_ms` (None: until now) are neither in the file nor in
    the log. Times in ms UTC."""

    partition: int
    from_ms: int
    to_ms: int | None

    def words(self) -> str:
        end = "now" if self.to_ms is None else format_time(self.to_ms)
        return f"partition {self.partition}: {format_time(self.from_ms)} to {end}"


def part_of(log: EventLog, until_ms: int | None) -> FilePart:
    """The file up to its end, or up to `until_ms` (ms UTC) where that comes first; one event with a wrong date moves
    neither (`events/known.py`). Raises OpsError where nothing of it arrived by then."""
    arrived_ms = known_until(log.arrival)
    if until_ms is not None:
        arrived_ms = min(arrived_ms, until_ms)
    n = int(np.searchsorted(log.arrival, arrived_ms, side="left"))
    if until_ms is not None and len(log) and not n:
        raise OpsError(
            f"nothing of the file arrived before {format_time(until_ms)}: it begins at"
            f" {format_time(int(log.arrival[0]))}",
            hint="give --until a later date, or leave it out",
        )
    arrived = log.events.take(slice(n))
    known_ms = known_until(arrived.time)
    events = before(arrived, known_ms)
    outliers = len(arrived) - len(events)
    if until_ms is None:
        outliers += len(log) - n
    return FilePart(events, known_ms, arrived_ms, outliers)


def junctions_of(found: Mapping[int, LogAt], until_ms: int) -> tuple[dict[int, Junction], list[Gap]]:
    """By partition where the stream goes on after a file that ends at `until_ms` (by arrival, ms UTC), and what is lost
    in between. `found`: what Kafka says of each at that time."""
    junctions = {p: Junction(at.offset, History(until_ms, at.end)) for p, at in found.items()}
    gaps = [
        Gap(p, until_ms, at.begin_ms)
        for p, at in sorted(found.items())
        # Something was deleted, and what is left begins after the file's end.
        if at.begin > 0 and at.offset == at.begin and (at.begin_ms is None or at.begin_ms > until_ms)
    ]
    return junctions, gaps
