"""Where what a log knows ends.

The end decides which silences are confirmed, so one event with a wrong date must not move it: as the end, it would turn
everybody into a churner. It is just after the last event that is not followed by a pause such as the log has never had,
and then by next to nothing:

    ● ●● ● ●●● ●● ●●● ●●│                                                  ●
                         └ known until here; what lies beyond is an outlier ┘

The rule reads the events' times and nothing else, no clock of any machine.
"""

import numpy as np
from numpy.typing import NDArray

from ebbtide.featurestore.times.durations import DAY_MS

EVENTS_PER_OUTLIER = 1_000
"""Of so many events one may be an outlier; more than that are news and no mistake."""
EVENTS_MIN = 100
"""From so many events on, one may be; fewer say nothing of their pauses."""
PAUSE_MIN_MS = DAY_MS
PAUSE_RATIO = 3
"""The pause before outliers is longer than a day, and than so many times the longest of the younger half before it."""


def known_until(time: NDArray[np.int64]) -> int:
    """ms UTC: events with these times (in any order) are complete up to, not including, this time; 0 without one."""
    n = len(time)
    if not n:
        return 0
    ordered = np.sort(time)
    outliers_max = max(n // EVENTS_PER_OUTLIER, int(n >= EVENTS_MIN))
    if outliers_max:
        half = n // 2
        pauses = np.diff(ordered[half:])
        longest_before = np.concatenate([[0], np.maximum.accumulate(pauses)[:-1]])
        wide = pauses > np.maximum(PAUSE_MIN_MS, PAUSE_RATIO * longest_before)
        wide[:-outliers_max] = False
        if wide.any():
            return int(ordered[half + int(np.argmax(wide))]) + 1
    return int(ordered[-1]) + 1
