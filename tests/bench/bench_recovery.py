"""How long a restart takes, how fast a state is made again, and what a backlog does to memory.

    python -m tests.bench.bench_recovery [--parts restart rebuild backlog] [--quick] [--json FILE]

    restart   exec ─▶ /readyz 200, exec ─▶ first step applied: alternately among few customers and among many
    rebuild   a log below the group's committed offset: `ebbtide rebuild`, and a worker that finds Redis empty
    backlog   millions of records wait, Redis is slow: the worker's memory, sampled, against one that has nothing to do

Kafka, Valkey and every worker are processes of their own, as in production; marks are set as Kafka's own tools would,
so that nothing has to be worked off first. It refuses to judge: it prints figures. `--quick` is small in everything.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
import yaml
from aiokafka import AIOKafkaConsumer, OffsetAndMetadata, TopicPartition
from redis import Redis

from ebbtide.featurestore.record.fold import Folder
from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.spec import dump_spec
from ebbtide.featurestore.store.checkpoint import Checkpoint
from ebbtide.featurestore.store.commit import CUSTOMERS_MAX, Commit
from ebbtide.ops.config.child import child_environment, for_child
from ebbtide.ops.config.policy import PolicySettings
from ebbtide.ops.config.settings import RedisSettings, Settings, TimerSettings, TopicSettings
from ebbtide.ops.stack.local import LocalStack
from ebbtide.ops.worker.connect import open_store, topic_specs
from ebbtide.ops.worker.process import WorkerProcess
from ebbtide.stream.kafka.reader import log_ranges
from ebbtide.stream.kafka.settings import KafkaSettings
from ebbtide.stream.kafka.topics import ensure_topics, partition_for
from tests.bench.producer import PARTITIONS
from tests.bench.traffic import BEGINS_BEFORE_MS, SPEC, batch_of, clicks
from tests.support.servers.proxy import Proxy

POLL_S = 0.01
SAMPLE_EVERY_S = 1.0
START_S_MAX = 300.0
PRODUCED_AT_ONCE = 500_000  # drawn in the producer's memory before the first is sent
RESTART_RECORDS = 1_000
RESTARTS = {
    "ready_s": "exec to /readyz 200",
    "first_step_s": "exec to first step",
    "open_s": "/healthz to first step",  # without TensorFlow, which takes most of the time before
}
SLOW_LATENCY_S, SLOW_BYTES_PER_S = 0.02, 4e6
"""Redis at twenty milliseconds and 4 MB/s a connection: several times slower than the worker would like."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    few: int = 10_000
    many: int = 1_000_000
    runs: int = 5
    log: int = 1_000_000
    backlog: int = 5_000_000
    minutes: float = 5.0


QUICK = Sizes(few=1_000, many=10_000, runs=1, log=20_000, backlog=50_000, minutes=0.2)


