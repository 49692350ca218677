"""The demo from curtain to curtain, in the order of the play.

    1 history ─▶ training (a process of its own) ─────────────────────────▶ model ─┐
    2          └▶ Kafka, Valkey ─▶ topics ─▶ the live customers' past into the store ─┴▶ 3 worker ─▶ 4 show ─▶ 5 verdict

2 runs while 1 trains: the first alert is a minute away on two cores, and training is most of it. Everything that is
started here ends with us, however we end; in a Kafka that was given, the run's own topics stay until their retention
ends. Ctrl-C during the show goes straight to the verdict.
"""

import asyncio
import contextlib
import math
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
from rich.table import Table

from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import Spec, load_spec
from ebbtide.featurestore.store.checkpoint import History
from ebbtide.featurestore.times.durations import DAY_MS
from ebbtide.featurestore.times.timestamps import instant
from ebbtide.ops.config.settings import DEFAULT_SPEC, Settings, TimerSettings
from ebbtide.ops.console import console, steps, table_and_json
from ebbtide.ops.demo.feed import Feed
from ebbtide.ops.demo.scene import Plan, Scene, build_scene, columns, write_history
from ebbtide.ops.demo.training import Training
from ebbtide.ops.demo.verdict import Episode, Verdict, asked, judge
from ebbtide.ops.demo.view import Moment, View, footnotes, verdict_table
from ebbtide.ops.demo.watch import Alerts, Gauge, Seen
from ebbtide.ops.stack.needed import stack
from ebbtide.ops.state.backfill import backfill
from ebbtide.ops.state.junction import Junction
from ebbtide.ops.worker.connect import open_store, topic_specs
from ebbtide.ops.worker.process import WorkerProcess
from ebbtide.stream.clock import SystemClock
from ebbtide.stream.kafka.producer import KafkaSink
from ebbtide.stream.kafka.topics import ensure_topics

FRAME_S = 0.25
SETTLE_S_MAX = 10.0
"""How long the last alerts may take after the last event."""
POLL_S = 0.2


def demo(plan: Plan, settings: Settings, folder: Path, json_path: Path | None) -> None:
    """Play it, print the verdict. Raises EbbtideError."""
    clock = SystemClock()
    began_s = clock.monotonic_s()
    folder.mkdir(parents=True, exist_ok=True)
    spec = load_spec(DEFAULT_SPEC)
    layout = Layout(spec)
    with contextlib.ExitStack() as play:
        with steps() as progress:
            progress(f"simulating {plan.history_customers:,} customers over {plan.history_days:.0f} days")
            history = folder / "history.jsonl"
            events = len(write_history(plan, history))
            training = play.enter_context(Training(plan, history, DEFAULT_SPEC, folder))
            complete = play.enter_context(stack(_own(settings, folder, clock.now_ms()), progress))
            progress(f"filling the store with the past of {plan.live_customers:,} other customers")
            scene = build_scene(plan, spec.horizon_ms)
            if not settings.local_redis:  # a guest leaves no customers behind
                play.callback(lambda: asyncio.run(_forget(complete, layout)))
            asyncio.run(_fill(complete, scene, layout))
            progress(f"training on {events:,} events")
            while (doing := training.poll()) is not None:
                progress.advance(*_share(doing))
                clock.sleep_s(POLL_S)
            progress("starting the worker")
            worker = play.enter_context(WorkerProcess(complete, folder))
            worker.wait_ready()
        show = Show(plan, complete, scene, worker, clock)
        asyncio.run(show.run())
        with steps() as progress:
            progress("judging")
            verdict = show.verdict(spec, layout)
        data = show.figures(verdict, began_s)
    _write_alerts(show.alerts.seen, folder / "alerts.jsonl")
    _close(verdict, data, spec, folder, json_path)


