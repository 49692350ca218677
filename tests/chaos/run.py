"""One chaos run, from the first server to the verdict.

    1. servers, fork server, model      4. faults and events, until both are over
    2. the compacted topic is written   5. everything heals: until nothing lags, some more events, SIGTERM, exit code 0
    3. workers                          6. the compacted topic is read, under kills
    7. operators move to another prefix, under kills; logs break      8. all is compared

2 to 6 are the phase `faults`, 7 is the phase `operators`: both, or either.

It knows the order of things and who needs whom; what hurts, what is measured and what is right stand elsewhere.
Invariant: nothing is compared before the last worker has ended.
"""

import asyncio
import json
import os
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import load_spec
from ebbtide.featurestore.store.protocol import Store
from ebbtide.ops.config.child import quiet_libraries
from ebbtide.ops.config.settings import Settings
from ebbtide.ops.tensorflow import load_tensorflow
from ebbtide.ops.worker.connect import open_store
from ebbtide.stream.kafka.topics import ensure_topics
from tests.chaos.broken_logs import BROKERS_OF, HOWS, BrokenLog
from tests.chaos.compacted import Holes
from tests.chaos.comparison import Comparison
from tests.chaos.config import (
    BANDS_FILE,
    FETCH_BYTES,
    RUN_RECORDS,
    SESSION_S,
    direct,
    proxied,
    static_member,
    topics,
    write_spec,
)
from tests.chaos.faults import Faults, publish_next
from tests.chaos.feed import Acknowledged, Orders
from tests.chaos.losses import FellBack
from tests.chaos.monitor import Monitor
from tests.chaos.operators import Operators
from tests.chaos.producers import Producers
from tests.chaos.readiness import Readiness
from tests.chaos.report import View
from tests.chaos.scene import Scene, servers
from tests.chaos.shape import BOUNDS, FULL_S, OPERATORS_MINIMA, PHASES, Shape
from tests.chaos.tally import Tally
from tests.chaos.workers import Crew, Forks

WARM_UP_S_MAX, READY_S_MAX = 120.0, 15.0
ENCORE_EVENTS, ENCORE_S = 1_000, 2.0
SHOW_S = 0.5
COMPACTED_PARTITIONS_MAX = 8
"""Kafka's cleaner has to make gaps in each."""
OPERATED_PARTITIONS_MAX = 4


@dataclass
class Outcome(Tally):
    """`figures` is what `--json` writes; `problems` say why the run failed, none if it did not."""

    timeline: list[str] = field(default_factory=list)


