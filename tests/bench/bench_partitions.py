"""What partitions cost by being many: `python -m tests.bench.bench_partitions [--short] [--partitions 8 200 1000]`.

One worker with an arithmetic model owns every partition of a topic on the local Kafka and Valkey, in a process without
TensorFlow. Three phases each: it *opens* them all; gets small events at an even rate (*paced*); works off a *backlog*.
Printed for each: seconds, its resident memory at the end and at most, its CPU, and the longest gap of its event loop: a
task that asks for PROBE_S of sleep notes how much later it was woken. On a busy machine some of a gap is the machine's:
beside it stands the longest gap that the same probe saw meanwhile in a process that does nothing else.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import psutil
from aiokafka import AIOKafkaProducer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ebbtide.featurestore.record.layout import Layout
from ebbtide.featurestore.store.redis.store import RedisStore
from ebbtide.ops.console import Steps, steps, table_and_json
from ebbtide.ops.stack.local import LocalStack
from ebbtide.stream.decision.episodes import EpisodePolicy
from ebbtide.stream.kafka.committed_log import open_committed_log
from ebbtide.stream.kafka.producer import KafkaSink
from ebbtide.stream.kafka.settings import KafkaSettings
from ebbtide.stream.kafka.topics import TopicSpec, ensure_topics
from ebbtide.stream.kafka.transactions.sink import ExactlyOnce
from ebbtide.stream.pipeline import Tools
from tests.bench.adapter import running, tools_of
from tests.bench.machine import Machine, Watch
from tests.bench.traffic import BEGINS_BEFORE_MS, SPEC, clicks, records
from tests.support.workers.worlds import Arithmetic

EXACTLY_ONCE, AT_LEAST_ONCE = "exactly-once", "at-least-once"
PARTITIONS = (8, 200, 1_000)
RATE_PER_S, SECONDS = 1_000, 10
BACKLOG = 60_000
PROBE_S = 0.002
READY_S_MAX, DRAIN_S_MAX = 180.0, 180.0
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Phase:
    """What a worker's process saw of itself; `idle_gap_ms_max`: what a process beside it, doing nothing, saw."""

    partitions: int
    phase: str
    seconds: float
    events: int
    cpu_s: float
    rss_bytes: int
    rss_bytes_max: int
    gap_ms_max: float
    gap_ms_p99: float
    idle_gap_ms_max: float
    sockets: int


