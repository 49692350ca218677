"""Malformed records and requests against the real thing: a Kafka, a Valkey, a worker process and its HTTP face.

The records go through Kafka while the requests come in, and batches that were written by hand (`wire.py`) after them;
at the end the worker's own counts have to be, to the record, what the parser says of the same records here, every
refused one lies in the dead-letter topic once, and the worker answers, is ready, has not been restarted, has not
grown by more than GROWTH_BYTES_MAX since it was ready, and holds no more at the end than when half of it was done.
"""

import asyncio
import random
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from aiokafka import AIOKafkaProducer
from prometheus_client.parser import text_string_to_metric_families

from ebbtide.featurestore.events.parse import Parser
from ebbtide.featurestore.spec import load_spec
from ebbtide.ops.config.settings import DEFAULT_SPEC, Settings
from ebbtide.ops.stack.local import LocalStack
from ebbtide.ops.worker.connect import topic_specs
from ebbtide.ops.worker.process import WorkerProcess
from ebbtide.stream.clock import SystemClock
from ebbtide.stream.kafka.producer import KafkaSink
from ebbtide.stream.kafka.reader import read_topic
from ebbtide.stream.kafka.settings import KafkaSettings
from ebbtide.stream.kafka.topics import TopicSpec, ensure_topics
from ebbtide.stream.outputs.dead_letter import parse_headers
from ebbtide.stream.outputs.message import Message
from tests.fuzz.figures import Serving
from tests.fuzz.parsing import CHUNK
from tests.fuzz.requesting import fuzz_face
from tests.fuzz.wire import WireRecord, send_batch, wire_batch
from tests.support.fuzz import NOW_MS, fuzzed
from tests.support.seams.models import publish
from tests.support.seams.streams import LogRecord
from tests.support.workers.outages import rss_bytes

TOPIC, TOKEN = "fuzzed", "fuzz-token"
GROWTH_BYTES_MAX = 512 << 20
"""Its bounds by configuration: 256 MiB of cache, 32 fetched, 64 queued, and 64 of a batch while it is decompressed."""
LATE_BYTES_MAX = 96 << 20
"""What the second half may add: what batches of 8 MiB that came together leave in the allocator. Nothing by the record:
of a million it would be a hundred bytes each."""
BATCHES_TELLING = 2_000
"""Of fewer, the first half has not met all that is kept once."""
TOGETHER = 16
"""Batches on their way at a time."""
IDLE_S_MAX = 120.0
"""Without one record more in so long, it is stuck."""


def sendable(record: LogRecord) -> LogRecord | None:
    """The record as a client can send it: not without both key and value, in a time that the broker takes."""
    if record.key is None and record.value is None:
        return None
    at_ms = min(max(record.timestamp, 0), NOW_MS + 1000)
    return LogRecord(record.offset, at_ms, record.key, record.value, record.headers)


async def fuzz_worker(
    seed: int,
    records: int,
    batches: int,
    requests: int,
    folder: Path,
    tell: Callable[[str, float], None] = lambda *_: None,
) -> Serving:
    """`records` and `batches` through Kafka and a worker, and meanwhile `requests` to its face. `tell` hears what is
    being done, and what share of it is. Raises WorkerFailed when the worker cannot start."""
    tell("publishing a model", 0)
    model = await asyncio.to_thread(publish, folder / "models", spec=load_spec(DEFAULT_SPEC))
    with LocalStack() as stack:
        settings = Settings.model_validate(
            {
                "model": model, "kafka": KafkaSettings(url=stack.kafka_url, topic=TOPIC, group=TOPIC),
                "redis": {"url": stack.redis_url}, "http": {"token": TOKEN},
                "alerts_from": "start", "timers": {"clock": "off"}, "dead_letter_share_max": 1.0,
                "policy": {"enter": 0.3, "exit": 0.2,
                "cooldown": 0},
            }
        )  # fmt: skip
        wide = TopicSpec(
            TOPIC, settings.topics.partitions, "topics.partitions", {"max.message.bytes": str(16 << 20)}
        )
        await ensure_topics(settings.kafka, [wide, *topic_specs(settings)[1:]])
        found = Serving()
        with WorkerProcess(settings, folder) as worker:
            tell("starting a worker", 0)
            await asyncio.to_thread(worker.wait_ready)
            begin_bytes = worker.peak_rss_bytes()
            bearer = (f"Authorization: Bearer {TOKEN}",)
            asking = asyncio.create_task(
                fuzz_face(
                    worker.address,
                    seed,
                    requests,
                    lambda n: tell("asking", n / max(requests, 1)),
                    headers=bearer,
                )
            )
            await _send(settings.kafka, seed, records, found, lambda n: tell("sending", n / max(records, 1)))
            half = batches // 2
            await _send_batches(settings, seed, half, found, lambda n: tell("sending batches", n / batches))
            await _until_dealt_with(worker, found, tell)
            half_bytes = rss_bytes(worker.pid)
            await _send_batches(
                settings,
                seed + 1,
                batches - half,
                found,
                lambda n: tell("sending batches", (half + n) / batches),
            )
            await _until_dealt_with(worker, found, tell)
            found.requests = await asking
            await _judge(worker, settings, found)
            found.grown_bytes = max(worker.peak_rss_bytes() - begin_bytes, 0)
            if found.grown_bytes > GROWTH_BYTES_MAX:
                found.wrong.append(f"the worker grew by {found.grown_bytes >> 20} MiB")
            found.late_bytes = rss_bytes(worker.pid) - half_bytes
            if batches >= BATCHES_TELLING and found.late_bytes > LATE_BYTES_MAX:
                found.wrong.append(f"the second half left {found.late_bytes >> 20} MiB in the worker")
        log = worker.log.read_text(errors="replace")
        if "Traceback" in log:
            found.wrong.append("a trace in the worker's log: " + log[log.index("Traceback") :][:500])
    return found


