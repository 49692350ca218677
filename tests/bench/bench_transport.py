"""Records a second and produce-to-agent latency of the transport: whole batches against one record a message.

    python -m tests.bench.bench_transport [--kafka URL] [--json FILE]

Throughput: a topic is filled beforehand, then read from its start, each value decoded as JSON; the clock runs from
the first batch to the last. Latency: a producer in a process of its own sends at a fixed rate and stamps each value;
the agent subtracts. Both on one machine, so the producer takes its share of the same cores.
"""

import argparse
import asyncio
import json
import multiprocessing
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson
from aiokafka import AIOKafkaProducer

from ebbtide.ops.stack.local import LocalKafka
from ebbtide.stream.batch import Fetched, FetchedBatch
from ebbtide.stream.consumer.app import build_app
from ebbtide.stream.kafka.settings import KafkaSettings
from ebbtide.stream.kafka.topics import TopicSpec, ensure_topics

PARTITIONS = 8
PADDING = "x" * 100  # makes a value about 180 bytes, as a small clickstream event is


@dataclass(frozen=True, slots=True)
class Figures:
    """One way to run: its throughput, and its latencies by rate."""

    records_per_s: int
    batch_records: float
    latency_ms: dict[int, tuple[float, float]]  # rate → p50, p99


def value(number: int) -> bytes:
    return orjson.dumps({"user_id": f"u{number % 5000}", "type": "view", "at": time.time(), "note": PADDING})


async def produce(url: str, topic: str, count: int, per_second: int | None) -> None:
    """`count` values over all partitions; as fast as possible, or evenly at a rate."""
    producer = AIOKafkaProducer(bootstrap_servers=url, linger_ms=20 if per_second is None else 0)
    await producer.start()
    began = time.perf_counter()
    for number in range(count):
        if per_second is not None and number % 10 == 0:
            await asyncio.sleep(max(0.0, number / per_second - (time.perf_counter() - began)))
        await producer.send(topic, value(number), partition=number % PARTITIONS)
    await producer.stop()


def produce_apart(url: str, topic: str, count: int, per_second: int) -> None:
    asyncio.run(produce(url, topic, count, per_second))


class Reader:
    """Opens every partition at its begin, or its end, and decodes what comes until it is `expected` records."""

    def __init__(self, settings: KafkaSettings, expected: int, *, at_end: bool) -> None:
        self._expected, self._at_end, self._tasks = expected, at_end, set[asyncio.Task[None]]()
        self.open, self.enough = asyncio.Event(), asyncio.Event()
        self.count = self.batches = 0
        self.first_s = self.last_s = 0.0
        self.latencies: list[float] = []
        self.app = build_app(settings, self._on_fetched, self._on_assigned, lambda _: None)
        self.source = self.app.source

    def _on_assigned(self, partitions: frozenset[int]) -> None:
        self._tasks.add(asyncio.create_task(self._open(partitions)))

    async def _open(self, partitions: frozenset[int]) -> None:
        for number in partitions:
            begin, end = await self.source.log_range(number)
            await self.source.seek(number, end if self._at_end else begin)
        self.open.set()

    async def _on_fetched(self, fetched: Sequence[Fetched]) -> None:
        for batch in fetched:
            assert isinstance(batch, FetchedBatch)
            self._take(batch)

    def _take(self, batch: FetchedBatch) -> None:
        now = time.time()
        values = [orjson.loads(record.value or b"") for record in batch.records]
        if self._at_end:
            self.latencies.extend(now - value["at"] for value in values)
        self.first_s = self.first_s or time.perf_counter()
        self.last_s = time.perf_counter()
        self.count += len(values)
        self.batches += 1
        self.source.advance_committed(batch.partition, batch.end)
        if self.count >= self._expected:
            self.enough.set()


async def throughput(settings: KafkaSettings, count: int) -> tuple[int, float]:
    reader = Reader(settings, count, at_end=False)
    await reader.app.start()
    await reader.enough.wait()
    await reader.app.stop()
    return round(count / (reader.last_s - reader.first_s)), count / reader.batches


async def latency(settings: KafkaSettings, per_second: int, seconds: float) -> tuple[float, float]:
    count = round(per_second * seconds)
    reader = Reader(settings, count, at_end=True)
    await reader.app.start()
    await reader.open.wait()
    producer = multiprocessing.get_context("spawn").Process(
        target=produce_apart, args=(settings.url, settings.topic, count, per_second)
    )
    producer.start()
    await reader.enough.wait()
    await asyncio.to_thread(producer.join)
    await reader.app.stop()
    ordered = sorted(reader.latencies[count // 10 :])  # the first tenth warms up
    return tuple(round(1000 * ordered[int(len(ordered) * q)], 1) for q in (0.50, 0.99))  # type: ignore[return-value]  # two of them


async def run(url: str) -> dict[str, Figures]:
    figures: dict[str, Figures] = {}
    for name, size, count, rates in (
        ("batches", 1000, 600_000, (200, 2000, 8000)),
        ("one record a message", 1, 30_000, (200, 2000)),
    ):
        topic = f"bench-{uuid.uuid4().hex[:8]}"
        settings = KafkaSettings(url=url, group=topic, topic=topic, fetch_records_max=size)
        await ensure_topics(settings, [TopicSpec(topic, PARTITIONS, "partitions")])
        await produce(url, topic, count, None)
        per_second, batch = await throughput(settings, count)
        latencies = {rate: await latency(settings, rate, 5.0) for rate in rates}
        figures[name] = Figures(per_second, round(batch, 1), latencies)
        print(
            f"{name:>22}: {per_second:>8,} records/s, {batch:.0f} a message; p50/p99 ms {latencies}",
            flush=True,
        )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kafka", help="host:port; without it a local Kafka is started")
    parser.add_argument("--json", type=Path, help="write the figures there")
    given = parser.parse_args()
    if given.kafka:
        figures = asyncio.run(run(given.kafka))
    else:
        with LocalKafka() as kafka:
            figures = asyncio.run(run(kafka.url))
    if given.json:
        given.json.write_text(json.dumps({name: asdict(f) for name, f in figures.items()}, indent=2))


if __name__ == "__main__":
    main()
