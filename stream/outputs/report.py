"""What a turn came to, for telemetry: only what was applied counts; what was not is taken again, and counts then."""

from collections import Counter

import numpy as np

from ebbtide.featurestore.events.event import TOMBSTONE
from ebbtide.featurestore.record.fold import CAUSES
from ebbtide.stream.outputs.dead_letter import UNSCORED
from ebbtide.stream.outputs.pre_commit import unscored
from ebbtide.stream.telemetry import PieceDone, Stage, TurnDone
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
    oldest_ms = min((b.records[0].timestamp for _, _, b in told if b is not None and b.records), default=None)
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
        forgotten=int(verdicts.known[work.events.customer[tombstone]].sum()),
        points={CAUSES[cause]: n for cause, n in enumerate(causes.tolist()) if n},
        alerts=dict(Counter(t.kind for t in verdicts.transitions if applied[verdicts.origin.piece[t.point]])),
        seconds=seconds,
        latency_s=None if oldest_ms is None else (now_ms - oldest_ms) / 1000,
    )  # fmt: skip
