"""Cause each alert for real: a worker, Kafka, Valkey and a Prometheus with the shipped rules, all windows shrunk.

    fault ──▶ worker ──▶ /metrics ──▶ Prometheus: rules × FACTOR ──▶ ALERTS{alertstate="firing"}

First a while without a fault, in which nothing may fire. Then fault after fault: what fired, and after how long.
"""

import argparse
import asyncio
import json
import logging
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from redis.asyncio import Redis
from rich.console import Console
from rich.table import Table

from ebbtide.ops.alerting.duration import Scale
from ebbtide.ops.alerting.rules import document, text
from ebbtide.ops.config.policy import PolicySettings
from ebbtide.ops.config.settings import Settings, TimerSettings
from ebbtide.ops.worker.connect import topic_specs
from ebbtide.ops.worker.process import WorkerProcess
from ebbtide.stream.clock import SystemClock
from ebbtide.stream.kafka.topics import ensure_topics
from tests.alerts.faulty import Faulty, faulty_worker
from tests.alerts.feed import Feed, compressed, open_transaction, weeks_of
from tests.support.seams.models import TINY
from tests.support.servers.prometheus import Prometheus
from tests.support.workers.outages import Outage, load_scorer, outage

FACTOR = 1 / 60
"""An hour in a minute."""
WARM_S, QUIET_S = 15.0, 20.0
"""What a worker compiles at its first turns makes its first alerts late, and is no fault."""
FIRES_S_MAX, ENDS_S_MAX = 120.0, 120.0
COMPRESSED_BYTES = 2 << 20


class Fired(NamedTuple):
    """seconds: from the fault to the alert; None when it did not fire."""

    alert: str
    fault: str
    seconds: float | None


