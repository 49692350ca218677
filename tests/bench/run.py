"""One variant, from an empty topic to its figures.

    fill its state ─▶ backlog ─▶ start ─▶ worked off: maximum ─▶ paced at half of that ─▶ paced at the common rate

What a figure means is said in `Figures`; how time is taken, in `logs.py`.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError
from redis.asyncio import Redis

from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.store.redis.store import RedisStore
from ebbtide.stream.kafka.client import admin
from ebbtide.stream.kafka.settings import KafkaSettings
from ebbtide.stream.kafka.topics import TopicSpec, ensure_topics
from tests.bench.logs import Alerts, Input, latencies, read_alerts, read_input, throughput
from tests.bench.parts import PARTS
from tests.bench.producer import PARTITIONS
from tests.bench.publish import ALERT_SHARE
from tests.bench.services import Cpu, Place, Service, Variant, prefix_of
from tests.bench.traffic import CUSTOMERS, SPEC

KNOWN = 120_000  # events folded before anything is measured: six a customer
SETTLE_S = 3.0  # of a paced phase, not counted
ALERTS_WANTED = 1_000  # a p99 stands on ten
DRAIN_S_MAX = 400.0
CUSTOMERS_ASKED = 500
PARTS_EVENTS = 40_000  # of the backlog, on which the parts are measured
STAGES = ("parse", "load", "fold", "score", "decide", "store", "emit")

Say = Callable[[str], None]


@dataclass(slots=True)
class Latency:
    """Event-to-alert, ms: from the producer's sending to the broker's append, of `alerts` alerts at `rate` events/s.
    `late_ms_max`: how far the producer itself once lagged behind. cores: busy meanwhile, `others` with the producer."""

    rate: float
    alerts: int
    p50_ms: float
    p99_ms: float
    late_ms_max: float
    cores: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Figures:
    """events_per_s: maximum, over the steady part of a backlog. half, common: latency at half of it, and at the rate
    common to all. cores: busy on average meanwhile, by process. split_us: µs an event that a batch spends in each
    stage, waiting for its turn on the event loop included. batches: of one run through the backlog. parts_us: CPU µs an
    event of each part alone (`parts.py`). store_bytes_per_customer: what its server, or its disk, keeps of one."""

    events_per_s: float = 0.0
    half: Latency | None = None
    common: Latency | None = None
    alert_share: float = 0.0
    cores: dict[str, float] = field(default_factory=dict)
    split_us: dict[str, float] = field(default_factory=dict)
    batches: dict[str, float] = field(default_factory=dict)
    dispatches: dict[str, float] = field(default_factory=dict)
    rss_bytes_max: int = 0
    store_bytes_per_customer: float = 0.0
    producer_per_s: float = 0.0
    load: tuple[float, float] = (0.0, 0.0)
    parts_us: dict[str, float] = field(default_factory=dict)

    @property
    def cpu_us(self) -> float:
        """CPU µs an event that the worker spent at its maximum."""
        return self.cores.get("worker", float("nan")) / self.events_per_s * 1e6

    @property
    def efficiency(self) -> float:
        """What the parts cost alone, over what the worker spent."""
        return sum(self.parts_us.values()) / self.cpu_us


class Run:
    """The run of one variant at one place."""

    def __init__(self, variant: Variant, place: Place, seconds: float, common_rate: float, say: Say) -> None:
        self._variant, self._place, self._seconds, self._common_rate = variant, place, seconds, common_rate
        self._say = say
        self._settings = KafkaSettings(url=place.kafka_url, group=variant.topic, topic=variant.topic)
        self._sent = 0  # events of the stream so far, whether through Kafka or not
        self._filled = 0  # of them, not through Kafka

    async def measure(self) -> Figures:
        """All of it."""
        figures, before = Figures(), os.getloadavg()[0]
        await self._make_topics()
        await self._fill()
        first, count = self._sent, round(self._variant.guess_per_s * self._seconds)
        self._say(f"{self._variant.name}: a backlog of {count:,} events")
        figures.producer_per_s = count / (await self._produce(count, 0))["seconds"]
        with Service(self._variant, self._place) as service:
            self._say(f"{self._variant.name}: works off {count:,} events")
            await self._drained(service)
            source, alerts = await self._logs()
            steady = throughput(source, alerts, first, count)
            figures.events_per_s = steady.events_per_s
            figures.cores = service.cpu.cores(steady.from_ms, steady.to_ms)
            figures.alert_share = len(latencies(source, alerts, first, count)) / count
            if self._variant.ours and self._variant.told:
                self._look_inside(service.metrics(), figures, source.fetch_us)
            half = await self._paced(service, steady.events_per_s / 2)
            common = None
            if self._common_rate < steady.events_per_s * 0.8:
                common = await self._paced(service, self._common_rate)
            figures.rss_bytes_max, cpu = service.rss_bytes_max, service.cpu
        source, alerts = await self._logs()
        figures.half = self._latency(source, alerts, half, cpu)
        figures.common = self._latency(source, alerts, common, cpu) if common else None
        figures.store_bytes_per_customer = await self._store_bytes()
        figures.load = (before, os.getloadavg()[0])
        return figures

    async def parts_us(self, alert_share: float) -> dict[str, float]:
        """CPU µs an event of what the parts cost alone, after `measure`, when nobody works. Ours only."""
        count = min(self._sent - KNOWN, PARTS_EVENTS)
        self._say(f"{self._variant.name}: its parts alone")
        place, v = self._place, self._variant
        arguments = (place.kafka_url, place.redis_url, place.directory, v.topic, v.alerts, KNOWN, count)
        told: dict[str, float] = json.loads(await python("tests.bench.parts", *map(str, arguments)))
        told["emit"] = told["alert"] * alert_share
        return {part: told[part] for part in PARTS}

    async def _make_topics(self) -> None:
        """The broker stamps alerts itself: its clock is the producer's, since they share a machine."""
        v, stamped = self._variant, {"message.timestamp.type": "LogAppendTime"}
        await ensure_topics(
            self._settings,
            [TopicSpec(v.topic, PARTITIONS, "-"), TopicSpec(v.alerts, PARTITIONS, "-", stamped)],
        )

    async def _fill(self) -> None:
        """Customers who are known, so that what follows is one mix of work."""
        self._say(f"{self._variant.name}: filling its state with {KNOWN:,} events")
        place = self._place
        if self._variant.name == "idiomatic":
            await python("tests.bench.backfill", place.redis_url, str(place.start_ms), str(KNOWN))
            self._sent = self._filled = KNOWN
        else:
            await self._produce(KNOWN, 0)
            whole_batches = replace(self._variant, fetch_records_max=1000, exactly_once=False)
            with Service(whole_batches, place) as service:
                await self._drained(service)

    async def _produce(self, count: int, rate: float) -> dict[str, float]:
        arguments = (
            self._place.kafka_url,
            self._variant.topic,
            self._place.start_ms,
            self._sent,
            count,
            rate,
            int(self._variant.hot),
        )
        answer = await python("tests.bench.producer", *map(str, arguments))
        self._sent += count
        told: dict[str, float] = json.loads(answer)
        return told

    async def _paced(self, service: Service, rate: float) -> tuple[float, int, int, float]:
        """Rate, first event and number of events that count, and how late the producer once was."""
        seconds = min(max(self._seconds, ALERTS_WANTED / (ALERT_SHARE * rate)), 4 * self._seconds)
        self._say(f"{self._variant.name}: {rate:,.0f} events/s for {seconds:.0f} s")
        settle, count = round(SETTLE_S * rate), round(seconds * rate)
        first = self._sent + settle
        told = await self._produce(settle + count, rate)
        await self._drained(service)
        return (settle + count) / told["seconds"], first, count, told["late_s_max"] * 1000

    def _latency(
        self, source: Input, alerts: Alerts, phase: tuple[float, int, int, float], cpu: Cpu
    ) -> Latency:
        rate, first, count, late_ms_max = phase
        sent_ms = source.sent_ms[(source.number >= first) & (source.number < first + count)]
        cores = cpu.cores(int(sent_ms.min()), int(sent_ms.max()))
        spent = latencies(source, alerts, first, count)
        p50_ms, p99_ms = np.quantile(spent, [0.5, 0.99]).tolist() if len(spent) else (float("nan"),) * 2
        return Latency(rate, len(spent), p50_ms, p99_ms, late_ms_max, cores)

    async def _logs(self) -> tuple[Input, Alerts]:
        source = await read_input(self._settings, self._variant.topic)
        return source, await read_alerts(self._settings, self._variant.alerts, source)

    async def _drained(self, service: Service) -> None:
        """Until everything sent is committed."""
        wanted, deadline_s = self._sent - self._filled, time.monotonic() + DRAIN_S_MAX
        async with admin(self._settings) as client:
            while (done := await self._committed(client)) < wanted:
                service.check()
                if time.monotonic() > deadline_s:
                    raise RuntimeError(
                        f"{self._variant.name} did not finish in {DRAIN_S_MAX:.0f} s: {done:,} of {wanted:,} events"
                        f" are committed, load {os.getloadavg()[0]:.1f}; its log ends with:\n{service.log_end()}"
                    )
                await asyncio.sleep(0.5)

    async def _committed(self, client: AIOKafkaAdminClient) -> int:
        try:
            offsets = await client.list_consumer_group_offsets(self._variant.topic)
        except GroupCoordinatorNotAvailableError:  # the first group of this broker is being made
            return 0
        return sum(
            max(0, committed.offset) for tp, committed in offsets.items() if tp.topic == self._variant.topic
        )

    def _look_inside(self, metrics: dict[str, float], figures: Figures, fetch_us: float) -> None:
        events = metrics["ebbtide_events_total"]
        seconds = {stage: metrics[f'ebbtide_stage_seconds_sum{{stage="{stage}"}}'] for stage in STAGES}
        figures.split_us = {"fetch": fetch_us, **{stage: s / events * 1e6 for stage, s in seconds.items()}}
        batches = metrics['ebbtide_stage_seconds_count{stage="fold"}']
        rows, dispatches = metrics["ebbtide_dispatch_rows_sum"], metrics["ebbtide_dispatch_rows_count"]
        figures.batches = {
            "events": events / batches, "rows": rows / dispatches, "rows_per_event": rows / events,
            "padding_share": metrics["ebbtide_dispatch_padding_rows_total"] / rows,
        }  # fmt: skip
        for name, value in metrics.items():
            if name.startswith("ebbtide_dispatches_total"):
                reason = name.split('reason="')[1].split('"')[0]
                figures.dispatches[reason] = figures.dispatches.get(reason, 0.0) + value

    async def _store_bytes(self) -> float:
        """All that is kept of a customer: MEMORY USAGE on average over some of them, or RocksDB's files by customer."""
        url = self._place.redis_url
        if self._variant.name == "quix":
            files = [path for path in self._place.quix_state.rglob("*") if path.is_file()]
            return sum(path.stat().st_size for path in files) / CUSTOMERS
        if self._variant.ours:
            prefix = prefix_of(self._variant)
            store = RedisStore(url, Layout(SPEC).dtype, self._variant.topic, PARTITIONS, prefix=prefix)
            try:
                names, _ = await store.due(0, 2**53, CUSTOMERS_ASKED)
                usage = await store.memory_usage(0, names)
                return float(usage.records.mean() + usage.due)
            finally:
                await store.close()
        async with Redis.from_url(url) as redis:
            keys = [key async for key in redis.scan_iter("u:*", count=10_000) if not key.endswith(b":seq")]
            some = keys[:: max(1, len(keys) // CUSTOMERS_ASKED)]
            used = [
                (await redis.memory_usage(k) or 0) + (await redis.memory_usage(k + b":seq") or 0)
                for k in some
            ]
            return float(np.mean(used))


async def python(module: str, *arguments: str) -> bytes:
    """What a module of ours prints, run in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await process.communicate()
    if process.returncode:
        raise RuntimeError(
            f"{module} ended with {process.returncode}:\n{err[-4000:].decode(errors='replace')}"
        )
    return out
