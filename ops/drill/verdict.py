"""What a drill has shown, and whether the promises were kept: values, and no server.

Each customer of the load was to be scored once and to open one episode. Who is missing was lost; what came more often
than once was at least once.
"""

from dataclasses import dataclass, field

from ebbtide.ops.load.latency import Latency, latency
from ebbtide.ops.load.run import Outcome


@dataclass(frozen=True, slots=True)
class Second:
    """What is seen at one moment. phase: before, during or after the fault. not_ready: reasons, by worker's number; ""
    of one that does not answer."""

    at_s: float
    phase: str
    not_ready: dict[str, str]
    lag_s: float
    refused: int
    alerts: int
    last_latency_s: float


@dataclass(slots=True)
class Verdict:
    """customers: who sent something. lost_scores, lost_alerts: of them, without any. repeated_scores: more than one.
    repeated_alerts: the same alert again, which consumers drop by its id. other_alerts: two different ones, which would
    be a broken promise."""

    customers: int = 0
    lost_scores: int = 0
    lost_alerts: int = 0
    repeated_scores: int = 0
    repeated_alerts: int = 0
    other_alerts: int = 0
    longest_not_ready_s: float = 0.0
    latency: Latency = field(default_factory=lambda: latency([]))
    seconds: list[Second] = field(default_factory=list)

    @property
    def kept(self) -> bool:
        """Nothing is lost, and nothing contradicts itself."""
        return not (self.lost_scores or self.lost_alerts or self.other_alerts)


def verdict(outcome: Outcome, seen: list[Second]) -> Verdict:
    """What became of the promises."""
    return Verdict(
        customers=outcome.customers,
        lost_scores=outcome.customers - len(outcome.scored),
        lost_alerts=outcome.customers - len(outcome.opened),
        repeated_scores=sum(n - 1 for n in outcome.scored.values()),
        repeated_alerts=outcome.repeated,
        other_alerts=sum(n - 1 for n in outcome.opened.values()),
        longest_not_ready_s=longest(seen),
        latency=outcome.alert_latency(),
        seconds=seen,
    )


def longest(seen: list[Second]) -> float:
    """Seconds that no worker was ready, at a stretch."""
    worst, since = 0.0, None
    for second in seen:
        if any(not reason for reason in second.not_ready.values()) or not second.not_ready:
            since = None
        else:
            since = second.at_s if since is None else since
            worst = max(worst, second.at_s - since)
    return worst