async def _send(kafka: KafkaSettings, seed: int, n: int, found: Serving, tell: Callable[[int], None]) -> None:
    parser = Parser(load_spec(DEFAULT_SPEC))
    async with KafkaSink(kafka) as sink:
        while found.records < n:
            made = map(sendable, fuzzed(seed + found.records, min(CHUNK, n - found.records)))
            batch = [record for record in made if record is not None]
            parsed = await asyncio.to_thread(parser.parse, batch)
            found.expected.update(f"rejected {bad.reason}" for bad in parsed.rejected)
            found.expected.update(events=len(parsed.events), ignored=parsed.ignored)
            await sink.send_all([Message(TOPIC, r.key, r.value, r.headers, r.timestamp) for r in batch])
            found.records += len(batch)
            tell(found.records)


async def _send_batches(
    settings: Settings, seed: int, n: int, found: Serving, tell: Callable[[int], None]
) -> None:
    """Batches as other clients write them, to any partition. What the broker takes is expected like anything else."""
    parser, draw = Parser(load_spec(DEFAULT_SPEC)), random.Random(seed)
    partitions = settings.topics.partitions
    async with AIOKafkaProducer(bootstrap_servers=settings.kafka.url) as producer:
        for first in range(0, n, TOGETHER):
            made = [wire_batch(draw) for _ in range(min(TOGETHER, n - first))]
            sending = (send_batch(producer, TOPIC, draw.randrange(partitions), batch) for batch in made)
            arrived: list[WireRecord] = []
            for batch, refusal in zip(made, await asyncio.gather(*sending), strict=True):
                found.batches[batch.recipe] += 1
                if bool(refusal) is batch.whole:
                    found.wrong.append(f"a batch of {batch.recipe}: {refusal or 'the broker took it'}")
                if refusal:
                    found.refused[batch.recipe] += 1
                else:
                    arrived += batch.records
            records = [LogRecord(i, r.timestamp, r.key, r.value) for i, r in enumerate(arrived)]
            parsed = await asyncio.to_thread(parser.parse, records)
            found.expected.update(f"rejected {bad.reason}" for bad in parsed.rejected)
            found.expected.update(events=len(parsed.events), ignored=parsed.ignored)
            found.records += len(records)
            tell(first)


async def _until_dealt_with(
    worker: WorkerProcess, found: Serving, tell: Callable[[str, float], None]
) -> None:
    clock = SystemClock()
    seen, since_s = -1.0, clock.monotonic_s()
    while True:
        worker.check()
        metrics = await asyncio.to_thread(metrics_of, worker.address)
        records = metrics["ebbtide_records_total"]
        if records >= found.records:
            return
        if records != seen:
            seen, since_s = records, clock.monotonic_s()
        if clock.monotonic_s() - since_s > IDLE_S_MAX:
            found.wrong.append(f"the worker is stuck at {records:,.0f} of {found.records:,} records")
            return
        tell("folding", records / found.records)
        await asyncio.sleep(0.2)


async def _judge(worker: WorkerProcess, settings: Settings, found: Serving) -> None:
    metrics = await asyncio.to_thread(metrics_of, worker.address)
    found.counts = Counter(
        events=int(metrics["ebbtide_events_total"]), ignored=int(metrics["ebbtide_events_ignored_total"])
    )
    for name, value in metrics.items():
        if name.startswith("ebbtide_dead_letters_total{") and value:
            found.counts[f"rejected {name.partition('=')[2].strip('}')}"] = int(value)
    if found.counts.total() != metrics["ebbtide_records_total"] or found.counts.total() != found.records:
        found.wrong.append(
            f"the worker's counts add up to {found.counts.total():,} of {found.records:,} records"
        )
    if +found.counts != +found.expected:
        found.wrong.append(f"the worker counts {+found.counts}, the parser {+found.expected}")
    places, bare = set(), 0
    async for record in read_topic(settings.kafka, settings.topics.dead_letters):
        letter = parse_headers(record.headers)
        if letter is None and record.value is not None:
            bare += 1
        elif letter is not None:  # else it is a customer's tombstone, which reaches every topic
            found.letters[f"rejected {letter.reason}"] += 1
            places.add(letter.source)
    if found.letters != Counter({k: n for k, n in found.counts.items() if k.startswith("rejected")}):
        found.wrong.append(f"dead letters {found.letters} are not those counted")
    if bare:
        found.wrong.append(f"{bare} dead letters without their headers")
    if len(places) != found.letters.total():
        found.wrong.append("a record lies in the dead-letter topic twice")
    worker.check()
    await asyncio.to_thread(worker.wait_ready, 10.0)


def metrics_of(address: str) -> dict[str, float]:
    """Every sample: name, or name{label=value}, to its value."""
    with urllib.request.urlopen(address + "/metrics", timeout=30) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {
        s.name + ("{" + ",".join(f"{k}={v}" for k, v in s.labels.items()) + "}" if s.labels else ""): s.value
        for family in families
        for s in family.samples
    }