def _own(settings: Settings, folder: Path, now_ms: int) -> Settings:
    """The demo's worker has topics, group and keys of its own, so that a Kafka in use may be used."""
    name = f"ebbtide-demo-{now_ms // 1000}"
    topics = settings.topics.model_copy(
        update={"alerts": f"{name}-alerts", "dead_letters": f"{name}-dead-letters", "scores": None}
    )
    return settings.model_copy(
        update={
            "spec": DEFAULT_SPEC,
            "model": folder / "models",
            "kafka": settings.kafka.model_copy(update={"group": name, "topic": f"{name}-events"}),
            "redis": settings.redis.model_copy(update={"prefix": f"{name}:"}),
            "topics": topics,
            "alerts_from": "start",
            "timers": TimerSettings(clock="event", lateness_max=0),
            "logs": settings.logs.model_copy(update={"form": "text"}),
        }
    )


async def _fill(settings: Settings, scene: Scene, layout: Layout) -> None:
    counts = await ensure_topics(settings.kafka, topic_specs(settings))
    partitions = counts[settings.kafka.topic]
    async with open_store(settings, layout, partitions) as store:
        junctions = dict.fromkeys(range(partitions), Junction(0, History(scene.opens_ms, 0)))
        await backfill(columns(scene.live, layout.spec), layout, store, junctions, scene.opens_ms)


async def _forget(settings: Settings, layout: Layout) -> None:
    partitions = settings.topics.partitions
    async with open_store(settings, layout, partitions) as store:
        for partition in range(partitions):
            await store.reset(partition)


def _share(doing: str) -> tuple[float, float, str]:
    """(done, total, words) of `42% fitting the baselines`."""
    share, _, words = doing.partition("% ")
    return (float(share), 100.0, words) if words else (0.0, 100.0, doing)


class Show:
    """The live part: feed, alerts, gauge and view, until the last event or Ctrl-C."""

    def __init__(
        self, plan: Plan, settings: Settings, scene: Scene, worker: WorkerProcess, clock: SystemClock
    ) -> None:
        self._plan, self._settings, self._scene, self._worker, self._clock = (
            plan,
            settings,
            scene,
            worker,
            clock,
        )
        self._gauge = Gauge(worker.address, clock)
        self._sink = KafkaSink(settings.kafka)
        partitions = settings.topics.partitions
        self.feed = Feed(scene, settings.kafka.topic, partitions, plan.speed, self._sink, clock)
        self.alerts = Alerts(settings.kafka, settings.topics.alerts, self.feed.age_s, clock)

    async def run(self) -> None:
        """Play. Raises WorkerFailed, BrokerUnavailable."""
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        following = asyncio.create_task(self.alerts.run(), name="alerts")
        watching = asyncio.create_task(self._gauge.run(), name="gauge")
        async with self._sink:
            await self.alerts.ready.wait()
            feeding = asyncio.create_task(self.feed.run(stop), name="feed")
            try:
                with View(console(), self._worker.address) as view:
                    await self._until(feeding.done, view, following)
                    await feeding
                    await self._settle(view, following)
            finally:
                for task in (feeding, following, watching):
                    task.cancel()
                await asyncio.gather(feeding, following, watching, return_exceptions=True)

    async def _until(self, over: Callable[[], bool], view: View, following: asyncio.Task[None]) -> None:
        while not over():
            self._worker.check()
            if following.done():
                following.result()
            view.show(self._moment())
            await asyncio.sleep(FRAME_S)

    async def _settle(self, view: View, following: asyncio.Task[None]) -> None:
        """Until the worker has dealt with all that was sent, and its last alerts are here."""
        end_s = self._clock.monotonic_s() + SETTLE_S_MAX
        late: Callable[[], bool] = lambda: self._clock.monotonic_s() > end_s  # noqa: E731 - one condition of two
        await self._until(lambda: late() or self._gauge.now.records >= self.feed.sent, view, following)
        quiet_s = self._clock.monotonic_s() + 2 * FRAME_S
        await self._until(lambda: self._clock.monotonic_s() > quiet_s, view, following)

    def _moment(self) -> Moment:
        feed, gauge, alerts = self.feed, self._gauge, self.alerts
        days = (feed.now_ms - self._scene.opens_ms) / DAY_MS
        return Moment(
            today=instant(feed.now_ms).date(), days=days, share=min(days / self._plan.shown_days, 1.0),
            seconds=self._clock.monotonic_s() - feed.started_s if feed.started_s else 0.0, events=feed.sent,
            events_per_s=gauge.events_per_s, behind=max(feed.sent - int(gauge.now.records), 0),
            customers=feed.customers, records_a_batch=gauge.records_a_batch, rows_a_dispatch=gauge.rows_a_dispatch,
            p50_ms=alerts.latency_ms(0.5), p99_ms=alerts.latency_ms(0.99), opened=alerts.opened,
        )  # fmt: skip

    def verdict(self, spec: Spec, layout: Layout) -> Verdict:
        """What the alerts were worth, over what was shown."""
        points = asked(self._scene, columns(self._scene.live, spec), layout, self.feed.sent)
        return judge(self._scene, points, self._episodes(), layout, self.feed.now_ms)

    def _episodes(self) -> list[Episode]:
        number = {name: i for i, name in enumerate(self._scene.live.customers)}
        episodes: list[Episode] = []
        last: dict[str, int] = {}
        for seen in sorted(self.alerts.seen, key=lambda seen: seen.alert.sequence):
            customer = seen.alert.customer
            if seen.alert.state == "opened":
                last[customer] = len(episodes)
                episodes.append(Episode(number[customer], seen.as_of_ms))
            elif seen.alert.state != "escalated" and customer in last:
                i = last.pop(customer)
                episodes[i] = replace(episodes[i], closed=seen.as_of_ms)
        return episodes

    def figures(self, v: Verdict, began_s: float) -> dict[str, Any]:
        """The same as JSON, under stable names; null where there was nothing to divide."""
        first_s = self.alerts.first_s
        return {
            "events": self.feed.sent,
            "customers": self.feed.customers,
            "seconds": self._plan.seconds,
            "days": (self.feed.now_ms - self._scene.opens_ms) / DAY_MS,
            "seed": self._plan.seed,
            "alerts": int(v.ours.alerts),
            "precision": v.ours.precision,
            "recall": v.recall,
            "silences": v.silences,
            "alerts_by_silence_alone": v.by_silence_alone,
            "lead_time_days_p50": v.ours.lead_days,
            "base_rate": v.base_rate,
            "decision_points": v.points,
            "recency_precision": v.recency.precision,
            "recency_alerts": v.recency.alerts,
            "recency_lead_time_days_p50": v.recency.lead_days,
            "recency_silence_days": list(v.silence_days),
            "event_to_alert_ms": {"p50": self.alerts.latency_ms(0.5), "p99": self.alerts.latency_ms(0.99)},
            "seconds_to_first_alert": math.nan if first_s is None else first_s - began_s,
        }