class Probe:
    """How late this process's event loop wakes a sleeper, ms, and how much memory it holds. A context manager."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self.take()

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def take(self) -> dict[str, float]:
        """What was seen since the last time."""
        rss = self._process.memory_info().rss
        gaps = sorted(getattr(self, "_gaps_ms", [])) or [0.0]
        seen = {
            "gap_ms_max": gaps[-1],
            "gap_ms_p99": gaps[int(0.99 * len(gaps))],
            "rss_bytes": rss,
            "rss_bytes_max": max(rss, getattr(self, "_rss_max", 0)),
            "sockets": len(self._process.net_connections("tcp")),
            "cpu_s": time.process_time() - getattr(self, "_cpu_s", 0.0),
        }
        self._gaps_ms: list[float] = []
        self._rss_max, self._cpu_s = rss, time.process_time()
        return seen

    async def _watch(self) -> None:
        looked_s = 0.0
        while True:
            asked_s = time.perf_counter()
            await asyncio.sleep(PROBE_S)
            woken_s = time.perf_counter()
            self._gaps_ms.append(max(0.0, woken_s - asked_s - PROBE_S) * 1000)
            if woken_s - looked_s > 0.1:
                looked_s, self._rss_max = woken_s, max(self._rss_max, self._process.memory_info().rss)


async def worker(kafka_url: str, redis_url: str, topic: str, partitions: int, promise: str) -> None:
    """The process that is measured. Prints what it saw when it is ready, and again for every line that it reads."""
    kafka = KafkaSettings(url=kafka_url, group=topic, topic=topic)
    layout, model = (
        Layout(SPEC),
        Arithmetic(SPEC, EpisodePolicy.of(enter=0.4, exit=0.3, cooldown_ms=0), version=1),
    )
    store = RedisStore(redis_url, layout.dtype, topic, partitions, prefix=f"{topic}:")
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with ExactlyOnce(kafka) if promise == EXACTLY_ONCE else KafkaSink(kafka) as sink:
        tools = tools_of(topic, layout, model, store, sink)
        await watched(kafka, tools, partitions, lines)
    await store.close()


async def watched(kafka: KafkaSettings, tools: Tools, partitions: int, lines: asyncio.StreamReader) -> None:
    """A worker with everything compiled, under the probe from before it joins its group."""
    async with Probe() as probe, running(kafka, tools) as at_work:
        while at_work.not_ready_reasons or len(at_work.partitions) < partitions:  # noqa: ASYNC110 -- what happens is told by no event
            await asyncio.sleep(0.05)
        assert "tensorflow" not in sys.modules
        print(json.dumps(probe.take()), flush=True)
        while await lines.readline():
            print(json.dumps(probe.take()), flush=True)


async def idle() -> None:
    """The process beside it that does nothing: for every line that it reads it prints what it saw."""
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with Probe() as probe:
        while await lines.readline():
            print(json.dumps(probe.take()), flush=True)


class Child:
    """One of the two processes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def seen(self, *, ask: bool = True) -> dict[str, float]:
        """What it saw since the last time. Raises RuntimeError when it has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if ask:
            self._process.stdin.write(b"\n")
        async with asyncio.timeout(READY_S_MAX):
            line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a process of the bench ended with {await self._process.wait()}")
        found: dict[str, float] = json.loads(line)
        return found


@asynccontextmanager
async def child(*arguments: str) -> AsyncIterator[Child]:
    """This module in a process of its own, which ends with its input."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.bench.bench_partitions", *arguments,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield Child(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(30):
                await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()


class Feed:
    """The clickstream into a topic."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._kafka, self._start_ms, self.sent = kafka, time.time_ns() // 1_000_000 - BEGINS_BEFORE_MS, 0

    async def send(self, count: int, rate_per_s: float | None) -> None:
        """The next `count` events, evenly, or as fast as they go."""
        made = records(clicks(self.sent, count, self._start_ms))
        self.sent += count
        async with AIOKafkaProducer(bootstrap_servers=self._kafka.url, linger_ms=5) as producer:
            began_s = time.monotonic()
            for n, (key, value) in enumerate(made):
                if rate_per_s and n % 10 == 0:
                    await asyncio.sleep(max(0.0, n / rate_per_s - (time.monotonic() - began_s)))
                await producer.send(self._kafka.topic, value, key)
            await producer.flush()

    async def worked_off(self) -> None:
        """Wait until the group has committed all of it."""
        async with asyncio.timeout(DRAIN_S_MAX), open_committed_log(self._kafka) as log:
            while sum(found.offset for found in (await log.committed()).values()) < self.sent:  # noqa: ASYNC110 -- as above
                await asyncio.sleep(0.2)


async def measure(stack: LocalStack, partitions: int, promise: str, *, short: bool) -> list[Phase]:
    """The three phases of a number of partitions."""
    topic = f"bench-partitions-{partitions}"
    kafka = KafkaSettings(url=stack.kafka_url, group=topic, topic=topic)
    await ensure_topics(kafka, [TopicSpec(topic, partitions, "-"), TopicSpec(f"{topic}-alerts", 4, "-")])
    feed, phases = Feed(kafka), list[Phase]()
    arguments = ("worker", stack.kafka_url, stack.redis_url, topic, str(partitions), promise)
    async with child("idle") as beside, child(*arguments) as at_work:
        began_s, sent = time.monotonic(), 0

        async def note(phase: str, *, ask: bool = True) -> None:
            nonlocal began_s, sent
            seen = await at_work.seen(ask=ask)
            gap, now_s = (await beside.seen())["gap_ms_max"], time.monotonic()
            own = {name: seen[name] for name in ("cpu_s", "gap_ms_max", "gap_ms_p99")}
            sockets = int(seen["sockets"])
            rss, rss_max = int(seen["rss_bytes"]), int(seen["rss_bytes_max"])
            phases.append(
                Phase(
                    partitions, phase, now_s - began_s, feed.sent - sent, rss_bytes=rss, rss_bytes_max=rss_max,
                    idle_gap_ms_max=gap, sockets=sockets, **own,
                )
            )  # fmt: skip
            began_s, sent = now_s, feed.sent

        await note("open", ask=False)
        await feed.send(RATE_PER_S * (2 if short else SECONDS), RATE_PER_S)
        await feed.worked_off()
        await note("paced")
        await feed.send(BACKLOG // 10 if short else BACKLOG, None)
        await feed.worked_off()
        await note("backlog")
    return phases


def table(phases: list[Phase], machine: Machine) -> RenderableType:
    """Ratios against the fewest partitions, then the figures."""
    found = {(phase.partitions, phase.phase): phase for phase in phases}
    counts = sorted({phase.partitions for phase in phases})
    few, lines = counts[0], []
    for many in counts[1:]:
        a, b = found[few, "backlog"], found[many, "backlog"]
        lines.append(
            f"{many:,} partitions against {few}: {b.rss_bytes_max / a.rss_bytes_max:.2f} times the memory in a backlog,"
            f" {b.cpu_s / b.events / (a.cpu_s / a.events):.1f} times the CPU an event,"
            f" {b.gap_ms_max / a.gap_ms_max:.1f} times the longest gap."
        )
    grid = Table(
        "partitions", "phase", "s", "events", "CPU s", "µs an event", "RSS MiB", "at most", "gap ms, longest", "p99",
        "idle process", "sockets", title_justify="left", title="One worker, arithmetic model, no TensorFlow",
    )  # fmt: skip
    for column in grid.columns[2:]:
        column.justify = "right"
    for p in phases:
        an_event = f"{p.cpu_s / p.events * 1e6:.0f}" if p.events else ""
        grid.add_row(
            f"{p.partitions:,}", p.phase, f"{p.seconds:.1f}", f"{p.events:,}", f"{p.cpu_s:.1f}", an_event,
            f"{p.rss_bytes / MIB:.0f}", f"{p.rss_bytes_max / MIB:.0f}", f"{p.gap_ms_max:.0f}", f"{p.gap_ms_p99:.1f}",
            f"{p.idle_gap_ms_max:.0f}", f"{p.sockets}", end_section=p.phase == "backlog",
        )  # fmt: skip
    return Group(Text("\n".join(lines)), grid, Text(f"{machine}."))


async def figures(counts: list[int], promise: str, say: Steps, *, short: bool) -> list[Phase]:
    """Each number of partitions with servers of its own, so that none carries another's topics."""
    phases: list[Phase] = []
    for partitions in counts:
        say(f"{partitions:,} partitions")
        with LocalStack() as stack:
            phases += await measure(stack, partitions, promise, short=short)
    return phases


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument(
        "--short", action="store_true", help="2 s and 6,000 events instead of 10 s and 60,000"
    )
    parser.add_argument(
        "--exactly-once", action="store_const", dest="promise", const=EXACTLY_ONCE, default=AT_LEAST_ONCE
    )
    parser.add_argument("--partitions", type=int, nargs="+", default=list(PARTITIONS))
    asked = parser.parse_args()
    watch = Watch()
    with steps() as say:
        phases = asyncio.run(figures(asked.partitions, asked.promise, say, short=asked.short))
    machine = watch.seen()
    made = {"machine": asdict(machine), "phases": [asdict(phase) for phase in phases]}
    table_and_json(table(phases, machine), made, asked.json)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["worker", kafka_url, redis_url, topic, partitions, promise]:
            asyncio.run(worker(kafka_url, redis_url, topic, int(partitions), promise))
        case ["idle"]:
            asyncio.run(idle())
        case _:
            main()
