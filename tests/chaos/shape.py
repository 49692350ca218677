"""How big a chaos run is: the numbers of the ten-minute form, and every other length in proportion.

The invariant: whatever the length, every kind of fault comes at least once, the log is several times as long as what a
record remembers, and `minima` say what must have happened; the ten-minute form has what the promise names: 1,000,000
events, 100 killed workers, 20 forced rebalances.
"""

import math
from dataclasses import dataclass

FULL_S = 600.0
EVENTS_A_SECOND = 1_750
EVENTS_MIN = 20_000
PROMISED = {"events": 1_000_000, "worker_kills": 100, "rebalances": 20}
"""Of the ten-minute form; a few more are planned of each."""
UNSCALED_S = 100.0
"""A shorter run shrinks the spec's durations: their memory of 20 s is a fifth of it at most."""

FAULTS = {
    "kill": 50,  # a worker, at a random point
    "kill young": 15,  # … and its successor within its first second
    "kill burst": 10,  # three in a row, as they come
    "leave": 10,  # SIGTERM: a rebalance, and another when the successor joins
    "guest": 10,  # one more joins, and leaves
    "static": 2,  # the static member goes and comes back at once: no rebalance
    "static long": 3,  # … and stays away past its session: one
    "zombie": 6,  # SIGSTOP past the session, then SIGCONT
    "broker": 6,  # SIGKILL, and back
    "redis": 5,  # SIGKILL with its log on the disk
    "redis torn": 4,  # … of which the end is lost
    "redis lost": 3,  # … with no persistence at all
    "redis flushed": 2,
    "redis failover": 4,  # SIGKILL, and its replica is promoted: it may lack the last words
    "redis cut": 4,
    "redis hangs": 3,
    "redis slow": 3,
    "kafka cut": 3,
    "kafka hangs": 3,
    "kafka slow": 3,
    "broker cut": 3,  # the way to one of three
    "swap": 4,  # another model: other weights, padded sizes and thresholds
}
"""Kinds of faults, and how many of each in the ten-minute form."""
LOSES_ALL = frozenset({"redis lost", "redis flushed"})
"""Each makes the workers fold the whole log again: they come in the first third of a run."""
BOUNDS = {"silent_while_ready_s_max": 30.0, "rss_mb_max": 1_500, "quiet_alert_latency_s_p50": 2.0}
"""Figure -> the most of it. Silent while ready: nothing moves in a partition with something to do, and its owner says
that it is ready; longer than any fault lasts, so only what stands by itself comes near. Latency: of the events after
the last fault, once all is read; under faults it is told and not judged, for on two cores 130 starts in ten minutes
leave the workers little of them. Memory: TensorFlow's 500 MB, and our own bounds of a cache, four batches a partition
and two models."""
PHASES = ("faults", "operators")
OPERATORS_MINIMA = {"rebuild_kills": 2, "dlq_replay_kills": 1, "letters_sent_again": 20, "broken_logs": 4}
"""Figure -> the least of it in the phase of operators, whatever the length of the run. Partitions of broken logs: one
of an unclean election, three of a topic made anew."""
NETWORK = ("cut", "hangs", "slow")
"""Last words of the kinds that hurt a way, not a server."""


@dataclass(frozen=True)
class Shape:
    """`seconds`: how long faults come. `at_least_once`: how alerts are sent, else exactly once. The same seed and shape
    give the same plan of faults and the same events."""

    seconds: float
    events: int
    seed: int
    customers: int = 4_000
    partitions: int = 8
    slots: int = 3
    at_least_once: bool = False

    @property
    def drain_s_max(self) -> float:
        """How long after the last fault a partition may lag before it counts as stuck."""
        return 90.0 + self.seconds / 4

    @property
    def faults(self) -> dict[str, int]:
        """How many of each kind."""
        return {kind: max(1, round(n * self.seconds / FULL_S)) for kind, n in FAULTS.items()}

    @property
    def scale(self) -> float:
        """Of every duration of `spec.yaml`, in whole percents: so windows still are whole multiples of their tiles."""
        return min(100, max(10, round(100 * self.seconds / UNSCALED_S))) / 100

    @property
    def minima(self) -> dict[str, int]:
        """Figure -> the least of it that makes the run worth its verdict. Faults count when they took effect.

        What is promised shrinks with the time; of faults that always take effect there are as many as planned.
        """
        planned, share = self.faults, min(1.0, self.seconds / FULL_S)
        return {
            "events": math.floor(self.events * PROMISED["events"] / (FULL_S * EVENTS_A_SECOND)),
            "worker_kills": max(1, math.floor(PROMISED["worker_kills"] * share)),
            "rebalances": max(1, math.floor(PROMISED["rebalances"] * share)),
            # One that nobody takes over from in time is tried again, not for ever.
            "zombies": max(1, planned["zombie"] * 2 // 3),
            "broker_kills": planned["broker"],
            "redis_kills": sum(
                planned[kind] for kind in ("redis", "redis torn", "redis lost", "redis failover")
            ),
            "network_faults": sum(n for kind, n in planned.items() if kind.split()[-1] in NETWORK),
            "model_swaps": planned["swap"],
            "model_versions_seen": 2,
            "states_made_again": 1,
            "aborted_runs": 1,
            "compacted_kills": 1,
            "compacted_gaps": min(self.partitions, 8),
            "memories": 4,
            "alerts": 1,
            "dead_letters": 1,
        }

    @property
    def models(self) -> int:
        """Different models, taken in turn."""
        return min(3, 1 + self.faults["swap"])

    @property
    def runs(self) -> int:
        """Transactions of the producer."""
        return max(4, round(self.seconds / 10))


def shape_of(
    seconds: float, events: int | None, seed: int, partitions: int = 8, *, at_least_once: bool = False
) -> Shape:
    """The shape for so many seconds; `events` None: as many as come in that time at the usual rate."""
    usual = round(seconds * EVENTS_A_SECOND)
    count = events if events is not None else max(EVENTS_MIN, usual)
    return Shape(seconds, count, seed, partitions=partitions, at_least_once=at_least_once)
