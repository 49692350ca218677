"""What a batch says ahead of its step: dead letters, tombstones passed on, scores.

    sent and acknowledged before the partition moves past the records they come from, so nothing is lost by being bad
    alerts go the other way, through the outbox (`stream/pipeline.py`): they follow from the step

It knows what is to be said of one batch, and leaves out what the group's committed offset says was sent
(`stream/suppression.py`). It sends nothing. The invariant: the messages follow from the log and the committed offset
alone, so after a crash the same ones are made again, with the same positions.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.events.event import TOMBSTONE, EventBatch
from ebbtide.featurestore.events.parse import Parsed
from ebbtide.featurestore.record.fold import Points
from ebbtide.stream.batch import FetchedBatch, Record
from ebbtide.stream.outputs.compose import CAUSES
from ebbtide.stream.outputs.dead_letter import UNSCORED, Position, dead_letter_of, propagated_tombstone
from ebbtide.stream.outputs.message import Message
from ebbtide.stream.outputs.scores import score_message
from ebbtide.stream.scoring.batcher import Scored
from ebbtide.stream.suppression import Suppression

UNSCORED_DETAIL = "the model fails for this customer's record; the event is folded"


@dataclass(frozen=True, slots=True)
class Outputs:
    """Topic names. `scores` None: not written."""

    alerts: str
    dead_letters: str
    scores: str | None = None

    @property
    def all(self) -> tuple[str, ...]:
        return tuple(name for name in (self.alerts, self.dead_letters, self.scores) if name)


def unscored(points: Points, scored: Scored, events: EventBatch) -> NDArray[np.int64]:
    """Offsets int64[k], ascending, of the events that brought a point which the model cannot score."""
    return np.unique(events.position[points.event[np.isnan(scored.p)]])


def pre_commit_messages(
    outputs: Outputs, muted: Suppression, batch: FetchedBatch, parsed: Parsed, points: Points, scored: Scored
) -> list[Message]:
    """What has to be acknowledged before the partition moves to `batch.end`."""
    since = muted.outputs_from
    if batch.end <= since:
        return []
    records, events = batch.records, parsed.events
    bad: list[tuple[Record, str, str]] = [
        (records[each.index], each.reason, each.detail) for each in parsed.rejected
    ]
    if len(lost := unscored(points, scored, events)):
        by_offset = {record.offset: record for record in records}
        bad += [(by_offset[offset], UNSCORED, UNSCORED_DETAIL) for offset in lost.tolist()]
    messages = []
    # First, since a batch is cut before a tombstone whose customer it knows: what else it says of them came after.
    for e in np.flatnonzero((events.kind == TOMBSTONE) & (events.position >= since)):
        key = events.customers[events.customer[e]].encode()
        source = Position(batch.topic, batch.partition, int(events.position[e]))
        messages += [propagated_tombstone(key, source, topic=topic) for topic in outputs.all]
    messages += [
        dead_letter_of(
            record,
            Position(batch.topic, batch.partition, record.offset),
            reason,
            detail,
            topic=outputs.dead_letters,
        )
        for record, reason, detail in bad
        if record.offset >= since
    ]
    if outputs.scores is not None:
        offsets = events.position[points.event]
        messages += [
            score_message(
                outputs.scores, events.customers[points.customer[m]], int(points.as_of[m]),
                CAUSES[int(points.cause[m])], scored.p[m], int(scored.version[m]), batch.partition, int(offsets[m]),
            )
            for m in np.flatnonzero(points.scored & ~np.isnan(scored.p) & (offsets >= since))
        ]  # fmt: skip
    return messages
