"""Durations of the rules: one factor shrinks them all, so that what takes days in production can be seen in seconds."""

from typing import NamedTuple

_UNITS_MS = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1))


def promql(seconds: float) -> str:
    """A PromQL duration, in the largest unit that says it exactly to the millisecond: 300 is 5m, 0.25 is 250ms."""
    ms = max(round(seconds * 1000), 1)
    unit, size = next((unit, size) for unit, size in _UNITS_MS if ms % size == 0)
    return f"{ms // size}{unit}"


class Scale(NamedTuple):
    """Multiplies every window, hold and limit in seconds of the rules. 1 is production; least_s: no window is shorter
    than what a rate needs to see two scrapes."""

    factor: float = 1.0
    least_s: float = 0.0

    def seconds(self, seconds: float) -> float:
        """A limit on something measured in seconds."""
        return seconds * self.factor

    def window(self, seconds: float) -> str:
        """The range of a rate or an increase."""
        return promql(max(seconds * self.factor, self.least_s))

    def hold(self, seconds: float) -> str:
        """How long a condition has to last."""
        return promql(seconds * self.factor) if seconds else "0s"
