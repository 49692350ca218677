"""A log as it may be learned from: what its customers had forgotten is not in it, nor what is dated far ahead of all
others, and where what is known ends is said.

It knows events and times; it loads no TensorFlow.
"""

from dataclasses import dataclass

from ebbtide.featurestore.errors import SpecError
from ebbtide.featurestore.events.event import EventBatch
from ebbtide.featurestore.events.known import known_until
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.record.replay import before, remembered
from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.featurestore.times.timestamps import format_time
from ebbtide.model.examples.sample import SNAPSHOTS_A_HORIZON


@dataclass(frozen=True, slots=True)
class Known:
    """The log as it may be learned from, `until_ms` (not included) the end of what is known; `beyond`: events left out,
    dated far ahead of all others."""

    log: EventBatch
    until_ms: int
    beyond: int


def known_log(layout: Layout, log: EventBatch, labels_until_ms: int | None) -> Known:
    """The log without what its customers had forgotten and without events dated far ahead of all others, known up to
    `labels_until_ms` or, by default, to just after its last event. Raises SpecError: no event, or labels asked for from
    beyond the log's end, which would take everybody's silence there for churn."""
    log = remembered(log, layout.spec)
    if not len(log):
        raise SpecError("the log has no event", hint="check --events and the mapping of the spec")
    end = known_until(log.time)
    within = before(log, end)
    # A little beyond is how an export is dated: to the midnight after its last event.
    slack = min(DAY_MS, layout.spec.horizon_ms // SNAPSHOTS_A_HORIZON)
    if labels_until_ms is not None and labels_until_ms > end + slack:
        raise SpecError(
            f"labels are asked for until {format_time(labels_until_ms)}, but the log is known until "
            f"{format_time(end)} only: whoever is silent in between would be taken for gone",
            hint="leave --labels-until out, or give a date within the log",
        )
    return Known(within, end if labels_until_ms is None else labels_until_ms, len(log) - len(within))
