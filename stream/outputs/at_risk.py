"""Who is at risk, as the store lists them with each commit: whose last score is high enough, and who has not left.

A function of the records alone, so a state that is made again lists the same customers.
"""

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.record.layout import Rows


def at_risk(rows: Rows, floor: float) -> NDArray[np.float32]:
    """float32[n]: p of the spec's first target as of each record's last decision, NaN of who is not at risk: below
    `floor`, never scored, gone."""
    score = rows["score"][:, 0]
    listed = (rows["scored_at"] > 0) & (score >= floor) & (rows["terminated_at"] == 0)
    return np.where(listed, score, np.float32(np.nan))
