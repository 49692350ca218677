"""What a figure was measured on, said beside it: cores, load average, and a yardstick that costs the same everywhere.

A busy machine also makes CPU time longer (its caches and its other hyper-thread are somebody else's), so runs at
different times are compared by what they cost in yardsticks: a fixed piece of Python, timed before and after.
"""

import os
import time
from dataclasses import dataclass

import numpy as np

TRIES = 9


@dataclass(frozen=True, slots=True)
class Machine:
    """`load`: the one-minute load average before and after. `yardstick_ms`: CPU ms of the yardstick, before, after."""

    cpus: int
    load: tuple[float, float]
    yardstick_ms: tuple[float, float]

    def __str__(self) -> str:
        before, after = self.load
        first, last = self.yardstick_ms
        load = f"load {before:.1f} before, {after:.1f} after"
        return f"{self.cpus} cores, {load}; yardstick {first:.2f}, {last:.2f} ms CPU"


class Watch:
    """Looks at the machine when it is made, and again at `seen`."""

    def __init__(self) -> None:
        self._load, self._yardstick_ms = os.getloadavg()[0], yardstick_ms()

    def seen(self) -> Machine:
        """The machine from then to now."""
        return Machine(
            os.cpu_count() or 1, (self._load, os.getloadavg()[0]), (self._yardstick_ms, yardstick_ms())
        )


def yardstick_ms() -> float:
    """CPU ms of ten thousand look-ups, sums and short lists in plain Python: the median of TRIES."""
    spent = []
    for _ in range(TRIES):
        start = time.process_time()
        counts: dict[int, int] = {}
        kept = []
        for i in range(10_000):
            key = i * 7919 % 613
            counts[key] = counts.get(key, 0) + i
            kept.append((key, i))
        spent.append(time.process_time() - start)
        assert len(counts) == 613
        assert len(kept) == 10_000
    return float(np.median(spent)) * 1000
