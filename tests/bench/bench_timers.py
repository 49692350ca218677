"""Timers under load: many armed customers, a trickle of events, and then a burst of who is due in one millisecond.

A worker over a real Valkey; the source is a list and the model arithmetic, so what is measured is the timers' own path:
asking who is due, loading, elapsing, deciding, the commit. Printed of each phase: how late a silence was told beyond
`lateness_max` (p50, p99), how long an event of the trickle took, the CPU of this process and of the server.

    python -m tests.bench.bench_timers [--customers N] [--due-per-s N] [--burst N] [--seconds S] [--redis URL]
"""

import argparse
import asyncio
import os
import time
from collections.abc import Sequence

import numpy as np
import orjson
from redis.asyncio import Redis

from ebbtide.featurestore.events.parse import Parser
from ebbtide.featurestore.record.fold import Folder
from ebbtide.featurestore.store.cache import Cache
from ebbtide.featurestore.store.checkpoint import Checkpoint
from ebbtide.featurestore.store.commit import CUSTOMERS_MAX, Commit
from ebbtide.featurestore.store.redis.store import RedisStore
from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.ops.stack.local import LocalValkey
from ebbtide.stream.clock import SystemClock
from ebbtide.stream.outputs.pre_commit import Outputs
from ebbtide.stream.pipeline import Tools
from ebbtide.stream.scoring.batcher import Batcher
from ebbtide.stream.telemetry import Telemetry, TurnDone
from ebbtide.stream.turn.limits import Limits
from ebbtide.stream.turn.timers import TimerLimits
from ebbtide.stream.worker import Worker
from tests.support.seams.scoring import LAYOUT, SPEC, ArithmeticModel
from tests.support.seams.streams import Faults, ListSink, LogRecord, LogSource

TOPIC, PARTITIONS = "timers", 8
LATENESS_MS = 1_000
EVENT_EVERY_S = 0.02
SILENT_MS = 8 * DAY_MS
"""The silence of the schedule at which the arithmetic model opens an episode."""


class Heard(Telemetry):
    """How late silences were told, and how long events took, in seconds."""

    def __init__(self) -> None:
        self.late_s: list[float] = []
        self.event_s: list[float] = []
        self.taken = 0

    def turn_done(self, turn: TurnDone) -> None:
        self.late_s += [each.decision_age_s - LATENESS_MS / 1000 for each in turn.sent]
        self.taken += turn.due
        if turn.latency_s is not None:
            self.event_s.append(turn.latency_s)


