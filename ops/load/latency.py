"""Latencies from when an event *should* have been sent, so that a service that holds up its load cannot hide it.

    coordinated omission: a generator that waits for a slow answer sends less, and measures only what it sent

Here the schedule is made before the first event, an event's own time is its place in the schedule, and a decision says
as of which event it was made. So what was sent late counts as late, and what never came back is counted, too.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SHARES = (0.5, 0.9, 0.99, 0.999)


class Latency(NamedTuple):
    """Of n answers, ms: by share of them, and the worst. NaN without any."""

    n: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float
    max_ms: float


def latency(seconds: Sequence[float]) -> Latency:
    """Of latencies in seconds, in any order."""
    if not len(seconds):
        return Latency(0, math.nan, math.nan, math.nan, math.nan, math.nan)
    ms = np.sort(np.asarray(seconds, np.float64)) * 1000
    # The smallest value that at least this share lies at or below: no interpolation between two answers.
    ranks = [min(max(int(np.ceil(share * len(ms))) - 1, 0), len(ms) - 1) for share in SHARES]
    p50, p90, p99, p999 = (round(float(ms[rank]), 3) for rank in ranks)
    return Latency(len(ms), p50, p90, p99, p999, round(float(ms[-1]), 3))
