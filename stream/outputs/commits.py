"""What a turn applies: by piece one commit, of records, due times, alerts and the checkpoint that they lead to.

Pure: the same verdicts make the same commits, but for the hour that has begun, which never runs ahead of the wall.
"""

import numpy as np

from ebbtide.featurestore.store.checkpoint import Stretch
from ebbtide.featurestore.store.commit import Commit
from ebbtide.stream.outputs.at_risk import at_risk, floors
from ebbtide.stream.turn.work import Verdicts


def commits_of(verdicts: Verdicts, at_risk_from: float | None, now_ms: int) -> dict[int, Commit]:
    """By piece that is still in the turn. at_risk_from: the p from which on customers are listed as at risk, None: the
    policy's `exit`. now_ms: wall time, ms UTC."""
    work, after = verdicts.work, verdicts.after
    known = after["event_time"] != 0
    all_known = bool(known.all())
    due = verdicts.due
    risks = at_risk(after, floors(verdicts.scored.serving.policy.targets, at_risk_from))
    customers, bounds = work.events.customers, work.bounds.tolist()
    commits: dict[int, Commit] = {}
    for j in work.alive:
        opened, piece = work.pieces[j].opened, work.pieces[j]
        low, high = bounds[j], bounds[j + 1]
        names, rows, dues, p = customers[low:high], after[low:high], due[low:high], risks[low:high]
        forgotten: list[str] = []
        if not all_known:
            here = known[low:high]
            forgotten = [names[i] for i in np.flatnonzero(~here).tolist()]
            names = [names[i] for i in np.flatnonzero(here).tolist()]
            rows, dues, p = rows[here], dues[here], p[here]
        checkpoint = opened.checkpoint
        epoch = -1 if piece.batch is None else piece.batch.leader_epoch
        volume = opened.counted(piece.batch, now_ms)
        checkpoint = checkpoint._replace(
            offset=piece.end,
            sequence=checkpoint.sequence + 1,
            leader_epoch=checkpoint.leader_epoch if epoch < 0 else epoch,
            budget=verdicts.spent[j],
            hour=volume.hour,
        ).at_timers(piece.timers)
        if piece.batch is not None and not piece.sends_outputs:
            start, end = piece.batch.start, piece.batch.end
            silent = checkpoint.silent or Stretch(start, start)
            checkpoint = checkpoint._replace(silent=silent.grown(start, end))
        commits[j] = Commit(
            opened.partition, opened.stored, checkpoint, names, rows, dues, forgotten,
            verdicts.alerts.get(j, []), opened.acked, p,
            None if volume.ended is opened.hours else volume.ended,
        )  # fmt: skip
    return commits