class Bench:
    """The servers, the model, and settings for a topic of its own for each measurement."""

    def __init__(self, stack: LocalStack, directory: Path, start_ms: int, *, quick: bool) -> None:
        self._stack, self.directory, self._start_ms = stack, directory, start_ms
        self.spec = directory / "spec.yaml"
        self.spec.write_text(yaml.safe_dump(dump_spec(SPEC)))
        self.layout = Layout(SPEC)
        self.redis = Redis.from_url(stack.redis_url)
        if quick:
            from tests.support.seams.models import publish

            self._model, self._enter = publish(directory / "models", spec=SPEC, sizes=(8, 128)), 0.9
        else:
            command = [sys.executable, "-m", "tests.bench.publish", str(directory), str(start_ms)]
            subprocess.run(command, check=True, capture_output=True)
            self._model = directory / "models" / SPEC.name
            self._enter = json.loads((directory / "thresholds.json").read_text())["ours"]

    def settings(self, name: str, redis_url: str = "") -> Settings:
        """Of a worker on topic `name`, which exists from now on."""
        settings = Settings(
            spec=self.spec, model=self._model, alerts_from="start", timers=TimerSettings(clock="off"),
            kafka=KafkaSettings(url=self._stack.kafka_url, topic=name, group=name),
            redis=RedisSettings(url=redis_url or self._stack.redis_url, prefix=f"{name}:"),
            topics=TopicSettings(alerts=f"{name}-alerts", dead_letters=f"{name}-dead", partitions=PARTITIONS),
            policy=PolicySettings(enter=self._enter, exit=self._enter, cooldown=0),
        )  # fmt: skip
        asyncio.run(ensure_topics(settings.kafka, topic_specs(settings)))
        return settings

    def produce(self, topic: str, first: int, count: int) -> None:
        """Events `first` to `first + count - 1` of the bench's stream."""
        for at in range(first, first + count, PRODUCED_AT_ONCE):
            some = min(PRODUCED_AT_ONCE, first + count - at)
            numbers = [str(n) for n in (self._start_ms, at, some)]
            command = [sys.executable, "-m", "tests.bench.producer", self._stack.kafka_url, topic, *numbers]
            subprocess.run(command, check=True, capture_output=True)

    def checkpoints(self, settings: Settings) -> list[bytes]:
        """Every partition's checkpoint, as it lies there."""
        tag = f"{settings.redis.prefix}{settings.kafka.topic}"
        return [
            bytes(checkpoint or b"")
            for checkpoint in self._get([f"{tag}:{{p{n}}}:checkpoint" for n in range(PARTITIONS)])
        ]

    def moved(self, settings: Settings, before: list[bytes]) -> bool:
        """A step was applied since."""
        return self.checkpoints(settings) != before

    def offsets(self, settings: Settings) -> int:
        """How far all partitions are, together."""
        return sum(
            Checkpoint.parse(checkpoint.decode()).offset
            for checkpoint in self.checkpoints(settings)
            if checkpoint
        )

    def _get(self, keys: list[str]) -> list[Any]:
        return list(self.redis.mget(keys))

    async def fill(self, settings: Settings, customers: int) -> None:
        """So many customers, each with a record that the stream could have made; the checkpoints say: from offset 0
        on."""
        events = batch_of(clicks(0, 40_000, self._start_ms))
        rows, _ = Folder(self.layout).fold(self.layout.empty(len(events.customers)), events)
        due = Folder(self.layout).due(rows)
        names = np.array([f"customer-{n:05}" for n in range(customers)])
        home = np.array([partition_for(name.encode(), PARTITIONS) for name in names.tolist()])
        async with open_store(settings, self.layout, PARTITIONS) as store:
            for partition in range(PARTITIONS):
                checkpoint: Checkpoint | None = None
                mine = np.flatnonzero(home == partition)
                for at in range(0, len(mine), CUSTOMERS_MAX):
                    part = mine[at : at + CUSTOMERS_MAX]
                    after = Checkpoint(
                        0, (checkpoint.sequence if checkpoint else 0) + 1, 0, self.layout.id, PARTITIONS
                    )
                    like = part % len(rows)
                    await store.apply(
                        Commit(partition, checkpoint, after, names[part].tolist(), rows[like], due[like])
                    )
                    checkpoint = after


def says_yes(worker: WorkerProcess, path: str) -> bool:
    """/readyz or /healthz answers 200."""
    try:
        with urllib.request.urlopen(worker.address + path, timeout=2):
            return True
    except (urllib.error.HTTPError, OSError):
        return False


def wait(worker: WorkerProcess, *happened: Callable[[], bool]) -> list[float]:
    """Monotonic times at which each happened."""
    at_s: dict[int, float] = {}
    end_s = time.monotonic() + START_S_MAX
    while len(at_s) < len(happened):
        for n, has in enumerate(happened):
            if n not in at_s and has():
                at_s[n] = time.monotonic()
        worker.check()
        if time.monotonic() > end_s:
            raise TimeoutError(f"not within {START_S_MAX:.0f} s: see {worker.log}")
        time.sleep(POLL_S)
    return [at_s[n] for n in range(len(happened))]