class Trial:
    """One run: `fault(words, alerts, cause, mend)` after another."""

    def __init__(self, prometheus: Prometheus, console: Console) -> None:
        self._prometheus, self._console, self._clock = prometheus, console, SystemClock()
        self.fired: list[Fired] = []

    async def quiet(self, seconds: float) -> set[str]:
        """What fires although nothing is wrong."""
        wrong, end_s = set[str](), self._clock.monotonic_s() + seconds
        while self._clock.monotonic_s() < end_s:
            wrong |= {name for name in await asyncio.to_thread(self._prometheus.alerts) if ":" in name}
            await asyncio.sleep(0.25)
        return wrong

    async def fault(
        self,
        words: str,
        alerts: set[str],
        cause: Callable[[], Awaitable[object]],
        mend: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        """Wait until none of `alerts` fires for something else, cause it, wait until each has fired, mend it."""
        named = {f"Ebbtide{alert}" for alert in alerts}
        end_s = self._clock.monotonic_s() + ENDS_S_MAX
        still = set(alerts)
        while still and self._clock.monotonic_s() < end_s:
            await asyncio.sleep(0.25)
            still = named & await asyncio.to_thread(self._prometheus.alerts)
        if still:
            self._console.print(f"{sorted(still)} fired already: {words} proves nothing of them")
        began_s, waiting = (
            self._clock.monotonic_s(),
            {alert for alert in alerts if f"Ebbtide{alert}" not in still},
        )
        await cause()
        while waiting and self._clock.monotonic_s() - began_s < FIRES_S_MAX:
            now = await asyncio.to_thread(self._prometheus.alerts)
            for alert in sorted(waiting & {name.removeprefix("Ebbtide") for name in now}):
                waiting.discard(alert)
                self._tell(Fired(alert, words, self._clock.monotonic_s() - began_s))
            await asyncio.sleep(0.1)
        for alert in sorted(waiting):
            self._tell(Fired(alert, words, None))
        if mend is not None:
            await mend()

    def _tell(self, fired: Fired) -> None:
        self.fired.append(fired)
        took = "DID NOT FIRE" if fired.seconds is None else f"fired after {fired.seconds:.1f} s"
        self._console.print(f"{fired.alert:18} {took:20} {fired.fault}", highlight=False)


async def run(folder: Path, console: Console) -> tuple[list[Fired], set[str]]:
    """All faults in turn; what fired, and what fired without one."""
    with outage(folder) as servers:
        settings = servers.settings(
            "tried",
            policy=PolicySettings(enter=0.01, exit=0.0, cooldown=0),
            model_watch_s=1.0,
            timers=TimerSettings(source_quiet_max=5_000),
        )
        kafka = settings.kafka.model_copy(update={"fetch_uncompressed_bytes_max": COMPRESSED_BYTES - 1})
        settings = settings.model_copy(update={"kafka": kafka})
        direct = servers.direct(settings)
        await ensure_topics(direct.kafka, topic_specs(direct))
        rules = text(Scale(FACTOR, 1.0))
        with WorkerProcess(settings, folder) as worker, Prometheus(rules=rules, every="250ms") as prometheus:
            await asyncio.to_thread(worker.wait_ready)
            async with Feed(direct.kafka) as feed:
                await asyncio.sleep(WARM_S)
                prometheus.watch([worker.address.removeprefix("http://")])
                trial = Trial(prometheus, console)
                wrong = await trial.quiet(QUIET_S)
                await slow_redis(trial, servers)
                await data_faults(trial, feed, direct, folder)
                await server_faults(trial, feed, servers)
                await last_faults(trial, feed, direct)
                await trial.fault("the worker is killed", {"Down"}, lambda: asyncio.to_thread(worker.kill))
                await model_faults(trial, servers, settings, prometheus)
            await low_source(trial, servers, settings, prometheus)
    return trial.fired, wrong


async def garbage(feed: Feed, records: int, partition: int) -> None:
    for _ in range(records):
        await feed.raw(b"no json", b"jane", partition)


async def data_faults(trial: Trial, feed: Feed, direct: Settings, folder: Path) -> None:
    """What producers and publishers do."""

    await trial.fault(
        "100 records that are no JSON", {"DeadLetters", "LossBudget"}, lambda: garbage(feed, 100, 0)
    )
    await trial.fault(
        "a producer with another partitioner", {"Misplaced"},
        lambda: asyncio.gather(*(feed.send("elsewhere", SystemClock().now_ms(), n) for n in range(4))),
    )  # fmt: skip
    broken = folder / "models" / TINY.name / "99"
    await trial.fault(
        "a version that is no model", {"ModelRefused"}, lambda: asyncio.to_thread(broken.mkdir),
        lambda: asyncio.to_thread(broken.rmdir),
    )  # fmt: skip
    opened = []

    async def begin() -> None:
        opened.append(await open_transaction(direct.kafka))

    async def abort() -> None:
        await opened[0].abort_transaction()
        await opened[0].stop()

    await trial.fault("a transaction stays open", {"OpenTransaction"}, begin, abort)


async def last_faults(trial: Trial, feed: Feed, direct: Settings) -> None:
    """What needs a long past, and what a partition does not recover from."""

    async def differ() -> None:
        feed.old = True

    async def again() -> None:
        feed.old = False

    await trial.fault("customers with another history", {"ScoreDrift"}, differ, again)
    await trial.fault(
        "a batch too large once decompressed", {"CorruptBatch"},
        lambda: compressed(direct.kafka, COMPRESSED_BYTES, 3),
    )  # fmt: skip
    await trial.fault("most of a partition is bad", {"PartitionStopped"}, lambda: garbage(feed, 15_000, 2))


async def slow_redis(trial: Trial, servers: Outage) -> None:
    """First of all: whatever else makes alerts late spends the same budget."""
    proxy = servers.redis_proxy
    await trial.fault(
        "Redis answers 0.6 s late", {"LatencyBudget:page"}, lambda: asyncio.to_thread(proxy.slow, 0.6),
        lambda: asyncio.to_thread(proxy.heal),
    )  # fmt: skip


async def server_faults(trial: Trial, feed: Feed, servers: Outage) -> None:
    """What networks and servers do."""
    proxy = servers.redis_proxy
    redis = Redis.from_url(servers.valkey.url)
    used = int((await redis.info("memory"))["used_memory"])
    await trial.fault(
        "Redis is nearly full", {"RedisMemory"}, lambda: redis.config_set("maxmemory", int(used * 1.1)),
        lambda: redis.config_set("maxmemory", 0),
    )  # fmt: skip
    await redis.aclose()
    await trial.fault(
        "Redis is cut off", {"ServerAway", "PartitionStuck", "NotReady", "Reopening", "Lag"},
        lambda: asyncio.to_thread(proxy.cut), lambda: asyncio.to_thread(proxy.heal),
    )  # fmt: skip

    async def silence() -> None:
        feed.quiet = True

    async def sound() -> None:
        feed.quiet = False

    await trial.fault("nobody produces", {"NoEvents", "TimersHeld"}, silence, sound)


async def model_faults(trial: Trial, servers: Outage, settings: Settings, prometheus: Prometheus) -> None:
    """What a model does, in a worker of this process."""
    scorer = Faulty(await asyncio.to_thread(load_scorer, servers))
    async with faulty_worker(beside(settings, "faulty"), scorer) as target:
        prometheus.watch([target])

        async def doubt() -> None:
            scorer.unsure.set()

        async def no_doubt() -> None:
            scorer.unsure.clear()

        async def stop_answering() -> None:
            scorer.hangs.set()

        await trial.fault("reasons that do not add up", {"Unexplained"}, doubt, no_doubt)
        await trial.fault("the model does not return", {"ScorerHung"}, stop_answering)
        scorer.go_on()


async def low_source(trial: Trial, servers: Outage, settings: Settings, prometheus: Prometheus) -> None:
    """A topic that brought a hundred records in this hour of each week, and brings none of it today."""
    kafka = settings.kafka.model_copy(update={"topic": "low"})
    low = beside(settings.model_copy(update={"kafka": kafka}), "low")
    direct = servers.direct(low)
    await ensure_topics(direct.kafka, topic_specs(direct))
    await weeks_of(direct.kafka)
    folder = servers.folder / "low"
    folder.mkdir()
    with WorkerProcess(low, folder) as worker:
        await asyncio.to_thread(worker.wait_ready)

        async def watch() -> None:
            prometheus.watch([worker.address.removeprefix("http://")])

        await trial.fault("producers bring less than a fifth", {"SourceLow"}, watch)


def beside(settings: Settings, name: str) -> Settings:
    """For a second worker, which knows nothing of the first."""
    kafka = settings.kafka.model_copy(update={"group": name})
    redis = settings.redis.model_copy(update={"prefix": f"{name}:"})
    return settings.model_copy(update={"kafka": kafka, "redis": redis, "alerts_from": "now"})


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.alerts", description="Cause every alert for real.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what fired there")
    given = parser.parse_args()
    console = Console()
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="ebbtide-alerts-") as folder:
        fired, wrong = asyncio.run(run(Path(folder), console))
    named = {rule["alert"] for group in document()["groups"] for rule in group["rules"] if "alert" in rule}
    missing = named - {f"Ebbtide{each.alert.partition(':')[0]}" for each in fired if each.seconds is not None}
    table = Table("alert", "fault", "seconds", title=f"windows x {FACTOR:.4f}")
    for each in fired:
        table.add_row(each.alert, each.fault, "-" if each.seconds is None else f"{each.seconds:.1f}")
    console.print(table)
    console.print(f"fired without a fault: {sorted(wrong) or 'none'}; not fired: {sorted(missing) or 'none'}")
    if given.json:
        told = {
            "fired": [each._asdict() for each in fired],
            "wrong": sorted(wrong),
            "missing": sorted(missing),
        }
        given.json.write_text(json.dumps(told, indent=2) + "\n")
    return 1 if wrong or missing else 0


if __name__ == "__main__":
    sys.exit(main())
