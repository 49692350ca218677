"""A drill: load, a fault in the middle of it, and second by second what an operator sees.

    load   ├──────────────────────────────────────────────────────────────┤─ settle ─▶ verdict
    fault                ├──────────────────┤ mended
    seen   each second: /readyz of each worker, the worst lag, alerts and their latency

The verdict: each customer of the load was to be scored once and to open one episode. Who is missing was lost; what came
more often than once was at least once.
"""

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from ebbtide.ops.demo.watch import samples
from ebbtide.ops.drill.faults import Fault
from ebbtide.ops.drill.scene import Scene
from ebbtide.ops.load.latency import Latency, latency
from ebbtide.ops.load.run import LoadRun, Outcome
from ebbtide.ops.load.sessions import sessions
from ebbtide.stream.clock import Clock

LOOK_S = 1.0
SETTLE_S = 60.0


class Times(NamedTuple):
    """Seconds of load before the fault, during it, and after it was mended."""

    before_s: float = 6.0
    during_s: float = 10.0
    after_s: float = 14.0


@dataclass(frozen=True, slots=True)
class Second:
    """What is seen at one moment. phase: before, during or after the fault. not_ready: reasons, by worker's number; ""
    of one that does not answer."""

    at_s: float
    phase: str
    not_ready: dict[int, str]
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


async def drill(
    scene: Scene,
    fault: Fault,
    rate: float,
    customers: int,
    seed: int,
    clock: Clock,
    tell: Callable[[Second], None],
    times: Times | None = None,
) -> Verdict:
    """Play it. Raises what the servers and workers fail of beyond the fault."""
    times = times or Times()
    schedule = sessions(seed, rate, sum(times), customers)
    run = LoadRun(scene.settings, schedule, f"drill{seed}", clock)
    seen: list[Second] = []
    loading = asyncio.create_task(run.run(settle_s=SETTLE_S), name="load")
    while not run.outcome.sent and not loading.done():
        await asyncio.wait({loading}, timeout=0.05)  # the past is sent first
    began_s, phase = clock.monotonic_s(), "before"
    while not loading.done():
        at_s = clock.monotonic_s() - began_s
        if phase == "before" and at_s >= times.before_s:
            phase = "during"
            await asyncio.to_thread(fault.cause, scene)
        elif phase == "during" and at_s >= times.before_s + times.during_s:
            phase = "after"
            await asyncio.to_thread(fault.mend, scene)
        second = await asyncio.to_thread(_look, scene, at_s, phase, run)
        seen.append(second)
        tell(second)
        await asyncio.wait({loading}, timeout=LOOK_S)
    return verdict(await loading, seen)


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


def _look(scene: Scene, at_s: float, phase: str, run: LoadRun) -> Second:
    reasons: dict[int, str] = {}
    lag_s, refused = 0.0, 0
    for number, worker in enumerate(scene.workers):
        status, reason = readiness(worker.address)
        if status:
            reasons[number] = "" if status == 200 else reason
            found = _metrics(worker.address)
            lags = [
                value for name, value in found.items() if name.startswith("ebbtide_partition_lag_seconds{")
            ]
            lag_s = max([lag_s, *lags])
            refused = max(refused, int(found.get("ebbtide_model_versions_refused", 0)))
    outcome = run.outcome
    return Second(at_s, phase, reasons, lag_s, refused, outcome.alerts, (outcome.alerts_s or [0.0])[-1])


def readiness(address: str) -> tuple[int, str]:
    """Status of /readyz and its reason; 0 when nobody answers."""
    try:
        with urllib.request.urlopen(address + "/readyz", timeout=2) as answer:  # noqa: S310 - our own address
            return answer.status, ""
    except urllib.error.HTTPError as error:
        return error.code, str(json.loads(error.read() or b"{}").get("reason", ""))
    except OSError:
        return 0, ""


def _metrics(address: str) -> dict[str, float]:
    try:
        with urllib.request.urlopen(address + "/metrics", timeout=2) as answer:  # noqa: S310 - our own address
            return samples(answer.read().decode())
    except OSError:
        return {}