def restart(bench: Bench, sizes: Sizes) -> dict[str, Any]:
    """Seconds from exec, by number of customers; alternating, after one start each that does not count
    (unless one is all)."""
    worlds = {customers: bench.settings(f"restart-{customers}") for customers in (sizes.few, sizes.many)}
    for customers, settings in worlds.items():
        asyncio.run(bench.fill(settings, customers))
    taken: dict[int, dict[str, list[float]]] = {n: {name: [] for name in RESTARTS} for n in worlds}
    warm = min(1, sizes.runs - 1)
    for run in range(warm + sizes.runs):
        for customers, settings in worlds.items():
            bench.produce(settings.kafka.topic, run * RESTART_RECORDS, RESTART_RECORDS)
            before = bench.checkpoints(settings)
            began_s = time.monotonic()
            with WorkerProcess(settings, bench.directory) as worker:
                up_s, *at_s = wait(
                    worker,
                    partial(says_yes, worker, "/healthz"),
                    partial(says_yes, worker, "/readyz"),
                    partial(bench.moved, settings, before),
                )
            if run >= warm:
                spans_s = [*(s - began_s for s in at_s), at_s[1] - up_s]
                for name, span_s in zip(RESTARTS, spans_s, strict=True):
                    taken[customers][name].append(round(span_s, 3))
    result: dict[str, Any] = {}
    for name in RESTARTS:
        few, many = (statistics.median(taken[n][name]) for n in (sizes.few, sizes.many))
        result[name] = {str(n): taken[n][name] for n in worlds} | {"ratio": round(many / few, 3)}
    return result


async def commit_ends(settings: Settings) -> int:
    """Set the group's committed offsets to the log's ends: all of it is said. Returns how many offsets that are."""
    ends = {p: end for p, (_, end) in (await log_ranges(settings.kafka, settings.kafka.topic)).items()}
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.kafka.url, group_id=settings.kafka.group, enable_auto_commit=False
    )
    await consumer.start()
    tps = {TopicPartition(settings.kafka.topic, p): OffsetAndMetadata(end, "") for p, end in ends.items()}
    consumer.assign(list(tps))
    await consumer.commit(tps)
    await consumer.stop()
    return sum(ends.values())


def rebuild(bench: Bench, sizes: Sizes) -> dict[str, Any]:
    """Records a second of the command, and of a worker that finds no state; one after the other."""
    settings = bench.settings("rebuild")
    bench.produce(settings.kafka.topic, 0, sizes.log)
    total = asyncio.run(commit_ends(settings))
    config, out = bench.directory / "rebuild.yaml", bench.directory / "rebuild.json"
    data, secrets = for_child(settings)
    config.write_text(yaml.safe_dump(data))
    command = [
        sys.executable,
        "-m",
        "ebbtide.ops.cli",
        "rebuild",
        "--config",
        str(config),
        "--prefix",
        "rebuilt:",
    ]
    began_s = time.monotonic()
    subprocess.run(
        [*command, "--json", str(out)], check=True, capture_output=True, env=child_environment(**secrets)
    )
    whole_s = time.monotonic() - began_s
    said = json.loads(out.read_text())
    began_s = time.monotonic()
    with WorkerProcess(settings, bench.directory) as worker:
        first_s, ready_s = wait(
            worker, lambda: bench.offsets(settings) > 0, lambda: says_yes(worker, "/readyz")
        )
    assert bench.offsets(settings) == total
    return {
        "records": total, "command_records_per_s": said["records_per_s"], "command_s": round(whole_s, 1),
        "worker_records_per_s": round(total / (ready_s - first_s), 1), "worker_ready_s": round(ready_s - began_s, 1),
    }  # fmt: skip


