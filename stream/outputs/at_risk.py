"""Who is at risk, as the store lists them with each commit: whose last score is high enough, and who has not left.

A list holds one number a customer, the highest p of all targets. So whoever is at risk by any of them is in it, and of
no target a p is above that number: read from the top, it has the highest p of each target, too.

A function of the records and the policy alone, so a state that is made again lists the same customers.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.record.layout import Rows
from ebbtide.stream.decision.rules import Rules


def floors(targets: Sequence[Rules], at_risk_from: float | None) -> tuple[float, ...]:
    """By target the p from which on a customer is listed: at_risk_from, or where that is None the policy's `exit`."""
    return tuple(rules.exit if at_risk_from is None else at_risk_from for rules in targets)


def at_risk(rows: Rows, floors: Sequence[float]) -> NDArray[np.float32]:
    """float32[n]: the highest p of each record's targets as of its last decision, NaN of who is not at risk by any:
    below the floor of each, never scored, gone."""
    score = rows["score"]
    high = (score >= np.asarray(floors, np.float32)).any(axis=1)
    listed = high & (rows["scored_at"] > 0) & (rows["terminated_at"] == 0)
    return np.where(listed, score.max(axis=1), np.float32(np.nan))