class Run:
    """`await Run(shape, folder, view).all()`. Logs, models and data go below `folder`."""

    def __init__(self, shape: Shape, folder: Path, view: View, phases: Sequence[str] = PHASES) -> None:
        self._shape, self._folder, self._view, self._phases = shape, folder, view, phases
        self._forks = Forks(folder)
        self._fallen: list[FellBack] = []
        self._outcome = Outcome({"seed": shape.seed, "seconds": shape.seconds})
        self._began_s = time.monotonic()
        self._due_by_ms = self._quiet_from_ms = 0

    async def all(self) -> Outcome:
        shape, folder = self._shape, self._folder
        models = folder / "models"
        with ExitStack() as stack:
            self._view.say("starting three brokers, Valkey and the fork server")
            spec = folder / "spec.yaml"
            write_spec(spec, shape.scale)
            staged_in = folder / "staged"
            # One after the other: two threads that started processes at the same time had one refused now and then
            # (EFAULT, "Bad address").
            scene = await asyncio.to_thread(stack.enter_context, servers(folder))
            staged = await asyncio.to_thread(self._forks.publish, staged_in, shape.models, spec)
            for name in PHASES:
                (models / name).mkdir(parents=True)
                publish_next(models / name, staged[0])
            bands = staged_in / BANDS_FILE
            comparisons: list[Comparison] = []
            if "faults" in self._phases:
                settings = partial(direct, scene, spec, models / "faults", bands)
                comparisons += await self._faults(scene, settings, staged)
            if "operators" in self._phases:
                settings = partial(direct, scene, spec, models / "operators", bands)
                comparisons += await self._operators(scene, settings)
            self._view.say("comparing every record, alert and letter with an offline replay")
            await self._compare(comparisons)
            self._outcome.figures["took_s"] = round(time.monotonic() - self._began_s, 1)
            self._judge_counts()
        return self._outcome

    async def _faults(
        self, scene: Scene, settings_of: Callable[..., Settings], staged: Sequence[Path]
    ) -> list[Comparison]:
        shape = self._shape
        settings = settings_of("chaos", shape, exactly_once=not shape.at_least_once, timers=True)
        # So that each run has one topic at least of either promise, unless it is told otherwise. What is written
        # here waits for nobody, so how late an event is follows from the machine: timers are off.
        few = replace(shape, partitions=min(shape.partitions, COMPACTED_PARTITIONS_MAX))
        holed = settings_of("chaos-compacted", few, exactly_once=False, timers=False)
        holes = Holes(few, scene, holed, self._forks, self._folder)
        writing = asyncio.create_task(holes.produce())
        acknowledged = await self._under_faults(scene, settings, staged)
        self._view.say("the compacted topic, under kills")
        holed_acknowledged = await writing
        await self._holes(holes, holed)
        self._outcome.figures["events"] = len(acknowledged.offset)
        return [
            Comparison("chaos", settings, acknowledged, self._fallen, self._due_by_ms, self._quiet_from_ms),
            Comparison("compacted", holed, holed_acknowledged, compacted=True),
        ]

    async def _operators(self, scene: Scene, settings_of: Callable[..., Settings]) -> list[Comparison]:
        """One model serves here, so that what is made again is decided as it was."""
        self._view.say("a rebuild, a move to another prefix, dead letters sent again, under kills")
        shape, folder = self._shape, self._folder / "operators"
        few = replace(shape, partitions=min(shape.partitions, OPERATED_PARTITIONS_MAX))
        settings = settings_of("chaos-operated", few, exactly_once=not shape.at_least_once, timers=False)
        operators = Operators(few, scene, settings, self._forks, folder)
        comparisons = [Comparison("operated", operators.moved, await operators.run())]
        self._take(operators.tally, operators.crews)
        few = replace(shape, partitions=len(BROKERS_OF))
        for how in HOWS:
            self._view.say(f"a log that breaks under a worker: {how}")
            settings = settings_of(f"chaos-{how}", few, exactly_once=False, timers=False)
            broken = BrokenLog(how, few, scene, settings, self._forks, folder)
            await broken.run()
            self._take(broken.tally, broken.crews)
            comparisons.append(Comparison(how, broken.mended))
        return comparisons

    def _take(self, tally: Tally, crews: Sequence[Crew]) -> None:
        self._outcome.add("operators", tally)
        for crew in crews:
            self._surprised(crew)

    async def _under_faults(self, scene: Scene, settings: Settings, staged: Sequence[Path]) -> Acknowledged:
        shape, figures = self._shape, self._outcome.figures
        counts = await ensure_topics(settings.kafka, topics(settings))
        layout = Layout(load_spec(settings.spec))
        last = shape.slots - 1
        slots = {slot: proxied(settings, scene) for slot in range(last)}
        slots[last] = proxied(settings, scene, **static_member("chaos-static"))
        crew = Crew(self._forks, self._folder / "workers", slots, random.Random(shape.seed + 3))
        orders = Orders(
            settings.kafka.url, settings.kafka.topic, shape.partitions, shape.customers, shape.events, shape.seconds,
            shape.seed, shape.runs, RUN_RECORDS, FETCH_BYTES, shape.scale, str(self._folder / "acknowledged.npz"),
        )  # fmt: skip
        producers = Producers(orders, self._folder)
        more = replace(
            orders, events=ENCORE_EVENTS, seconds=ENCORE_S, seed=shape.seed + 20, runs=0,
            out=str(self._folder / "encore.npz"),
        )  # fmt: skip
        encore = Producers(more, self._folder)
        async with open_store(settings, layout, counts[settings.kafka.topic]) as store:
            monitor = Monitor(
                store, scene.kafka_url, settings.kafka.topic, settings.kafka.group, shape.partitions
            )
            faults = Faults(shape, scene, crew, monitor, settings.model, staged, SESSION_S)
            readiness = Readiness(crew, monitor)
            await monitor.start()
            readiness.start()
            showing = asyncio.create_task(self._show(faults, crew, monitor, producers))
            try:
                crew.man(shape.slots)
                await crew.ready(shape.partitions, WARM_UP_S_MAX)
                await producers.start()
                await faults.run()
                acknowledged = await producers.finished()
                scene.heal()
                faults.note("all faults are over")
                healed_s = time.monotonic()
                await self._catch_up(monitor)
                figures["drained_s"] = round(time.monotonic() - healed_s, 1)
                # Quiet, and by the new model: a machine that is busy may have had no worker that knew it before.
                await crew.knows_model_of(faults.swapped_s)
                self._quiet_from_ms = time.time_ns() // 1_000_000
                await encore.start()
                acknowledged = acknowledged.joined(await encore.finished())
                await self._catch_up(monitor)
                self._due_by_ms = time.time_ns() // 1_000_000 - settings.timers.lateness_max_ms
                await self._timers_catch_up(store, readiness)
                figures["not_ready_when_quiet"] = len(unready := await readiness.all_ready(READY_S_MAX))
                if unready:
                    self._outcome.problems.append(
                        f"nothing lags, and these say they are not ready: {unready}"
                    )
                await readiness.stop()
                codes = await crew.disband()
                faults.note(f"all workers have gone, with {codes}")
            finally:
                showing.cancel()
                crew.kill_all()
                producers.kill()
                encore.kill()
                await readiness.stop()
                await monitor.stop()
        self._fallen = monitor.losses.fallen
        figures["states_lost"] = [[*lost[:3], sorted(lost.versions)] for lost in self._fallen]
        self._count(faults, crew, monitor, readiness, producers)
        return acknowledged

    async def _catch_up(self, monitor: Monitor) -> None:
        if await monitor.caught_up(self._shape.drain_s_max):
            return
        stuck = {
            p: f"checkpoint {checkpoint}, log end {end}" for p, (checkpoint, end) in monitor.stuck.items()
        }
        what = stuck or (
            f"no checkpoint lags, but alerts wait in the outbox, or the group stays at {monitor.committed}"
        )
        self._outcome.problems.append(f"stuck {self._shape.drain_s_max:.0f} s after the last fault: {what}")

    async def _timers_catch_up(self, store: Store, readiness: Readiness) -> None:
        """Until nobody is left who was due when all was read; what is not taken by then shows in the verdict."""
        until_s, late = time.monotonic() + self._shape.drain_s_max, [True]
        while any(late) and time.monotonic() < until_s:
            await asyncio.sleep(SHOW_S)
            partitions = range(self._shape.partitions)
            late = [bool((await store.due(p, self._due_by_ms, 1))[0]) for p in partitions]
        if any(late):
            stand = [p for p, is_late in enumerate(late) if is_late]
            at = {
                p: checkpoint and checkpoint.timers
                for p in stand
                for checkpoint in [await store.checkpoint(p)]
            }
            self._outcome.problems.append(
                f"timers of {at} stand, asked for {self._due_by_ms}: {await readiness.metrics()}"
            )

    async def _holes(self, holes: Holes, settings: Settings) -> None:
        layout = Layout(load_spec(settings.spec))
        async with open_store(settings, layout, settings.topics.partitions) as store:
            kafka = settings.kafka
            monitor = Monitor(store, kafka.url, kafka.topic, kafka.group, settings.topics.partitions)
            await monitor.start()
            try:
                crew = await holes.read(monitor)
            finally:
                await monitor.stop()
        self._surprised(crew)
        self._outcome.figures |= {"compacted_gaps": holes.gaps, "compacted_kills": holes.kills}
        self._outcome.figures["worker_kills"] += holes.kills

    async def _show(self, faults: Faults, crew: Crew, monitor: Monitor, producers: Producers) -> None:
        while True:
            alive = sum(worker.alive for worker in crew.all)
            self._view.show(
                time.monotonic() - self._began_s,
                producers.acknowledged,
                monitor.lag,
                alive,
                faults.on,
                faults.counts,
            )
            await asyncio.sleep(SHOW_S)

    def _count(
        self, faults: Faults, crew: Crew, monitor: Monitor, readiness: Readiness, producers: Producers
    ) -> None:
        self._outcome.timeline = faults.timeline
        self._surprised(crew)
        counts, rss_kb = faults.counts, [worker.rss_max_kb for worker in crew.all]
        everything = [s for times in monitor.recovery_s.values() for s in times]
        self._outcome.figures |= {
            "worker_kills": counts["worker kills"],
            "rebalances": counts["rebalances"],
            "zombies": counts["zombies"],
            "broker_kills": counts["broker kills"],
            "redis_kills": counts["redis kills"],
            "redis_losses": counts["redis lost"],
            "redis_flushes": counts["redis flushed"],
            "network_faults": faults.network,
            "model_swaps": counts["model swaps"],
            "faults": {kind: counts[kind] for kind in self._shape.faults},
            "faults_tried": {kind: faults.tried[kind] for kind in self._shape.faults},
            "silent_while_ready_s_max": round(readiness.silence.longest_s, 1),
            "silent_while_ready_at": readiness.silent_at,
            "mute_s_max": round(readiness.mute_s_max, 1),
            "workers_started": len(crew.all),
            "workers_gave_up_at_start": len(crew.gave_up),
            "states_made_again": monitor.made_again,
            "states_fallen_back": monitor.fell_back,
            "recovery_s_max": round(max(everything, default=0.0), 1),
            "recovery_s_median": round(statistics.median(everything or [0.0]), 1),
            "recovery_s_max_by_kind": _worst(monitor.recovery_s),
            "recovery_alone_s_max_by_kind": _worst(monitor.recovery_alone_s),
            "pause_s_max": round(monitor.pause_s_max, 1),
            "pause_at": monitor.pause_at,
            "producer": producers.counts,
            "aborted_runs": producers.counts.get("aborted runs", 0),
            "rss_mb_max": max(rss_kb, default=0) // 1024,
            "load_average": round(os.getloadavg()[1], 1),
            **_said(crew),
        }
        if monitor.open:
            still = Counter(fault.kind for fault in monitor.open)
            self._outcome.problems.append(f"never recovered from: {dict(still)}")

    def _surprised(self, crew: Crew) -> None:
        surprises = self._outcome.figures.setdefault("workers_ended_by_themselves", 0)
        self._outcome.figures["workers_ended_by_themselves"] = surprises + len(crew.surprises)
        self._outcome.problems += [f"a worker ended by itself: {surprise}" for surprise in crew.surprises]
        self._outcome.problems += [f"a worker did not leave in good order: {bad}" for bad in crew.bad_exits]

    def _judge_counts(self) -> None:
        """A run in which too little happened proves little, however clean its verdict. Of a short one it is only said:
        on a busy machine, workers hardly come to work before the next fault."""
        figures, least_of = self._outcome.figures, dict[str, int]()
        if "faults" in self._phases:
            least_of |= self._shape.minima
        if "operators" in self._phases:
            least_of |= OPERATORS_MINIMA
        figures["too_little"] = [
            f"{name} is {figures[name]}, and should be {least} or more"
            for name, least in least_of.items()
            if figures[name] < least
        ] + [
            f"no fault of this kind took effect: {kind}"
            for kind, n in figures.get("faults", {}).items()
            if not n
        ]
        figures["too_much"] = [
            f"{name} is {figures[name]}, and should be {most} or less"
            for name, most in BOUNDS.items()
            if figures.get(name, 0) > most
        ]
        if self._shape.seconds >= FULL_S:
            self._outcome.problems += [f"too little happened: {what}" for what in figures["too_little"]]
            self._outcome.problems += [f"too much: {what}" for what in figures["too_much"]]

    async def _compare(self, topics: Sequence[Comparison]) -> None:
        quiet_libraries()
        with self._forks.compiled():
            await asyncio.to_thread(load_tensorflow)
            from tests.chaos.comparing import compared

            whole = await compared(topics)
        self._outcome.figures |= whole.figures
        self._outcome.problems += whole.problems


def _worst(times_s: dict[str, list[float]]) -> dict[str, float]:
    return {kind: round(max(times), 1) for kind, times in sorted(times_s.items())}


def _said(crew: Crew) -> dict[str, Any]:
    """What the workers' own logs count: partitions opened, and opened again by reason."""
    opened, reasons = 0, Counter[str]()
    for worker in crew.all:
        for line in worker.log.read_text(errors="replace").splitlines():
            if '"partition opened"' in line:
                opened += 1
            elif '"partition reopens"' in line:
                reasons[json.loads(line)["reason"]] += 1
    return {"partitions_opened": opened, "partitions_reopened": dict(reasons)}