def _write_alerts(seen: list[Seen], path: Path) -> None:
    path.write_bytes(b"".join(orjson.dumps(each.alert.model_dump(mode="json")) + b"\n" for each in seen))


def _close(verdict: Verdict, data: dict[str, Any], spec: Spec, folder: Path, json_path: Path | None) -> None:
    to = console()
    to.print()
    table_and_json(verdict_table(verdict, spec.horizon_ms / DAY_MS), data, json_path)
    latency, first_s = data["event_to_alert_ms"], data["seconds_to_first_alert"]
    shown = (
        f"{data['events']:,} events of {data['customers']:,} customers in {data['days']:.0f} days; event to alert p50"
        f" {latency['p50']:.0f} ms, p99 {latency['p99']:.0f} ms"
        + ("" if math.isnan(first_s) else f"; first alert {first_s:.0f} s after the start")
    )
    for words in [*footnotes(verdict), shown, "", "Where to look next"]:
        to.print(words, soft_wrap=True)
    published = orjson.loads((folder / "train.json").read_bytes())["path"]
    places = Table.grid(padding=(0, 2))
    for place, words in (
        (f"{folder}/alerts.jsonl", "every alert, as a consumer of the topic gets it"),
        (f"{published}/model_card.md", "how good the model is, and what it was judged on"),
        (f"{folder}/history.jsonl", "what it learned from: try `ebbtide train` on it"),
        ("ops/specs/demo.yaml", "what it knows of a customer: copy it for a log of your own"),
        ("ebbtide spec check", "does my log fit my spec?"),
        ("ebbtide stack up", "Kafka and Valkey that stay, for `ebbtide worker`"),
    ):
        places.add_row("", place, words)
    to.print(places)
    sys.stdout.flush()
