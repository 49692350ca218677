"""How big a chaos run is: the numbers of the ten-minute form, and every other length in proportion.

The invariant: whatever the length, every kind of fault comes at least once, and the ten-minute form has what the
promise names: 1,000,000 events, 100 killed workers, 20 forced rebalances.
"""

from dataclasses import dataclass

FULL_S = 600.0
EVENTS_A_SECOND = 1_750
EVENTS_MIN = 20_000

FAULTS = {
    "kill": 50,  # a worker, at a random point
    "kill young": 15,  # … and its successor within its first second
    "kill burst": 10,  # three in a row, as they come
    "leave": 10,  # SIGTERM: a rebalance, and another when the successor joins
    "guest": 10,  # one more joins, and leaves
    "static": 4,  # the static member goes and comes back
    "zombie": 6,  # SIGSTOP past the session, then SIGCONT
    "broker": 6,  # SIGKILL, and back
    "redis": 5,  # SIGKILL with its log on the disk
    "redis torn": 4,  # … of which the end is lost
    "redis lost": 3,  # … with no persistence at all
    "redis flushed": 2,
    "redis cut": 4,
    "redis hangs": 3,
    "redis slow": 3,
    "kafka cut": 3,
    "kafka hangs": 3,
    "kafka slow": 3,
    "broker cut": 3,  # the way to one of three
    "swap": 4,  # the same model under a new version
}
"""Kinds of faults, and how many of each in the ten-minute form."""
LOSES_ALL = frozenset({"redis lost", "redis flushed"})
"""Each makes the workers fold the whole log again: they come in the first third of a run."""


@dataclass(frozen=True)
class Shape:
    """`seconds`: how long faults come. The same seed and shape give the same plan of faults and the same events."""

    seconds: float
    events: int
    seed: int
    customers: int = 1_000
    partitions: int = 8
    slots: int = 3

    @property
    def drain_s_max(self) -> float:
        """How long after the last fault a partition may lag before it counts as stuck."""
        return 90.0 + self.seconds / 4

    @property
    def faults(self) -> dict[str, int]:
        """How many of each kind."""
        return {kind: max(1, round(n * self.seconds / FULL_S)) for kind, n in FAULTS.items()}

    @property
    def runs(self) -> int:
        """Transactions of the producer."""
        return max(4, round(self.seconds / 10))


def shape_of(seconds: float, events: int | None, seed: int) -> Shape:
    """The shape for so many seconds; `events` None: as many as come in that time at the usual rate."""
    usual = round(seconds * EVENTS_A_SECOND)
    return Shape(seconds, events if events is not None else max(EVENTS_MIN, usual), seed)
