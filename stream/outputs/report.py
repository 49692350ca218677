"""What a turn came to, for telemetry: only what was applied counts; what was not is taken again, and counts then."""

from bisect import bisect_left
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.events.event import TOMBSTONE
from ebbtide.featurestore.record.fold import CAUSES, EVENT, EXPIRED
from ebbtide.stream.batch import Record, first_timestamp
from ebbtide.stream.decision.policy import Transition
from ebbtide.stream.outputs.dead_letter import UNSCORED
from ebbtide.stream.outputs.pre_commit import unscored
from ebbtide.stream.telemetry import AlertSent, Judged, PieceDone, Stage, TurnDone
from ebbtide.stream.turn.work import Verdicts


def report(verdicts: Verdicts, seconds: dict[Stage, float], now_ms: int) -> TurnDone:
    """Of the pieces that were applied, all together. `seconds` by stage; `now_ms`: when the last was acknowledged."""
    work, k = verdicts.work, len(verdicts.work.pieces)
    applied = np.array([j in work.applied for j in range(k)])
    records, events = np.diff(work.first), np.bincount(work.piece, minlength=k)
    rejected = np.bincount(work.rejected, minlength=k) if work.rejected else np.zeros(k, np.int64)
    reasons = Counter(
        str(each.reason) for each, j in zip(work.parsed.rejected, work.rejected, strict=True) if applied[j]
    )
    if lost := int(applied[work.piece[unscored(verdicts)]].sum()):
        reasons[UNSCORED] = lost
    causes = np.bincount(verdicts.points.cause[applied[verdicts.origin.piece]], minlength=len(CAUSES))
    tombstone = applied[work.piece] & (work.events.kind == TOMBSTONE)
    told = [(j, piece, piece.batch) for j, piece in enumerate(work.pieces) if applied[j]]
    firsts = [first_timestamp(batch.records) for _, _, batch in told if batch is not None]
    oldest_ms = min((first for first in firsts if first is not None), default=None)
    return TurnDone(
        pieces=[
            PieceDone(
                piece.opened.partition, batch.end, int(records[j]), int(rejected[j]),
                None if batch.log_end < 0 else max(batch.log_end - batch.end, 0),
            )
            for j, piece, batch in told if batch is not None
        ],
        records=int(records[applied].sum()),
        events=int(events[applied].sum()),
        rejected=dict(reasons),
        ignored=int((records - rejected - events)[applied].sum()),
        late=verdicts.counts.late, duplicates=verdicts.counts.duplicates,
        behind_watermark=verdicts.counts.behind_watermark, misplaced=work.misplaced,
        tombstones=int(tombstone.sum()),
        # A batch is cut before a tombstone whose customer it has events of: what it deletes was there before.
        forgotten=int(verdicts.known[work.events.customer[tombstone]].sum())
        + sum(n for j, n in work.erased.items() if applied[j]),
        due=sum(piece.customers_due for j, piece in enumerate(work.pieces) if applied[j]),
        expired=int(causes[EXPIRED]), expired_bytes=int(causes[EXPIRED]) * verdicts.after.itemsize,
        points={CAUSES[cause]: n for cause, n in enumerate(causes.tolist()) if n},
        held=dict(Counter(str(t.held) for t in verdicts.held if applied[verdicts.origin.piece[t.point]])),
        seconds=seconds,
        latency_s=None if oldest_ms is None else (now_ms - oldest_ms) / 1000,
        sent=_sent(verdicts, applied, now_ms),
        judged=_judged(verdicts, applied, now_ms),
    )  # fmt: skip


def _sent(verdicts: Verdicts, applied: NDArray[np.bool_], now_ms: int) -> list[AlertSent]:
    """Few of many points are alerts: one by one."""
    points, origin, scored, pieces = verdicts.points, verdicts.origin, verdicts.scored, verdicts.work.pieces
    sent: list[AlertSent] = []
    for t in verdicts.transitions:
        piece = pieces[origin.piece[t.point]]
        if not applied[origin.piece[t.point]]:
            continue
        offset = int(origin.offset[t.point])
        record = record_of(verdicts, t)
        arrived_ms = None if record is None else record.timestamp
        sent.append(
            AlertSent(
                t.state, scored.serving.policy.targets[t.target].band(t.band).name, CAUSES[int(points.cause[t.point])],
                float(scored.of(t.point, t.target)) if points.scored[t.point] else None, scored.serving.version,
                piece.opened.partition, offset, None if arrived_ms is None else (now_ms - arrived_ms) / 1000,
                (now_ms - int(points.as_of[t.point])) / 1000,
            )
        )  # fmt: skip
    return sent


def record_of(verdicts: Verdicts, transition: Transition) -> Record | None:
    """The record that a transition was decided at; None of what time brought about, which is of an activity of long
    ago, and where its piece has none there."""
    point, piece = transition.point, verdicts.work.pieces[verdicts.origin.piece[transition.point]]
    if verdicts.points.of_time[point] or piece.batch is None:
        return None
    records, offset = piece.batch.records, int(verdicts.origin.offset[point])
    at = bisect_left(records, offset, key=lambda record: record.offset)
    return records[at] if at < len(records) and records[at].offset == offset else None


def _judged(verdicts: Verdicts, applied: NDArray[np.bool_], now_ms: int) -> Judged:
    points, p = verdicts.points, verdicts.scored.primary
    told = points.scored & ~np.isnan(p) & applied[verdicts.origin.piece]
    at_events = told & (points.cause == EVENT)
    return Judged(verdicts.scored.serving.version, p[told], (now_ms - points.as_of[at_events]) / 1000)