def backlog(bench: Bench, sizes: Sizes) -> dict[str, Any]:
    """The worker's resident memory: with nothing to do, and for so many minutes before a backlog and a slow Redis."""
    settings = bench.settings("backlog")
    warm = min(20_000, sizes.backlog // 2)
    bench.produce(settings.kafka.topic, 0, warm)
    with WorkerProcess(settings, bench.directory) as worker:
        wait(worker, lambda: says_yes(worker, "/readyz"), lambda: bench.offsets(settings) >= warm)
        idle, _ = sample(worker, min(20.0, sizes.minutes * 60))
        idle_max = worker.peak_rss_bytes()
    bench.produce(settings.kafka.topic, warm, sizes.backlog)
    with Proxy(urlsplit(bench._stack.redis_url).port or 0) as proxy:
        proxy.slow(SLOW_LATENCY_S, SLOW_BYTES_PER_S)
        slow = bench.settings("backlog", f"redis://127.0.0.1:{proxy.port}/0")
        slow = slow.model_copy(
            update={"redis": slow.redis.model_copy(update={"prefix": settings.redis.prefix})}
        )
        with WorkerProcess(slow, bench.directory) as worker:
            wait(worker, lambda: bench.offsets(settings) > warm)
            samples, paused = sample(worker, sizes.minutes * 60)
            peak, done = worker.peak_rss_bytes(), bench.offsets(settings) - warm
    return {
        "backlog": sizes.backlog, "applied": done, "minutes": sizes.minutes, "rss_idle_bytes": idle[-1],
        "rss_idle_peak_bytes": idle_max, "rss_peak_bytes": peak, "ratio": round(peak / idle_max, 3),
        "rss_bytes": samples[:: max(1, len(samples) // 60)], "paused_share": paused,
        "bounds": {
            "redis.cache_bytes_max": settings.redis.cache_bytes_max,
            "kafka.fetch_records_max": settings.kafka.fetch_records_max,
            "kafka.fetch_partition_bytes_max": settings.kafka.fetch_partition_bytes_max,
            "kafka.fetched_batches_max": settings.kafka.fetched_batches_max,
            "batching.queued_batches_max": settings.batching.queued_batches_max,
        },
    }  # fmt: skip


def sample(worker: WorkerProcess, seconds: float) -> tuple[list[int], float]:
    """Resident bytes, one a second, and the share of (partition, sample) at which the queue was full and the fetch
    paused."""
    process, taken, paused = psutil.Process(worker.pid), [], []
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        worker.check()
        taken.append(int(process.memory_info().rss))
        with urllib.request.urlopen(worker.address + "/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        paused += [float(line.split()[-1]) for line in lines if line.startswith("ebbtide_partition_paused{")]
        time.sleep(SAMPLE_EVERY_S)
    return taken, round(statistics.fmean(paused), 3) if paused else 0.0


def told(part: str, figures: dict[str, Any]) -> str:
    """A measurement in lines."""
    if part == "restart":
        lines = []
        for name, words in RESTARTS.items():
            for customers, taken in figures[name].items():
                if customers != "ratio":
                    low, middle, high = min(taken), statistics.median(taken), max(taken)
                    of = f"{int(customers):9,} customers"
                    lines.append(
                        f"  {words:22} {of}  {low:.2f} / {middle:.2f} / {high:.2f} s ({len(taken)} runs)"
                    )
            lines.append(f"  {words:22} ratio of medians     {figures[name]['ratio']}")
        return "\n".join(lines)
    if part == "rebuild":
        return (
            f"  {figures['records']:,} records: ebbtide rebuild {figures['command_records_per_s']:,.0f} records/s"
            f" ({figures['command_s']} s in all), a worker without state {figures['worker_records_per_s']:,.0f}"
            f" records/s (ready after {figures['worker_ready_s']} s)"
        )
    mib = {
        name: figures[name] / 2**20 for name in ("rss_idle_bytes", "rss_idle_peak_bytes", "rss_peak_bytes")
    }
    return (
        f"  {figures['backlog']:,} records waiting, {figures['applied']:,} applied in {figures['minutes']} min: peak"
        f" {mib['rss_peak_bytes']:.0f} MiB; with nothing to do {mib['rss_idle_bytes']:.0f} (peak"
        f" {mib['rss_idle_peak_bytes']:.0f}) MiB; ratio of peaks {figures['ratio']}; queues full in"
        f" {figures['paused_share']:.0%} of samples"
    )


PARTS = {"restart": restart, "rebuild": rebuild, "backlog": backlog}


def main() -> None:
    parser = argparse.ArgumentParser(description="restart, rebuild and backlog")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--quick", action="store_true", help="small in everything, to see that it works")
    for name in Sizes.__slots__:
        parser.add_argument(f"--{name}", type=float if name == "minutes" else int)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    base = QUICK if asked.quick else Sizes()
    own = {name: getattr(asked, name) for name in Sizes.__slots__ if getattr(asked, name) is not None}
    sizes = Sizes(**{name: getattr(base, name) for name in Sizes.__slots__} | own)
    start_ms = time.time_ns() // 1_000_000 - BEGINS_BEFORE_MS
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="ebbtide-bench-") as folder, LocalStack() as stack:
        bench = Bench(stack, Path(folder), start_ms, quick=asked.quick)
        for part in asked.parts:
            result[part] = PARTS[part](bench, sizes)
            print(f"{part}\n{told(part, result[part])}", flush=True)
            if asked.json:
                asked.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
