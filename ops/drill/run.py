"""A drill: load, a fault in the middle of it, and second by second what an operator sees.

load   ├──────────────────────────────────────────────────────────────┤─ settle ─▶ verdict
fault                ├──────────────────┤ mended
seen   each second: /readyz of each worker, the worst lag, alerts and their latency
"""

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import NamedTuple

from ebbtide.ops.demo.watch import samples
from ebbtide.ops.drill.faults import Fault
from ebbtide.ops.drill.scene import Scene
from ebbtide.ops.drill.verdict import Second, Verdict, verdict
from ebbtide.ops.load.run import LoadRun
from ebbtide.ops.load.sessions import sessions
from ebbtide.stream.clock import Clock

LOOK_S = 1.0
SETTLE_S = 60.0


class Times(NamedTuple):
    """Seconds of load before the fault, and after it was mended; during it, as long as the fault says."""

    before_s: float = 6.0
    after_s: float = 14.0


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
    schedule = sessions(seed, rate, times.before_s + fault.during_s + times.after_s, customers)
    run = LoadRun(scene.settings, schedule, f"drill{seed}", clock)
    seen: list[Second] = []
    loading = asyncio.create_task(run.run(settle_s=SETTLE_S), name="load")
    while not run.outcome.sent and not loading.done():
        await asyncio.wait({loading}, timeout=0.05)  # the past is sent first
    began_s, phase, doing = clock.monotonic_s(), "before", None
    while not loading.done():
        at_s = clock.monotonic_s() - began_s
        if phase == "before" and at_s >= times.before_s:
            phase, doing = "during", asyncio.create_task(asyncio.to_thread(fault.cause, scene), name="fault")
        elif (
            phase == "during"
            and at_s >= times.before_s + fault.during_s
            and doing is not None
            and doing.done()
        ):
            phase, doing = "after", asyncio.create_task(asyncio.to_thread(fault.mend, scene), name="mend")
        second = await asyncio.to_thread(_look, scene, at_s, phase, run)
        seen.append(second)
        tell(second)
        await asyncio.wait({loading}, timeout=LOOK_S)
    outcome = await loading
    if doing is not None:
        await doing
    return verdict(outcome, seen)


def _look(scene: Scene, at_s: float, phase: str, run: LoadRun) -> Second:
    reasons: dict[str, str] = {}
    lag_s, refused = 0.0, 0
    for number, worker in enumerate(list(scene.workers)):
        status, reason = readiness(worker.address)
        if status:
            reasons[str(number)] = "" if status == 200 else reason
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