async def arm(store: RedisStore, due_ms: Sequence[int]) -> None:
    """A customer for each due time: one visit, and silent since."""
    folder = Folder(LAYOUT)
    due = np.array(due_ms, np.int64)
    for p in range(PARTITIONS):
        mine, at = due[p::PARTITIONS], None
        for first in range(0, max(len(mine), 1), CUSTOMERS_MAX):
            part = mine[first : first + CUSTOMERS_MAX]
            rows = LAYOUT.empty(len(part))
            seen = part - SILENT_MS
            rows["first_seen"] = rows["last_seen"] = rows["event_time"] = rows["decided_at"] = seen
            rows["row_watermark"] = seen + SILENT_MS // 2
            rows["activity_count"], rows["silence_index"] = 1, 3
            moved = Checkpoint(0, 1 + first // CUSTOMERS_MAX, 0, LAYOUT.id, PARTITIONS)
            names = [f"silent-{p}-{first + i}" for i in range(len(part))]
            await store.apply(Commit(p, at, moved, names, rows, folder.due(rows)))
            at = moved


async def phase(name: str, url: str, due_ms: Sequence[int], until: int, seconds: float) -> None:
    """Arm, serve for so long or until so many were taken, and print."""
    store, clock, heard = (
        RedisStore(url, LAYOUT.dtype, TOPIC, PARTITIONS, prefix="bench:"),
        SystemClock(),
        Heard(),
    )
    await store.start()
    for p in range(PARTITIONS):
        await store.reset(p)
    began_s = time.perf_counter()
    await arm(store, due_ms)
    armed_s = time.perf_counter() - began_s
    logs: list[list[LogRecord]] = [[] for _ in range(PARTITIONS)]
    source = LogSource(TOPIC, logs, seed=1, faults=Faults(0, 0.0))
    source.now_ms = clock.now_ms
    model = ArithmeticModel()
    batcher = Batcher(lambda: model, clock, Telemetry(), deadline_s=0.05, linger_s=0.0)
    tools = Tools(
        TOPIC, Outputs("alerts", "dead"), LAYOUT, Folder(LAYOUT), Parser(SPEC), store,
        Cache(LAYOUT.dtype, 64 << 20), ListSink(), batcher, clock, heard,
    )  # fmt: skip
    worker = Worker(tools, alerts_from="start", limits=Limits(timers=TimerLimits(LATENESS_MS)))
    worker.attach(source)
    async with Redis.from_url(url) as admin:
        before, cpu_s = await admin.info("cpu"), time.process_time()
        running = [asyncio.create_task(worker.run()), asyncio.create_task(source.pump(worker.deliver))]
        await asyncio.sleep(0)
        worker.assigned(source.assigned())
        start_s, n = time.perf_counter(), 0
        while time.perf_counter() - start_s < seconds and heard.taken < until:
            log, now_ms = logs[n % PARTITIONS], clock.now_ms()
            user = f"lively-{n % 500}"
            value = orjson.dumps({"user_id": user, "event_id": str(n), "type": "visit", "ts": now_ms})
            log.append(LogRecord(len(log), now_ms, user.encode(), value))
            n += 1
            await asyncio.sleep(EVENT_EVERY_S)
        took_s, used_s = time.perf_counter() - start_s, time.process_time() - cpu_s
        after = await admin.info("cpu")
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    served_s = sum(after[key] - before[key] for key in ("used_cpu_sys", "used_cpu_user"))
    late, event = (np.array(each or [np.nan]) for each in (heard.late_s, heard.event_s))
    print(
        f"{name}: {len(due_ms):,} armed in {armed_s:.0f} s, {heard.taken:,} taken in {took_s:.1f} s"
        f" ({heard.taken / took_s:,.0f}/s); beyond lateness_max p50 {np.median(late) * 1e3:,.0f} ms, p99"
        f" {np.quantile(late, 0.99) * 1e3:,.0f} ms; {len(event):,} turns with events p50 {np.median(event) * 1e3:.1f}"
        f" ms, p99 {np.quantile(event, 0.99) * 1e3:.1f} ms; CPU {used_s / took_s:.2f} cores, the server"
        f" {served_s / took_s:.2f}",
        flush=True,
    )
    for p in range(PARTITIONS):
        await store.reset(p)
    await store.close()


async def measure(url: str, customers: int, due_per_s: int, burst: int, seconds: float) -> None:
    now_ms = SystemClock().now_ms()
    far = [now_ms + 10**9 + n for n in range(customers)]
    await phase("trickle alone", url, far[: customers // 4], customers, seconds / 2)
    now_ms = SystemClock().now_ms()
    lead_ms = round(customers * 0.06) + 3_000  # what arming takes
    soon = [now_ms + lead_ms + n * 1_000 // due_per_s for n in range(round(due_per_s * seconds))]
    await phase("steady", url, [*soon, *far[len(soon) :]], len(soon), 3 * seconds + lead_ms / 1000)
    await phase("burst", url, [SystemClock().now_ms() - 60_000] * burst, burst, 10 * seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description="how late timers are, and what they cost")
    parser.add_argument("--customers", type=int, default=1_000_000)
    parser.add_argument("--due-per-s", type=int, default=500)
    parser.add_argument("--burst", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--redis", help="a server that may be filled; default: a Valkey of its own")
    asked = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")

    def run(url: str) -> None:
        asyncio.run(measure(url, asked.customers, asked.due_per_s, asked.burst, asked.seconds))

    if asked.redis:
        run(asked.redis)
    else:
        with LocalValkey() as valkey:
            run(valkey.url)


if __name__ == "__main__":
    main()
