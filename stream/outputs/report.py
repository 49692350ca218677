"""What a turn came to, for telemetry: only what was applied counts; what was not is taken again, and counts then."""

from bisect import bisect_left
from collections import Counter

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.events.event import TOMBSTONE
from ebbtide.featurestore.record.fold import CAUSES, EVENT, EXPIRED
from ebbtide.stream.batch import Record, first_timestamp
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
    points, origin, scored, pieces = verdicts.points, verdicts.origin, verdicts.scored, verdicts.work.pieces
    chosen = np.array([t.point for t in verdicts.transitions], np.int64)
    is_scored, causes = points.scored[chosen].tolist(), points.cause[chosen].tolist()
    ages_s = ((now_ms - points.as_of[chosen]) / 1000).tolist()
    at, offsets = origin.piece[chosen].tolist(), origin.offset[chosen].tolist()
    told, targets = applied.tolist(), scored.serving.policy.targets
    sent: list[AlertSent] = []
    for n, (t, record) in enumerate(zip(verdicts.transitions, records_of(verdicts), strict=True)):
        if told[at[n]]:
            arrived_ms = None if record is None else record.timestamp
            sent.append(
                AlertSent(
                    t.state, targets[t.target].band(t.band).name, CAUSES[causes[n]],
                    float(scored.of(t.point, t.target)) if is_scored[n] else None, scored.serving.version,
                    pieces[at[n]].opened.partition, offsets[n],
                    None if arrived_ms is None else (now_ms - arrived_ms) / 1000, ages_s[n],
                )
            )  # fmt: skip
    return sent


def records_of(verdicts: Verdicts) -> list[Record | None]:
    """The record that each transition was decided at; None of what time brought about, which is of an activity of long
    ago, and where its piece has none there."""
    of_time, origin, pieces = verdicts.points.of_time, verdicts.origin, verdicts.work.pieces
    found: list[Record | None] = []
    for t in verdicts.transitions:
        batch = None if of_time[t.point] else pieces[origin.piece[t.point]].batch
        if batch is None:
            found.append(None)
            continue
        records, offset = batch.records, int(origin.offset[t.point])
        at = bisect_left(records, offset, key=lambda record: record.offset)
        found.append(records[at] if at < len(records) and records[at].offset == offset else None)
    return found


def _judged(verdicts: Verdicts, applied: NDArray[np.bool_], now_ms: int) -> Judged:
    points, p = verdicts.points, verdicts.scored.primary
    told = points.scored & ~np.isnan(p) & applied[verdicts.origin.piece]
    at_events = told & (points.cause == EVENT)
    return Judged(verdicts.scored.serving.version, p[told], (now_ms - points.as_of[at_events]) / 1000)
